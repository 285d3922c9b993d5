"""Which tensors of a file are positions: what ARG_MAX found, as `ops/position.py` writes it.

    ARG_MAX  int32  ADD -128  int32  CAST  int8 of scale 1, zero point -128        or        ARG_MAX  int32  CAST  float

Behind it the shape may change, and the type at the edge of the file. Such a number is a name and no quantity: between
3 and 5 is nothing.
"""

from __future__ import annotations

import math

from kquant.core.operators import facts
from kquant.tflite.file_model import EDGES, FLOATS, FileModel, FileOperator, FileTensor

FINDERS = frozenset({"ARG_MAX", "ARG_MIN"})
GRID = ((1.0,), (-128,))


def positions_in(file: FileModel, tensor: FileTensor) -> int:
    """How many positions a tensor tells apart: the length of the axis that was searched; 0 where it is a quantity.

    Args:
        file: that holds the tensor.
        tensor: mostly an output.
    """
    writers = {i: op for op in file.operators for i in op.outputs}
    op = writers.get(tensor.index)
    while op is not None and (op.code in EDGES or facts(op.code).rearranges):
        op = writers.get(op.inputs[0])
    if op is None or op.code != "CAST" or not _holds_positions(file.tensors[op.outputs[0]]):
        return 0
    op = writers.get(op.inputs[0])
    if op is not None and op.code == "ADD":
        op = writers.get(op.inputs[0])
    return 0 if op is None or op.code not in FINDERS else _length(file, op)


def _holds_positions(t: FileTensor) -> bool:
    return t.type in FLOATS or (t.scale, t.zero_point) == GRID


def _length(file: FileModel, op: FileOperator) -> int:
    """The operator leaves the axis out, whatever it is."""
    read, left = (math.prod(file.tensors[i].shape) for i in (op.inputs[0], op.outputs[0]))
    return read // max(left, 1)

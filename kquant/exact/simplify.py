"""Operators that compute nothing of their own: what they write is there already, in every code.

QUANTIZE to the same grid               its source
QUANTIZE there and back                 the source, where the two tables put together give every code back
pooling of single positions             its source
MEAN over lengths of 1                  its source, or a RESHAPE of it where the axes go
CONCATENATION of one operand            that operand
two operators alike on the same tensors one of them
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from kquant.core.program import Operator, Program, Ref
from kquant.exact.spans import grids_alike, tables_of

POOLS = ("AVERAGE_POOL_2D", "MAX_POOL_2D")
ALONE = {"strideH": 1, "strideW": 1, "filterHeight": 1, "filterWidth": 1}

LARGEST = 4096  # elements that are compared; weights beyond are told apart by what they are


def simplify(program: Program) -> int:
    """Take them out.

    Args:
        program: changed in place; its inputs and outputs stay tensors of their own.

    Returns:
        How many operators went, or became a RESHAPE, which tidying takes out where it meets another.
    """
    done = 0
    while _one(program):
        done += 1
    return done


def _one(program: Program) -> bool:
    """The first that can go."""
    makers = {id(ref): op for op in program.operators for ref in op.outputs}
    ends = {id(ref) for ref in program.outputs}
    seen: dict[Hashable, Ref] = {}
    for op in program.operators:
        if len(op.outputs) != 1 or id(op.outputs[0]) in ends or not op.inputs or op.graphs:
            continue
        known = seen.setdefault(_key(op), op.outputs[0])
        there = _there_already(op, makers) if known is op.outputs[0] else known
        if there is not None and there.shape != op.outputs[0].shape:
            _reshape(program, op, there)
            return True
        if there is not None:
            # One at a time: makers, and what was seen, are told of the program as it stands.
            program.operators = [other for other in program.operators if other is not op]
            for other in program.operators:
                other.inputs = [there if ref is op.outputs[0] else ref for ref in other.inputs]
            return True
    return False


def _reshape(program: Program, op: Operator, source: Ref) -> None:
    """The operator copies the codes of its source into its own shape."""
    shape = op.outputs[0].shape
    op.code, op.options = "RESHAPE", {"newShape": list(shape)}
    op.inputs = [source, program.constant("shape", np.array(shape, np.int32))]


def _key(op: Operator) -> Hashable:
    """Equal for operators that write the same."""
    output = op.outputs[0]
    given = tuple(_operand(ref) for ref in op.inputs)
    # As text: some are lists, which have no hash.
    options = tuple(sorted((name, str(value)) for name, value in op.options.items()))
    return op.code, given, options, output.shape, output.dtype, _grid(output)


def _operand(ref: Ref | None) -> Hashable:
    """Computed tensors by what they are, stored ones by what they hold."""
    if ref is None or ref.data is None or ref.size > LARGEST:
        return id(ref)
    return ref.shape, ref.dtype, ref.data.tobytes(), _grid(ref)


def _grid(ref: Ref) -> Hashable:
    grid = ref.encoding
    return None if grid is None else (grid.scale.tobytes(), grid.zero_point.tobytes(), grid.axis)


def _there_already(op: Operator, makers: dict[int, Operator]) -> Ref | None:
    """The tensor that holds what the operator writes."""
    source, output = op.inputs[0], op.outputs[0]
    if source is None or source.data is not None or source.encoding is None or output.encoding is None:
        return None
    if op.code == "QUANTIZE":
        return source if _same(source, output) else _back(op, makers)
    if op.code in POOLS and op.options.get("fusedActivationFunction") == "NONE":
        alone = all(op.options.get(name) == value for name, value in ALONE.items())
        return source if alone and _same(source, output) and source.shape == output.shape else None
    if op.code == "MEAN":
        # M(sum, 1 / 1) is the sum itself, which nothing rounds; over more positions its halves go another way.
        return source if source.size == output.size and _same(source, output) else None
    if op.code == "CONCATENATION" and len(op.inputs) == 1:
        return source if _same(source, output) and op.options.get("fusedActivationFunction") == "NONE" else None
    return None


def _same(source: Ref, output: Ref) -> bool:
    return source.dtype == output.dtype and grids_alike(source, output)


def _back(op: Operator, makers: dict[int, Operator]) -> Ref | None:
    """What was there before a QUANTIZE that this one takes back; on a finer grid between the two no code is lost."""
    middle = op.inputs[0]
    first = makers.get(id(middle))
    source = first.inputs[0] if first is not None and first.code == "QUANTIZE" else None
    if first is None or source is None or source.data is not None or source.encoding is None:
        return None
    if source.dtype != "int8" or middle is None or middle.dtype != "int8" or not _same(source, op.outputs[0]):
        return None
    # 256 codes can be tried, on every runtime: whether all come back is seen rather than derived.
    codes = np.arange(-128, 128)
    rounds = zip(tables_of(first), tables_of(op), strict=True)
    return source if all(np.array_equal(back[there + 128], codes) for there, back in rounds) else None

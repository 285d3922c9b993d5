"""The arena that TensorFlow Lite Micro will ask for, where it is not installed, or cannot run the file on a desk.

    kept      FIXED + TENSOR tensors + OPERATOR operators + CHANNEL scales of weights
    passing   PASSING + PASSING_CHANNEL scales that one operator reads, or PLANNED tensors: gone before the model runs
    arena     kept + the larger one of passing and of the plan of the tensors

The numbers are those of the five MLPerf Tiny models on a 64-bit host, whose arenas they tell to 1 %, and those of files
with one or two operators to a quarter. What kernels ask for as they run is not in it: a TRANSPOSE_CONV wants four times
the bytes of its int8 output.
"""

from __future__ import annotations

from kquant.core.operators import facts
from kquant.tflite.memory_plan import aligned_bytes
from kquant.tflite.reader import FileModel

FIXED, TENSOR, OPERATOR, CHANNEL = 700, 33.5, 140, 8
PASSING, PASSING_CHANNEL, PLANNED = 330, 4, 50


def forecast_arena(file: FileModel, planned_bytes: int) -> int:
    """Bytes of arena.

    Args:
        file: what TFLM will run.
        planned_bytes: of the memory that its tensors share, see `memory_plan`.
    """
    scales = {t.index: len(t.scale or ()) for t in file.tensors if t.size_bytes}
    weights = {op.inputs[at] for op in file.operators for at in facts(op.code).weights if at < len(op.inputs)}
    per_channel = CHANNEL * sum(scales.get(index, 0) for index in weights)
    kept = FIXED + TENSOR * len(file.tensors) + OPERATOR * len(file.operators) + per_channel
    states = sum(aligned_bytes(t) for t in file.tensors if t.variable)
    # while it prepares an operator or plans, and none of the tensors is there yet
    read = max((sum(scales.get(index, 0) for index in op.inputs) for op in file.operators), default=0)
    passing = max(PASSING + PASSING_CHANNEL * read, PLANNED * len(file.tensors))
    return round(kept) + states + max(planned_bytes, passing)

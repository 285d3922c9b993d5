"""How a softmax is written: SOFTMAX, which of many logits that are nearly equal computes in 16 bits."""

from __future__ import annotations

import numpy as np

from kquant.arithmetic.softmax import wide_below
from kquant.core.program import Program
from kquant.core.spec import Encoding, QuantSpec
from kquant.ops.rule import Call


def emit_softmax(program: Program, call: Call, beta: float) -> None:
    """Write a softmax over the last axis.

    Args:
        program: to write into.
        call: of the layer.
        beta: factor of the logits.
    """
    logits, y = call.inputs[0], call.output
    below = wide_below(logits.shape[-1], beta) if logits.dtype == "int8" else 0.0
    # The same test that the simulation makes, on the same float32 numbers.
    if logits.encoding is None or not logits.encoding.scale[0] < np.float32(below):
        program.emit("SOFTMAX", [logits], y, beta=beta)
        return
    zero, spec = np.zeros(1, np.int64), QuantSpec(16, symmetric=True)
    encodings = [Encoding(scale, zero, spec) for scale in (logits.encoding.scale, np.array([1 / 32768], np.float32))]
    source, wide = (program.value(f"{r.name}_16bit", r.shape, e) for r, e in zip((logits, y), encodings, strict=True))
    program.emit("QUANTIZE", [logits], source)
    program.emit("SOFTMAX", [source], wide, beta=beta)
    program.emit("QUANTIZE", [wide], y)

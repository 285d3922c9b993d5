"""Scales that a target's kernels cannot take: refused by layer name, before an interpreter refuses the whole file."""

from __future__ import annotations

from kquant.core.program import Operator, Program
from kquant.targets import Target


def refuse_extremes(program: Program, target: Target) -> None:
    """Compare `s_in * s_w / s_out` of every operator with the largest one that the target takes.

    Args:
        program: what is going to be written.
        target: has `max_rescale` for the operators that are limited.

    Raises:
        ValueError: naming the layer, the ratio and what to do.
    """
    for op in program.operators:
        limit = target.ops[op.code].max_rescale if op.code in target.ops else None
        ratio = rescale(op)
        if limit is None or ratio is None or ratio < limit:
            continue
        output = op.outputs[0]
        low, high = output.encoding.dequantize([output.encoding.spec.low, output.encoding.spec.high])
        raise ValueError(
            f"export: {output.name}: its range [{low:.3g}, {high:.3g}] is too small for what it is computed from: "
            f"{op.code} would rescale by {ratio:.3g}, and {target.title} takes less than {limit:g}. Calibrate with "
            "data on which this output varies and whose outliers are real; where its input is concatenated with much "
            "larger tensors, scale those down first; where the output is constant, remove the layer."
        )


def rescale(op: Operator) -> float | None:
    """The largest `s_in * s_w / s_out` of the channels; `s_in / s_out` without weights; None without encodings."""
    source = op.inputs[2] if op.code == "TRANSPOSE_CONV" else op.inputs[0]
    weights = op.inputs[1] if len(op.inputs) > 1 else None
    output = op.outputs[0]
    if source is None or source.encoding is None or output.encoding is None:
        return None
    factor = 1.0
    if weights is not None and weights.encoding is not None:
        factor = float(weights.encoding.scale.max())
    return float(source.encoding.scale[0]) * factor / float(output.encoding.scale[0])

"""Scales that a target's kernels cannot take: refused by layer name, before an interpreter refuses the whole file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kquant.core.operators import facts
from kquant.core.program import Operator, Program, Ref
from kquant.core.rescale import unit_of
from kquant.core.spec import Encoding
from kquant.targets import Target
from kquant.tflite.subgraphs import subgraphs

INT32_BITS = 31
# UNIDIRECTIONAL_SEQUENCE_LSTM: (what is multiplied, its four matrices, their biases) -> gates in steps of 2^-12
LSTM_SUMS = ((0, (1, 2, 3, 4), (12, 13, 14, 15)), (18, (5, 6, 7, 8), ()))
LSTM_GATE_SCALE = 2.0**-12
SMALLER = (
    "Calibrate with data whose outliers are real, and scale the data down before the model, in training too: of values "
    "that large, such a layer tells no more than the sign."
)


def refuse_extremes(program: Program, target: Target) -> None:
    """Compare the scales around every operator with what the target's kernels take.

    Args:
        program: what is going to be written.
        target: has `max_rescale` and `max_scale` for the operators that are limited.

    Raises:
        ValueError: naming the layer, the number and what to do.
    """
    for op in (op for part in subgraphs(program) for op in part.operators):
        known = target.ops.get(op.code)
        if known is None or op.type == "float":
            continue
        grid = op.outputs[0].encoding if op.outputs else None
        ratio, limit = rescale(op), known.max_rescale_for(op.type)
        if grid is not None and limit is not None and ratio is not None and ratio >= limit:
            raise ValueError(_too_narrow(op, grid, target, f"rescale by {ratio:.3g}", f"takes less than {limit:g}"))
        source, limit = op.inputs[0] if op.inputs else None, known.max_scale_for(op.type)
        scale = _scale(source)
        # SOFTMAX multiplies by beta before anything else, so its limit is that of the product.
        if source is not None and limit is not None and scale is not None:
            beta: float = op.options.get("beta", 1.0)
            if scale * beta >= limit:
                raise ValueError(_too_wide(op, source, target, scale, limit / beta))
        for sums in _sums(op):
            if sums.overflow:
                raise ValueError(_too_many_bits(op, target, sums))


def rescale(op: Operator) -> float | None:
    """What one unit of the operator's integers is worth, in steps of its output; None without encodings."""
    if not op.outputs or (out := _scale(op.outputs[0])) is None:
        return None
    kind = facts(op.code)
    if kind.unit == "weights":
        scale, weights = _scale(op.inputs[kind.data]), op.inputs[kind.weights[0]]
        if scale is None or weights is None or weights.encoding is None:
            return None
        # The channel with the largest scale comes closest to the limit.
        return unit_of(op.code, [scale], float(weights.encoding.scale.max())) / out
    scales = [s for s in map(_scale, op.inputs) if s is not None]
    return unit_of(op.code, scales) / out if scales else None


def _scale(ref: Ref | None) -> float | None:
    return None if ref is None or ref.encoding is None else float(ref.encoding.scale[0])


def _name(ref: Ref) -> str:
    return ref.name.removesuffix("/2d")


def _too_narrow(op: Operator, grid: Encoding, target: Target, would: str, takes: str) -> str:
    low, high = grid.dequantize(np.array([grid.spec.low, grid.spec.high]))
    return (
        f"export: {_name(op.outputs[0])}: its range [{low:.3g}, {high:.3g}] is too small for what it is computed from: "
        f"{op.code} would {would}, and {target.title} {takes}. Calibrate with data on which this output varies and "
        "whose outliers are real; where what it reads is large because it is concatenated with much larger tensors, or "
        "because the data are, scale those down first; where the output is constant, remove the layer."
    )


def _too_wide(op: Operator, source: Ref, target: Target, scale: float, limit: float) -> str:
    return (
        f"export: {_name(op.outputs[0])}: what it reads, {_name(source)}, comes in steps of {scale:.3g}, and "
        f"{op.code} of {target.title} takes less than {limit:.3g}. {SMALLER}"
    )


def _too_many_bits(op: Operator, target: Target, sums: _Sums) -> str:
    return (
        f"export: {_name(op.outputs[0])}: what it reads, {_name(sums.source)}, is too large for what it makes of it: "
        f"{op.code} of {target.title} would shift sums of up to {sums.reach:.3g} to the left by {sums.left_shift} "
        f"bits, and has {INT32_BITS}. {SMALLER}"
    )


@dataclass(frozen=True)
class _Sums:
    """Sums of products of a tensor that a kernel brings to another scale: the largest, and how many bits it goes up."""

    source: Ref
    reach: float
    left_shift: int

    @property
    def overflow(self) -> bool:
        """The kernel's int32 would not hold them."""
        return self.left_shift > 0 and self.reach * 2.0**self.left_shift >= 2.0**INT32_BITS


def _sums(op: Operator) -> list[_Sums]:
    """Those of an operator with int8 weights and activations; int16 activations are summed in 64 bits."""
    kind = facts(op.code)
    data = op.inputs[kind.data] if len(op.inputs) > kind.data else None
    if data is None or data.dtype != "int8":
        return []
    if kind.unit == "weights":
        bias = op.inputs[kind.bias] if kind.bias is not None and len(op.inputs) > kind.bias else None
        return _of_channels(op, data, op.inputs[kind.weights[0]], bias, _scale(op.outputs[0]))
    if op.code == "UNIDIRECTIONAL_SEQUENCE_LSTM":
        return [
            sums
            for source, matrices, biases in LSTM_SUMS
            for n, w in enumerate(matrices)
            for sums in _of_channels(
                op, op.inputs[source], op.inputs[w], op.inputs[biases[n]] if biases else None, LSTM_GATE_SCALE
            )
        ]
    return []


def _of_channels(
    op: Operator, source: Ref | None, weights: Ref | None, bias: Ref | None, out: float | None
) -> list[_Sums]:
    """The channel that needs most bits; none where nothing goes up."""
    if source is None or source.encoding is None or not out:
        return []
    if weights is None or weights.data is None or weights.encoding is None:
        return []
    # What the sum of a channel can come to: the largest centred code times the sum of its |weights|, and |bias|.
    grid, axis = source.encoding, facts(op.code).channel_axis
    ratios = weights.encoding.scale.astype(np.float64) * float(grid.scale[0]) / out
    if ratios.max() < 1.0:  # as nearly always
        return []
    zero = int(grid.zero_point[0])
    codes = np.moveaxis(np.abs(weights.data.astype(np.float64)), axis, 0).reshape(weights.shape[axis], -1)
    reach = codes.sum(axis=1) * max(grid.spec.high - zero, zero - grid.spec.low)
    if bias is not None and bias.data is not None:
        reach = reach + np.abs(bias.data.astype(np.float64))
    # QuantizeMultiplier takes its shift from frexp, too: above 0, sums go up by so many bits before they are
    # multiplied.
    shifts = np.maximum(np.frexp(np.broadcast_to(ratios, reach.shape))[1], 0)
    worst = int(np.argmax(np.where(shifts > 0, reach * 2.0**shifts, 0.0)))
    return [_Sums(source, float(reach[worst]), int(shifts[worst]))]

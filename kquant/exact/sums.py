"""Kernels that sum products with stored weights: how far a sum can reach, and the codes that it can become.

    acc = b + sum w (q - z)        low: b + w+ (q_low - z) + w- (q_high - z), and the other way round

with w+ and w- the positive and negative weights. Beside the edges of an image a padded kernel multiplies 0 with some of
its weights, so there 0 lies in every interval.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from kquant.arithmetic import ROUNDING, ROUNDING_INT16, Grid, requantize
from kquant.core.operators import facts
from kquant.core.program import Operator, Ref

# Kernels of a build with TFLITE_SINGLE_ROUNDING round once.
ELSEWHERE = ("single",)
# What rounding and a multiplier of 15 bits can add to half a step; see `enclosed`.
MARGIN, RELATIVE = 1.0, 2.0**-15
SMALLEST_UNIT = 2.0**-31  # a multiplier below half of it counts as 0 to the kernels
# Sums beyond have no defined code; in 64 bits `multiply_reduced` is exact up to there.
LIMITS = {"int8": 2.0**31, "int16": 2.0**47}
# A bias may reach so far once constants are folded into it: half of what a sum may.
BIAS_LIMITS = {"int8": 2**30, "int16": 2**46}


@dataclass(frozen=True, eq=False)
class Sums:
    """One such operator.

    Attributes:
        source, weights, bias: its operands.
        codes: int64[outputs, positions, inputs] of the weights; of a depthwise kernel inputs is 1, its own channel.
        depthwise: outputs of one input channel, 0 for a kernel that sums over channels.
        padded: some sums leave positions out.
    """

    source: Ref
    weights: Ref
    bias: Ref | None
    codes: np.ndarray
    depthwise: int
    padded: bool

    @property
    def zero(self) -> int:
        """Code of real 0 in the source."""
        return int(self.source.grid.zero_point[0])

    @property
    def offsets(self) -> np.ndarray:
        """int64[outputs]: the bias."""
        if self.bias is None or self.bias.data is None:
            return np.zeros(len(self.codes), np.int64)
        return self.bias.data.astype(np.int64)

    def reach(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest sum of each output, for sources between two codes.

        Args:
            low: int64[inputs], the smallest codes.
            high: int64[inputs], the largest.
        """
        low, high = low - self.zero, high - self.zero
        if self.padded:
            low, high = np.minimum(low, 0), np.maximum(high, 0)
        # float64 holds the sums exactly and multiplies matrices faster than integers do
        # Sums rise with the codes that positive weights read, and fall with those of negative ones.
        up, down = (f(self.codes, 0).sum(axis=1).astype(np.float64) for f in (np.maximum, np.minimum))
        if self.depthwise:
            up, down = up[:, 0], down[:, 0]
            low, high = np.repeat(low, self.depthwise), np.repeat(high, self.depthwise)
            return self.offsets + up * low + down * high, self.offsets + up * high + down * low
        return self.offsets + up @ low + down @ high, self.offsets + up @ high + down @ low


def sums_of(op: Operator) -> Sums | None:
    """An operator with stored weights on the axes that are read here; None for another (groups, floats, wide rows)."""
    kind = facts(op.code)
    source, weights = op.inputs[kind.data], op.inputs[kind.weights[0]]
    at = kind.bias
    bias = op.inputs[at] if at is not None and len(op.inputs) > at else None
    if source is None or weights is None or weights.data is None or source.dtype not in LIMITS:
        return None
    # With a zero point of the weights the sum would have one term more, of the source's codes.
    if weights.encoding is None or np.any(weights.encoding.zero_point) or (bias is not None and bias.data is None):
        return None
    codes, multiplier = weights.data.astype(np.int64), 0
    if op.code == "DEPTHWISE_CONV_2D":
        multiplier = codes.shape[-1] // source.shape[-1]
        codes = np.moveaxis(codes, -1, 0).reshape(codes.shape[-1], -1, 1)
    else:
        # Groups, or several positions in one row: an input of the weights is no channel of the source.
        if codes.shape[-1] != source.shape[-1]:
            return None
        codes = codes.reshape(codes.shape[0], -1, codes.shape[-1])
    if len(codes) != op.outputs[0].shape[-1]:
        return None
    return Sums(source, weights, bias, codes, multiplier, _pads(op, source, weights))


def _pads(op: Operator, source: Ref, weights: Ref) -> bool:
    """Whether some sums leave positions out: those of SAME at the edges, and nearly all of a transposed convolution."""
    if op.code == "FULLY_CONNECTED":
        return False
    if op.code == "TRANSPOSE_CONV":
        return True
    if op.options["padding"] != "SAME":
        return False
    # SAME pads by what the windows together reach beyond the source: by nothing where they fit.
    for axis, letter in ((1, "H"), (2, "W")):
        reach = (weights.shape[axis] - 1) * op.options[f"dilation{letter}Factor"] + 1
        if (op.outputs[0].shape[axis] - 1) * op.options[f"stride{letter}"] + reach > source.shape[axis]:
            return True
    return False


def scales_of(sums: Sums) -> np.ndarray:
    """float64[outputs]: what one unit of each sum is worth."""
    scale = sums.weights.grid.scale.astype(np.float64) * np.float64(sums.source.grid.scale[0])
    return np.broadcast_to(scale, len(sums.codes))


def enclosed(
    op: Operator, sums: Sums, low: np.ndarray, high: np.ndarray, out: Grid, ends: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Codes between which all sums of an interval end.

    First by what no rounding exceeds; where that leaves little, by the kernels' arithmetic, of all runtimes.

    Args:
        op: the operator.
        sums: of it.
        low: float64[outputs], the smallest sums, whole numbers.
        high: float64[outputs], the largest.
        out: grid of its output.
        ends: what its activation lets through.

    Returns:
        int64[outputs] twice.
    """
    unit = scales_of(sums) / np.float64(out.scale)
    zero = float(out.zero_point)
    slack_low, slack_high = (MARGIN + np.abs(r * unit) * RELATIVE for r in (low, high))
    first = np.clip(np.floor(low * unit - slack_low) + zero, *ends).astype(np.int64)
    last = np.clip(np.ceil(high * unit + slack_high) + zero, *ends).astype(np.int64)
    # No code is defined for those; the activation clips whatever comes out.
    beyond = np.maximum(np.abs(low), np.abs(high)) >= LIMITS[sums.source.dtype]
    first[beyond], last[beyond] = ends
    # Less than a code wide, an interval may yet be a single one: only those are worth a closer look.
    near = np.flatnonzero((first != last) & ~beyond & ((high - low) * unit < 1.0))
    least, most = _steps(low[near], high[near], unit[near])
    sure = least == most
    first[near[sure]] = last[near[sure]] = np.clip(least[sure] + zero, *ends).astype(np.int64)
    near = near[~sure]
    # Near a half it is the kernels' arithmetic that tells: a millisecond for each way to round.
    if near.size:
        codes = _rounded(op, sums, np.stack([low[near], high[near]]), near, out)
        first[near], last[near] = codes.min(axis=0), codes.max(axis=0)
    return first, last


def _steps(low: np.ndarray, high: np.ndarray, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float64[outputs] twice: the fewest and the most steps that any kernel makes of an interval of sums.

    All round to nearest, and are off by what the multiplier's bits leave out. "double" rounds once more before, to
    2^-s of a step, where a multiplier m 2^-s with m from a half up to 1 is `unit`: 2^-s is 2 `unit` at most. A
    multiplier that is too small for their shifts counts as 0.
    """
    half = 0.5 + np.minimum(unit, 0.5) + 2.0**-20  # the last for what is computed here
    ends = [(r * unit, np.abs(r * unit) * RELATIVE) for r in (low, high)]
    least, most = np.ceil(ends[0][0] - ends[0][1] - half), np.floor(ends[1][0] + ends[1][1] + half)
    lost = unit < SMALLEST_UNIT
    return np.where(lost, np.minimum(least, 0.0), least), np.where(lost, np.maximum(most, 0.0), most)


def _rounded(op: Operator, sums: Sums, values: np.ndarray, channels: np.ndarray, out: Grid) -> np.ndarray:
    """int64[roundings, outputs]: codes of some sums, as each runtime rounds them."""
    tables = ROUNDING_INT16 if sums.source.dtype == "int16" else ROUNDING
    # A set: runtimes that round alike are asked once.
    roundings = {table[op.code] for table in tables.values()} | set(() if tables is ROUNDING_INT16 else ELSEWHERE)
    activation = op.options.get("fusedActivationFunction")
    scale, whole = tf.constant(scales_of(sums)[channels]), tf.constant(values.astype(np.int64))
    rows = [
        np.asarray(requantize(whole, scale, out, rounding, None if activation in (None, "NONE") else activation))
        for rounding in sorted(roundings)
    ]
    return np.rint(np.concatenate(rows)).astype(np.int64)

"""What is wanted of a tensor (`QuantSpec`) and what was found for it (`Encoding`).

One convention everywhere: `real = scale * (code - zero_point)`, `scale` being TFLite's. Codes are rounded half to even
(float rounding of TensorFlow); how an interpreter rounds its accumulators is the business of `arithmetic`.

    spec        codes                 zero point
    asymmetric  -2^(b-1) .. 2^(b-1)-1  any code
    symmetric   the same               0
    narrow      -2^(b-1)+1 .. 2^(b-1)-1  (symmetric weights: -127 .. 127)
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (TensorFlow has no types for `tf.bitwise` and `tf.bitcast`)
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from kquant.core.quant_spec import Kind, QuantSpec

__all__ = ["Encoding", "Kind", "QuantSpec", "encode_range", "encode_weights"]

# The width of a tensor that is not quantized.
FLOAT = 0
KERNEL_BITS = (8, 16)  # widths of activations that integer kernels take
# The width of an input that holds positions.
INDEX = -1
# A range narrower than this is that of a dead tensor, which may take any scale.
SMALLEST_RANGE = 1e-20
# XNNPACK and gemmlowp rescale by 2^-31 and more; a dead channel borrows a scale this far below the layer's largest.
SMALLEST_CHANNEL = 2.0**-16
# |bias code| stays below this, so that adding the accumulator cannot overflow int32.
LARGEST_BIAS_CODE = 2.0**30


@dataclass(frozen=True)
class Encoding:
    """What was found for one tensor: the numbers that go into the file.

    Attributes:
        scale: float32[n], n = 1 or the number of output channels.
        zero_point: int64[n].
        spec: the grid.
        axis: the tensor's axis that the scales belong to, None for one scale.

    Example:
        >>> e = Encoding(np.float32([0.5]), np.int64([-128]), QuantSpec())
        >>> e.quantize(np.float32([0.0, 1.0, 99999.0])).tolist()
        [-128, -126, 127]
    """

    scale: np.ndarray
    zero_point: np.ndarray
    spec: QuantSpec
    axis: int | None = None

    @property
    def dtype(self) -> str:
        """Numpy's name of the type that stores a code."""
        return self.spec.container

    def quantize(self, real: np.ndarray) -> np.ndarray:
        """`clip(round(real / scale) + zero_point)` as int64 codes."""
        with np.errstate(over="ignore"):  # beyond float32 in steps: clipped like all that lies beyond the grid
            steps = np.rint(np.asarray(real, np.float32) / self._along(self.scale, np.ndim(real)))
        # float64: steps far beyond the grid and a zero point have no exact sum in float32
        codes = steps.astype(np.float64) + self._along(self.zero_point, np.ndim(real))
        return np.clip(codes, self.spec.low, self.spec.high).astype(np.int64)

    def dequantize(self, codes: np.ndarray) -> np.ndarray:
        """`scale * (codes - zero_point)` as float32."""
        shifted = np.asarray(codes, np.int64) - self._along(self.zero_point, np.ndim(codes))
        return (shifted.astype(np.float32) * self._along(self.scale, np.ndim(codes))).astype(np.float32)

    def _along(self, values: np.ndarray, rank: int) -> np.ndarray:
        if self.axis is None:
            return values.reshape(())
        shape = [1] * rank
        shape[self.axis] = -1
        return values.reshape(shape)

    def same_as(self, other: Encoding) -> bool:
        """True where scale, zero point and grid are equal to the bit."""
        return (
            self.spec.bits == other.spec.bits
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )


def encode_range(low: Any, high: Any, spec: QuantSpec) -> tuple[Any, Any]:
    """Scale and zero point of an activation whose values lie in `low..high`; 0 is always a code.

    `scale = (high - low) / (codes - 1)`, `zero_point = round(lowest_code - low / scale)` after stretching the range to
    contain 0; symmetric: `scale = max(-low, high) / highest_code`. Source: LiteRT 8-bit quantization specification.
    A scale below `spec.smallest` is that.

    Of NumPy's numbers it is made by NumPy, to the same bit: thirteen eager operations of TensorFlow take half a
    millisecond.

    Args:
        low: float32[], smallest value; a tensor, or a number of NumPy.
        high: float32[], largest value, of the same kind.
        spec: the grid.

    Returns:
        `(scale, zero_point)`, both float32[] of that kind; the zero point is an integer.

    Example:
        >>> scale, zero_point = encode_range(tf.constant(0.0), tf.constant(2.55), QuantSpec())
        >>> round(float(scale), 6), int(zero_point)
        (0.01, -128)
    """
    of: Any = tf if tf.is_tensor(low) else np
    if of is np:
        low, high = np.float32(low), np.float32(high)
    low, high = of.minimum(low, 0.0), of.maximum(high, 0.0)
    if spec.symmetric:
        reach = _alive(of.maximum(-low, high), of)
        return _spaced(_held(reach * _reciprocal(spec.high), spec, of), spec), of.zeros_like(low)
    width = _alive(high - low, of)
    scale = _spaced(_held(width * _reciprocal(spec.high - spec.low), spec, of), spec)
    zero_point = of.minimum(of.maximum(of.round(spec.low - low / scale), float(spec.low)), float(spec.high))
    return scale, zero_point


def _reciprocal(steps: int) -> np.float32:
    """TensorFlow's graph optimizer turns `x / constant` into `x * (1 / constant)`, which moves the last bit; a product
    is the same number in eager mode, in a graph and under XLA.
    """
    return np.float32(1.0) / np.float32(steps)


def _held(scale: Any, spec: QuantSpec, of: Any) -> Any:
    """The scale itself, or the smallest that the kernels take."""
    return of.maximum(scale, np.float32(spec.smallest)) if spec.smallest else scale


def _spaced(scale: Any, spec: QuantSpec) -> Any:
    """The scale itself, or the next power of two: all bits of the mantissa set carry into the exponent."""
    if spec.kind != "power-of-two":
        return scale
    if not tf.is_tensor(scale):
        bits = np.asarray(scale, np.float32).view(np.int32)
        return ((bits + np.int32(0x7FFFFF)) & np.int32(0x7F800000)).view(np.float32)
    return tf.bitcast(tf.bitwise.bitwise_and(tf.bitcast(scale, tf.int32) + 0x7FFFFF, 0x7F800000), tf.float32)


def _alive(width: Any, of: Any) -> Any:
    """A tensor that is always 0 has no width; 1.0 gives it a harmless scale."""
    return of.where(width > SMALLEST_RANGE, width, of.ones_like(width))


def range_of(scale: np.float32, zero_point: int, spec: QuantSpec) -> tuple[float, float]:
    """A range whose encoding is this one to the bit, where float32 has one: the inverse of `encode_range`.

    Both ends are multiples of the last place of the width, so that their difference is exact.

    Args:
        scale: of the encoding.
        zero_point: of the encoding.
        spec: the grid.

    Returns:
        `(low, high)`, float32 numbers.

    Example:
        >>> low, high = range_of(np.float32(0.1), 3, QuantSpec())
        >>> round(low, 4), round(high, 4)
        (-13.1, 12.4)
    """
    steps = spec.high if spec.symmetric else spec.high - spec.low
    width = _width(np.float32(scale), steps)
    if spec.symmetric:
        return -float(width), float(width)
    # `high - low` is formed in float32: of multiples of the width's last place it is exact
    place = np.float64(np.spacing(width))
    low = max(np.rint((spec.low - zero_point) * np.float64(scale) / place) * place, -np.float64(width))
    return float(np.float32(low)), float(np.float32(np.float64(width) + low))


def _width(scale: np.float32, steps: int) -> np.float32:
    """The number nearest to `scale * steps` whose product with `1 / steps` is the scale, as `encode_range` forms it."""
    unit = np.float32(1.0) / np.float32(steps)
    middle = np.float32(np.float64(scale) * steps)
    below = above = middle
    # the product rounds as well, so that the number wanted may lie some places beside the quotient
    for _ in range(4):
        for width in (below, above):
            if np.float32(width * unit) == scale:
                return width
        below, above = np.nextafter(below, np.float32(0)), np.nextafter(above, np.float32(np.inf))
    return middle


def encode_weights(
    weights: tf.Tensor,
    spec: QuantSpec,
    channel_axes: tuple[int, ...],
    *,
    bias_reach: tf.Tensor | None = None,
    reach: tf.Tensor | None = None,
) -> tf.Tensor:
    """Scales of a weight tensor, shaped to broadcast against it (zero point 0).

    `scale_c = max|w_c| / highest_code` (Krishnamoorthi 2018, arXiv:1806.08342, section 2.2). A channel that is (nearly)
    dead takes a scale `2^-16` below the largest of the layer, so that no kernel meets a rescale near 0; one whose bias
    would overflow int32 takes the scale that just holds it.

    Args:
        weights: float32[...].
        spec: symmetric grid; `per_axis` gives one scale for each index over `channel_axes`.
        channel_axes: the axes that number the output channels together.
        bias_reach: float32, broadcastable: `|bias| / input_scale`, or None.
        reach: float32, shaped like the result: range that was chosen, where it is above 0, in place of `max|w_c|`.

    Returns:
        float32 with size 1 on every reduced axis.

    Example:
        >>> spec = QuantSpec(8, symmetric=True, narrow=True, per_axis=True)
        >>> encode_weights(tf.constant([[1.27, 0.5], [-0.2, 0.254]]), spec, (1,)).numpy().round(5)
        array([[0.01   , 0.00394]], dtype=float32)
    """
    kept: set[int] = {axis % weights.shape.rank for axis in channel_axes} if spec.per_axis else set()
    axes = [axis for axis in range(weights.shape.rank) if axis not in kept]
    widest = tf.reduce_max(tf.abs(weights), axis=axes, keepdims=True)
    scale = encode_reach(widest if reach is None else tf.where(reach > 0.0, reach, widest), spec)
    if bias_reach is None:
        return scale
    # one scale must hold the largest bias of all channels
    if not spec.per_axis:
        bias_reach = tf.reduce_max(bias_reach)
    return tf.maximum(scale, _spaced(bias_reach / LARGEST_BIAS_CODE, spec))


def encode_reach(reach: tf.Tensor, spec: QuantSpec) -> tf.Tensor:
    """Scales of weights whose largest are given, before a bias asks for more: see `encode_weights`.

    Args:
        reach: float32[...], the largest weight of each scale, or the range that was chosen in its place.
        spec: symmetric grid.

    Example:
        >>> encode_reach(tf.constant([1.27, 2.54]), QuantSpec(8, symmetric=True, narrow=True)).numpy().round(5)
        array([0.01, 0.02], dtype=float32)
    """
    largest = tf.reduce_max(reach)
    reach = tf.maximum(reach, tf.where(largest > SMALLEST_RANGE, largest, 1.0) * SMALLEST_CHANNEL)
    return _spaced(reach * _reciprocal(spec.high), spec)

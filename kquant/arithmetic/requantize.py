"""From an accumulator, or from another encoding, to the codes of the output."""

from collections.abc import Sequence

import tensorflow as tf

from kquant.arithmetic.fixed_point import multiply, multiply_reduced, quantize_multiplier, scaled, scaled_from_zero
from kquant.arithmetic.grid import (
    Grid,
    activation_range,
    centred,
    check_runtime,
    clipped_steps,
    placed,
    round_half_away,
    starts_at_zero,
    tabulated,
)
from kquant.core.beforehand import beforehand

ROUNDINGS = ("double", "single", "reduced", "real", "float")


def accumulator_scale(source: Grid, weights: Grid) -> tf.Tensor:
    """What one unit of a kernel's accumulator is worth, `s_in * s_w`, as float64.

    The kernels multiply the two float32 scales in double, so a float32 product is not enough to find their multiplier
    (PopulateConvolutionQuantizationParams in tflite/kernels/kernel_util.cc).
    """
    return tf.cast(source.scale, tf.float64) * tf.cast(weights.scale, tf.float64)


def product_scale(left: Grid, right: Grid, runtime: str = "litert") -> tf.Tensor:
    """What one unit of BATCH_MATMUL's accumulator is worth, `s_left * s_right`, as float64.

    LiteRT rounds the product to float32 (GetQuantizedConvolutionMultipler in tflite/kernels/kernel_util.cc), TFLM
    multiplies in double: in int16, where the multiplier has 15 bits, one pair of scales in thousands shows it.
    """
    precision = tf.float64 if check_runtime(runtime) == "tflm" else tf.float32
    return tf.cast(tf.cast(left.scale, precision) * tf.cast(right.scale, precision), tf.float64)


def requantize(
    accumulator: tf.Tensor,
    accumulator_scale: tf.Tensor,
    out: Grid,
    rounding: str,
    activation: str | None = None,
) -> tf.Tensor:
    """Codes of an integer accumulator, `round(accumulator * accumulator_scale / out.scale) + zero_point`, clipped.

    How the multiplier is represented and the product rounded differs between kernels (see `ROUNDING`):
        double: 31-bit mantissa, rounded twice (MultiplyByQuantizedMultiplier in tflite/kernels/internal/common.cc).
        single: 31-bit mantissa, rounded once, halves up (the same with TFLITE_SINGLE_ROUNDING).
        reduced: 15-bit mantissa, rounded once, halves up (the same on an int64 value: int16 activations).
        real: float64 product, rounded once, halves away from zero.
        float: float32 product, rounded to even (XNNPACK).

    Args:
        accumulator: float32, float64 or an integer type; exact integers within the int32 range, or for "reduced" and
            "real" within 2**47.
        accumulator_scale: what one unit is worth, a scalar or a vector along the last axis, float32 or float64.
        out: the output grid.
        rounding: one of the five.
        activation: "RELU", "RELU6", "RELU_N1_TO_1" or None.

    Returns:
        float32 codes, shaped like `accumulator`.

    Raises:
        ValueError: unknown rounding or activation.
    """
    steps = requantized_steps(accumulator, accumulator_scale, out, rounding, activation)
    return tf.cast(steps, tf.float32) + tf.cast(out.zero_point, tf.float32)


def requantized_steps(
    accumulator: tf.Tensor,
    accumulator_scale: tf.Tensor,
    out: Grid,
    rounding: str,
    activation: str | None = None,
) -> tf.Tensor:
    """`requantize` without the zero point: steps from real 0, in float32 or float64.

    A convolution sums float32 and an ADD takes float64: what a RELU ends goes to the one more often, what nothing ends
    to the other, and a conversion costs as much as three operations.
    """
    if rounding not in ROUNDINGS:
        raise ValueError(f"requantize: expected rounding to be one of {ROUNDINGS}, received {rounding!r}.")
    if rounding == "float":
        return _requantize_float(accumulator, accumulator_scale, out, activation)
    with beforehand(accumulator_scale, out.scale):
        real = tf.cast(accumulator_scale, tf.float64) / tf.cast(out.scale, tf.float64)
    # FullyConnectedPerChannel of LiteRT rounds `acc * s_in s_w / s_out` as a double and has no multiplier at all
    # (reference/integer_ops/fully_connected.h).
    if rounding == "real":
        values = round_half_away(tf.cast(accumulator, tf.float64) * real)
    elif rounding == "reduced":
        values = tf.cast(multiply_reduced(tf.cast(accumulator, tf.int64), quantize_multiplier(real)), tf.float32)
    elif rounding == "single":
        values = tf.cast(multiply(tf.cast(accumulator, tf.int64), quantize_multiplier(real), True), tf.float32)
    elif accumulator.dtype.is_floating and starts_at_zero(activation):
        values = tf.cast(scaled_from_zero(accumulator, quantize_multiplier(real)), tf.float32)
    else:
        integers = accumulator if accumulator.dtype.is_floating else tf.cast(accumulator, tf.int64)
        values = scaled(integers, quantize_multiplier(real))
    return clipped_steps(values, out, activation)


def quantize(
    sources: Sequence[tf.Tensor], grids: Sequence[Grid | None], out: Grid, runtime: str = "litert"
) -> tf.Tensor:
    """QUANTIZE: real numbers to codes, or codes to the codes of another encoding.

    Real numbers: `round(x / scale) + zero_point`, divided in float32, halves away from zero (AffineQuantize in
    tflite/kernels/internal/reference/quantize.h). Codes: MultiplyByQuantizedMultiplier by `s_in / s_out`, taken in
    double (tflite/kernels/quantize.cc, requantize.h). Either side may be int16. Both runtimes alike.

    Args:
        sources: one float32 tensor, or one int32 tensor of codes.
        grids: the grid of the codes; None for real numbers.
        out: the output grid.
        runtime: "litert" or "tflm"; no difference here.

    Returns:
        int32 codes.
    """
    source, grid = sources[0], grids[0]
    if source.dtype.is_floating:
        return placed(round_half_away(tf.cast(source, tf.float32) / tf.cast(out.scale, tf.float32)), out)
    if grid is None:
        raise ValueError("QUANTIZE: codes need their grid, received None. Pass None only with a float source.")
    by = quantize_multiplier(tf.cast(grid.scale, tf.float64) / tf.cast(out.scale, tf.float64))
    return tabulated(lambda codes: placed(scaled(centred(codes, grid), by), out), source, grid)


def _requantize_float(accumulator: tf.Tensor, scale: tf.Tensor, out: Grid, activation: str | None) -> tf.Tensor:
    low, high = activation_range(out, activation)
    zero_point = tf.cast(out.zero_point, tf.float32)
    product = tf.cast(accumulator, tf.float32) * (tf.cast(scale, tf.float32) / tf.cast(out.scale, tf.float32))
    # XNNPACK clips the product before it rounds, which keeps the sum with the zero point exact.
    product = tf.maximum(product, tf.cast(low, tf.float32) - zero_point)
    product = tf.minimum(product, tf.cast(high, tf.float32) - zero_point)
    return clipped_steps(tf.round(product), out, activation)

"""Activations of one operand computed in fixed point: RELU, RELU6, RELU_N1_TO_1, ABS, LEAKY_RELU, HARD_SWISH."""

from collections.abc import Sequence

import tensorflow as tf

from kquant.arithmetic.fixed_point import (
    Multiplier,
    doubling_high_mul,
    power_of_two,
    quantize_multiplier,
    rounding_divide_by_power,
    scaled,
    shift_right,
)
from kquant.arithmetic.grid import (
    Grid,
    activation_range,
    centred,
    check_int8,
    check_runtime,
    clipped,
    placed,
    tabulated,
)


def relu(
    sources: Sequence[tf.Tensor],
    grids: Sequence[Grid],
    out: Grid,
    maximum: float | None = None,
    runtime: str = "litert",
) -> tf.Tensor:
    """RELU as an operator of its own: `M(q, s_in / s_out)` clipped at the output's code of 0.

    LiteRT takes the ratio in float32 (QuantizedReluX in tflite/kernels/activations.cc), TFLM in double
    (micro/kernels/activations_common.cc; its sources read as float32, the interpreter measured here uses double).

    Args:
        sources: one int32 tensor of codes.
        grids: its grid.
        out: the output grid.
        maximum: of a MINIMUM that follows, or None.
        runtime: "litert" or "tflm".

    Returns:
        int32 codes.
    """
    activation = "RELU" if maximum is None else maximum
    return _bounded(sources[0], grids[0], out, activation, _precision(runtime))


def relu6(sources: Sequence[tf.Tensor], grids: Sequence[Grid], out: Grid, runtime: str = "litert") -> tf.Tensor:
    """RELU6: as RELU, clipped at the code of 6 as well.

    TFLM never looks at the output's encoding: it clips the input codes at the input's codes of 0 and 6. There the two
    encodings have to be the same. For the arguments see `relu`.
    """
    if check_runtime(runtime) == "litert":
        return _bounded(sources[0], grids[0], out, "RELU6", tf.float32)
    return clipped(sources[0], *activation_range(grids[0], "RELU6"))


def relu_n1_to_1(sources: Sequence[tf.Tensor], grids: Sequence[Grid], out: Grid, runtime: str = "litert") -> tf.Tensor:
    """RELU_N1_TO_1: as RELU, clipped at the codes of -1 and 1. TFLM has no such kernel.

    For the arguments see `relu`.
    """
    check_int8("RELU_N1_TO_1", out)
    if check_runtime(runtime) == "tflm":
        raise ValueError("RELU_N1_TO_1: TFLM has no such kernel. Fuse it into the operator before, or use RELU6.")
    return _bounded(sources[0], grids[0], out, "RELU_N1_TO_1", tf.float32)


def leaky_relu(
    sources: Sequence[tf.Tensor], grids: Sequence[Grid], out: Grid, alpha: float, runtime: str = "litert"
) -> tf.Tensor:
    """LEAKY_RELU: `M(q, s_in / s_out)` where `q >= 0`, else `M(q, s_in alpha / s_out)`.

    A negative alpha takes the product with its magnitude and changes the sign after rounding. LiteRT takes the ratios
    in float32, TFLM in double (tflite/kernels/activations.cc, micro/kernels/leaky_relu_common.cc,
    reference/leaky_relu.h).

    Args:
        sources: one int32 tensor of codes.
        grids: its grid.
        out: the output grid.
        alpha: the slope below zero; the file keeps it as float32.
        runtime: "litert" or "tflm".

    Returns:
        int32 codes.
    """
    precision = _precision(runtime)
    scale, out_scale = (tf.cast(grid.scale, precision) for grid in (grids[0], out))
    magnitude = tf.cast(tf.constant(abs(alpha), tf.float32), precision)
    identity = quantize_multiplier(tf.cast(scale / out_scale, tf.float64))
    slope = quantize_multiplier(tf.cast(scale * magnitude / out_scale, tf.float64))

    def kernel(codes: tf.Tensor) -> tf.Tensor:
        values = centred(codes, grids[0])
        below = scaled(values, slope)
        return placed(tf.where(values >= 0, scaled(values, identity), -below if alpha < 0 else below), out)

    return tabulated(kernel, sources[0], grids[0])


def absolute(sources: Sequence[tf.Tensor], grids: Sequence[Grid], out: Grid, runtime: str = "litert") -> tf.Tensor:
    """ABS: `M(|q|, s_in / s_out)` (tflite/kernels/elementwise.cc, micro/kernels/elementwise.cc).

    LiteRT takes the ratio in float32, TFLM in double, as with RELU. For the arguments see `relu`.
    """
    precision = _precision(runtime)
    ratio = tf.cast(tf.cast(grids[0].scale, precision) / tf.cast(out.scale, precision), tf.float64)
    by = quantize_multiplier(ratio)

    def kernel(codes: tf.Tensor) -> tf.Tensor:
        return placed(scaled(tf.abs(centred(codes, grids[0])), by), out)

    return tabulated(kernel, sources[0], grids[0])


def hard_swish(sources: Sequence[tf.Tensor], grids: Sequence[Grid], out: Grid, runtime: str = "litert") -> tf.Tensor:
    """HARD_SWISH: `x relu6(x + 3) / 6` in 16-bit fixed point.

    x is held as `q * 2**7`. `r`, the clipped (x + 3) / 6 in Q15, and `p`, x on the output's scale before its shift, are
    multiplied with the low half cut off, and the product is shifted to the output
    (tflite/kernels/activations.cc, reference/hard_swish.h). Both runtimes alike.

    Args:
        sources: one int32 tensor of codes.
        grids: its grid; the kernel refuses `s_in > 128 s_out`.
        out: the output grid.
        runtime: "litert" or "tflm"; no difference here.

    Returns:
        int32 codes.
    """
    check_runtime(runtime)
    check_int8("HARD_SWISH", out)
    hires_scale = tf.cast(grids[0].scale, tf.float32) / 128.0
    to_out = _int16_multiplier(hires_scale / tf.cast(out.scale, tf.float32))
    to_unit = _int16_multiplier(hires_scale / tf.constant(3.0 / 32768.0, tf.float32))

    def kernel(codes: tf.Tensor) -> tf.Tensor:
        x = centred(codes, grids[0]) * 128
        # x / 3 saturated to [-1, 1) in Q15, brought to [0, 1): the clipped (x + 3) / 6.
        ramp = shift_right(_scaled_int16(x, to_unit) + 2**15, tf.constant(1, tf.int64))
        product = ramp * doubling_high_mul(x, to_out.mantissa, bits=16)
        # Cut off towards zero, as SaturatingDoublingHighMul does: it cancels the bias of the rounded products before.
        product = tf.sign(product) * shift_right(tf.abs(product), tf.constant(15, tf.int64))
        # The kernel refuses a multiplier of 1 or more here, so that the shift only ever goes right.
        return placed(rounding_divide_by_power(product, tf.maximum(-to_out.shift, 0)), out)

    return tabulated(kernel, sources[0], grids[0])


def _precision(runtime: str) -> tf.DType:
    return tf.float64 if check_runtime(runtime) == "tflm" else tf.float32


def _bounded(source: tf.Tensor, grid: Grid, out: Grid, activation: str | float, precision: tf.DType) -> tf.Tensor:
    ratio = tf.cast(grid.scale, precision) / tf.cast(out.scale, precision)
    by = quantize_multiplier(tf.cast(ratio, tf.float64))
    return tabulated(lambda codes: placed(scaled(centred(codes, grid), by), out, activation), source, grid)


def _int16_multiplier(ratio: tf.Tensor) -> Multiplier:
    by = quantize_multiplier(tf.cast(ratio, tf.float64))
    # DownScaleInt32ToInt16Multiplier in tflite/kernels/internal/common.h.
    return Multiplier(tf.minimum(shift_right(by.mantissa + 2**15, tf.constant(16, tf.int64)), 2**15 - 1), by.shift)


def _scaled_int16(values: tf.Tensor, by: Multiplier) -> tf.Tensor:
    """Product with saturation after each left shift, so that it saturates only where the result does."""
    raised = _saturated_int16(values * power_of_two(tf.maximum(by.shift - 1, 0)))
    scaled = doubling_high_mul(raised, by.mantissa, bits=16)
    scaled = _saturated_int16(scaled * power_of_two(tf.minimum(tf.maximum(by.shift, 0), 1)))
    return rounding_divide_by_power(scaled, tf.maximum(-by.shift, 0))


def _saturated_int16(values: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(values, tf.constant(-(2**15), tf.int64), tf.constant(2**15 - 1, tf.int64))

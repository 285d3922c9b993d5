"""SOFTMAX along the last axis, in fixed point."""

from collections.abc import Sequence

import tensorflow as tf

from kquant.core.arithmetic.fixed_point import (
    doubling_high_mul,
    multiply,
    quantize_multiplier,
    rounding_divide_by_power,
)
from kquant.core.arithmetic.grid import Grid, check_runtime, clipped
from kquant.core.arithmetic.interpolated import softmax_int16
from kquant.core.arithmetic.table import input_radius
from kquant.core.arithmetic.transcendental import exp_of_negative, reciprocal

_DIFFERENCE_INTEGER_BITS = 5
_SUM_INTEGER_BITS = 12


def softmax(
    sources: Sequence[tf.Tensor], grids: Sequence[Grid], out: Grid, beta: float = 1.0, runtime: str = "litert"
) -> tf.Tensor:
    """SOFTMAX: `exp(beta x) / sum exp(beta x)`; the output's scale is 1/256 and its zero point -128.

    Differences to the row's largest code are brought to Q5 by `beta s_in 2**26`, their exp goes into a Q12 sum, and
    each exp in Q0 is multiplied by the sum's reciprocal. Differences too large for Q5 give the smallest code
    (reference/softmax.h; PreprocessSoftmaxScaling in tflite/kernels/internal/quantization_util.cc). Both runtimes
    alike. For int16 see `softmax_int16`.

    Args:
        sources: one int32 tensor of codes.
        grids: its grid.
        out: the output grid; the kernel takes the fixed one whatever it says.
        beta: factor of the logits; the file keeps it as float32.
        runtime: "litert" or "tflm"; no difference in int8.

    Returns:
        int32 codes.
    """
    check_runtime(runtime)
    source, grid = sources[0], grids[0]
    if out.is_int16:
        return softmax_int16(source, grid, beta, runtime)
    exps = _exp_table(grid, beta)
    # The table runs from the smallest difference to 0; entries below the radius are 0 and drop out of the sum.
    span = grid.high - grid.low
    terms = tf.gather(exps, source - tf.reduce_max(source, axis=-1, keepdims=True) + span)
    total = tf.reduce_sum(rounding_divide_by_power(terms, _SUM_INTEGER_BITS), axis=-1, keepdims=True)
    scale, bits_above_one = reciprocal(total, _SUM_INTEGER_BITS)
    values = rounding_divide_by_power(doubling_high_mul(scale, terms), bits_above_one + 31 - 8)
    return clipped(values - 128, -128, 127)


def _exp_table(grid: Grid, beta: float) -> tf.Tensor:
    """exp(beta s_in d) in Q0 for the differences d of -(high - low) to 0."""
    beta_in_file = tf.cast(tf.constant(beta, tf.float32), tf.float64)
    real = tf.minimum(
        beta_in_file * tf.cast(grid.scale, tf.float64) * 2.0 ** (31 - _DIFFERENCE_INTEGER_BITS),
        tf.constant(2.0**31 - 1.0, tf.float64),
    )
    by = quantize_multiplier(real)
    differences = tf.range(grid.low - grid.high, 1, dtype=tf.int64)
    inside = differences >= -input_radius(by.shift, _DIFFERENCE_INTEGER_BITS)
    raw = multiply(tf.where(inside, differences, 0), by)
    return tf.where(inside, exp_of_negative(raw, _DIFFERENCE_INTEGER_BITS), 0)

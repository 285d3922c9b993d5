"""SOFTMAX along the last axis, in fixed point.

The int8 kernel divides by a sum of exps below 512: beyond, a shift by more than 31 bits ends its process, or gives what
the machine makes of it. So where a row of nearly equal logits can come to that, as in models without trained weights,
the file computes the row in 16 bits, and so does `softmax`.
"""

import math
from collections.abc import Sequence

import tensorflow as tf

from kquant.arithmetic.fixed_point import (
    doubling_high_mul,
    multiply,
    quantize_multiplier,
    rounding_divide_by_power,
)
from kquant.arithmetic.grid import Grid, check_runtime, clipped
from kquant.arithmetic.interpolated import softmax_int16
from kquant.arithmetic.requantize import quantize
from kquant.arithmetic.table import input_radius
from kquant.arithmetic.transcendental import exp_of_negative, reciprocal
from kquant.core.checks import static_length
from kquant.core.tables import looked_up

# kScaledDiffIntegerBits and kAccumulationIntegerBits of reference/softmax.h: what was not cut off is above -32, and a
# sum of up to 4096 exps fits.
_DIFFERENCE_INTEGER_BITS = 5
_SUM_INTEGER_BITS = 12
# Its reciprocal has 9 bits above one, and 9 + 31 - 8 is the first shift that 32 bits do not have.
_LARGEST_SUM = 512
_MARGIN = 8.0  # rows in the middle of the logits' range come to an eighth of the largest sum
_WIDE_SCALE = 1.0 / 32768.0


def wide_below(count: int, beta: float) -> float:
    """The scale of int8 logits, as a float32 number, below which a softmax over so many is computed in 16 bits.

    The logits of a row in the middle of a range R lie R / 2 below its end: they sum to `count exp(-beta R / 2)`.

    Args:
        count: of the values that share a sum.
        beta: factor of the logits.

    Example:
        >>> wide_below(512, 1.0), round(wide_below(1000, 1.0), 4)
        (0.0, 0.0216)
    """
    if count <= _LARGEST_SUM:
        return 0.0
    reach = 2.0 * math.log(count * _MARGIN / _LARGEST_SUM)
    return float(tf.constant(reach / (255.0 * beta), tf.float32))


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
        runtime: "litert" or "tflm"; no difference in int8, but where it is computed in 16 bits.

    Returns:
        int32 codes.
    """
    check_runtime(runtime)
    source, grid = sources[0], grids[0]
    if out.is_int16:
        return softmax_int16(source, grid, beta, runtime)
    below = wide_below(static_length(source, -1), beta)
    if not below:
        return _narrow(source, grid, beta)
    # Both are computed, since the scale is a tensor: one traced graph serves a model whose scale moves past `below`.
    wide, narrow = _wide(source, grid, out, beta, runtime), _narrow(source, grid, beta)
    return tf.where(grid.scale < below, tf.cast(wide, narrow.dtype), narrow)  # TensorFlow 2.18 wants one type


def _wide(source: tf.Tensor, grid: Grid, out: Grid, beta: float, runtime: str) -> tf.Tensor:
    """The same codes without their zero point as int16, SOFTMAX in 16 bits, and back to 8."""
    # The int16 kernel wants zero point 0. The scale stays, so that no code is rounded on its way to 16 bits.
    zero = tf.zeros_like(grid.zero_point)
    ends = {"zero_point": zero, "low": -(2**15), "high": 2**15 - 1}
    codes = quantize([source], [grid], Grid(grid.scale, **ends), runtime)
    wide = softmax_int16(codes, Grid(grid.scale, **ends), beta, runtime)
    return quantize([wide], [Grid(tf.constant(_WIDE_SCALE), **ends)], out, runtime)


def _narrow(source: tf.Tensor, grid: Grid, beta: float) -> tf.Tensor:
    exps = _exp_table(grid, beta)
    # The table runs from the smallest difference to 0; entries below the radius are 0 and drop out of the sum.
    span = grid.high - grid.low
    # 256 exps for all rows, and not one for each logit: rows differ only in where their largest code lies.
    terms = looked_up(exps, source - tf.reduce_max(source, axis=-1, keepdims=True) + span)
    total = tf.reduce_sum(rounding_divide_by_power(terms, _SUM_INTEGER_BITS), axis=-1, keepdims=True)
    scale, bits_above_one = reciprocal(total, _SUM_INTEGER_BITS)
    # Q0 times Q0 over 2**bits has 31 fraction bits; 8 of them stay, as the output's scale is 1/256.
    values = rounding_divide_by_power(doubling_high_mul(scale, terms), bits_above_one + 31 - 8)
    return clipped(values - 128, -128, 127)


def _exp_table(grid: Grid, beta: float) -> tf.Tensor:
    """exp(beta s_in d) in Q0 for the differences d of -(high - low) to 0."""
    beta_in_file = tf.cast(tf.constant(beta, tf.float32), tf.float64)
    # PreprocessSoftmaxScaling caps the multiplier: beyond, only the largest of a row has an exp above 0 anyway.
    real = tf.minimum(
        beta_in_file * tf.cast(grid.scale, tf.float64) * 2.0 ** (31 - _DIFFERENCE_INTEGER_BITS),
        tf.constant(2.0**31 - 1.0, tf.float64),
    )
    by = quantize_multiplier(real)
    differences = tf.range(grid.low - grid.high, 1, dtype=tf.int64)
    inside = differences >= -input_radius(by.shift, _DIFFERENCE_INTEGER_BITS)
    # A difference that is cut off would leave 32 bits in the product, so it is computed as 0 and dropped behind.
    raw = multiply(tf.where(inside, differences, 0), by)
    return tf.where(inside, exp_of_negative(raw, _DIFFERENCE_INTEGER_BITS), 0)

"""Integer multiplication by a real number, as the TFLite kernels do it: a 31-bit mantissa and a power of two.

In int64 a product of two 31-bit numbers fits and shifts are arithmetic. Whole numbers that lie in floats stay there, in
float64, whose 53 bits hold their products, or halves of them: each function says why. Neither XLA nor a fused
multiply-add can change a bit of what is exact.

Sources: tflite/kernels/internal/quantization_util.cc, tflite/kernels/internal/common.cc, and gemmlowp's
fixedpoint/fixedpoint.h.
"""

from typing import NamedTuple

import tensorflow as tf

from kquant.core.one_node import one_node

INT32_MAX = 2**31 - 1
INT32_MIN = -(2**31)

_FRACTION_BITS = 52
_EXPONENT_BIAS = 1023


class Multiplier(NamedTuple):
    """A non-negative real number `mantissa * 2**(shift - 31)`.

    Attributes:
        mantissa: int64, in [2**30, 2**31), or 0.
        shift: int64, negative for numbers below one half.
    """

    mantissa: tf.Tensor
    shift: tf.Tensor


def split_exponent(values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Exact `frexp` of positive normal float64 values: `value = fraction * 2**exponent`, fraction in [0.5, 1).

    Args:
        values: float64, above 0 and normal. For 0 the exponent returned is meaningless.

    Returns:
        The fractions in float64 and the exponents in int64.
    """
    bits = tf.bitcast(values, tf.int64)
    exponent = tf.bitwise.right_shift(bits, _full(bits, _FRACTION_BITS)) - (_EXPONENT_BIAS - 1)
    fraction_bits = tf.bitwise.bitwise_and(bits, _full(bits, 2**_FRACTION_BITS - 1))
    return tf.bitcast(fraction_bits + ((_EXPONENT_BIAS - 1) << _FRACTION_BITS), tf.float64), exponent


@one_node
def quantize_multiplier(real: tf.Tensor) -> Multiplier:
    """Nearest fixed-point number of a non-negative real one.

    `real = fraction * 2**shift` with the fraction in [0.5, 1); `mantissa = round(fraction * 2**31)`, halves away from
    zero; below 2**-32 the number counts as 0 (QuantizeMultiplier).

    Args:
        real: float64 scalar or vector.

    Returns:
        The multiplier, with the shape of `real`.
    """
    fraction, shift = split_exponent(real)
    # The product is exact (31 bits before the point, 22 behind it); `tf.round` would send a half to the even number.
    mantissa = tf.cast(tf.floor(fraction * 2.0**31 + 0.5), tf.int64)
    # A fraction just below 1 rounds up to 2**31, which int32 does not hold: half of it, with a shift by one more.
    overflows = mantissa >= 2**31
    mantissa = tf.where(overflows, tf.constant(2**30, tf.int64), mantissa)
    shift = tf.where(overflows, shift + 1, shift)
    vanishes = tf.logical_or(shift < -31, real <= 0.0)
    zero = tf.zeros_like(shift)
    return Multiplier(tf.where(vanishes, zero, mantissa), tf.where(vanishes, zero, shift))


def multiply(values: tf.Tensor, by: Multiplier, single_rounding: bool = False) -> tf.Tensor:
    """Integers times a fixed-point number, rounded as MultiplyByQuantizedMultiplier does.

    Double rounding, the default of every build: `h = floor(value * 2**max(shift, 0) * mantissa / 2**31 + 1/2)`, then
    `h / 2**max(-shift, 0)` to the nearest, halves away from zero. Single rounding (TFLITE_SINGLE_ROUNDING):
    `floor(value * mantissa / 2**(31 - shift) + 1/2)`.

    Args:
        values: int64 within the int32 range.
        by: the multiplier; a vector goes with the last axis.
        single_rounding: which of the two.

    Returns:
        int64, shaped like `values`.
    """
    if single_rounding:
        # A shift above 30 is saturated by the kernels; no rescale of int8 data comes near it.
        total = 31 - tf.minimum(by.shift, 30)
        return shift_right(values * by.mantissa + power_of_two(total - 1), total)
    return tf.cast(scaled(values, by), tf.int64)


def scaled(values: tf.Tensor, by: Multiplier, *, raised: float = 1.0, wide: bool = False) -> tf.Tensor:
    """`multiply` with double rounding, as integers in float64, for values of any type.

    Floats stay floats: their product with the mantissa is exact below 2**53, for values below 2**22. Beyond, where an
    8-bit output that is not saturated needs a multiplier below 2**-13, `h` differs where the product ends within the
    last bits below one half, which one value in 2**31 does. `wide` takes the product in two halves, each of which
    float64 holds.

    Args:
        values: int64, or integers in float32 or float64, within the int32 range.
        by: the multiplier; a vector goes with the last axis.
        raised: a power of two that float values are multiplied by beforehand; their bits do not become more by it.
        wide: exact for all floats within the int32 range, for three passes more.

    Returns:
        float64, shaped like `values`.
    """
    whole, factor, upper, lower, divisor = _factors(by.mantissa, by.shift)
    # All branches are the doubling high product; integers that lie in floats need no way over int64 and back.
    if not values.dtype.is_floating:
        high = tf.cast(doubling_high_mul(values, whole), tf.float64)
    elif wide:
        # mantissa = 2**16 upper + lower: floor((floor(v lower / 2**16 + 2**14) + v upper) / 2**15). Rounding down in
        # between changes nothing, since what is added to it and what it is divided by are whole.
        exact = tf.cast(values, tf.float64)
        high = tf.floor((exact * upper + tf.floor(exact * lower + 2.0**14)) * 2.0**-15)
    else:
        high = tf.floor(tf.cast(values, tf.float64) * (factor * raised) + 0.5)
    # To even, and still halves away from zero: the divisor is a little too large for an exact half. See `_divisor`.
    return tf.round(high * divisor)


def scaled_from_zero(values: tf.Tensor, by: Multiplier) -> tf.Tensor:
    """`scaled` of floats for what a RELU clips: right from 0 on, and anything up to 0 below; two passes less.

    From 0 on both roundings go up at a half, and floors follow each other as one: with `n = 2**right`,
    `floor((floor(v f + 1/2) + n/2) / n) = floor(v f / n + 1/2 + 1/2n)`; where n is 1 nothing is rounded again, and the
    middle term is left out. Below 0 the second rounding goes the other way at a half, and the sum is below one.

    Args:
        values: integers in float32 or float64, as for `scaled`.
        by: the multiplier; a vector goes with the last axis.

    Returns:
        float64, shaped like `values`.
    """
    factor, half = _from_zero(by.mantissa, by.shift)
    return tf.floor(tf.cast(values, tf.float64) * factor + half)


@one_node
def _from_zero(mantissa: tf.Tensor, shift: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """`f / n` and `1/2 + 1/2n` of `scaled_from_zero`, in float64."""
    right = tf.maximum(-shift, 0)
    factor = tf.cast(mantissa, tf.float64) * binary(shift - 31)
    return factor, binary(-right - 1) + tf.where(right > 0, tf.constant(0.5, tf.float64), 0.0)


@one_node
def _factors(mantissa: tf.Tensor, shift: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Mantissa and what goes left, in int64; in float64 the same over 2**31; the same as its upper bits, and its lower
    16 over 2**16; what goes right, as a `_divisor`.
    """
    left, right = tf.maximum(shift, 0), tf.maximum(-shift, 0)
    whole, sixteen = mantissa * power_of_two(left), tf.constant(16, tf.int64)
    upper = shift_right(whole, sixteen)
    lower = tf.cast(whole - tf.bitwise.left_shift(upper, tf.ones_like(upper) * sixteen), tf.float64) * 2.0**-16
    factor = tf.cast(mantissa, tf.float64) * binary(left - 31)
    return whole, factor, tf.cast(upper, tf.float64), lower, _divisor(right)


def multiply_reduced(values: tf.Tensor, by: Multiplier) -> tf.Tensor:
    """Wide integers times a fixed-point number of 15 bits, `floor(value * m / 2**(15 - shift) + 1/2)`.

    m is the mantissa rounded to its upper 16 bits, at most 2**15 - 1: MultiplyByQuantizedMultiplier of an int64 value,
    which the kernels of int16 activations use where they sum in 64 bits.

    Args:
        values: int64 within -2**47 .. 2**47.
        by: the multiplier; a vector goes with the last axis.

    Returns:
        int64, shaped like `values`.
    """
    mantissa, total = _reduced(by)
    return shift_right(values * mantissa + power_of_two(total - 1), total)


def scaled_reduced(values: tf.Tensor, by: Multiplier) -> tf.Tensor:
    """`multiply_reduced` of integers in float32 or float64, below 2**38: their products with 15 bits are exact.

    Returns:
        float64, shaped like `values`.
    """
    mantissa, total = _reduced(by)
    return tf.floor(tf.cast(values, tf.float64) * (tf.cast(mantissa, tf.float64) * binary(-total)) + 0.5)


def _reduced(by: Multiplier) -> tuple[tf.Tensor, tf.Tensor]:
    """The mantissa's upper 16 bits, and what the product is shifted by."""
    mantissa = tf.minimum(shift_right(by.mantissa + 2**15, tf.constant(16, tf.int64)), 2**15 - 1)
    # The kernels shift by 7 at most; no rescale of a sum of products comes near it.
    return mantissa, 15 - tf.minimum(by.shift, 14)


def doubling_high_mul(a: tf.Tensor, b: tf.Tensor, bits: int = 32) -> tf.Tensor:
    """`floor(a * b / 2**(bits - 1) + 1/2)`: SaturatingRoundingDoublingHighMul of gemmlowp, in int64.

    Gemmlowp adds `1 - 2**30` to negative products and divides towards zero, which is this floor. The one product that
    saturates, of the two smallest numbers, cannot occur: one factor is always a constant or above the minimum.
    """
    return shift_right(a * b + (1 << (bits - 2)), tf.constant(bits - 1, tf.int64))


def rounding_divide_by_power(values: tf.Tensor, exponent: tf.Tensor | int) -> tf.Tensor:
    """`value / 2**exponent` to the nearest integer, halves away from zero: RoundingDivideByPOT, in int64.

    Args:
        values: int64, below 2**49.
        exponent: 0 to 62.
    """
    return tf.cast(divided_by_power(tf.cast(values, tf.float64), exponent), tf.int64)


def divided_by_power(values: tf.Tensor, exponent: tf.Tensor | int) -> tf.Tensor:
    """`rounding_divide_by_power` of integers in float64."""
    return tf.round(values * _divisor(tf.cast(exponent, tf.int64)))


def _divisor(exponent: tf.Tensor) -> tf.Tensor:
    """What integers in float64 are multiplied by before they are rounded to even, to divide them by `2**exponent`.

    It is two to four units of the last place too large. A half is then more than a half, of either sign, and goes away
    from zero where rounding to even would choose; any other value is at least `2**-exponent` away from a half, which is
    more than four units of its last place below 2**49.
    """
    return binary(-exponent) * (1.0 + 2.0**-51)


def binary(exponent: tf.Tensor) -> tf.Tensor:
    """`2.0**exponent` in float64 from int64 exponents of -1022 to 1023: the bits, since `pow` may be off by one."""
    return tf.bitcast(tf.bitwise.left_shift(exponent + _EXPONENT_BIAS, _full(exponent, _FRACTION_BITS)), tf.float64)


def saturating_shift_left(values: tf.Tensor, amount: int) -> tf.Tensor:
    """`value * 2**amount` saturated to int32: SaturatingRoundingMultiplyByPOT of gemmlowp, in int64."""
    return tf.clip_by_value(values * (1 << amount), tf.constant(INT32_MIN, tf.int64), tf.constant(INT32_MAX, tf.int64))


def shift_right(values: tf.Tensor, amount: tf.Tensor) -> tf.Tensor:
    """Arithmetic right shift of int64, `floor(value / 2**amount)`; the two broadcast."""
    return tf.bitwise.right_shift(values, amount)


def power_of_two(exponent: tf.Tensor) -> tf.Tensor:
    """`2**exponent` in int64, for exponents of 0 to 62."""
    return tf.bitwise.left_shift(tf.ones_like(exponent), exponent)


def _full(like: tf.Tensor, value: int) -> tf.Tensor:
    return tf.zeros_like(like) + tf.constant(value, tf.int64)

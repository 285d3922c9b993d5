"""exp, 1/(1+x) and (1-x)/(1+x) on 32-bit fixed-point numbers, as gemmlowp defines them.

A number in Qm has m integer bits and 31 - m fraction bits: `real = raw / 2**(31 - m)`. All are int64 tensors of raw
values. The polynomial, the barrel of constant factors and the three Newton steps are those of gemmlowp's
fixedpoint/fixedpoint.h; SOFTMAX of both runtimes and LOGISTIC and TANH of TFLM are built from them.
"""

import tensorflow as tf

from kquant.arithmetic.fixed_point import (
    INT32_MAX,
    doubling_high_mul,
    rounding_divide_by_power,
    saturating_shift_left,
    shift_right,
    split_exponent,
)

# round(value * 2**31) of exp(-1/8), 1/3, then of exp(-2**k) for k = -2 .. 4, and of 48/17 and -32/17, both / 4
EXP_MINUS_EIGHTH = 1895147668
ONE_THIRD = 715827883
EXP_MINUS_POWERS = {-2: 1672461947, -1: 1302514674, 0: 790015084, 1: 290630308, 2: 39332535, 3: 720401, 4: 242}
Q2_48_OVER_17 = 1515870810
Q2_MINUS_32_OVER_17 = -1010580540
_Q2_ONE = 1 << 29


def exp_of_negative(raw: tf.Tensor, integer_bits: int) -> tf.Tensor:
    """exp(x) in Q0 of `x <= 0` in Qm.

    x is split into a multiple of -1/4 and a rest r in [-1/4, 0): a polynomial around -1/8 gives exp(r), and one
    constant factor for each bit set in the multiple gives the remainder. exp(0) is the largest Q0 number, not 1.

    Args:
        raw: int64, x in Q<integer_bits>, in the range -2**31 .. 0.
        integer_bits: m, 4 or 5.

    Returns:
        int64, in Q0.
    """
    fraction_bits = 31 - integer_bits
    quarter = 1 << (fraction_bits - 2)
    rest = tf.bitwise.bitwise_and(raw, tf.zeros_like(raw) + (quarter - 1)) - quarter
    result = _exp_on_last_quarter(saturating_shift_left(rest, integer_bits))
    multiple = rest - raw
    # One factor exp(-2**k) for each bit of the multiple; Qm has no bits of 2**m and above.
    for power, factor in EXP_MINUS_POWERS.items():
        if integer_bits > power:
            bit = tf.bitwise.bitwise_and(multiple, tf.zeros_like(raw) + (1 << (fraction_bits + power)))
            result = tf.where(bit != 0, doubling_high_mul(result, _int64(factor)), result)
    return tf.where(raw == 0, _int64(INT32_MAX), result)


def one_over_one_plus(raw: tf.Tensor) -> tf.Tensor:
    """1 / (1 + x) in Q0 of x in [0, 1] in Q0."""
    # The Newton iterate is 2 / (1 + x) in Q2; read as Q1 it is 1 / (1 + x).
    return saturating_shift_left(_two_over_one_plus(raw), 1)


def one_minus_over_one_plus(raw: tf.Tensor) -> tf.Tensor:
    """(1 - x) / (1 + x) in Q0 of x in [0, 1] in Q0."""
    return saturating_shift_left(_two_over_one_plus(raw) - _Q2_ONE, 2)


def reciprocal(raw: tf.Tensor, integer_bits: int) -> tuple[tf.Tensor, tf.Tensor]:
    """1 / x of positive x in Qm, as a Q0 number y and the bits b that x has above one: `1 / x = y / 2**b`.

    Args:
        raw: int64 in 1 .. 2**31 - 1.
        integer_bits: m.

    Returns:
        y and b, int64 (GetReciprocal in tflite/kernels/internal/common.h).
    """
    # An int32 is exact in float64, whose exponent is the number of its bits: CountLeadingZeros without a loop.
    _, bit_length = split_exponent(tf.cast(raw, tf.float64))
    leading_zeros = 32 - bit_length
    # With its highest bit at 2**31 the number is 1 + x; less that bit, x in Q0.
    normalized = raw * tf.bitwise.left_shift(tf.ones_like(raw), leading_zeros) - (1 << 31)
    return one_over_one_plus(normalized), integer_bits - leading_zeros


def logistic(raw: tf.Tensor, integer_bits: int) -> tf.Tensor:
    """1 / (1 + exp(-x)) in Q0 of x in Qm."""
    positive = one_over_one_plus(exp_of_negative(-tf.abs(raw), integer_bits))
    one_sided = tf.where(raw > 0, positive, INT32_MAX - positive)
    return tf.where(raw == 0, _int64(1 << 30), one_sided)


def tanh(raw: tf.Tensor, integer_bits: int) -> tf.Tensor:
    """Hyperbolic tangent in Q0 of x in Qm, by `tanh(|x|) = (1 - exp(-2|x|)) / (1 + exp(-2|x|))`."""
    # Read with one integer bit more, the same raw value is 2x.
    magnitude = one_minus_over_one_plus(exp_of_negative(-tf.abs(raw), integer_bits + 1))
    return tf.cast(tf.sign(raw), tf.int64) * magnitude


def _exp_on_last_quarter(raw: tf.Tensor) -> tf.Tensor:
    # x counts from -1/8, the middle of the quarter: ((x^4 / 4 + x^3) / 3 + x^2) / 2 + x is exp(x) - 1 to fourth order.
    x = raw + (1 << 28)
    x2 = doubling_high_mul(x, x)
    x3 = doubling_high_mul(x2, x)
    x4_over_4 = rounding_divide_by_power(doubling_high_mul(x2, x2), 2)
    tail = rounding_divide_by_power(doubling_high_mul(x4_over_4 + x3, _int64(ONE_THIRD)) + x2, 1)
    return EXP_MINUS_EIGHTH + doubling_high_mul(_int64(EXP_MINUS_EIGHTH), x + tail)


def _two_over_one_plus(raw: tf.Tensor) -> tf.Tensor:
    # (1 + x) / 2 lies in [1/2, 1], where 48/17 - 32/17 d is the best straight line for 1 / d: three steps make 31 bits.
    half_denominator = shift_right(raw + (INT32_MAX + 1), _int64(1))
    x = Q2_48_OVER_17 + doubling_high_mul(half_denominator, _int64(Q2_MINUS_32_OVER_17))
    for _ in range(3):
        error = _Q2_ONE - doubling_high_mul(half_denominator, x)
        x = x + saturating_shift_left(doubling_high_mul(x, error), 2)
    return x


def _int64(value: int) -> tf.Tensor:
    return tf.constant(value, tf.int64)

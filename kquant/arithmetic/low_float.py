"""Real numbers as floating-point formats of few bits have them: nearest, ties to even, what is too large cut off."""

from __future__ import annotations

import tensorflow as tf

from kquant.core.float_formats import FloatFormat
from kquant.core.spec import SMALLEST_RANGE

EXPONENT, BIAS = 23, 127  # of float32
LEAST = -126  # exponent of a scale that float32 holds whole


def nearest(x: tf.Tensor, form: FloatFormat) -> tf.Tensor:
    """float32, shaped like `x`: the nearest numbers of a format.

    Args:
        x: float32[...], finite.
        form: of the numbers.

    Example:
        >>> from kquant.core.float_formats import FLOAT_FORMATS
        >>> nearest(tf.constant([0.2, 2.5, -5.0, 99.0]), FLOAT_FORMATS["e2m1"]).numpy().tolist()
        [0.0, 2.0, -4.0, 6.0]
    """
    exponent = tf.maximum(exponent_of(x), form.smallest_exponent)
    step = power_of_two(exponent - form.fraction)
    return tf.clip_by_value(tf.round(x / step) * step, -form.largest, form.largest)


def exponent_of(x: tf.Tensor) -> tf.Tensor:
    """int32: `floor(log2 |x|)` as float32 stores it; -127 for 0 and what is smaller than its normal numbers."""
    bits = tf.bitcast(tf.abs(x), tf.int32)
    return tf.bitwise.right_shift(bits, EXPONENT) - BIAS  # pyright: ignore[reportUnknownMemberType]


def power_of_two(exponent: tf.Tensor) -> tf.Tensor:
    """float32: `2^exponent` to the bit, for -126 .. 127."""
    shifted = tf.bitwise.left_shift(exponent + BIAS, tf.fill(tf.shape(exponent), EXPONENT))  # pyright: ignore
    return tf.bitcast(shifted, tf.float32)


def scale_for(largest: tf.Tensor, form: FloatFormat, *, power: bool) -> tf.Tensor:
    """float32: what a number of the format is multiplied by, for tensors whose largest magnitude is `largest`.

    Args:
        largest: float32[...].
        form: of the numbers.
        power: only powers of two, as OCP MX has them (section 6.3): `2^(floor(log2 largest) - largest_exponent)`, under
            which what lies beyond the largest number is cut off.
    """
    if power:
        return power_of_two(tf.maximum(exponent_of(largest) - form.largest_exponent, LEAST))
    return tf.maximum(largest / form.largest, SMALLEST_RANGE)

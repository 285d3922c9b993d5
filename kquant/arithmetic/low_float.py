"""Real numbers as floating-point formats of few bits have them: nearest, ties to even, what is too large cut off."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from kquant.core.float_formats import FloatFormat
from kquant.core.spec import SMALLEST_RANGE

EXPONENT, BIAS = 23, 127  # of float32
LEAST = -126  # exponent of a scale that float32 holds whole
INFINITY = 0x7F800000  # its bits
NO_NUMBER = 128  # exponent of a scale that is NaN: E8M0's code 255


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


def scale_for(largest: tf.Tensor, form: FloatFormat) -> tf.Tensor:
    """float32: what a number of the format is multiplied by, for tensors whose largest magnitude is `largest`.

    Args:
        largest: float32[...].
        form: of the numbers.
    """
    # a product: a graph's optimizer makes one of a quotient by a constant, which moves the last bit
    return tf.maximum(largest * np.float32(1.0 / form.largest), SMALLEST_RANGE)


def nearest_shared(x: tf.Tensor, exponent: tf.Tensor, form: FloatFormat) -> tf.Tensor:
    """float32, shaped like `x`: the nearest numbers of a format times a power of two that they share.

    Args:
        x: float32[...].
        exponent: int32, broadcastable to `x`: of `shared_exponents`.
        form: of the numbers.

    Example:
        >>> from kquant.core.float_formats import FLOAT_FORMATS
        >>> nearest_shared(tf.constant([0.2, 2.6, 99.0]), tf.constant(1), FLOAT_FORMATS["e2m1"]).numpy().tolist()
        [0.0, 3.0, 12.0]
    """
    # A product, since XLA divides twice as once by a product, which may be 0: there was 0 / 0 where a block is all 0.
    return nearest(x * power_of_two(-exponent), form) * scale_of(exponent)


def scale_of(exponent: tf.Tensor) -> tf.Tensor:
    """float32: a shared scale, `2^exponent`, or NaN."""
    return tf.where(exponent == NO_NUMBER, np.float32(np.nan), power_of_two(exponent))


def shared_exponents(x: tf.Tensor, form: FloatFormat, block: int) -> tf.Tensor:
    """int32, broadcastable to `x`: of the power of two that each block of values along the last axis shares.

    `floor(log2 max|x|) - largest_exponent` (OCP Microscaling Formats (MX) Specification 1.0, section 6.3), not below
    -126, which float32 holds whole. NaN makes a block `NO_NUMBER`, as E8M0 has one; an infinity counts as 2^128: it
    stays one, and beside it little is left.

    Args:
        x: float32[..., values].
        form: of the numbers.
        block: values that share a scale; the last block has what is left.

    Example:
        >>> from kquant.core.float_formats import FLOAT_FORMATS
        >>> shared_exponents(tf.constant([3.0, 7.9, 0.1]), FLOAT_FORMATS["e2m1"], 2).numpy().tolist()
        [0, 0, -6]
    """
    # magnitudes of floats compare like their bits, and NaN lies above infinity in them
    bits = tf.bitcast(tf.abs(x), tf.int32)
    values = x.shape[-1]
    if values is not None and values <= block:
        return _shared(tf.reduce_max(bits, axis=-1, keepdims=True), form)
    count = tf.shape(x)[-1]
    # the last block may be short: zeros make nothing larger
    around: Any = [[0, 0]] * (x.shape.rank - 1) + [[0, tf.math.floormod(-count, block)]]
    padded = tf.pad(bits, around)
    blocks = tf.reshape(padded, tf.concat([tf.shape(x)[:-1], [-1, block]], 0))
    exponents = tf.repeat(_shared(tf.reduce_max(blocks, axis=-1), form), block, axis=-1)
    within: Any = (..., slice(None, count))
    return tf.ensure_shape(exponents[within], x.shape)


def _shared(bits: tf.Tensor, form: FloatFormat) -> tf.Tensor:
    exponent = tf.bitwise.right_shift(bits, EXPONENT) - BIAS - form.largest_exponent  # pyright: ignore
    return tf.where(bits > INFINITY, NO_NUMBER, tf.maximum(exponent, LEAST))

"""What is rounded forward and passes a gradient backward, where nothing was clipped."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from kquant.arithmetic.low_float import nearest, scale_for
from kquant.core.spec import QuantSpec


@tf.custom_gradient
def steps_through(y: tf.Tensor, steps: tf.Tensor, scale: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> Any:
    """`steps` forward; backward the gradient reaches `y`, of which they are steps, where nothing was clipped."""

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
        inside = tf.logical_and(y >= low, y <= high)
        # The caller multiplies the steps by the scale; together the values have gradient 1.
        upstream = tf.cast(upstream, y.dtype) / scale
        return tf.where(inside, upstream, tf.zeros_like(upstream)), None, None, None, None

    return steps, gradient


def rounded_through(y: tf.Tensor, low: tf.Tensor, high: tf.Tensor, spec: QuantSpec) -> tf.Tensor:
    """Values on the grid between two ends; the gradient passes where nothing is clipped.

    By TensorFlow's fused kernel, or as floats of few bits whose largest is the larger end.
    """
    if spec.floating is not None:
        largest = tf.maximum(tf.abs(low), tf.abs(high))
        inside = tf.clip_by_value(y, -largest, largest)
        scale = scale_for(largest, spec.floating, power=False)
        return inside + tf.stop_gradient(nearest(inside / scale, spec.floating) * scale - inside)
    # The ends are those of the grid, with 0 among its codes, so that the kernel has no zero point left to nudge. Its
    # gradient sums for the ends too, which do not learn here: still one operation over the tensor, where a mask of two
    # comparisons takes four.
    return tf.quantization.fake_quant_with_min_max_vars(y, low, high, num_bits=spec.bits, narrow_range=spec.narrow)

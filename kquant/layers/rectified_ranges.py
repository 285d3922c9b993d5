"""Ranges that learn behind a ReLU: the masks of both and the range's sum in fewer passes over the tensor.

Such a range begins at 0, where nothing is clipped, and its other end is the only one to learn. With `v` the values on
the grid of `N` steps of `s`, `y` those given, and `h = v - y` inside of the range, `h = v = s N` above it:

    dL / dhigh = sum(upstream h) / (s N)

which is equations 3 and 5 of LSQ (arXiv:1902.08153) in one sum. Of two tensors' product that sum is one pass as the
gradient of a depthwise convolution of one tap; TensorFlow's product of two vectors takes ten times as long.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from kquant.core.one_node import aside
from kquant.core.spec import QuantSpec
from kquant.layers.learned_ranges import by_kernel, of_ends, sums_of
from kquant.layers.range_numbers import Numbers
from kquant.layers.straight_through import Rectified, ends_of_kernel, ends_of_rectified, inside_of

_sums_aside = aside(sums_of)


def fused(
    y: tf.Tensor, behind: Rectified, stretch: tf.Tensor, numbers: Numbers, pull: tf.Tensor, spec: QuantSpec
) -> tf.Tensor:
    """`learned_ranges.fused` of what a rectifier made; its gradient goes past that, to what it was given.

    Args:
        y: float32[...], the output of the rectifier.
        behind: that rectifier.
        stretch: see `learned_ranges.fused`.
        numbers: of the grid, which is not symmetric.
        pull: see `learned_ranges.fused`.
        spec: likewise.
    """

    @tf.custom_gradient
    def made(given: tf.Tensor, stretch: tf.Tensor) -> Any:
        values = by_kernel(y, numbers.low, numbers.high, spec)

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            ends = ends_of_kernel(numbers, spec)
            none = tf.zeros(())

            def below_zero() -> tuple[tf.Tensor, ...]:  # a range that other tensors share begins there, and learns both
                made = _sums_aside(upstream, y, values, (numbers.low, numbers.high), spec, True)[1:]
                return tuple(tf.ensure_shape(part, ()) for part in made)

            def from_zero() -> tuple[tf.Tensor, ...]:  # as of errors inside: what is divided by s N
                # The kernel masks by a product: 0 times infinity would be no number.
                finite = y if behind.largest is not None else tf.minimum(y, tf.float32.max)
                return none, none, _product(upstream, values - inside_of(finite, y, ends))

            sums = tf.cond(pull[0] != 0.0, below_zero, from_zero)
            passed = inside_of(upstream, y, ends_of_rectified(ends, behind))
            return tf.cast(passed, given.dtype), pull * of_ends(sums, numbers.scale, spec)

        return values, gradient

    return made(behind.given, stretch)


def _product(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """float32[]: sum of `a b`."""
    if a.shape.rank != 4 or a.shape[3] is None:
        return tf.reduce_sum(a * b)
    by_channel = tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
        input=b, filter_sizes=[1, 1, a.shape[3], 1], out_backprop=a, strides=[1, 1, 1, 1], padding="VALID"
    )
    return tf.reduce_sum(by_channel)

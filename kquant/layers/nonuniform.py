"""Grids of weights whose steps are not equal in a channel: simulated, as no integer kernel multiplies their codes.

log         0 and +-largest * 2^-k, k = 0 .. 2^(bits-1) - 2      Miyashita et al., arXiv:1603.01025, section 3
e4m3, ...   floats of few bits, times a scale                  OCP 8-bit Floating Point 1.0, OCP MX 1.0
uniform     in blocks: integers times a scale of their block    `layers.blocks`
codebook    2^bits values that lie closest to the weights         Han et al., arXiv:1510.00149, section 3 (k-means)
"""

from __future__ import annotations

import tensorflow as tf

from kquant.arithmetic.low_float import nearest, nearest_shared, scale_for, shared_exponents
from kquant.core.float_formats import FloatFormat
from kquant.core.spec import SMALLEST_RANGE, QuantSpec
from kquant.layers.blocks import block_codes, blocks_of, from_blocks

LLOYD_STEPS = 12


def on_grid(weights: tf.Tensor, spec: QuantSpec, channel_axes: tuple[int, ...]) -> tf.Tensor:
    """The nearest values of a non-uniform grid, as float32 shaped like `weights`.

    Args:
        weights: float32[...].
        spec: of a kind without codes; `per_axis` gives every output channel a largest value of its own (log, floats),
            `block` so many weights of a channel, in the order of the kernel's other axes (floats, uniform).
        channel_axes: the axes that number the output channels together.

    Example:
        >>> spec = QuantSpec(3, symmetric=True, narrow=True, kind="log")
        >>> on_grid(tf.constant([[1.0, 0.4, -0.3, 0.01]]), spec, (0,)).numpy().tolist()
        [[1.0, 0.5, -0.25, 0.0]]
    """
    if spec.floating is not None:
        return _floats(weights, spec, spec.floating, channel_axes)
    if spec.in_blocks:
        order, blocks = blocks_of(weights, spec, channel_axes)
        codes, scale = block_codes(blocks, spec)
        return from_blocks(codes * scale, order, weights)
    return _log(weights, spec, channel_axes) if spec.kind == "log" else _codebook(weights, spec)


def _floats(weights: tf.Tensor, spec: QuantSpec, form: FloatFormat, channel_axes: tuple[int, ...]) -> tf.Tensor:
    """In blocks times a shared power of two, else scaled so that the largest weight is the format's largest."""
    order, blocks = blocks_of(weights, spec, channel_axes)
    if spec.block:
        return from_blocks(nearest_shared(blocks, shared_exponents(blocks, form, spec.block), form), order, weights)
    scale = scale_for(tf.reduce_max(tf.abs(blocks), axis=-1, keepdims=True), form)
    return from_blocks(nearest(blocks / scale, form) * scale, order, weights)


def _log(weights: tf.Tensor, spec: QuantSpec, channel_axes: tuple[int, ...]) -> tf.Tensor:
    kept = {axis % weights.shape.rank for axis in channel_axes} if spec.per_axis else set()
    axes = [axis for axis in range(weights.shape.rank) if axis not in kept]
    largest = tf.maximum(tf.reduce_max(tf.abs(weights), axis=axes, keepdims=True), SMALLEST_RANGE)
    steps = tf.round(-tf.math.log(tf.maximum(tf.abs(weights) / largest, SMALLEST_RANGE)) / tf.math.log(2.0))
    deepest = 2.0 ** (spec.bits - 1) - 2.0
    values = tf.sign(weights) * largest * tf.pow(2.0, -tf.clip_by_value(steps, 0.0, deepest))
    # One code is for 0: it takes what rounds to less than the smallest power.
    return tf.where(steps > deepest, tf.zeros_like(values), values)


def _codebook(weights: tf.Tensor, spec: QuantSpec) -> tf.Tensor:
    """Lloyd's iterations from centroids that are spread evenly over the range."""
    flat = tf.reshape(weights, (-1,))
    centroids = tf.linspace(tf.reduce_min(flat), tf.reduce_max(flat), 2**spec.bits)
    # A fixed number: this runs in every training step, in a graph, and starts anew from the range each time.
    for _ in range(LLOYD_STEPS):
        nearest = _nearest(flat, centroids)
        counts = tf.math.unsorted_segment_sum(tf.ones_like(flat), nearest, 2**spec.bits)
        sums = tf.math.unsorted_segment_sum(flat, nearest, 2**spec.bits)
        # One that no weight is near stays where it was. Sorted, since `_nearest` searches between them.
        centroids = tf.sort(tf.where(counts > 0.0, sums / tf.maximum(counts, 1.0), centroids))
    return tf.reshape(tf.gather(centroids, _nearest(flat, centroids)), tf.shape(weights))


def _nearest(values: tf.Tensor, centroids: tf.Tensor) -> tf.Tensor:
    """Index of the nearest of sorted centroids."""
    return tf.searchsorted((centroids[1:] + centroids[:-1]) / 2.0, values)

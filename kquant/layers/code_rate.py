"""Bits of codes between the codes: what a Huffman code makes of weights that train.

    b(x) = b_k + (x - k) (b_{k+1} - b_k),   b_k = -log2 (n_k / N),   n_k weights are nearest to k, now

Where more than half of the weights have one code m, it takes a bit all the same, and every other code begins with one:

    b_m = 1,   b_k = 1 - log2 (n_k / (N - n_m))

(-log2 (n_k / N) would promise more for a weight that moves to m than the file gets: 2 bits for 1 where three quarters
are zeros and the others 1 or -1 as often.) A code that nobody has counts as half a one. The b_k get no gradient (the
histogram counts rounded weights), so a weight is drawn towards the neighbour that is more frequent. A heap of weights
that lies between rare codes keeps them so, and a mask leaves the codes beside 0 empty. Given `rise`, gradients are
those of a histogram with one peak, at the most frequent code m, from which bits rise by at least so many with each
code:

    b_{k+1} - b_k  <-  max(b_{k+1} - b_k, rise) for k >= m,  min(b_{k+1} - b_k, -rise) for k < m

Source: the rate of entropy-constrained quantization (Chou, Lookabaugh, Gray, IEEE Trans. ASSP 37 (1989)), with linear
interpolation in place of its choice.
"""

from __future__ import annotations

import math

import tensorflow as tf

KIBIBYTE = 8192.0  # bits
AS_COUNTED = -32.0  # a `rise` that changes nothing: neighbours never differ by so many bits


def interpolated(steps: tf.Tensor, codes: int, rise: tf.Tensor | None = None) -> tf.Tensor:
    """B of each weight, shaped like them.

    Args:
        steps: float32[...], 0 to `codes - 1`.
        codes: how many there are.
        rise: bits for a code, float32[], see above; None: slopes are those of the histogram.
    """
    fixed = tf.stop_gradient(steps)
    nearest = tf.cast(tf.round(fixed), tf.int32)
    counts = tf.cast(tf.math.bincount(tf.reshape(nearest, (-1,)), minlength=codes, maxlength=codes), tf.float32)
    bits = _bits(counts)
    below = tf.minimum(tf.cast(tf.floor(fixed), tf.int32), codes - 2)
    low, high = tf.gather(bits, below), tf.gather(bits, below + 1)
    past = steps - tf.cast(below, tf.float32)
    if rise is None:
        return low + past * (high - low)
    upward = below >= tf.argmax(counts, output_type=tf.int32)
    slope = tf.where(upward, tf.maximum(high - low, rise), tf.minimum(high - low, -rise))
    return low + tf.stop_gradient(past * (high - low)) + slope * (past - tf.stop_gradient(past))


def _bits(counts: tf.Tensor) -> tf.Tensor:
    """B_k above, float32[codes]."""
    total, most = tf.reduce_sum(counts), tf.reduce_max(counts)
    half = 2.0 * most > total
    of = tf.where(half, tf.maximum(total - most, 0.5), total)
    bits = tf.math.log(of / tf.maximum(counts, 0.5)) / math.log(2.0)
    return tf.where(half, tf.where(counts == most, 1.0, 1.0 + bits), bits)

"""Blocks of weights that share a scale.

    kernel [..., channels]  ->  channels x blocks x weights of a block, the last one filled up with zeros

Uniform codes in blocks are those of LiteRT: `scale = float16(largest / highest code)`, codes from -highest to highest
(tflite/schema/schema.fbs, BlockwiseQuantization; scales are a float16 tensor [channels, blocks]).
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from kquant.core.spec import QuantSpec

SMALLEST_HALF = 2.0**-24  # of float16, above 0


def blocks_of(weights: tf.Tensor, spec: QuantSpec, channel_axes: tuple[int, ...]) -> tuple[list[int], tf.Tensor]:
    """The weights, channel by channel and block by block.

    Args:
        weights: float32[...].
        spec: `block` weights of a channel, in the order of the kernel's other axes, are one; without it the channel is
            (`per_axis`), or the kernel.
        channel_axes: the axes that number the output channels together.

    Returns:
        The order of axes that `from_blocks` turns back, and float32[channels, blocks, weights].

    Example:
        >>> spec = QuantSpec(4, symmetric=True, narrow=True, block=2)
        >>> blocks_of(tf.constant([[1.0], [2.0], [3.0]]), spec, (1,))[1].numpy().tolist()
        [[[1.0, 2.0], [3.0, 0.0]]]
    """
    kept = sorted(axis % weights.shape.rank for axis in channel_axes) if spec.per_axis or spec.block else []
    order = [*kept, *(axis for axis in range(weights.shape.rank) if axis not in kept)]
    lengths = [int(weights.shape[axis] or 1) for axis in order]
    channels, count = (int(np.prod(part, dtype=np.int64)) for part in (lengths[: len(kept)], lengths[len(kept) :]))
    block = spec.block or count
    rows = tf.reshape(tf.transpose(weights, order), (channels, count))
    # the last block may be short: zeros make no weight larger
    return order, tf.reshape(tf.pad(rows, [[0, 0], [0, -count % block]]), (channels, -1, block))


def from_blocks(blocks: tf.Tensor, order: list[int], weights: tf.Tensor) -> tf.Tensor:
    """As the weights lay: what `blocks_of` has taken apart.

    Args:
        blocks: [channels, blocks, weights].
        order: of axes.
        weights: any tensor in the shape that comes out.
    """
    lengths = [int(weights.shape[axis] or 1) for axis in order]
    rows = tf.reshape(blocks, (blocks.shape[0], -1))
    count = int(np.prod(lengths, dtype=np.int64)) // int(rows.shape[0] or 1)
    return tf.transpose(tf.reshape(rows[:, :count], lengths), np.argsort(order))


def block_scales(weights: tf.Tensor, spec: QuantSpec, channel_axes: tuple[int, ...]) -> tf.Tensor:
    """The scale of each weight's block, float32 like the weights; arguments as of `blocks_of`.

    Example:
        >>> spec = QuantSpec(4, symmetric=True, narrow=True, block=2)
        >>> block_scales(tf.constant([[7.0], [1.0], [14.0]]), spec, (1,)).numpy().ravel().tolist()
        [1.0, 1.0, 2.0]
    """
    order, blocks = blocks_of(weights, spec, channel_axes)
    return from_blocks(tf.zeros_like(blocks) + block_codes(blocks, spec)[1], order, weights)


def block_codes(blocks: tf.Tensor, spec: QuantSpec) -> tuple[tf.Tensor, tf.Tensor]:
    """Uniform codes, and their scales as float16 holds them: float32[channels, blocks, weights] and [.., .., 1].

    Args:
        blocks: of `blocks_of`.
        spec: their width.

    Example:
        >>> spec = QuantSpec(4, symmetric=True, narrow=True, block=2)
        >>> codes, scale = block_codes(tf.constant([[[0.7, -0.31], [0.0, 0.0]]]), spec)
        >>> codes.numpy().tolist()
        [[[7.0, -3.0], [0.0, 0.0]]]
    """
    wide = tf.reduce_max(tf.abs(blocks), axis=-1, keepdims=True) / float(spec.high)
    # a scale that is 0 in float16 would make numbers of nothing
    scale = tf.cast(tf.cast(tf.clip_by_value(wide, SMALLEST_HALF, tf.float16.max), tf.float16), tf.float32)
    return tf.clip_by_value(tf.round(blocks / scale), float(spec.low), float(spec.high)), scale

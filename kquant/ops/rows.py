"""A layer's sums as products of matrices: what its kernel is multiplied by, one row for each output position.

    y[n, g, m] = sum_k rows[n, g, k] * matrix[g, k, m]      output channel = g * outputs + m

A Dense and a convolution have one group, a depthwise convolution one for each channel. Reconstruction methods
(AdaRound, sequential MSE) see all layers like this, and may look at some of the positions only: `at`, their numbers,
where the positions of all samples are counted through; None stands for all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from kquant.core.checks import static_length


def dense_rows(op: Any, x: tf.Tensor, at: Any = None) -> tf.Tensor:
    """Of a Dense: float[..., in] -> float[n, 1, in]."""
    return _at(tf.reshape(x, (-1, 1, x.shape[-1])), at)


def affine_rows(op: Any, x: tf.Tensor, at: Any = None) -> tf.Tensor:
    """Of a factor for each channel: float[..., channels] -> float[n, channels, 1]."""
    return _at(tf.reshape(x, (-1, x.shape[-1], 1)), at)


def conv_rows(op: Any, x: tf.Tensor, at: Any = None) -> tf.Tensor:
    """Of a (grouped) convolution: float[b, (h,) w, in] -> float[b * oh * ow, groups, kh * kw * in / groups]."""
    patches, places = _patches(op, x, at)
    channels = static_length(x, -1)
    # A patch runs over places first, then over channels: of each group, its channels at every place, as in its kernel.
    grouped = tf.reshape(patches, (-1, places, op.groups, channels // op.groups))
    return tf.reshape(tf.transpose(grouped, (0, 2, 1, 3)), (-1, op.groups, places * channels // op.groups))


def depthwise_rows(op: Any, x: tf.Tensor, at: Any = None) -> tf.Tensor:
    """Of a depthwise convolution: float[b, (h,) w, in] -> float[b * oh * ow, in, kh * kw]."""
    patches, places = _patches(op, x, at)
    # [n, places, channels] -> [n, channels, places]: each channel has one filter of as many weights as places.
    return tf.transpose(tf.reshape(patches, (-1, places, static_length(x, -1))), (0, 2, 1))


def _at(rows: tf.Tensor, at: Any) -> tf.Tensor:
    return rows if at is None else tf.gather(rows, at)


def _patches(op: Any, x: tf.Tensor, at: Any) -> tuple[tf.Tensor, int]:
    """`tf.image.extract_patches` at all or some of the output positions, 1-D inputs as images of height 1."""
    one = op.rank == 1
    size, strides, rates = ((1, *v) if one else v for v in (op.kernel_size, op.strides, op.dilation_rate))
    x, padding, places = (x[:, None] if one else x), op.padding.upper(), int(np.prod(size))
    if at is None:
        return tf.image.extract_patches(x, (1, *size, 1), (1, *strides, 1), (1, *rates, 1), padding), places
    # Of some only: to make all patches first would cost as many times the input as a kernel has places.
    spans = [(n - 1) * rate + 1 for n, rate in zip(size, rates, strict=True)]
    count, high, wide = (static_length(x, axis) for axis in range(3))
    before, made = zip(*map(_edge, (high, wide), spans, strides, [padding] * 2), strict=True)
    image, row, column = np.unravel_index(np.asarray(at), (count, *made))
    down, right = (np.arange(n) * rate for n, rate in zip(size, rates, strict=True))
    ys = (row * strides[0] - before[0])[:, None] + np.repeat(down, size[1])
    xs = (column * strides[1] - before[1])[:, None] + np.tile(right, size[0])
    inside = (ys >= 0) & (ys < high) & (xs >= 0) & (xs < wide)
    flat = (image[:, None] * high + ys) * wide + xs
    values = tf.gather(tf.reshape(x, (-1, x.shape[-1])), np.where(inside, flat, 0))
    return tf.where(inside[..., None], values, 0.0), places


def _edge(length: int, span: int, stride: int, padding: str) -> tuple[int, int]:
    """Zeros before the first value of an axis, and how many outputs it gives, as TensorFlow pads."""
    if padding == "VALID":
        return 0, (length - span) // stride + 1
    made = -(-length // stride)
    return max((made - 1) * stride + span - length, 0) // 2, made


def as_matrix(kernel: Any, groups: int, outputs: int) -> Any:
    """A kernel in Keras' layout as float[groups, k, outputs / groups].

    Example:
        >>> as_matrix(np.zeros((3, 3, 8, 16)), 1, 16).shape, as_matrix(np.zeros((3, 3, 8, 1)), 8, 8).shape
        ((1, 72, 16), (8, 9, 1))
    """
    # Rows in the order of the patches; output channels of one group lie side by side.
    flat = kernel.reshape(-1, groups, outputs // groups)
    return flat.transpose(1, 0, 2)


def from_matrix(matrix: Any, shape: tuple[int, ...]) -> Any:
    """The inverse of `as_matrix`."""
    return matrix.transpose(1, 0, 2).reshape(shape)

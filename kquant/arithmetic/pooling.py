"""Averages: AVERAGE_POOL_2D, which keeps its input's encoding, and MEAN, which has one of its own."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from kquant.arithmetic.fixed_point import Multiplier, power_of_two, quantize_multiplier, scaled
from kquant.arithmetic.grid import Grid, activation_range, check_runtime, clipped, placed
from kquant.core.checks import static_length


def average_pool_2d(
    sources: Sequence[tf.Tensor],
    grids: Sequence[Grid],
    out: Grid,
    pool_size: Sequence[int],
    strides: Sequence[int],
    padding: str,
    activation: str | None = None,
    runtime: str = "litert",
) -> tf.Tensor:
    """AVERAGE_POOL_2D: `(acc + n // 2) / n` above zero, `(acc - n // 2) / n` below, divided towards zero.

    acc is the sum of the codes, zero point included, and n the number of positions inside the image, so halves go away
    from code 0, not from real 0 (reference/integer_ops/pooling.h). Both runtimes alike.

    Args:
        sources: one int32 tensor of codes, [batch, height, width, channels], height and width static.
        grids: its grid, the same as `out`.
        out: the output grid.
        pool_size: window height and width.
        strides: vertical and horizontal stride.
        padding: "same" or "valid".
        activation: fused activation.
        runtime: "litert" or "tflm"; no difference here.

    Returns:
        int32 codes.
    """
    check_runtime(runtime)
    source = sources[0]
    if source.shape.rank != 4 or None in source.shape[1:3]:
        raise ValueError(
            f"AVERAGE_POOL_2D: expected [batch, height, width, channels] with static height and width, received shape "
            f"{source.shape}. Give the model's Input a full shape."
        )
    counts = _window_counts([static_length(source, axis) for axis in (1, 2)], pool_size, strides, padding)
    # float64 averages times the count are the exact sums again; float32 would lose them for large windows.
    edges: Any = padding.upper()
    averages = tf.nn.avg_pool2d(tf.cast(source, tf.float64), list(pool_size), list(strides), edges)
    sums = tf.cast(tf.round(averages * counts), tf.int32)
    n = tf.constant(counts, tf.int32)
    values = tf.sign(sums) * ((tf.abs(sums) + n // 2) // n)
    return clipped(values, *(tf.cast(bound, tf.int32) for bound in activation_range(out, activation)))


def mean(
    sources: Sequence[tf.Tensor],
    grids: Sequence[Grid],
    out: Grid,
    axes: Sequence[int],
    keepdims: bool = False,
    runtime: str = "litert",
) -> tf.Tensor:
    """MEAN: `M(sum(q), s_in / (s_out n))`, n the number of averaged elements.

    The multiplier of `s_in / s_out`, formed in double, is divided by n in integers: with `k = floor(log2 n)` its
    mantissa becomes `mantissa * 2**k / n`, cut off, and its shift is lowered by k (PrepareMeanOrSum in
    tflite/kernels/reduce.cc, QuantizedMeanOrSum in reference/reduce.h). Both runtimes alike.

    Args:
        sources: one int32 tensor of codes; the averaged axes are static.
        grids: its grid.
        out: the output grid.
        axes: which axes, negative ones counted from the end.
        keepdims: whether they stay with length 1.
        runtime: "litert" or "tflm"; no difference here.

    Returns:
        int32 codes.
    """
    check_runtime(runtime)
    source, grid = sources[0], grids[0]
    if any(source.shape[axis] is None for axis in axes):
        raise ValueError(
            f"MEAN: expected static lengths along axes {list(axes)}, received shape {source.shape}. "
            "Give the model's Input a full shape."
        )
    count = math.prod(static_length(source, axis) for axis in axes)
    by = quantize_multiplier(tf.cast(grid.scale, tf.float64) / tf.cast(out.scale, tf.float64))
    # The kernels stop lowering the shift where their 32-bit arithmetic would overflow.
    lowered = tf.minimum(tf.constant(min(count.bit_length() - 1, 32), tf.int64), 31 + by.shift)
    by = Multiplier(by.mantissa * power_of_two(lowered) // count, by.shift - lowered)
    # The zero point comes off the sum, not off each element: the same number for less.
    sums = tf.reduce_sum(tf.cast(source, tf.int64), axis=list(axes), keepdims=keepdims)
    return placed(scaled(sums - tf.cast(grid.zero_point, tf.int64) * count, by), out)


def _window_counts(size: Sequence[int], pool_size: Sequence[int], strides: Sequence[int], padding: str) -> np.ndarray:
    """Positions of each window inside the image, float64[1, out_h, out_w, 1]."""
    rows, columns = (
        _counts_along(length, window, stride, padding)
        for length, window, stride in zip(size, pool_size, strides, strict=True)
    )
    return np.outer(rows, columns)[None, :, :, None].astype(np.float64)


def _counts_along(length: int, window: int, stride: int, padding: str) -> np.ndarray:
    if padding == "valid":
        outputs, before = (length - window) // stride + 1, 0
    else:
        outputs = -(-length // stride)
        # Of an odd number of rows, SAME puts the one more behind the image.
        before = max((outputs - 1) * stride + window - length, 0) // 2
    starts = np.arange(outputs) * stride - before
    return np.minimum(starts + window, length) - np.maximum(starts, 0)

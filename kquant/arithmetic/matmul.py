"""BATCH_MATMUL: products of two computed matrices."""

from collections.abc import Sequence

import tensorflow as tf

from kquant.arithmetic.fixed_point import multiply_reduced, quantize_multiplier, scaled
from kquant.arithmetic.grid import Grid, check_runtime, placed
from kquant.arithmetic.requantize import product_scale

# Products of two centred codes are at most 255^2; sums of this many are exact in float32.
_EXACT_IN_FLOAT32 = 2**24 // 255**2


def batch_matmul(
    sources: Sequence[tf.Tensor],
    grids: Sequence[Grid],
    out: Grid,
    adj_x: bool = False,
    adj_y: bool = False,
    runtime: str = "litert",
) -> tf.Tensor:
    """BATCH_MATMUL: `out = M(sum_k x_ik y_kj, s_x s_y / s_out)`, x and y without their zero points.

    M is the doubly rounding fixed-point product, with int16 codes that of a reduced multiplier; `s_x s_y` is formed in
    float32 on LiteRT, in double on TFLM (GetQuantizedConvolutionMultipler without bias in
    tflite/kernels/kernel_util.cc; tflite/kernels/batch_matmul.cc, reference/batch_matmul.h, and
    micro/kernels/batch_matmul.cc).

    Args:
        sources: two int32 tensors of codes, [..., rows, depth] and [..., depth, columns]; their batches broadcast.
        grids: their grids.
        out: the output grid.
        adj_x: whether the first is given transposed.
        adj_y: whether the second is given transposed.
        runtime: "litert" or "tflm".

    Returns:
        int32 codes.
    """
    check_runtime(runtime)
    depth = sources[0].shape[-2 if adj_x else -1]
    wide = grids[0].high > 127
    # Integers in floats, which have fast matrix products; in float64 where float32 might lose the last bits.
    exact = tf.float32 if not wide and depth is not None and depth <= _EXACT_IN_FLOAT32 else tf.float64
    x, y = (tf.cast(q, exact) - tf.cast(grid.zero_point, exact) for q, grid in zip(sources, grids, strict=True))
    sums = tf.round(tf.linalg.matmul(x, y, transpose_a=adj_x, transpose_b=adj_y))
    real = product_scale(grids[0], grids[1], runtime) / tf.cast(out.scale, tf.float64)
    if wide:
        return placed(multiply_reduced(tf.cast(sums, tf.int64), quantize_multiplier(real)), out)
    return placed(scaled(sums, quantize_multiplier(real)), out)

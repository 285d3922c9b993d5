"""Kernels of two operands: ADD, SUB, MUL, PRELU, MAXIMUM, MINIMUM. Operands broadcast as in NumPy."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from kquant.arithmetic.fixed_point import Multiplier, quantize_multiplier, scaled
from kquant.arithmetic.grid import Grid, centred, check_int8, check_runtime, clipped, clipped_steps, placed
from kquant.core.beforehand import beforehand

# ADD and SUB move both operands up by this many bits before they bring them to one scale.
_HEADROOM_BITS, _HEADROOM_BITS_INT16 = 20, 15


def on_codes(kernel: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """The kernel of codes, from one that takes and returns steps: codes without their zero point, in floats."""

    def computed(sources: Sequence[tf.Tensor], grids: Sequence[Grid], out: Grid, **options: Any) -> tf.Tensor:
        steps = [centred(source, grid, tf.float32) for source, grid in zip(sources, grids, strict=True)]
        return tf.cast(kernel(steps, grids, out, **options), tf.float32) + tf.cast(out.zero_point, tf.float32)

    computed.__name__ = computed.__qualname__ = name = kernel.__name__.removesuffix("_steps")
    computed.__doc__ = f"{name.upper()} of codes, whole numbers of any type; gives float32. See `{kernel.__name__}`."
    return computed


def add_steps(
    sources: Sequence[tf.Tensor],
    grids: Sequence[Grid],
    out: Grid,
    activation: str | None = None,
    runtime: str = "litert",
) -> tf.Tensor:
    """ADD: `out = A(s_1 q_1 + s_2 q_2)`, q without zero points.

    With `t = 2 max(s_1, s_2)`, each operand becomes `M(q_i * 2**20, s_i / t)`, and their sum is multiplied by
    `t / (2**20 s_out)`; M is the doubly rounding fixed-point product. Multipliers are formed in double
    (tflite/kernels/add.cc, reference/integer_ops/add.h). int16 moves up by 2**15, and the file has to say
    `potScaleInt16 = false`, or else scales that are powers of two are added in another way. Both runtimes alike.

    Args:
        sources: two tensors of steps, float32 or float64.
        grids: their grids.
        out: the output grid.
        activation: fused activation.
        runtime: "litert" or "tflm"; no difference here.

    Returns:
        float64 steps.
    """
    check_runtime(runtime)
    return _sum(sources, grids, out, tf.add, activation)


def sub_steps(
    sources: Sequence[tf.Tensor],
    grids: Sequence[Grid],
    out: Grid,
    activation: str | None = None,
    runtime: str = "litert",
) -> tf.Tensor:
    """SUB: as ADD with a difference (tflite/kernels/sub.cc, reference/sub.h).

    Some sources of TFLM divide the scales in float32 (micro/kernels/sub_common.cc); the interpreter measured here uses
    double, as LiteRT does. For the arguments see `add_steps`.
    """
    check_runtime(runtime)
    return _sum(sources, grids, out, tf.subtract, activation)


def mul_steps(
    sources: Sequence[tf.Tensor],
    grids: Sequence[Grid],
    out: Grid,
    activation: str | None = None,
    runtime: str = "litert",
) -> tf.Tensor:
    """MUL: `out = A(M(q_1 q_2, s_1 s_2 / s_out))`, M the doubly rounding fixed-point product.

    LiteRT forms `s_1 s_2 / s_out` in float32, TFLM in double (tflite/kernels/mul.cc, reference/integer_ops/mul.h,
    micro/kernels/mul_common.cc). For the arguments see `add_steps`.
    """
    precision = tf.float64 if check_runtime(runtime) == "tflm" else tf.float32
    with beforehand(*(grid.scale for grid in grids), out.scale):
        by = _multiplier(tf.cast(grids[0].scale, precision) * tf.cast(grids[1].scale, precision), out, precision)
    # of 8-bit codes the product has 16 bits, which float32 holds; of 16-bit codes it has 32
    wide = any(grid.is_int16 for grid in grids)
    left, right = (tf.cast(source, tf.float64 if wide else tf.float32) for source in sources)
    return clipped_steps(scaled(left * right, by, wide=wide), out, activation)


def prelu(sources: Sequence[tf.Tensor], grids: Sequence[Grid], out: Grid, runtime: str = "litert") -> tf.Tensor:
    """PRELU: `M(q, s_in / s_out)` where `q >= 0`, else `M(q q_alpha, s_in s_alpha / s_out)`.

    LiteRT forms both multipliers in float32, TFLM in double (tflite/kernels/activations.cc, reference/prelu.h,
    micro/kernels/prelu_common.cc).

    Args:
        sources: int32 codes of the input and of alpha, which broadcasts to the input.
        grids: their grids.
        out: the output grid.
        runtime: "litert" or "tflm".

    Returns:
        int32 codes.
    """
    check_int8("PRELU", out)
    precision = tf.float64 if check_runtime(runtime) == "tflm" else tf.float32
    source_scale = tf.cast(grids[0].scale, precision)
    identity = _multiplier(source_scale, out, precision)
    slope = _multiplier(source_scale * tf.cast(grids[1].scale, precision), out, precision)
    values = centred(sources[0], grids[0], tf.float32)
    below = values * centred(sources[1], grids[1], tf.float32)
    return placed(tf.where(values >= 0, scaled(values, identity), scaled(below, slope)), out)


def maximum(sources: Sequence[tf.Tensor], grids: Sequence[Grid], out: Grid, runtime: str = "litert") -> tf.Tensor:
    """MAXIMUM of the codes; the operands and the output share one encoding. Both runtimes alike."""
    check_runtime(runtime)
    return clipped(tf.maximum(sources[0], sources[1]), out.low, out.high)


def minimum(sources: Sequence[tf.Tensor], grids: Sequence[Grid], out: Grid, runtime: str = "litert") -> tf.Tensor:
    """MINIMUM of the codes; the operands and the output share one encoding. Both runtimes alike."""
    check_runtime(runtime)
    return clipped(tf.minimum(sources[0], sources[1]), out.low, out.high)


def _sum(
    sources: Sequence[tf.Tensor],
    grids: Sequence[Grid],
    out: Grid,
    combine: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    activation: str | None,
) -> tf.Tensor:
    raised = 2.0 ** (_HEADROOM_BITS_INT16 if out.is_int16 else _HEADROOM_BITS)
    with beforehand(*(grid.scale for grid in grids), out.scale):
        scales = [tf.cast(grid.scale, tf.float64) for grid in grids]
        # Twice the larger one, so that both multipliers are at most one half: the kernels take none of 1 or more
        # (QuantizeMultiplierSmallerThanOneExp), and the sum of the two stays within 32 bits.
        common = 2.0 * tf.maximum(scales[0], scales[1])
        by = [quantize_multiplier(scale / common) for scale in scales]
        to_out = quantize_multiplier(common / (raised * tf.cast(out.scale, tf.float64)))
    # The code of an operand has 8 or 16 bits and so have its products with a mantissa 39 or 47, wherever they lie.
    terms = [scaled(steps, m, raised=raised) for steps, m in zip(sources, by, strict=True)]
    return clipped_steps(scaled(combine(*terms), to_out, wide=True), out, activation)


add, sub, mul = on_codes(add_steps), on_codes(sub_steps), on_codes(mul_steps)


def _multiplier(scale: tf.Tensor, out: Grid, precision: tf.DType) -> Multiplier:
    return quantize_multiplier(tf.cast(scale / tf.cast(out.scale, precision), tf.float64))

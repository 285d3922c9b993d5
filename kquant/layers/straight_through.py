"""What is rounded forward and passes a gradient backward, where nothing was clipped."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from kquant.arithmetic.low_float import nearest, nearest_shared, scale_for, scale_of, shared_exponents
from kquant.core.one_node import one_node
from kquant.core.spec import QuantSpec
from kquant.graph.tensorflow_private import is_traced_for_xla
from kquant.layers.modes import is_simulating
from kquant.layers.range_numbers import Numbers

Pair = tuple[tf.Tensor, tf.Tensor]
# What a rectifier passes the gradient of: values above 0, in floats that no thread rounds to 0, and below its maximum.
ABOVE_ZERO = np.finfo(np.float32).tiny
BELOW_MAXIMUM = {"Relu": None, "Relu6": np.nextafter(np.float32(6.0), np.float32(0.0))}


class Rectified(NamedTuple):
    """What a rectifier was given, and the largest of its values that has a gradient; None: there is none."""

    given: tf.Tensor
    largest: np.float32 | None


@tf.custom_gradient
def steps_through(y: tf.Tensor, steps: tf.Tensor, scale: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> Any:
    """`steps` forward; backward the gradient reaches `y`, of which they are steps, where nothing was clipped."""

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
        inside = tf.logical_and(y >= low, y <= high)
        # The caller multiplies the steps by the scale; together the values have gradient 1.
        upstream = tf.cast(upstream, y.dtype) / scale
        return tf.where(inside, upstream, tf.zeros_like(upstream)), None, None, None, None

    return steps, gradient


def rounded_through(y: tf.Tensor, numbers: Numbers, spec: QuantSpec, ends: Pair | None = None) -> tf.Tensor:
    """Values on the grid; the gradient passes where nothing is clipped, and none reaches the grid.

    By TensorFlow's fused kernel, or as floats of few bits whose largest is the larger end. In the graph of
    a training step the gradient of what a rectifier made goes past it, to what that was given: both masks are one pass.
    `ends` are `ends_of_kernel`, where a loop has them computed before it.
    """
    low, high = tf.stop_gradient(numbers.low), tf.stop_gradient(numbers.high)
    if spec.floating is not None:
        # the calibrated end: the lowest code of a symmetric grid lies a step beyond it
        largest = tf.maximum(tf.abs(low + numbers.scale), tf.abs(high))
        inside = tf.clip_by_value(y, -largest, largest)
        scale = scale_for(largest, spec.floating)
        return _values_through(y, nearest(inside / scale, spec.floating) * scale, largest)
    bits: dict[str, Any] = {"num_bits": spec.bits, "narrow_range": spec.narrow}

    behind = rectified(y)

    @tf.custom_gradient
    def rounded(_: tf.Tensor) -> Any:
        # The ends are those of the grid, with 0 among its codes, so that the kernel has no zero point left to nudge.
        values = tf.quantization.fake_quant_with_min_max_vars(y, low, high, **bits)
        return values, lambda upstream: _where_inside(upstream, y, (numbers, ends), spec, behind)

    return rounded(y if behind is None else behind.given)


def rounded_in_blocks(y: tf.Tensor, spec: QuantSpec) -> tf.Tensor:
    """Floats of few bits whose blocks along the last axis share a power of two each, made of the values themselves.

    OCP Microscaling Formats (MX) Specification 1.0, section 6.3. The gradient passes where nothing was cut off at the
    format's largest number; none reaches the scales.

    Args:
        y: float32[samples, ..., values].
        spec: of a floating-point kind, with a block.

    Example:
        >>> spec = QuantSpec(4, symmetric=True, kind="e2m1", block=2)
        >>> rounded_in_blocks(tf.constant([[3.3, 7.9, 0.1]]), spec).numpy().tolist()
        [[3.0, 6.0, 0.09375]]
    """
    form = spec.floating
    if form is None:
        raise ValueError(f"rounded_in_blocks: kind '{spec.kind}' is no floating-point one.")
    # of a number for each sample, the samples are no block
    flat = y.shape.rank == 1
    exponent = shared_exponents(tf.expand_dims(y, -1) if flat else y, form, spec.block)
    exponent = tf.squeeze(exponent, -1) if flat else exponent
    return _values_through(y, nearest_shared(y, exponent, form), form.largest * scale_of(exponent))


@tf.custom_gradient
def _values_through(y: tf.Tensor, values: tf.Tensor, largest: tf.Tensor) -> Any:
    """`values` forward, to the bit; backward the gradient reaches `y` where its magnitude is not above `largest`."""

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
        return tf.where(tf.abs(y) <= largest, upstream, tf.zeros_like(upstream)), None, None

    return values, gradient


def rectified(y: tf.Tensor) -> Rectified | None:
    """What `y` is behind, where a graph tells that it is the output of a rectifier, or that in float32."""
    # What simulates infers, and is asked for the gradient of any tensor.
    if is_traced_for_xla() or is_simulating() or not tf.is_symbolic_tensor(y):
        return None
    made = y.op.inputs[0].op if y.op.type == "Cast" else y.op
    if made.type not in BELOW_MAXIMUM or made.outputs[0].dtype.size > y.dtype.size:  # float64 has values between
        return None
    return Rectified(made.inputs[0], BELOW_MAXIMUM[made.type])


def _where_inside(
    upstream: tf.Tensor,
    y: tf.Tensor,
    known: tuple[Numbers, Pair | None],
    spec: QuantSpec,
    behind: Rectified | None,
) -> tf.Tensor:
    """The gradient of TensorFlow's fused kernel for its values, to the bit, and that of a rectifier before it."""
    numbers, known_ends = known
    low, high = numbers.low, numbers.high
    if is_traced_for_xla():
        bits: dict[str, Any] = {"num_bits": spec.bits, "narrow_range": spec.narrow}
        return tf.quantization.fake_quant_with_min_max_vars_gradient(upstream, y, low, high, **bits)[0]
    # That kernel goes over the tensor twice more, to sum for ends that do not learn here. The mask alone is in a kernel
    # of another operation: one pass, where two comparisons, their conjunction and a product are four.
    ends: Any = ends_of_kernel(numbers, spec) if known_ends is None else known_ends
    if behind is None:
        return inside_of(upstream, y, ends)
    return tf.cast(inside_of(upstream, y, ends_of_rectified(ends, behind)), behind.given.dtype)


def inside_of(upstream: tf.Tensor, y: tf.Tensor, ends: tuple[Any, Any]) -> tf.Tensor:
    """`upstream` where `y` is not beyond the ends, 0 elsewhere: one pass over them."""
    passing: Any = tf.raw_ops.QuantizeAndDequantizeV4Grad
    return passing(gradients=upstream, input=y, input_min=ends[0], input_max=ends[1])[0]


def ends_of_rectified(ends: Pair, behind: Rectified) -> tuple[Any, Any]:
    """The ends between which a gradient passes the grid, and the rectifier before it."""
    # the low end of a grid is 0 or below
    return ABOVE_ZERO, ends[1] if behind.largest is None else tf.minimum(ends[1], behind.largest)


def ends_of_kernel(numbers: Numbers, spec: QuantSpec) -> Pair:
    """Where the gradient of the fused kernel stops, float32[] each."""
    return _ends_of_kernel(numbers.low, numbers.high, numbers.zero_point, spec)


@one_node
def _ends_of_kernel(low: tf.Tensor, high: tf.Tensor, zero_point: tf.Tensor, spec: QuantSpec) -> Pair:
    """The ends as the fused kernel computes them from those that it is given, which can be a float's last place off.

    Of `Nudge` in TensorFlow's `fake_quant_ops_functor.h`: the scale anew, and both ends whole steps of it from 0.
    """
    # Grappler would make a division by a constant a product with its reciprocal, which rounds otherwise.
    scale = tf.math.divide_no_nan(high - low, float(spec.high - spec.low))
    return (spec.low - zero_point) * scale, (spec.high - zero_point) * scale

"""One training pass of a `FakeQuant` whose range learns, or whose grid is wider at first."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from kquant.layers import drawn_grids, learned_ranges
from kquant.recipe.training_section import Progressive


def trained_steps(layer: Any) -> tf.Tensor:
    """float32[]: training steps of a `FakeQuant` since its last calibration, this one included."""
    return tf.reduce_max(tf.convert_to_tensor(layer.count) - tf.convert_to_tensor(layer.calibrated))


def fake_quantize(layer: Any, y: tf.Tensor, *, from_zero: bool = False) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Quantize with gradients for the range.

    Args:
        layer: a `FakeQuant` with a range, which has seen data.
        y: float32[...].
        from_zero: see `FakeQuant.move_range`.

    Returns:
        Values on the grid, scale and zero point.
    """
    scale, zero_point, lowest, highest = grid(layer, y, from_zero=from_zero)
    if layer.learning.robust is not None:
        y += tf.stop_gradient(drawn_grids.shift(layer.learning.robust, trained_steps(layer)) * scale)
    scaled, inside = tf.constant(_gradient_scale(y, layer.spec)), layer.learning.ranges != "pact"
    if layer.freeze_after is not None:
        # No gradient any more: Adam's averages would go on moving the variable, so `move` drops what it made of them.
        scaled = tf.where(trained_steps(layer) <= float(layer.freeze_after), scaled, 0.0)
    if _wider(layer) is not None:  # the kernel wants to know the number of bits when the graph is made
        of_grid = lowest, highest, scaled, tf.constant(float(inside))
        return learned_ranges.quantized(y, scale, zero_point, *of_grid), scale, zero_point
    return learned_ranges.fused(y, scale, zero_point, scaled, layer.spec, inside=inside), scale, zero_point


def _wider(layer: Any) -> Progressive | None:
    """How the grid narrows, where it has more bits at first."""
    progress = layer.learning.progressive
    return None if progress is None or progress.start <= layer.spec.bits else progress


def grid(
    layer: Any, y: tf.Tensor | None = None, *, from_zero: bool = False
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Scale, zero point, lowest and highest code of this training step, with gradients to the range.

    Args:
        layer: see `fake_quantize`.
        y: the tensor: an end that is 0 stays there while no value lies beyond it (a ReLU's lower end).
        from_zero: see `fake_quantize`.
    """
    low, high = _ends(layer, y, from_zero)
    spec, progress = layer.spec, _wider(layer)
    if progress is None:
        scale, zero_point = learned_ranges.encode_through(low, high, spec)
        return scale, zero_point, tf.constant(float(spec.low)), tf.constant(float(spec.high))
    # The count has moved on already: the first step is number 0.
    steps = tf.maximum(trained_steps(layer) - 1.0, 0.0)
    bits = learned_ranges.bits_now(steps, progress.start, spec.bits, progress.steps)
    return learned_ranges.encode_at(low, high, spec, progress.start, bits)


def follows(layer: Any) -> tf.Tensor:
    """bool[]: the range of a `FakeQuant` is that of each batch, as it has no width or had none until lately."""
    low, high = (tf.convert_to_tensor(v) for v in (layer.low, layer.high))
    dead = learned_ranges.is_dead(tf.reduce_min(low), tf.reduce_max(high))
    return tf.logical_or(dead, tf.convert_to_tensor(layer.waking)[0] > 0.0)


def wake(layer: Any, following: tf.Tensor) -> None:
    """One step of a `FakeQuant` whose range may be following, after it took this batch."""
    low, high = (tf.convert_to_tensor(v) for v in (layer.low, layer.high))
    # Of all sites together, as the encoding covers them.
    width = tf.maximum(tf.reduce_max(high), 0.0) - tf.minimum(tf.reduce_min(low), 0.0)
    waking = tf.convert_to_tensor(layer.waking)
    layer.waking.assign(tf.where(following, learned_ranges.woken(waking, width, layer.sites), waking))


def move(layer: Any, following: tf.Tensor | bool = False) -> None:
    """What the optimizer made of the last step becomes part of the range in force, but of one that is `following`."""
    stretch = tf.convert_to_tensor(layer.stretch)
    if layer.freeze_after is not None:
        stretch = tf.where(trained_steps(layer) <= float(layer.freeze_after), stretch, tf.zeros_like(stretch))
    low, high = before = [tf.convert_to_tensor(v) for v in (layer.low, layer.high)]
    ends = learned_ranges.moved_ends(tf.reduce_min(low), tf.reduce_max(high), stretch * layer.learning.range_rate)
    for variable, old, end in zip((layer.low, layer.high), before, ends, strict=True):
        # A range that learned is one for all sites: nobody could say which of them a gradient was of.
        variable.assign(tf.where(following, old, tf.fill((layer.sites,), end)))
    layer.stretch.assign(tf.zeros((2,)))


def penalty(layer: Any, y: tf.Tensor) -> tf.Tensor:
    """PACT's squared ends, relative to the largest value of the batch: float32[]."""
    low, high = _ends(layer, None, False)
    # PACT's penalty is the squared end; relative to the batch it means the same whatever scale the values have.
    largest = tf.stop_gradient(tf.maximum(tf.reduce_max(tf.abs(y)), 1e-20))
    return layer.learning.range_penalty * (tf.square(low / largest) + tf.square(high / largest))


def _ends(layer: Any, y: tf.Tensor | None, from_zero: bool) -> tuple[tf.Tensor, tf.Tensor]:
    low = tf.minimum(tf.reduce_min(tf.convert_to_tensor(layer.low)), 0.0)
    high = tf.maximum(tf.reduce_max(tf.convert_to_tensor(layer.high)), 0.0)
    if not layer.learning.learns_tensors:
        return low, high
    # 0 forward: only its gradient is wanted.
    change = (high - low) * learned_ranges.pending(tf.convert_to_tensor(layer.stretch))
    if y is None:
        return low - change[0], high + change[1]
    free_low = low < 0.0 if from_zero else tf.logical_or(low < 0.0, tf.reduce_min(y) < 0.0)
    free_high = tf.logical_or(high > 0.0, tf.reduce_max(y) > 0.0)
    return low - tf.where(free_low, change[0], 0.0), high + tf.where(free_high, change[1], 0.0)


def _gradient_scale(y: tf.Tensor, spec: Any) -> float:
    sizes = [n for n in y.shape[1:].as_list() if n is not None]
    return learned_ranges.gradient_scale(math.prod(sizes), spec.high if spec.symmetric else spec.high - spec.low)

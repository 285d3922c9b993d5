"""One training pass of a `FakeQuant` whose range learns, or whose grid is wider at first."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from kquant.layers import drawn_grids, learned_ranges, rectified_ranges
from kquant.layers.range_numbers import Numbers, encoded, whole
from kquant.layers.range_steps import Ends, Rule, State, by_extremes, by_values, is_free, pulled
from kquant.layers.replicas import extremes, is_alone
from kquant.layers.straight_through import ends_of_kernel, rectified, rounded_through
from kquant.recipe.training_section import Progressive

OPENED = 1e-6  # of the width of a range: an end that leaves 0


def trained_steps(layer: Any, ahead: int = 0) -> tf.Tensor:
    """float32[]: number of this training step of a `FakeQuant` since its last calibration, 1 for the first.

    Args:
        layer: whose steps `step` counts.
        ahead: 1 before this one is counted, or for the next.
    """
    counted = tf.reduce_max(tf.convert_to_tensor(layer.count) - tf.convert_to_tensor(layer.calibrated))
    return counted + float(ahead) if ahead else counted


def step(layer: Any, y: tf.Tensor, site: int, *, from_zero: bool = False) -> Ends:
    """One training step of a `FakeQuant` whose range learns, or moves at times only.

    Args:
        layer: that the range is of.
        y: float32[...], the batch.
        site: whose it is.
        from_zero: see `FakeQuant.move_range`.
    """
    learns = layer.learning.learns_tensors
    read = {
        name: tf.convert_to_tensor(getattr(layer, name)) for name in ("low", "high", "count", "calibrated", "waking")
    }
    state = State(**read, stretch=tf.convert_to_tensor(layer.stretch) if learns else tf.zeros((2,)))
    rule = Rule(
        layer.sites, site, layer.momentum, layer.freeze_after, learns, layer.learning.range_rate, from_zero=from_zero
    )
    if learns and is_alone() and not layer.padding.get(str(site)):
        moved = by_values(state, tf.reshape(tf.stop_gradient(y), (-1,)), rule)
    else:  # the batch says where the range goes, or what other replicas see of it has to be asked by all at once
        moved = by_extremes(state, layer.with_padding(*extremes(y, from_zero=from_zero), site), rule)
    (low, high, _), count, waking = moved
    new = [(layer.low, low), (layer.high, high), (layer.count, count), (layer.waking, waking)]
    for variable, value in [*new, *([(layer.stretch, tf.zeros((2,)))] if learns else [])]:
        variable.assign(value)
    return moved.ends


def fake_quantize(
    layer: Any, y: tf.Tensor, moved: Ends | None = None, *, from_zero: bool = False
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Quantize with gradients for the range.

    Args:
        layer: a `FakeQuant` with a range, which has seen data.
        y: float32[...].
        moved: the range after this step; None: it did not move.
        from_zero: see `FakeQuant.move_range`.

    Returns:
        Values on the grid, scale and zero point.
    """
    if _wider(layer) is not None:  # the kernel wants to know the number of bits when the graph is made
        scale, zero_point, lowest, highest = grid(layer, y, from_zero=from_zero)
        # Behind the last step Adam's averages go on moving the variable: `step` drops what it made of them.
        factor, learning, inside = _gradient_scale(y, layer.spec), is_learning(layer), layer.learning.ranges != "pact"
        scaled = tf.constant(factor) if learning is True else tf.where(learning, factor, 0.0)
        values = learned_ranges.quantized(y, scale, zero_point, lowest, highest, scaled, tf.constant(float(inside)))
        return values, scale, zero_point
    low, high, free = moved or Ends(tf.convert_to_tensor(layer.low), tf.convert_to_tensor(layer.high))
    if free is None and layer.learning.learns_tensors:
        free = is_free(extremes(y, from_zero=from_zero), *whole(low, high))
    numbers = encoded(low, high, layer.spec)
    shift, pull = _shift(layer, numbers), _pull(layer, Ends(low, high, free))
    y = _moved(y, shift)
    if pull is None:
        return rounded_through(y, numbers, layer.spec), numbers.scale, numbers.zero_point
    factor, inside = _gradient_scale(y, layer.spec), layer.learning.ranges != "pact"
    stretch = tf.convert_to_tensor(layer.stretch)
    behind = rectified(y) if inside and not layer.spec.symmetric else None
    if behind is None:
        values = learned_ranges.fused(y, stretch, numbers[:4], factor * pull, layer.spec, inside=inside)
    else:
        values = rectified_ranges.fused(y, behind, stretch, numbers, factor * pull, layer.spec)
    return values, numbers.scale, numbers.zero_point


class InSteps(NamedTuple):
    """What a range does in a loop.

    Attributes:
        values: puts a tensor on the grid; of one step, with the three `sums`, if any, as float32[] each.
        scale: of the grid, float32[].
        zero_point: likewise.
        sums: float32[3], zeros whose gradients are those of the range (`learned_ranges.sums_for`).
    """

    values: Callable[..., tf.Tensor]
    scale: tf.Tensor
    zero_point: tf.Tensor
    sums: tf.Tensor | None = None


def for_steps(layer: Any, size: int) -> InSteps:
    """`fake_quantize` for a loop: what the optimizer made of the last step has been taken in (`loop_ranges`).

    An end that is 0 has no gradient: who sees all steps opens it behind the loop (`open_ends`). The training step is
    counted behind the loop too (`step`), and is one more here than what was counted.

    Args:
        layer: see `fake_quantize`.
        size: values of one sample, at all steps; their gradients add up.
    """
    learns = layer.learning.learns_tensors
    ahead = int(layer.trainable)  # what does not train counts nothing
    if _wider(layer) is not None:
        scale, zero_point, lowest, highest = grid(layer, ahead=ahead)
        inside = tf.constant(float(layer.learning.ranges != "pact"))
        scaled = tf.cast(is_learning(layer, ahead), tf.float32) * _scale_of(size, layer.spec)

        def wide(y: tf.Tensor) -> tf.Tensor:
            return learned_ranges.quantized(y, scale, zero_point, lowest, highest, scaled, inside)

        return InSteps(wide, scale, zero_point)
    low, high = (tf.convert_to_tensor(v) for v in (layer.low, layer.high))
    lowest, highest = whole(low, high)
    free = is_free((lowest, highest), lowest, highest) if learns else None
    numbers = encoded(low, high, layer.spec)
    shift, pull = _shift(layer, numbers, ahead), _pull(layer, Ends(low, high, free), ahead)
    # What a step does with a tensor alone: all else is the same in each.
    if pull is None:
        clips = ends_of_kernel(numbers, layer.spec)
        return InSteps(lambda y: rounded_through(_moved(y, shift), numbers, layer.spec, clips), *numbers[:2])
    pull, inside = _scale_of(size, layer.spec) * pull, layer.learning.ranges != "pact"
    sums = learned_ranges.sums_for(tf.convert_to_tensor(layer.stretch), numbers.scale, pull, layer.spec)

    def onto(y: tf.Tensor, *own: tf.Tensor) -> tf.Tensor:
        by_sums = own or tf.unstack(sums)
        return learned_ranges.fused_by_sums(_moved(y, shift), by_sums, numbers[2:4], layer.spec, inside=inside)

    return InSteps(onto, *numbers[:2], sums)


def _moved(y: tf.Tensor, shift: tf.Tensor | None) -> tf.Tensor:
    return y if shift is None else y + shift


def _shift(layer: Any, numbers: Numbers, ahead: int = 0) -> tf.Tensor | None:
    """float32[]: what a drawn grid adds to values; `ahead`: see `trained_steps`."""
    if layer.learning.robust is None:
        return None
    return tf.stop_gradient(drawn_grids.shift(layer.learning.robust, trained_steps(layer, ahead)) * numbers.scale)


def _pull(layer: Any, ends: Ends, ahead: int = 0) -> tf.Tensor | None:
    """float32[2]: `pulled` of ends that learn in this step; None where a gradient moves none; `ahead`: likewise."""
    if ends.free is None or not layer.learning.learns_tensors:
        return None
    pull, learning = pulled(ends.low, ends.high, ends.free, layer.spec), is_learning(layer, ahead)
    return pull if learning is True else tf.where(learning, pull, tf.zeros_like(pull))


def is_learning(layer: Any, ahead: int = 0) -> tf.Tensor | bool:
    """Whether a gradient moves the range in this step, bool[] where a count tells it; `ahead`: see `trained_steps`."""
    return True if layer.freeze_after is None else trained_steps(layer, ahead) <= float(layer.freeze_after)


def open_ends(layer: Any, y: tf.Tensor) -> None:
    """An end of a range that learns moves a hair's breadth from 0 where values lie beyond: from there on it learns.

    It is the next training step that computes with it: where ranges stay from that one on, none is opened.

    Args:
        layer: see `fake_quantize`; `step` has counted this training step.
        y: float32[...], holds the extremes of the loop's steps.
    """
    if not layer.learning.learns_tensors:
        return
    low, high = (tf.convert_to_tensor(v) for v in (layer.low, layer.high))
    width = OPENED * (tf.reduce_max(high) - tf.reduce_min(low))
    opens = is_learning(layer, ahead=1)
    layer.low.assign(tf.where((low >= 0.0) & (tf.reduce_min(y) < 0.0) & opens, -width, low))
    layer.high.assign(tf.where((high <= 0.0) & (tf.reduce_max(y) > 0.0) & opens, width, high))


def _wider(layer: Any) -> Progressive | None:
    """How the grid narrows, where it has more bits at first."""
    progress = layer.learning.progressive
    return None if progress is None or progress.start <= layer.spec.bits else progress


def grid(
    layer: Any, y: tf.Tensor | None = None, *, from_zero: bool = False, ahead: int = 0
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Scale, zero point, lowest and highest code of this training step, with gradients to the range.

    Args:
        layer: see `fake_quantize`.
        y: the tensor: an end that is 0 stays there while no value lies beyond it (a ReLU's lower end).
        from_zero: see `fake_quantize`.
        ahead: see `trained_steps`.
    """
    low, high = _ends(layer, y, from_zero)
    spec, progress = layer.spec, _wider(layer)
    if progress is None:
        scale, zero_point = learned_ranges.encode_through(low, high, spec)
        return scale, zero_point, tf.constant(float(spec.low)), tf.constant(float(spec.high))
    steps = tf.maximum(trained_steps(layer, ahead) - 1.0, 0.0)
    bits = learned_ranges.bits_now(steps, progress.start, spec.bits, progress.steps)
    return learned_ranges.encode_at(low, high, spec, progress.start, bits)


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
    return _scale_of(math.prod(n for n in y.shape[1:].as_list() if n is not None), spec)


def _scale_of(size: int, spec: Any) -> float:
    return learned_ranges.gradient_scale(size, spec.high if spec.symmetric else spec.high - spec.low)

"""Ranges inside of a loop, in training: they move before it and behind it, all of a loop together.

    before    what the optimizer made of the last step becomes part of those that learn (`take_in`)
    inside    extremes of tensors are looked for where a range may ask for them (`Watch.asks`)
    behind    those that move do, and those that learn count the step (`Watch.follow`)

A graph spends as long on the few numbers of one range as on a tensor of the step: those of all are vectors here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from kquant.layers import learned_ranges, range_learner
from kquant.layers.range_numbers import whole
from kquant.layers.replicas import is_alone


class Learned(NamedTuple):
    """Ranges that all learn, in this step.

    Attributes:
        begins: bool[], one of them begins, has no width or follows the batches.
        low: float32[n].
        high: float32[n].
    """

    begins: tf.Tensor
    low: tf.Tensor
    high: tf.Tensor


@dataclass(frozen=True, eq=False)
class Watch:
    """Ranges whose tensors a loop watches while it trains, in the order of their calls.

    Attributes:
        calls: (`FakeQuant`, number of its call).
        learned: the ranges, where all of them learn.
    """

    calls: tuple[tuple[Any, int], ...]
    learned: Learned | None = None

    def asks(self) -> tf.Tensor | None:
        """bool[]: extremes of the tensors matter in this step; None: they always do.

        Of ranges that learn they do where one begins, or has an end at 0 that a value may lie beyond.
        """
        if self.learned is None or any(layer.learning.ranges == "pact" for layer, _ in self.calls):
            return None
        begins, low, high = self.learned
        return begins | tf.reduce_any((low >= 0.0) | (high <= 0.0))

    def follow(self, seen: Sequence[tf.Tensor]) -> None:
        """Move the ranges, or count the step of those that learn.

        Args:
            seen: float32[2] each, smallest and largest value of a tensor at all steps.
        """
        for (layer, _), y in zip(self.calls, seen, strict=True):
            layer.charge(y)

        def moved() -> tf.Tensor:
            for (layer, number), y in zip(self.calls, seen, strict=True):
                layer.move_range(y, number)
                range_learner.open_ends(layer, y)
            return tf.constant(0)

        def counted() -> tf.Tensor:
            for layer, _ in self.calls:
                layer.count.assign(tf.convert_to_tensor(layer.count) + 1.0)
            return tf.constant(0)

        if self.learned is None:
            moved()
            return
        begins, low, high = self.learned
        least, most = tf.unstack(tf.stack(seen), axis=1)
        opens = tf.reduce_any(((low >= 0.0) & (least < 0.0)) | ((high <= 0.0) & (most > 0.0)))
        # One node, that a graph passes over: it goes through each one of a branch that it does not take.
        apart: Any = tf.function(moved, autograph=False, experimental_attributes={"_noinline": True})
        tf.cond(begins | opens, moved if tf.executing_eagerly() else apart, counted)


def watch(calls: Sequence[tuple[Any, int]]) -> Watch:
    """What a loop watches.

    Args:
        calls: (`FakeQuant`, number of its call), whose ranges move or learn; `take_in` has been called.
    """
    layers = [layer for layer, _ in calls]
    # Where other replicas hold parts of the batch, all ask them in the same order, whatever they hold themselves.
    together = is_alone() and len(set(map(id, layers))) == len(layers)
    if not layers or not together or not all(layer.learning.learns_tensors and layer.sites == 1 for layer in layers):
        return Watch(tuple(calls))
    low, high = _ends(layers)
    count = tf.concat([tf.convert_to_tensor(layer.count) for layer in layers], 0)
    begins = tf.reduce_any((count < 0.5) | _follows(layers, low, high))
    return Watch(tuple(calls), Learned(begins, low, high))


def take_in(layers: Sequence[Any]) -> None:
    """Begin a training step: what the optimizer made of the last one becomes part of ranges that learn.

    A range that follows the batches (`learned_ranges.woken`) stays what it is.

    Args:
        layers: `FakeQuant`s, each once.
    """
    layers = [layer for layer in layers if layer.has_range and layer.trainable and layer.learning.learns_tensors]
    if not layers:
        return
    low, high = _ends(layers)
    change = tf.stack([tf.convert_to_tensor(layer.stretch) for layer in layers], axis=1)
    change *= np.array([layer.learning.range_rate for layer in layers], np.float32)
    if any(layer.freeze_after is not None for layer in layers):
        learns = [tf.convert_to_tensor(range_learner.is_learning(layer, ahead=1)) for layer in layers]
        change = tf.where(tf.stack(learns), change, 0.0)
    ends = (tf.unstack(end) for end in learned_ranges.moved_ends(low, high, change))
    for layer, stays, *new in zip(layers, tf.unstack(_follows(layers, low, high)), *ends, strict=True):
        for variable, end in zip((layer.low, layer.high), new, strict=True):
            variable.assign(tf.where(stays, tf.convert_to_tensor(variable), tf.fill((layer.sites,), end)))
        layer.stretch.assign(tf.zeros((2,)))


def _ends(layers: Sequence[Any]) -> tuple[tf.Tensor, tf.Tensor]:
    """Lowest and highest of the range of each, float32[n]."""
    each = [whole(tf.convert_to_tensor(layer.low), tf.convert_to_tensor(layer.high)) for layer in layers]
    low, high = (tf.stack(ends) for ends in zip(*each, strict=True))
    return low, high


def _follows(layers: Sequence[Any], low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    """bool[n]: the range is that of each batch."""
    waking = tf.stack([tf.convert_to_tensor(layer.waking)[0] for layer in layers])
    return tf.logical_or(learned_ranges.is_dead(low, high), waking > 0.0)

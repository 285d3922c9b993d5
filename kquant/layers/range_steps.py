"""One training step of a range that learns, or that moves at times: arithmetic on its state, one node of a graph.

Most ranges have width, were calibrated and do not follow the batches: of those that learn, a step takes what the
optimizer made of the last one into the ends, and need not look at the batch. What is left (a first batch, a range
without width or one that has it since lately, an end at 0 that a value may lie beyond) is the other branch of a
condition, which a graph passes over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import tensorflow as tf

from kquant.core.one_node import aside, one_node, one_node_for_any
from kquant.core.spec import QuantSpec
from kquant.layers.learned_ranges import is_dead, moved_ends, woken
from kquant.layers.range_numbers import whole
from kquant.layers.replicas import extremes

Pair = tuple[tf.Tensor, tf.Tensor]


class State(NamedTuple):
    """What a `FakeQuant` keeps of its range, before a step.

    Attributes:
        low: lowest value of each site, float32[sites].
        high: highest.
        count: batches, float32[sites].
        calibrated: those of them that calibration counted.
        waking: of a range that began without width, float32[2] (`learned_ranges.woken`).
        stretch: what the optimizer made of it, float32[2]; zeros where it does not learn.
    """

    low: tf.Tensor
    high: tf.Tensor
    count: tf.Tensor
    calibrated: tf.Tensor
    waking: tf.Tensor
    stretch: tf.Tensor


@dataclass(frozen=True)
class Rule:
    """How a range moves.

    Attributes:
        sites: calls that share it.
        site: whose batch it is.
        momentum: of moving averages.
        freeze_after: training steps after which it stays; None: never.
        learns: a gradient moves it, not the batches.
        rate: of that, in units of the optimizer's.
        from_zero: no value is below 0.
    """

    sites: int
    site: int
    momentum: float
    freeze_after: int | None
    learns: bool
    rate: float = 1.0
    from_zero: bool = False


class Ends(NamedTuple):
    """A range after a step.

    Attributes:
        low: float32[sites].
        high: float32[sites].
        free: of one that learns, float32[2], 1 for an end that has a gradient, 0 for one at 0 with no value
            beyond (a ReLU's lower end).
    """

    low: tf.Tensor
    high: tf.Tensor
    free: tf.Tensor | None = None


class Moved(NamedTuple):
    """What a step makes of a range that does not move all the time: its ends, and `State.count` and `waking`."""

    ends: Ends
    count: tf.Tensor
    waking: tf.Tensor


@one_node
def by_extremes(state: State, seen: Pair, rule: Rule) -> Moved:
    """One step of a range, by the smallest and the largest value of the batch, float32[] each."""
    return _moved(state, seen, rule)


@one_node_for_any(1)
def by_values(state: State, values: tf.Tensor, rule: Rule) -> Moved:
    """One step of a range that learns, by a batch, float32[n], which is looked at where it matters."""
    count = state.count + _here(rule)
    lowest, highest = _stretched(State(state.low, state.high, count, *state[3:]), rule)
    asks = [_counted(state.count, rule) < 0.5, _follows(state, rule), highest <= 0.0]
    if not rule.from_zero:
        asks.append(lowest >= 0.0)

    def looked_at() -> tuple[Ends, tf.Tensor]:
        ends, waking = _looked_at(state, values, rule)
        low, high = (tf.ensure_shape(end, (rule.sites,)) for end in ends[:2])
        return Ends(low, high, ends.free), waking

    def moved() -> tuple[Ends, tf.Tensor]:
        # A range that learned is one for all sites: nobody could say which of them a gradient was of.
        low, high = (tf.fill((rule.sites,), end) for end in (lowest, highest))
        return Ends(low, high, tf.stack([tf.cast(lowest < 0.0, tf.float32), 1.0])), state.waking

    ends, waking = tf.cond(tf.reduce_any(tf.stack(asks)), looked_at, moved)
    return Moved(ends, count, waking)


@aside
def _looked_at(state: State, values: tf.Tensor, rule: Rule) -> tuple[Ends, tf.Tensor]:
    ends, _, waking = _moved(state, extremes(values, from_zero=rule.from_zero), rule)
    return ends, waking


def _moved(state: State, seen: Pair, rule: Rule) -> Moved:
    here, following = _here(rule), _follows(state, rule)
    count = state.count + here
    steps = _counted(count, rule)
    # Adam's zero debias (Kingma and Ba, arXiv:1412.6980, section 3) as one step towards the new value: 1 at the
    # first.
    rate = (1.0 - rule.momentum) / (1.0 - tf.pow(rule.momentum, steps))
    # Either a gradient moves the ends or the batches do, not both.
    if rule.learns:  # the first batch starts a range that nothing calibrated
        rate = tf.where(steps <= 1.0, rate, 0.0)
    elif rule.freeze_after is not None:
        trained = steps - tf.reduce_sum(state.calibrated * here)
        moves = tf.logical_or(trained <= float(rule.freeze_after), steps <= 1.0)  # no range at all is worse
        rate = tf.where(moves, rate, 0.0)
    following = tf.logical_and(following, steps > 1.0)  # before the first batch there is no range at all
    # The range of the batch itself: an average would lag behind one that grows with every step.
    rate = tf.where(following, 1.0, rate)
    low, high = (now + here * rate * (value - now) for now, value in zip((state.low, state.high), seen, strict=True))
    if rule.learns:
        ends = _stretched(State(low, high, count, *state[3:]), rule)
        low, high = (tf.where(following, old, end) for old, end in zip((low, high), ends, strict=True))
    # Last, since it looks at the range that this batch left; of all sites together, as the encoding covers them.
    lowest, highest = whole(low, high)
    width = tf.maximum(highest, 0.0) - tf.minimum(lowest, 0.0)
    waking = tf.where(following, woken(state.waking, width, rule.sites), state.waking)
    return Moved(Ends(low, high, is_free(seen, lowest, highest)), count, waking)


def is_free(seen: Pair, low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    """float32[2]: see `Ends.free`.

    Args:
        seen: smallest and largest value of the batch, float32[].
        low: the end of the range, float32[].
        high: the other.
    """
    free = tf.minimum(seen[0], low) < 0.0, tf.maximum(seen[1], high) > 0.0
    return tf.cast(tf.stack(free), tf.float32)


@one_node
def pulled(low: tf.Tensor, high: tf.Tensor, free: tf.Tensor, spec: QuantSpec) -> tf.Tensor:
    """float32[2]: how far a stretch of 1 moves each end outwards.

    Args:
        low: float32[sites].
        high: float32[sites].
        free: see `Ends`.
        spec: the grid; of a symmetric one the end farther from 0 sets the scale, and the other has no gradient.
    """
    lowest, highest = whole(low, high)
    lowest, highest = tf.minimum(lowest, 0.0), tf.maximum(highest, 0.0)
    if spec.symmetric:
        free *= tf.cast(tf.stack([-lowest >= highest, highest > -lowest]), tf.float32)
    return free * (highest - lowest)


def is_learning(count: tf.Tensor, calibrated: tf.Tensor, freeze_after: int | None) -> tf.Tensor | bool:
    """Whether a range still learns in the step that has been counted last: bool[]."""
    return True if freeze_after is None else tf.reduce_max(count - calibrated) <= float(freeze_after)


def _stretched(state: State, rule: Rule) -> Pair:
    """Both ends as the optimizer moved them, float32[] each."""
    stretch = state.stretch
    if rule.freeze_after is not None:
        learning = is_learning(state.count, state.calibrated, rule.freeze_after)
        stretch = tf.where(learning, stretch, tf.zeros_like(stretch))
    return moved_ends(*whole(state.low, state.high), stretch * rule.rate)


def _here(rule: Rule) -> tf.Tensor:
    return tf.one_hot(rule.site, rule.sites)


def _counted(count: tf.Tensor, rule: Rule) -> tf.Tensor:
    """Batches of this site."""
    return tf.reshape(count, ()) if rule.sites == 1 else count[rule.site]


def _follows(state: State, rule: Rule) -> tf.Tensor:
    """bool[]: the range is that of each batch, as it has no width or had none until lately."""
    return tf.logical_or(is_dead(*whole(state.low, state.high)), state.waking[0] > 0.0)

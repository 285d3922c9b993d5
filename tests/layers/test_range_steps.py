"""Steps of ranges that learn: the short way, which does not look at the batch, against the long one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from kquant.core.spec import QuantSpec
from kquant.layers import range_steps
from kquant.layers.weight_learner import WeightLearner


@cache
def in_a_graph(rule: range_steps.Rule) -> Callable[..., range_steps.Moved]:
    return tf.function(lambda state, values: range_steps.by_values(state, values, rule), autograph=False)


ENDS = st.floats(-2.0, 2.0, width=32)


@given(
    ends=st.tuples(ENDS, ENDS),
    batch=st.lists(ENDS, min_size=3, max_size=3),
    stretch=st.tuples(ENDS, ENDS),
    counts=st.sampled_from([(0, 0), (1, 0), (1719, 1719), (1730, 1719)]),
    places=st.sampled_from([(1, 0), (2, 0), (2, 1), (3, 1)]),
    others=st.tuples(st.floats(-1.0, 1.0, width=32), st.sampled_from([0, 1])),
    waking=st.sampled_from([(0.0, 0.0), (3.0, 0.1)]),
    frozen=st.sampled_from([None, 4, 20]),
    from_zero=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_a_step_that_does_not_look_at_the_batch_is_the_same(
    ends, batch, stretch, counts, places, others, waking, frozen, from_zero
):
    """The short way is taken where it may be, and gives the same to the bit, also of a range of several calls."""
    sites, site = places
    values = np.maximum(batch, 0.0) if from_zero else np.array(batch)
    low, high = ([0.0, 0.0] if counts[0] == 0 else [min(ends), max(ends)]) if not from_zero else [0.0, max(*ends, 0.0)]
    # the other calls have ranges of their own, and may have seen this step's batch already
    low, high = ([end if n == site else end * others[0] for n in range(sites)] for end in (low, high))
    count = [counts[0] if n == site else counts[0] + others[1] for n in range(sites)]
    numbers = (low, high, count, [counts[1]] * sites, waking, stretch)
    state = range_steps.State(*(tf.constant(n, tf.float32) for n in numbers))
    rule = range_steps.Rule(sites, site, 0.99, frozen, learns=True, rate=0.5, from_zero=from_zero)
    seen = tuple(tf.constant(n, tf.float32) for n in ((0.0 if from_zero else values.min()), values.max()))
    ways = [
        range_steps.by_extremes(state, seen, rule),
        range_steps.by_values(state, tf.constant(values, tf.float32), rule),
        in_a_graph(rule)(state, tf.constant(values, tf.float32)),
    ]
    for other in ways[1:]:
        for one, two in zip(tf.nest.flatten(ways[0]), tf.nest.flatten(other), strict=True):
            np.testing.assert_array_equal(one, two)


def test_a_range_that_is_settled_asks_nothing_of_the_batch():
    """What a step costs: neither extremes of the tensor nor of the weights are looked for."""
    settled, first = (
        range_steps.State(*(tf.constant([n]) for n in (-1.0, 2.0, count, 0.0)), tf.zeros((2,)), tf.zeros((2,)))
        for count in (1800.0, 0.0)
    )
    rule = range_steps.Rule(1, 0, 0.99, None, learns=True)
    nothing = tf.constant([np.nan], tf.float32)  # would be in all that looks
    assert not any(np.isnan(n).any() for n in tf.nest.flatten(range_steps.by_values(settled, nothing, rule)))
    assert np.isnan(range_steps.by_values(first, nothing, rule).ends.high)
    learner = WeightLearner({"ranges": "learned"}, QuantSpec(8, True, True, True).to_config())
    learner.build((4, 2), (1, 2))
    reach = keras.Variable([[0.5, 1.0]], dtype="float32")

    def asked() -> tf.Tensor:
        raise LookupError("the weights were looked at")

    learner.move(reach, asked)
    reach.assign([[0.5, 0.0]])
    with pytest.raises(LookupError):
        learner.move(reach, asked)


def test_batches_of_any_size_are_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the batch is static each tensor has another size: `by_values` is traced for one of them."""
    traced, plain = [], range_steps._stretched
    monkeypatch.setattr(range_steps, "_stretched", lambda *given: traced.append(given) or plain(*given))
    rule = range_steps.Rule(1, 0, 0.9871, None, learns=True)  # no other test has it
    state = range_steps.State(*(tf.constant([n]) for n in (-1.0, 2.0, 9.0, 0.0)), tf.zeros((2,)), tf.zeros((2,)))
    counts = []
    for size in (3, 4, 5):
        step = tf.function(lambda values: range_steps.by_values(state, values, rule), autograph=False)
        step.get_concrete_function(tf.TensorSpec((size,), tf.float32))
        counts.append(len(traced))
    assert counts[0] > 0 and counts == [counts[0]] * 3

"""Training of ranges by every way: gradients in a graph against eager ones, steps in a loop against those outside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from kquant.core.spec import QuantSpec
from kquant.layers import loop_ranges, range_learner
from kquant.layers.nodes import FakeQuant

LEARNED = {"ranges": "learned"}
WIDE = {"progressive": {"from": 8, "steps": 4}}
ROBUST = {"robust": {"shift": 0.5}}
# what the recipe says, bits, steps after which ranges stay
WAYS: dict[str, tuple[dict[str, Any], int, int | None]] = {
    "moving, progressive weights": (WIDE, 8, None),  # 8 bits are no fewer than it starts with
    "moving, progressive": (WIDE, 4, None),
    "moving, robust": (ROBUST, 8, None),
    "fixed, robust": (ROBUST, 8, 0),
    "learned": (LEARNED, 8, None),
    "learned, progressive, frozen": ({**LEARNED, **WIDE}, 4, 2),
    "learned, frozen": (LEARNED, 8, 2),
    "pact": ({"ranges": "pact"}, 4, None),
    "pact, robust": ({"ranges": "pact", **ROBUST}, 8, None),
}
Y = tf.constant(np.random.default_rng(3).normal(0.4, 1.0, (40, 5)), tf.float32)
UPSTREAM = tf.constant(np.random.default_rng(4).normal(size=(40, 5)), tf.float32)


def node(way: str, low: float = -1.0, high: float = 1.5) -> FakeQuant:
    learning, bits, freeze_after = WAYS[way]
    layer = FakeQuant(QuantSpec(bits).to_config(), learning=learning, freeze_after=freeze_after)
    layer.set_range(0, low, high)
    return layer


def range_of(layer: FakeQuant) -> list[float]:
    return [float(layer.low[0]), float(layer.high[0])]


@pytest.mark.parametrize("way", WAYS)
def test_a_graph_has_the_gradients_of_eager_mode(way: str) -> None:
    """TensorFlow's kernel has gradients for its ends: where they come from the batch, none may pass to it."""
    made = []
    for wrapped in (False, True):
        layer = node(way)

        def step(y: tf.Tensor, layer: FakeQuant = layer) -> list[Any]:
            with tf.GradientTape() as tape:
                tape.watch(y)
                values = layer(y, training=True)[0]
            held = [layer.stretch.value] if layer.trainable_variables else []
            return [values, *tape.gradient(values, [y, *held], UPSTREAM)]

        run = tf.function(step, autograph=False) if wrapped else step
        made.append([[np.asarray(part) for part in run(factor * Y)] for factor in (1.0, 1.2, 0.9)])
    for number, (eager, graph) in enumerate(zip(*made, strict=True)):
        for ours, theirs in zip(eager, graph, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
        by_y = graph[1]
        largest = np.argmax(Y)
        assert by_y.flat[largest] == 0.0, f"the largest value is clipped in step {number}"
        assert set(np.unique(by_y[by_y != 0.0])) <= set(np.unique(UPSTREAM))


@pytest.mark.parametrize("low", [-1.0, 0.0])
@pytest.mark.parametrize("way", [way for way in WAYS if WAYS[way][0].get("ranges")])
def test_a_range_inside_a_loop_keeps_step_with_one_outside(way: str, low: float) -> None:
    """The test puts a change into `stretch` after every step, also after the last that learns, as Adam does."""
    outside, inside = node(way, low), node(way, low)
    held, learned = [], []
    for _ in range(6):
        made = []
        for layer in (outside, inside):
            with tf.GradientTape() as tape:
                if layer is outside:
                    values = layer(Y, training=True)[0]
                else:
                    loop_ranges.take_in([layer])
                    values = layer.ahead((), True, 5).values(Y)
            learned.append(bool(np.any(tape.gradient(values, layer.stretch.value, UPSTREAM) != 0.0)))
            used = range_of(layer)
            if layer is inside:
                layer.move_range(Y, 0)
                range_learner.open_ends(layer, Y)
            layer.stretch.assign([0.02, -0.03])
            made.append((values, used))
        # an end that was 0 is opened behind the loop, by a millionth of the width and so one step later
        if low:
            np.testing.assert_allclose(made[0][0], made[1][0], rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(made[0][1], made[1][1], rtol=1e-6)
        held.append(made[1][1])
    assert learned[::2] == learned[1::2]
    after = WAYS[way][2]
    assert learned[::2] == [after is None or number < after for number in range(6)]
    moved = [held[n] != held[n - 1] for n in range(1, 6)]  # the range in force at step n + 1 is another than at step n
    assert moved == [after is None or number < after for number in range(1, 6)]


@pytest.mark.parametrize("way", ["moving, progressive", "moving, robust", "fixed, robust"])
def test_grids_inside_a_loop_are_those_of_the_step(way: str) -> None:
    """The range is that of every batch, so that the grid tells the number of the step: its width, or the draw."""
    y = tf.concat([Y, tf.fill((1, 5), -4.0), tf.fill((1, 5), 4.0)], 0)
    outside, inside = node(way, -4.0, 4.0), node(way, -4.0, 4.0)
    for _ in range(5):
        values = inside.ahead((), True, 5).values(y)
        inside.move_range(y, 0)
        np.testing.assert_allclose(values, outside(y, training=True)[0], rtol=1e-5, atol=1e-5)


def test_no_end_opens_once_ranges_stay() -> None:
    layer = node("learned, frozen", 0.0, 1.5)
    for y in (tf.abs(Y), tf.abs(Y), Y, Y):
        loop_ranges.take_in([layer])
        layer.ahead((), True, 5)
        layer.move_range(y, 0)
        range_learner.open_ends(layer, y)
    assert range_of(layer) == [0.0, 1.5]


@pytest.mark.parametrize("low", [0.0, -1e-4, -0.5])
@pytest.mark.parametrize("rectifier", [tf.nn.relu, tf.nn.relu6])
@pytest.mark.parametrize("shape", [(40, 5), (4, 6, 5), (4, 3, 6, 5)])
def test_a_gradient_past_a_rectifier_is_the_one_through_it(shape: tuple, rectifier: Any, low: float) -> None:
    """In a graph both masks are one; eagerly nobody knows what made a tensor. Some values are at 6, some above."""
    rng = np.random.default_rng(5)
    x, upstream = (tf.constant(factor * rng.normal(size=shape), tf.float32) for factor in (4.0, 1.0))
    for high in (4.3, 7.1):
        made = []
        for wrapped in (False, True):
            layer = node("learned", low, high)

            def step(x: tf.Tensor, layer: FakeQuant = layer) -> list[Any]:
                with tf.GradientTape() as tape:
                    tape.watch(x)
                    values = layer(rectifier(x), attributes={"activation": "RELU"}, training=True)[0]
                return [values, *tape.gradient(values, [x, layer.stretch.value], upstream)]

            run = tf.function(step, autograph=False) if wrapped else step
            made.append([[np.asarray(part) for part in run(given)] for given in (x, tf.where(x > 9.0, np.inf, x))])
        for eager, graph in zip(*made, strict=True):
            np.testing.assert_array_equal(graph[0], eager[0])
            np.testing.assert_array_equal(graph[1], eager[1])
            np.testing.assert_allclose(graph[2], eager[2], rtol=1e-4, atol=1e-6)
            assert (graph[2][0] != 0.0) == (low < 0.0)
            assert graph[2][1] != 0.0

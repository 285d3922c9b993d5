"""One pass for many changed tensors: the same outputs as one pass for each, in as many calls as there are layers."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import kquant
from kquant.calibration import lost_signal
from kquant.calibration.stacked_runs import outputs_with, stacks
from kquant.graph.graph import trace
from kquant.layers.nodes import FakeQuant

layers = keras.layers
X = np.random.default_rng(0).normal(size=(100, 6, 6, 3)).astype(np.float32)


def net() -> keras.Model:
    """Residual blocks, what is read twice, and two outputs of which one ends early."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((6, 6, 3), name="image")
    x = layers.Conv2D(4, 1, activation="relu")(x)
    for _ in range(6):
        y = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
        x = layers.Add()([x, layers.Conv2D(4, 1)(y)])
    x = layers.Concatenate()([x, layers.MaxPooling2D(3, 1, padding="same")(x)])
    end = layers.Dense(3, name="end")(layers.Flatten()(x))
    return keras.Model(inputs, [layers.GlobalAveragePooling2D(name="early")(y), end])


@pytest.fixture(scope="module")
def model() -> lost_signal._Model:
    q = kquant.calibrate(kquant.quantize(net()), X, verbose=False)
    return lost_signal._Model(q, X[:8])


def suspects(model: lost_signal._Model) -> list:
    return [n for n in model.graph.nodes if isinstance(n.op, FakeQuant)]


def test_each_change_gives_what_it_gives_alone(model):
    nodes = suspects(model)
    assert stacks(model.graph) and len(nodes) > 12
    made = dict((id(node), alone) for node, alone in model.alone(nodes[::-1]))
    for node in nodes:
        assert made[id(node)] == pytest.approx(model.db(node, model._gridded(node)), abs=1e-2)
    assert len({round(alone, 1) for alone in made.values()}) > 8


def test_every_layer_is_called_once(model):
    nodes = suspects(model)
    found, calls = outputs_with(model.graph, model.values, [(n, model._gridded(n)) for n in nodes])
    assert calls <= len(model.graph.nodes)
    assert [[y.shape[0] for y in outputs] for outputs in found] == [[8, 8]] * len(nodes)
    end = next(n for n, node in enumerate(nodes) if node.op.name == "end_quant")
    np.testing.assert_array_equal(found[end][0], model.y[0])  # which does not read it
    assert np.any(np.asarray(found[end][1]) != model.y[1])


def test_few_at_a_time_where_tensors_are_large(model, monkeypatch):
    nodes = suspects(model)
    together = [alone for _, alone in model.alone(nodes)]
    monkeypatch.setattr(lost_signal, "HELD_BYTES", lost_signal.HELD_AT_ONCE * 8 * 6 * 6 * 8 * 4 * 2)
    before = model.calls
    parted = [alone for _, alone in model.alone(nodes)]
    np.testing.assert_allclose(parted, together, atol=1e-2)
    assert model.calls - before > len(model.graph.nodes)


def test_one_by_one_where_the_samples_are_not_the_first_axis(model, monkeypatch):
    x = keras.Input((6, 3))
    mixed = keras.Model(x, x - keras.ops.mean(x, axis=0))
    assert not stacks(trace(mixed, lambda op: not isinstance(op, keras.Model)))
    monkeypatch.setattr(lost_signal, "stacks", lambda graph: False)
    nodes = suspects(model)[:4]
    assert [alone for _, alone in model.alone(nodes)] == [model.db(n, model._gridded(n)) for n in nodes]


def test_in_mixed_precision_what_changes_has_the_type_of_the_rest():
    inputs = keras.Input((6, 6, 3))
    scores = layers.Conv2D(50, 3, padding="same", dtype="mixed_float16", name="scores")(inputs)
    mixed = keras.Model(inputs, keras.ops.argmax(scores, axis=-1))
    q = kquant.calibrate(kquant.quantize(mixed), X[:48], verbose=False)
    model = lost_signal._Model(q, X[:8])
    nodes = suspects(model)
    found, _ = outputs_with(model.graph, model.values, [(n, model._gridded(n)) for n in nodes])
    assert len(found) == len(nodes) and {y.dtype.name for outputs in found for y in outputs} == {"float16"}


def test_nothing_is_tried_for_tensors_of_which_nothing_would_be_told():
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((6, 6, 3))
    for _ in range(30):
        x = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    q = kquant.calibrate(kquant.quantize(keras.Model(inputs, x)), X, verbose=False)
    deep = lost_signal._Model(q, X[:8])
    alone = [db for _, db in deep.alone(suspects(deep)[: lost_signal.MOST_TENSORS])]
    assert sum(db < lost_signal.ENOUGH_DB for db in alone) > 1  # two passes for each, were remedies tried
    deep.calls = 0
    assert deep.losses() == []
    assert deep.calls <= len(deep.graph.nodes)


@pytest.mark.parametrize("samples", [1, 8])
def test_a_constant_has_one_row_for_all_samples(samples: int) -> None:
    """Cells and anchors of a detector, which a layer adds to what it read."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 1, activation="relu")(inputs)
    cells = np.random.default_rng(1).normal(size=(1, 6, 6, 4)).astype(np.float32)
    x = layers.Conv2D(4, 1)((x + cells) * cells)
    q = kquant.calibrate(kquant.quantize(keras.Model(inputs, x)), X, verbose=False)
    model = lost_signal._Model(q, X[:samples])
    nodes = suspects(model)
    rows = {int(model.values[id(t)].shape[0]) for node in model.graph.nodes for t in node.outputs[:1]}
    assert 1 in rows
    for node, alone in model.alone(nodes):
        assert alone == pytest.approx(model.db(node, model._gridded(node)), abs=1e-2)

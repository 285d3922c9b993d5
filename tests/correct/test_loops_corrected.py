"""Corrections of the kernels in the steps of loops: what they meet at all steps, and what the file computes then."""

from __future__ import annotations

import warnings

import contract
import keras
import numpy as np
import pytest
import tensorflow as tf

import kquant
from kquant.correct.sweep import Sweep
from kquant.graph.keras_private import every_layer
from kquant.layers.nodes import Compressed
from kquant.views.step_places import every_place

pytestmark = pytest.mark.filterwarnings("ignore:calibrate. the range differs more than 2 times")

layers = keras.layers
RNG = np.random.default_rng(0)
X = np.float32(np.cumsum(RNG.normal(size=(128, 9, 4)), 1) * 0.5)
CELLS = {
    "gru": lambda: layers.GRU(8, name="memory"),
    "simple": lambda: layers.SimpleRNN(8, name="memory"),
    "relu lstm": lambda: layers.LSTM(6, activation="relu", name="memory"),
}
VERBS = {
    "rounding": lambda q: kquant.adaround(q, X, iterations=150, verbose=False),
    "reach": lambda q: kquant.sequential_mse(q, X, candidates=8, verbose=False),
    "shift": lambda q: kquant.correct_bias(q, X, verbose=False),
}


def network(cell) -> keras.Model:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((9, 4), name="frames")
    return keras.Model(inputs, layers.Dense(3, name="head")(cell()(inputs)))


def quantized(model: keras.Model, target: str = "tflm") -> keras.Model:
    return kquant.calibrate(kquant.quantize(model, "int4-weights", target=target), X, verbose=False)


def compressed(q: keras.Model) -> list[Compressed]:
    return [layer for layer in every_layer(q) if isinstance(layer, Compressed)]


@pytest.mark.parametrize("what", sorted(VERBS))
@pytest.mark.parametrize(("cell", "target"), [("gru", "tflm"), ("simple", "litert"), ("relu lstm", "tflm")])
def test_every_kernel_is_corrected_and_the_file_computes_the_same(what, cell, target, tmp_path):
    q = quantized(network(CELLS[cell]), target)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none stays as it is
        VERBS[what](q)
    assert len(compressed(q)) > 2
    for layer in compressed(q):
        assert np.any(layer.correction(what).numpy()), layer.name
    q.save(tmp_path / "q.keras")
    again = keras.models.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(again.predict(X, verbose=0), q.predict(X, verbose=0))
    runtime = {"tflm": "tflm", "litert": "litert-reference"}[target]
    assert contract.compare(q, contract.file_of(q), runtime, [X[:16]]) == contract.Parity(1.0, 0)


@pytest.mark.parametrize("cell", ["simple", "relu lstm"])
def test_the_steps_of_a_recipe_bring_the_outputs_nearer(cell):
    model = network(CELLS[cell])
    wanted = model.predict(X, verbose=0)
    q = quantized(model)
    before = np.mean((q.predict(X, verbose=0) - wanted) ** 2)
    kquant.sequential_mse(q, X, verbose=False)
    kquant.adaround(q, X, iterations=300, verbose=False)
    assert np.mean((q.predict(X, verbose=0) - wanted) ** 2) < 0.8 * before


@pytest.mark.parametrize("quantize", [True, False])
def test_a_sweep_gives_what_a_step_reads_and_makes(quantize):
    """Of h U: the states that the loop gives, one step later, and their products."""
    model = network(lambda: layers.SimpleRNN(8, return_sequences=True, name="memory"))
    q = kquant.calibrate(kquant.quantize(model, target="litert"), X, verbose=False)
    sweep = Sweep("adaround", q, X[:32])
    inside, head = (p for p in every_place(sweep.graph) if p.name in ("memory_h_h", "head"))
    call = inside.calls[0]
    ((read_in, made),) = sweep.values(call, [call.inputs[0], call.outputs[0]], quantized=quantize)
    ((states,),) = sweep.values(head.calls[0], [head.calls[0].inputs[0]], quantized=quantize)
    assert not np.any(read_in[:, 0])
    np.testing.assert_allclose(read_in[:, 1:], states[:, :-1], atol=1e-6)
    if not quantize:
        np.testing.assert_allclose(states, model.get_layer("memory")(X[:32]), atol=1e-5)
    kernel = inside.layer.weights_on_grid() if quantize else inside.layer.weights_as_used()
    np.testing.assert_allclose(made, tf.matmul(read_in, kernel), atol=1e-5)


def test_a_shared_loop_is_corrected_for_both_its_calls():
    keras.utils.set_random_seed(1)
    a, b = keras.Input((9, 4), name="a"), keras.Input((9, 4), name="b")
    memory = layers.GRU(5, name="memory")
    model = keras.Model([a, b], layers.Dense(2, name="head")(layers.Add(name="add")([memory(a), memory(b)])))
    data = [X, X[::-1]]
    q = kquant.quantize(model, "int4-weights", target="tflm")
    q = kquant.calibrate(q, data, verbose=False)
    places = every_place(Sweep("adaround", q, data).graph)
    assert {len(place.calls) for place in places if "_h_" in place.name} == {2}
    kquant.adaround(q, data, iterations=60, verbose=False)
    assert all(np.any(layer.rounding.numpy()) for layer in compressed(q))

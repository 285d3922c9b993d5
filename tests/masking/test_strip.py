"""`kquant.strip`: what is left is Keras' own, computes the same, and loads where kquant is not installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras
import new_process
import numpy as np
import pytest
from keras import layers

import kquant
from kquant.graph.keras_private import every_layer

SHAPE = (6, 4)
X = np.float32(np.random.default_rng(0).normal(size=(5, *SHAPE)))
KINDS: dict[str, Callable[[keras.KerasTensor], keras.KerasTensor]] = {
    "batch_norm": lambda x: layers.BatchNormalization()(x),
    "separable": lambda x: layers.BatchNormalization()(layers.SeparableConv1D(3, 3, activation="relu")(x)),
    "lstm": lambda x: layers.LSTM(3)(x),
    "gru": lambda x: layers.GRU(3)(x),
    "bidirectional": lambda x: layers.Bidirectional(layers.SimpleRNN(3, return_sequences=True))(x),
    "attention": lambda x: layers.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True),
    "layer_norm": lambda x: layers.LayerNormalization()(x),
    "unit_norm": lambda x: layers.UnitNormalization()(x),
    "functions": lambda x: keras.ops.sqrt(keras.ops.maximum(x, 0.25)) - keras.ops.exp(x[:, ::2][:, :1]),
}
LOAD = """
import sys
sys.modules["kquant"] = None
import keras, numpy as np
folder = sys.argv[1]
x = np.load(folder + "/x.npy")
for name in sys.argv[2:]:
    model = keras.models.load_model(f"{folder}/{name}.keras")
    np.save(f"{folder}/{name}.npy", model(x))
"""


def model_of(name: str) -> keras.Model:
    """With statistics and offsets that a batch norm could have learned."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input(SHAPE, name="x")
    model = keras.Model(inputs, KINDS[name](inputs))
    rng = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            shapes = [w.shape for w in layer.get_weights()]
            layer.set_weights([np.float32(rng.uniform(0.5, 2.0, shape)) for shape in shapes])
    return model


@pytest.fixture(scope="module")
def stripped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[keras.Model, np.ndarray, np.ndarray]]:
    """By kind: the plain model, its outputs, and those of the saved one in a process without kquant."""
    folder = tmp_path_factory.mktemp("plain")
    np.save(folder / "x.npy", X)
    models = {name: kquant.strip(kquant.quantize(model_of(name))) for name in KINDS}
    for name, model in models.items():
        model.save(folder / f"{name}.keras")
    done = new_process.run(LOAD, folder, *KINDS)
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = {name: np.load(Path(folder) / f"{name}.npy") for name in KINDS}
    return {name: (model, np.asarray(model(X)), loaded[name]) for name, model in models.items()}


@pytest.mark.parametrize("name", KINDS)
def test_nothing_of_kquant_is_left(name: str, stripped: dict) -> None:
    model, outputs, loaded = stripped[name]
    assert not [type(x).__name__ for x in every_layer(model) if type(x).__module__.startswith("kquant")]
    np.testing.assert_allclose(outputs, model_of(name)(X), atol=2e-6)
    np.testing.assert_array_equal(outputs, loaded)


@pytest.mark.parametrize("kind", [layers.GRU, layers.LSTM])
def test_a_mask_stays_a_mask(kind: type[keras.layers.Layer], tmp_path: Path) -> None:
    """Keras has no layer that picks real steps: kquant's stays, and a saved model loads with it."""
    keras.utils.set_random_seed(3)
    parts = [layers.Masking(), kind(3, return_sequences=True), kind(3), layers.Dense(2)]
    model = keras.Sequential([keras.Input(SHAPE), *parts])
    x = X.copy()
    x[:, 4:] = x[1, 2:] = x[2] = 0.0
    plain = kquant.strip(kquant.quantize(model))
    ours = {type(y).__name__ for y in every_layer(plain) if type(y).__module__.startswith("kquant")}
    assert ours == {"NamedOutputs", "RealSteps"}  # the model and what is in it
    np.testing.assert_allclose(plain(x), model(x), atol=2e-6)
    plain.save(tmp_path / "plain.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "plain.keras")(x), plain(x))

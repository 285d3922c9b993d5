"""Functions of the user as activations: followed whatever they are called, or refused by the layer's name."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import kquant
from kquant.graph.copies import again
from kquant.graph.keras_private import every_layer
from kquant.ops.activation import TENSORFLOW, name_of

pytestmark = pytest.mark.filterwarnings(
    r"ignore:calibrate. \d+ samples are few",
)

X = np.float32(np.random.default_rng(0).normal(size=(16, 5)) * 3)


def tanh(x: Any) -> Any:
    return 3 * ops.tanh(x)


def leaky_relu(x: Any) -> Any:
    return ops.leaky_relu(x, 0.01)


def hard_sigmoid(x: Any) -> Any:
    """As Keras 2 had it."""
    return ops.clip(0.2 * x + 0.5, 0, 1)


def get(x: Any) -> Any:
    return ops.relu(x) - 1.0


def raw(x: Any) -> Any:
    return tf.raw_ops.Sin(x=x)


def ranked(x: Any) -> Any:
    return ops.sort(x)


class Swish(layers.Layer):
    """A layer without a rule or a config."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def call(self, x: Any) -> Any:
        return x * ops.sigmoid(self.beta * x)


FUNCTIONS = {
    "tanh": lambda: tanh,
    "leaky_relu": lambda: leaky_relu,
    "hard_sigmoid": lambda: hard_sigmoid,
    "get": lambda: get,
    "lambda": lambda: lambda x: 2 * x * x,
    "ops.gelu": lambda: ops.gelu,
    "partial": lambda: functools.partial(keras.activations.relu, max_value=2.0, negative_slope=0.1),
    "LeakyReLU": lambda: layers.LeakyReLU(0.4),
    "PReLU": lambda: layers.PReLU(alpha_initializer="uniform"),
    "layer": lambda: Swish(1.5),
    "tf.nn.gelu": lambda: tf.nn.gelu,
}
LAYERS = {
    "Activation": lambda f: layers.Activation(f, name="layer"),
    "Dense": lambda f: layers.Dense(4, activation=f, name="layer"),
    "TimeDistributed": lambda f: layers.TimeDistributed(layers.Dense(4, activation=f), name="layer"),
    "SeparableConv1D": lambda f: layers.SeparableConv1D(4, 1, activation=f, name="layer"),
    "EinsumDense": lambda f: layers.EinsumDense("abc,cd->abd", (None, 4), activation=f, name="layer"),
    "GRU": lambda f: layers.GRU(3, activation=f, recurrent_activation=f, name="layer"),
}


def model_of(layer: Any) -> keras.Model:
    keras.utils.set_random_seed(1)
    x = keras.Input((5,), name="x")
    y = x if isinstance(layer, layers.Activation | layers.Dense) else layers.Reshape((1, 5))(x)
    return keras.Model(x, layers.Flatten()(layer(y)), name="net")


def apart(a: keras.Model, b: keras.Model) -> float:
    return float(np.abs(np.asarray(a(X)) - np.asarray(b(X))).max())


@pytest.mark.parametrize("function", FUNCTIONS)
def test_any_function_computes_what_it_says(function: str) -> None:
    for layer in ("Activation", "Dense"):
        model = model_of(LAYERS[layer](FUNCTIONS[function]()))
        assert apart(model, kquant.fold(model)) < 1e-5, layer


@pytest.mark.parametrize("layer", LAYERS)
def test_any_layer_takes_one_of_the_users(layer: str) -> None:
    model = model_of(LAYERS[layer](tanh))
    assert apart(model, kquant.fold(model)) < 1e-5


def test_a_bound_still_fuses_and_the_file_agrees(tmp_path: Any) -> None:
    q = kquant.quantize(model_of(LAYERS["Dense"](hard_sigmoid)))
    kquant.calibrate(q, X, verbose=False)
    report = kquant.export(q, tmp_path / "m.tflite", check_runtimes=False)
    assert report.operators == {"FULLY_CONNECTED": 1}
    agreement = kquant.verify(q, tmp_path / "m.tflite", X, runtime="litert-reference").agreements[0]
    assert agreement.equal == 1.0


def test_only_a_built_in_goes_by_its_name() -> None:
    for name in ("relu", "leaky_relu", "silu", "gelu", "hard_sigmoid", "mish", "softmax"):
        assert name_of(keras.activations.get(name)) == name
    assert name_of(keras.activations.get("swish")) == "silu" and name_of(None) == "linear"
    assert [name_of(f) for f in (tanh, get, ops.gelu, keras.activations.get, layers.LeakyReLU())] == [None] * 5


@pytest.mark.parametrize("name", TENSORFLOW)
def test_tensorflows_function_is_the_one_of_the_same_name(name: str) -> None:
    function = getattr(tf.nn, name)
    assert name_of(function) == name
    np.testing.assert_allclose(function(X), keras.activations.get(name)(X), atol=1e-6)


@pytest.mark.parametrize("layer", ["Activation", "Dense"])
def test_what_cannot_be_followed_is_refused_by_name(layer: str) -> None:
    for function, said in ((raw, r"layer.*cannot be followed on symbolic"), (ranked, r"layer.*no int8 kernel sorts")):
        with pytest.raises(ValueError, match=said):
            kquant.quantize(model_of(LAYERS[layer](function)))


@pytest.mark.parametrize("layer", LAYERS)
def test_copies_keep_the_function(layer: str) -> None:
    """Its name alone is in the config, and would be read as Keras' own."""
    old = model_of(LAYERS[layer](tanh)).get_layer("layer")
    new = again(old)
    inside = [f for each in every_layer(new) for name, f in vars(each).items() if name.endswith("activation")]
    assert tanh in inside and keras.activations.tanh not in inside
    model = model_of(LAYERS[layer](tanh))
    assert apart(model, kquant.strip(model)) < 1e-6

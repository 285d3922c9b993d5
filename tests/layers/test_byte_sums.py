"""Sums of bytes in the graphs of `predict`: where they are used, the codes are those of the file and of floats."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from support import contract

import kquant
from kquant.graph import by_xla, held_constants
from kquant.layers import byte_sums

pytestmark = pytest.mark.filterwarnings("ignore:calibrate. ")
RNG = np.random.default_rng(5)
X = np.float32(RNG.uniform(0, 1, (24, 9, 9, 3)))  # from 0 on, as images
EITHER = np.float32(RNG.normal(size=X.shape))
Make = Callable[[Any], Any]
# What a network is of, its inputs, and how many of its convolutions sum bytes.
NETWORKS: dict[str, tuple[Make, np.ndarray, int]] = {
    "same": (lambda x: layers.Conv2D(8, 3, padding="same", activation="relu")(x), X, 1),
    "strides": (lambda x: layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(x), X, 1),
    "depthwise": (lambda x: layers.DepthwiseConv2D(3, strides=2, padding="same", activation="relu6")(x), X, 1),
    "both signs, no border": (lambda x: layers.Conv2D(8, 3)(layers.Conv2D(6, 1)(x)), EITHER, 2),
    "both signs, depthwise": (lambda x: layers.DepthwiseConv2D(3)(x), EITHER, 1),
    "both signs, border": (lambda x: layers.Conv2D(8, 3, padding="same")(x), EITHER, 0),
    "residual": (lambda x: layers.ReLU()(layers.Add()([layers.Conv2D(3, 1)(x), x])), X, 1),
    "behind a sum": (lambda x: layers.Conv2D(4, 1)(layers.Add()([layers.Conv2D(3, 1)(x), x])), EITHER, 2),
    "groups": (lambda x: layers.Conv2D(6, 3, groups=3)(x), X, 0),
    "dilation": (lambda x: layers.Conv2D(6, 3, dilation_rate=2)(x), X, 0),
    "multiplier": (lambda x: layers.DepthwiseConv2D(3, depth_multiplier=2)(x), X, 0),
    "pooled": (lambda x: layers.Conv2D(4, 3)(layers.MaxPooling2D(2)(layers.Conv2D(4, 3, activation="relu")(x))), X, 1),
    "wide": (lambda x: layers.Conv2D(2, 3, padding="same", kernel_initializer="ones")(wide(x)), X, 1),
}


def wide(x: Any) -> Any:
    """600 channels: 9 of their codes each may sum to more than 2**24."""
    return layers.Conv2D(600, 1, activation="relu")(x)


@pytest.fixture(params=["graph", "by XLA"])
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With what stands between convolutions compiled at once, or never."""
    monkeypatch.setattr(held_constants, "MANY", 0 if request.param == "by XLA" else 10**9)
    monkeypatch.setattr(by_xla, "FEW", 0)
    return request.param


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Of each convolution that is traced whether it sums bytes."""
    byte_sums.are_exact()  # what it asks is traced, too
    noted: list[bool] = []
    summed = byte_sums._summed

    def noting(*args: Any) -> tf.Tensor:
        noted.append(True)
        return summed(*args)

    monkeypatch.setattr(byte_sums, "_summed", noting)
    yield noted


def quantized(make: Make, x: np.ndarray, recipe: Any = "int8") -> keras.Model:
    keras.utils.set_random_seed(3)
    inputs = keras.Input(x.shape[1:], name="image")
    model = keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(make(inputs))))
    for layer in model.layers:  # biases of trained networks are not 0
        if getattr(layer, "bias", None) is not None:
            layer.bias.assign(RNG.normal(size=layer.bias.shape) * 0.3)
    return kquant.calibrate(kquant.quantize(model, recipe), x, verbose=False)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_codes_of_the_file(name: str, by: str, used: list[bool]) -> None:
    make, x, count = NETWORKS[name]
    q = quantized(make, x)
    made = [q.predict(x, batch_size=8, verbose=0) for _ in range(3)][-1]
    assert (getattr(q, "xla", {})["predict_function"].function is not None) == (by == "by XLA")
    graphs = 1 if by == "graph" else 2
    assert len(used) == (count * graphs if byte_sums.are_exact() else 0)
    np.testing.assert_array_equal(made, q(x, training=False))
    assert contract.parity(contract.file_of(q), "litert-reference", [x], [made]).equal == 1.0


@pytest.mark.filterwarnings("ignore:quantize. activations of 4 bits are simulated only")
@pytest.mark.parametrize(
    "bits", [{"activations": {"bits": 4}}, {"weights": {"bits": 4}}, {"activations": {"bits": 16}}]
)
def test_other_widths(bits: dict[str, Any], by: str, used: list[bool]) -> None:
    q = quantized(NETWORKS["residual"][0], X, {"name": "other", **bits})
    made = [q.predict(X, batch_size=8, verbose=0) for _ in range(3)][-1]
    np.testing.assert_array_equal(made, q(X, training=False))
    assert bool(used) == (byte_sums.are_exact() and bits != {"activations": {"bits": 16}})


def test_sums_that_float32_cannot_hold_are_left_to_floats(used: list[bool]) -> None:
    conv = layers.Conv2D(2, 3, padding="same")
    conv.build((None, 4, 4, 600))

    def sums(codes: float) -> Any:
        held = tf.fill(conv.kernel.shape, codes)
        steps, point = tf.ones((1, 4, 4, 600)) * 255.0, tf.constant(-128.0)
        with held_constants.constants():
            run = tf.function(lambda y: byte_sums.byte_sums(conv, y, point, held, None), autograph=False)
            made = run(steps)
        return None if made is None else made.numpy().max()

    if byte_sums.are_exact():
        assert sums(12.0) == 255 * 12 * 9 * 600
    assert sums(13.0) is None


def test_it_is_asked_inside_of_a_graph_too() -> None:
    asked = byte_sums.are_exact.__wrapped__
    assert bool(tf.function(lambda: tf.constant(asked()), autograph=False)()) == asked()


def test_a_processor_that_sums_otherwise(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those do that clip two products to 16 bits."""
    monkeypatch.setattr(byte_sums, "are_exact", byte_sums.are_exact.__wrapped__)
    summed = byte_sums._summed
    monkeypatch.setattr(byte_sums, "_summed", lambda *args: tf.minimum(summed(*args), 2**15 - 1))
    assert not byte_sums.are_exact()
    q = quantized(NETWORKS["same"][0], X)
    np.testing.assert_array_equal(q.predict(X, batch_size=8, verbose=0), q(X, training=False))


def test_without_kernels(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where oneDNN is off: TensorFlow tells it when the graph runs."""
    monkeypatch.setattr(byte_sums, "are_exact", byte_sums.are_exact.__wrapped__)

    def refused(*_: Any) -> tf.Tensor:
        raise tf.errors.InvalidArgumentError(None, None, "No OpKernel was registered")

    monkeypatch.setattr(byte_sums, "_summed", refused)
    assert not byte_sums.are_exact()
    q = quantized(NETWORKS["same"][0], X)
    np.testing.assert_array_equal(q.predict(X, batch_size=8, verbose=0), q(X, training=False))

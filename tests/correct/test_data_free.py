"""Ranges without data: closed forms where there are some, the synthetic batch elsewhere, and whole recipes of steps."""

from __future__ import annotations

import math
import warnings
from typing import Any

import keras
import numpy as np
import pytest

import kquant
from kquant.layers.nodes import Compressed, FakeQuant, encodings_of

layers = keras.layers
X = np.random.default_rng(0).uniform(-1, 1, (32, 6, 6, 2)).astype("float32")
SPAN = {"input_range": (-1.0, 1.0), "verbose": False}


def settle(model: keras.Model, seed: int = 0) -> keras.Model:
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.gamma.assign(rng.normal(size=layer.gamma.shape))
            layer.beta.assign(rng.normal(size=layer.beta.shape))
    return model


def ranges(q: keras.Model) -> dict[str, tuple[float, float]]:
    found = [layer for layer in encodings_of(q) if layer.has_range]
    return {n.name.removesuffix("_quant"): (float(n.low.numpy().min()), float(n.high.numpy().max())) for n in found}


def moments(q: keras.Model, name: str) -> tuple[np.ndarray, np.ndarray]:
    layer: Compressed = q.get_layer(name)
    return layer.mean.numpy().astype(np.float64), layer.deviation.numpy().astype(np.float64)


def conv(x: Any, name: str, norm: bool = True) -> Any:
    y = layers.Conv2D(3, 1, name=name)(x)
    return layers.BatchNormalization()(y) if norm else y


def branches() -> keras.Model:
    """Everything: bare, clipped, a sum, a concatenation, a layer without statistics, a fixed encoding."""
    inputs = [keras.Input((6, 6, 2), name=name) for name in ("u", "v")]
    a, b = conv(inputs[0], "a"), conv(inputs[1], "b")
    total = layers.Add(name="sum")([a, b])
    rest = layers.ReLU(name="cut")(total)
    clip = layers.ReLU(6.0, name="clip")(conv(rest, "c"))
    both = layers.Concatenate(name="both")([clip, conv(rest, "plain", norm=False)])
    y = layers.Dense(4, activation="softmax", name="head")(layers.GlobalAveragePooling2D(name="pool")(both))
    return settle(keras.Model(inputs, y))


@pytest.fixture(scope="module")
def q() -> keras.Model:
    q = kquant.quantize(branches())
    return kquant.data_free_ranges(q, input_range={"u": (-1.0, 1.0), "v": (-2.0, 2.0)}, samples=128, verbose=False)


def test_inputs_take_what_is_given(q: keras.Model) -> None:
    assert ranges(q)["u"] == (-1.0, 1.0)
    assert ranges(q)["v"] == (-2.0, 2.0)


def test_a_layer_with_statistics(q: keras.Model) -> None:
    for name in ("a", "b"):
        mean, deviation = moments(q, name)
        expected = (mean - 6 * deviation).min(), (mean + 6 * deviation).max()
        np.testing.assert_allclose(ranges(q)[name], expected, rtol=1e-5)


def test_sum_and_its_relu(q: keras.Model) -> None:
    """Of independent terms; the batch of 128 x 36 values tells it within some per cent."""
    (m, s), (n, t) = moments(q, "a"), moments(q, "b")
    high = (m + n + 6 * np.sqrt(s**2 + t**2)).max()
    assert ranges(q)["cut"][0] == 0.0
    np.testing.assert_allclose(ranges(q)["cut"][1], high, rtol=0.05)


def test_clip_and_concatenation(q: keras.Model) -> None:
    """They share one encoding: the clipped branch reaches its bound, the other what the batch shows."""
    mean, deviation = moments(q, "c")
    shared: FakeQuant = next(n for n in encodings_of(q) if n.has_range and n.sites == 2)
    lows, highs = shared.low.numpy(), shared.high.numpy()
    clipped = min(6.0, float((mean + 6 * deviation).max()))
    assert any(math.isclose(high, clipped, rel_tol=1e-5) and low == 0.0 for low, high in zip(lows, highs, strict=True))
    assert lows.min() < 0.0


def test_all_are_seen_and_fixed_ones_stay(q: keras.Model) -> None:
    assert all(np.all(n.count.numpy() > 0) for n in encodings_of(q) if n.has_range)
    head = q.layers[-1]
    assert head.fixed == (1 / 256, -128)


def test_the_same_seed_gives_the_same_ranges(q: keras.Model) -> None:
    again = kquant.quantize(branches())
    again.set_weights(q.get_weights())
    span = {"u": (-1.0, 1.0), "v": (-2.0, 2.0)}
    kquant.data_free_ranges(again, input_range=span, samples=128, verbose=False)
    assert ranges(again) == ranges(q)
    kquant.data_free_ranges(again, input_range=span, samples=128, seed=1, verbose=False)
    assert ranges(again) != ranges(q)
    kquant.data_free_ranges(again, input_range=span, sigmas=3.0, verbose=False)
    assert ranges(again)["cut"][1] < ranges(q)["cut"][1]


def test_a_layer_without_statistics_against_its_weights() -> None:
    """W E[x] + b and W^2 Var[x] of normalised inputs, 6 deviations to each side."""
    x = keras.Input((6, 6, 2), name="x")
    model = settle(keras.Model(x, layers.Conv2D(4, 1, name="d")(conv(x, "a"))))
    q = kquant.data_free_ranges(kquant.quantize(model), samples=256, **SPAN)
    mean, deviation = moments(q, "a")
    kernel = q.get_layer("d").weights_as_used().numpy()[0, 0].astype(np.float64)
    x = q.get_layer("a").layer.kernel.numpy()[0, 0]
    x = x * (np.sign(q.get_layer("a").gain.numpy()[0, 0]) * deviation / np.linalg.norm(x, axis=0))
    spread = np.sqrt(np.diag(kernel.T @ (x.T @ x) @ kernel))  # two inputs make three channels: they go together
    expected = (mean @ kernel - 6 * spread).min(), (mean @ kernel + 6 * spread).max()
    np.testing.assert_allclose(ranges(q)["d"], expected, rtol=0.05)


def test_only_a_relu_ends_a_range_at_zero() -> None:
    """A synthetic batch of logits may lie below zero as a whole; those of real samples need not."""
    x = keras.Input((4,), name="x")
    model = keras.Model(x, layers.Dense(2, name="d")(x))
    model.get_layer("d").kernel.assign(np.eye(4, 2))
    model.get_layer("d").bias.assign([-2.0, -2.0])
    q = kquant.data_free_ranges(kquant.quantize(model), **SPAN)
    np.testing.assert_allclose(ranges(q)["d"], (-2 - 6 / 3**0.5, -2 + 6 / 3**0.5), rtol=0.2)


# Inputs


def one_input(first: Any = None, dtype: str = "float32", channels: int = 2) -> keras.Model:
    x = inputs = keras.Input((4, 4, channels), dtype=dtype, name="image")
    x = x if first is None else first(x)
    return keras.Model(inputs, layers.Conv2D(2, 3, padding="same", name="conv")(x))


def test_input_range_is_required_where_nothing_tells_it() -> None:
    q = kquant.quantize(one_input())
    with pytest.raises(ValueError, match=r"which values the input 'image' takes. Pass input_range"):
        kquant.data_free_ranges(q, verbose=False)
    with pytest.raises(ValueError, match="no input is called 'picture'"):
        kquant.data_free_ranges(q, input_range={"picture": (0, 1)}, verbose=False)
    with pytest.raises(ValueError, match="lowest < highest"):
        kquant.data_free_ranges(q, input_range=(1, 0), verbose=False)
    with pytest.raises(ValueError, match="not a quantized model"):
        kquant.data_free_ranges(one_input(), input_range=(0, 1), verbose=False)


PAIR = "input_range of 'image' must be two numbers, (lowest, highest)"
FINITE = "input_range of 'image' must be finite, and lowest < highest"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("samples", 0, "samples must be an int of 1 or more. Received: 0."),
        ("samples", 1.5, "samples must be an int of 1 or more. Received: 1.5."),
        ("sigmas", 0, "sigmas must be a finite number above 0. Received: 0."),
        ("sigmas", -1.0, "sigmas must be a finite number above 0. Received: -1.0."),
        ("sigmas", "six", "sigmas must be a finite number above 0. Received: 'six'."),
        ("input_range", 5, f"{PAIR}. Received: 5."),
        ("input_range", (1, 2, 3), f"{PAIR}. Received: (1, 2, 3)."),
        ("input_range", "01", f"{PAIR}. Received: '01'."),
        ("input_range", {"image": 5}, f"{PAIR}. Received: 5."),
        ("input_range", (0, math.inf), f"{FINITE}. Received: (0, inf)."),
    ],
)
def test_arguments_that_give_no_range_are_named(option: str, value: Any, message: str) -> None:
    q = kquant.quantize(one_input())
    before = [np.array(w) for w in q.get_weights()]
    with pytest.raises(ValueError) as refused:
        kquant.data_free_ranges(q, **{**SPAN, option: value})
    assert str(refused.value) == f"data_free_ranges: {message}"
    for old, new in zip(before, q.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("model", ["bytes", "rescaled"])
def test_bytes_are_known(model: str) -> None:
    rescaling = layers.Rescaling(1 / 127.5, offset=-1.0)  # before a padding layer it is not folded
    q = kquant.quantize(one_input(dtype="uint8") if model == "bytes" else one_input(rescaling))
    kquant.data_free_ranges(q, verbose=False)
    assert ranges(q)["image"] == (0.0, 255.0)


def test_tables_and_recurrent_layers() -> None:
    """Whole numbers as inputs; the cell state inside a layer gets a range too."""
    x = keras.Input((5,), dtype="int32", name="words")
    model = keras.Model(x, layers.Dense(2)(layers.LSTM(4, name="lstm")(layers.Embedding(7, 3)(x))))
    q = kquant.quantize(model)
    kquant.data_free_ranges(q, input_range=(0, 6), verbose=False)
    assert all(np.all(n.count.numpy() > 0) and n.high.numpy().max() > 0 for n in encodings_of(q) if n.has_range)


# Steps together


def chain() -> keras.Model:
    inputs = keras.Input((6, 6, 2), name="image")
    x = layers.ReLU()(conv(inputs, "a"))
    x = layers.ReLU()(layers.BatchNormalization()(layers.DepthwiseConv2D(3, name="deep")(x)))
    x = layers.ReLU()(conv(x, "b"))
    return settle(keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(x))))


STEPS = [{"name": "equalize"}, {"name": "data-free", "input_range": [-1, 1]}, {"name": "bias", "method": "analytic"}]


def test_a_recipe_without_data_in_every_step(tmp_path: Any) -> None:
    recipe = {"name": "no-data", "weights": {"per_axis": False}, "steps": STEPS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = kquant.compress(chain(), X, recipe, path=tmp_path / "m.tflite", verbose=False)
    y = made.model(X[:8]).numpy()
    np.testing.assert_array_equal(kquant.predict(tmp_path / "m.tflite", X[:8], "litert-reference"), y)
    assert made.model.get_layer("head").shift.numpy().any()
    made.model.save(tmp_path / "m.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "m.keras")(X[:8]).numpy(), y)


@pytest.mark.parametrize("wrong", [{"name": "data-free", "sigma": 3}, {"name": "equalise"}])
def test_mistakes_in_steps_are_named(wrong: dict[str, Any], tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="Did you mean"):
        kquant.compress(chain(), X, {"name": "no", "steps": [wrong]}, path=tmp_path / "m.tflite")

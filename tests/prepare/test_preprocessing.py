"""`kquant.split_preprocessing`: what scales a model's inputs leaves it, and both parts are the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import kquant
from kquant.graph.keras_private import every_layer

layers = keras.layers
Model = keras.Model
rng = np.random.default_rng(0)
SPREAD = np.float32([1.0, 50.0, 3000.0])
ROWS = np.float32(rng.normal(size=(32, 3))) * SPREAD + np.float32([0.0, 20.0, 500.0])


def norm() -> keras.layers.Layer:
    return layers.Normalization(mean=[0.0, 20.0, 500.0], variance=list(SPREAD**2.0))


def trained_batch_norm() -> keras.layers.Layer:
    layer = layers.BatchNormalization()
    layer.build((None, 3))
    layer.moving_mean.assign([0.0, 20.0, 500.0])
    layer.moving_variance.assign(SPREAD**2)
    return layer


class Subclassed(Model):
    """A model whose `call` scales before it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.dense = norm(), layers.Dense(2)
        self.norm.build((None, 3))

    def call(self, x: Any) -> Any:
        return self.dense(self.norm(x))


def chain(*first: Callable[[Any], Any]) -> Model:
    x = inputs = keras.Input((3,), name="sensors")
    for function in first:
        x = function(x)
    return Model(inputs, layers.Dense(2)(layers.Dense(4, activation="relu")(x)))


def subclassed() -> Model:
    model = Subclassed()
    model(ROWS[:1])
    return model


def two_inputs() -> Model:
    inputs = {"a": keras.Input((3,), name="a"), "b": keras.Input((3,), name="b")}
    return Model(inputs, layers.Dense(2)(layers.Concatenate()([norm()(inputs["a"]), inputs["b"]])))


def read_twice() -> Model:
    inputs = keras.Input((3,), name="sensors")
    return Model(inputs, layers.Concatenate()([layers.Dense(2)(norm()(inputs)), layers.Dense(2)(inputs)]))


SPLIT: dict[str, Callable[[], Model]] = {
    "Normalization": lambda: chain(norm()),
    "Rescaling": lambda: chain(layers.Rescaling(list(1 / SPREAD))),
    "BatchNormalization": lambda: chain(trained_batch_norm()),
    "constants": lambda: chain(lambda x: (x - np.float32([0.0, 20.0, 500.0])) / SPREAD),
    "a logarithm": lambda: chain(lambda x: keras.ops.log1p(keras.ops.abs(x)), norm()),
    "two of them": lambda: chain(layers.Rescaling(0.1), norm()),
    "columns apart": lambda: chain(
        lambda x: layers.Concatenate()([x[:, :1], x[:, 1:] * np.float32([1 / 50, 1 / 3000])])
    ),
    "nested": lambda: keras.Sequential([keras.Input((3,)), chain(norm())]),
    "subclassed": subclassed,
    "two inputs in a dict": two_inputs,
    "read by two": read_twice,
}


@pytest.mark.parametrize("name", SPLIT)
def test_both_parts_are_the_model(name: str, tmp_path: Path) -> None:
    model = SPLIT[name]()
    x = {"a": ROWS, "b": ROWS} if name == "two inputs in a dict" else ROWS
    before, y = [w.copy() for w in model.get_weights()], np.asarray(model(x))
    split = kquant.split_preprocessing(model)
    assert split.moved
    for part in ("preprocessing", "model"):
        getattr(split, part).save(tmp_path / f"{part}.keras")
    again = [keras.models.load_model(tmp_path / f"{part}.keras") for part in ("preprocessing", "model")]
    for first, second in ((split.preprocessing, split.model), again):
        np.testing.assert_allclose(np.asarray(second(first(x))), y, rtol=1e-4, atol=1e-5)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    kept = {type(layer).__name__ for layer in every_layer(split.model)}
    assert not kept & {"Normalization", "Rescaling", "BatchNormalization"}


def test_names_and_structure_of_inputs_stay() -> None:
    assert kquant.split_preprocessing(chain(norm())).model.inputs[0].name == "sensors"
    split = kquant.split_preprocessing(two_inputs())
    assert set(split.preprocessing({"a": ROWS, "b": ROWS})) == {"a", "b"}


def test_nothing_to_split_is_said() -> None:
    with pytest.raises(ValueError, match=r"scales no input .* input 'sensors' is read by dense\w* \(Dense\)"):
        kquant.split_preprocessing(chain())


def test_what_is_split_keeps_its_accuracy() -> None:
    model = chain(norm())
    split = kquant.split_preprocessing(model)
    x = split.preprocessing.predict(ROWS, verbose=0)
    q = kquant.calibrate(kquant.quantize(split.model), x, verbose=False)
    y = np.asarray(model(ROWS))
    assert 10 * np.log10(np.var(y) / np.mean((y - q.predict(x, verbose=0)) ** 2)) > 30


@pytest.mark.parametrize("name", ["Normalization", "Rescaling", "BatchNormalization", "constants", "nested"])
def test_check_advises_to_scale_columns_of_unlike_scale_outside(name: str) -> None:
    (said,) = kquant.check(SPLIT[name]()).advice
    assert "input 'sensors'" in said or name == "nested"
    assert "kquant.split_preprocessing" in said
    assert "split_preprocessing" in kquant.report.render(kquant.check(SPLIT[name]()))


def test_check_has_no_advice_for_inputs_of_one_scale() -> None:
    pixels = layers.Normalization(mean=[123.0, 116, 103], variance=[3400.0, 3200, 3300])
    assert not kquant.check(chain(pixels)).advice
    assert not kquant.check(chain(layers.Rescaling(1 / 255))).advice
    assert not kquant.check(chain(layers.BatchNormalization())).advice

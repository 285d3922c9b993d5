"""`training=True` written into a `call`: what Keras' own `predict` makes of it, kquant follows or refuses."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import kquant

pytestmark = pytest.mark.filterwarnings(
    r"ignore:`build\(\)` was called on layer",
)

X = np.float32(np.random.default_rng(0).normal(size=(16, 5)))
# The body of `call`: whether `predict` then depends on the other samples of the batch.
BODIES = {
    "literal": ("head(norm(first(x), training=True))", True),
    "through a model": ("head(tower(first(x), training=True))", True),
    "recorded in a model": ("head(branch(first(x)))", True),
    "inherited by the next layer": ("head(norm(drop(first(x), training=True)))", True),
    "default of a custom layer": ("head(careless(first(x)))", True),
    "literal False": ("head(norm(first(x), training=False))", False),
    "none": ("head(norm(first(x)))", False),
    "frozen": ("head(frozen(first(x), training=True))", False),
}


class Careless(layers.Layer):
    def __init__(self) -> None:
        super().__init__(name="careless")
        self.norm = layers.BatchNormalization(name="norm_inside")

    def call(self, x: Any, training: bool = True) -> Any:
        return self.norm(x)


def _branch() -> keras.Model:
    x = keras.Input((4,))
    return keras.Model(x, layers.BatchNormalization(name="norm_of_branch")(x, training=True), name="branch")


class Written(keras.Model):
    """Its `call` is the text."""

    def __init__(self, text: str) -> None:
        super().__init__(name="net")
        self.text = text
        self.parts = {
            "first": layers.Dense(4, name="first"),
            "norm": layers.BatchNormalization(name="norm"),
            "drop": layers.Dropout(0.0, name="drop"),
            "tower": keras.Sequential([keras.Input((4,)), layers.BatchNormalization(name="norm_of_tower")]),
            "branch": _branch(),
            "careless": Careless(),
            "frozen": layers.BatchNormalization(name="frozen", trainable=False),
            "head": layers.Dense(2, name="head"),
        }
        self.listed = list(self.parts.values())

    def call(self, x: Any) -> Any:
        return eval(self.text, {**self.parts, "x": x})


class Told(Written):
    """It takes `training`, which then comes from `predict`."""

    def call(self, x: Any, training: bool | None = None) -> Any:
        return eval(self.text, {**self.parts, "x": x, "training": training})


def made(cls: type, text: str) -> keras.Model:
    keras.utils.set_random_seed(3)
    model = cls(text)
    model(X[:2])
    for v in model.variables:
        if "moving" in v.path:
            v.assign(v + 0.5)
    return model


def by_batch(model: keras.Model) -> bool:
    """True where a sample's result depends on the other samples."""
    alone = np.concatenate([model.predict(X[i : i + 1], verbose=0) for i in range(2)])
    return bool(np.abs(model.predict(X, verbose=0)[:2] - alone).max() > 1e-4)


@pytest.mark.parametrize("name", BODIES)
def test_a_batch_norm_that_trains_in_inference_is_refused(name: str) -> None:
    text, depends = BODIES[name]
    model = made(Written, text)
    assert by_batch(model) is depends
    if depends:
        with pytest.raises(ValueError, match=r"norm\w* \(BatchNormalization\): it runs inside .* with training=True"):
            kquant.quantize(model)
    else:
        np.testing.assert_allclose(kquant.fold(model).predict(X, verbose=0), model.predict(X, verbose=0), atol=1e-5)


@pytest.mark.parametrize("text", ["head(branch(first(x)))", "head(norm(first(x), training=training))"])
def test_what_predict_overrides_is_taken(text: str) -> None:
    model = made(Told, text)
    assert not by_batch(model)
    np.testing.assert_allclose(kquant.fold(model).predict(X, verbose=0), model.predict(X, verbose=0), atol=1e-5)


def test_a_functional_model_overrides_what_it_recorded() -> None:
    model = _branch()
    x = X[:, :4]
    np.testing.assert_allclose(kquant.fold(model).predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)

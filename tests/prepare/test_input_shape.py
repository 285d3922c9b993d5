"""Models whose shapes are open: what `input_shape` says, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from one_layer import X

import kquant


def convolutional() -> keras.Model:
    x = keras.Input((None, None, 3), name="image")
    return keras.Model(x, layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(x)), name="net")


@pytest.mark.parametrize("verb", [kquant.quantize, kquant.check])
def test_open_shape_asks_for_input_shape(verb: Callable) -> None:
    wanted = r"net: input 'image' has the open shape \(None, None, None, 3\).*input_shape=\(None, 96, 96, 3\)\)"
    with pytest.raises(ValueError, match=wanted):
        verb(convolutional())


def test_open_shape_works_with_input_shape(tmp_path: Path) -> None:
    shape = (None, 10, 12, 3)
    assert kquant.check(convolutional(), input_shape=shape).ok
    q = kquant.quantize(convolutional(), input_shape=shape)
    assert q.input_shape == shape
    x = np.float32(np.random.default_rng(0).normal(size=(40, 10, 12, 3)))
    kquant.calibrate(q, x, verbose=False)
    report = kquant.export(q, tmp_path / "m.tflite", data=x)
    assert report.inputs[0].shape == (1, 10, 12, 3)


def test_input_shape_of_several_inputs() -> None:
    a, b = keras.Input((None, 3), name="a"), keras.Input((4, 3), name="b")
    model = keras.Model({"a": a, "b": b}, ops.mean(a, axis=1) + ops.mean(b, axis=1), name="net")
    for shapes in ([(None, 5, 3), (None, 4, 3)], {"a": (None, 5, 3), "b": (None, 4, 3)}):
        assert kquant.quantize(model, input_shape=shapes).inputs[0].shape == (None, 5, 3)
    with pytest.raises(ValueError, match="net: input_shape must give 2 shapes, one for each of the inputs a, b"):
        kquant.quantize(model, input_shape=(None, 5, 3))


def test_input_shape_of_wrong_rank_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'image' must have rank 4, batch axis included.*Received: \(96, 96, 3\)"):
        kquant.quantize(convolutional(), input_shape=(96, 96, 3))


@pytest.mark.parametrize("verb", [kquant.quantize, kquant.check])
def test_input_shape_that_does_not_fit_the_weights_is_refused(verb: Callable) -> None:
    wanted = r"^net: with input_shape=\(None, 9, 9, 5\): conv.* \(Conv2D\): its weights are for 3 values along axis -1"
    sequential = keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(4, 3, name="conv")], name="net")
    for model in (convolutional(), sequential):
        with pytest.raises(ValueError, match=wanted):
            verb(model, input_shape=(None, 9, 9, 5))


@pytest.mark.parametrize(
    ("shape", "said"),
    [(5, "must be a shape with batch axis"), ("a", "must be a shape"), ((None, -1, 9, 3), "must hold whole numbers")],
)
def test_what_is_no_input_shape_is_refused(shape: Any, said: str) -> None:
    with pytest.raises(ValueError, match=rf"^net: input_shape .*{said}|^net: input_shape {said}"):
        kquant.quantize(convolutional(), input_shape=shape)


class Branching(keras.Model):
    """Runs on data, but Keras cannot follow it to learn its shapes."""

    def __init__(self, follow: Callable) -> None:
        super().__init__(name="net")
        self.follow, self.head = follow, layers.Dense(2, name="head")

    def call(self, x: Any) -> Any:
        return self.follow(self.head(x))


UNFOLLOWED = {
    "branch": lambda y: y + 1.0 if float(ops.max(y)) > 0 else y,
    "py_function": lambda y: tf.py_function(lambda v: v, [y], tf.float32),
}


@pytest.mark.parametrize("name", UNFOLLOWED)
def test_a_subclass_that_cannot_be_followed_is_told_so(name: str) -> None:
    model = Branching(UNFOLLOWED[name])
    model(X[:1])
    with pytest.raises(ValueError, match=r"net \(Branching\): .* no input shape.*followed.*input_shape=\(None"):
        kquant.quantize(model)
    with pytest.raises(ValueError, match=r"net \(Branching\): its `call` cannot be followed on symbolic tensors"):
        kquant.quantize(model, input_shape=(None, 6))


def test_an_input_shape_stands_in_for_one_that_keras_does_not_know() -> None:
    model = Branching(lambda y: y)
    model.head.build((None, 6))
    model.built = True
    assert kquant.quantize(model, input_shape=(None, 6)).input_shape == (None, 6)

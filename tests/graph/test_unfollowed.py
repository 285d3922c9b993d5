"""A `call` that cannot be followed is told why, and its remedy fits: each reason in its own words."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import kquant

pytestmark = pytest.mark.filterwarnings(
    "ignore:This model has quantization nodes that have seen no data",
)

BATCH = "one sample at a time"


class WithScores(layers.Layer):
    """A layer that gives scores besides where it is asked to, as attentions do."""

    def call(self, x: Any) -> Any:
        return ops.tanh(x), None


class Alone(WithScores):
    """The same without the scores that nobody asked for: what the message says to write."""

    def call(self, x: Any) -> Any:
        return super().call(x)[0]


# What the body of `call` does -> what is said of it.
BODIES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "branch": (lambda x: x if ops.sum(x) > 0 else -x, r"truth of a tensor.*ops\.where"),
    "largest of Python": (lambda x: max(x[0, 0, 0], 0.0) * x, r"truth of a tensor.*ops\.maximum"),
    "float": (lambda x: x * float(ops.max(x)), r"Python number.*Keep it a tensor"),
    "math": (lambda x: x / math.sqrt(ops.sum(x)), r"Python number.*Keep it a tensor"),
    "array": (lambda x: x + np.asarray(x), r"gives them to NumPy.*`keras\.ops\.convert_to_tensor` for `np\.asarray`"),
    "numpy": (lambda x: np.exp(x), r"gives them to NumPy.*`keras\.ops\.exp` for `np\.exp`"),
    "tensorflow": (lambda x: tf.reduce_mean(x, 1), r"TensorFlow itself.*`keras\.ops\.mean` for `tf\.reduce_mean`"),
    "shape of TensorFlow": (lambda x: ops.ones((tf.shape(x)[0], 2)), r"`keras\.ops\.shape` for `tf\.shape`"),
    "length": (lambda x: x / len(x), r"no len\(\).*ops\.shape\(x\)\[0\]"),
    "loop": (lambda x: ops.stack([row for row in x]), r"loops over a tensor.*ops\.unstack"),
    "assignment": (lambda x: x.__setitem__(0, 1.0), r"writes into a tensor.*ops\.where"),
    "index": (lambda x: x * [1.0, 2.0][ops.argmax(x)], r"Python index.*Embedding"),
    "count": (lambda x: ops.stack([x] * len(range(ops.max(x))), 1), r"Python index or count"),
    "method": (lambda x: x.mean(), r"do not have\. Write `ops\.mean\(x\)`"),
    "numbers of a tensor": (lambda x: ops.tanh(x.numpy()), r"asks for the numbers in a tensor"),
    "weights before building": (lambda x: ops.matmul(x, layers.Dense(3).kernel), r"not built.*layer\.build"),
    "a layer called wrongly": (lambda x: layers.Dense(3)(x, x), r"own code raises.*TypeError"),
    "None beside a tensor": (lambda x: WithScores()(x)[0], r"because a layer that it calls returns .*beside tensors"),
    "own mistake": (lambda x: [x][1], r"its own code raises.*IndexError"),
    "nothing": (lambda x: None, r"Received: None; is its `return` missing"),
    "text": (lambda x: {"a": x, "b": "text"}, r"must return tensors.*Received: str 'text'"),
    "numbers only": (lambda x: ops.ones((1, 3)), r"depend on its inputs.*ops\.broadcast_to"),
    "positions in the batch": (
        lambda x: x + ops.cast(ops.arange(ops.shape(x)[0]), "float32")[:, None, None],
        rf"Add meets numbers that differ from sample to sample.*{BATCH}",
    ),
    "divided by the batch": (
        lambda x: x / ops.cast(ops.shape(x)[0], "float32"),
        rf"TrueDivide computes with the number of samples \(7.* for 7 samples.*{BATCH}",
    ),
    "merged batch": (
        lambda x: ops.reshape(x, (ops.shape(x)[0] * 3, 4)),
        rf"Reshape takes a size of 3 times the number of samples.*{BATCH}",
    ),
    "loop over the batch": (
        lambda x: ops.stack([x[i] for i in range(ops.shape(x)[0])]),
        r"other steps for more samples.*axis 0 left open",
    ),
}


class Body(keras.Model):
    """A model whose `call` is the function; Keras is told its shapes, as `call` runs on real tensors only."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__(name="body")
        self.function = function
        self.built = True

    def call(self, x: Any) -> Any:
        return self.function(x)


@pytest.mark.parametrize("name", BODIES)
def test_each_reason_has_its_own_words(name: str) -> None:
    function, said = BODIES[name]
    with pytest.raises(ValueError, match=rf"body \(Body\): .*{said}") as caught:
        kquant.check(Body(function), input_shape=(None, 3, 4))
    places = re.findall(r"\((\w+\.py), line \d+", str(caught.value))
    assert set(places) <= {"test_unfollowed.py"}, "the user's own line, whichever part of kquant it went through"


def test_a_layer_that_returns_its_tensor_alone_is_followed() -> None:
    assert kquant.check(Body(lambda x: Alone()(x)), input_shape=(None, 3, 4)).ok


def test_the_line_that_raised_is_shown() -> None:
    def step(x: Any) -> Any:
        return tf.math.cumsum(x, axis=1)

    with pytest.raises(ValueError, match=r"\(test_unfollowed\.py, line \d+: `return tf\.math\.cumsum\(x, axis=1\)`\)"):
        kquant.check(Body(step), input_shape=(None, 3, 4))


def test_class_tokens_train_on() -> None:
    """What meets the graph as numbers only, a broadcast variable or rows of a table, is still a variable there."""
    from graph_cases_shapes import tokens_of_every_spelling

    q = kquant.quantize(tokens_of_every_spelling())
    assert len([v for v in q.trainable_variables if v.name == "value"]) == 5
    x = np.float32(np.random.default_rng(0).normal(size=(5, 3, 4)))
    assert q.predict(x, verbose=0).shape == (5, 9, 3)


def test_variables_and_arrays_may_stand_on_the_left() -> None:
    """And Keras' own classes are as before once `call` was followed."""
    scale = keras.Variable(np.float32([1.0, 2.0, 3.0, 4.0]))
    before = {name: getattr(keras.Variable, name) for name in ("__add__", "__mul__", "__gt__")}
    row = np.float32([1.0, 1.0, 2.0, 2.0])
    made = Body(lambda x: row * (scale * x) + (1.0 - x) / 2.0)
    assert len(kquant.check(made, input_shape=(None, 3, 4)).layers) > 0
    assert before == {name: getattr(keras.Variable, name) for name in before}
    assert not hasattr(keras.KerasTensor, "__array_ufunc__")


class Positions(layers.Layer):
    """As KerasHub's PositionEmbedding: a row of a table for each step, the same for every sample."""

    def build(self, shape: Any) -> None:
        self.table = self.add_weight(shape=shape[1:], initializer="glorot_uniform", name="table")

    def call(self, x: Any) -> Any:
        return ops.broadcast_to(ops.convert_to_tensor(self.table), ops.shape(x))


class Numbered(layers.Layer):
    """Another row for every sample."""

    def call(self, x: Any) -> Any:
        return ops.broadcast_to(ops.arange(ops.shape(x)[0], dtype="float32")[:, None, None], ops.shape(x))


def with_positions(made: layers.Layer) -> keras.Model:
    x = keras.Input((6, 4), name="x")
    return keras.Model(x, layers.Dense(3, name="head")(layers.Add(name="sum")([x, made(x)])))


def test_what_is_the_same_for_every_sample_may_be_all_that_a_layer_returns() -> None:
    model = with_positions(Positions(name="positions"))
    data = np.float32(np.random.default_rng(0).normal(size=(64, 6, 4)))
    q = kquant.calibrate(kquant.quantize(model), data, verbose=False)
    wanted = model.predict(data, verbose=0)
    assert np.mean((q.predict(data, verbose=0) - wanted) ** 2) < 1e-3 * np.mean(wanted**2)
    assert len(q.trainable_variables) >= len(model.trainable_variables), "the table trains still"
    with pytest.raises(ValueError, match=r"numbers_.*Numbered.*differ from sample to sample"):
        kquant.quantize(with_positions(Numbered(name="numbers_")))

"""`predict` cuts batches from arrays: what comes is what Keras' loop gives, and other data are left to it."""

from __future__ import annotations

import re
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import kquant
from kquant.graph import in_batches

RANDOM = np.random.default_rng(0)
IMAGES, NUMBERS = np.float32(RANDOM.normal(size=(21, 6, 6, 2))), np.float32(RANDOM.normal(size=(21, 3)))


@pytest.fixture(scope="module")
def q() -> keras.Model:
    """Two inputs; an output with a name, and another."""
    image, numbers = keras.Input((6, 6, 2), name="image"), keras.Input((3,), name="numbers")
    seen = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, activation="relu", name="conv")(image))
    both = layers.Concatenate()([seen, layers.Dense(2, name="dense")(numbers)])
    model = keras.Model([image, numbers], {"kind": layers.Dense(3, name="kind")(both), "seen": seen})
    many = {"image": np.repeat(IMAGES, 5, axis=0), "numbers": np.repeat(NUMBERS, 5, axis=0)}
    return kquant.calibrate(kquant.quantize(model), many, verbose=False)


@pytest.fixture
def no_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keras makes its datasets of arrays out of this one."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a dataset was made")

    monkeypatch.setattr(tf.data.Dataset, "range", refuse)


GIVEN = {
    "a list": [IMAGES, NUMBERS],
    "a dict": {"image": IMAGES, "numbers": NUMBERS},
    "doubles": [IMAGES.astype("float64"), NUMBERS.astype("float16")],
    "integers": [np.int8(IMAGES * 20), NUMBERS > 0],
    "tensors": [tf.constant(IMAGES), tf.constant(NUMBERS, tf.float64)],
}


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("size", [None, 8, 21, 50])
def test_the_outputs_of_keras_own_loop(q: keras.Model, given: str, size: int | None) -> None:
    found, expected = q.predict(GIVEN[given], size, verbose=0), keras.Model.predict(q, GIVEN[given], size, verbose=0)
    assert type(found) is type(expected) and list(found) == list(expected) == ["kind", "seen"]
    for name, values in found.items():
        assert type(values) is np.ndarray and values.dtype == expected[name].dtype
        np.testing.assert_array_equal(values, expected[name])


def test_no_dataset_is_made(q: keras.Model, no_datasets: None) -> None:
    assert q.predict(GIVEN["a list"], verbose=0)["kind"].shape == (21, 3)
    with pytest.raises(AssertionError, match="a dataset was made"):
        keras.Model.predict(q, GIVEN["a list"], verbose=0)


def test_the_bar_is_that_of_keras(q: keras.Model, capsys: pytest.CaptureFixture[str]) -> None:
    bars = []
    for model in (type(q), keras.Model):
        model.predict(q, GIVEN["a list"], 8, verbose=2)
        bars.append(capsys.readouterr().out.split(" - ")[0])
    assert bars[0] == bars[1] and bars[0].startswith("3/3")


def test_one_trace_for_batches_of_all_sizes(q: keras.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    traced = []
    copy = keras.models.clone_model(q)
    copy.set_weights(q.get_weights())
    call = type(copy).call
    monkeypatch.setattr(type(copy), "call", lambda *args, **kwargs: (traced.append(1), call(*args, **kwargs))[1])
    for rows in (21, 5, 16):
        copy.predict([IMAGES[:rows], NUMBERS[:rows]], 8, verbose=0)
    assert len(traced) == 1


class Counts(keras.callbacks.Callback):
    seen = 0

    def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seen += 1


def test_what_else_keras_loop_minds_is_left_to_it(q: keras.Model) -> None:
    counts = Counts()
    q.predict(GIVEN["a list"], 8, verbose=0, callbacks=[counts])
    assert counts.seen == 3
    assert len(q.predict(GIVEN["a list"], 8, verbose=0, steps=2)["kind"]) == 16
    expected = q.predict(GIVEN["a list"], 8, verbose=0)["kind"]
    copy = keras.models.clone_model(q)
    copy.set_weights(q.get_weights())
    for options in ({"steps_per_execution": 2}, {"run_eagerly": True}):
        copy.compile(**options)
        assert not in_batches.may_slice(copy)
        np.testing.assert_array_equal(copy.predict(GIVEN["a list"], 8, verbose=0)["kind"], expected)


@pytest.mark.parametrize("size", [-1, 8.0, "8", 2.5])
def test_what_is_no_size_of_a_batch_is_told(q: keras.Model, size: Any) -> None:
    for callbacks in (None, [Counts()]):
        with pytest.raises(ValueError, match="predict: batch_size is a whole .*" + re.escape(f"Received: {size!r}.")):
            q.predict(GIVEN["a list"], size, verbose=0, callbacks=callbacks)
    with pytest.raises(ValueError, match="evaluate: batch_size is a whole number of samples"):
        q.evaluate(GIVEN["a list"], NUMBERS, batch_size=size, verbose=0)


def test_sizes_of_numpy_and_none_are_sizes(q: keras.Model) -> None:
    expected = q.predict(GIVEN["a list"], verbose=0)["kind"]
    for size in (np.int64(8), np.uint8(8), 0):
        np.testing.assert_array_equal(q.predict(GIVEN["a list"], size, verbose=0)["kind"], expected)


def test_no_samples_are_left_to_keras() -> None:
    assert in_batches.rows_of([IMAGES[:0], NUMBERS[:0]]) == 0


@pytest.mark.parametrize("given", [[IMAGES, NUMBERS[:20]], [IMAGES, list(range(21))]])
def test_what_is_no_plain_array_is_told_of_by_keras(q: keras.Model, given: list[Any]) -> None:
    said = []
    for model in (type(q), keras.Model):
        with pytest.raises((ValueError, TypeError)) as error:
            model.predict(q, given, verbose=0)
        said.append(str(error.value))
    assert said[0] == said[1]


def test_keras_bound_on_steps_holds(q: keras.Model) -> None:
    bound = getattr(keras.config, "set_max_steps_per_epoch", None)
    if bound is None:
        assert in_batches.may_slice(q)  # an older Keras, which has no bound
        return
    bound(1)
    try:
        with pytest.warns(UserWarning, match="Limiting steps"):
            assert len(q.predict(GIVEN["a list"], 8, verbose=0)["kind"]) == 8
    finally:
        bound(None)

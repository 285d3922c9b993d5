"""`evaluate` cuts batches from arrays: losses, metrics and what callbacks see are those of Keras' own loop."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import kquant
from kquant.graph import by_xla, held_constants, in_batches

pytestmark = pytest.mark.filterwarnings("ignore:calibrate. ")
RANDOM = np.random.default_rng(0)
X, NUMBERS = np.float32(RANDOM.normal(size=(50, 6, 4))), np.float32(RANDOM.normal(size=(50, 3)))
FRAMES, KIND = np.float32(RANDOM.normal(size=(50, 6, 2))), RANDOM.integers(0, 2, (50, 1))
WEIGHTS = np.float32(RANDOM.random(50))
LABELS = {"frames": FRAMES, "kind": KIND}
EACH = {"frames": np.float32(RANDOM.random((50, 6))), "kind": WEIGHTS}


def two_outputs(convolution: bool = False) -> keras.Model:
    """Two inputs; a sequence, and a probability with metrics that hold counts."""
    keras.utils.set_random_seed(2)
    x, numbers = keras.Input((6, 4), name="x"), keras.Input((3,), name="numbers")
    y = layers.Conv1D(4, 1)(x) if convolution else layers.Dense(4)(x)
    both = layers.Concatenate()([layers.Flatten()(y), numbers])
    kind = layers.Dense(1, activation="sigmoid", name="kind")(both)
    model = keras.Model([x, numbers], {"frames": layers.Dense(2, name="frames")(y), "kind": kind})
    q = kquant.calibrate(kquant.quantize(model, target="tflm"), [X, NUMBERS], verbose=False)
    q.compile(
        loss={"frames": "mse", "kind": "binary_crossentropy"},
        metrics={"kind": ["AUC", "accuracy"], "frames": ["mae"]},
        weighted_metrics={"kind": ["accuracy"]},
        loss_weights={"frames": 0.5, "kind": 2.0},
    )
    return q


@pytest.fixture(scope="module")
def q() -> keras.Model:
    return two_outputs(convolution=True)


class Seen(keras.callbacks.Callback):
    """What it is told, and with which results."""

    def __init__(self, last: int = 1000) -> None:
        super().__init__()
        self.told: list[Any] = []
        self.last = last

    def on_test_begin(self, logs: Any = None) -> None:
        self.told.append("begin")

    def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.told.append(batch)

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        self.told.append((batch, {name: float(value) for name, value in logs.items()}))
        self.model.stop_evaluating = batch == self.last

    def on_test_end(self, logs: Any = None) -> None:
        self.told.append(("end", logs))


@pytest.mark.parametrize("weights", [None, EACH], ids=["no weights", "weights"])
@pytest.mark.parametrize("size", [None, 7, 200])
def test_the_results_of_keras_own_loop(q: keras.Model, size: int | None, weights: Any) -> None:
    for as_dict in (True, False):
        found, expected = (
            model.evaluate(q, [X, NUMBERS], LABELS, size, 0, weights, return_dict=as_dict)
            for model in (type(q), keras.Model)
        )
        assert found == expected
        assert list(found) == list(expected)
    assert found[0] == float(q.metrics[0].result())


def test_several_batches_by_xla_are_judged_each_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_constants, "MANY", 1)
    compiled, reference, sizes = two_outputs(), two_outputs(), []
    compiled.evaluate([X, NUMBERS], LABELS, 20, 0, EACH)
    function = compiled.xla["test_function"].function
    monkeypatch.setattr(function, "of_batch", Noting(function.of_batch, sizes))
    for size in (1, 20, 64):
        expected = keras.Model.evaluate(reference, [X, NUMBERS], LABELS, size, 0, EACH)
        assert compiled.evaluate([X, NUMBERS], LABELS, size, 0, EACH) == pytest.approx(expected, rel=1e-6)
    assert sizes == [(1, 50), (20, 50), 50]
    data = tf.data.Dataset.from_tensor_slices(((X, NUMBERS), LABELS, EACH)).batch(64)
    assert compiled.evaluate(data, verbose=0) == pytest.approx(expected, rel=1e-6)
    assert compiled.xla["test_function"].function is function


class Noting:
    """A function of batches that tells how many samples it was given."""

    def __init__(self, function: Any, sizes: list[Any]) -> None:
        self.function, self.sizes = function, sizes
        self.get_concrete_function = function.get_concrete_function

    def __call__(self, batch: Any) -> Any:
        rows = len(keras.tree.flatten(batch)[-1])
        self.sizes.append((int(batch.size), rows) if isinstance(batch, in_batches.Ahead) else rows)
        return self.function(batch)


def test_callbacks_see_what_keras_own_loop_shows_them(q: keras.Model) -> None:
    for last in (1000, 1):
        told = []
        for model in (type(q), keras.Model):
            seen = Seen(last)
            told.append((model.evaluate(q, [X, NUMBERS], LABELS, 20, 0, callbacks=[seen]), seen.told))
        assert told[0] == told[1]
        assert len(told[0][1]) == (8 if last > 1 else 6)


def test_no_dataset_is_made(q: keras.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a dataset was made")

    monkeypatch.setattr(tf.data.Dataset, "range", refuse)
    assert len(q.evaluate([X, NUMBERS], LABELS, verbose=0)) == 7
    with pytest.raises(AssertionError, match="a dataset was made"):
        q.evaluate([X, NUMBERS], LABELS, verbose=0, steps=2)


def test_weights_of_samples_that_keras_spreads_are_left_to_it() -> None:
    assert in_batches.data_of([X, NUMBERS], LABELS, WEIGHTS) is None
    assert in_batches.data_of([X, NUMBERS], LABELS, EACH) == ([X, NUMBERS], LABELS, EACH)
    assert in_batches.data_of(X, None, WEIGHTS) is X


@pytest.mark.parametrize("given", [(LABELS["kind"],), ({**LABELS, "kind": KIND[:40]},), (None,)])
def test_what_does_not_fit_is_told_as_by_keras(q: keras.Model, given: Any) -> None:
    said = []
    for model in (type(q), keras.Model):
        with pytest.raises((ValueError, TypeError)) as error:
            model.evaluate(q, [X, NUMBERS], *given, verbose=0)
        said.append((error.type, str(error.value)[:40]))
    assert said[0] == said[1]


def test_a_model_that_is_not_compiled_is_told_so(q: keras.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(q, "compiled", False)
    with pytest.raises(ValueError, match="compile"):
        q.evaluate([X, NUMBERS], LABELS, verbose=0)


def test_the_bar_is_that_of_keras(q: keras.Model, capsys: pytest.CaptureFixture[str]) -> None:
    bars = []
    for model in (type(q), keras.Model):
        model.evaluate(q, [X, NUMBERS], LABELS, 8, verbose=2)
        shown = capsys.readouterr().out.split(" - ")
        bars.append([shown[0], *(part for part in shown if ":" in part)])  # without seconds
    assert bars[0] == bars[1]
    assert bars[0][0].startswith("7/7") and len(bars[0]) == 8


def test_a_step_of_somebodys_own_is_called_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    q = two_outputs()
    plain = q.evaluate([X, NUMBERS], LABELS, 10, 0)

    class Doubling(type(q)):  # type: ignore[misc]
        def test_step(self, data: Any) -> Any:
            (x, numbers), y = data
            return super().test_step(((2.0 * x, numbers), y))

    monkeypatch.setattr(q, "__class__", Doubling)
    assert not by_xla.may_judge_ahead(q)
    q.test_function = None
    monkeypatch.setattr(held_constants, "MANY", 1)
    found = q.evaluate([X, NUMBERS], LABELS, 10, 0)
    assert q.xla["test_function"].function is not None
    assert found == pytest.approx(keras.Model.evaluate(q, [X, NUMBERS], LABELS, 10, 0), rel=1e-6)
    assert found != pytest.approx(plain, rel=1e-3)

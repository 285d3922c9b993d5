"""`evaluate` and `predict` with losses, metrics, steps and functions of somebody's own: as Keras' own loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import kquant
from kquant.graph import by_xla, held_constants

pytestmark = pytest.mark.filterwarnings("ignore:calibrate. ")
RANDOM = np.random.default_rng(0)
X, Y = np.float32(RANDOM.normal(size=(64, 4))), np.float32(RANDOM.normal(size=(64, 2)))


@pytest.fixture
def q() -> keras.Model:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8, activation="relu"), layers.Dense(2)])
    return kquant.calibrate(kquant.quantize(model), X, verbose=False)


def both(q: keras.Model, size: int, compiled: Callable[[], dict[str, Any]]) -> tuple[list[float], list[float]]:
    """What our loop gives, twice, of which the second may be by XLA, and what Keras' does."""
    q.compile(**compiled())
    expected = keras.Model.evaluate(q, X, Y, size, verbose=0)
    q.compile(**compiled())
    q.evaluate(X, Y, size, verbose=0)
    return q.evaluate(X, Y, size, verbose=0), expected


class Again:
    """A mixin, whose loss calls the model again, of other samples."""

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: Any = True
    ) -> tf.Tensor:
        return tf.reduce_mean(tf.square(self(-x, training=False) - y_pred))  # type: ignore[operator]


def own_loss(model: keras.Model) -> Callable[..., tf.Tensor]:
    return lambda x, y, y_pred, *_, **__: tf.reduce_mean(tf.square(model(-x, training=False) - y_pred))


@pytest.mark.parametrize("of_class", [True, False])
def test_a_loss_that_calls_the_model_again_gets_what_it_asks_for(
    q: keras.Model, of_class: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_constants, "MANY", 1)
    if of_class:
        q.__class__ = type("Own", (Again, type(q)), {})
    else:
        monkeypatch.setattr(q, "compute_loss", own_loss(q), raising=False)
    assert not by_xla.may_judge_ahead(q)
    found, expected = both(q, 8, lambda: {"loss": "mse"})
    assert q.xla["test_function"].function is not None
    assert found == pytest.approx(expected, rel=1e-5) and expected > 0.1


def test_what_a_step_computes_in_training_it_computes_so_by_xla() -> None:
    x = keras.Input((4,))
    model = keras.Model(x, layers.Lambda(lambda a, training=None: a + 1.0 if training else a)(x))
    call = tf.function(by_xla.compiled_call(model))
    np.testing.assert_array_equal(call(X, training=True), X + 1.0)
    np.testing.assert_array_equal(call(X, True), X + 1.0)
    np.testing.assert_array_equal(call(X, training=False), X)


def of_one_size(y: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    """Asks a batch for its size before it runs."""
    each = tf.matmul(outputs, outputs, transpose_b=True) - tf.eye(outputs.shape[0])
    return tf.reduce_sum(tf.square(each), -1)


@pytest.mark.parametrize("many", [1, 10**6])
def test_where_all_batches_are_full_a_loss_may_ask_for_their_size(
    q: keras.Model, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_constants, "MANY", many)
    found, expected = both(q, 32, lambda: {"loss": of_one_size})
    assert found == pytest.approx(expected, rel=1e-5)
    assert ("function" if many == 1 else None) == (q.xla["test_function"].function and "function")
    assert q.evaluate(X[:32], Y[:32], 32, verbose=0) == pytest.approx(
        keras.Model.evaluate(q, X[:32], Y[:32], 32, verbose=0), rel=1e-5
    )
    said = []
    for model in (type(q), keras.Model):
        q.compile(loss=of_one_size)
        with pytest.raises((TypeError, ValueError)) as error:  # the last batch is a smaller one
            model.evaluate(q, X[:50], Y[:50], 32, verbose=0)
        said.append(error.type)
    assert said[0] is said[1]


class Last(keras.metrics.Metric):
    """Keeps a tensor from `update_state` for `result`."""

    kept: Any = 0.0

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.kept = tf.reduce_mean(y_pred)

    def result(self) -> tf.Tensor:
        return tf.convert_to_tensor(self.kept) if tf.inside_function() else tf.constant(3.0)

    def reset_state(self) -> None:
        pass


def test_a_metric_may_keep_a_tensor(q: keras.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_constants, "MANY", 1)
    found, expected = both(q, 8, lambda: {"loss": "mse", "metrics": [Last()]})
    assert found == pytest.approx(expected, rel=1e-5)
    function = q.xla["test_function"].function
    assert function.of_batch.one_by_one
    q.evaluate(X, Y, 8, verbose=0)
    assert q.xla["test_function"].function is function


def test_wrong_labels_leave_several_batches_at_once(q: keras.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_constants, "MANY", 1)
    q.compile(loss="mse")
    plain = q.evaluate(X, Y, 8, verbose=0)
    of_batch = q.xla["test_function"].function.of_batch
    with pytest.raises(ValueError):
        q.evaluate(X, np.zeros((64, 3, 5), "float32"), 8, verbose=0)
    assert not hasattr(of_batch, "one_by_one")
    assert q.evaluate(X, Y, 8, verbose=0) == plain


class ByNumpy(Last):
    """Reads what there is, which a graph has not."""

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.kept = float(y_pred.numpy().mean())

    def result(self) -> tf.Tensor:
        return tf.constant(self.kept)


@pytest.fixture
def eagerly() -> Iterator[None]:
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.filterwarnings("ignore:Even though")  # TensorFlow's, of datasets
def test_functions_that_are_to_run_eagerly_do(q: keras.Model, eagerly: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_constants, "MANY", 1)
    found, expected = both(q, 32, lambda: {"loss": "mse", "metrics": [ByNumpy()]})
    assert found == pytest.approx(expected, rel=1e-5)
    seen: list[bool] = []
    layer = q.layers[-1]
    call = layer.call
    monkeypatch.setattr(layer, "call", lambda *a, **k: (seen.append(tf.executing_eagerly()), call(*a, **k))[1])
    expected = keras.Model.predict(q, X, 32, verbose=0)
    np.testing.assert_array_equal(q.predict(X, 32, verbose=0), expected)
    assert len(seen) == 4 and all(seen)


def test_a_function_of_somebodys_own_is_kept(q: keras.Model) -> None:
    q.compile(loss="mse")
    q.test_function = lambda iterator: (next(iterator), {"own": tf.constant(7.0)})[1]
    assert q.evaluate(X, Y, 32, verbose=0, return_dict=True) == {"own": 7.0}
    q.predict_function = lambda batches: batches[0] * 2.0
    np.testing.assert_array_equal(q.predict(X, 32, verbose=0), X * 2.0)
    q.test_function = q.predict_function = None
    assert q.evaluate(X, Y, 32, verbose=0) == pytest.approx(float(np.mean((q(X) - Y) ** 2)), rel=1e-5)


def test_who_makes_functions_of_his_own_has_them_called_as_keras_does(q: keras.Model) -> None:
    class Own(type(q)):  # type: ignore[misc]
        def make_test_function(self, force: bool = False) -> Any:
            self.test_function = lambda iterator: (next(iterator), {"own": tf.constant(7.0)})[1]
            return self.test_function

    q.__class__ = Own
    q.compile(loss="mse")
    assert [q.evaluate(X, Y, 32, verbose=0, return_dict=True) for _ in range(2)] == [{"own": 7.0}] * 2


def test_a_step_of_predict_gets_the_batches_that_were_asked_for(q: keras.Model) -> None:
    class Own(type(q)):  # type: ignore[misc]
        def predict_step(self, data: Any) -> tf.Tensor:
            outputs = super().predict_step(data)
            return outputs - tf.reduce_sum(outputs, 0, keepdims=True) / tf.eye(outputs.shape[0])[0, 0]

    q.__class__ = Own
    expected = keras.Model.predict(q, X, 32, verbose=0)
    for _ in range(2):
        np.testing.assert_allclose(q.predict(X, 32, verbose=0), expected, rtol=1e-5)

"""`evaluate` by XLA: losses and metrics are those of Keras' graph, whatever the data are."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import kquant
from kquant.graph import by_xla, held_constants

pytestmark = [
    pytest.mark.filterwarnings("ignore:calibrate. "),
    pytest.mark.filterwarnings("ignore:Your input ran out of data"),  # Keras', of each dataset of unknown length
]
RNG = np.random.default_rng(0)
X = np.float32(np.cumsum(RNG.normal(size=(70, 5, 4)), 1) * 0.5)
X[::3, 3:] = 0.0  # masked, where there is a mask
FRAMES, KIND, WEIGHTS = np.float32(RNG.normal(size=(70, 5, 2))), RNG.integers(0, 3, 70), np.float32(RNG.random(70))


def two_outputs() -> keras.Model:
    """A sequence with a mask, and a class."""
    keras.utils.set_random_seed(2)
    x = keras.Input((5, 4), name="x")
    y = layers.LSTM(4, return_sequences=True, name="steps")(layers.Masking()(x))
    kind = layers.Dense(3, activation="softmax", name="kind")(layers.LSTM(3, name="last")(y))
    q = kquant.quantize(keras.Model(x, {"frames": layers.Dense(2, name="frames")(y), "kind": kind}), target="tflm")
    kquant.calibrate(q, X, verbose=False)
    q.compile(
        loss={"frames": "mse", "kind": "sparse_categorical_crossentropy"},
        metrics={"kind": ["accuracy"], "frames": ["mae"]},
        weighted_metrics={"kind": ["accuracy"]},
        loss_weights={"frames": 0.5, "kind": 2.0},
    )
    return q


def evaluating(q: keras.Model) -> by_xla.Compiled:
    return getattr(q, "xla", {}).get("test_function", by_xla.Compiled())


def test_losses_and_metrics_are_those_of_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    q = two_outputs()
    y, weights = (
        {"frames": FRAMES, "kind": KIND},
        {"frames": WEIGHTS[:, None] * np.ones((1, 5), "float32"), "kind": WEIGHTS},
    )
    plain = q.evaluate(X, y, batch_size=20, sample_weight=weights, verbose=0, return_dict=True)
    assert evaluating(q).function is None
    monkeypatch.setattr(held_constants, "MANY", 3)
    for _ in range(2):  # the last batch has ten samples
        assert q.evaluate(X, y, batch_size=20, sample_weight=weights, verbose=0, return_dict=True) == plain
    assert evaluating(q).function is not None
    assert {metric.name for metric in q.metrics} >= {"loss"} and float(q.metrics[0].result()) == plain["loss"]
    data = tf.data.Dataset.from_tensor_slices((X, y, weights)).batch(20)
    before = evaluating(q).function
    for each in (data, data.filter(lambda *_: True), data.repeat()):
        assert q.evaluate(each, steps=None if each is data else 4, verbose=0, return_dict=True) == plain
    assert evaluating(q).function is before
    values = q.evaluate(X, y, batch_size=20, sample_weight=weights, verbose=0)
    assert sorted(values) == sorted(plain.values())


def small() -> keras.Model:
    keras.utils.set_random_seed(2)
    x = keras.Input((5, 4), name="x")
    q = kquant.quantize(keras.Model(x, layers.Dense(2, name="head")(layers.LSTM(3)(x))), target="tflm")
    return kquant.calibrate(q, X, verbose=False)


def test_what_stands_between_convolutions_is_judged_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    x = keras.Input((5, 4), name="x")
    y = layers.Add()([x, layers.Conv1D(4, 3, padding="same", activation="relu", name="conv")(x)])
    q = kquant.quantize(keras.Model(x, layers.Dense(2, name="head")(y)))
    kquant.calibrate(q, X, verbose=False)
    q.compile(loss="mse", metrics=["mae"])
    plain = q.evaluate(X, FRAMES, batch_size=20, verbose=0)
    assert evaluating(q).function is None
    monkeypatch.setattr(held_constants, "MANY", 3)
    monkeypatch.setattr(by_xla, "FULL", 1)
    monkeypatch.setattr(by_xla, "FEW", 0)
    assert q.evaluate(X, FRAMES, batch_size=20, verbose=0) == plain
    assert evaluating(q).function is not None and by_xla.way_of(q) is by_xla.Way.BETWEEN


def test_a_first_evaluate_may_be_by_xla(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its metrics are made as it is traced, and are the model's."""
    monkeypatch.setattr(held_constants, "MANY", 3)
    q, y = small(), FRAMES[:, 0]
    q.compile(loss="mse", metrics=["mae"])
    by = q.evaluate(X, y, batch_size=20, verbose=0)
    assert evaluating(q).function is not None
    assert by == pytest.approx([np.mean((q(X) - y) ** 2), np.mean(np.abs(q(X) - y))], rel=1e-5)
    q.compile(loss="mse", metrics=["mae"], jit_compile=False)
    assert q.evaluate(X, y, batch_size=20, verbose=0) == by and evaluating(q).function is None
    q.compile(loss="mae", steps_per_execution=3)  # which lets go of all that was traced
    assert q.evaluate(X, y, batch_size=20, verbose=0)[0] == pytest.approx(by[1], rel=1e-6)
    assert evaluating(q).function is not None


def test_what_layers_add_to_the_loss_stays_in_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_constants, "MANY", 3)
    q, y = small(), FRAMES[:, 0]
    q.compile(loss="mse")
    plain, head = q.evaluate(X[:32], y[:32], batch_size=16, verbose=0), q.get_layer("head")
    call = head.call

    def charging(x: tf.Tensor, *args: object, **kwargs: object) -> object:
        head.add_loss(tf.reduce_sum(0.0 * x) + 2.0)
        return call(x, *args, **kwargs)

    monkeypatch.setattr(head, "call", charging)
    q.compile(loss="mse")
    assert q.evaluate(X[:32], y[:32], batch_size=8, verbose=0) == pytest.approx(plain + 2.0, rel=1e-5)
    assert evaluating(q).refused


@pytest.mark.parametrize("refused", [True, False])
def test_data_that_can_be_read_once_are_read_once(refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator over an iterator goes on where it was left: a second look at it would miss the first batch."""
    monkeypatch.setattr(held_constants, "MANY", 3)
    q, y = small(), FRAMES[:, 0]
    q.compile(loss="mse")
    plain = q.evaluate(X[:20], y[:20], batch_size=20, verbose=0), q.evaluate(X[:40], y[:40], batch_size=20, verbose=0)
    head = q.get_layer("head")
    call = head.call

    def by_python(*args: object, **kwargs: object) -> object:
        outputs = call(*args, **kwargs)
        return keras.tree.map_structure(
            lambda t: tf.ensure_shape(tf.numpy_function(np.copy, [t], t.dtype), t.shape), outputs
        )

    if refused:
        monkeypatch.setattr(head, "call", by_python)
    q.compile(loss="mse")
    batches = iter([(X[:20], y[:20]), (X[20:40], y[20:40])])
    specs = (tf.TensorSpec((None, 5, 4), tf.float32), tf.TensorSpec((None, 2), tf.float32))
    data = tf.data.Dataset.from_generator(lambda: batches, output_signature=specs)
    data = data.apply(tf.data.experimental.assert_cardinality(2))
    assert q.evaluate(data, steps=2, verbose=0) == pytest.approx(plain[1], rel=1e-6) != plain[0]
    assert evaluating(q).refused == refused


def test_data_of_unknown_length_count_once_they_have_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_constants, "MANY", 4)
    q = small()
    q.compile(loss="mse")
    data = tf.data.Dataset.from_tensor_slices((X, FRAMES[:, 0])).batch(20).filter(lambda *_: True)
    first = q.evaluate(data, verbose=0)
    assert evaluating(q).function is None and evaluating(q).batches == {0: 4}
    assert q.evaluate(data, verbose=0) == first and evaluating(q).function is not None
    expected = q.predict(data, verbose=0)
    np.testing.assert_array_equal(q.predict(data, verbose=0), expected)
    assert q.xla["predict_function"].function is not None


def test_wrong_labels_are_told_and_refuse_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_constants, "MANY", 3)
    q = small()
    q.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    with pytest.raises(ValueError, match="cardinality"):
        q.evaluate(X, KIND[:50], batch_size=20, verbose=0)
    good = np.minimum(KIND, 1)
    assert np.isfinite(q.evaluate(X, good, batch_size=20, verbose=0)[0])
    assert evaluating(q).function is not None and not evaluating(q).refused

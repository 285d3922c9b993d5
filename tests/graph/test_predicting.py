"""`predict` and `evaluate` hold scales and codes of weights in their graphs, and follow every change of a variable."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import kquant
from kquant.core import beforehand
from kquant.graph import held_constants

X = np.float32(np.random.default_rng(0).normal(size=(64, 6, 6, 2)))
Y = np.float32(np.random.default_rng(1).normal(size=(64, 3)))


def network() -> keras.Model:
    """Convolutions with a clip and without, an ADD, a product, an average, a table, a softmax."""
    x = keras.Input((6, 6, 2), name="image")
    y = layers.ReLU(6.0, name="clipped")(layers.Conv2D(4, 3, padding="same", name="conv")(x))
    y = layers.Add(name="add")([y, layers.DepthwiseConv2D(3, padding="same", name="depth")(y)])
    y = layers.Multiply(name="mul")([y, layers.Activation("sigmoid", name="gate")(y)])
    y = layers.Dense(3, name="head")(layers.GlobalAveragePooling2D(name="pool")(y))
    return keras.Model(x, layers.Softmax(name="kind")(y))


def small() -> keras.Model:
    """As much as can change: weights, a bias, ranges."""
    x = keras.Input((6, 6, 2), name="image")
    y = layers.Conv2D(4, 3, activation="relu", name="conv")(x)
    return keras.Model(x, layers.Dense(3, name="head")(layers.Flatten(name="flat")(y)))


def quantized(made: Callable[[], keras.Model] = small, target: str = "litert", recipe: str = "int8") -> keras.Model:
    return kquant.calibrate(kquant.quantize(made(), recipe, target=target), X, verbose=False)


def assert_predicts_what_it_computes(q: keras.Model) -> np.ndarray:
    """Call by call nothing is held."""
    found = q.predict(X, batch_size=32, verbose=0)
    np.testing.assert_array_equal(found, q(X, training=False))
    return found


def fitted(q: keras.Model) -> None:
    """`compile` lets go of what was traced; `fit` alone does not."""
    q.compile(keras.optimizers.SGD(0.1), "mse")
    q.predict(X, verbose=0)
    q.fit(X, Y, batch_size=32, epochs=1, verbose=0)


CHANGES: dict[str, Callable[[keras.Model], object]] = {
    "set_weights": lambda q: q.set_weights([w * 1.3 for w in q.get_weights()]),
    "a weight": lambda q: q.get_layer("conv").layer.kernel.assign_add(np.full((3, 3, 2, 4), 0.1, "float32")),
    "a bias": lambda q: q.get_layer("head").layer.bias.assign([1.0, -1.0, 0.5]),
    "a range": lambda q: kquant.calibrate(q, X * 3.0, verbose=False),
    "fit": fitted,
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_is_seen(change: str) -> None:
    q = quantized()
    first = assert_predicts_what_it_computes(q)
    CHANGES[change](q)
    assert np.any(assert_predicts_what_it_computes(q) != first)


@pytest.mark.parametrize(("target", "recipe"), [("tflm", "int8"), ("litert", "int16x8")])
def test_the_same_codes_as_call_by_call(target: str, recipe: str) -> None:
    q = quantized(network, target, recipe)
    found = assert_predicts_what_it_computes(q)
    np.testing.assert_array_equal(q.predict(X, batch_size=24, verbose=0), found)  # the last batch has another length


def test_a_graph_that_is_traced_again_and_again_reads_its_variables() -> None:
    """Who looks at the outputs after each epoch waits for two traces more, not for one each time."""
    q = quantized()
    made = set()
    for _ in range(4):
        assert_predicts_what_it_computes(q)
        made.add(q.predict_function)
        q.set_weights([w * 1.1 for w in q.get_weights()])
    assert q.changes["predict_function"] == held_constants.CHANGES
    assert len(made) <= 1 + held_constants.CHANGES
    q.compile()  # which lets go of what was traced in any case
    assert_predicts_what_it_computes(q)
    assert q.changes["predict_function"] == 0 and q.predict_function is q.held["predict_function"][0]


def test_nothing_is_traced_again_where_nothing_changed() -> None:
    q = quantized()
    q.predict(X, verbose=0)
    before = q.predict_function
    q.predict(X, verbose=0)
    assert q.predict_function is before


class Swaps(keras.callbacks.Callback):
    """Other weights while it predicts, as averaged ones are swapped in; they are put back behind it."""

    def on_predict_begin(self, logs: object = None) -> None:
        self.kept = self.model.get_weights()
        self.model.set_weights([w * -2.0 if w.ndim == 4 else w for w in self.kept])

    def on_predict_end(self, logs: object = None) -> None:
        self.model.set_weights(self.kept)


@pytest.mark.parametrize("first", [True, False])
def test_callbacks_may_change_the_weights(first: bool) -> None:
    """Between the look at the variables and the first batch, and back afterwards."""
    q = quantized()
    plain = q(X, training=False)
    if not first:
        np.testing.assert_array_equal(q.predict(X, verbose=0), plain)
    assert np.any(q.predict(X, verbose=0, callbacks=[Swaps()]) != plain)
    np.testing.assert_array_equal(q.predict(X, verbose=0), plain)


def test_functions_that_others_keep_read_variables() -> None:
    q = quantized()
    q.predict(X, verbose=0)
    step = tf.function(lambda x: q.predict_step((x,)))
    q.make_predict_function()
    function = q.predict_function
    q.predict_on_batch(X), step(X), function([(X,)])
    q.set_weights([w * 1.3 for w in q.get_weights()])
    for found in (q.predict_on_batch(X), step(X), function([(X,)])):
        np.testing.assert_array_equal(found, q(X, training=False))


def test_a_predict_that_fails_leaves_nothing_stale() -> None:
    """Its graph is traced by the time that the data end in an error."""
    q = quantized()

    def row(i: tf.Tensor) -> tuple[tf.Tensor]:
        with tf.control_dependencies([tf.debugging.assert_less(i, tf.constant(40, tf.int64))]):
            return (tf.gather(X, i),)

    with pytest.raises(tf.errors.InvalidArgumentError):
        q.predict(tf.data.Dataset.range(64).map(row).batch(32, drop_remainder=True), verbose=0)
    q.set_weights([w * 1.3 for w in q.get_weights()])
    np.testing.assert_array_equal(q.predict_on_batch(tf.constant(X[:32])), q(X[:32], training=False))


def test_models_of_many_numbers_are_not_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_constants, "MOST_NUMBERS", 10)
    q = quantized()
    assert_predicts_what_it_computes(q)
    assert "predict_function" not in getattr(q, "held", {})


def test_the_graph_reads_no_variable() -> None:
    """What any kernel computes of ranges and weights stands in it as a constant."""

    def types(q: keras.Model) -> set[str]:
        function = tf.function(lambda x: q(x, training=False))
        return {op.type for op in function.get_concrete_function(tf.TensorSpec((None, 6, 6, 2))).graph.get_operations()}

    q = quantized(network)
    with beforehand.constants():
        assert "ReadVariableOp" not in types(q)
    assert "ReadVariableOp" in types(q)


def test_a_strategy_has_variables_that_nobody_reads_before() -> None:
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        q = quantized()
        q.compile()
    np.testing.assert_array_equal(q.predict(X, batch_size=32, verbose=0), q(X, training=False))


def test_mixed_precision() -> None:
    """Codes are exact whatever passes between the layers is rounded to."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        q = quantized()
    finally:
        keras.config.set_dtype_policy("float32")
    assert_predicts_what_it_computes(q)


def assert_evaluates_what_it_computes(q: keras.Model) -> float:
    found = q.evaluate(X, Y, batch_size=32, verbose=0)
    assert found == pytest.approx(float(np.mean((q(X, training=False) - Y) ** 2)), rel=1e-5)
    return found


def test_evaluate_follows_what_changes() -> None:
    q = quantized()
    q.compile(keras.optimizers.SGD(0.1), "mse")
    first = assert_evaluates_what_it_computes(q)
    function = q.test_function
    assert assert_evaluates_what_it_computes(q) == first
    assert q.test_function is function and function is q.held["test_function"][0], "nothing has changed"
    CHANGES["a weight"](q)
    assert assert_evaluates_what_it_computes(q) != first
    assert q.test_on_batch(X, Y) == pytest.approx(assert_evaluates_what_it_computes(q), rel=1e-5)
    CHANGES["a bias"](q)
    expected = float(np.mean((q(X, training=False) - Y) ** 2))
    assert q.test_on_batch(X, Y) == pytest.approx(expected, rel=1e-5), "it held another bias"


def test_validation_in_fit_sees_each_epoch() -> None:
    q = quantized()
    q.compile(keras.optimizers.SGD(0.1), "mse")
    q.evaluate(X, Y, verbose=0)
    seen: list[float] = []
    look = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(float(np.mean((q(X, training=False) - Y) ** 2)))
    )
    history = q.fit(X, Y, epochs=2, verbose=0, validation_data=(X, Y), callbacks=[look]).history
    assert history["val_loss"] == pytest.approx(seen, rel=1e-4) and seen[0] != seen[1]

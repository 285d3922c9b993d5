"""Networks of many small operations predict by XLA from some batches on: the same codes; a graph where it cannot."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import kquant
from kquant.arithmetic.fixed_point import Multiplier, multiply
from kquant.arithmetic.grid import Grid, centred
from kquant.arithmetic.lstm import LstmWeights, _Kernel
from kquant.core import joined
from kquant.core.tables import for_xla, looked_up
from kquant.graph import by_xla, held_constants
from kquant.graph.by_xla import batch_for, batches_of, compiled_call, largest, numbers_of

pytestmark = pytest.mark.filterwarnings("ignore:calibrate. the range differs more than 2 times")
X = np.float32(np.cumsum(np.random.default_rng(0).normal(size=(70, 9, 4)), 1) * 0.5)


def attention(x):
    y = layers.LayerNormalization()(x)
    return layers.GlobalAveragePooling1D()(layers.Add()([x, layers.MultiHeadAttention(2, 4)(y, y)]))


NETWORKS = {
    "lstm": layers.LSTM(6),
    "gru": layers.GRU(6, return_sequences=True),
    "old gru": layers.GRU(5, reset_after=False),
    "relu": layers.LSTM(4, activation="relu"),
    "simple": layers.Bidirectional(layers.SimpleRNN(4)),
    "attention": attention,
    "masked": lambda x: layers.GRU(4)(layers.Masking()(x)),
}


def quantized(name: str, target: str = "tflm", recipe: str = "int8") -> keras.Model:
    keras.utils.set_random_seed(2)
    x = keras.Input((9, 4), name="x")
    made = NETWORKS[name](x) if callable(NETWORKS[name]) else NETWORKS[name]
    q = kquant.quantize(keras.Model(x, layers.Dense(2, name="head")(made)), recipe, target=target)
    return kquant.calibrate(q, X, verbose=False)


def predicting(q: keras.Model) -> by_xla.Compiled:
    return getattr(q, "xla", {}).get("predict_function", by_xla.Compiled())


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few batches are many."""
    monkeypatch.setattr(held_constants, "MANY", 3)


CASES = [(name, target, "int8") for name in NETWORKS for target in ("tflm", "litert")]
CASES += [("lstm", "tflm", "int16x8"), ("gru", "tflm", "int16x8"), ("gru", "litert", "int16x8")]


@pytest.mark.filterwarnings("ignore:calibrate. in some samples the mask")
@pytest.mark.one_in(4, always="lstm-tflm-int8|gru-litert-int16x8")
@pytest.mark.parametrize(("name", "target", "recipe"), CASES)
def test_the_same_codes(name: str, target: str, recipe: str, at_once: None) -> None:
    q = quantized(name, target, recipe)
    few = q.predict(X[:64], batch_size=32, verbose=0)
    assert predicting(q).function is None
    many = q.predict(X, batch_size=32, verbose=0)  # the last of its batches is not full
    assert predicting(q).function is not None and not predicting(q).refused
    np.testing.assert_array_equal(many, q(X, training=False))
    np.testing.assert_array_equal(many[:64], few)
    again = predicting(q).function
    np.testing.assert_array_equal(q.predict(X[:5], verbose=0), many[:5])
    assert predicting(q).function is again
    assert not q.jit_compile


def _in_threads(run: Callable[[], None]) -> None:
    """Four at once, until all have ended."""
    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_what_changes_is_seen(at_once: None) -> None:
    q = quantized("gru")
    q.predict(X, batch_size=20, verbose=0)
    kquant.calibrate(q, X * 3.0, verbose=False)
    few = q.predict(X[:20], batch_size=20, verbose=0)
    assert predicting(q).function is None  # as many batches again before it is compiled once more
    np.testing.assert_array_equal(few, q(X[:20], training=False))
    np.testing.assert_array_equal(q.predict(X, batch_size=20, verbose=0), q(X, training=False))
    assert predicting(q).function is not None


def test_who_asks_for_none_gets_none(at_once: None) -> None:
    q = quantized("lstm")
    q.compile(jit_compile=False)
    q.predict(X, batch_size=20, verbose=0)
    other = quantized("lstm")
    other.predict(((X[20 * n : 20 * n + 20],) for n in range(4)), steps=4, verbose=0)  # read once, nobody could again
    other.predict(X, batch_size=20, verbose=0, callbacks=[keras.callbacks.Callback()])
    for model in (q, other):
        assert predicting(model).function is None
    other.compile()  # says nothing of it
    other.predict(X, batch_size=20, verbose=0)
    assert predicting(other).function is not None


def images(*made: Callable[[keras.KerasTensor], keras.KerasTensor]) -> keras.Model:
    """Layers on small images."""
    x = y = keras.Input((6, 6, 2), name="image")
    for make in made:
        y = make(y)
    return keras.Model(x, layers.Dense(3, name="head")(layers.GlobalAveragePooling2D(name="pool")(y)))


def residual(x: keras.KerasTensor) -> keras.KerasTensor:
    y = layers.ReLU(6.0)(layers.DepthwiseConv2D(3, padding="same", name="depth")(x))
    return layers.ReLU()(layers.Add(name="add")([x, layers.Conv2D(2, 1, name="point")(y)]))


def gated(x: keras.KerasTensor) -> keras.KerasTensor:
    y = layers.Conv2D(4, 3, name="conv")(x)
    return layers.Multiply(name="mul")([y, layers.Activation("sigmoid", name="gate")(y)])


@pytest.mark.parametrize(("target", "recipe"), [("tflm", "int8"), ("litert", "int8"), ("litert", "int16x8")])
def test_what_stands_between_convolutions_is_compiled(
    target: str, recipe: str, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.float32(np.random.default_rng(3).normal(size=(70, 6, 6, 2)))
    q = kquant.calibrate(kquant.quantize(images(residual, gated), recipe, target=target), pixels, verbose=False)
    small_enough(q, monkeypatch)
    few = q.predict(pixels[:40], batch_size=20, verbose=0)
    assert predicting(q).function is None
    compiled: list[bool] = []
    function = tf.function

    def noted(*args: Any, **options: Any) -> Any:
        compiled.append(bool(options.get("jit_compile")))
        return function(*args, **options)

    monkeypatch.setattr(tf, "function", noted)
    many = q.predict(pixels, batch_size=20, verbose=0)
    # two ends of convolutions alone, ADD, MUL, the head, and the depthwise one
    assert sum(compiled) >= 5 and compiled[0] is False, "the call itself stays TensorFlow's"
    assert predicting(q).function is not None and not predicting(q).refused
    np.testing.assert_array_equal(many, q(pixels, training=False))
    np.testing.assert_array_equal(many[:40], few)
    by, count = predicting(q).function, joined.so_far()
    for rows in (70, 64, 127, 100, 3):  # what is left behind the full batches is few, nothing, filled up, few, all
        np.testing.assert_array_equal(q.predict(np.tile(pixels, (2, 1, 1, 1))[:rows], verbose=0)[:70], many[:rows])
    assert predicting(q).function is by and predicting(q).sizes == {64} and joined.so_far() == count


def small_enough(q: keras.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of 64 small images counts as four, one of 32 as two."""
    numbers = numbers_of(q, np.zeros((1, *q.inputs[0].shape[1:])))
    monkeypatch.setattr(by_xla, "FULL", 16 * sum(numbers) / len(numbers))
    monkeypatch.setattr(by_xla, "FEW", 0)


def with_convolutions() -> tuple[keras.Model, np.ndarray]:
    keras.utils.set_random_seed(2)
    pixels = np.float32(np.random.default_rng(3).normal(size=(70, 6, 6, 2)))
    return kquant.calibrate(kquant.quantize(images(residual)), pixels, verbose=False), pixels


def test_one_image_at_a_time_stays_in_the_graph_of_convolutions() -> None:
    """It would be no faster, and one of the calls would wait for a second."""
    q, pixels = with_convolutions()
    for _ in range(300):
        q.predict(pixels[:1], verbose=0)
    assert predicting(q).function is None and sum(predicting(q).batches.values()) == 0


def test_each_size_is_compiled_where_it_has_run_often_itself(at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    q, pixels = with_convolutions()
    small_enough(q, monkeypatch)
    expected = q(pixels, training=False)
    for rows, sizes in ((64, {64}), (40, {64}), (40, {32, 64}), (10, {32, 64})):
        np.testing.assert_array_equal(q.predict(pixels[:rows], verbose=0), expected[:rows])
        assert predicting(q).sizes == sizes


def test_a_process_compiles_no_more_than_it_may_keep(at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """XLA lets go of nothing while a process lives."""
    q, pixels = with_convolutions()
    small_enough(q, monkeypatch)
    before = joined.so_far()
    monkeypatch.setattr(held_constants, "MOST", before + 1)
    expected = q.predict(pixels, verbose=0)
    functions = predicting(q).functions
    assert functions > 1 and joined.so_far() == before + functions and predicting(q).sizes == {64}
    np.testing.assert_array_equal(q.predict(pixels, verbose=0), expected)  # what is compiled runs
    for _ in range(4):
        q.predict(pixels[:40], verbose=0)
    other, recurrent = with_convolutions()[0], quantized("simple")
    np.testing.assert_array_equal(other.predict(pixels, verbose=0), expected)
    recurrent.predict(X, batch_size=20, verbose=0)
    assert predicting(q).sizes == {64} and predicting(other).function is None is predicting(recurrent).function
    assert joined.so_far() == before + functions


def test_a_dataset_compiles_what_arrays_do(at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once: it is asked beforehand whether it can be run at all, which traces what then runs."""
    q, pixels = with_convolutions()
    small_enough(q, monkeypatch)
    expected, run, made = q(pixels, training=False), [], tf.function
    q.predict(pixels, verbose=0)
    functions = predicting(q).functions
    other = with_convolutions()[0]

    def noted(function: Any, **options: Any) -> Any:
        if options.get("jit_compile") and function is not None:  # not Keras' own
            run.append(function)
        return made(function, **options) if function is not None else made(**options)

    monkeypatch.setattr(tf, "function", lambda function=None, **options: noted(function, **options))
    np.testing.assert_array_equal(
        other.predict(tf.data.Dataset.from_tensor_slices(pixels).batch(35), verbose=0), expected
    )
    assert predicting(other).function is not None and len(run) == predicting(other).functions == functions


def test_what_stands_between_convolutions_is_not_run_beforehand() -> None:
    """Zeros of 32 rows would be compiled, and no batch need have so many."""
    ran: list[int] = []

    def seen(t: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(tf.numpy_function(lambda a: (ran.append(len(a)), a)[1], [t], tf.float32), t.shape)

    x = keras.Input((3,))
    model, data = (
        keras.Model(x, layers.Lambda(seen)(x)),
        tf.data.Dataset.from_tensor_slices(np.ones((9, 3), "f")).batch(4),
    )
    by_xla.try_on_zeros(model, data, whole=False)
    assert ran == []
    by_xla.try_on_zeros(model, data)
    assert ran == [32]


def test_steps_behind_a_convolution_stay_in_the_graph(at_once: None) -> None:
    x = keras.Input((9, 4), name="x")
    for made in (layers.GRU(3), layers.LSTM(3)):
        q = kquant.quantize(keras.Model(x, made(layers.Conv1D(4, 3, padding="causal", name="conv")(x))))
        kquant.calibrate(q, X, verbose=False).predict(X, batch_size=20, verbose=0)
        assert by_xla.way_of(q) is by_xla.Way.NOTHING and predicting(q).function is None


def test_who_predicts_after_each_change_has_nothing_compiled_anew(at_once: None) -> None:
    q, made = quantized("gru"), []
    for _ in range(5):
        weight = q.trainable_variables[0]
        weight.assign(weight * 0.9)
        np.testing.assert_array_equal(q.predict(X, batch_size=20, verbose=0), q(X, training=False))
        made.append(predicting(q).function)
    assert made[0] is not made[1] and len({id(function) for function in made[1:]}) == 1


def test_what_is_compiled_anew_has_all_samples(at_once: None) -> None:
    """A function of one step at a time would leave out the others; a correction says so by the plain function."""
    q = quantized("lstm")
    expected = q.predict(X, batch_size=20, verbose=0)
    before = predicting(q).function
    q.compile(steps_per_execution=3)
    np.testing.assert_array_equal(q.predict(X, batch_size=20, verbose=0), expected)
    assert predicting(q).function is not before


def test_an_index_beyond_the_table_is_told_at_any_length(at_once: None) -> None:
    keras.utils.set_random_seed(2)
    x = keras.Input((5,), dtype="int32")
    words = np.random.default_rng(0).integers(0, 20, (70, 5)).astype(np.int32)
    q = kquant.quantize(keras.Model(x, layers.GRU(3)(layers.Embedding(20, 4, name="words")(x))))
    kquant.calibrate(q, words, verbose=False)
    words[7, 3] = 25
    with pytest.raises(tf.errors.InvalidArgumentError, match="25 is not in"):
        q.predict(words, batch_size=20, verbose=0)


def test_batches_grow_by_the_largest_tensor() -> None:
    """Not by the inputs alone: scores of attention are the square of a length."""
    x = keras.Input((None, 4))
    model = keras.Model(x, layers.Softmax()(layers.Dot(2)([x, x])))
    assert largest(model, np.zeros((3, 500, 4))) == 500 * 500
    assert (batch_for(4096, 2, 500 * 500), batch_for(4096, 8, 500 * 500), batch_for(4096, 8, 500)) == (4, 8, 256)


def test_threads_do_not_take_each_others_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_constants, "MANY", 40)
    q = quantized("gru")
    expected = q.predict(X[:8], batch_size=4, verbose=0)
    failed = []

    def run() -> None:
        try:
            for _ in range(8):
                np.testing.assert_array_equal(q.predict(X[:8], batch_size=4, verbose=0), expected)
        except Exception as error:
            failed.append(error)

    _in_threads(run)
    assert not failed
    assert predicting(q).function is not None and not q.jit_compile


@pytest.mark.parametrize("verb", ["predict", "evaluate"])
def test_where_xla_refuses_the_graph_runs(verb: str, at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorFlow calls Python, which XLA does not compile: its own InvalidArgumentError."""
    q, asked = quantized("lstm"), []
    q.compile(loss="mse")
    head, made = q.get_layer("head"), held_constants.compiled_call
    call, y = head.call, np.zeros((70, 2), np.float32)

    def by_python(*args: object, **kwargs: object) -> object:
        outputs = call(*args, **kwargs)
        return keras.tree.map_structure(
            lambda t: tf.ensure_shape(tf.numpy_function(np.copy, [t], t.dtype), t.shape), outputs
        )

    monkeypatch.setattr(head, "call", by_python)
    monkeypatch.setattr(held_constants, "compiled_call", lambda model, **how: asked.append(1) or made(model, **how))
    expected = q(X, training=False)
    for _ in range(2):
        if verb == "predict":
            np.testing.assert_array_equal(q.predict(X, batch_size=20, verbose=0), expected)
        else:
            loss = q.evaluate(X, y, batch_size=20, verbose=0)
            assert loss == pytest.approx(float(np.mean(np.square(expected))), rel=1e-6)
    known = q.xla["predict_function" if verb == "predict" else "test_function"]
    assert asked == [1] and known.refused and known.function is None and not q.jit_compile


def test_batches_are_filled_up_to_powers_of_two() -> None:
    """Few shapes to compile, and a large batch costs the small ones behind it nothing."""
    x = keras.Input((3,))
    computed = keras.layers.Lambda(lambda x: tf.zeros_like(x[:, :1]) + tf.cast(tf.shape(x)[0], x.dtype))(x)
    call = compiled_call(keras.Model(x, [keras.layers.Rescaling(2.0)(x), computed]))
    run = tf.function(call, input_signature=[tf.TensorSpec((None, 3))])
    values, sizes = np.float32(np.arange(300).reshape(100, 3)), []
    for rows in (40, 7, 1, 100, 64, 33):
        doubled, (size, *_) = run(values[:rows])
        np.testing.assert_array_equal(doubled, values[:rows] * 2)
        sizes.append(int(size[0]))
    assert sizes == [64, 8, 1, 128, 64, 64]


def test_convolutions_are_hardly_filled_up() -> None:
    """They take as long for a sample that is dropped."""
    x = keras.Input((3,))
    computed = keras.layers.Lambda(lambda x: tf.zeros_like(x[:, :1]) + tf.cast(tf.shape(x)[0], x.dtype))(x)
    call = compiled_call(keras.Model(x, [keras.layers.Rescaling(2.0)(x), computed]), whole=False)
    run = tf.function(call, input_signature=[tf.TensorSpec((None, 3))])
    sizes = {}
    for rows in range(1, 300):
        values = np.float32(np.arange(3 * rows).reshape(rows, 3))
        doubled, (size, *_) = run(values)
        np.testing.assert_array_equal(doubled, values * 2)
        sizes[rows] = int(size[0])
    assert all(rows <= size <= 1.125 * rows for rows, size in sizes.items())
    assert all(sizes[n] == n for n in (1, 32, 64, 128, 256)) and sizes[65] == 72
    assert len({size for size in sizes.values() if 32 <= size <= 256}) == 25


def test_what_layers_add_to_the_loss_is_none_of_predict(at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    q = quantized("simple")
    expected, head = q(X, training=False), q.get_layer("head")
    call = head.call

    def charging(x: tf.Tensor, *args: object, **kwargs: object) -> object:
        head.add_loss(tf.reduce_sum(x))
        return call(x, *args, **kwargs)

    monkeypatch.setattr(head, "call", charging)
    np.testing.assert_array_equal(q.predict(X, batch_size=20, verbose=0), expected)
    assert predicting(q).function is not None and not predicting(q).refused


@pytest.mark.parametrize("error", [tf.errors.ResourceExhaustedError, tf.errors.UnimplementedError])
def test_a_refusal_ends_with_the_function_that_it_was_of(
    error: type[tf.errors.OpError], at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here of memory, which may be there the next time."""
    q, made = quantized("simple"), held_constants.compiled_call

    def refusing(*_: object, **__: object) -> object:
        raise error(None, None, "no")

    monkeypatch.setattr(held_constants, "compiled_call", lambda *_, **__: refusing)
    expected = q(X, training=False)
    np.testing.assert_array_equal(q.predict(X, batch_size=20, verbose=0), expected)
    assert predicting(q).refused
    monkeypatch.setattr(held_constants, "compiled_call", made)
    q.predict(X, batch_size=20, verbose=0)
    assert predicting(q).refused
    q.compile()
    np.testing.assert_array_equal(q.predict(X, batch_size=20, verbose=0), expected)
    assert predicting(q).function is not None and not predicting(q).refused


def test_data_of_which_kind_are_how_many_batches() -> None:
    data = tf.data.Dataset.from_tensor_slices((X, X)).batch(20)
    assert batches_of(data, None) == 4 and batches_of(data, None, 3) == 3 and batches_of(data.repeat(), None, 9) == 9
    assert batches_of(data.repeat(), None) == 0 and batches_of(data.filter(lambda *_: True), None) is None
    of_many_lengths = data.padded_batch(2, padded_shapes=([None, None, None], [None, None, None]))
    assert batches_of(of_many_lengths, None) == 0
    assert batches_of(X, 20) == 4 and batches_of(X, 20, 2) == 0 and batches_of(iter(X), None) == 0


def test_first_traces_of_threads_hold_constants_and_are_one() -> None:
    q, functions, failed = quantized("gru"), [], []
    expected, start = q(X[:8], training=False), threading.Barrier(4)

    def run() -> None:
        try:
            start.wait()
            np.testing.assert_array_equal(q.predict(X[:8], batch_size=4, verbose=0), expected)
            functions.append(q.predict_function)
        except Exception as error:
            failed.append(error)

    _in_threads(run)
    assert not failed and len({id(function) for function in functions}) == 1
    assert q.changes["predict_function"] == 0


def test_other_devices_have_no_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    table, places = tf.constant([5, 7]), tf.constant([[0, 1]])

    def branches() -> bool:
        with for_xla():
            graph = tf.function(lambda at: looked_up(table, at)).get_concrete_function(places).graph
        return any("If" in operation.type for operation in graph.get_operations())

    assert branches()
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [kind] if kind == "GPU" else [])
    assert not branches()


def test_a_compiled_look_up_is_a_gather() -> None:
    table, places = tf.constant(np.arange(7, 300, dtype=np.int16)), tf.constant([[0, 5], [292, 17]])
    with for_xla():
        by_xla = tf.function(lambda at: looked_up(table, at), jit_compile=True)(places)
        traced = tf.function(lambda at: looked_up(table, at))(places)
    np.testing.assert_array_equal(by_xla, tf.gather(table, places))
    np.testing.assert_array_equal(traced, by_xla)


@pytest.mark.parametrize("runtime", ["litert", "tflm"])
@pytest.mark.parametrize("seed", range(8))
def test_what_the_input_adds_to_an_lstm_is_that_of_integers(seed: int, runtime: str) -> None:
    """Products in float32 and multipliers in halves, against int64; inputs and biases of any size."""
    rng = np.random.default_rng(seed)
    inputs, units = int(rng.choice([1, 16, 511, 513, 900])), 3
    most = int(rng.choice([2**10, 2**22, 2**31 - 2**27]))
    weights = LstmWeights(
        *(tf.constant(rng.integers(-127, 128, (n, 4 * units)), tf.float64) for n in (inputs, units)),
        tf.constant(rng.integers(-most, most, 4 * units), tf.float64),
        *(tf.constant(10.0 ** rng.uniform(-7, -2, 4), tf.float32) for _ in range(2)),
    )
    source, out = (
        Grid(tf.constant(0.02), tf.constant(-5.0), -128, 127),
        Grid(tf.constant(0.01), tf.constant(3.0), -128, 127),
    )
    kernel = _Kernel(source, weights, out, tf.constant(3), runtime)
    codes = tf.constant(rng.integers(-128, 128, (64, 5, inputs)), tf.int32)
    sums = tf.matmul(tf.cast(centred(codes, source), tf.float64), weights.kernel) + weights.bias
    by = Multiplier(*kernel.by_input)
    expected = np.clip(multiply(tf.cast(sums, tf.int64), by).numpy(), -(2**15), 2**15 - 1) + 2**15
    np.testing.assert_array_equal(kernel.inputs(codes), kernel.sigmoids_first(tf.constant(expected)))

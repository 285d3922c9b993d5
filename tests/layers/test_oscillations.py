"""Oscillating weights: algorithm 1 of the paper written out in numpy, the dampening loss, and frozen codes in files."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import kquant
from kquant.core.spec import QuantSpec
from kquant.layers.oscillations import STATE, Freezing, dampening, risen
from kquant.layers.weight_learner import WeightLearner

pytestmark = pytest.mark.filterwarnings(
    r"ignore:calibrate. \d+ samples are few",
    "ignore:calibrate. these tensors hold a single value",
    "ignore:quantize. .* takes no packed 4-bit weights",
)

layers = keras.layers


def reference(series: np.ndarray, threshold: float, momentum: float) -> tuple[np.ndarray, np.ndarray]:
    """Codes in force after each step and frequencies, one weight at a time."""
    count = series.shape[1]
    kept, frequencies = np.zeros(series.shape), np.zeros(count)
    for w in range(count):
        previous, direction, average, frozen = series[0, w], 0.0, series[0, w], None
        kept[0, w] = previous
        for t in range(1, len(series)):
            code = series[t, w] if frozen is None else frozen
            change = np.sign(code - previous)
            jumped = change != 0 and direction != 0 and change == -direction
            frequencies[w] = momentum * jumped + (1 - momentum) * frequencies[w]
            average = momentum * code + (1 - momentum) * average
            if frozen is None and frequencies[w] > threshold:
                code = frozen = np.rint(average)
            direction = change if change != 0 else direction
            previous = kept[t, w] = code
    return kept, frequencies


def test_freezing_is_the_papers_algorithm():
    rng = np.random.default_rng(0)
    wander = np.cumsum(rng.normal(0, 0.3, (60, 40)), 0)
    series = np.rint(wander + rng.choice([0, 0.6], 40) * np.sign(np.sin(np.arange(60) * 2.2))[:, None]).clip(-7, 7)
    layer = Freezing(0.25, 0.1)
    layer.build((40,))
    kept, frequencies = reference(series, 0.25, 0.1)
    for t, codes in enumerate(series):
        layer.advance(tf.constant(codes, tf.float32), tf.constant(True))
        np.testing.assert_allclose(layer(tf.constant(codes, tf.float32)) * layer.frozen, kept[t] * layer.frozen)
    np.testing.assert_allclose(layer.frequency, frequencies, atol=1e-6)
    assert 0.1 < float(tf.reduce_mean(layer.frozen)) < 0.9


def test_nothing_is_counted_before_the_final_width():
    layer = Freezing(0.15, 0.1)
    layer.build((3,))
    for sign in (1.0, -1.0, 1.0, -1.0):
        layer.advance(tf.fill((3,), sign), tf.constant(False))
    assert all(np.all(np.asarray(v) == 0) for v in layer.variables)


def test_frozen_weights_have_no_gradient():
    spec = QuantSpec(4, symmetric=True, narrow=True)
    learner = WeightLearner({"oscillations": {"freeze": 0.1}}, spec.to_config())
    learner.build((4,), (1,))
    learner.freezing.frozen.assign([0, 1, 0, 1])
    learner.freezing.previous.assign([0, 3, 0, -2])
    w = tf.constant([0.2, 0.4, -0.3, 0.1])
    with tf.GradientTape() as tape:
        tape.watch(w)
        made = learner.quantized(w, tf.constant([0.1]))
        loss = tf.reduce_sum(made)
    np.testing.assert_allclose(made, [0.2, 0.3, -0.3, -0.2], atol=1e-6)
    np.testing.assert_allclose(tape.gradient(loss, w), [1, 0, 1, 0], atol=1e-6)


def test_dampening_against_its_formula():
    rng = np.random.default_rng(0)
    w, scale = rng.normal(size=(20, 3)), np.abs(rng.normal(size=(1, 3))) * 0.2
    codes = np.rint(w / scale).clip(-7, 7)
    expected = np.sum((codes * scale - np.clip(w, -7 * scale, 7 * scale)) ** 2)
    t, q, s = (tf.constant(v, tf.float32) for v in (w, codes * scale, scale))
    with tf.GradientTape() as tape:
        tape.watch(t)
        found = dampening(t, q, s, tf.constant(-7.0), tf.constant(7.0))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    pull = np.where(np.abs(w) < 7 * scale, 2 * (w - codes * scale), 0)
    np.testing.assert_allclose(tape.gradient(found, t), pull, atol=1e-5)
    np.testing.assert_allclose([float(risen(tf.constant(n), 10)) for n in (0.0, 5.0, 10.0, 20.0)], [0, 0.5, 1, 1])


@pytest.mark.parametrize("gain", [False, True])
def test_frozen_codes_reach_the_file(tmp_path, gain):
    keras.utils.set_random_seed(1)
    x = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)
    y = np.random.default_rng(1).normal(size=(64, 3)).astype(np.float32)
    parts = [layers.BatchNormalization()] if gain else []
    model = keras.Sequential([keras.Input((5,)), layers.Dense(3, name="d"), *parts])
    training = {"ranges": "learned", "oscillations": {"freeze": 0.05, "momentum": 0.04, "dampen": 0.1}}
    q = kquant.quantize(model, {"name": "o", "weights": {"bits": 3}, "training": training})
    kquant.calibrate(q, x, verbose=False)
    q.compile(keras.optimizers.SGD(1.0), "mse", run_eagerly=True)  # so large that weights jump
    for _ in range(12):
        q.train_on_batch(x, y)
    dense = q.get_layer("d")
    frozen = np.asarray(dense.learner.freezing.frozen) > 0
    assert frozen.any()
    held = np.asarray(dense.learner.freezing.previous)
    q.save(tmp_path / "q.keras")
    q = keras.models.load_model(tmp_path / "q.keras")
    kquant.export(q, tmp_path / "m.tflite", data=x[:2], check_runtimes=False)
    file = Interpreter(str(tmp_path / "m.tflite"))
    file.allocate_tensors()
    found = next(t["index"] for t in file.get_tensor_details() if t["name"].endswith("kernel"))
    codes = file.get_tensor(found).reshape(3, 5).T
    np.testing.assert_array_equal(codes[frozen], held[frozen])
    np.testing.assert_array_equal(codes, q.get_layer("d").codes(tf.constant(1.0))[0].numpy())


def test_unreachable_thresholds_are_refused():
    with pytest.raises(ValueError, match="above momentum"):
        kquant.Recipe(name="r", training={"oscillations": {"freeze": 0.01, "momentum": 0.1}})


FREEZE = {"name": "f", "weights": {"bits": 4}, "training": {"oscillations": {"freeze": 0.02}}}


def dense() -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((16,)), layers.Dense(8, name="d")])


def freeze_all(freezing: Freezing, code: float = 3.0) -> None:
    """As if training had frozen every weight at this code."""
    freezing.frozen.assign(tf.ones_like(freezing.frozen))
    freezing.previous.assign(tf.fill(freezing.previous.shape, code))


def test_a_mask_that_comes_later_holds_its_zeros_in_training_too():
    q = kquant.calibrate(kquant.quantize(dense(), FREEZE), np.ones((4, 16), np.float32), verbose=False)
    freeze_all(q.get_layer("d").learner.freezing)
    q = kquant.prune(q, 0.75)
    d = q.get_layer("d")
    kept = d.transforms[0].mask.numpy()
    for weights in (d._learned(0), d.weights_on_grid()):
        np.testing.assert_array_equal(np.asarray(weights) != 0, kept)
    q(np.ones((4, 16), np.float32), training=True)
    np.testing.assert_array_equal(np.asarray(d.learner.freezing.frozen) > 0, kept)  # a masked weight may come back


def test_weights_of_zero_are_forgotten():
    layer = Freezing(0.15, 0.1)
    layer.build((2,))
    zeros = tf.constant([True, False])
    for sign in (1.0, -1.0, 1.0, -1.0, 1.0):
        layer.advance(tf.constant([sign, sign]), tf.constant(True))
    assert np.all(np.asarray(layer.frozen) == 1)
    held = float(layer.previous.numpy()[1])
    np.testing.assert_array_equal(layer.call(tf.constant([0.0, 5.0]), zeros), [0.0, held])
    layer.advance(tf.constant([0.0, 1.0]), tf.constant(True), zeros)
    np.testing.assert_array_equal([getattr(layer, name).numpy()[0] for name in STATE], np.zeros(5))
    np.testing.assert_array_equal(layer.frozen.numpy(), [0, 1])


def test_masks_and_frozen_codes_of_an_lstm_are_those_of_the_file(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3, 6)), layers.LSTM(5, name="l")])
    x = np.random.default_rng(0).normal(size=(16, 3, 6)).astype(np.float32)
    q = kquant.calibrate(kquant.quantize(model, {**FREEZE, "weights": {"bits": 8}}), x, verbose=False)
    for learner in q.get_layer("l").learners:
        freeze_all(learner.freezing)
    q = kquant.prune(q, 0.6)
    lstm = q.get_layer("l")
    for number, path in enumerate(("cell.kernel", "cell.recurrent_kernel")):
        kept = lstm.transforms[path][0].mask.numpy()
        trained = lstm._on_grid(lstm.weights_as_used(path), number, training=True)
        for weights in (trained, lstm.weights_on_grid(path)):
            np.testing.assert_array_equal(np.asarray(weights) != 0, kept)
    kquant.export(q, tmp_path / "m.tflite", data=x[:2], check_runtimes=False)
    np.testing.assert_array_equal(kquant.predict(tmp_path / "m.tflite", x, "litert-reference"), np.asarray(q(x)))
    assert zeros_in_file(tmp_path / "m.tflite") == sum(k.zeros for k in kquant.sparsity(q).kernels)


def zeros_in_file(path) -> int:
    """Of the int8 matrices of an LSTM."""
    file = Interpreter(str(path))
    file.allocate_tensors()
    (op,) = [op for op in file._get_ops_details() if op["op_name"] == "UNIDIRECTIONAL_SEQUENCE_LSTM"]
    return sum(int(np.sum(file.get_tensor(int(n)) == 0)) for n in op["inputs"][1:9])


def test_sparsity_of_an_lstm_counts_weights_that_round_to_zero(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3, 6)), layers.LSTM(5, name="l")])
    x = np.random.default_rng(0).normal(size=(16, 3, 6)).astype(np.float32)
    q = kquant.calibrate(kquant.quantize(model, {"name": "w3", "weights": {"bits": 3}}), x, verbose=False)
    kquant.export(q, tmp_path / "m.tflite", data=x[:2], check_runtimes=False)
    found = sum(k.zeros for k in kquant.sparsity(q).kernels)
    assert found > 10
    assert zeros_in_file(tmp_path / "m.tflite") == found


def most_codes(q: keras.Model) -> int:
    """Different codes of a channel of the layer "d"."""
    return max(len(np.unique(channel)) for channel in q.get_layer("d").codes(tf.constant(1.0))[0].numpy().T)


@pytest.mark.parametrize("per_channel", [False, True, "scale"])
def test_weights_that_share_values_are_not_frozen_one_by_one(per_channel, tmp_path):
    """Neither where the codebook came first, nor where weights were frozen before it came."""
    data = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    before = kquant.cluster(dense(), 4, per_channel=per_channel)
    with pytest.warns(UserWarning, match="quantize: the weights of d share values, so oscillations.freeze"):
        q = kquant.calibrate(kquant.quantize(before, FREEZE), data, verbose=False)
    late = kquant.calibrate(kquant.quantize(dense(), FREEZE), data, verbose=False)
    freezing = late.get_layer("d").learner.freezing
    freeze_all(freezing)
    freezing.previous.assign(np.random.default_rng(0).integers(-7, 8, (16, 8)))
    with pytest.warns(UserWarning, match="cluster: the weights of d share values"):
        late = kquant.cluster(late, 4, per_channel=per_channel)
    for clustered in (q, late):
        clustered.compile(keras.optimizers.SGD(2.0), "mse", run_eagerly=True)  # so large that weights jump
        for _ in range(6):
            clustered.train_on_batch(data, data[:, :8])
        assert most_codes(clustered) <= 4
        assert most_codes_trained(clustered) <= 4
        assert not np.any(np.asarray(clustered.get_layer("d").learner.freezing.frozen))


def most_codes_trained(q: keras.Model) -> int:
    """As training sees them."""
    return max(len(np.unique(channel)) for channel in q.get_layer("d")._learned(0).numpy().T)


def test_lstms_that_share_values_are_not_frozen():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3, 6)), layers.LSTM(5, name="l")])
    q = kquant.quantize(model, {**FREEZE, "weights": {"bits": 8}})
    for learner in q.get_layer("l").learners:
        freeze_all(learner.freezing)
        learner.freezing.previous.assign(np.random.default_rng(0).integers(-7, 8, learner.freezing.previous.shape))
    with pytest.warns(UserWarning, match="cluster: the weights of l share values"):
        q = kquant.cluster(q, 4)
    lstm = q.get_layer("l")
    lstm._begin_step()
    for number, path in enumerate(("cell.kernel", "cell.recurrent_kernel")):
        assert len(np.unique(lstm.weights_as_used(path))) <= 4
        for weights in (lstm.weights_on_grid(path), lstm._on_grid(lstm.weights_as_used(path), number, training=True)):
            gates = np.asarray(weights).reshape(-1, 4, 5)
            assert max(len(np.unique(gates[:, gate])) for gate in range(4)) <= 4
        assert not np.any(np.asarray(lstm.learners[number].freezing.frozen))

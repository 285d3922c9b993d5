"""Sequences with padding: masks before recurrent layers, in the model and in its file."""

from __future__ import annotations

import warnings

import contract
import keras
import new_process
import numpy as np
import pytest

import kquant
from kquant.prepare.one_step import cell

layers = keras.layers
STEPS, FEATURES, WORDS = 7, 3, 20
REFERENCES = (("litert", "litert-reference"), ("tflm", "tflm"))


def blocks(count: int, steps: int, seed: int, anywhere: bool) -> np.ndarray:
    """bool[count, steps]: one block of real steps each; the first sample is full, the second empty."""
    rng = np.random.default_rng(seed)
    real = np.zeros((count, steps), bool)
    for i, n in enumerate([steps, 0, *rng.integers(1, steps + 1, count - 2)]):
        first = rng.integers(0, steps - n + 1) if anywhere else 0
        real[i, first : first + n] = True
    return real


def sequences(count: int = 64, steps: int = STEPS, seed: int = 0, anywhere: bool = False) -> np.ndarray:
    """Smooth sequences, padded with zeros behind, or on both sides."""
    rng = np.random.default_rng(seed)
    x = np.cumsum(rng.normal(size=(count, steps, FEATURES)), 1) * 0.5
    return np.float32(x * blocks(count, steps, seed, anywhere)[..., None])


def sentences(count: int = 64, steps: int = STEPS, seed: int = 0, anywhere: bool = False) -> np.ndarray:
    """Indices of words, 0 where there is none."""
    words = np.random.default_rng(seed).integers(1, WORDS, (count, steps))
    return np.int32(words * blocks(count, steps, seed, anywhere))


def build(*made, steps: int = STEPS) -> keras.Model:
    """A network of padded sequences."""
    keras.utils.set_random_seed(3)
    y = x = keras.Input((steps, FEATURES), name="x")
    for layer in (layers.Masking(name="masking"), *made):
        y = layer(y)
    return contract.randomise(keras.Model(x, y, name="padded"))


def of_words(*made, steps: int = STEPS) -> keras.Model:
    """A network of padded sentences."""
    keras.utils.set_random_seed(3)
    y = x = keras.Input((steps,), dtype="int32", name="tokens")
    for layer in (layers.Embedding(WORDS, 5, mask_zero=True, name="table"), *made):
        y = layer(y)
    return contract.randomise(keras.Model(x, y, name="sentences"))


def signal_to_noise(wanted, found) -> float:
    """dB, of the output that has the least. Keras' mean of no step is NaN, and left out here."""
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(*map(keras.tree.flatten, (wanted, found)), strict=True)]
    pairs = [(a[np.isfinite(a)], b[np.isfinite(a)]) for a, b in pairs]
    return min(float(10 * np.log10(np.sum(a**2) / np.sum((a - b) ** 2))) for a, b in pairs)


NETWORKS = {
    "last": lambda: build(layers.LSTM(6), layers.Dense(3)),
    "words": lambda: of_words(layers.LSTM(6), layers.Dense(3)),
    "stacked": lambda: build(layers.LSTM(6, return_sequences=True), layers.LSTM(5), layers.Dense(3)),
    "every step": lambda: build(layers.LSTM(6, return_sequences=True), layers.Dense(3)),
    "zeros": lambda: build(layers.LSTM(6, return_sequences=True, zero_output_for_mask=True)),
    "both ways": lambda: build(
        layers.Bidirectional(layers.LSTM(4, return_sequences=True)), layers.Bidirectional(layers.LSTM(4))
    ),
    "backwards": lambda: build(layers.LSTM(4, return_sequences=True, go_backwards=True)),
    "backwards, zeros": lambda: build(
        layers.LSTM(4, return_sequences=True, go_backwards=True, zero_output_for_mask=True)
    ),
    "state": lambda: build(lambda x: layers.LSTM(5, return_sequences=True, return_state=True)(x)[:2]),
    "gru": lambda: build(layers.GRU(4), layers.Dense(2), steps=3),
    "layers between": lambda: build(
        layers.GRU(4, return_sequences=True),
        layers.Dropout(0.5),
        layers.LayerNormalization(),
        layers.TimeDistributed(layers.Dense(4, activation="relu")),
        layers.SimpleRNN(3),
        steps=3,
    ),
    "two grus": lambda: of_words(
        layers.Bidirectional(layers.GRU(3, return_sequences=True), merge_mode="ave"), layers.GRU(3), steps=3
    ),
    "states": lambda: build(lambda x: layers.LSTM(4, activation="relu", return_state=True)(x), steps=3),
    "mean": lambda: of_words(layers.Dense(6, activation="relu"), layers.GlobalAveragePooling1D(), layers.Dense(3)),
    "mean of outputs": lambda: build(
        layers.LSTM(6, return_sequences=True), layers.GlobalAveragePooling1D(keepdims=True), layers.Dense(3)
    ),
    "cells": lambda: build(layers.RNN([layers.LSTMCell(4), layers.GRUCell(3)], return_sequences=True), steps=3),
}


def samples(model: keras.Model, count: int, seed: int = 0, anywhere: bool = False) -> np.ndarray:
    """Padded samples for one of the networks."""
    make = sentences if model.inputs[0].dtype == "int32" else sequences
    return make(count, model.inputs[0].shape[1], seed, anywhere)


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("name", "target", "runtime"), [(name, *REFERENCES[i % 2]) for i, name in enumerate(NETWORKS)])
def test_masked_steps_are_left_out(name, target, runtime):
    """As Keras does it, padding at either side; file and simulation in equal codes."""
    model = NETWORKS[name]()
    q = kquant.quantize(model, target=target)
    kquant.calibrate(q, samples(model, 128, anywhere=True), batch_size=128, verbose=False)
    x = np.concatenate([samples(model, 6, seed) for seed in (1, 2)] + [samples(model, 6, 3, anywhere=True)])
    assert contract.compare(q, contract.file_of(q), runtime, [x]) == contract.Parity(1.0, 0)
    assert signal_to_noise(model(x), q(x, training=False)) > 25


def calibrated(name: str) -> tuple[keras.Model, keras.Model]:
    """One of the networks, and its quantized form."""
    model = NETWORKS[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # padding at the ends is as expected
        q = kquant.calibrate(kquant.quantize(model), samples(model, 128), batch_size=64, verbose=False)
    return model, q


@pytest.mark.parametrize("name", ["last", "both ways"])
def test_padding_changes_nothing(name):
    """To the bit what the model gives for the sequence without its padding, wherever that stands."""
    _, q = calibrated(name)
    short = sequences(count=2, seed=5)[:1, :4]  # of full length
    padded = [np.pad(short, ((0, 0), (n, STEPS - 4 - n), (0, 0))) for n in (0, 2, 3)]
    cut = kquant.quantize(NETWORKS[name](), input_shape=(None, 4, FEATURES))
    cut.set_weights(q.get_weights())
    for x in padded:
        np.testing.assert_array_equal(q(x), cut(short))


@pytest.mark.parametrize("factor", [1e-4, 1.0, 300.0])
@pytest.mark.parametrize(("target", "runtime"), REFERENCES)
def test_steps_are_told_by_codes_of_any_scale(factor, target, runtime):
    """A step that is one code away from 0 is real."""
    x = sequences(64) * np.float32(factor)
    model = build(layers.LSTM(3))
    model.layers[2].cell.kernel.assign(model.layers[2].cell.kernel / factor)
    q = kquant.calibrate(kquant.quantize(model, target=target), x, verbose=False)
    scale, _, _ = next(layer for layer in q.layers if hasattr(layer, "grid")).grid()
    given = sequences(12, seed=4) * np.float32(factor)
    given[:, 2:] = 0.0
    given[:, 2, 1] = np.float32(scale)
    assert contract.compare(q, contract.file_of(q), runtime, [given]) == contract.Parity(1.0, 0)
    assert signal_to_noise(model(given), q(given, training=False)) > 20


def test_trains_saves_and_loads(tmp_path):
    """Gradients pass the rows that are picked; another process reads the model."""
    _, q = calibrated("words")
    x = sentences(64)
    q.compile(keras.optimizers.Adam(0.05), "mse", run_eagerly=True)
    wanted = np.float32(np.stack([(x == n).sum(1) for n in (1, 2, 3)], 1))
    losses = q.fit(x, wanted, epochs=8, batch_size=64, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]
    q.save(tmp_path / "q.keras")
    np.save(tmp_path / "x.npy", x)
    code = (
        "import sys, keras, kquant, numpy as np; folder = sys.argv[1];"
        "q = keras.models.load_model(folder + '/q.keras'); np.save(folder + '/y.npy', q(np.load(folder + '/x.npy')))"
    )
    done = new_process.run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), q(x))
    assert contract.compare(q, contract.file_of(q), "litert-reference", [x[:16]]) == contract.Parity(1.0, 0)


def test_padding_between_real_steps_is_named():
    """What the warning says to do gives what the mask stands for."""
    model, x = NETWORKS["last"](), sequences(64)
    x[:, 2] = 0.0
    q = kquant.quantize(model)
    with pytest.warns(UserWarning, match="lstm.*_begin: in some samples .* between real ones"):
        kquant.calibrate(q, x, verbose=False)
    moved = np.zeros_like(x)
    for i, real in enumerate(np.any(x, axis=-1)):
        moved[i, : real.sum()] = x[i, real]
    np.testing.assert_allclose(model(moved), model(x), atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kquant.calibrate(q, moved, verbose=False)


def marked(value: float, *made, features: int = FEATURES) -> keras.Model:
    """A network of sequences whose padding holds `value`."""
    keras.utils.set_random_seed(3)
    y = x = keras.Input((STEPS, features), name="x")
    for layer in (layers.Masking(value, name="masking"), *made):
        y = layer(y)
    return contract.randomise(keras.Model(x, y, name="marked"))


def signals(value: float, count: int, seed: int = 0, features: int = FEATURES) -> np.ndarray:
    """Sequences with `value` before and behind the real steps."""
    x = np.cumsum(np.random.default_rng(seed).normal(size=(count, STEPS, features)), 1) * 0.5
    return np.float32(np.where(blocks(count, STEPS, seed, True)[..., None], x, value))


def _twice(x):
    return x * 2.0


MARKED = {  # value, layers, features, recipe, runtime
    "off the grid": (0.5, [layers.LSTM], 3, "int8", "tflm"),
    "far below, by XNNPACK": (-999.0, [layers.LSTM, layers.Dense], 3, "int8", "litert"),
    "far below, 16 bits": (-999.0, [layers.Dense, layers.LSTM], 3, "int16x8", "tflm"),
    "one feature, far below": (-999.0, [layers.LSTM], 1, "int8", "litert-reference"),
    "one feature, above": (99.0, [layers.LSTM], 1, "int8", "tflm"),
    "mean, far below": (-999.0, [lambda _: layers.GlobalAveragePooling1D()], 3, "int8", "litert-reference"),
    "mask ignored": (-999.0, [lambda n: layers.Lambda(_twice), lambda n: layers.Flatten()], 3, "int8", "tflm"),
}


@pytest.mark.parametrize("name", MARKED)
@pytest.mark.filterwarnings("error", "ignore:quantize.*no 16-bit kernel", "ignore:.*does not support masking")
def test_padding_of_any_value(name):
    """It has no part in the range, and the code that its value gets tells it; no check of scales takes it for data."""
    value, made, features, recipe, runtime = MARKED[name]
    model = marked(value, *(make(4) for make in made), features=features)
    q = kquant.quantize(model, recipe, target="tflm" if runtime == "tflm" else "litert")
    kquant.calibrate(q, signals(value, 128, features=features), batch_size=64, verbose=False)
    x, file = signals(value, 14, 5, features), contract.file_of(q)
    assert contract.compare(q, file, runtime, [x]) == contract.Parity(1.0, 0)
    assert signal_to_noise(model(x), q(x, training=False)) > 25
    kquant.predict(file, x[:2], runtime=runtime)


def test_padding_is_in_the_range_where_something_reads_it():
    x = keras.Input((STEPS, FEATURES), name="x")
    y = layers.LSTM(3)(layers.Masking(-9.0)(x))
    model = contract.randomise(keras.Model(x, [y, layers.GlobalAveragePooling1D()(x)]))
    q = kquant.calibrate(kquant.quantize(model), signals(-9.0, 64), verbose=False)
    given = signals(-9.0, 12, 5)
    assert signal_to_noise(model(given), q(given, training=False)) > 20
    assert contract.compare(q, contract.file_of(q), "litert-reference", [given]) == contract.Parity(1.0, 0)


def test_real_steps_that_look_like_padding_are_named(tmp_path):
    """In shards of the data too; the number that the warning says to take has a code of its own."""
    x = signals(0.0, 64)
    x[5] = 1.0
    x[5, -1] = 1e-3
    q = kquant.quantize(marked(0.0, layers.LSTM(2)))
    first, second = (kquant.observe(q, part, verbose=False) for part in (x[:32], x[32:]))
    first.save(tmp_path / "first.npz")
    with pytest.warns(UserWarning, match="'x_quant': real steps at an end .* near to 0"):
        kquant.calibrate(q, second + kquant.Observations.load(tmp_path / "first.npz"), verbose=False)
    far = np.where(np.any(x, axis=-1, keepdims=True), x, np.float32(-999.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kquant.calibrate(kquant.quantize(marked(-999.0, layers.LSTM(2))), far, verbose=False)


@keras.saving.register_keras_serializable(package="test_padding")
class Inside(layers.Layer):
    """A layer whose inside is masked."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.mask, self.lstm = layers.Masking(), layers.LSTM(3)

    def call(self, x):
        return self.lstm(self.mask(x))


def nested() -> keras.Model:
    return keras.Sequential([keras.Input((STEPS, FEATURES)), layers.Masking(), layers.Dense(4)])


# What reads a mask, and what looks as if it did: as in Keras, operations and sums with a whole input lose it.
MASKS = {
    "inside a layer": lambda x: Inside(name="mine")(x),
    "of two tensors": lambda x: layers.LSTM(3)(layers.Add()([layers.Masking()(x), layers.Masking()(x * 2.0)])),
    "side by side": lambda x: layers.LSTM(3)(layers.Concatenate()([m := layers.Masking()(x), m])),
    "written by hand": lambda x: layers.LSTM(3)(x, mask=keras.ops.any(keras.ops.not_equal(x, 0.0), axis=-1)),
    "of a nested model": lambda x: layers.LSTM(3)(nested()(x)),
    "lost behind an operation": lambda x: layers.LSTM(3)(layers.Masking()(x) * 2.0),
    "met by a whole input": lambda x: layers.LSTM(3)(layers.Add()([layers.Masking()(x), x])),
}


@pytest.mark.parametrize("name", sorted(MASKS))
def test_masks_go_where_keras_sends_them(name):
    keras.utils.set_random_seed(1)
    x = keras.Input((STEPS, FEATURES), name="x")
    model = contract.randomise(keras.Model(x, MASKS[name](x)))
    q = kquant.calibrate(kquant.quantize(model), sequences(128), batch_size=128, verbose=False)
    given = sequences(12, seed=4)
    assert signal_to_noise(model(given), q(given, training=False)) > 25
    assert contract.compare(q, contract.file_of(q), "litert-reference", [given]) == contract.Parity(1.0, 0)


@pytest.mark.parametrize("name", ["last", "words"])
def test_pruned_layers_take_their_masks_along(name):
    model = kquant.prune(NETWORKS[name](), 0.5)
    q = kquant.calibrate(kquant.quantize(model), samples(model, 64), verbose=False)
    x = samples(model, 12, 4, anywhere=True)
    assert signal_to_noise(model(x), q(x, training=False)) > 20


def test_one_step_of_a_stream_has_no_padding():
    with pytest.raises(ValueError, match="masking_mask: .*Build the model without Masking"):
        cell(build(layers.LSTM(4)))

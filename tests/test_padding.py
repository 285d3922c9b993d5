"""Sequences with padding: masks before recurrent layers, in the model and in its file."""

from __future__ import annotations

import contract
import keras
import numpy as np
import pytest

import kquant
from kquant.cell import cell

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
    """dB, of the output that has the least."""
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(*map(keras.tree.flatten, (wanted, found)), strict=True)]
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
    "cells": lambda: build(layers.RNN([layers.LSTMCell(4), layers.GRUCell(3)], return_sequences=True), steps=3),
}


def samples(model: keras.Model, count: int, seed: int = 0, anywhere: bool = False) -> np.ndarray:
    """Padded samples for one of the networks."""
    make = sentences if model.inputs[0].dtype == "int32" else sequences
    return make(count, model.inputs[0].shape[1], seed, anywhere)


@pytest.mark.parametrize(
    ("name", "target", "runtime"), [(name, *REFERENCES[i % 2]) for i, name in enumerate(NETWORKS)]
)
def test_masked_steps_are_left_out(name, target, runtime):
    """As Keras does it, padding at either side; file and simulation in equal codes."""
    model = NETWORKS[name]()
    q = kquant.quantize(model, target=target)
    kquant.calibrate(q, samples(model, 128, anywhere=True), batch_size=128, verbose=False)
    x = np.concatenate([samples(model, 6, seed) for seed in (1, 2)] + [samples(model, 6, 3, anywhere=True)])
    assert contract.compare(q, contract.file_of(q), runtime, [x]) == contract.Parity(1.0, 0)
    assert signal_to_noise(model(x), q(x, training=False)) > 25


def test_one_step_of_a_stream_has_no_padding():
    with pytest.raises(ValueError, match="masking_mask: .*Build the model without Masking"):
        cell(build(layers.LSTM(4)))

"""Losses and metrics of quantized models leave out what masks mark, as they do with the float model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import new_process
import numpy as np
import pytest

import kquant
from kquant.graph import held_constants
from kquant.graph.keras_private import mask_of

layers = keras.layers
STEPS, CLASSES = 6, 3
RNG = np.random.default_rng(5)
LENGTHS = RNG.integers(2, STEPS, 32)
REAL = np.arange(STEPS) < LENGTHS[:, None]
WORDS = np.where(REAL, RNG.integers(1, 9, (32, STEPS)), 0)
FEATURES = np.where(REAL[..., None], RNG.normal(size=(32, STEPS, 4)), -9.0).astype(np.float32)
LABELS = RNG.integers(0, CLASSES, (32, STEPS))


def of_words() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((STEPS,), dtype="int32"),
            layers.Embedding(9, 4, mask_zero=True),
            layers.LSTM(4, return_sequences=True),
            layers.Dense(CLASSES),
        ]
    )


def of_features() -> keras.Model:
    x = keras.Input((STEPS, 4))
    y = layers.Bidirectional(layers.GRU(3, return_sequences=True))(layers.Masking(-9.0)(x))
    return keras.Model(x, layers.Dense(CLASSES)(y))


def of_two() -> keras.Model:
    """The mask is of the second input; the other output has none."""
    a, b = keras.Input((4,), name="a"), keras.Input((STEPS, 4), name="b")
    y = layers.Dense(CLASSES, name="steps")(layers.SimpleRNN(3, return_sequences=True)(layers.Masking(-9.0)(b)))
    return keras.Model({"a": a, "b": b}, {"steps": y, "whole": layers.Dense(2, name="whole")(a)})


def masked_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """In float64: the mean over the real steps, as Keras has it."""
    logits = logits.astype(np.float64)
    log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return float(-np.take_along_axis(log, labels[..., None], -1)[..., 0][REAL].mean())


def quantized(model: keras.Model, x: Any) -> keras.Model:
    q = kquant.calibrate(kquant.quantize(model), x, verbose=False)
    q.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return q


@pytest.mark.parametrize(("build", "x"), [(of_words, WORDS), (of_features, FEATURES)])
@pytest.mark.parametrize("xla", [False, True])
def test_evaluate_counts_the_real_steps(
    build: Callable[[], keras.Model], x: np.ndarray, xla: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if xla:
        monkeypatch.setattr(held_constants, "MANY", 1)
    q = quantized(build(), x)
    logits = q.predict(x, verbose=0)
    told = q.evaluate(x, LABELS, verbose=0, return_dict=True)
    assert told["loss"] == pytest.approx(masked_loss(logits, LABELS), rel=1e-5)
    assert told["accuracy"] == pytest.approx((logits.argmax(-1) == LABELS)[REAL].mean(), rel=1e-5)


def test_labels_of_padding_teach_nothing() -> None:
    weights = []
    for labels in (LABELS, np.where(REAL, LABELS, 0)):
        keras.utils.set_random_seed(0)
        q = quantized(of_words(), WORDS)
        q.fit(WORDS, labels, epochs=2, shuffle=False, verbose=0)
        weights.append(q.get_weights())
    assert all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.parametrize("verb", ["fold", "strip", "copy"])
def test_models_made_of_it_count_the_real_steps(verb: str) -> None:
    model = of_words()
    q = quantized(model, WORDS)
    made = {
        "fold": lambda: kquant.fold(model),
        "strip": lambda: kquant.strip(q),
        "copy": lambda: type(q).from_config(q.get_config()),
    }[verb]()
    if verb == "copy":
        made.set_weights(q.get_weights())
    assert np.array_equal(mask_of(made(WORDS)), REAL)


def test_a_model_of_keras_own_layers_says_what_it_loses() -> None:
    x = keras.Input((STEPS, 4))
    model = keras.Model(x, layers.Dense(CLASSES, name="tags")(layers.Masking()(x)), name="tagger")
    q = quantized(model, FEATURES)
    assert mask_of(q(FEATURES)) is not None
    for verb in (lambda: kquant.strip(q), lambda: kquant.fold(model)):
        with pytest.warns(UserWarning, match=r"tagger: .*masks of its outputs \(tags\).*sample_weight"):
            assert not any(type(layer).__module__.startswith("kquant") for layer in verb().layers)


def test_inputs_by_name_and_an_output_without_a_mask(tmp_path: Path) -> None:
    x = {"b": FEATURES, "a": FEATURES[:, 0]}
    q = kquant.calibrate(kquant.quantize(of_two()), x, verbose=False)
    masks = {name: mask_of(y) for name, y in q(x).items()}
    assert masks["whole"] is None
    assert np.array_equal(masks["steps"], REAL)
    q.save(tmp_path / "q.keras")
    np.savez(tmp_path / "x.npz", **x)
    code = """
import sys, keras, kquant, numpy as np
from kquant.graph.keras_private import mask_of
folder = sys.argv[1]
x = dict(np.load(f"{folder}/x.npz"))
print(int(np.sum(mask_of(keras.saving.load_model(f"{folder}/q.keras")(x)["steps"]))))
"""
    done = new_process.run(code, tmp_path)
    assert done.stdout.split()[-1] == str(int(REAL.sum())), done.stderr


def test_a_mask_of_what_the_model_computes_is_named() -> None:
    data = np.where(FEATURES > -9.0, np.abs(FEATURES), FEATURES)  # the ReLU makes zeros of padding alone
    x = keras.Input((STEPS, 4))
    y = layers.SimpleRNN(3, return_sequences=True)(layers.Masking()(layers.ReLU()(x)))
    model = keras.Model(x, layers.Dense(CLASSES, name="tags")(y))
    with pytest.warns(UserWarning, match=r"output 'tags': the mask is of a tensor.*sample_weight"):
        q = kquant.quantize(model)
    kquant.calibrate(q, data, verbose=False)
    q.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    weights = REAL / REAL.mean()  # Keras divides by the number of steps, masked or not
    other = np.where(REAL, LABELS, 1)
    losses = [q.evaluate(data, y, sample_weight=weights, batch_size=32, verbose=0) for y in (LABELS, other)]
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert losses[0] == losses[1] == pytest.approx(model.evaluate(data, LABELS, verbose=0), rel=0.02)

"""Columns of unlike scale are a cause that `analyze` names, and splitting the model is a remedy that it tried."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import kquant
from kquant.analysis.columns import scaled_alike
from kquant.analysis.remedies import with_remedy
from kquant.analysis.results import SPLIT, Analysis

SIZES = np.float32([0.3, 3.0, 30.0, 1500.0])
ROWS = (np.random.default_rng(0).random((96, 4)) * SIZES).astype("float32")


def sensors(sizes: np.ndarray = SIZES) -> keras.Model:
    keras.utils.set_random_seed(0)
    norm = layers.Normalization(mean=sizes / 2, variance=sizes**2 / 12)
    body = [norm, layers.Dense(8, activation="relu", name="hidden"), layers.Dense(3, name="head")]
    return keras.Sequential([keras.Input((4,), name="sensors"), *body])


def analyzed(model: keras.Model, x: np.ndarray, wanted: np.ndarray) -> tuple[keras.Model, Analysis]:
    q = kquant.calibrate(kquant.quantize(model), x, verbose=False)
    return q, kquant.analyze(q, x, lambda y: float(np.mean(y.argmax(-1) == wanted)), verbose=False)


@pytest.mark.filterwarnings("ignore")
def test_unlike_columns_are_a_cause_and_the_gain_is_that_of_the_split_model() -> None:
    model = sensors()
    wanted = model.predict(ROWS, verbose=0).argmax(-1)
    q, a = analyzed(model, ROWS, wanted)
    finding = next(f for f in a.findings if f.cause == "unlike input columns")
    assert finding.layer == "sensors" and finding.remedy == SPLIT and finding.gain is not None
    assert "column 0" in finding.evidence and "column 3" in finding.evidence
    split = kquant.split_preprocessing(model)
    x = split.preprocessing.predict(ROWS, verbose=0)
    real = analyzed(split.model, x, wanted)[1].value
    assert abs(a.value + finding.gain.value - real) <= 0.02 and real > a.value + 0.1
    assert "kquant split" in kquant.report.render(a)
    # what is no line of a recipe is not written into one
    assert with_remedy(q, a, is_sqnr=False).activations.bits == 16


@pytest.mark.filterwarnings("ignore")
def test_16_bits_and_what_goes_with_them_are_tried_for_the_whole_model() -> None:
    model = sensors()
    a = analyzed(model, ROWS, model.predict(ROWS, verbose=0).argmax(-1))[1]
    whole = next(f for f in a.findings if f.cause == "loss of all layers together")
    assert whole.gain is not None and whole.gain.value > 0.1 and "bits = 16" in whole.remedy


def test_columns_that_go_together_are_none() -> None:
    ones = np.ones(4, np.float32)
    model = sensors(ones)
    x = ROWS / SIZES
    found = analyzed(model, x, model.predict(x, verbose=0).argmax(-1))[1].findings
    assert "unlike input columns" not in {f.cause for f in found}


def test_the_scaled_model_gives_the_same() -> None:
    a, b = keras.Input((6, 2), name="a"), keras.Input((3,), dtype="int32", name="b")
    joined = layers.Concatenate()([layers.Flatten()(a), layers.Flatten()(layers.Embedding(9, 2)(b))])
    model = keras.Model({"a": a, "b": b}, layers.Dense(2)(joined))
    drawn = np.random.default_rng(0)
    x = [drawn.normal(size=(8, 6, 2)).astype("float32") * np.float32([1, 0]), drawn.integers(0, 9, (8, 3))]
    scaled, data = scaled_alike(model, x)
    assert not np.allclose(data[0], x[0]) and np.array_equal(data[1], x[1])
    given, same = (m.predict({"a": v[0], "b": v[1]}, verbose=0) for m, v in ((model, x), (scaled, data)))
    np.testing.assert_allclose(same, given, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_what_was_tried_is_what_is_offered_where_nothing_in_the_model_scales() -> None:
    """A model that was trained on raw columns, or whose Normalization lies in its first kernel already."""
    model = kquant.fold(sensors())
    wanted = np.asarray(model(ROWS)).argmax(-1)
    _, a = analyzed(model, ROWS, wanted)
    finding = next(f for f in a.findings if f.cause == "unlike input columns")
    assert finding.gain is not None and "(model, data)" in finding.remedy
    split = kquant.split_preprocessing(model, ROWS)
    x = np.asarray(split.preprocessing(ROWS))
    np.testing.assert_allclose(split.model(x), model(ROWS), rtol=1e-4, atol=1e-5)
    assert [type(layer).__name__ for layer in split.model.layers][:2] == ["InputLayer", "Dense"]
    np.testing.assert_allclose(split.widths[0], np.ptp(ROWS, axis=0), rtol=1e-6)  # type: ignore[arg-type]
    _, after = analyzed(split.model, x, wanted)
    assert abs(a.value + finding.gain.value - after.value) <= 0.02 and after.value > a.value + 0.1

"""What an argmax gives is right or wrong: no number of it is nearly the other one, wherever outputs are compared."""

from __future__ import annotations

from functools import cache
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import kquant
from kquant.analysis.metrics import top1

X = np.random.default_rng(0).normal(size=(200, 6, 6, 2)).astype(np.float32)


@cache
def classifier() -> keras.Model:
    keras.utils.set_random_seed(0)
    x = image = keras.Input((6, 6, 2))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, activation="relu", name="conv")(x))
    return keras.Model(image, keras.ops.argmax(layers.Dense(10, name="head")(x), axis=-1))


@cache
def classes() -> np.ndarray:
    return classifier().predict(X, verbose=0)


def told(other: np.ndarray) -> float:
    """20 dB are 1 wrong of 100."""
    wrong = float(np.mean(other != classes()))
    return float("inf") if wrong == 0.0 else -10.0 * np.log10(wrong)


def few_bits() -> keras.Model:
    recipe = {"name": "few", "weights": {"bits": 2}, "steps": ["calibrate"]}
    return kquant.calibrate(kquant.quantize(classifier(), recipe), X, verbose=False)


@pytest.mark.filterwarnings("ignore:quantize. .*takes no packed 2-bit")
def test_every_verb_counts_the_wrong_ones() -> None:
    q = few_bits()
    expected = told(q.predict(X, verbose=0))
    assert 0.0 < expected < 15.0  # squares of differences of class numbers would be another figure
    assert kquant.analyze(q, X, verbose=False).sqnr_db == pytest.approx(expected)
    assert kquant.why(q, X, limit=None, verbose=False).start.sqnr_db == pytest.approx(expected)
    assert kquant.dry_run(q, ["calibrate"], X, limit=None, verbose=False).before_db == pytest.approx(expected)


def test_a_scan_counts_the_wrong_ones() -> None:
    scan = kquant.scan_sparsity(classifier(), X, sparsities=(0.5,), sparsity=0.3, verbose=False)
    for row in scan.layers:
        # one wrong of 200 is the least that there is
        assert row.damage[0] * len(X) == pytest.approx(round(row.damage[0] * len(X)))


@pytest.mark.parametrize("outputs", [np.float32([1, 0, 7]), np.float32([[1], [0], [7]]), np.int64([1, 0, 7])])
def test_accuracy_takes_what_an_argmax_found(outputs: Any) -> None:
    assert top1(np.array([1, 0, 6]))(outputs) == pytest.approx(2 / 3)
    assert top1(np.array([1, 0, 7]))(outputs) == 1.0


def test_a_column_of_probabilities_is_one_still() -> None:
    assert top1(np.array([1, 0, 1]))(np.float32([[0.7], [0.2], [0.4]])) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match=r"2 classes.*labels from 0 to 7"):
        top1(np.array([1, 0, 7]))(np.float32([[0.7], [0.2], [0.4]]))


def test_a_row_of_probabilities_is_no_row_of_classes() -> None:
    outputs = np.float32([0.93, 0.1])
    assert [top1(np.array(labels))(outputs) for labels in ([1, 0], [0, 1], [1, 1])] == [1.0, 0.0, 0.5]
    with pytest.raises(ValueError, match=r"2 classes.*labels from 0 to 2"):
        top1(np.array([2, 0]))(outputs)


@pytest.mark.parametrize("outputs", [np.float32([1, 0]), np.float32([0.9, 0.1]), np.eye(2)])
def test_labels_are_whole_numbers_from_0(outputs: Any) -> None:
    with pytest.raises(ValueError, match=r"counted from 0.*labels from -1 to 0|2 classes.*labels from -1 to 0"):
        top1(np.array([-1, 0]))(outputs)
    with pytest.raises(ValueError, match=r"numbers of the classes, from 0. Received: 0.5"):
        top1(np.array([0.5, 0.0]))(outputs)

"""Samples that `predict` refuses by input, and those that it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from one_layer import X, calibrated, content

import kquant


def test_samples_of_different_shapes_are_refused() -> None:
    uneven = [X[0], X[1][:3]]
    wanted = r"expected samples of one shape. Received: \(6,\), \(3,\). Pad them, or cut them"
    for failing in (
        lambda: kquant.calibrate(calibrated(), uneven),
        lambda: kquant.calibrate(calibrated(), {"x": uneven}),
        lambda: kquant.calibrate(calibrated(), lambda: iter([[uneven]]), verbose=False),
        lambda: kquant.predict(content(), [uneven]),
    ):
        with pytest.raises(ValueError, match=wanted):
            failing()


PREDICT: dict[str, tuple[Any, dict[str, Any], str]] = {
    "unknown runtime": (
        X,
        {"runtime": "tflite"},
        r"runtime 'tflite' does not exist.*There are: litert, litert-reference, tflm",
    ),
    "shape": (X[:, :5], {}, r"input 'x': expected samples of shape \(6,\). Received: samples of shape \(5,\)"),
    "no samples": (X[:0], {}, r"no samples for input 'x'; give at least one"),
    "empty dataset": (tf.data.Dataset.from_tensor_slices(X[:0]).batch(4), {}, "the data are empty; give at least one"),
    "endless dataset": (tf.data.Dataset.from_tensors(X).repeat(), {}, r"repeats forever; .*dataset.take\(n\)"),
    "unbatched dataset": (tf.data.Dataset.from_tensor_slices(X), {}, r"batch axis in front: .*dataset.batch\(32\)"),
    "generator": (iter([X]), {}, "a generator that can run only once; pass the function"),
    "a path": ("x.npy", {}, "takes arrays .*. Received: 'x.npy'"),
    "count": ([X, X], {}, "the file has 1 inputs. Received: 2 arrays"),
    "name": ({"y": X}, {}, "no array for input x. Received: y"),
    "text": (np.full((2, 6), "a"), {}, "input 'x' takes numbers. Received: dtype <U1"),
    "NaN": (np.full((2, 6), np.nan), {}, "NaN among the values of input 'x'"),
}


@pytest.mark.parametrize("kind", PREDICT)
def test_predict_refuses(kind: str) -> None:
    x, options, message = PREDICT[kind]
    with pytest.raises(ValueError, match=message):
        kquant.predict(content(), x, **options)


@pytest.mark.parametrize("sizes", [(2, 5), (5, 2)])
def test_predict_wants_as_many_samples_of_every_input(sizes: tuple[int, int], tmp_path: Path) -> None:
    a, b = keras.Input((3,), name="a"), keras.Input((4,), name="b")
    q = kquant.quantize(keras.Model([a, b], ops.concatenate([a, b], axis=-1)))
    kquant.calibrate(q, [X[:, :3], X[:, :4]], verbose=False)
    kquant.export(q, tmp_path / "m.tflite", check_runtimes=False)
    arrays = [np.zeros((n, width), np.float32) for n, width in zip(sizes, (3, 4), strict=True)]
    for x in (arrays, dict(zip("ab", arrays, strict=True))):
        with pytest.raises(ValueError, match=rf"same number of samples. Received: \[{sizes[0]}, {sizes[1]}\]"):
            kquant.predict(tmp_path / "m.tflite", x)


def test_predict_takes_batches() -> None:
    expected = kquant.predict(content(), X)
    dataset = tf.data.Dataset.from_tensor_slices((X, np.zeros(64))).batch(10)
    for x in (dataset, lambda: ({"x": X[i : i + 32]} for i in (0, 32)), tf.constant(X)):
        np.testing.assert_array_equal(kquant.predict(content(), x), expected)


def test_one_sample_without_a_batch_axis_is_told_apart(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    kquant.compress(model, np.random.default_rng(0).normal(size=(64, 4)), path=tmp_path / "m.tflite", verbose=False)
    with pytest.raises(ValueError, match=r"batch axis in front: x\[None\]"):
        kquant.predict(tmp_path / "m.tflite", np.zeros(4, "float32"))

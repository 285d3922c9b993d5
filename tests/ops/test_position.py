"""Positions of the largest values: ties between the zeros of a file, which has one zero."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

import kquant
from kquant.ops.position import Position


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("values", [[-0.0, -1.0, 0.0, -2.0], [0.0, 1.0, -0.0, 2.0], [-1.0, -0.0, 0.0, 0.0, -0.0]])
def test_both_zeros_are_one_value(values: list[float], largest: bool) -> None:
    x = np.repeat(np.float32([values]), 9, axis=0)  # long enough for vectors
    codes = np.rint(x).astype(int)
    wanted = codes.argmax(1) if largest else codes.argmin(1)
    model = keras.Sequential([keras.Input((len(values),)), Position([1], largest=largest)])
    assert model.predict(x, verbose=0).tolist() == wanted.tolist()
    assert Position([1], largest=largest)(x).numpy().tolist() == wanted.tolist()


def test_a_segmenter_gives_the_classes_of_its_file(tmp_path: Path) -> None:
    """Symmetric logits have many codes 0, which a float convolution gives as either zero."""
    keras.utils.set_random_seed(2)
    x = image = keras.Input((8, 8, 3))
    scores = layers.Conv2D(5, 3, padding="same", name="scores")(x)
    model = keras.Model(image, [scores, keras.ops.argmax(scores, axis=-1)])
    data = np.random.default_rng(2).normal(size=(256, 8, 8, 3)).astype(np.float32)
    q = kquant.calibrate(kquant.quantize(model), data, verbose=False)
    kquant.export(q, tmp_path / "classes.tflite", check_runtimes=False)
    got = kquant.predict(tmp_path / "classes.tflite", data, "litert-reference")
    for simulated, measured in zip(q.predict(data, verbose=0), got, strict=True):
        np.testing.assert_array_equal(simulated, measured)

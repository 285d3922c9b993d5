"""Bounds behind a layer with weights: computed on the bounded range from the start, like a ReLU with a maximum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import kquant

X = np.random.default_rng(0).normal(size=(200, 8)).astype("float32")


def wide() -> tuple[Any, Any]:
    """An input, and a layer of values far beyond the bounds."""
    keras.utils.set_random_seed(0)
    x = keras.Input((8,), name="x")
    return x, layers.Dense(16, name="wide")(x * 20.0)


def sqnr_db(model: keras.Model, path: Path) -> tuple[float, dict[str, int]]:
    """Of the quantized model, whose file computes the same codes."""
    q = kquant.calibrate(kquant.quantize(model), X, verbose=False)
    report = kquant.export(q, path, check_runtimes=False)
    assert kquant.verify(q, path, X, runtime="litert-reference").agreements[0].equal >= 0.999
    wanted, got = model.predict(X, verbose=0), q.predict(X, verbose=0)
    return float(10 * np.log10(np.square(wanted).mean() / np.square(wanted - got).mean())), report.operators


BOUNDS = {
    "both": lambda y: ops.clip(y, -1.0, 1.0),
    "above": lambda y: ops.minimum(y, 0.5),
    "below": lambda y: ops.maximum(y, -0.5),
    "far": lambda y: ops.clip(y, 5.0, 6.0),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_between_layers_a_bound_costs_no_operator(name: str, tmp_path: Path) -> None:
    x, y = wide()
    noise, operators = sqnr_db(keras.Model(x, layers.Dense(4)(BOUNDS[name](y))), tmp_path / "m.tflite")
    assert operators == {"FULLY_CONNECTED": 2} and noise > 29


def test_as_fine_as_a_relu_with_a_maximum(tmp_path: Path) -> None:
    (x, y), (u, v) = wide(), wide()
    clipped, _ = sqnr_db(keras.Model(x, ops.clip(y, -1.0, 1.0)), tmp_path / "clip.tflite")
    rectified, _ = sqnr_db(keras.Model(u, layers.ReLU(1.0)(v)), tmp_path / "relu.tflite")
    assert clipped > rectified - 2

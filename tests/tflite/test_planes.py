"""Chains of one-dimensional layers: one RESHAPE in, one out, whatever stands between; the codes stay the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from contract import randomise
from keras import layers

import kquant
from kquant.tflite import passes

pytestmark = pytest.mark.filterwarnings(
    "ignore:quantize. .* has no 16-bit kernel",
)

RNG = np.random.default_rng(0)


def through(x: Any, *stack: Any) -> Any:
    for layer in stack:
        x = layer(x)
    return x


def classifier(x: Any) -> Any:
    """What ECG and keyword models are made of."""
    x = through(x, layers.Conv1D(8, 3, padding="same"), layers.BatchNormalization(), layers.ReLU(), layers.Dropout(0.2))
    x = through(x, layers.MaxPooling1D(), layers.Conv1D(8, 3), layers.LeakyReLU(), layers.AveragePooling1D(2))
    x = through(x, layers.SeparableConv1D(6, 3), layers.Activation("swish"), layers.ZeroPadding1D(1))
    x = through(x, layers.PReLU(shared_axes=[1]), layers.Cropping1D((1, 0)), layers.UpSampling1D(2))
    return through(x, layers.Conv1D(4, 3), layers.GlobalAveragePooling1D(), layers.Dense(3))


def residual(x: Any) -> Any:
    """Sums and concatenations of branches, and of the input itself."""
    x = layers.Add()([x, layers.Conv1D(4, 3, padding="same")(x)])
    y = through(x, layers.Conv1D(4, 3, padding="same"), layers.BatchNormalization(), layers.LeakyReLU())
    x = layers.Concatenate()([layers.Add()([x, y]), layers.DepthwiseConv1D(3, padding="same")(y)])
    ends = [layers.Conv1D(3, 3)(x), layers.Conv1D(3, 1)(x)]
    return layers.Dense(2)(layers.Flatten()(layers.Concatenate(axis=1)(ends)))


def dilated(x: Any) -> Any:
    """Gated causal convolutions: what pads stands in front of the RESHAPE."""
    for rate in (1, 2):
        settings = {"padding": "causal", "dilation_rate": rate}
        a, b = (layers.Conv1D(4, 2, activation=name, **settings)(x) for name in ("tanh", "sigmoid"))
        x = layers.Add()([x, layers.Conv1D(4, 1)(layers.Multiply()([a, b]))])
    return layers.Dense(2)(layers.GlobalMaxPooling1D()(x))


@pytest.mark.parametrize("build", [classifier, residual, dilated])
@pytest.mark.parametrize(("target", "recipe"), [("tflm", "int8"), ("litert", "int16x8")])
def test_one_reshape_in_and_one_out(
    build: Any, target: str, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = keras.Input((24, 4))
    model = randomise(keras.Model(inputs, build(inputs)))
    x = RNG.normal(size=(32, 24, 4)).astype("float32")
    q = kquant.calibrate(kquant.quantize(model, recipe, target=target), x, verbose=False)
    path = tmp_path / "m.tflite"
    report = kquant.export(q, path, check_runtimes=False)
    # a Dense reads what the last one makes as rows, where the target's kernel takes any shape
    left = 1 if target == "tflm" and build is not classifier else 2
    assert report.operators["RESHAPE"] == left
    runtime = {"tflm": "tflm", "litert": "litert-reference"}[target]
    assert kquant.verify(q, path, x[:8], runtime=runtime).agreements[0].equal == 1.0
    monkeypatch.setattr(passes, "stay_in_four_dimensions", lambda program: None)
    plain = kquant.export(q, path, check_runtimes=False)
    assert plain.file_bytes > report.file_bytes and plain.operators["RESHAPE"] > left
    assert {**plain.operators, "RESHAPE": left} == report.operators


@pytest.mark.parametrize("stack", [[layers.Conv1D(4, 3), layers.LeakyReLU()], [layers.LeakyReLU(), layers.Dense(3)]])
def test_what_gains_nothing_stays(stack: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = RNG.normal(size=(32, 12, 3)).astype("float32")
    model = keras.Sequential([keras.Input((12, 3)), *(type(s).from_config(s.get_config()) for s in stack)])
    q = kquant.calibrate(kquant.quantize(model), x, verbose=False)
    kquant.export(q, tmp_path / "a.tflite", check_runtimes=False)
    monkeypatch.setattr(passes, "stay_in_four_dimensions", lambda program: None)
    kquant.export(q, tmp_path / "b.tflite", check_runtimes=False)
    assert (tmp_path / "a.tflite").read_bytes() == (tmp_path / "b.tflite").read_bytes()

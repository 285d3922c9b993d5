"""Heads that 16 bits keep apart, and `io=` puts on one grid of 8 bits: told, with what is lost; the remedies help."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

import kquant
from kquant.analysis.sqnr import noise_of

pytestmark = pytest.mark.filterwarnings("ignore:quantize. an output of the model joins heads")
WIDE = {"name": "wide", "rules": [{"type": "Concatenate", "activations": {"bits": 16}}]}
DATA = np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype("float32")


def _model(factor: float, *, apart: bool = False) -> keras.Model:
    """Logits beside boxes that are `factor` times as wide."""
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", kernel_initializer=keras.initializers.HeUniform(1))(
        image
    )
    kernel = keras.initializers.HeUniform(2)(shape=(1, 1, 8, 4)).numpy()
    boxes, logits = (
        layers.Conv2D(4, 1, kernel_initializer=keras.initializers.Constant(n * kernel))(x) for n in (factor, 1.0)
    )
    rows = [layers.Reshape((64, 4))(t) for t in (boxes, logits)]
    return keras.Model(image, rows if apart else layers.Concatenate(name="found")(rows))


def _db(model: keras.Model, path: Path, runtime: str) -> float:
    """Signal to noise of the logits."""
    wanted, found = model.predict(DATA, verbose=0), kquant.predict(path, DATA, runtime)
    pair = (wanted[1], found[1]) if isinstance(wanted, list) else (wanted[..., 4:], found[..., 4:])
    return float(noise_of(*pair).db)


@pytest.mark.parametrize("recipe", ["int8", WIDE, "int16x8"], ids=["int8", "rule", "int16x8"])
@pytest.mark.parametrize(("target", "runtime"), [("litert", "litert-reference"), ("tflm", "tflm")])
@pytest.mark.parametrize("io", ["int8", "uint8"])
def test_the_loss_is_told_and_leaving_io_out_helps(io, target, runtime, recipe, tmp_path) -> None:
    model = _model(40.0)
    q = kquant.calibrate(kquant.quantize(model, recipe, target=target), DATA, verbose=False)
    path = tmp_path / "m.tflite"
    with pytest.warns(UserWarning, match=rf"export: io='{io}' puts heads .*'found' .*Leave io out") as said:
        kquant.export(q, path, io=io, data=DATA[:16])
    (text,) = [str(w.message) for w in said if "puts heads" in str(w.message)]
    numbers = re.search(r"([\d.e+-]+) wide, spans ([\d.]+) steps; (\d+) dB lost", text)
    assert numbers is not None
    width, steps, lost = map(float, numbers.groups())
    # what the message says, of the file that was written
    assert steps == pytest.approx(width / kquant.inspect(path).outputs[0].scale[0], rel=0.02)
    assert lost == pytest.approx(20 * np.log10(255 / steps), abs=1)
    told = _db(model, path, runtime)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for remedy in ("model", "float32"):
            kquant.export(q, path, io=remedy, data=DATA[:16])
            assert _db(model, path, runtime) > told + 15


def test_outputs_of_their_own_help(tmp_path) -> None:
    model = _model(40.0, apart=True)
    q = kquant.calibrate(kquant.quantize(model), DATA, verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kquant.export(q, tmp_path / "m.tflite", io="int8", data=DATA[:16])
    assert _db(model, tmp_path / "m.tflite", "litert-reference") > 30


@pytest.mark.parametrize("recipe", [WIDE, "int16x8"], ids=["rule", "int16x8"])
def test_heads_of_like_ranges_lose_nothing_to_tell(recipe, tmp_path) -> None:
    q = kquant.calibrate(kquant.quantize(_model(1.2), recipe), DATA, verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kquant.export(q, tmp_path / "m.tflite", io="int8", data=DATA[:16])


def test_a_maximum_joins_nothing(tmp_path) -> None:
    image = keras.Input((8, 8, 3))
    parts = [layers.Rescaling(n)(layers.Conv2D(4, 3)(image)) for n in (1.0, 40.0)]
    model = keras.Model(image, layers.Maximum()(parts))
    q = kquant.calibrate(kquant.quantize(model, "int16x8"), DATA, verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kquant.export(q, tmp_path / "m.tflite", io="int8", data=DATA[:16])

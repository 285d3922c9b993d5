"""No RESHAPE stands in front of a matrix product that reads rows anyway; every code stays what it was."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

import kquant
from kquant.runtime.running import available
from kquant.tflite import file_content

X = np.random.default_rng(0).normal(size=(64, 6, 6, 3)).astype("float32")


def net(*, branch: bool = False, flat_out: bool = False) -> keras.Model:
    x = keras.Input((6, 6, 3), name="image")
    flat = layers.Flatten(name="flat")(layers.Conv2D(4, 3, activation="relu", name="conv")(x))
    y = [layers.Dense(5, name="score")(flat)]
    y += [layers.Dense(4, name="second")(flat)] if branch else []
    y += [layers.Activation("tanh", name="bent")(flat)] if flat_out else []
    return keras.Model(x, y if len(y) > 1 else y[0])


def exported(
    model: keras.Model, path: Path, target: str = "tflm", recipe: str = "int8", **more: bool
) -> dict[str, int]:
    q = kquant.calibrate(kquant.quantize(model, recipe, target=target), X, verbose=False)
    return kquant.export(q, path, data=X, **more).operators


@pytest.mark.skipif("tflm" not in available(), reason="runs on TFLM: pip install 'kquant[micro]' (Linux only)")
@pytest.mark.parametrize("recipe", ["int8", "int16x8", "int4-weights"])
@pytest.mark.filterwarnings("ignore:quantize. .* takes no packed 4-bit weights")
def test_the_codes_are_those_of_the_file_with_it(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = net(branch=True)
    assert "RESHAPE" not in exported(model, tmp_path / "new.tflite", recipe=recipe)
    monkeypatch.setattr(file_content, "read_as_rows", lambda program, _: program)
    assert exported(model, tmp_path / "old.tflite", recipe=recipe)["RESHAPE"] == 1
    new, old = (kquant.predict(tmp_path / f"{name}.tflite", X, runtime="tflm") for name in ("new", "old"))
    for a, b in zip(keras.tree.flatten(new), keras.tree.flatten(old), strict=True):
        np.testing.assert_array_equal(a, b)
    sizes = [(tmp_path / f"{name}.tflite").stat().st_size for name in ("new", "old")]
    assert sizes[0] < sizes[1]


def test_it_stays_where_somebody_else_reads_it(tmp_path: Path) -> None:
    assert exported(net(flat_out=True), tmp_path / "a.tflite")["RESHAPE"] == 1
    assert exported(net(), tmp_path / "b.tflite", target="litert")["RESHAPE"] == 1


def test_a_stream_knows_its_time(tmp_path: Path) -> None:
    """All frames of a window are one row, which a stream gathers before it multiplies."""
    x = keras.Input((8, 4), name="frames")
    y = layers.Conv1D(6, 3, padding="causal", activation="relu")(x)
    model = keras.Model(x, layers.Dense(2, name="score")(layers.Flatten()(y)))
    clips = np.random.default_rng(1).normal(size=(64, 8, 4)).astype("float32")
    q = kquant.calibrate(kquant.quantize(model, target="tflm"), clips, verbose=False)
    report = kquant.export(q, tmp_path / "s.tflite", data=clips, streaming=True, io="float32")
    assert report.streaming is not None and all(check.equal == 1.0 for check in report.streaming.checks)

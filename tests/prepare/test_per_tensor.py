"""Targets that take one scale for all weights of a layer: written so, and equalized first."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

import kquant
from kquant import targets
from kquant.core.operators import facts
from kquant.tflite.reader import read_model

PER_TENSOR = [name for name in targets.names() if targets.load(name).per_tensor]
SAID = "takes one scale for all weights of a layer"


def outliers() -> keras.Model:
    """Two convolutions, one channel of the first a hundred times as large as the rest, and a head."""
    keras.utils.set_random_seed(3)
    x = inputs = keras.Input((8, 8, 3), name="image")
    x = keras.layers.ReLU(name="relu")(keras.layers.Conv2D(8, 3, name="first")(x))
    x = keras.layers.ReLU(name="relu2")(keras.layers.Conv2D(8, 3, name="second")(x))
    x = keras.layers.Dense(4, name="head")(keras.layers.GlobalAveragePooling2D(name="pool")(x))
    model = keras.Model(inputs, x, name="outliers")
    kernel, bias = model.get_layer("first").get_weights()
    kernel[..., 0] *= 100.0
    second, bias2 = model.get_layer("second").get_weights()
    second[:, :, 0] /= 100.0
    model.get_layer("first").set_weights([kernel, bias])
    model.get_layer("second").set_weights([second, bias2])
    return model


def scales(path: Path) -> dict[str, int]:
    """How many scales the weights of each layer have in a file."""
    file = read_model(path.read_bytes())
    weighted = [(op, facts(op.code).weights) for op in file.operators]
    found = [file.tensors[op.inputs[at]] for op, places in weighted for at in places]
    return {tensor.name: len(tensor.scale or ()) for tensor in found}


def test_there_is_such_a_target() -> None:
    assert "mediatek" in PER_TENSOR and "litert" not in PER_TENSOR and "qualcomm" not in PER_TENSOR


@pytest.mark.parametrize("name", PER_TENSOR)
def test_one_scale_each_and_channels_equalized_first(name: str, tmp_path: Path) -> None:
    model, data = outliers(), np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype(np.float32)
    wanted = model.predict(data, verbose=0)
    noise = {}
    with pytest.warns(UserWarning, match=SAID):
        equalized = kquant.quantize(model, target=name)
    by_hand = {"name": "plain", "weights": {"per_axis": False}}
    for said, q in (("equalized", equalized), ("plain", kquant.quantize(model, by_hand, target="litert"))):
        kquant.calibrate(q, data, verbose=False)
        report = kquant.export(q, tmp_path / f"{said}.tflite", data=data)
        assert report.verification and all(v.ok for v in report.verification), report.verification
        noise[said] = float(np.mean((np.asarray(q(data)) - wanted) ** 2))
        assert set(scales(tmp_path / f"{said}.tflite").values()) == {1}
    assert noise["equalized"] < 0.1 * noise["plain"], noise
    np.testing.assert_array_equal(model.predict(data, verbose=0), wanted)


@pytest.mark.parametrize("name", PER_TENSOR)
def test_a_step_of_the_recipe_comes_in_its_place(name: str, recwarn: pytest.WarningsRecorder) -> None:
    kquant.quantize(outliers(), {"name": "own", "steps": ["equalize", "calibrate"]}, target=name)
    kquant.quantize(outliers(), "weight-only-int8", target=name)
    assert not [w for w in recwarn if SAID in str(w.message)]


def test_an_operator_that_wants_one_scale_gets_one_where_others_have_many(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype(np.float32)
    q = kquant.calibrate(kquant.quantize(outliers(), target="nnapi"), data, verbose=False)
    kquant.export(q, tmp_path / "mixed.tflite", data=data, check_runtimes=False)
    assert scales(tmp_path / "mixed.tflite") == {"first/kernel": 8, "second/kernel": 8, "head/kernel": 1}

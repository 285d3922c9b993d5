"""Heads of like ranges get the 8 bits of the recipe back once data have shown them; others keep 16."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import kquant
from kquant.analysis.sqnr import noise_of
from kquant.layers.head_quant import HeadQuant
from kquant.layers.nodes import encodings_of
from kquant.views.heads import ALIKE

JOINED = {"name": "joined", "activations": {"heads": "joined"}}
pytestmark = pytest.mark.filterwarnings("ignore:quantize. an output of the model joins heads")


def _model(factor: float = 1.0, *, rows: bool = False, scores: bool = False) -> keras.Model:
    """A linear convolution beside another, whose numbers are `factor` times as large; or scores beside that one, alone
    an output too.
    """
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", kernel_initializer=keras.initializers.HeUniform(1))(
        image
    )
    kernel = keras.initializers.HeUniform(2)(shape=(1, 1, 8, 4)).numpy()
    parts: list[Any] = []
    for size in (1.0, factor):
        one = layers.Conv2D(4, 1, kernel_initializer=keras.initializers.Constant(size * kernel))
        parts.append(layers.Reshape((64, 4))(one(x)) if rows else one(x))
    if scores:
        parts[0] = layers.Activation("sigmoid")(parts[0])
    whole = layers.Concatenate(name="whole")(parts)
    return keras.Model(image, [whole, layers.GlobalAveragePooling2D()(parts[1])] if scores else whole)


def _data(samples: int = 64) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(samples, 8, 8, 3)).astype("float32")


def _heads(q: keras.Model) -> list[int]:
    return [layer.spec.bits for layer in encodings_of(q) if isinstance(layer, HeadQuant)]


@pytest.mark.parametrize("target", ["litert", "tflm"])
@pytest.mark.parametrize("rows", [False, True])
def test_alike_heads_give_the_file_of_joined_ones(rows: bool, target: str, tmp_path) -> None:
    model, data, files = _model(1.5, rows=rows), _data(), {}
    q = kquant.quantize(model, target=target)
    assert _heads(q) == [16]
    with pytest.warns(UserWarning, match=r"calibrate: what an output .* alike: whole\. It has 8 bits after all"):
        kquant.calibrate(q, data, verbose=False)
    joined = kquant.calibrate(kquant.quantize(model, JOINED, target=target), data, verbose=False)
    for name, one in (("apart", q), ("joined", joined)):
        report = kquant.export(one, tmp_path / f"{name}.tflite", data=data)
        runtime = {"litert": "litert-reference", "tflm": "tflm"}[target]
        assert {v.runtime: v.agreements[0].equal for v in report.verification}[runtime] == 1.0
        files[name] = [report.operators, [(p.type, p.scale, p.zero_point) for p in report.outputs]]
        files[name].append(kquant.predict(tmp_path / f"{name}.tflite", data, runtime).tolist())
    assert files["apart"] == files["joined"]
    assert files["apart"][1][0][0] == "INT8"


@pytest.mark.parametrize(("factor", "bits"), [(1.0, 8), (0.9 * ALIKE, 8), (1.15 * ALIKE, 16), (30.0, 16)])
@pytest.mark.filterwarnings("ignore:calibrate. what an output")
def test_a_factor_of_two_is_alike_and_costs_a_bit(factor: float, bits: int) -> None:
    model, data = _model(factor), _data()
    q = kquant.calibrate(kquant.quantize(model), data, verbose=False)
    assert _heads(q) == [bits]
    wanted, found = model.predict(data, verbose=0), q.predict(data, verbose=0)
    # 8 bits of its own, less one bit at most: 6.02 dB
    apart = kquant.quantize(keras.Model(model.inputs, [t for t in model.layers[-1].input]))
    alone = kquant.calibrate(apart, data, verbose=False).predict(data, verbose=0)
    for part, own in zip((slice(0, 4), slice(4, 8)), alone, strict=True):
        lost = noise_of(wanted[..., part], own).db - noise_of(wanted[..., part], found[..., part]).db
        assert lost < 6.1


@pytest.mark.filterwarnings("ignore:calibrate. what an output")
def test_every_calibration_decides_again(tmp_path) -> None:
    model, data = _model(1.0), _data()
    q = kquant.calibrate(kquant.quantize(model), data, verbose=False)
    first = q.predict(data, verbose=0)
    assert _heads(q) == [8]
    layer = next(layer for layer in q.layers if layer.name == model.layers[-2].name)
    layer.layer.kernel.assign(20.0 * layer.layer.kernel)
    kquant.calibrate(q, data, verbose=False)
    assert _heads(q) == [16]
    # against the same numbers from a model that never had 8 bits: graphs traced before are forgotten
    fresh = kquant.quantize(_model(20.0))
    np.testing.assert_array_equal(
        q.predict(data, verbose=0), kquant.calibrate(fresh, data, verbose=False).predict(data, verbose=0)
    )
    layer.layer.kernel.assign(layer.layer.kernel / 20.0)
    kquant.calibrate(q, data, verbose=False)
    assert _heads(q) == [8]
    np.testing.assert_allclose(q.predict(data, verbose=0), first, atol=1e-6)
    q.save(tmp_path / "q.keras")
    again = keras.models.load_model(tmp_path / "q.keras")
    assert _heads(again) == [8]
    np.testing.assert_array_equal(again.predict(data, verbose=0), q.predict(data, verbose=0))


@pytest.mark.parametrize("factor", [1.0, 30.0])
@pytest.mark.filterwarnings("ignore:calibrate. what an output")
def test_encodings_carry_the_width(factor: float) -> None:
    model, data = _model(factor), _data()
    q = kquant.calibrate(kquant.quantize(model), data, verbose=False)
    again = kquant.quantize(model, encodings=kquant.encodings(q))
    assert _heads(again) == _heads(q)
    np.testing.assert_array_equal(again.predict(data, verbose=0), q.predict(data, verbose=0))


def test_a_part_that_others_read_keeps_its_grid(tmp_path) -> None:
    model, data = _model(0.1, scores=True), _data()
    with pytest.warns(UserWarning, match="It has 8 bits after all"):
        q = kquant.calibrate(kquant.quantize(model, target="tflm"), data, verbose=False)
    report = kquant.export(q, tmp_path / "shared.tflite", data=data)
    assert [a.equal for v in report.verification for a in v.agreements] == [1.0, 1.0]
    assert [p.type for p in report.outputs] == ["INT8", "INT8"]


@pytest.mark.filterwarnings("ignore:calibrate. what an output")
def test_training_goes_on_behind(tmp_path) -> None:
    model, data = _model(1.5), _data()
    q = kquant.calibrate(kquant.quantize(model), data, verbose=False)
    q.compile("adam", "mse")
    q.fit(data, model.predict(data, verbose=0), epochs=1, verbose=0)
    report = kquant.export(q, tmp_path / "trained.tflite", data=data)
    equal = {v.runtime: v.agreements[0].equal for v in report.verification}
    assert equal["litert-reference"] == 1.0


def test_ranges_without_data_decide_too() -> None:
    q = kquant.quantize(_normed(1.0))
    with pytest.warns(UserWarning, match="It has 8 bits after all"):
        kquant.data_free_ranges(q, input_range=(-3.0, 3.0), verbose=False)
    assert _heads(q) == [8]
    q = kquant.data_free_ranges(kquant.quantize(_normed(30.0)), input_range=(-3.0, 3.0), verbose=False)
    assert _heads(q) == [16]


def _normed(factor: float) -> keras.Model:
    image = keras.Input((8, 8, 3), name="image")
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(image)))
    parts = [
        layers.BatchNormalization(gamma_initializer=keras.initializers.Constant(n))(layers.Conv2D(4, 1)(x))
        for n in (1.0, factor)
    ]
    return keras.Model(image, layers.Concatenate()(parts))

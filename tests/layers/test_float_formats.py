"""Floats of few bits: numbers against ml_dtypes, scales against the specification of OCP MX, whole models in Keras."""

from __future__ import annotations

import re
import tomllib
import warnings
from pathlib import Path
from typing import Any, get_args

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from float_types import TYPES
from hypothesis import given, settings
from hypothesis import strategies as st

import kquant
from kquant.arithmetic.low_float import nearest, scale_for
from kquant.core.float_formats import FLOAT_FORMATS, MX_BLOCK
from kquant.core.quant_spec import FloatKind, QuantSpec
from kquant.layers.nonuniform import on_grid

X = np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype("float32")


def test_the_table_is_what_others_say() -> None:
    assert set(get_args(FloatKind)) == set(FLOAT_FORMATS) == set(TYPES)
    for name, form in FLOAT_FORMATS.items():
        about = ml_dtypes.finfo(TYPES[name])
        assert (form.bits, form.fraction, form.largest) == (about.bits, about.nmant, float(about.max))
        assert form.smallest_exponent == about.minexp
        assert 2.0**form.largest_exponent <= form.largest < 2.0 ** (form.largest_exponent + 1)


@pytest.mark.parametrize("kind", TYPES)
def test_numbers_are_those_of_ml_dtypes(kind: str) -> None:
    form, rng = FLOAT_FORMATS[kind], np.random.default_rng(0)
    spread = rng.normal(size=50_000) * 2.0 ** rng.integers(-20, 17, 50_000)
    numbers = np.arange(1 << form.bits, dtype=np.uint8).view(TYPES[kind]).astype(np.float32)
    numbers = np.sort(numbers[np.isfinite(numbers)])
    ties = (numbers[1:] + numbers[:-1]) / 2
    x = np.clip(
        np.concatenate([spread, numbers, ties, np.nextafter(ties, 9), np.nextafter(ties, -9)]),
        -form.largest,
        form.largest,
    )
    x = x.astype(np.float32)
    found = nearest(tf.constant(x), form).numpy()
    np.testing.assert_array_equal(found, x.astype(TYPES[kind]).astype(np.float32))
    assert nearest(tf.constant([1e9, -1e9]), form).numpy().tolist() == [form.largest, -form.largest]


@pytest.mark.parametrize("kind", TYPES)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_blocks_share_a_power_of_two_as_the_specification_says(kind: str, seed: int) -> None:
    rng, form = np.random.default_rng(seed), FLOAT_FORMATS[kind]
    kernel = (rng.normal(size=(70, 3)) * 2.0 ** rng.integers(-6, 6, (70, 3))).astype(np.float32)
    spec = QuantSpec(form.bits, symmetric=True, narrow=True, per_axis=True, kind=kind, block=MX_BLOCK)
    found = on_grid(tf.constant(kernel), spec, (1,)).numpy()
    for channel in range(3):
        for start in range(0, 70, MX_BLOCK):
            block = kernel[start : start + MX_BLOCK, channel].astype(np.float64)
            # section 6.3: the shared exponent, then each element, cut off at the largest
            shared = 2.0 ** (np.floor(np.log2(np.abs(block).max())) - form.largest_exponent)
            wanted = np.clip(block / shared, -form.largest, form.largest).astype(np.float32)
            wanted = wanted.astype(TYPES[kind]).astype(np.float64) * shared
            np.testing.assert_array_equal(found[start : start + MX_BLOCK, channel], wanted)


@pytest.mark.parametrize("axes", [(3,), (2, 3), ()])
def test_the_largest_weight_of_a_channel_is_the_largest_number(axes: tuple[int, ...]) -> None:
    form = FLOAT_FORMATS["e2m3"]
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype(np.float32)
    spec = QuantSpec(6, symmetric=True, narrow=True, per_axis=True, kind="e2m3")
    found = on_grid(tf.constant(kernel), spec, axes).numpy()
    others = tuple(axis for axis in range(4) if axis not in axes)
    scale = np.abs(kernel).max(axis=others, keepdims=True) / np.float32(form.largest)
    wanted = (kernel / scale).astype(ml_dtypes.float6_e2m3fn).astype(np.float32) * scale
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert scale_for(tf.constant(0.0), form).numpy() > 0.0


def _model() -> keras.Model:
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(8, 3, activation="relu", name="conv")(image)
    x = keras.layers.Add()([keras.layers.DepthwiseConv2D(3, padding="same")(x), x])
    x = keras.layers.AveragePooling2D(2)(x)
    return keras.Model(image, keras.layers.Dense(4, activation="softmax")(keras.layers.Flatten()(x)))


def _recipe(weights: dict[str, Any], activations: dict[str, Any]) -> dict[str, Any]:
    return {"name": "floats", "weights": weights, "activations": activations}


FLOATS = {
    "weights": _recipe({"kind": "e4m3"}, {}),
    "activations": _recipe({}, {"kind": "e4m3"}),
    "both": _recipe({"kind": "e4m3"}, {"kind": "e5m2"}),
    "mx": _recipe({"kind": "e2m1", "bits": 4, "block": 32}, {"kind": "e3m2", "bits": 6}),
}


@pytest.mark.parametrize("case", FLOATS)
def test_a_model_predicts_trains_and_comes_back(case: str, tmp_path) -> None:
    model = _model()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        q = kquant.quantize(model, FLOATS[case])
    kind = FLOATS[case]["activations"].get("kind")
    wanted = [f"activations of kind {kind} are simulated only"] * (kind is not None)
    wanted += ["weights that are simulated only"] * ("kind" in FLOATS[case]["weights"])
    assert len(said) == len(wanted) and all(text in str(w.message) for text, w in zip(wanted, said, strict=True))
    kquant.calibrate(q, X, verbose=False)
    wanted, found = model.predict(X, verbose=0), q.predict(X, verbose=0)
    assert 0.0 < np.abs(wanted - found).max() < 0.1
    q.save(tmp_path / "q.keras")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "q.keras").predict(X, verbose=0), found)
    q.compile(keras.optimizers.SGD(0.05), "sparse_categorical_crossentropy")
    y = np.arange(64) % 4
    losses = q.fit(X, y, epochs=4, batch_size=16, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    with pytest.raises(
        ValueError, match=r"on a e\dm\d grid, which no integer kernel multiplies; take (weights|activations) ="
    ):
        kquant.export(q, tmp_path / "q.tflite")
    assert not (tmp_path / "q.tflite").exists()


REMEDIES = {
    "e2m1": ({"kind": "e2m1", "bits": 4}, [{"kind": "uniform", "bits": 4}]),
    "e3m2": ({"kind": "e3m2", "bits": 6}, [{"kind": "uniform", "bits": 6}]),
    "e2m3": ({"kind": "e2m3", "bits": 6}, [{"kind": "uniform", "bits": 6}]),
    "e4m3": ({"kind": "e4m3"}, [{"kind": "uniform", "bits": 8}]),
    "e5m2 in blocks": ({"kind": "e5m2", "block": 32}, [{"kind": "uniform", "bits": 8, "block": 0}]),
    "log": ({"kind": "log", "bits": 3}, [{"kind": "uniform", "bits": 3}]),
    "mx": (
        {"kind": "e2m1", "bits": 4, "block": 32},
        [{"kind": "uniform", "bits": 4, "block": 0}, {"kind": "uniform", "bits": 4, "block": 32}],
    ),
}


@pytest.mark.parametrize("case", REMEDIES)
def test_the_nearest_format_that_is_named_runs(case: str, tmp_path: Path) -> None:
    given, nearest = REMEDIES[case]
    keras.utils.set_random_seed(0)
    dense = keras.layers.Dense
    model = keras.Sequential([keras.Input((64,)), dense(32, activation="relu"), dense(8)])
    data = np.random.default_rng(0).normal(size=(128, 64)).astype("float32")
    with pytest.warns(UserWarning, match="simulated only"):
        q = kquant.quantize(model, _recipe(given, {}))
    with pytest.raises(ValueError, match="no integer kernel") as refused:
        kquant.export(kquant.calibrate(q, data, verbose=False), tmp_path / "q.tflite")
    said = str(refused.value)
    named = [tomllib.loads(text)["weights"] for text in re.findall(r"(?<!with )weights = {[^}]*}", said)]
    assert named == nearest and ("recipe 'float16'" in said) == (case != "log")
    ways: list[Any] = [_recipe(w, {}) | ({"mode": "dynamic"} if w.get("block") else {}) for w in named]
    for recipe in [*ways, *re.findall(r"recipe '(float16)'", said)]:
        q = kquant.quantize(model, recipe)
        if recipe != "float16" and "mode" not in recipe:  # else there are no ranges
            kquant.calibrate(q, data, verbose=False)
        assert kquant.export(q, tmp_path / "near.tflite", data=data[:8]).verification, recipe


def test_the_nearest_format_of_activations_runs(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="simulated only"):
        q = kquant.calibrate(kquant.quantize(_model(), _recipe({}, {"kind": "e3m2", "bits": 6})), X, verbose=False)
    with pytest.raises(ValueError, match="no integer kernel") as refused:
        kquant.export(q, tmp_path / "q.tflite")
    (named,) = re.findall(r"activations = {[^}]*}", str(refused.value))
    assert tomllib.loads(named) == {"activations": {"kind": "uniform", "bits": 8}} and "float16" not in named
    q = kquant.calibrate(kquant.quantize(_model(), {"name": "near", **tomllib.loads(named)}), X, verbose=False)
    assert kquant.export(q, tmp_path / "near.tflite", data=X[:8]).verification


def test_activations_are_numbers_of_the_format() -> None:
    with pytest.warns(UserWarning, match="simulated only"):
        q = kquant.quantize(_model(), FLOATS["activations"])
    kquant.calibrate(q, X, verbose=False)
    layer = next(layer for layer in q.layers if layer.name.startswith("conv") and hasattr(layer, "low"))
    values = keras.Model(q.inputs, layer.output[0]).predict(X, verbose=0)
    given = keras.Model(q.inputs, keras.tree.flatten(layer.input)[0]).predict(X, verbose=0)
    largest = layer.spec.high * layer.grid()[0].numpy()  # the calibrated end
    scale = np.float32(largest * np.float32(1.0 / 448.0))
    wanted = (np.clip(given, -largest, largest) / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale
    np.testing.assert_array_equal(values, wanted)
    assert len(np.unique(values)) > 20


def test_scales_of_channels_are_refused_with_the_reason() -> None:
    for table in ({"kind": "e4m3", "per_axis": True}, {"per_axis": True}):
        with pytest.raises(ValueError, match="a tensor of activations has one scale.* is for weights"):
            kquant.quantize(_model(), _recipe({}, table))
        rule = {"name": "floats", "rules": [{"layer": "conv", "activations": table}]}
        with pytest.raises(ValueError, match="a tensor of activations has one scale"):
            kquant.quantize(_model(), rule)


REFUSED = {
    "bits": ({"kind": "e2m1"}, {}, "kind 'e2m1' has 4 bits. Received: bits=8; give bits = 4"),
    "bits of activations": ({}, {"kind": "e3m2"}, "kind 'e3m2' has 6 bits"),
    "block": ({"kind": "log", "block": 32}, {}, "block is for grids of the kinds uniform, e4m3, e5m2, e3m2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_format_is_refused(case: str) -> None:
    weights, activations, why = REFUSED[case]
    with pytest.raises(ValueError, match=why):
        kquant.quantize(_model(), _recipe(weights, activations))


def test_learned_ranges_want_codes() -> None:
    recipe = {**_recipe({}, {"kind": "e4m3"}), "training": {"ranges": "learned"}}
    with pytest.raises(ValueError, match="activations of kind 'e4m3' have no codes whose range could be learned"):
        kquant.quantize(_model(), recipe)

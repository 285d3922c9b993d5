"""Number formats side by side: 16-bit activations, packed 4-bit weights, float layers, and mixtures in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import contract
import keras
import numpy as np
import pytest

import kquant
from kquant.exporting.checked_runs import random_values
from kquant.layers.nodes import Compressed, FakeQuant
from kquant.tflite.lowering import lower
from kquant.tflite.reader import read_model

RNG = np.random.default_rng(0)
X = np.float32(RNG.normal(size=(64, 12, 12, 3)))
TANH_IN_CONCAT = 1  # QUANTIZE that the network needs in 8 bits already
WIDE: dict[str, Any] = {"bits": 16, "observer": "minmax"}


def network() -> keras.Model:
    """Convolutions with and without fused activations, a residual, tables, pools, a concatenation and a softmax."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((12, 12, 3), name="image")
    x = keras.layers.Conv2D(8, 3, padding="same", name="stem")(inputs)
    x = keras.layers.ReLU(name="stem_relu")(keras.layers.BatchNormalization(name="norm")(x))
    y = keras.layers.DepthwiseConv2D(3, padding="same", activation="relu6", name="depthwise")(x)
    x = keras.layers.Add(name="add")([x, y])
    x = keras.layers.Concatenate(name="concat")([x, keras.layers.Activation("tanh", name="tanh")(y)])
    x = keras.layers.AveragePooling2D(2, name="pool")(x)
    x = keras.layers.Conv2D(6, 1, name="mix")(x)
    x = keras.layers.GlobalAveragePooling2D(name="mean")(x)
    x = keras.layers.Dense(12, activation="relu", name="body")(x)
    model = keras.Model(inputs, keras.layers.Dense(5, activation="softmax", name="head")(x), name="network")
    return contract.randomise(model)


CALIBRATED: dict[str, keras.Model] = {}


def calibrated(recipe: Any, target: str = "litert") -> keras.Model:
    """The network, quantized; made once for each recipe, and read only."""
    key = f"{recipe} {target}"
    if key not in CALIBRATED:
        CALIBRATED[key] = kquant.calibrate(kquant.quantize(network(), recipe, target=target), X, verbose=False)
    return CALIBRATED[key]


def exported(recipe: Any, path: Path, target: str = "litert") -> tuple[keras.Model, kquant.ExportReport]:
    q = calibrated(recipe, target)
    return q, kquant.export(q, path / "m.tflite", data=X)


def mixed(*rules: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {"name": "mixed", "rules": list(rules), **settings}


MIXTURES: dict[str, dict[str, Any]] = {
    "wide": mixed(activations=WIDE),
    "wide body": mixed({"layer": "body*", "activations": WIDE}),
    "wide residual": mixed({"layer": "add", "activations": WIDE}),
    "narrow depthwise": mixed({"type": "DepthwiseConv2D", "activations": {"bits": 8}}, activations=WIDE),
    "wide concat": mixed({"layer": "concat", "activations": WIDE}),
    "int4": mixed(weights={"bits": 4}),
    "int4 per tensor": mixed(weights={"bits": 4, "per_axis": False}),
    "all three": mixed(
        {"layer": "mix", "weights": {"bits": 4}}, {"layer": "body*", "activations": WIDE}, weights={"bits": 8}
    ),
    "power of two": mixed(activations={"kind": "power-of-two"}, weights={"kind": "power-of-two"}),
    "symmetric": mixed(activations={"symmetric": True}),
    "narrow weights": mixed({"layer": "mix", "weights": {"bits": 3}}, weights={"bits": 6}),
}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("target", ["litert", "tflm"])
@pytest.mark.parametrize("name", sorted(MIXTURES))
def test_mixtures_compute_the_codes_of_the_model(name: str, target: str, tmp_path: Path) -> None:
    _, report = exported(MIXTURES[name], tmp_path, target)
    assert not any("FLOAT" in kind for kind in report.types)
    for found in report.verification:
        if found.runtime != "litert":  # XNNPACK rounds in its own way
            assert found.agreements[0].equal == 1.0, found


def test_wide_activations_are_nearly_float(tmp_path: Path) -> None:
    model = network()
    q, report = exported("int16x8", tmp_path)
    assert report.types["INT16"] > 0 and report.types["INT64"] > 0 and "INT8" in report.types
    assert {port.type for port in (*report.inputs, *report.outputs)} == {"INT16"}
    narrow, _ = exported("int8", tmp_path)
    wanted = model(X)
    errors = [float(np.abs(other(X) - wanted).mean()) for other in (q, narrow)]
    assert errors[0] < errors[1] / 2  # what remains is the rounding of the weights


def test_one_requantization_on_each_side_of_a_wide_layer(tmp_path: Path) -> None:
    _, report = exported(MIXTURES["wide residual"], tmp_path)
    # two inputs become 16 bits, one output 8 bits again
    assert report.operators["QUANTIZE"] == TANH_IN_CONCAT + 3


def test_int4_weights_are_packed(tmp_path: Path) -> None:
    q, report = exported("int4-weights", tmp_path)
    file = kquant.inspect(tmp_path / "m.tflite")
    packed = [t for t in file.tensors if t.type == "INT4"]
    assert len(packed) == sum(isinstance(layer, Compressed) for layer in q.layers)
    for t in packed:
        assert t.size_bytes == -(-int(np.prod(t.shape)) // 2)
    assert report.file_bytes < exported("int8", tmp_path)[1].file_bytes


def test_what_is_not_packed_gets_the_width_that_the_recipe_says() -> None:
    model = keras.Sequential([keras.Input((5, 5, 3)), keras.layers.Conv2DTranspose(4, 3, name="up")], name="m")
    contract.randomise(model)
    with pytest.warns(UserWarning, match=r"no packed 4-bit weights for up \(8 bits\), as `unpacked_bits` says"):
        wide = kquant.quantize(model, "int4-weights")
    with pytest.warns(UserWarning, match="no packed 4-bit weights for up; their codes have 4 bits"):
        narrow = kquant.quantize(model, mixed(weights={"bits": 4}))
    assert [q.get_layer("up").spec.bits for q in (wide, narrow)] == [8, 4]
    assert kquant.recipe_to_aeq(mixed(weights={"bits": 4, "unpacked_bits": 8}, activations={"observer": "minmax"}))


def test_power_of_two_scales_reach_the_file(tmp_path: Path) -> None:
    exported(MIXTURES["power of two"], tmp_path)
    for t in kquant.inspect(tmp_path / "m.tflite").tensors:
        if t.scale is not None and t.type in ("INT8", "INT16"):
            assert set(np.frexp(np.float32(t.scale))[0]) == {0.5}, t


def test_a_float_layer_stands_between_one_pair(tmp_path: Path) -> None:
    _, report = exported(mixed({"layer": "depthwise*", "float": True}), tmp_path)
    assert report.operators["DEQUANTIZE"] == report.operators["QUANTIZE"] - TANH_IN_CONCAT == 1
    assert all(found.agreements[0].argmax > 0.95 for found in report.verification)


def test_a_model_may_end_in_float_layers_and_still_return_codes(tmp_path: Path) -> None:
    _, report = exported(mixed({"layer": "head*", "float": True}), tmp_path)
    assert report.outputs[0].type == "INT8"
    assert report.operators["DEQUANTIZE"] == report.operators["QUANTIZE"] - TANH_IN_CONCAT == 1


def test_an_activation_may_stay_float_behind_an_integer_layer(tmp_path: Path) -> None:
    _, report = exported(mixed({"layer": "stem_relu", "float": True}), tmp_path)
    assert report.operators["RELU"] == 1
    assert report.operators["DEQUANTIZE"] == report.operators["QUANTIZE"] - TANH_IN_CONCAT == 1
    assert all(found.agreements[0].argmax > 0.95 for found in report.verification)


def test_float_layers_are_refused_on_microcontrollers() -> None:
    with pytest.raises(ValueError, match=r"depthwise.*TensorFlow Lite Micro.* runs integers only"):
        kquant.quantize(network(), mixed({"layer": "depthwise*", "float": True}), target="tflm")


@pytest.mark.parametrize(
    ("recipe", "kernel", "size"),
    [("dynamic-int8", "INT8", 0.5), ("weight-only-int8", "INT8", 0.5), ("float16", "FLOAT16", 0.7)],
)
def test_files_with_float_activations(recipe: str, kernel: str, size: float, tmp_path: Path) -> None:
    model = network()
    q, report = exported(recipe, tmp_path)
    assert not any(isinstance(layer, FakeQuant) for layer in q.layers)
    assert report.types[kernel] == sum(isinstance(layer, Compressed) for layer in q.layers)
    weights = 4 * sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    assert report.weight_bytes < size * weights
    wanted = np.asarray(model(X))
    for runtime in ("litert", "litert-reference"):
        found = kquant.predict(tmp_path / "m.tflite", X, runtime=runtime)
        assert np.abs(found - wanted).max() < (1e-3 if recipe == "float16" else 0.02)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("recipe", ["int16x8", "int4-weights", "dynamic-int8", "float16", "all three", "power of two"])
def test_every_format_trains_saves_and_loads(recipe: str, tmp_path: Path) -> None:
    q = kquant.calibrate(kquant.quantize(network(), MIXTURES.get(recipe, recipe)), X, verbose=False)
    q.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    before = [v.numpy() for v in q.trainable_variables]
    q.fit(X[:32], np.arange(32) % 5, batch_size=16, verbose=0)
    assert any(np.any(v.numpy() != old) for v, old in zip(q.trainable_variables, before, strict=True))
    q.save(tmp_path / "q.keras")
    again = keras.saving.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(q(X), again(X))
    assert contract.file_of(again) == contract.file_of(q)


def test_wide_layers_without_a_kernel_are_named_and_narrowed(tmp_path: Path) -> None:
    inputs = keras.Input((6, 5), name="x")
    x = keras.layers.Dense(4, name="first")(inputs)
    x = keras.layers.Activation("selu", name="curve")(x)
    model = keras.Model(inputs, keras.layers.Dense(3, name="last")(x))
    with pytest.warns(UserWarning, match=r"no 16-bit kernel for curve \(Activation\)"):
        q = kquant.quantize(model, "int16x8")
    x = np.float32(RNG.normal(size=(64, 6, 5)))
    kquant.calibrate(q, x, verbose=False)
    report = kquant.export(q, tmp_path / "m.tflite", data=x)
    assert report.operators["QUANTIZE"] == 2
    reference = next(v for v in report.verification if v.runtime == "litert-reference")
    assert reference.agreements[0].equal == 1.0


@pytest.mark.one_in(2)
@pytest.mark.parametrize("io", ["int8", "uint8", "int16", "float32"])
@pytest.mark.parametrize("recipe", ["int8", "int16x8"])
def test_edges_of_another_type(recipe: str, io: str, tmp_path: Path) -> None:
    q = calibrated(recipe)
    report = kquant.export(q, tmp_path / "m.tflite", data=X, io=io)
    assert {port.type for port in (*report.inputs, *report.outputs)} == {io.upper()}
    found = kquant.predict(tmp_path / "m.tflite", X)
    assert np.mean(found.argmax(1) == np.asarray(q(X)).argmax(1)) > 0.9


def test_codes_of_a_wide_model_are_its_file_s(tmp_path: Path) -> None:
    q, _ = exported("int16x8", tmp_path)
    file = read_model((tmp_path / "m.tflite").read_bytes())
    scales = {t.name: t.scale for t in file.tensors}
    for ref in lower(q).program.inputs:
        assert ref.encoding is not None and scales[ref.name] == tuple(map(float, ref.encoding.scale))
        assert int(ref.encoding.zero_point[0]) == 0


FLOAT_FORMATS = ("float16", "weight-only-int8", "dynamic-int8")


def test_samples_of_float_files_are_floats_that_vary() -> None:
    for recipe in FLOAT_FORMATS:
        rows = random_values(lower(kquant.quantize(network(), recipe)))
        assert all(x.dtype == np.float32 and x.std() > 0.1 for x in rows)


def test_later_rules_keep_what_they_do_not_speak_of(tmp_path: Path) -> None:
    rules = ({"layer": "head*", "float": True}, {"type": "Dense", "weights": {"per_axis": False}})
    _, report = exported(mixed(*rules), tmp_path)
    assert "head" in report.float_layers and "FLOAT32" in report.types


def test_rules_speak_of_the_layers_of_the_user(tmp_path: Path) -> None:
    inputs = keras.Input((6, 8), name="x")
    x = keras.layers.LayerNormalization(name="norm")(inputs)
    x = keras.layers.Conv1D(4, 3, padding="causal", activation="relu", name="causal")(x)
    model = contract.randomise(keras.Model(inputs, keras.layers.Dense(3, activation="softmax", name="head")(x)))
    x = np.float32(RNG.normal(size=(64, 6, 8)))
    for rule in ({"layer": "norm"}, {"type": "LayerNormalization"}, {"layer": "causal"}, {"type": "Dense"}):
        q = kquant.calibrate(kquant.quantize(model, mixed({**rule, "float": True})), x, verbose=False)
        report = kquant.export(q, tmp_path / "m.tflite", data=x)
        assert report.operators["DEQUANTIZE"] == report.operators["QUANTIZE"] == 1, (rule, report.operators)


def test_what_only_moves_between_float_layers_stays_float(tmp_path: Path) -> None:
    inputs = keras.Input((8,), name="x")
    x = keras.layers.Reshape((4, 3))(keras.layers.Dense(12, name="a")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Dense(4, name="b")(x)))
    q = kquant.quantize(model, mixed({"layer": "[ab]", "float": True}))
    x = np.float32(RNG.normal(size=(64, 8)))
    kquant.calibrate(q, x, verbose=False)
    report = kquant.export(q, tmp_path / "m.tflite", data=x)
    assert report.operators["DEQUANTIZE"] == report.operators["QUANTIZE"] == 1

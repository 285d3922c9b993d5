"""Old files and dumps of them (`tests/support/old_models.py`, tf_keras 2.21, tfmot 0.8.1) against tf_keras' outputs."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

import kquant
from kquant import report
from kquant.layers.kernel import holders
from kquant.layers.nodes import FakeQuant
from kquant.migrate import migration, old_files, refusals
from kquant.migrate.building import Parts, build
from kquant.migrate.old_model import OldModel, read
from kquant.migrate.result import Migrated
from kquant.migrate.stored_weights import assign, distances
from kquant.migrate.tfmot_wrappers import OldRange, unwrap
from kquant.migrate.translation import translated
from kquant.report.page import page

GOLDEN = Path(__file__).parent / "golden"
FLOAT = ("cnn", "rnn", "ops", "nested", "norm", "sequential")
KEPT = ("pruned", "clustered", "pruned_clustered")
QUANTIZED = ("qat", "qat_graph", "qat_dense", "nbit", "pqat", "cqat")
layers = keras.layers


def old(name: str) -> OldModel:
    return read(GOLDEN / name, f"{name}.h5")


def brought(name: str, data: Any = None, target: str = "litert") -> Migrated:
    given = None if data is None else lambda _: data
    return migration.finished(unwrap(old(name)), Parts(f"{name}.h5"), given, target, verbose=False)


def tensor_ranges(name: str) -> list[OldRange]:
    return [r for r in unwrap(old(name)).ranges if r.tensor in ("output", "pre_activation")]


@pytest.fixture(scope="module")
def quantized() -> dict[str, Migrated]:
    return {name: brought(name, target="tflm") for name in QUANTIZED}


def test_golden_files_are_small_and_say_what_made_them() -> None:
    assert all(file.stat().st_size < 50_000 for file in GOLDEN.rglob("*") if file.is_file())
    for name in (*FLOAT, *KEPT, *QUANTIZED):
        model = old(name)
        assert model.versions == {"keras": "2.21.0", "tensorflow": "2.21.0", "tfmot": "0.8.1"}
        assert model.outputs and not model.untried


@pytest.mark.parametrize("name", FLOAT)
def test_a_float_model_computes_what_it_did(name: str) -> None:
    made = brought(name)
    assert made.kind == "float" and made.distance is not None
    assert made.distance.float_error <= 1e-6 < made.distance.reach


@pytest.mark.parametrize("name", FLOAT)
def test_a_lost_weight_shows(name: str) -> None:
    """The comparison can fail: any weight that is not brought over moves the outputs."""
    model = old(name)
    layer = next(n for n, held in model.weights.items() if held and held[0][1].ndim > 1)
    held = tuple((path, value + 0.5) for path, value in model.weights[layer])
    changed = replace(model, weights={**model.weights, layer: held})
    with pytest.warns(UserWarning, match="Compare layer by layer"):
        made = migration.finished(unwrap(changed), Parts("x"), None, "litert", verbose=False)
    assert made.distance is not None and made.distance.float_error > 1e-4


@pytest.mark.parametrize("name", FLOAT)
def test_a_migrated_model_is_saved_and_quantized(name: str, tmp_path: Path) -> None:
    model = brought(name).model
    model.save(tmp_path / "new.keras")
    again = keras.models.load_model(tmp_path / "new.keras")
    assert max(distances(again, old(name).samples, old(name).outputs)) <= 1e-6
    if name in ("cnn", "sequential", "norm"):
        assert kquant.check(again, "tflm").ok


@pytest.mark.parametrize("name", ["qat", "pqat", "cqat", "nbit"])
def test_on_tfmots_grids_outputs_are_tfmots(name: str, quantized: dict[str, Migrated]) -> None:
    made = quantized[name]
    assert made.distance is not None and made.distance.float_error <= 1e-6
    assert [d.theirs for d in made.differences] == ["float"], "the softmax, which tfmot leaves in float"
    assert made.tensors == len(tensor_ranges(name))
    assert made.kernels == 3


@pytest.mark.parametrize("name", QUANTIZED)
def test_in_integers_they_are_some_steps_away(name: str, quantized: dict[str, Migrated]) -> None:
    """Where a grid has no counterpart, the page says which; how far that is, is measured here."""
    distance = quantized[name].distance
    assert distance is not None and distance.integer_error is not None and distance.step is not None
    most = {"qat_graph": 4.0, "qat_dense": 4.0, "nbit": 5.0}.get(name, 1.0)
    assert distance.integer_error <= most * distance.step


@pytest.mark.parametrize("name", QUANTIZED)
def test_the_encodings_are_those_of_tfmots_operator(name: str, quantized: dict[str, Migrated]) -> None:
    """Scale and zero point of the same tensor: what `fake_quant_with_min_max_vars` rounds 0..1 of the range to."""
    made = quantized[name].model
    nodes = {layer.name: layer for layer in made.layers if isinstance(layer, FakeQuant)}
    told = {d.tensor for d in quantized[name].differences}
    compared = 0
    for learned in tensor_ranges(name):
        names = [f"{learned.layer}_quant", f"{learned.layer}_relu_quant", f"{learned.layer}_gelu_quant"]
        node = next(
            (nodes[n] for n in (reversed(names) if learned.tensor == "output" else names[:1]) if n in nodes), None
        )
        if node is None or not node.has_range or any(t.startswith(learned.layer) for t in told):
            continue
        low, high = float(learned.low[0]), float(learned.high[0])
        line = tf.linspace(low - 0.1, high + 0.1, 999)
        theirs = tf.quantization.fake_quant_with_min_max_vars(line, low, high)
        scale, point, _ = node.grid()
        ours = (tf.clip_by_value(tf.round(line / scale) + point, -128.0, 127.0) - point) * scale
        off = np.abs(np.asarray(theirs - ours))
        # halves are rounded up by one and to even by the other
        assert np.mean(off > 1e-5) < 0.01 and off.max() <= 1.01 * float(scale)
        compared += 1
    assert compared >= 3 or name == "qat_graph"


def test_another_range_shows() -> None:
    changed = unwrap(old("qat"))
    ranges = tuple(replace(r, low=r.low / 2, high=r.high / 2) if r.layer == "dw" else r for r in changed.ranges)
    made = migration.finished(replace(changed, ranges=ranges), Parts("x"), None, "litert", verbose=False)
    assert made.distance is not None and made.distance.float_error > 1e-3


def test_kernels_take_the_range_of_the_last_step_and_the_gain(quantized: dict[str, Migrated]) -> None:
    held = {h.name: h for h in holders(quantized["qat"].model)}
    learned = {r.layer: r for r in unwrap(old("qat")).ranges if r.tensor.endswith("kernel")}
    gain = np.abs(np.asarray(held["conv"].gain)).reshape(-1)
    scales = np.asarray(held["conv"].scales("kernel")).reshape(-1)
    np.testing.assert_allclose(scales, learned["conv"].high * gain / 127, rtol=1e-6)
    # tfmot has one scale for all channels of a depthwise kernel, and of a matrix
    for name in ("dw", "head"):
        np.testing.assert_allclose(np.asarray(held[name].scales("kernel")), learned[name].high[0] / 127, rtol=1e-6)


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.slow
def test_the_file_is_integer(name: str, quantized: dict[str, Migrated], tmp_path: Path) -> None:
    """tfmot's converter leaves floats after Dense + BatchNormalization; here every file is integer and runs on TFLM."""
    path = tmp_path / "m.tflite"
    samples = old(name).samples[0]
    kquant.export(quantized[name].model, path, data=samples)
    assert kquant.inspect(path).is_integer
    codes = np.asarray(quantized[name].model.predict(samples, verbose=0))
    np.testing.assert_allclose(kquant.predict(path, samples, runtime="tflm"), codes, atol=1e-6)


@pytest.mark.parametrize("name", KEPT)
def test_zeros_and_shared_values_stay_while_it_trains(name: str) -> None:
    made = brought(name)
    assert made.distance is not None and made.distance.float_error <= 1e-6
    model = made.model

    def patterns() -> list[tuple[int, list[int]]]:
        used = [np.asarray(kernel.used) for holder in holders(model) for kernel in holder.kernels()]
        return [(int(np.sum(w == 0.0)), [np.unique(w).size]) for w in used]

    before = patterns()
    x = old(name).samples[0]
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x, np.arange(len(x)) % 3, epochs=2, verbose=0)
    if name != "clustered":
        assert [zeros for zeros, _ in patterns()] == [zeros for zeros, _ in before] and before[0][0] > 0
    if name != "pruned":
        assert all(n[0] <= 8 for _, n in patterns()) and made.books == 3
    assert (made.masks, made.books) == ((3, 0) if name == "pruned" else (0, 3))


@pytest.mark.parametrize(("name", "masks", "books"), [("pruned_inside", 2, 0), ("clustered_inside", 0, 2)])
def test_wrappers_in_a_model_in_a_model_come_over(name: str, masks: int, books: int) -> None:
    made = brought(name)
    assert made.distance is not None and made.distance.float_error <= 1e-6
    assert (made.masks, made.books) == (masks, books)
    kernels = [np.asarray(k.used) for holder in holders(made.model) for k in holder.kernels()]
    assert all(np.unique(k).size <= 8 if books else np.mean(k == 0.0) >= 0.5 for k in kernels)


def test_a_separable_convolution_along_time_comes_over_by_what_its_lambdas_compute() -> None:
    """tfmot puts a Lambda before and one behind it; the refusal has the line, and with it the ranges are tfmot's."""
    with pytest.raises(ValueError, match=r"from_tfmot\(path, .*'sepconv1d_expand_1'.*Reshape\(\(-1, filters"):
        kquant.migrate.from_tfmot(GOLDEN / "separable.h5", compare=False)
    turned = {"sepconv1d_expand_1": layers.Reshape((1, -1, 3)), "sepconv1d_squeeze_1": layers.Reshape((-1, 8))}
    made = kquant.migrate.from_tfmot(GOLDEN / "separable.h5", replacing=turned, verbose=False)
    known = np.load(GOLDEN / "separable.npz")
    step = float([n for n in made.model.layers if isinstance(n, FakeQuant)][-1].grid()[0])
    apart = np.abs(made.model.predict(known["x"], verbose=0) - known["y"]).max()
    assert (made.tensors, made.kernels) == (4, 3) and not made.differences and apart <= 1.01 * step


def test_zeros_and_shared_values_go_on_in_a_quantized_model(quantized: dict[str, Migrated]) -> None:
    assert (quantized["pqat"].masks, quantized["cqat"].books) == (3, 3)
    assert kquant.sparsity(quantized["pqat"].model).total >= 0.5
    kernels = [k for h in holders(quantized["cqat"].model) for k in h.kernels()]
    # of each channel: tfmot keeps the values of a convolution's channels apart, and all they have together are 46
    columns = [np.unique(row).size for k in kernels for row in k.holder.rows(k.path, k.transformed)]
    assert max(columns) <= 8 < kernels[1].shape[0] * kernels[1].shape[1] * kernels[1].shape[2]


def test_a_codebook_that_tfmot_cannot_load_is_read() -> None:
    """`cqat.h5`: "Layer expects 7 weight(s). Received 10 saved weight(s)" is what tfmot says of it."""
    made = kquant.migrate.from_tfmot(GOLDEN / "cqat.h5", compare=False)
    assert made.books == 3 and made.distance is None and made.untried
    x = old("cqat").samples[0]
    np.testing.assert_allclose(made.model.predict(x, verbose=0), old("cqat").outputs[0], atol=1 / 256)


def test_tensors_without_a_range_are_asked_for() -> None:
    with pytest.raises(ValueError, match=r"partial.h5: tfmot has no range for .*Give samples: .*--data"):
        brought("partial")
    x = np.concatenate([old("partial").samples[0]] * 16)
    made = brought("partial", x)
    assert "c1/kernel" in {d.tensor for d in made.differences}, "which tfmot did not quantize"
    assert made.tensors == len(tensor_ranges("partial")) and made.distance is not None
    assert made.distance.float_error <= 1e-6


def test_a_lambda_is_not_run_and_may_be_replaced(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"layer 'twice' is a Lambda.*replacing=\{'twice'"):
        kquant.migrate.from_tf_keras(GOLDEN / "lambda.h5", compare=False)
    made = kquant.migrate.from_tf_keras(GOLDEN / "lambda.h5", replacing={"twice": layers.Rescaling(2.0, name="twice")})
    known = np.load(GOLDEN / "lambda.npz")
    np.testing.assert_allclose(made.model(known["x"]), known["y"], atol=1e-6)


class Mine(layers.Layer):
    def __init__(self, units: int = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units

    def build(self, shape: Any) -> None:
        self.w = self.add_weight(name="w", shape=(shape[-1], self.units))

    def call(self, x: Any) -> Any:
        return x @ self.w


def test_a_custom_layer_needs_its_class() -> None:
    with pytest.raises(ValueError, match=r"layer 'mine' is of the class Mine.*custom_objects=\{'Mine': Mine\}"):
        kquant.migrate.from_tf_keras(GOLDEN / "custom.h5", compare=False)
    made = kquant.migrate.from_tf_keras(GOLDEN / "custom.h5", custom_objects={"Mine": Mine})
    known = np.load(GOLDEN / "custom.npz")
    np.testing.assert_allclose(made.model(known["x"]), known["y"], atol=1e-6)


def test_a_model_of_ones_own_takes_the_weights() -> None:
    stack = [layers.Rescaling(1 / 255.0), layers.Conv2D(2, 3, name="conv2d"), layers.BatchNormalization()]
    stack[2].name = "batch_normalization"
    own = keras.Sequential([keras.Input((8, 8, 1)), *stack, layers.ReLU(threshold=0.1), layers.Flatten()])
    own.add(layers.Dense(2, name="dense"))
    made = kquant.migrate.from_tf_keras(GOLDEN / "sequential.h5", into=own, compare=False)
    assert made.model is own
    assert max(distances(own, old("sequential").samples, old("sequential").outputs)) <= 1e-6


GADGETS = {
    "a class of another module": ({"module": "os", "class_name": "system", "config": {"name": "x"}}, "custom|class"),
    "a function of another module": (
        {
            "class_name": "Dense",
            "config": {"name": "x", "activation": {"module": "os", "class_name": "function", "config": "system"}},
        },
        "names 'system', which is not Keras' own",
    ),
    "bytecode as an activation": (
        {"class_name": "Dense", "config": {"name": "x", "activation": {"class_name": "__lambda__", "config": {}}}},
        "names '__lambda__'",
    ),
    "a Lambda as an activation": (
        {"class_name": "Dense", "config": {"name": "x", "activation": {"class_name": "Lambda", "config": {}}}},
        "names 'Lambda'",
    ),
    "a Lambda in a wrapper": (
        {
            "class_name": "TimeDistributed",
            "config": {"name": "x", "layer": {"class_name": "Lambda", "config": {"name": "y"}}},
        },
        "layer 'y' is a Lambda",
    ),
    "a Lambda in a model": (
        {
            "class_name": "Sequential",
            "config": {"name": "in", "layers": [{"class_name": "Lambda", "config": {"name": "z"}}]},
        },
        "layer 'z' is a Lambda",
    ),
}


@pytest.mark.parametrize("name", GADGETS)
def test_what_could_run_code_is_refused_before_anything_loads(name: str) -> None:
    entry, message = GADGETS[name]
    with pytest.raises(ValueError, match=message):
        refusals.check(refusals.foreign({"layers": [entry]}), "old.h5", (), ())


@pytest.mark.parametrize("name", (*FLOAT, *KEPT, *QUANTIZED))
def test_nothing_is_foreign_in_what_keras_and_tfmot_make(name: str) -> None:
    assert not refusals.foreign(old(name).config)


def entry(kind: str, **config: Any) -> dict[str, Any]:
    return {"class_name": kind, "config": {"name": "x", "batch_input_shape": [None, 4, 3], **config}}


REFUSED = {
    "time_major in a wrapper": (
        entry("Bidirectional", layer=entry("LSTM", units=2, time_major=True)),
        "time_major=True.*transpose",
    ),
    "hard_sigmoid in a cell": (
        entry("LSTM", units=2, activation="tanh", recurrent_activation="hard_sigmoid"),
        "recurrent_activation='hard_sigmoid'",
    ),
    "a class that is gone": (entry("LocallyConnected1D", filters=2), "no such layer .its weights differ.*replacing"),
    "renorm": (entry("BatchNormalization", renorm=True), "renorm=True, which Keras 3 does not have"),
    "an argument nobody knows": (entry("Dense", units=2, colour="red"), "does not take its configuration.*colour"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_keras_3_cannot_have_is_named(name: str) -> None:
    made, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"(?s)old.h5: layer 'x'.*{message}"):
        build("Sequential", {"name": "m", "layers": [made]}, Parts("old.h5"))


def test_format_breaks_of_keras_3() -> None:
    # Keras 2 computes without them: nobuco writes the number of channels there
    groups = {"name": "d", "kernel_size": [3, 3], "groups": 2, "batch_input_shape": [None, 4, 4, 2]}
    kind, config = translated("DepthwiseConv2D", groups, "d")
    assert "groups" not in config and "batch_input_shape" not in config and layers.DepthwiseConv2D.from_config(config)
    kind, config = translated("InputLayer", {"batch_input_shape": [None, 4], "ragged": False, "name": "i"}, "i")
    assert config == {"batch_shape": [None, 4], "name": "i"}
    assert translated("LSTM", {"units": 2, "time_major": False}, "l") == ("LSTM", {"units": 2})
    with pytest.raises(ValueError, match="ragged=True"):
        translated("InputLayer", {"batch_input_shape": [None, 4], "ragged": True}, "i")


def test_a_weight_without_a_place_is_named() -> None:
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1, name="head")])
    kernel = np.zeros((2, 1), np.float32)
    with pytest.raises(ValueError, match=r"layer 'head' .Dense.: the file has 1 weights .head/kernel \(2, 1\)"):
        assign(model, {"head": (("head/kernel", kernel),)}, "old.h5")
    with pytest.raises(ValueError, match="nothing in the file for 'kernel'"):
        assign(model, {"head": (("head/bias", np.zeros(1, np.float32)), ("head/kernel", kernel.T))}, "old.h5")
    with pytest.raises(ValueError, match="weights of layers that the model does not have: tail"):
        assign(model, {"tail": (("tail/kernel", kernel),)}, "old.h5")


def damaged(path: Path) -> dict[str, tuple[Path, str]]:
    """Files that are no old models."""
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    model.save(path / "new.keras")
    (path / "text.h5").write_text("{}")
    (path / "cut.h5").write_bytes((GOLDEN / "sequential.h5").read_bytes()[:9000])
    (path / "saved").mkdir()
    (path / "saved/saved_model.pb").write_bytes(b"x")
    (path / "keras_saved").mkdir()
    (path / "keras_saved/saved_model.pb").write_bytes(b"x")
    (path / "keras_saved/keras_metadata.pb").write_bytes(b"\x0a\xff")
    (path / "empty").mkdir()
    with h5py.File(path / "weights.h5", "w") as file:
        file.attrs["layer_names"] = ["a"]
    with h5py.File(path / "list.h5", "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": {"layers": 3}})
    with zipfile.ZipFile(path / "zip.keras", "w") as file:
        file.writestr("a", "b")
    return {
        "new.keras": (path / "new.keras", "nothing to migrate"),
        "text.h5": (path / "text.h5", "expected a model of Keras 2"),
        "cut.h5": (path / "cut.h5", "damaged HDF5"),
        "saved": (path / "saved", "no layers are left"),
        "keras_saved": (path / "keras_saved", "damaged at byte"),
        "empty": (path / "empty", "no SavedModel"),
        "weights.h5": (path / "weights.h5", "weights without their model|without a model"),
        "list.h5": (path / "list.h5", "no list of layers"),
        "zip.keras": (path / "zip.keras", "no model of Keras 2"),
        "missing": (path / "missing.h5", "no such file"),
    }


def test_other_files_are_told_apart(tmp_path: Path) -> None:
    for name, (file, message) in damaged(tmp_path).items():
        with pytest.raises(ValueError, match=message) as caught:
            kquant.migrate.from_tf_keras(file, compare=False)
        assert str(file) in str(caught.value), name


def test_a_damaged_dump_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text('{"class_name": "Sequential"}')
    np.savez(tmp_path / "arrays.npz", a0=np.zeros(1))
    with pytest.raises(ValueError, match="model.json is damaged: KeyError"):
        read(tmp_path, "old.h5")


def test_metadata_of_a_saved_model() -> None:
    """Written by hand: two objects, one of them the model."""

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    node = b"\x10\x07" + field(3, b"root") + field(4, b"_tf_keras_model") + field(5, b'{"class_name": "Mine"}')
    other = field(3, b"root.a") + field(5, b"[1]")
    assert old_files.metadata(field(1, node) + field(1, other), "f") == {"root": {"class_name": "Mine"}}
    with pytest.raises(ValueError, match="damaged"):
        old_files.metadata(b"\x0a\x05abc", "f")


def test_without_tf_keras_the_install_line_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"pip install 'kquant\[migrate\]'"):
        kquant.migrate.from_tf_keras(GOLDEN / "sequential.h5")
    with pytest.raises(ValueError, match="--python nowhere: no such file"):
        kquant.migrate.from_tf_keras(GOLDEN / "sequential.h5", python="nowhere")


def test_nothing_of_tfmot_is_said() -> None:
    with pytest.raises(ValueError, match="tfmot left nothing in it; kquant.migrate.from_tf_keras"):
        kquant.migrate.from_tfmot(GOLDEN / "sequential.h5", compare=False)


def test_the_result_tells_of_itself(quantized: dict[str, Migrated]) -> None:
    made = quantized["qat_graph"]
    said = report.render(made)
    assert "Not quantized alike" in said and "steps of the output's grid" in said and "learned ranges" in said
    plain = json.loads(report.to_json(made))
    assert plain["kind"] == "quantized" and plain["differences"] and plain["distance"]["integer_error"] >= 0
    assert "quantized" in repr(made)
    untried = replace(made, distance=None, untried="no time")
    assert "outputs were not compared" in report.render(untried) and not page(untried).ok
    asked = kquant.migrate.from_tf_keras(GOLDEN / "sequential.h5", compare=False)  # nothing is left to be done
    assert "outputs were not compared: compare=False" in report.render(asked) and page(asked).ok


PYTHON = os.environ.get("KQUANT_OLD_PYTHON") or (sys.executable if importlib.util.find_spec("tf_keras") else "")


@pytest.mark.skipif(not PYTHON, reason="tf_keras is in no environment here: pip install 'kquant[migrate]'")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["sequential", "qat", "cqat"])
def test_tf_keras_reads_the_file_in_its_own_process(name: str) -> None:
    before = set(sys.modules)
    made = migration.migrate(GOLDEN / f"{name}.h5", None, target="litert", python=PYTHON, compare=True, verbose=False)
    assert not [m for m in set(sys.modules) - before if m.startswith(("tf_keras", "tensorflow_model_opt"))]
    if name == "cqat":
        assert "Weight count mismatch" in made.untried
    else:
        assert made.distance is not None and made.distance.float_error <= 1e-6


OLD_CODE = """
from tensorflow import keras

class Mine(keras.layers.Layer):
    def __init__(self, units=3, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, shape):
        self.w = self.add_weight("w", (shape[-1], self.units))

    def call(self, x):
        return (x @ self.w) * FACTOR
"""


@pytest.mark.skipif(not PYTHON, reason="tf_keras is in no environment here: pip install 'kquant[migrate]'")
@pytest.mark.slow
@pytest.mark.parametrize("factor", [1, 2])
def test_custom_layers_are_compared_where_their_old_code_is_at_hand(factor: int, tmp_path: Path) -> None:
    """Their old class is run by tf_keras alone; another function than that of the new class shows."""
    code = tmp_path / "old_layers.py"
    code.write_text(OLD_CODE.replace("FACTOR", str(factor)))
    given: dict[str, Any] = {"custom_objects": {"Mine": Mine}, "code": code, "python": PYTHON}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = kquant.migrate.from_tf_keras(GOLDEN / "custom.h5", **given)
    assert "old_layers" not in sys.modules and made.distance is not None and not made.untried
    if factor == 1:
        assert made.distance.float_error <= 1e-6 and not caught
    else:
        assert made.distance.float_error > 1e-2 and "Compare layer by layer" in str(caught[0].message)
    known = np.load(GOLDEN / "custom.npz")
    np.testing.assert_allclose(made.model(known["x"]), known["y"], atol=1e-6)


def test_code_that_is_not_there_or_not_asked_for() -> None:
    with pytest.raises(ValueError, match=r"code='nowhere.py': no such file"):
        kquant.migrate.from_tf_keras(GOLDEN / "custom.h5", code="nowhere.py")
    made = kquant.migrate.from_tf_keras(GOLDEN / "custom.h5", custom_objects={"Mine": Mine})
    assert "code= names the file of it" in made.untried


def test_warnings_are_the_verbs(quantized: dict[str, Migrated]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        brought("qat")

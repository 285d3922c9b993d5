"""What no project can be made of: a clear error, and nothing is written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from small_project import X, quantized, small_model  # noqa: F401
from typer.testing import CliRunner

import kquant
from kquant.app.cli import app
from kquant.runtime.running import available

pytestmark = [
    pytest.mark.skipif("tflm" not in available(), reason="runs on TFLM: pip install 'kquant[micro]' (Linux only)"),
    pytest.mark.filterwarnings("ignore:calibrate. .* carry hardly any signal"),
]
layers = keras.layers


def _refusals() -> dict[str, tuple[dict[str, Any], str]]:
    wrong = np.zeros((4, 5, 5, 2), np.float32)
    return {
        "kind": ({"kind": "arduinos"}, "kind 'arduinos' does not exist. Did you mean 'arduino'"),
        "labels": ({"labels": ["a", "b"]}, "2 labels for an output of 3 values"),
        "mean": ({"mean": [1.0, 2.0, 3.0]}, "mean has 3 numbers; the first input, image, has 2 channels"),
        "std": ({"std": 0.0}, "std must be above 0"),
        "golden": ({"golden": 0}, "golden"),
        "data": ({"data": wrong}, "input 'image': expected samples of shape (8, 8, 2)"),
        "name": ({"name": 5}, "name must be a text"),
        "a text for labels": ({"labels": "abc"}, "labels must be texts, one for each class"),
        "io": ({"io": "int32"}, "io must be one of"),
        "budget": ({"decode_budget": 8}, "give compression='auto' with it"),
    }


@pytest.mark.parametrize("case", sorted(_refusals()))
def test_what_does_not_fit_is_refused(q: keras.Model, case: str, tmp_path: Path) -> None:
    options, said = _refusals()[case]
    with pytest.raises(ValueError, match=re.escape(said)):
        kquant.bundle(q, tmp_path / "new", **{"data": X, **options})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("recipe", ["int8", "float16"])
def test_models_for_other_targets_are_refused(recipe: str, tmp_path: Path) -> None:
    said = "quantized for target 'litert'.*Expected: kquant.quantize.model, target='tflm'"
    with pytest.raises(ValueError, match=said):
        kquant.bundle(quantized(target="litert", recipe=recipe), tmp_path / "new", data=X)
    with pytest.raises(ValueError, match="not a quantized model"):
        kquant.bundle(keras.Sequential([keras.Input((4,)), layers.Dense(2)]), tmp_path / "new", data=X)
    assert not (tmp_path / "new").exists()


def test_a_folder_of_somebody_else_is_left_alone(q: keras.Model, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds other files: notes.txt. Give a new folder"):
        kquant.bundle(q, tmp_path, data=X)
    with pytest.raises(ValueError, match="is a file; give a folder"):
        kquant.bundle(q, tmp_path / "notes.txt", data=X)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def _with(layer: keras.Layer) -> keras.Model:
    x = keras.Input((8, 8, 2), name="image")
    y = layer(layers.Conv2D(4, 3, activation="relu", name="conv")(x))
    return keras.Model(x, layers.Dense(3, name="score")(layers.Flatten(name="flat")(y)), name="net")


def test_an_operator_without_a_kernel_is_refused_by_layer(tmp_path: Path) -> None:
    """Vela has a GELU, TFLM has none: the same layer is other operators for target "tflm"."""
    model = _with(layers.Activation("gelu", name="soft"))
    q = kquant.calibrate(kquant.quantize(model, target="ethos-u"), X, verbose=False)
    said = r"TensorFlow Lite Micro has no kernel for soft \(GELU\).*Quantize for target='tflm'"
    with pytest.raises(ValueError, match=said):
        kquant.bundle(q, tmp_path / "new", data=X)
    assert not (tmp_path / "new").exists()
    # the file itself can be checked by the other runtime of its target
    assert {v.runtime for v in kquant.export(q, tmp_path / "net.tflite", data=X).verification} == {"litert-reference"}
    tried = kquant.calibrate(kquant.quantize(model, target="tflm"), X, verbose=False)  # what the message says
    assert "GELU" not in kquant.bundle(tried, tmp_path / "new", data=X, golden=1).operators


@pytest.mark.parametrize(
    ("layer", "recipe", "said"),
    [
        (layers.Lambda(lambda t: keras.ops.sort(t, axis=-1), name="odd"), "int8", "odd (Lambda)"),
        (layers.ReLU(name="odd"), {"name": "f", "rules": [{"layer": "odd", "float": True}]}, "odd (ReLU)"),
        (layers.ReLU(name="odd"), "float16", "recipe 'float16': its activations are floats"),
    ],
    ids=["an operator", "a float layer", "a type"],
)
@pytest.mark.filterwarnings("ignore:.*Lambda")
def test_what_the_target_has_no_kernel_for_is_refused_by_layer(
    layer: keras.Layer, recipe: Any, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        kquant.quantize(_with(layer), recipe, target="tflm")
    if said.startswith("odd (Lambda"):  # a file cannot hold a function of somebody's
        return
    _with(layer).save(tmp_path / "net.keras")
    np.savez(tmp_path / "x.npz", x=X)
    text = recipe
    if isinstance(recipe, dict):
        text = str(tmp_path / "f.toml")
        Path(text).write_text('name = "f"\n[[rules]]\nlayer = "odd"\nfloat = true\n')
    asked = ["export", str(tmp_path / "net.keras"), "--data", str(tmp_path / "x.npz"), "--recipe", text]
    done = CliRunner().invoke(app, [*asked, "--folder", str(tmp_path / "new")])
    assert done.exit_code == 1 and said in done.output and not (tmp_path / "new").exists()


def test_a_type_without_a_call_is_refused_by_name(tmp_path: Path) -> None:
    q = quantized(target="litert", recipe="int16x8")
    with pytest.raises(ValueError, match="'image' is int16, and LiteRT's Kotlin API takes .*io='float32'"):
        kquant.bundle(q, tmp_path / "new", data=X, kind="android")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["2 x", "class", "", "../../x", "\U0001f600", "a" * 300])
def test_a_name_that_is_no_identifier_becomes_one(q: keras.Model, name: str, tmp_path: Path) -> None:
    made = kquant.bundle(q, tmp_path / "new", data=X, name=name, golden=1)
    assert made.name.isidentifier() and made.name.isascii() and made.name not in ("class", "")
    assert [p.name for p in tmp_path.iterdir()] == ["new"]

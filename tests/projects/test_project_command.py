"""`kquant export` writes what `kquant.bundle` does, with all that a file may be told."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

import kquant
from kquant.app.cli import app
from kquant.projects.kinds import kind_and_target
from kquant.runtime.running import available

pytestmark = [
    pytest.mark.skipif("tflm" not in available(), reason="runs on TFLM: pip install 'kquant[micro]' (Linux only)"),
    pytest.mark.filterwarnings("ignore:calibrate. .* carry hardly any signal"),
]
layers = keras.layers
RAW = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 2)).astype("uint8")


def _model() -> keras.Model:
    x = keras.Input((8, 8, 2), name="image")
    y = layers.Conv2D(4, 3, activation="relu", name="conv")(x)
    y = layers.Dense(16, activation="relu", name="wide")(layers.Flatten()(y))
    return keras.Model(x, layers.Dense(3, activation="softmax", name="score")(y), name="net")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float model, quantized ones, and what belongs to them."""
    made = tmp_path_factory.mktemp("models")
    model = _model()
    model.save(made / "net.keras")
    x = RAW / np.float32(255)
    for target in ("tflm", "litert"):
        q = kquant.calibrate(kquant.quantize(model, target=target), x, verbose=False)
        q.save(made / f"{target}.keras")
    np.savez(made / "raw.npz", x=RAW)
    np.savez(made / "x.npz", x=x)
    (made / "names.txt").write_text("left\nright\nnone\n")
    return made


def _asked(folder: Path, model: str, out: Path, *options: str, data: str = "x.npz") -> Any:
    common = ["--data", str(folder / data), "--folder", str(out), "--json"]
    return CliRunner().invoke(app, ["export", str(folder / model), *common, *options])


def _told(folder: Path, model: str, out: Path, *options: str, data: str = "x.npz") -> dict[str, Any]:
    done = _asked(folder, model, out, *options, data=data)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_of_a_quantized_model(folder: Path, tmp_path: Path) -> None:
    told = _told(folder, "tflm.keras", tmp_path / "fw", "--classes", str(folder / "names.txt"))
    assert told["kind"] == "tflm"
    assert told["operators"] == {"CONV_2D": 1, "FULLY_CONNECTED": 2, "SOFTMAX": 1}
    assert '"right",' in (tmp_path / "fw" / "io.c").read_text()
    phone = _told(folder, "litert.keras", tmp_path / "app", "--target", "android", "--name", "my net")
    assert (phone["kind"], phone["name"], phone["arena"]) == ("android", "my_net", None)
    assert (tmp_path / "app/src/main/kotlin/models/my_net/MyNetModel.kt").is_file()


@pytest.mark.parametrize(
    ("options", "kind", "target"),
    [
        ([], "tflm", "tflm"),
        (["--target", "ios"], "ios", "litert"),
        (["--kind", "zephyr"], "zephyr", "tflm"),
        (["--kind", "android", "--target", "litert"], "android", "litert"),
    ],
)
def test_a_float_model_is_quantized_for_what_it_runs_on(
    folder: Path, options: list[str], kind: str, target: str, tmp_path: Path
) -> None:
    told = _told(folder, "net.keras", tmp_path / "new", "--golden", "2", *options)
    assert (told["kind"], told["export"]["target"], told["golden"]) == (kind, target, 2)


@pytest.mark.parametrize(
    ("options", "types"),
    [
        (["--io", "uint8"], "UINT8"),
        (["--io", "float32"], "FLOAT32"),
        (["--io", "int16", "--recipe", "int16x8"], "INT16"),
        (["--recipe", "int4-weights"], "INT4"),
    ],
)
def test_types_are_those_that_were_asked_for(folder: Path, options: list[str], types: str, tmp_path: Path) -> None:
    told = _told(folder, "net.keras", tmp_path / "new", *options)
    edges = {p["type"] for p in (*told["export"]["inputs"], *told["export"]["outputs"])}
    assert types in edges if "--io" in options else types in told["export"]["types"]


def test_weights_may_lie_in_tables(folder: Path, tmp_path: Path) -> None:
    clustered = kquant.cluster(
        keras.models.load_model(folder / "net.keras"), {"name": "few", "clustering": {"clusters": 8}}
    )
    clustered.save(tmp_path / "few.keras")
    told = _told(folder, str(tmp_path / "few.keras"), tmp_path / "new", "--compression", "lut")
    assert told["operators"]["TFLM_DECODE"] == 1
    assert "AddDecode()" in (tmp_path / "new" / "op_resolver.h").read_text()


def test_names_may_be_left_out(folder: Path, tmp_path: Path) -> None:
    plain = _told(folder, "tflm.keras", tmp_path / "plain", "--no-shrink")
    bare = _told(folder, "tflm.keras", tmp_path / "bare", "--no-shrink", "--strip-names")
    assert bare["flash_bytes"] < plain["flash_bytes"]
    assert {t.name for t in kquant.inspect(tmp_path / "bare" / "model.tflite").tensors} == {""}
    # the project is about layers all the same, and its vectors are those of the other file
    for name in ("io.h", "golden.cc"):
        one, other = ((tmp_path / place / name).read_text() for place in ("bare", "plain"))
        assert "score_softmax" in one and "image" in one
        if name == "golden.cc":
            assert one.split("golden_parts")[0] == other.split("golden_parts")[0]
            assert "conv/kernel" in one.split("golden_parts")[1]


def test_a_budget_is_of_what_is_decoded(folder: Path, tmp_path: Path) -> None:
    done = _asked(folder, "tflm.keras", tmp_path / "new", "--decode-budget", "8KB")
    assert done.exit_code == 1 and "decode_budget is for weights that are decoded" in done.output
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("states", ["io", "variables"])
def test_of_a_stream(states: str, tmp_path: Path) -> None:
    x = keras.Input((16, 4), name="frames")
    y = layers.Conv1D(8, 3, padding="causal", activation="relu")(x)
    keras.Model(x, layers.Dense(3)(y), name="listener").save(tmp_path / "net.keras")
    clips = np.random.default_rng(0).normal(size=(64, 16, 4)).astype("float32")
    np.savez(tmp_path / "x.npz", x=clips)
    told = _told(tmp_path, "net.keras", tmp_path / "new", "--streaming", "2", "--states", states)
    assert told["export"]["inputs"][0]["shape"][1] == 2
    assert ("VAR_HANDLE" in told["operators"]) == (states == "variables")


def test_open_dimensions_are_told(folder: Path, tmp_path: Path) -> None:
    x = keras.Input((None, None, 2), name="image")
    y = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, name="conv")(x))
    keras.Model(x, layers.Dense(3)(y), name="open").save(tmp_path / "open.keras")
    model = str(tmp_path / "open.keras")
    told = _told(folder, model, tmp_path / "new", "--input-shape", "8,8,2")
    assert told["export"]["inputs"][0]["shape"] == [1, 8, 8, 2]
    assert _asked(folder, model, tmp_path / "other").exit_code == 1


def test_raw_values_are_normalized_in_the_project_and_here(folder: Path, tmp_path: Path) -> None:
    """The codes of the golden vectors are those that the project makes of the same raw values."""
    raw = ["--scale", "1/255", "--mean", "0.5,0.25", "--std", "0.5"]
    told = _told(folder, "net.keras", tmp_path / "new", *raw, data="raw.npz")
    text = (tmp_path / "new" / "io.c").read_text() + (tmp_path / "new" / "io.h").read_text()
    assert "0.25f" in text
    port = told["export"]["inputs"][0]
    first = (RAW[:1] / 255 - [0.5, 0.25]) / 0.5
    wanted = np.clip(np.rint(first / port["scale"]) + port["zero_point"], -128, 127).ravel()
    golden = (tmp_path / "new" / "golden.cc").read_text()
    numbers = [int(n) for n in re.search(r"\{([-\d,\s]+)\}", golden)[1].replace("\n", " ").split(",") if n.strip()]
    assert np.abs(np.array(numbers[: wanted.size]) - wanted).max() <= 1  # ties of float32 and float64


@pytest.mark.parametrize(
    ("kind", "target", "found"),
    [
        (None, None, ("tflm", "tflm")),
        (None, "tflm", ("tflm", "tflm")),
        (None, "arduino", ("arduino", "tflm")),
        ("esp-idf", "tflm", ("esp-idf", "tflm")),
        ("android", "android", ("android", "litert")),
        (None, "ethos-u", ("tflm", "ethos-u")),
        ("zephyr", "ethos-u", ("zephyr", "ethos-u")),
    ],
)
def test_one_word_says_where_it_runs(kind: str | None, target: str | None, found: tuple[str, str]) -> None:
    assert kind_and_target(kind, target) == found


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--target", "litert"], "several kinds of projects, android or ios: give --kind"),
        (["--target", "gpu"], "for target 'gpu' there are several kinds of projects, android or ios: give --kind"),
        (["--target", "androit"], "Did you mean 'android'"),
        (["--target", "ESP32"], "target 'ESP32' does not exist. For esp32, take 'esp-idf'. There are: cmsis-nn"),
        (["--target", "iphone"], "ethos-u85, gpu, litert, mediatek, nnapi, qualcomm, tflm, arduino"),
        (["--target", "stm32"], "target 'stm32' does not exist. For stm32, take 'cmsis-nn'. There are"),
        (["--kind", "arduinos"], "Did you mean 'arduino'"),
        (["--kind", "ios", "--target", "android"], "are two kinds of projects"),
        (["--recipe", "int8"], "is quantized already; leave --recipe out"),
        (["--target", "ethos-u"], "is quantized already, for target 'tflm'; leave --target ethos-u out"),
        (["--target", "android"], "is quantized for target 'tflm', and an Android library module runs on LiteRT"),
        (["--input-shape", "8,8,2"], "is quantized already; leave --input-shape out"),
        (["--mean", "1,2,3"], "mean has 3 numbers; the first input, image, has 2 channels"),
    ],
)
def test_what_does_not_fit_is_told(folder: Path, options: list[str], said: str, tmp_path: Path) -> None:
    done = _asked(folder, "tflm.keras", tmp_path / "new", *options)
    assert done.exit_code == 1 and said in " ".join(done.output.split()), done.output
    assert not (tmp_path / "new").exists()


def test_it_tells_accuracy_where_classes_are_given(folder: Path, tmp_path: Path) -> None:
    np.save(folder / "y.npy", np.arange(64) % 3)
    judged = ("--test", str(folder / "x.npz"), "--labels", str(folder / "y.npy"))
    card = _told(folder, "net.keras", tmp_path / "out", *judged)["card"]
    assert card["samples"] == 64 and all(0 < card[f"{name}_accuracy"] < 1 for name in ("float", "simulated", "file"))
    assert re.search(r"\| accuracy \| float [\d.]+ %, simulated", (tmp_path / "out" / "README.md").read_text())
    alone = _asked(folder, "net.keras", tmp_path / "alone", *judged[:2])
    assert alone.exit_code == 2 and "--labels" in alone.output
    assert not (tmp_path / "alone").exists()

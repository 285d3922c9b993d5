"""`kquant detect`, and a detector's head as a TOML file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from typer.testing import CliRunner

import kquant
from kquant.app.cli import app
from kquant.detecting.detection_file import read_detection

SIDE = 4
ROWS = SIDE * SIDE


def kq(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def _grid() -> np.ndarray:
    centres = (np.stack(np.meshgrid(*[np.arange(SIDE)] * 2, indexing="ij"), -1).reshape(-1, 2) + 0.5) / SIDE
    return np.concatenate([centres, np.full((ROWS, 2), 0.25)], 1)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector, its quantized model and file, samples, and its head."""
    folder = tmp_path_factory.mktemp("detect")
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(6, 3, 2, padding="same", activation="relu")(image)
    boxes = layers.Reshape((ROWS, 4), name="boxes")(layers.Conv2D(4, 1)(x))
    scores = layers.Reshape((ROWS, 2), name="scores")(layers.Conv2D(2, 1, activation="sigmoid")(x))
    model = keras.Model(image, {"boxes": boxes, "scores": scores}, name="net")
    data = np.random.default_rng(0).random((64, 8, 8, 1), np.float32)
    q = kquant.calibrate(kquant.quantize(model, target="tflm"), data, verbose=False)
    q.save(folder / "q.keras")
    kquant.export(q, folder / "net.tflite", data=data[:8])
    np.save(folder / "x.npy", data)
    np.save(folder / "grid.npy", _grid())
    (folder / "head.toml").write_text(
        'anchors = "grid.npy"\nscales = [10, 10, 5, 5]\nthreshold = 0.45\noverlap = 0.3\n'
    )
    (folder / "names.txt").write_text("cat\ndog\n")
    return folder


def test_the_command_finds_what_python_finds(work: Path, tmp_path: Path) -> None:
    asked = kquant.Detection(anchors=_grid(), scales=(10, 10, 5, 5), threshold=0.45, overlap=0.3)
    options = ("--data", work / "x.npy", "--limit", 3, "--detection", work / "head.toml")
    done = kq("detect", work / "net.tflite", *options, "--runtime", "litert-reference", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    data = np.load(work / "x.npy")[[0, 32, 63]]  # spread over all, as every command takes them
    wanted = kquant.detect(work / "net.tflite", data, asked, runtime="litert-reference")
    assert [len(sample) for sample in told] == [len(boxes) for boxes in wanted] and sum(map(len, wanted)) > 3
    for sample, boxes in zip(told, wanted, strict=True):
        assert [row["class"] for row in sample] == boxes.classes.tolist()
        corners = [[row[edge] for edge in ("top", "left", "bottom", "right")] for row in sample]
        np.testing.assert_allclose(corners, boxes.boxes, rtol=1e-6)
    path = tmp_path / "boxes.json"
    shown = kq("detect", work / "q.keras", *options, "--classes", work / "names.txt", "--path", path)
    assert shown.exit_code == 0 and "boxes in 3 samples" in shown.stdout, shown.output
    assert {row["class"] for sample in json.loads(path.read_text()) for row in sample} <= {"cat", "dog"}


def test_names_of_another_number_and_a_runtime_of_nothing_are_refused(work: Path, tmp_path: Path) -> None:
    options = ("--data", work / "x.npy", "--limit", 1, "--detection", work / "head.toml")
    (tmp_path / "one.txt").write_text("cat\n")
    for subject in ("net.tflite", "q.keras"):
        done = kq("detect", work / subject, *options, "--classes", tmp_path / "one.txt")
        said = " ".join(done.output.split())
        assert done.exit_code == 1 and "1 labels for an output of 2 values; give one for each" in said, said
    done = kq("detect", work / "q.keras", *options, "--runtime", "tflm")
    assert done.exit_code == 1 and "--runtime tflm: runs TFLite files" in " ".join(done.output.split()), done.output


def test_a_project_takes_the_same_file(work: Path, tmp_path: Path) -> None:
    given = ("--data", work / "x.npy", "--detection", work / "head.toml", "--golden", 1)
    done = kq("export", work / "q.keras", *given, "--folder", tmp_path / "net", "--json")
    assert done.exit_code == 0, done.output
    assert f"anchors[{ROWS} * 4]" in (tmp_path / "net" / "detect.c").read_text()


REFUSED = {
    "absent": (None, "no such file"),
    "key": ("formm = 'corners'", "no key 'formm'. Did you mean 'form'?"),
    "value": ("form = 'corner'", "head.toml: Detection: form must be one of"),
    "kind": ("form = 'corners'\nscales = 'x'", "scales must be numbers"),
    "array": ("anchors = 'other.npy'", "anchors 'other.npy': no such file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_head_is_refused_before_the_model_loads(case: str, work: Path, tmp_path: Path) -> None:
    text, why = REFUSED[case]
    head = tmp_path / "head.toml"
    if text is not None:
        head.write_text(text)
    (tmp_path / "net.keras").write_bytes(b"")  # no model: what is told comes before it is read
    done = kq("detect", tmp_path / "net.keras", "--data", work / "x.npy", "--detection", head)
    assert done.exit_code == 1 and why in done.stderr and not done.stdout, done.output
    with pytest.raises(ValueError, match="--detection .*head.toml"):
        read_detection(head)

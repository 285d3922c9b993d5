"""`kquant split`: both parts of a model, and samples, in a folder."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from typer.testing import CliRunner

import kquant
from kquant.app.cli import app

ROWS = (np.random.default_rng(0).random((16, 3)) * [1, 100, 10000]).astype("float32")


def kq(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def work(tmp_path: Path) -> Path:
    norm = layers.Normalization(mean=[0.0, 50.0, 5000.0], variance=[1.0, 1e3, 1e7], name="norm")
    keras.Sequential([keras.Input((3,), name="sensors"), norm, layers.Dense(2)]).save(tmp_path / "net.keras")
    np.savez(tmp_path / "rows.npz", ROWS)
    return tmp_path


def test_the_parts_give_what_the_model_gave(work: Path) -> None:
    folder = work / "split"
    done = kq("split", work / "net.keras", "--folder", folder, "--data", work / "rows.npz")
    assert done.exit_code == 0 and "norm, which the application computes" in done.stdout, done.output
    before, after = (keras.models.load_model(folder / name) for name in ("preprocessing.keras", "net.keras"))
    with np.load(folder / "rows.npz") as held:
        assert held.files == ["sensors"]
        np.testing.assert_array_equal(held["sensors"], before.predict(ROWS, verbose=0))
        wanted = keras.models.load_model(work / "net.keras").predict(ROWS, verbose=0)
        np.testing.assert_allclose(after.predict(held["sensors"], verbose=0), wanted, rtol=1e-5, atol=1e-5)
    told = json.loads(kq("split", work / "net.keras", "--folder", folder, "--json").stdout)
    assert told["moved"] == ["norm"] and told["model"] == str(folder / "net.keras") and told["data"] == []


def test_what_cannot_be_split_leaves_nothing(work: Path) -> None:
    keras.Sequential([keras.Input((3,)), layers.Dense(2, name="first")]).save(work / "plain.keras")
    done = kq("split", work / "plain.keras", "--folder", work / "split")
    assert done.exit_code == 1 and "first" in done.stderr and not (work / "split").exists()
    over = kq("split", work / "net.keras", "--folder", work)
    assert over.exit_code == 1 and "would overwrite" in over.stderr


def test_results_of_one_name_are_refused(work: Path) -> None:
    (work / "other").mkdir()
    (work / "other/rows.npz").write_bytes((work / "rows.npz").read_bytes())
    (work / "preprocessing.keras").write_bytes((work / "net.keras").read_bytes())
    data = ("--data", work / "rows.npz", "--data", work / "other/rows.npz")
    for given, said in (((work / "net.keras", *data), "other/rows.npz"), ((work / "preprocessing.keras",), "inputs")):
        done = kq("split", *given, "--folder", work / "split")
        assert done.exit_code == 1 and said in done.stderr and "; rename " in done.stderr, done.output
        assert not (work / "split").exists()


def test_columns_are_divided_where_nothing_scales_and_export_is_told_the_widths(work: Path) -> None:
    model = keras.Sequential([keras.Input((3,), name="sensors"), layers.Dense(2, name="first")])
    model.save(work / "plain.keras")
    bare = kq("split", work / "plain.keras", "--folder", work / "split")
    assert bare.exit_code == 1 and "Give samples (--data)" in " ".join(bare.stderr.split())
    done = kq("split", work / "plain.keras", "--folder", work / "split", "--data", work / "rows.npz")
    assert done.exit_code == 0, done.output
    words = done.stdout.split()
    mean, std = (np.float32(words[words.index(name) + 1].split(",")) for name in ("--mean", "--std"))
    with np.load(work / "split/rows.npz") as held:
        np.testing.assert_allclose(held["sensors"], (ROWS - mean) / std, rtol=1e-5)
        after = keras.models.load_model(work / "split/plain.keras")
        np.testing.assert_allclose(after(held["sensors"]), model(ROWS), rtol=1e-4, atol=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_what_analyze_prints_of_unlike_columns_works_when_it_is_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Split and compress, float model and test samples included: no 16 bits, and nothing is lost."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    x = np.stack([rng.normal(0.0, 1000.0, 400), 2.0 * y - 1.0 + rng.normal(0.0, 0.1, 400)], 1).astype(np.float32)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="head")], name="net")
    model.layers[0].set_weights([np.array([[0.0, 0.0], [-1.0, 1.0]], np.float32), np.zeros(2, np.float32)])
    q = kquant.calibrate(kquant.quantize(model, target="tflm"), x[:200], verbose=False)
    q.save("quantized.keras")
    np.savez("CALIBRATION.npz", x[:200])
    np.savez("test.npz", x[200:])
    np.save("y.npy", y[200:])
    told = CliRunner().invoke(app, ["analyze", "quantized.keras", "--data", "test.npz", "--labels", "y.npy"])
    lines = told.stdout.partition("where the application divides the columns:\n")[2].split("\n\n")[0].splitlines()
    strip, *commands = [shlex.split(line) for line in lines]
    subprocess.run([sys.executable, *strip[1:]], check=True)
    done = [CliRunner().invoke(app, [*words[1:]]) for words in commands]
    assert [one.exit_code for one in done] == [0, 0], done[-1].output
    card = json.loads(Path("better/report.json").read_text())["card"]
    assert card["file_accuracy"] == card["float_accuracy"] == 1.0
    assert "INT16" not in Path("better/report.txt").read_text()

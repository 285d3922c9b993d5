"""`kquant compress`: what its options reach `kquant.compress` as."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

import kquant
from kquant.analysis.by_chance import chance
from kquant.analysis.results import Finding, Gain
from kquant.app import pipeline
from kquant.app.cli import _say_remedy, app
from kquant.exporting.model_card import ModelCard
from kquant.report.tables import page


@pytest.fixture
def reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Arguments of the one call; nothing is compressed."""
    seen: dict[str, Any] = {}

    def compress(*_: Any, **given: Any) -> None:
        seen.update(given)
        raise ValueError("seen")

    monkeypatch.setattr(pipeline, "compress", compress)
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)], name="net").save(tmp_path / "net.keras")
    np.save(tmp_path / "data.npy", np.ones((8, 4), np.float32))
    return seen


def told(folder: Path, *more: str) -> str:
    arguments = ["compress", str(folder / "net.keras"), "--data", str(folder / "data.npy"), "--folder", "build"]
    result = CliRunner().invoke(app, [*arguments, *more])
    assert result.exit_code == 1, result.output
    return result.stderr


def test_a_budget_goes_on_from_the_folder(
    reached: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert told(tmp_path, "--flash-bytes", "40KB") == "kquant: seen\n"
    assert reached["flash_bytes"] == 40 * 1024
    assert reached["folder"] == Path("build/rungs")
    assert "evaluate" not in reached
    assert not Path("build").exists(), "nothing was kept, and no empty folder is left"


def test_without_one_nothing_is_kept(reached: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert told(tmp_path) == "kquant: seen\n"
    assert reached["flash_bytes"] is None
    assert reached["folder"] is None
    assert not Path("build").exists()


@pytest.fixture
def losing(tmp_path: Path) -> list[str]:
    """Arguments, of a model that loses most of its accuracy: two columns, one 1,000 times the other, which decides."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    x = np.stack([rng.normal(0.0, 1000.0, 400), 2.0 * y - 1.0 + rng.normal(0.0, 0.1, 400)], 1).astype(np.float32)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="head")], name="net")
    model.layers[0].set_weights([np.array([[0.0, 0.0], [-1.0, 1.0]], np.float32), np.zeros(2, np.float32)])
    model.save(tmp_path / "net.keras")
    for name, array in {"x": x, "y": y}.items():
        np.save(tmp_path / f"{name}.npy", array)
    given = {"--data": "x.npy", "--labels": "y.npy", "--test": "x.npy"}
    return [str(tmp_path / "net.keras"), *(word for k, v in given.items() for word in (k, str(tmp_path / v)))]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("verb", ["compress", "export"])
def test_lost_accuracy_is_told_and_may_be_an_error(verb: str, losing: list[str], tmp_path: Path) -> None:
    arguments = [verb, *losing, "--folder", str(tmp_path / "build"), "--target", "tflm"]
    asked = CliRunner().invoke(app, arguments)
    assert asked.exit_code == 0, asked.output
    found, command = asked.stdout.split("! ")[1].split("\n")[:2]
    assert found.startswith("accuracy: ") and found.endswith(" in the file; run:")
    assert CliRunner().invoke(app, shlex.split(command)[1:]).exit_code == 0
    refused = CliRunner().invoke(app, [*arguments, "--max-drop", "0.01"])
    assert refused.exit_code == 3, "another code than that of what was refused"
    assert "and --max-drop 0.01 allows 1." in refused.stderr
    assert (tmp_path / "build").is_dir()
    assert CliRunner().invoke(app, [*arguments, "--max-drop", "0.9"]).exit_code == 0


@pytest.mark.filterwarnings("ignore")
def test_what_analyze_cannot_take_is_no_line_to_paste(losing: list[str], tmp_path: Path) -> None:
    """Whoever ran it on samples that nobody normalized would look at another loss."""
    column = np.load(tmp_path / "x.npy")[:, None, :]
    np.save(tmp_path / "x.npy", column)
    model = keras.models.load_model(losing[0])
    flat = [keras.Input((1, 2)), keras.layers.Flatten(), model.layers[0]]
    keras.Sequential(flat, name="net").save(losing[0])
    for raw, said in ((["--mean", "0", "--std", "1"], "kquant.analyze(model, data)"), ([], "kquant analyze")):
        arguments = ["export", *losing, "--folder", str(tmp_path / f"build{len(raw)}"), "--target", "tflm", *raw]
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0 and f"run:\n{said}" in done.stdout, done.output


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("quantized", [False, True])
def test_what_analyze_shows_works_when_it_is_pasted(
    quantized: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a quantized model the float one is at hand in it."""
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    rows = [keras.Input((16,)), keras.layers.Dense(32, name="a"), keras.layers.Dense(8, name="b")]
    model = keras.Sequential(rows, name="net")
    kernel, bias = model.layers[0].get_weights()
    scales = np.exp2(np.linspace(-7, 3, 32)).astype(np.float32)
    model.layers[0].set_weights([kernel * scales, bias])
    model.layers[1].set_weights([model.layers[1].get_weights()[0] / scales[:, None], np.zeros(8, np.float32)])
    model.save("net.keras")
    x = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)
    np.save("x.npy", x)
    given = ["net.keras", "--target", "tflm"]
    if quantized:
        given = ["it's quantized.keras"]
        kquant.calibrate(kquant.quantize(model, target="tflm"), x, verbose=False).save(given[0])
    told = CliRunner().invoke(app, ["analyze", *given, "--data", "x.npy"])
    assert told.exit_code == 0, told.output
    _, _, commands = told.stdout.partition("With what gains most:\n")
    lines = commands.splitlines()
    assert [line.split()[1] for line in lines] == ["analyze", *["-c"] * quantized, "compress"]
    for line in lines:
        if line.startswith("kquant "):
            done = CliRunner().invoke(app, shlex.split(line)[1:])
            assert done.exit_code == 0, done.output
        else:
            subprocess.run([sys.executable, *shlex.split(line)[1:]], check=True)
    [written] = Path("better").glob("*.tflite")
    assert kquant.inspect(written).is_integer


def test_told_commands_never_calibrate_on_what_a_model_is_judged_by(capsys: pytest.CaptureFixture[str]) -> None:
    found = SimpleNamespace(target="tflm", findings=[Finding("a", "b", "", remedy="steps = []", gain=Gain(0.1, 3.0))])
    _say_remedy(found, Path("net.keras"), {"data": Path("t.npz"), "labels": Path("l.npy"), "target": "tflm"}, None)
    analyze, compress = (shlex.split(line) for line in capsys.readouterr().out.splitlines()[-2:])
    assert analyze[analyze.index("--data") + 1] == "t.npz"
    read = {name: compress[compress.index(name) + 1] for name in ("--data", "--test", "--labels")}
    assert read == {"--data": "CALIBRATION.npz", "--test": "t.npz", "--labels": "l.npy"}


def test_a_page_of_lost_accuracy_is_not_ready() -> None:
    made = ModelCard(96, 48, 1200, None, 0.96, 0.22, 0.22, 500, "tflm", "kquant analyze net.keras")
    assert not page(made).ok
    assert page(replace(made, file_accuracy=0.94)).ok, "other samples could make 2 points of 500"
    pairs = replace(made, file_accuracy=0.94, spoiled=12, mended=2)
    assert not page(pairs).ok, "not of the same samples, of which the file spoils 12 and mends 2"
    assert page(replace(pairs, spoiled=40, mended=30)).ok, "answers change, and no more one way than the other"
    many = replace(made, file_accuracy=0.957, samples=100_000, spoiled=400, mended=100)
    assert page(many).ok, "sure, and less than half a point"


def test_chance_is_the_exact_test_of_mcnemar() -> None:
    """Agresti, Categorical Data Analysis, table 10.1: 150 and 86 of 1,600; `scipy.stats.binomtest(86, 236)`."""
    assert chance(150, 86) == chance(86, 150) == pytest.approx(3.715936e-05, rel=1e-6)
    assert chance(0, 0) == chance(1, 0) == chance(4, 4) == 1.0
    assert chance(6, 0) == 2 / 2**6


@pytest.mark.filterwarnings("ignore")
def test_autotune_that_loses_too_much_ends_as_the_others_do(losing: list[str], tmp_path: Path) -> None:
    wide = np.load(tmp_path / "x.npy") * np.array([1000.0, 1.0], np.float32)  # beyond 16 bits, too
    np.save(tmp_path / "x.npy", wide)
    arguments = ["autotune", *losing[:-2], "--folder", str(tmp_path / "tuned"), "--max-drop", "0"]
    assert CliRunner().invoke(app, arguments).exit_code == 3
    assert list((tmp_path / "tuned").glob("*.tflite"))


def test_max_drop_wants_labels(reached: dict[str, Any], tmp_path: Path) -> None:
    given = ["compress", str(tmp_path / "net.keras"), "--data", str(tmp_path / "data.npy"), "--folder", "build"]
    result = CliRunner().invoke(app, [*given, "--max-drop", "0.01"])
    assert result.exit_code == 2
    assert "--max-drop needs --labels" in result.stderr


def test_a_model_where_the_rungs_would_lie_is_refused(
    reached: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "build" / "rungs").mkdir(parents=True)
    for name in ("net.keras", "data.npy"):
        (tmp_path / name).rename(tmp_path / "build" / "rungs" / name)
    assert "give another folder" in told(tmp_path / "build" / "rungs", "--flash-bytes", "40KB")
    assert not reached

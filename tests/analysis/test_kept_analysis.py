"""What `analyze(folder=)` keeps belongs to one model, made in one way, one metric and one set of samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

import kquant
from kquant.app.cli import app

X = np.float32(np.random.default_rng(0).normal(size=(64, 6)))
QUIET: dict[str, Any] = {"verbose": False, "remedies": False}


def network() -> keras.Model:
    keras.utils.set_random_seed(1)
    hidden = keras.layers.Dense(8, activation="relu", name="hidden")
    return keras.Sequential([keras.Input((6,), name="row"), hidden, keras.layers.Dense(4, name="head")], name="net")


def quantized(recipe: Any = "int8", target: str = "litert") -> keras.Model:
    return kquant.calibrate(kquant.quantize(network(), recipe, target=target), X, verbose=False)


def steady(_: np.ndarray) -> float:
    """Says the same of every model."""
    return 0.5


OTHERS: dict[str, dict[str, Any]] = {
    "weights of 4 bits": {"recipe": {"name": "int8", "weights": {"bits": 4}}},
    "of one scale": {"recipe": {"name": "int8", "weights": {"per_axis": False}}},
    "a layer left out": {"recipe": {"name": "int8", "rules": [{"layer": "head", "skip": True}]}},
    "another target": {"target": "tflm"},
}


@pytest.mark.parametrize("name", OTHERS)
def test_of_two_quantizations_of_a_model_each_has_its_own(name: str, tmp_path: Path) -> None:
    kquant.analyze(quantized(), X, steady, folder=tmp_path, **QUIET)
    with pytest.raises(ValueError, match=r"analyze: .*analysis.json is of another search"):
        kquant.analyze(quantized(**OTHERS[name]), X, steady, folder=tmp_path, **QUIET)


def test_metrics_are_told_apart_by_their_names_and_by_what_they_say(tmp_path: Path) -> None:
    def falling(_: np.ndarray) -> float:
        return 0.5

    def told(low: float) -> Any:
        def steady(_: np.ndarray) -> float:
            return low

        return steady

    q = quantized()
    kquant.analyze(q, X, steady, folder=tmp_path, **QUIET)
    kquant.analyze(q, X, told(0.5), folder=tmp_path, **QUIET)
    for metric, said in (
        (falling, "'falling' now"),
        (None, "SQNR in dB"),
        (told(0.25), "this one 0.25 and 0.25"),
    ):
        with pytest.raises(ValueError, match=rf"analysis.json is of another search.*{said}"):
            kquant.analyze(q, X, metric, folder=tmp_path, **QUIET)


def test_a_folder_that_cannot_be_used_is_refused_before_data_are_read(tmp_path: Path) -> None:
    def unread() -> Any:
        raise AssertionError("data were read")

    def unasked(_: np.ndarray) -> float:
        raise AssertionError("the model has run")

    q = quantized()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"analyze: .*file cannot be written: File exists; choose another path"):
        kquant.analyze(q, unread, folder=tmp_path / "file", **QUIET)
    kquant.analyze(q, X, steady, folder=tmp_path / "kept", **QUIET)
    with pytest.raises(ValueError, match="is of another search"):  # before its metric says anything
        kquant.analyze(q, X, unasked, folder=tmp_path / "kept", **QUIET)


def test_a_folder_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    with pytest.raises(ValueError, match=r"analyze: the folder .*kept cannot be written to; choose another path"):
        kquant.analyze(quantized(), X, folder=tmp_path / "kept", **QUIET)


def test_the_command_keeps_and_goes_on(tmp_path: Path) -> None:
    quantized().save(tmp_path / "q.keras")
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", np.arange(64) % 4)

    def call(folder: Path, *more: object) -> Any:
        given = (tmp_path / "q.keras", "--data", tmp_path / "x.npy", "--json", "--folder", folder, *more)
        return CliRunner().invoke(app, ["analyze", *map(str, given)])

    first = call(tmp_path / "kept")
    assert first.exit_code == 0, first.output
    kept = tmp_path / "kept" / "analysis.json"
    content = kept.read_bytes()
    rows = json.loads(content)["done"]["settings"]
    assert {name for row in rows for name in row["names"]} >= {"hidden", "head"}
    again = call(tmp_path / "kept")
    assert (again.exit_code, again.stdout) == (0, first.stdout) and kept.read_bytes() == content
    other = call(tmp_path / "kept", "--labels", tmp_path / "y.npy")
    assert other.exit_code == 1 and "is of another search" in other.stderr
    refused = call(tmp_path / "x.npy")
    assert refused.exit_code == 1 and "cannot be written" in refused.stderr

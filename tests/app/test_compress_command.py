"""`kquant compress`: what its options reach `kquant.compress` as."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

from kquant.app import pipeline
from kquant.app.cli import app


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


def test_a_model_where_the_rungs_would_lie_is_refused(
    reached: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "build" / "rungs").mkdir(parents=True)
    for name in ("net.keras", "data.npy"):
        (tmp_path / name).rename(tmp_path / "build" / "rungs" / name)
    assert "give another folder" in told(tmp_path / "build" / "rungs", "--flash-bytes", "40KB")
    assert not reached

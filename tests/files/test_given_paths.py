"""What is no path, or a folder that cannot be made, is refused in words by every verb that takes one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import kquant
from kquant import report

X = np.float32(np.random.default_rng(0).normal(size=(64, 8)))
MODEL = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, activation="relu"), keras.layers.Dense(3)])
QUIET: dict[str, Any] = {"verbose": False}


@pytest.fixture(scope="module")
def quantized() -> keras.Model:
    return kquant.calibrate(kquant.quantize(MODEL, target="tflm"), X, **QUIET)


Call = Callable[[keras.Model, Any], Any]
FILES: dict[str, Call] = {
    "export": lambda q, path: kquant.export(q, path),
    "compress": lambda q, path: kquant.compress(MODEL, X, path=path, **QUIET),
    "compress in bytes": lambda q, path: kquant.compress(MODEL, X, path=path, flash_bytes=4000, **QUIET),
    "view": lambda q, path: kquant.view(path),
    "report.html": lambda q, path: report.html(kquant.check(MODEL), path),
    "save": lambda q, path: kquant.observe(q, X, **QUIET).save(path),
    "load": lambda q, path: kquant.Observations.load(path),
    "from_tf_keras": lambda q, path: kquant.migrate.from_tf_keras(path),
    "from_tfmot": lambda q, path: kquant.migrate.from_tfmot(path),
    "bundle": lambda q, path: kquant.bundle(q, path, data=X),
}
FOLDERS: dict[str, Call] = {
    "autotune": lambda q, folder: kquant.autotune(MODEL, X, lambda _: 1.0, folder=folder, **QUIET),
    "mixed_precision": lambda q, folder: kquant.mixed_precision(MODEL, X, bit_macs=1, folder=folder, **QUIET),
    "analyze": lambda q, folder: kquant.analyze(q, X, folder=folder, **QUIET),
    "adaround": lambda q, folder: kquant.adaround(q, X, folder=folder, **QUIET),
    "sequential_mse": lambda q, folder: kquant.sequential_mse(q, X, folder=folder, **QUIET),
    "shorten_codes": lambda q, folder: kquant.shorten_codes(q, X, flash_bytes=2000, folder=folder, **QUIET),
}


@pytest.mark.parametrize("given", [None, 5], ids=str)
@pytest.mark.parametrize("name", FILES)
def test_no_path(name: str, given: Any, quantized: keras.Model) -> None:
    with pytest.raises(ValueError, match=rf": expected a path, like '.*'\. Received: {given}\."):
        FILES[name](quantized, given)


@pytest.mark.parametrize("name", FOLDERS)
def test_no_folder(name: str, quantized: keras.Model) -> None:
    with pytest.raises(ValueError, match=rf"{name}: expected a path, like '.*'\. Received: 5\."):
        FOLDERS[name](quantized, 5)


@pytest.mark.parametrize("name", ["autotune", "analyze", "sequential_mse"])
def test_a_file_in_the_way(name: str, quantized: keras.Model, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    who = name.replace("_", "-")  # as the step of a recipe is called
    for folder in (tmp_path / "notes", tmp_path / "notes" / "deep"):
        with pytest.raises(ValueError, match=rf"{who}: .*notes.* cannot be written: .*; choose another path\."):
            FOLDERS[name](quantized, folder)
    assert (tmp_path / "notes").read_text() == "mine"


def test_pareto_is_told_as_well() -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match=r"report\.pareto: expected a path, like 'pareto\.png'\. Received: None\."):
        report.pareto(None, None)  # type: ignore[arg-type]

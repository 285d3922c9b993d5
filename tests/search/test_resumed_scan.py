"""A scan that was stopped goes on, and one in a folder of another is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import kquant

X = np.float32(np.random.default_rng(0).normal(size=(64, 16)))
GIVEN: dict[str, Any] = {"sparsities": (0.5, 0.9), "verbose": False}


def net() -> keras.Model:
    keras.utils.set_random_seed(0)
    parts = [keras.layers.Dense(8, activation="relu", name=name) for name in ("a", "b", "c")]
    return keras.Sequential([keras.Input((16,), name="x"), *parts], name="net")


class Stopping:
    """The mean output; Ctrl-C comes with the given call."""

    def __init__(self, at: int) -> None:
        self.at, self.calls = at, 0

    def __call__(self, model: keras.Model) -> float:
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return float(np.mean(model(X)))


def test_what_a_stopped_scan_has_measured_is_not_measured_again(tmp_path: Path) -> None:
    wanted = kquant.scan_sparsity(net(), evaluate=Stopping(99), **GIVEN)
    with pytest.raises(KeyboardInterrupt):
        kquant.scan_sparsity(net(), evaluate=Stopping(6), folder=tmp_path, **GIVEN)  # once dense, two levels a layer
    again = Stopping(99)
    assert kquant.scan_sparsity(net(), evaluate=again, folder=tmp_path, **GIVEN) == wanted
    assert again.calls == 1 + 2, "the dense model, and the third layer"
    other = kquant.scan_sparsity(net(), evaluate=(third := Stopping(99)), folder=tmp_path, sparsity=0.3, **GIVEN)
    assert third.calls == 1 and other.target == 0.3, "another proposal of the same rows"
    assert other == kquant.scan_sparsity(net(), evaluate=Stopping(99), sparsity=0.3, **GIVEN)


def test_rows_of_samples_are_kept_to_the_bit(tmp_path: Path) -> None:
    first = kquant.scan_sparsity(net(), X, folder=tmp_path, **GIVEN)
    assert kquant.scan_sparsity(net(), X, folder=tmp_path, **GIVEN) == first == kquant.scan_sparsity(net(), X, **GIVEN)


OTHERS: dict[str, dict[str, Any]] = {
    "data": {"data": X + 1.0},
    "levels": {"sparsities": (0.5, 0.8)},
    "limit": {"limit": 9},
    "blocks": {"structure": "2x1"},
    "protected": {"protect": "a"},
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_folder_of_another_scan_is_refused(name: str, tmp_path: Path) -> None:
    kquant.scan_sparsity(net(), X, folder=tmp_path, **GIVEN)
    with pytest.raises(ValueError, match="scan_sparsity: .*scan.json is of another search.*Give another folder"):
        kquant.scan_sparsity(**{"model": net(), "data": X, "folder": tmp_path, **GIVEN, **OTHERS[name]})


def test_rows_that_were_changed_are_refused(tmp_path: Path) -> None:
    kquant.scan_sparsity(net(), X, folder=tmp_path, **GIVEN)
    held = json.loads((tmp_path / "scan.json").read_text())
    held["done"]["layers"][0]["values"][0] *= 0.5
    (tmp_path / "scan.json").write_text(json.dumps(held))
    with pytest.raises(ValueError, match="scan.json is damaged"):
        kquant.scan_sparsity(net(), X, folder=tmp_path, **GIVEN)

"""A scan that was stopped goes on, and one in a folder of another is refused."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

import kquant
from kquant.app.cli import app
from kquant.files.finished_work import differing

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
    "last samples": {"data": np.concatenate([X[:-1], 9.0 * X[-1:]])},
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


def test_what_differs_is_said_and_no_more(tmp_path: Path) -> None:
    given: dict[str, Any] = {"model": net(), "folder": tmp_path, **GIVEN}
    kquant.scan_sparsity(evaluate=lambda _: 0.625, **given)
    with pytest.raises(ValueError) as refused:
        kquant.scan_sparsity(evaluate=lambda _: 0.5, **{**given, "sparsities": (0.5,)})
    said = "sparsities: [0.5, 0.9] there, [0.5] now; dense: 0.625 there, 0.5 now. Give another folder, or delete it."
    assert str(refused.value) == f"scan_sparsity: {tmp_path / 'scan.json'} is of another search: {said}"


def test_long_values_are_told_from_where_they_part() -> None:
    one, other = ("[weights]\n" + "observer = 'mse'\n" * 20 + f"bits = {bits}\n" + "x" * 200 for bits in (4, 8))
    said = differing({"recipe": one}, {"recipe": other})
    assert "bits = 4" in said.partition(" there, ")[0] and "bits = 8" in said.partition(" there, ")[2], said
    assert len(said) < 170 and said.startswith("recipe: ... ") and said.endswith("xxx ... now")
    assert differing("no table", {"limit": 9}) == "limit: not told there, 9 now"


def test_few_samples_of_a_folder_of_an_earlier_version_go_on(tmp_path: Path) -> None:
    """Of fewer than 32 samples the checksum said all; of more it did not, and such a folder is refused."""
    for many in (31, 32):
        kquant.scan_sparsity(net(), X[:many], folder=tmp_path / str(many), **GIVEN)
        held = json.loads((tmp_path / str(many) / "scan.json").read_text())["search"]
        assert held["data"] == zlib.crc32(X[:many].tobytes()) and held.get("samples") == (None if many < 32 else 32)


@pytest.mark.parametrize("verb", ["scan", "analyze", "autotune"])
def test_a_command_knows_samples_and_labels(verb: str, tmp_path: Path) -> None:
    """The same accuracy of the float model, by other samples, or by other labels."""
    model = net()
    (kquant.quantize(model, "dynamic-int8") if verb == "analyze" else model).save(tmp_path / "m.keras")
    other = np.concatenate([X[:40], 1.001 * X[40:]])
    classes = model.predict(X, verbose=0).argmax(1)
    moved = (
        np.concatenate([classes[:40], (classes[40:] + 1) % 8]),
        np.concatenate([(classes[:24] + 1) % 8, classes[24:]]),
    )
    for name, array in (("x", X), ("other", other), ("a", moved[0]), ("b", moved[1])):
        np.save(tmp_path / f"{name}.npy", array)

    more: dict[str, list[str]] = {"scan": [], "analyze": [], "autotune": ["--max-drop=0.5"]}

    def call(data: str, labels: str) -> Any:
        given = ["m.keras", "--data", f"{data}.npy", "--labels", f"{labels}.npy", "--folder", "kept", *more[verb]]
        return CliRunner().invoke(app, [verb, *(str(tmp_path / g) if g[0] != "-" else g for g in given), "--json"])

    first = call("x", "a")
    assert first.exit_code == 0, first.output
    assert call("x", "a").stdout == first.stdout
    for given in (("other", "a"), ("x", "b")):
        refused = call(*given)
        said = "data: " if verb == "analyze" and given[0] == "other" else "judged_by: "
        assert refused.exit_code == 1 and "is of another search" in refused.stderr and said in refused.stderr
        assert "score" not in refused.stderr and "dense" not in refused.stderr

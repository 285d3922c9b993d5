"""`--labels` of `kquant verify` and `kquant predict`, and `--test` of `kquant autotune`."""

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

COUNT = 48
X = np.random.default_rng(0).normal(size=(COUNT, 6)).astype("float32")


def kq(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(8, activation="relu")
    model = keras.Sequential([keras.Input((6,), name="row"), hidden, keras.layers.Dense(4, name="head")], name="net")
    model.save(folder / "net.keras")
    q = kquant.calibrate(kquant.quantize(model, target="tflm"), X, verbose=False)
    q.save(folder / "q.keras")
    kquant.export(q, folder / "q.tflite")
    np.save(folder / "x.npy", X)
    labels = np.asarray(model(X)).argmax(1)
    labels[:12] = (labels[:12] + 1) % 4  # a quarter is wrong
    np.save(folder / "y.npy", labels)
    np.save(folder / "few.npy", labels[:10])
    return folder


def wanted(work: Path, runtime: str, samples: np.ndarray = X) -> float:
    """Counted by hand, of what the runtime gives."""
    y = kquant.predict(work / "q.tflite", samples, runtime, verbose=False)
    return float(np.mean(np.asarray(y).argmax(1) == np.load(work / "y.npy")[: len(samples)]))


@pytest.mark.parametrize("runtime", ["litert", "tflm"])
def test_predict_tells_the_accuracy_of_the_file(work: Path, runtime: str) -> None:
    given = ("predict", work / "q.tflite", "--data", work / "x.npy", "--labels", work / "y.npy", "--runtime", runtime)
    share = wanted(work, runtime)
    assert 0.6 < share < 0.9
    assert f"accuracy  file {100 * share:.1f} %" in kq(*given).stdout
    found = json.loads(kq(*given, "--json").stdout)
    assert found["accuracy"] == {"file": share} and len(found) == 2
    assert "accuracy" not in kq(*given[:4]).stdout


def test_verify_tells_the_accuracy_of_both(work: Path) -> None:
    given = ("verify", work / "q.keras", work / "q.tflite", "--data", work / "x.npy", "--labels", work / "y.npy")
    share = wanted(work, "tflm")
    done = kq(*given)
    assert (
        done.exit_code == 0
        and f"model {100 * share:.1f} %" in done.stdout
        and f"file {100 * share:.1f} %" in done.stdout
    )
    found = json.loads(kq(*given, "--json").stdout)
    assert found["ok"] and found["accuracy"] == {"model": share, "file": share}


def test_labels_of_other_samples_are_refused(work: Path) -> None:
    for verb in (("predict", work / "q.tflite"), ("verify", work / "q.keras", work / "q.tflite")):
        done = kq(*verb, "--data", work / "x.npy", "--labels", work / "few.npy")
        assert done.exit_code == 1 and "10 labels" in done.stderr


def test_autotune_judges_by_other_samples_than_it_calibrates_with(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Seen(Exception):
        pass

    def search(model: keras.Model, data: np.ndarray, evaluate: Any, **_: Any) -> None:
        assert len(data) == COUNT and evaluate(model) == pytest.approx(0.0), "the first ten are wrong"
        raise Seen

    monkeypatch.setattr("kquant.search.ladder.autotune", search)
    np.save(work / "held.npy", X[:10])
    given = ("autotune", work / "net.keras", "--data", work / "x.npy", "--test", work / "held.npy")
    done = kq(*given, "--labels", work / "few.npy", "--folder", work / "tuned")
    assert isinstance(done.exception, Seen), done.output

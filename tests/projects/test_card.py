"""Reports and the bundle's README tell how right the float model and the file are, where there are classes."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

import kquant
from kquant import report
from kquant.exporting.model_card import ModelCard

RNG = np.random.default_rng(0)
X = np.float32(RNG.normal(size=(96, 6)))
Y = (X.sum(axis=1) > 0).astype(int)


@pytest.fixture(scope="module")
def trained() -> tuple[keras.Model, keras.Model]:
    """A float model that tells most of the signs, and the quantized one."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2, name="sign")])
    model.compile(keras.optimizers.Adam(0.05), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(X, Y, epochs=10, verbose=0)
    return model, kquant.calibrate(kquant.quantize(model, target="tflm"), X, verbose=False)


def share(outputs: np.ndarray) -> str:
    return f"{100 * np.mean(outputs.argmax(axis=1) == Y):.2f} %"


def test_the_row_is_what_the_models_and_the_file_answer(
    trained: tuple[keras.Model, keras.Model], tmp_path: Path
) -> None:
    model, q = trained
    made = kquant.bundle(q, tmp_path / "firmware", data=X, test=(X, Y))
    written = kquant.export(q, tmp_path / "net.tflite", data=X, test=(X, Y))
    told = (tmp_path / "firmware" / "README.md").read_text()
    answers = {
        "float": share(model.predict(X, verbose=0)),
        "simulated": share(q.predict(X, verbose=0)),
        "file": share(np.asarray(kquant.predict(tmp_path / "net.tflite", X, "tflm"))),
    }
    said = ", ".join(f"{name} {value}" for name, value in answers.items())
    assert f"| accuracy | {said}, of 96 samples on tflm |" in told
    assert answers["float"] != "50.00 %"
    assert made.card == written.card and made.to_dict()["card"]["samples"] == written.to_dict()["card"]["samples"] == 96
    assert {name: f"{100 * value:.2f} %" for name, value in made.card.accuracies.items()} == answers
    short = {name: f"{100 * value:.1f} %" for name, value in made.card.accuracies.items()}
    assert f"{short['float']} / {short['file']}" in report.render(made)
    for printed in (str(written), report.render(written)):
        assert f"float {short['float']}, simulated {short['simulated']}, file {short['file']} (tflm, 96" in printed
    for one in (made, written):
        page = report.html(one, tmp_path / "page.html").read_text()
        assert "accuracy, float" in page and f"{short['file']} ±" in page
    kquant.bundle(q, tmp_path / "plain", data=X)
    assert "accuracy" not in (tmp_path / "plain" / "README.md").read_text()


def test_what_cannot_be_judged_is_refused_before_anything_is_written(
    trained: tuple[keras.Model, keras.Model], tmp_path: Path
) -> None:
    _, q = trained
    with pytest.raises(ValueError, match=r"expected a label for each of 96 samples. Received: 95 labels"):
        kquant.bundle(q, tmp_path / "firmware", data=X, test=(X, Y[1:]))
    with pytest.raises(ValueError, match=r"^bundle: a stream has no accuracy of clips"):
        kquant.bundle(q, tmp_path / "firmware", data=X, test=(X, Y), streaming=True)
    assert not (tmp_path / "firmware").exists()
    with pytest.raises(ValueError, match=r"expected a label for each of 96 samples. Received: 95 labels"):
        kquant.export(q, tmp_path / "net.tflite", data=X, test=(X, Y[1:]))
    with pytest.raises(ValueError, match=r"^export: a stream has no accuracy of clips"):
        kquant.export(q, tmp_path / "net.tflite", data=X, test=(X, Y), streaming=True)
    assert not (tmp_path / "net.tflite").exists()


@pytest.mark.parametrize("runtimes", [["litert"], ["litert", "tflm"]])
def test_what_measures_the_arena_is_named_where_it_is_missing(
    runtimes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kquant.exporting.model_card.available", lambda: runtimes)
    [line] = [each for each in str(ModelCard(1, 2, 3, None)).splitlines() if each.startswith("arena")]
    assert ("pip install 'kquant[micro]'" in line) is ("tflm" not in runtimes) and "not measured" in line
    assert "2,000 bytes" in str(ModelCard(1, 2, 3, 2000))


def test_an_export_prints_its_card(tmp_path: Path) -> None:
    """What it takes, in the words of the card; without classes nothing of how right it is."""
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(6), keras.layers.Dense(3)], name="net")
    x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    q = kquant.calibrate(kquant.quantize(model, target="tflm"), x, verbose=False)
    made = kquant.export(q, tmp_path / "net.tflite", data=x)
    assert made.macs == made.card.macs == 8 * 6 + 6 * 3 == kquant.cost(model).macs
    printed = str(made)
    assert printed.startswith(repr(made)) and f"{made.file_bytes:,} bytes, weights {made.weight_bytes:,}" in printed
    assert "MACs      66" in printed and "accuracy" not in printed
    assert "66 multiply-accumulates for one sample" in report.render(made)

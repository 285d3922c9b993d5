"""Positions of `ops.argmax`: in the file, moved and cast, among other outputs, with names, and judged as names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import contract
import keras
import numpy as np
import pytest

import kquant
from kquant import report
from kquant.exporting.verification import Agreement
from kquant.runtime.running import available
from kquant.targets import load
from kquant.tflite.file_about import About
from kquant.tflite.file_positions import positions_in

layers, ops = keras.layers, keras.ops
X = np.random.default_rng(0).normal(size=(128, 8, 8, 3)).astype("float32")
NAMES = ["road", "car", "tree", "sky", "mast"]


def segmenter(answer: Any, seed: int = 0) -> keras.Model:
    """Five scores for each pixel, and what is made of them."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="conv")(image)
    return keras.Model(image, answer(layers.Conv2D(5, 1, name="scores")(x)), name="net")


def ready(answer: Any, target: str = "litert", recipe: Any = "int8") -> keras.Model:
    return kquant.calibrate(kquant.quantize(segmenter(answer), recipe, target=target), X, verbose=False)


ANSWERS = {
    "of pixels": (lambda y: ops.argmax(y, axis=-1), lambda y: y.argmax(-1)),
    "of rows": (lambda y: ops.argmin(y, axis=1, keepdims=True), lambda y: y.argmin(1)[:, None]),
    "cast": (lambda y: ops.cast(ops.argmax(y, axis=-1), "uint8"), lambda y: y.argmax(-1)),
    "cast and moved": (
        lambda y: ops.cast(ops.reshape(ops.argmax(y, axis=-1), (-1, 64)), "uint8"),
        lambda y: y.argmax(-1).reshape(-1, 64),
    ),
    "turned": (lambda y: ops.transpose(ops.argmax(y, axis=-1), (0, 2, 1)), lambda y: y.argmax(-1).swapaxes(1, 2)),
}


OF_PIXELS = ANSWERS["of pixels"][0]


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("target", ["litert", "tflm"])
def test_positions_are_those_of_the_scores(answer: str, target: str) -> None:
    """In the file and in the simulation, by NumPy; scores of equal codes are many."""
    built, by_numpy = ANSWERS[answer]
    q = ready(lambda y: [built(y), y], target)
    content = contract.file_of(q)
    file = kquant.inspect(content)
    assert [positions_in(file, t) for t in file.outputs] == [8 if answer == "of rows" else 5, 0]
    for best, scores in (q.predict(X, verbose=0), kquant.predict(content, X, "litert-reference")):
        np.testing.assert_array_equal(best, by_numpy(np.asarray(scores)))


def test_one_of_several_outputs(tmp_path: Path) -> None:
    q = ready(lambda y: [ops.argmax(y, axis=-1), y])
    written = kquant.export(q, tmp_path / "m.tflite", data=X)
    file = kquant.inspect(tmp_path / "m.tflite")
    assert [positions_in(file, t) for t in file.outputs] == [5, 0]
    assert [a.positions for v in written.verification for a in v.agreements] == [5, 0] * len(written.verification)


@pytest.mark.parametrize("edges", ["model", "uint8", "int16", "float32"])
def test_labels_name_positions(edges: Any, tmp_path: Path) -> None:
    q = ready(OF_PIXELS)
    kquant.export(q, tmp_path / "m.tflite", about=About(labels=NAMES), io=edges, check_runtimes=False)
    about = kquant.inspect(tmp_path / "m.tflite").about
    assert about is not None and about.outputs[0].labels == tuple(NAMES)
    with pytest.raises(ValueError, match=r"export: 8 labels for an output of 5 positions; give one for each value of"):
        kquant.export(q, tmp_path / "m.tflite", about=About(labels=[*NAMES, "a", "b", "c"]), io=edges)


@pytest.mark.parametrize("kind", ["tflm", "android"])
def test_a_project_has_the_names(kind: str, tmp_path: Path) -> None:
    target = "tflm" if kind == "tflm" else "litert"
    if not set(load(target).runtimes) & set(available()):
        pytest.skip(f"no runtime of {target} is installed")
    q = ready(OF_PIXELS, target)
    kquant.bundle(q, tmp_path / "p", data=X, kind=kind, labels=NAMES)
    said = "".join(path.read_text(errors="replace") for path in (tmp_path / "p").rglob("*.[ck]*"))
    assert all(f'"{name}"' in said for name in NAMES)
    with pytest.raises(ValueError, match=r"8 labels for an output of 5 positions"):
        kquant.bundle(q, tmp_path / "q", data=X, kind=kind, labels=list("abcdefgh"))


def test_positions_are_judged_by_how_many_are_equal() -> None:
    """How many steps a wrong one is away makes no difference."""
    q = ready(OF_PIXELS)
    content = contract.file_of(q)
    verified = kquant.verify(q, content, X, "litert")
    (a,) = verified.agreements
    assert a.positions == 5 and verified.ok
    assert a.sqnr_db == pytest.approx(-10 * np.log10(1 - a.equal)) if a.equal < 1 else a.sqnr_db == np.inf
    wrong = Agreement("best", 0.98, 4, 0.5, 17.0, positions=5)
    low = replace(verified, agreements=(wrong,), follows=False)
    assert (low.verdict, low.ok) == ("rounds otherwise", False)
    said = " ".join(report.render(low).split())
    assert "98.00 % of the positions equal, below the 99 % of equal positions asked for" in said
    assert "LSB off" not in said
    assert replace(low, agreement=16.9).ok


def test_analyze_counts_wrong_positions() -> None:
    """Classes are names: another numbering of the same ones is the same loss."""
    analysis = kquant.analyze(ready(OF_PIXELS), X, verbose=False)
    model = segmenter(OF_PIXELS)
    share = np.mean(np.asarray(model(X)) != ready(OF_PIXELS).predict(X, verbose=0))
    assert 0 < share < 0.1
    assert analysis.sqnr_db == pytest.approx(-10 * np.log10(share), abs=1e-3)

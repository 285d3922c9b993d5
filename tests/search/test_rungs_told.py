"""What `kquant.autotune` says while it searches, and what its table calls the result."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import kquant
from kquant import report
from kquant.app.cli import TOLD, _once
from kquant.report.tables import page


def test_a_line_for_every_rung_and_one_that_is_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(4)])
    x = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    scores = iter([1.0, 0.5, 0.6, 0.7, *[0.4] * 40])
    tuned = kquant.autotune(model, x, lambda _: next(scores), max_drop=0.1)
    told = [line.split("\r")[-1].strip() for line in capsys.readouterr().err.splitlines()]
    for rung in tuned.rungs:
        assert sum(line.endswith(f"{rung.name}: {rung.said}") for line in told) == 1
    assert sum(rung.kept for rung in tuned.rungs) == 3
    states = [row[-1] for row in page(tuned).tables[0].rows]
    assert states[:3] == ["better than before", "better than before", "chosen"] and "chosen" not in states[3:]
    assert "kept" not in report.render(tuned)


def test_a_warning_is_told_once_however_its_figures_change(monkeypatch: pytest.MonkeyPatch) -> None:
    TOLD.clear()
    said = "calibrate: the channels of '{}' leave {} dB; column {} gets {} of 256 codes"
    assert _once(said.format("dw_1", 10.6, 3, "1.2e-05"))
    assert not _once(said.format("dw_1", -0.25, 4, "0.4"))
    assert _once(said.format("dw_2", 10.6, 3, "1.2e-05")), "a layer of another name is another warning"
    assert _once("other words, 3 dB") and not _once("other words, 4 dB")

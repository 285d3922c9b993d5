"""`kquant.why`: what is told was made and measured; figures are those of the verbs that it names."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import kquant
from kquant.analysis.metrics import top1
from kquant.recipe.recipe import load
from kquant.search.answers import Answers, Trial

QUIET: dict[str, Any] = {"verbose": False}


@pytest.fixture(scope="module")
def asked() -> tuple[keras.Model, keras.Model, np.ndarray, np.ndarray, Answers]:
    keras.utils.set_random_seed(2)
    hidden = [keras.layers.Dense(64, activation="relu", name="wide"), keras.layers.Dense(16, name="middle")]
    head = keras.layers.Dense(4, activation="softmax", name="kind")
    model = keras.Sequential([keras.Input((24,), name="x"), *hidden, head], name="net")
    x = np.random.default_rng(0).normal(size=(96, 24)).astype("float32")
    y = model(x).numpy().argmax(1)
    q = kquant.calibrate(kquant.quantize(model, target="tflm"), x[:32], **QUIET)
    return model, q, x, y, kquant.why(q, x[32:], top1(y[32:]), calibration=x[:32], **QUIET)


def trial(answers: Answers, part: str) -> Trial:
    [found] = {t.lines: t for answer in answers.answers for t in answer.trials if part in t.lines}.values()
    return found


def test_the_start_is_the_file(asked: tuple, tmp_path: Any) -> None:
    _, q, x, y, answers = asked
    report = kquant.export(q, tmp_path / "net.tflite")
    start = answers.start
    assert (start.file_bytes, start.arena_bytes) == (report.file_bytes, report.arena_bytes)
    assert start.macs == 24 * 64 + 64 * 16 + 16 * 4 and answers.samples == 64 and answers.float_value == 1.0
    analysis = kquant.analyze(q, x[32:], top1(y[32:]), sensitivity=False, remedies=False, **QUIET)
    assert (start.value, answers.metric) == (analysis.value, "accuracy")
    assert start.sqnr_db == pytest.approx(analysis.sqnr_db, abs=1e-3)


def test_lines_of_a_recipe_make_that_file(asked: tuple, tmp_path: Any) -> None:
    model, _, x, y, answers = asked
    found = trial(answers, "[weights]")
    q = kquant.quantize(model, load({"name": "mine", "weights": {"bits": 4}}), target="tflm")
    report = kquant.export(kquant.calibrate(q, x[:32], **QUIET), tmp_path / "four.tflite")
    # the name of the recipe is in the file's metadata
    assert abs(found.file_bytes - report.file_bytes) <= 16 and found.arena_bytes == report.arena_bytes
    assert found.value == top1(y[32:])(q.predict(x[32:], verbose=0))
    rule = trial(answers, "[[rules]]")
    assert 'layer = "wide"' in rule.lines and found.file_bytes < rule.file_bytes < answers.start.file_bytes


def test_lines_of_python_make_that_model(asked: tuple) -> None:
    model, _, x, _, answers = asked
    for budget, key in (("macs", "macs"), ("weight_bytes", "weight_bytes")):
        found = trial(answers, f"prune_channels(model, {budget}=0.75")
        smaller = kquant.prune_channels(model, **{budget: 0.75}, data=x[:32], **QUIET)
        assert found.macs == kquant.cost(smaller).macs
        assert getattr(kquant.cost(smaller), key) <= 0.75 * getattr(kquant.cost(model), key)


def test_what_costs_least_comes_first(asked: tuple) -> None:
    *_, answers = asked
    for answer in answers.answers:
        values = [(t.value, t.sqnr_db) for t in answer.trials]
        assert values == sorted(values, reverse=True) and answer.trials
        key = "file_bytes" if answer.question == "smaller" else "macs"
        assert all(getattr(t, key) < getattr(answers.start, key) for t in answer.trials)
        assert not {t.lines for t in answer.trials} & set(answer.in_vain)
    assert "wide 1,536" in answers.answers[0].because and "wide (59 %)" in answers.answers[1].because


def test_eight_bits_are_tried_where_there_are_more() -> None:
    model = keras.Sequential([keras.Input((8,), name="x"), keras.layers.Dense(8, name="a"), keras.layers.Dense(3)])
    x = np.random.default_rng(0).normal(size=(32, 8)).astype("float32")
    q = kquant.calibrate(kquant.quantize(model, "int16x8", target="tflm"), x, **QUIET)
    answers = kquant.why(q, x, **QUIET)
    tried = {t.lines for answer in answers.answers for t in answer.trials} | set(answers.answers[0].in_vain)
    assert "[activations]\nbits = 8" in tried
    assert answers.metric == "" and answers.start.value is None and answers.float_value is None


@pytest.mark.parametrize("fault", ["raises", "no number"])
def test_a_fault_of_the_metric_is_no_change_in_vain(asked: tuple, fault: str) -> None:
    _, q, x, y, _ = asked
    right, calls = top1(y[32:]), []

    def metric(outputs: Any) -> Any:
        calls.append(len(outputs))
        if len(calls) == 4 and fault == "raises":
            raise RuntimeError("labels are gone")
        return "0.9" if len(calls) == 4 else right(outputs)

    with pytest.raises(ValueError, match="metric 'metric'.*labels are gone|metric 'metric'.*Received: '0.9'"):
        kquant.why(q, x[32:], metric, calibration=x[:32], **QUIET)
    assert len(calls) == 4


def test_a_model_of_no_recipe_is_refused(asked: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    from kquant.layers.provenance import Provenance

    _, q, x, *_ = asked
    monkeypatch.setattr(Provenance, "load_recipe", lambda self: None)
    with pytest.raises(ValueError, match="why: nobody knows the recipe of net"):
        kquant.why(q, x, **QUIET)
    with pytest.raises(ValueError, match="limit"):
        kquant.why(q, x, limit=0, **QUIET)

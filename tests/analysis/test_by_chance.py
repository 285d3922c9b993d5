"""What chance makes of few samples is no cause, no gain, and no reason for the dearer of two remedies."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import pytest
from scipy.stats import binomtest

import kquant
from kquant import report
from kquant.analysis.by_chance import by_chance, right_of
from kquant.analysis.metrics import top1
from kquant.analysis.remedies import Trials, _cheapest_of_best_db, best_remedy, splits_best, told
from kquant.analysis.results import SPLIT, Finding, Gain
from kquant.analysis.separately import Work
from kquant.files.finished_work import Kept

WORK = Work(Kept(None, "analyze", {}))
STEPS, WIDE = 'steps = ["equalize", "calibrate"]', "[activations]\nbits = 16"
SAMPLES = 256
DRAWN = np.random.default_rng(3)


def bits(right: np.ndarray) -> str:
    return np.packbits(right).tobytes().hex()


def first(count: int) -> str:
    """The first so many samples are right."""
    return bits(np.arange(SAMPLES) < count)


class Fixed(Trials):
    """Gains that were measured before."""

    gains: dict[str, Gain | None]

    def gain(self, change: str) -> Gain | None:
        return self.gains[change]


def trials(gains: dict[str, Gain], start: int, real: int) -> Trials:
    """A model that answers `start` of the samples right; its float one answers `real`."""
    most = Gain((real - start) / SAMPLES, math.inf, first(real))
    made = Fixed(None, None, "litert", [np.zeros(SAMPLES)], np.mean, 0.0, 0.0, first(start), most)  # type: ignore[arg-type]
    object.__setattr__(made, "gains", gains)
    return made


def gained(start: int, reached: int, sqnr_db: float, right: str = "") -> Gain:
    return Gain((reached - start) / SAMPLES, sqnr_db, right or first(reached))


def chosen(gains: dict[str, Gain], start: int, real: int) -> str:
    finding = Finding("net", "a cause", "", candidates=tuple(gains))
    return told([finding], trials(gains, start, real), WORK.gains, False)[0].remedy


def test_pairs_are_judged_as_the_binomial_test_judges_them() -> None:
    ours, theirs = DRAWN.random(SAMPLES) < 0.9, DRAWN.random(SAMPLES) < 0.8
    more, both = int(np.sum(ours > theirs)), int(np.sum(ours != theirs))
    found = by_chance(float(np.mean(ours) - np.mean(theirs)), SAMPLES, bits(ours), bits(theirs))
    assert found == pytest.approx(binomtest(more, both).pvalue, rel=1e-9)
    # without the samples it is the least that it can be
    known = by_chance(float(np.mean(ours) - np.mean(theirs)), SAMPLES)
    assert known == pytest.approx(
        binomtest(int(ours.sum()) - int(theirs.sum()), int(ours.sum()) - int(theirs.sum())).pvalue
    )
    assert known <= found


def test_only_metrics_that_tell_samples_apart_have_them() -> None:
    labels = DRAWN.integers(0, 3, 40)
    outputs = DRAWN.normal(size=(40, 3))
    assert right_of(top1(labels), outputs) == bits(outputs.argmax(1) == labels)
    assert right_of(None, outputs) == right_of(lambda _: 0.5, outputs) == ""


def test_of_two_that_differ_by_two_samples_the_cheaper_is_taken() -> None:
    start, real = 90, 242
    gains = {WIDE: gained(start, 242, 30.0), STEPS: gained(start, 240, 16.0)}
    assert chosen(gains, start, real) == STEPS
    # the dearer one where samples surely say so, or where much is left to gain and noise tells the two apart
    assert chosen({**gains, STEPS: gained(start, 225, 16.0)}, start, real) == WIDE
    assert chosen({WIDE: gained(start, 152, 30.0), STEPS: gained(start, 150, 16.0)}, start, real) == WIDE
    assert chosen({WIDE: gained(start, 152, 17.0), STEPS: gained(start, 150, 16.0)}, start, real) == STEPS


def test_what_loses_sqnr_or_gains_by_chance_only_is_not_told() -> None:
    assert chosen({STEPS: gained(243, 244, -4.6)}, 243, 245) == ""
    assert chosen({STEPS: gained(200, 244, -4.6)}, 200, 245) == ""
    assert chosen({STEPS: gained(243, 244, 0.1)}, 243, 245) == ""
    assert chosen({STEPS: gained(243, 242, 4.0)}, 243, 245) == ""
    assert chosen({STEPS: gained(243, 244, 4.0)}, 243, 245) == STEPS  # noise is not counted in samples


def network() -> tuple[keras.Model, np.ndarray, np.ndarray]:
    """A model whose labels are its own answers, but for a few samples that lie on the edge."""
    keras.utils.set_random_seed(2)
    hidden = keras.layers.Dense(12, activation="relu", name="hidden")
    model = keras.Sequential([keras.Input((8,), name="row"), hidden, keras.layers.Dense(4, name="head")], name="net")
    x = np.random.default_rng(3).normal(size=(SAMPLES, 8)).astype("float32")
    return model, x, np.asarray(model(x)).argmax(1)


@pytest.fixture(scope="module", params=["top1", "own"])
def healthy(request: pytest.FixtureRequest) -> Any:
    """8 bits, of which a sample or two of 256 suffer."""
    model, x, labels = network()
    q = kquant.calibrate(kquant.quantize(model), x, verbose=False)
    metric = top1(labels) if request.param == "top1" else lambda y: float(np.mean(y.argmax(1) == labels[: len(y)]))
    return kquant.analyze(q, x, metric, verbose=False)


def test_a_healthy_model_has_no_cause_for_a_sample_or_two(healthy: Any) -> None:
    lost = round((healthy.float_value - healthy.value) * SAMPLES)
    assert 2 <= lost <= 5, "more than half a point, and what chance makes"
    assert healthy.findings == () and not healthy.is_sure and healthy.by_chance > 0.1
    said = " ".join(report.render(healthy).split())
    assert f"{lost} of 256 samples lost, which is within chance" in said
    assert "By SQNR nothing needs to be done" in said and "Nothing stands out" in said
    assert "below 0 its noise makes up for that of others" in said


def test_one_layer_is_the_most_sensitive() -> None:
    model, x, labels = network()
    rules = [{"layer": name, "weights": {"bits": 2}} for name in ("hidden", "head")]
    q = kquant.calibrate(kquant.quantize(model, {"name": "two", "rules": rules}), x, verbose=False)
    a = kquant.analyze(q, x, top1(labels), remedies=False, verbose=False)
    named = [f.cause for f in a.findings if "sensitive layer" in f.cause]
    assert a.is_sure and named == ["most sensitive layer", "sensitive layer"]


def test_the_recipe_that_is_written_has_the_cheapest_of_the_best() -> None:
    model, x, labels = network()
    q = kquant.calibrate(kquant.quantize(model), x, verbose=False)
    a = kquant.analyze(q, x, top1(labels), remedies=False, sensitivity=False, verbose=False)
    start, real = 90, 242
    rows = [Finding("a", "b", "", remedy=WIDE, gain=gained(start, 242, 30.0))]
    rows.append(Finding("c", "d", "", remedy=STEPS, gain=gained(start, 240, 16.0)))
    for order in (rows, rows[::-1]):
        given = {**vars(a), "findings": tuple(order), "value": start / SAMPLES, "float_value": real / SAMPLES}
        assert best_remedy(kquant.Analysis(**given), is_sqnr=False) == STEPS


def test_a_cheap_remedy_that_is_enough_is_not_outbid() -> None:
    """Decibels beyond what anybody needs do not pay for 16 bits; where the cheap one is not enough, they do."""
    rows = [(WIDE, Gain(0.0, 46.0)), (STEPS, Gain(0.0, 41.0))]
    assert _cheapest_of_best_db(rows, 2.6) == rows[1]
    assert _cheapest_of_best_db(rows, -10.0) == rows[0]
    assert _cheapest_of_best_db([], 2.6) is None


def test_splitting_is_named_first_where_it_gains_most() -> None:
    model, x, labels = network()
    q = kquant.calibrate(kquant.quantize(model), x, verbose=False)
    a = kquant.analyze(q, x, top1(labels), remedies=False, sensitivity=False, verbose=False)
    for gain, best in ((0.6, True), (0.4, False)):
        rows = (
            Finding("x", "b", "", remedy=SPLIT, gain=Gain(gain, 39.0)),
            Finding("c", "d", "", remedy=WIDE, gain=Gain(0.5, 20.0)),
        )
        assert splits_best(kquant.Analysis(**{**vars(a), "findings": rows}), is_sqnr=False) is best
    assert not splits_best(a)

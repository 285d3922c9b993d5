"""Remedies are tried before they are told: the model is quantized again with each, and measured on the same samples.

    candidates of a finding -> a recipe each -> quantize, steps -> metric and SQNR -> the best one, its gain beside it

What gains nothing, or takes SQNR away, is not told; nor is a gain in points that chance makes of so few samples. Of two
that are as good the cheaper is: first what costs nothing at inference (observers, corrections), then a few bytes (a
scale for each channel), then bytes (8-bit weights), then time and RAM (16-bit activations, for which phones have slow
kernels only).
"""

from __future__ import annotations

import math
import tomllib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import numpy as np

from kquant.analysis.by_chance import is_sure
from kquant.analysis.columns import scaled_alike
from kquant.analysis.passes import Passes, chunks
from kquant.analysis.results import SPLIT, Analysis, Finding, Gain
from kquant.analysis.sqnr import mean_db
from kquant.analysis.units import units
from kquant.core.callers import is_callers
from kquant.correct.steps import apply_steps
from kquant.layers.nodes import encodings_of
from kquant.layers.provenance import provenance_of
from kquant.prepare.quantization import quantize
from kquant.recipe.recipe import Recipe, load
from kquant.views.quantized_model import read

# Less than half a decibel is what another order of the same sums gives.
LEAST_DB = 0.5
# Outputs with so little noise are the float model's for every purpose: what gains more is no better.
ENOUGH_DB = 40.0
# Half of the noise is a difference that samples would show, were there more of them.
ALIKE_DB = 3.0
Metric = Callable[[Any], float]
COSTS = ("steps", "observer", "per_axis", "weights", "activations")  # cheapest first


@dataclass(frozen=True)
class Trials:
    """Where remedies are tried.

    Attributes:
        model: the float model.
        recipe: that the quantized one was made with.
        target: likewise.
        data: the samples, one array for each input.
        metric: of the outputs; None: SQNR.
        value, sqnr_db: of the model as it is.
        right: samples that it answers right, see `by_chance.right_of`.
        real: the most that can be gained: what the float model has more.
    """

    model: keras.Model
    recipe: Recipe
    target: str
    data: list[np.ndarray]
    metric: Metric | None
    value: float
    sqnr_db: float
    right: str = ""
    real: Gain = field(default_factory=lambda: Gain(math.inf, math.inf))

    def gain(self, change: str) -> Gain | None:
        """What a change of the recipe, or `SPLIT`, gains; None where no model comes of it."""
        # quantized anew from the float model: with the change widths, packing and what fuses may come out otherwise
        chosen = self.recipe if change == SPLIT else merged(self.recipe, change)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a model that nobody keeps
                model, x = scaled_alike(self.model, self.data) if change == SPLIT else (self.model, self.data)
                qmodel = quantize(model, chosen, target=self.target)
                apply_steps(qmodel, chosen.steps, keras.tree.pack_sequence_as(read(qmodel).inputs, x), verbose=False)
                reached = measured(qmodel, x, self.metric)
        except ValueError as error:
            if is_callers(error):
                raise  # a fault of the caller's metric is none of the recipe
            return None  # the target lacks the kernel, or a step has nothing to work on
        return Gain(reached.value - self.value, reached.sqnr_db - self.sqnr_db, reached.right)


def measured(qmodel: keras.Model, x: list[np.ndarray], metric: Metric | None) -> Gain:
    """The metric and the SQNR of the outputs in dB, in integer arithmetic, as what they gain over nothing."""
    graph = read(qmodel)
    passes = Passes(graph, units(graph), metric, [])
    passes.walk(chunks(graph, x), False)
    return Gain(passes.value(passes.ALL), mean_db(passes.outputs[passes.ALL].noises), passes.right(passes.ALL))


def merged(recipe: Recipe, change: str) -> Recipe:
    """A recipe with lines of TOML put into it: rules behind its own, tables key by key, steps instead of its own.

    Args:
        recipe: the recipe.
        change: as a finding shows it.

    Example:
        >>> merged(load("int8"), 'rules = [{ layer = "a", weights = { bits = 4 } }]').rules[0].layer
        'a'
    """
    given = tomllib.loads(change)
    plain = recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude_none=True)
    rules = [*plain.get("rules", []), *given.pop("rules", [])]
    tables = {key: {**plain.get(key, {}), **value} for key, value in given.items() if isinstance(value, dict)}
    return load({**plain, **given, **tables, **({"rules": rules} if rules else {})})


Gains = Callable[[Trials, Sequence[str], bool], dict[str, Gain | None]]


def told(findings: Sequence[Finding], trials: Trials | None, gained: Gains, verbose: bool) -> tuple[Finding, ...]:
    """Findings with the one remedy that gains most, and its gain; without a remedy where none gains anything.

    Args:
        findings: with candidates.
        trials: where to try; None: nothing can be tried, and nothing is told.
        gained: tries changes there, one by one.
        verbose: show a progress bar.
    """
    if trials is None:
        return tuple(findings)
    # a remedy that several findings ask for (equalization) is tried once
    changes = list(dict.fromkeys(change for f in findings for change in f.candidates))
    gains = gained(trials, changes, verbose)
    return tuple(_with_best(finding, gains, trials) for finding in findings)


Remedy = tuple[str, Gain]


def _with_best(finding: Finding, gains: dict[str, Gain | None], trials: Trials) -> Finding:
    finding = replace(finding, tried=bool(finding.candidates))
    gained = [(change, gain) for change in finding.candidates if (gain := gains[change]) is not None]
    if trials.metric is None:
        helping = [(change, gain) for change, gain in gained if gain.sqnr_db >= LEAST_DB]
        best = _cheapest_of_best_db(helping, trials.sqnr_db)
    else:
        samples = len(trials.data[0]) if trials.data else 0
        best = _best_by_metric(gained, Gain(0.0, trials.sqnr_db, trials.right), trials.real, samples)
    return finding if best is None else replace(finding, remedy=best[0], gain=best[1])


def _best_by_metric(gained: Sequence[Remedy], start: Gain, real: Gain, samples: int) -> Remedy | None:
    """What surely gains, the cheapest of those that are as good; where nothing does, what gains SQNR.

    Args:
        gained: what was tried.
        start: the model as it is: `sqnr_db` is its own.
        real: the float model.
        samples: that were analyzed.
    """
    kept = [(change, gain) for change, gain in gained if gain.sqnr_db > -LEAST_DB]
    sure = [(change, gain) for change, gain in kept if is_sure(gain.value, samples, gain.right, start.right)]
    if not sure:
        # what chance makes of the metric says nothing either way, and noise is not counted in samples
        helping = [(c, gain) for c, gain in kept if gain.value >= 0.0 and gain.sqnr_db >= LEAST_DB]
        return _cheapest_of_best_db(helping, start.sqnr_db)
    return _cheapest_of_best(sure, real, samples)


def _cheapest_of_best(sure: Sequence[Remedy], real: Gain, samples: int) -> Remedy:
    best = max((gain for _, gain in sure), key=lambda gain: gain.value)

    def is_as_good(gain: Gain) -> bool:
        if is_sure(best.value - gain.value, samples, best.right, gain.right):
            return False
        # few samples hide a difference: either nothing is left to gain, or noise says that there is none
        left = is_sure(real.value - gain.value, samples, real.right, gain.right)
        return not left or gain.sqnr_db >= best.sqnr_db - ALIKE_DB

    return min((pair for pair in sure if is_as_good(pair[1])), key=lambda pair: _cost(pair[0]))


def _cheapest_of_best_db(helping: Sequence[Remedy], start_db: float) -> Remedy | None:
    """Of those that reach most, or `ENOUGH_DB`, the cheapest."""
    best = max((gain.sqnr_db for _, gain in helping), default=0.0)
    wanted = min(best - LEAST_DB, max(ENOUGH_DB - start_db, LEAST_DB))
    equal = [(change, gain) for change, gain in helping if gain.sqnr_db >= wanted]
    return min(equal, key=lambda pair: _cost(pair[0]), default=None)


def _cost(change: str) -> int:
    """Place in `COSTS` of the dearest thing that a change asks for."""
    if change == SPLIT:
        return 0
    given = tomllib.loads(change)
    tables = [given, *given.get("rules", [])]
    asked = {"steps"} if "steps" in given else set()
    for table in tables:
        if "bits" in table.get("activations", {}):
            asked.add("activations")
        if "bits" in table.get("weights", {}):
            asked.add("weights")
        if "per_axis" in table.get("weights", {}):
            asked.add("per_axis")
        if "observer" in table.get("activations", {}):
            asked.add("observer")
    # the dearest thing tells: 16 bits cost time, whatever correction stands beside them
    return max((COSTS.index(name) for name in asked), default=0)


def best_remedy(analysis: Analysis, is_sqnr: bool = True) -> str:
    """Lines of the remedy that gained most, the cheapest of those within chance of it; empty where none gained.

    Args:
        analysis: with tried remedies.
        is_sqnr: no metric of the caller's was given.
    """
    gained = [(f.remedy, f.gain) for f in analysis.findings if f.gain is not None and f.remedy != SPLIT]
    sure = [(change, gain) for change, gain in gained if is_sure(gain.value, analysis.samples)]
    if is_sqnr or not sure:
        best = _cheapest_of_best_db(gained, analysis.sqnr_db)
    else:
        real = Gain(analysis.float_value - analysis.value, math.inf)
        best = _cheapest_of_best(sure, real, analysis.samples)
    return "" if best is None else best[0]


def splits_best(analysis: Analysis, is_sqnr: bool = True) -> bool:
    """Whether nothing gains more than columns that the application divides, see `SPLIT`.

    Args:
        analysis: with tried remedies.
        is_sqnr: no metric of the caller's was given.
    """

    def worth(gain: Gain) -> float:
        return gain.sqnr_db if is_sqnr else gain.value

    gains = [(f.remedy == SPLIT, worth(f.gain)) for f in analysis.findings if f.gain is not None]
    split = [value for is_split, value in gains if is_split]
    return bool(split) and max(split) >= max((value for is_split, value in gains if not is_split), default=0.0)


def with_remedy(qmodel: keras.Model, analysis: Analysis, is_sqnr: bool = True) -> Recipe:
    """The model's recipe with the remedy that gained most in it; see `best_remedy`.

    One remedy, because gains were measured one at a time; analyze the model that comes of it for the next.

    Args:
        qmodel: the model that was analyzed.
        analysis: of it, with tried remedies.
        is_sqnr: no metric of the caller's was given.

    Raises:
        ValueError: no remedy gained anything, or nobody knows the model's recipe any more.
    """
    best = best_remedy(analysis, is_sqnr)
    recipe = provenance_of(encodings_of(qmodel)).load_recipe()
    if not best or recipe is None:
        split = any(f.remedy == SPLIT and f.gain is not None for f in analysis.findings)
        said = f" What gains is no line of a recipe: {SPLIT}." if split else ""
        raise ValueError(
            f"analyze: {analysis.model}: no remedy gains anything on these samples, so none is applied.{said}"
        )
    return merged(recipe, best).model_copy(update={"name": f"{recipe.name}-remedy", "title": ""})

"""Remedies are tried before they are told: the model is quantized again with each, and measured on the same samples.

    candidates of a finding -> a recipe each -> quantize, steps -> metric and SQNR -> the best one, its gain beside it

What gains nothing is not told. Of two that gain the same the cheaper is: first what costs nothing at inference
(observers, corrections), then a few bytes (a scale for each channel), then bytes (8-bit weights), then time and RAM
(16-bit activations, for which phones have slow kernels only).
"""

from __future__ import annotations

import tomllib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

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
    """

    model: keras.Model
    recipe: Recipe
    target: str
    data: list[np.ndarray]
    metric: Metric | None
    value: float
    sqnr_db: float

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
                value, sqnr_db = measured(qmodel, x, self.metric)
        except ValueError as error:
            if is_callers(error):
                raise  # a fault of the caller's metric is none of the recipe
            return None  # the target lacks the kernel, or a step has nothing to work on
        return Gain(value - self.value, sqnr_db - self.sqnr_db)


def measured(qmodel: keras.Model, x: list[np.ndarray], metric: Metric | None) -> tuple[float, float]:
    """The metric and the SQNR of the outputs in dB, in integer arithmetic."""
    graph = read(qmodel)
    passes = Passes(graph, units(graph), metric, [])
    passes.walk(chunks(graph, x), False)
    return passes.value(passes.ALL), mean_db(passes.outputs[passes.ALL].noises)


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
    return tuple(_with_best(finding, gains, trials.metric is None) for finding in findings)


def _with_best(finding: Finding, gains: dict[str, Gain | None], is_sqnr: bool) -> Finding:
    finding = replace(finding, tried=bool(finding.candidates))
    gained = [(change, gain) for change in finding.candidates if (gain := gains[change]) is not None]
    helping = [(change, gain) for change, gain in gained if _helps(gain, is_sqnr)]
    if not helping:
        return finding
    best = max(_worth(gain, is_sqnr) for _, gain in helping)
    # of a metric of the caller's nobody knows what is within its noise
    margin = LEAST_DB if is_sqnr else 0.0
    equal = [(change, gain) for change, gain in helping if _worth(gain, is_sqnr) >= best - margin]
    change, gain = min(equal, key=lambda pair: _cost(pair[0]))
    return replace(finding, remedy=change, gain=gain)


def _helps(gain: Gain, is_sqnr: bool) -> bool:
    return gain.sqnr_db >= LEAST_DB if is_sqnr else gain.value > 0.0


def _worth(gain: Gain, is_sqnr: bool) -> float:
    return gain.sqnr_db if is_sqnr else gain.value


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


def with_remedy(qmodel: keras.Model, analysis: Analysis, is_sqnr: bool = True) -> Recipe:
    """The model's recipe with the remedy that gained most in it.

    One remedy, because gains were measured one at a time; analyze the model that comes of it for the next.

    Args:
        qmodel: the model that was analyzed.
        analysis: of it, with tried remedies.
        is_sqnr: no metric of the caller's was given.

    Raises:
        ValueError: no remedy gained anything, or nobody knows the model's recipe any more.
    """
    gained = [(f.remedy, f.gain) for f in analysis.findings if f.gain is not None]
    tried = [(remedy, gain) for remedy, gain in gained if remedy != SPLIT]
    recipe = provenance_of(encodings_of(qmodel)).load_recipe()
    if not tried or recipe is None:
        split = f" What gains is no line of a recipe: {SPLIT}." if gained and not tried else ""
        raise ValueError(
            f"analyze: {analysis.model}: no remedy gains anything on these samples, so none is applied.{split}"
        )
    best, _ = max(tried, key=lambda pair: (_worth(pair[1], is_sqnr), -_cost(pair[0])))
    return merged(recipe, best).model_copy(update={"name": f"{recipe.name}-remedy", "title": ""})

"""One float model with more or fewer bits: what each move saves and costs, and what a model costs, measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import keras

from kquant import targets
from kquant.analysis.diagnosis import Asked, analyze, analyzed
from kquant.analysis.results import Analysis, LayerReport
from kquant.analysis.separately import AnalysisElsewhere
from kquant.core.messages import first_of
from kquant.correct.steps import apply_steps
from kquant.files.finished_work import Kept
from kquant.prepare.quantization import quantize
from kquant.recipe.recipe import Recipe
from kquant.runtime.arenas import arena_bytes
from kquant.runtime.running import available
from kquant.search.ladder import score_of
from kquant.search.rung_recipes import WIDE
from kquant.tflite.file_content import file_content
from kquant.tflite.lowering import lower

SAMPLES = 256


@dataclass(frozen=True)
class Move:
    """Fewer bits for one layer.

    Attributes:
        layer: its name.
        setting: "weights" (8 to 4 bits) or "activations" (16 to 8 bits).
        noise: that it adds, over the power of the outputs.
        saved: of the budget's unit, as estimated.
    """

    layer: str
    setting: Literal["weights", "activations"]
    noise: float
    saved: float


@dataclass(frozen=True)
class Point:
    """One model on the way from most to fewest bits.

    Attributes:
        moves: how many moves were made; on the way the first ones, `recipe` has a rule for each.
        recipe: plain data of the whole recipe.
        flash_bytes: size of the file that `kquant.export` writes.
        arena_bytes: RAM of its tensors in TFLM; None without the `micro` extra or for files that TFLM does not run.
        bit_macs: multiplications times bits of both factors, summed over the layers.
        sqnr_db: of the outputs against the float model.
        score: what `evaluate` gave, None without it.
    """

    moves: int
    recipe: dict[str, Any]
    flash_bytes: int
    arena_bytes: int | None
    bit_macs: int
    sqnr_db: float
    score: float | None


class PointsElsewhere(AnalysisElsewhere, Protocol):
    """Measures models in other processes."""

    def ahead_points(self, recipes: Sequence[dict[str, Any]]) -> None:
        """Recipes, as plain data, that will be asked for: begin them."""

    def point(self, recipe: dict[str, Any]) -> Point:
        """What the model of a recipe costs, begun or not."""
        ...


@dataclass(frozen=True)
class _Kernel:
    """A layer that has weights, as it is kept."""

    name: str


class Way:
    """Models of one float model, one recipe and one target, with more or fewer bits."""

    def __init__(
        self,
        model: keras.Model,
        data: Any,
        recipe: Recipe,
        target: str,
        widths: tuple[str, ...],
        evaluate: Any,
        kept: Kept,
        elsewhere: PointsElsewhere | None,
    ) -> None:
        self.kept, self.points, self.elsewhere = kept, kept.rows("points", Point), elsewhere
        self.model, self.data, self.target, self.widths, self.evaluate = model, data, target, widths, evaluate
        weights = recipe.weights.model_copy(update={"bits": 8})
        update: dict[str, Any] = {"weights": weights}
        if "int16" in widths:
            update["activations"] = recipe.activations.model_copy(update=WIDE)
        self.recipe = recipe.model_copy(update=update)
        # for 8 bits; an observer that a recipe of 16 bits names was chosen for a grid that need not clip
        self.observer = recipe.activations.observer if recipe.activations.bits == 8 else "percentile"
        self.kernels: set[str] = set()

    def make(self, recipe: Recipe) -> keras.Model:
        """The quantized model of a recipe."""
        qmodel = quantize(self.model, recipe, target=self.target)
        return apply_steps(qmodel, recipe.steps, self.data, verbose=False)

    def analysis(self, recipe: Recipe, sensitivity: bool) -> Analysis:
        """Of the model of that recipe."""
        asked = Asked(SAMPLES, sensitivity, remedies=False, folder=None, verbose=False)
        return analyzed(self.make(recipe), self.data, None, asked, self.elsewhere)

    def moves(self, unit: str) -> list[Move]:
        """Every move, the one with least noise for what it saves first."""
        # there may be no moves: that there are kernels tells that the analyses were done
        kernels = self.kept.rows("kernels", _Kernel)
        self.kernels = {row.name for row in kernels}
        if kernels:
            return self.kept.rows("moves", Move)
        widest = self.analysis(self.recipe, True)
        self.kernels = {row.name for row in widest.layers if row.weights}
        possible: list[Move] = []
        if "int4" in self.widths:
            narrow = self.recipe.model_copy(update={"weights": self.recipe.weights.model_copy(update={"bits": 4})})
            possible += _moves("weights", widest, self.analysis(narrow, True), unit)
        if "int16" in self.widths:
            eight = {"bits": 8, "observer": self.observer}
            chosen = self.recipe.activations.model_copy(update=eight)
            narrow = self.recipe.model_copy(update={"activations": chosen})
            possible += _moves("activations", widest, self.analysis(narrow, True), unit)
        # the greedy order of a knapsack; what saves nothing in this unit can only cost
        moves = sorted((m for m in possible if m.saved > 0), key=lambda m: m.noise / m.saved)
        self.kept.store(moves=moves, kernels=[_Kernel(name) for name in sorted(self.kernels)])
        return moves

    def recipe_after(self, moves: Sequence[Move]) -> Recipe:
        """With a rule for each move; where all activations have 8 bits, the model's inputs have them too."""
        eight = {"bits": 8, "observer": self.observer}
        rules = [{"layer": m.layer, m.setting: {"bits": 4} if m.setting == "weights" else eight} for m in moves]
        added = Recipe.model_validate({"name": "rules", "rules": rules}).rules
        update: dict[str, Any] = {"name": "mixed", "rules": (*self.recipe.rules, *added)}
        # inputs belong to no layer that a rule could name
        if {m.layer for m in moves if m.setting == "activations"} >= self.kernels:
            update["activations"] = self.recipe.activations.model_copy(update=eight)
        return self.recipe.model_copy(update=update)

    def ahead(self, ways: Sequence[Sequence[Move]]) -> None:
        """Others may begin to measure the models of these moves."""
        if self.elsewhere is not None:
            known = [point.recipe for point in self.points]
            plain = [self.recipe_after(moves).plain() for moves in ways]
            self.elsewhere.ahead_points([recipe for recipe in plain if recipe not in known])

    def point(self, moves: Sequence[Move], count: int, bar: Any) -> Point:
        """What the model costs after the first moves, measured."""
        recipe = self.recipe_after(moves[:count])
        return self.measured(recipe, count, bar)

    def measured(self, recipe: Recipe, count: int, bar: Any, qmodel: keras.Model | None = None) -> Point:
        """What the quantized model of a recipe costs; an earlier call may know."""
        given = recipe.plain()
        # by recipe: the way, the programme and an earlier call with another limit may come to the same model
        known = next((point for point in self.points if point.recipe == given), None)
        if known is None:
            if qmodel is None and self.elsewhere is not None:
                known = self.elsewhere.point(given)
            else:
                made = self.make(recipe) if qmodel is None else qmodel
                known = point_of(made, given, self.data, self.target, self.evaluate)
            self.points.append(known)
            self.kept.store(points=self.points)
        bar.update()
        return replace(known, moves=count)


def point_of(qmodel: keras.Model, recipe: dict[str, Any], data: Any, target: str, evaluate: Any) -> Point:
    """What a quantized model costs, `moves` 0: their number differs for one recipe.

    Args:
        qmodel: steps applied.
        recipe: plain data of what made it.
        data: see `mixed_precision`.
        target: likewise.
        evaluate: likewise.
    """
    content = file_content(lower(qmodel))
    analysis = analyze(qmodel, data, limit=SAMPLES, sensitivity=False, remedies=False, verbose=False)
    return Point(
        0,
        recipe,
        len(content),
        arena_bytes(content) if targets.load(target).arena in available() else None,
        sum(_bit_macs(row, analysis) for row in analysis.layers),
        analysis.sqnr_db,
        None if evaluate is None else score_of(evaluate, qmodel, _named(recipe), "mixed_precision"),
    )


def _named(recipe: dict[str, Any]) -> str:
    """What a model is called in an error: by the layers that the recipe has rules for."""
    layers = list(dict.fromkeys(str(rule.get("layer", "others")) for rule in recipe.get("rules", ())))
    return f"the model with rules for {first_of(layers)}" if layers else "the model without rules"


def _moves(setting: Any, wide: Analysis, narrow: Analysis, unit: str) -> list[Move]:
    """One move for each layer, from analyses of the model before and after all of them."""
    moves = []
    for before, after in zip(wide.layers, narrow.layers, strict=True):
        if before.weights is None or before.sensitivity is None or after.sensitivity is None:
            continue
        # what the wide grid costs already is no price of the move; measured on other roundings it may come out below 0
        noise = _noise(after, setting) - _noise(before, setting)
        saved = {
            "flash_bytes": before.weight_bytes - after.weight_bytes,
            "arena_bytes": before.live_bytes - after.live_bytes,
            "bit_macs": _bit_macs(before, wide) - _bit_macs(after, narrow),
        }[unit]
        moves.append(Move(before.name, setting, max(noise, 0.0), float(saved)))
    return moves


def _noise(row: LayerReport, setting: str) -> float:
    """Noise over signal at the outputs with only this layer's weights or activations quantized."""
    if row.sensitivity is None:
        return 0.0
    alone = row.sensitivity.only_weights if setting == "weights" else row.sensitivity.only_activations
    # a layer that has weights or an output of its own, and not both, is measured once
    return 10.0 ** (-(row.sensitivity.only if alone is None else alone) / 10.0)


def _bit_macs(row: LayerReport, analysis: Analysis) -> int:
    """Multiplications of a layer times the bits of both factors."""
    if row.weights is None:
        return 0
    # of its output's encoding; one that is shared with others belongs to none of them, and counts 8
    bits = max((t.bits for t in analysis.tensors if t.unit == row.name), default=8)
    return row.macs * row.weights.bits * bits

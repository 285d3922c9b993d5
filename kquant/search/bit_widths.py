"""Mixed precision over kernels that exist: which layers get fewer bits, so that the model fits and loses least.

    1. measure   the noise that each layer's weights and each layer's activations add to the outputs, in each width
    2. order     take bits away where a byte (or a multiplication) saved costs least noise
    3. measure   real files along that way: bytes, arena, SQNR; the first inside the budget is kept
    4. choose    any layers at all that save enough and lose least, an integer programme; measured, and the better kept

Noise of layers adds up to first order (Lin et al., "Fixed Point Quantization of Deep Convolutional Networks",
arXiv:1511.06393), so that the cheapest next step can be told from measurements of single layers; what they cost
together is measured on the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import keras
import numpy as np

from kquant import targets
from kquant.analysis.diagnosis import analyze
from kquant.analysis.results import Analysis, LayerReport
from kquant.core.progress import tqdm
from kquant.core.result import Result
from kquant.correct.steps import apply_steps
from kquant.files.finished_work import Kept
from kquant.graph.watched import state_kept
from kquant.prepare.quantization import quantize
from kquant.recipe.recipe import Recipe, Step, load, recipe_to_toml
from kquant.runtime.arenas import arena_bytes
from kquant.runtime.running import available
from kquant.search.knapsack import least_loss
from kquant.search.ladder import WIDE
from kquant.search.search_state import rounded, search_state
from kquant.tflite.file_content import file_content
from kquant.tflite.lowering import lower

Budget = Literal["flash_bytes", "arena_bytes", "bit_macs"]
WIDTHS = ("int4", "int8", "int16")
SAMPLES = 256
TRIES = 3  # models of the integer programme to measure


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


@dataclass(frozen=True, eq=False, repr=False)
class Mixed(Result):
    """What `kquant.mixed_precision` found.

    Attributes:
        model: the quantized model, steps applied.
        recipe: that made it.
        budget: unit and limit.
        moves: all of them in order; a point on the way has made the first few.
        points: the measured ones before any `steps`, the dearest first.
        chosen: the better of two inside the budget, the point on the way with most bits and the integer programme's;
            the smallest one where none is. With `steps` it is measured again behind them, so that it describes `model`.
        ok: True where it is inside the budget.
        made: the moves of the chosen point.
    """

    model: keras.Model
    recipe: Recipe
    budget: tuple[str, int]
    moves: tuple[Move, ...]
    points: tuple[Point, ...]
    chosen: Point
    ok: bool
    made: tuple[Move, ...]

    def __repr__(self) -> str:
        unit, limit = self.budget
        cost = f"{unit} {getattr(self.chosen, unit):,} of {limit:,}{'' if self.ok else ', too many'}"
        fewer = f"{len(self.made)} of {len(self.moves)} moves to fewer bits"
        return f"Mixed({self.model.name!r}: {fewer}, {cost}, SQNR {self.chosen.sqnr_db:.1f} dB)"

    @property
    def pareto(self) -> tuple[Point, ...]:
        """Points that no other one beats in both the budget's unit and SQNR, dearest first."""
        kept, best = [], -np.inf
        for point in sorted(self.points, key=lambda p: (_cost(p, self.budget[0]), -p.sqnr_db)):
            if point.sqnr_db > best:
                kept.append(point)
                best = point.sqnr_db
        return tuple(reversed(kept))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "ok": self.ok,
            "budget": {self.budget[0]: self.budget[1]},
            "chosen": asdict(self.chosen),
            "made": [asdict(move) for move in self.made],
            "moves": [asdict(move) for move in self.moves],
            "points": [asdict(point) for point in self.points],
        }


def mixed_precision(
    model: keras.Model,
    data: Any,
    *,
    flash_bytes: int | None = None,
    arena_bytes: int | None = None,
    bit_macs: int | None = None,
    widths: Sequence[str] = ("int4", "int8"),
    target: str = targets.DEFAULT,
    recipe: Any = "int8",
    steps: Sequence[Any] = (),
    evaluate: Callable[[keras.Model], float] | None = None,
    points: int = 6,
    folder: str | Path | None = None,
    verbose: bool = True,
) -> Mixed:
    """Choose a width for every layer, so that one budget holds and the outputs stay nearest to float.

    Copies: `model` stays as it was.

    Args:
        model: a built float Keras model.
        data: representative samples, see `kquant.calibrate`.
        flash_bytes: the budget: size of the file. One budget is to be given.
        arena_bytes: the budget: RAM of the tensors in TFLM (target "tflm", or another whose file names an `arena`).
        bit_macs: the budget: multiplications times bits of weights times bits of activations.
        widths: "int8" and one or both of "int4" (weights) and "int16" (activations); those the target has no kernel for
            cost nothing and save nothing, and are left out.
        target: where the file is to run.
        recipe: everything else.
        steps: corrections for the chosen model, like "adaround", behind those of the recipe; it is measured again.
        evaluate: `(keras model) -> float`, for the table.
        points: measure at least this many models along the way.
        folder: keep what was measured there, in mixed.json; the same call, with data in the same order, goes on where
            it was stopped, and one with another limit of the same budget starts from those measurements.
        verbose: show a progress bar.

    Returns:
        The chosen model, its recipe, and the measured points.

    Raises:
        ValueError: not one budget, unknown widths or none of 8 bits, an `evaluate` that gives no number, or a
            folder of another search.

    Example:
        >>> layers = [keras.layers.Dense(64, activation="relu"), keras.layers.Dense(3)]
        >>> model = keras.Sequential([keras.Input((32,)), *layers])
        >>> x = np.random.default_rng(0).normal(size=(64, 32)).astype("float32")
        >>> mixed = kquant.mixed_precision(model, x, flash_bytes=4500, verbose=False)
        >>> mixed.ok, mixed.chosen.flash_bytes <= 4500
        (True, True)
    """
    # what can be refused is, before the first of many models is made
    unit, limit = _budget({"flash_bytes": flash_bytes, "arena_bytes": arena_bytes, "bit_macs": bit_macs}, target)
    _check_widths(widths)
    base = load(recipe)
    options = {"target": target, "widths": sorted(widths), "budget": unit, "recipe_text": recipe_to_toml(base)}
    if folder is not None and evaluate is not None:
        with state_kept(model):
            # `evaluate` cannot be compared with that of an earlier call; what it says of the float model can
            options["float_score"] = rounded(_score(evaluate(model)))
    kept = search_state(folder, "mixed.json", "mixed_precision", model, data, base, **options)
    way = _Way(model, data, base, target, tuple(widths), evaluate, kept)
    moves = way.moves(unit)
    counts = np.linspace(0, len(moves), max(points, 2)).astype(int)  # both ends among them
    total = _most_models(np.unique(counts), TRIES if unit != "arena_bytes" else 0, bool(steps))
    with tqdm(desc="mixed precision, at most", unit="model", disable=not verbose, total=total) as bar:
        measured = {n: way.point(moves, n, bar) for n in np.unique(counts).tolist()}
        chosen, ok = _first_inside(way, moves, measured, unit, limit, bar)
        tried = [(point, moves[:n]) for n, point in sorted(measured.items())]
        made = moves[: chosen.moves]
        if ok and unit != "arena_bytes":  # which is a peak, and no sum of what layers save
            for point, some in _programme(way, moves, measured[0], chosen, (unit, limit), bar):
                tried.append((point, some))
                if _cost(point, unit) <= limit and point.sqnr_db > chosen.sqnr_db:
                    chosen, made = point, some
        final = load(chosen.recipe)
        final = final.model_copy(update={"steps": (*final.steps, *(_step(s) for s in steps))})
        qmodel = way.make(final)
        if steps:
            chosen = way.measured(final, chosen.moves, bar, qmodel)
            ok = _cost(chosen, unit) <= limit
    ordered = tuple(sorted((point for point, _ in tried), key=lambda p: -_cost(p, unit)))
    return Mixed(qmodel, final, (unit, limit), tuple(moves), ordered, chosen, ok, tuple(made))


def _most_models(counts: np.ndarray, tries: int, corrected: bool) -> int:
    """How many models a search measures at most: those on the way, a bisection between two of them, the programme's."""
    between = int(np.diff(counts).max(initial=1))
    return len(counts) + (between - 1).bit_length() + tries + corrected


def _programme(
    way: _Way, moves: list[Move], widest: Point, greedy: Point, budget: tuple[str, int], bar: Any
) -> Iterator[tuple[Point, list[Move]]]:
    """The choices that lose least by the measured noises; where a model saves less than their sum, again with more."""
    unit, limit = budget
    # what is to be saved of the model with most bits; a choice that was measured already is not measured again
    wanted, before = _cost(widest, unit) - limit, [moves[: greedy.moves]]
    for _ in range(TRIES):
        numbers = least_loss([m.noise for m in moves], [m.saved for m in moves], wanted)
        some = None if numbers is None else [moves[i] for i in numbers]
        if some is None or some in before:
            return
        before.append(some)
        point = way.point(some, len(some), bar)
        yield point, some
        if _cost(point, unit) <= limit:
            return
        # layers' estimates leave out what a file has beside codes: what this one is over is asked for in addition
        wanted += _cost(point, unit) - limit


def _check_widths(widths: Sequence[str]) -> None:
    if set(widths) - set(WIDTHS) or len(set(widths)) < 2:
        raise ValueError(f"mixed_precision: widths must be two or three of {', '.join(WIDTHS)}. Received: {widths}.")
    if "int8" not in widths:
        raise ValueError(
            "mixed_precision: widths must hold 'int8': weights go from 8 to 4 bits, activations from 16 to 8. "
            f"Received: {widths}."
        )


def _budget(given: dict[str, int | None], target: str) -> tuple[str, int]:
    budgets = {name: value for name, value in given.items() if value is not None}
    if len(budgets) != 1:
        names = ", ".join(get_args(Budget))
        raise ValueError(f"mixed_precision: give one budget of {names}. Received: {', '.join(budgets) or 'none'}.")
    name, value = next(iter(budgets.items()))
    if name == "arena_bytes" and targets.load(target).arena not in available():
        raise ValueError(
            "mixed_precision: arena_bytes is measured by TFLM: it needs target='tflm' and pip install 'kquant[micro]'."
        )
    return name, int(value)


def _step(given: Any) -> Step:
    return given if isinstance(given, Step) else Step.model_validate(given)


def _cost(point: Point, unit: str) -> float:
    cost = getattr(point, unit)
    return float("inf") if cost is None else float(cost)


def _first_inside(
    way: _Way, moves: list[Move], measured: dict[int, Point], unit: str, limit: int, bar: Any
) -> tuple[Point, bool]:
    """The fewest moves whose measured cost is inside the budget, by bisection; all of them where none is."""
    last = len(moves)
    if _cost(measured[last], unit) > limit:
        return measured[last], False
    # A move saves, so costs fall along the way, as far as sums do. An arena is a peak, which may stand still for some
    # moves: so the search begins behind the last point that is known to be outside.
    outside = max((n for n, p in measured.items() if _cost(p, unit) > limit), default=-1)
    inside = min(n for n, p in measured.items() if n > outside and _cost(p, unit) <= limit)
    while inside - outside > 1:
        middle = (inside + outside) // 2
        measured[middle] = way.point(moves, middle, bar)
        if _cost(measured[middle], unit) <= limit:
            inside = middle
        else:
            outside = middle
    return measured[inside], True


@dataclass(frozen=True)
class _Kernel:
    """A layer that has weights, as it is kept."""

    name: str


class _Way:
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
    ) -> None:
        self.kept, self.points = kept, kept.rows("points", Point)
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
        qmodel = self.make(recipe)
        return analyze(qmodel, self.data, limit=SAMPLES, sensitivity=sensitivity, remedies=False, verbose=False)

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

    def point(self, moves: Sequence[Move], count: int, bar: Any) -> Point:
        """What the model costs after the first moves, measured."""
        recipe = self.recipe_after(moves[:count])
        return self.measured(recipe, count, bar)

    def measured(self, recipe: Recipe, count: int, bar: Any, qmodel: keras.Model | None = None) -> Point:
        """What the quantized model of a recipe costs; an earlier call may know."""
        given = recipe.model_dump(mode="json", by_alias=True)
        # by recipe: the way, the programme and an earlier call with another limit may come to the same model
        known = next((point for point in self.points if point.recipe == given), None)
        if known is None:
            known = self._measure(given, self.make(recipe) if qmodel is None else qmodel)
            self.points.append(known)
            self.kept.store(points=self.points)
        bar.update()
        return replace(known, moves=count)

    def _measure(self, recipe: dict[str, Any], qmodel: keras.Model) -> Point:
        content = file_content(lower(qmodel))
        analysis = analyze(qmodel, self.data, limit=SAMPLES, sensitivity=False, remedies=False, verbose=False)
        # 0: `measured` puts the number of moves in, which differs for one recipe
        return Point(
            0,
            recipe,
            len(content),
            arena_bytes(content) if targets.load(self.target).arena in available() else None,
            sum(_bit_macs(row, analysis) for row in analysis.layers),
            analysis.sqnr_db,
            None if self.evaluate is None else _score(self.evaluate(qmodel)),
        )


def _score(given: Any) -> float:
    try:
        return float(given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"mixed_precision: evaluate must return a number. It returned {given!r}.") from error


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

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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import keras
import numpy as np

from kquant import targets
from kquant.core.checks import check_score, whole_budget
from kquant.core.messages import warn
from kquant.core.progress import tqdm
from kquant.core.result import Result
from kquant.files.destination import check_folder
from kquant.graph.given_model import check_keras
from kquant.recipe.keys_apart import takes_recipe
from kquant.recipe.recipe import Recipe, Step, load, recipe_to_toml
from kquant.runtime.running import available
from kquant.search.knapsack import least_loss
from kquant.search.ladder import score_of
from kquant.search.narrowing import Move, Point, PointsElsewhere, Way
from kquant.search.search_state import rounded, search_state

Budget = Literal["flash_bytes", "arena_bytes", "bit_macs"]
WIDTHS = ("int4", "int8", "int16")
TRIES = 3  # models of the integer programme to measure


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


@takes_recipe
def mixed_precision(
    model: keras.Model,
    data: Any,
    *,
    flash_bytes: int | str | None = None,
    arena_bytes: int | str | None = None,
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
        flash_bytes: the budget: size of the file, a number or like "64KB". One budget is to be given.
        arena_bytes: the budget: RAM of the tensors in TFLM (target "tflm", or another whose file names an `arena`).
        bit_macs: the budget: multiplications times bits of weights times bits of activations.
        widths: "int8" and one or both of "int4" (weights) and "int16" (activations); those the target has no kernel for
            cost nothing and save nothing, and are left out.
        target: where the file is to run.
        recipe: everything else.
        steps: corrections for the chosen model, like "adaround", behind those of the recipe; it is measured again.
        evaluate: `(keras model) -> float`, for the table.
        points: measure at least this many models along the way.
        folder: keep what was measured there, in mixed.json; the same call, with data in the same order and an
            `evaluate` that says the same of the float model again, goes on where it was stopped, and one with another
            limit of the same budget starts from those measurements.
        verbose: show a progress bar.

    Returns:
        The chosen model, its recipe, and the measured points. Where nothing holds the budget, the model of the fewest
        bits with `ok` False, and a warning says so.

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
    check_keras(model, "mixed_precision")
    budget = {"flash_bytes": flash_bytes, "arena_bytes": arena_bytes, "bit_macs": bit_macs}
    wanted = Wanted(budget, tuple(widths), target, load(recipe), tuple(steps), points, folder)
    return mixed(model, data, evaluate, wanted, verbose=verbose)


@dataclass(frozen=True)
class Wanted:
    """Arguments of `mixed_precision`."""

    budget: dict[str, int | str | None]
    widths: tuple[str, ...]
    target: str
    recipe: Recipe
    steps: tuple[Any, ...]
    points: int
    folder: str | Path | None

    def check(self) -> tuple[str, int]:
        """Refuse what can be refused before the first of many models is made; unit and limit of the budget."""
        checked = _budget(self.budget, self.target)
        _check_widths(self.widths)
        check_folder(self.folder, "mixed_precision", "search")
        return checked


def mixed(
    model: keras.Model,
    data: Any,
    evaluate: Callable[[keras.Model], float] | None,
    wanted: Wanted,
    elsewhere: PointsElsewhere | None = None,
    *,
    verbose: bool,
) -> Mixed:
    """See `mixed_precision`.

    Args:
        model: see there.
        data: see there.
        evaluate: see there.
        wanted: see there.
        elsewhere: who measures models; None: this process.
        verbose: see there.
    """
    widths, target, base, steps = wanted.widths, wanted.target, wanted.recipe, wanted.steps
    unit, limit = wanted.check()
    if evaluate is not None:
        check_score("mixed_precision", evaluate)
    options = {"target": target, "widths": sorted(widths), "budget": unit, "recipe_text": recipe_to_toml(base)}
    if wanted.folder is not None and evaluate is not None:
        # `evaluate` cannot be compared with that of an earlier call; what it says of the float model can
        options["float_score"] = rounded(score_of(evaluate, model, "the float model", "mixed_precision"))
    kept = search_state(wanted.folder, "mixed.json", "mixed_precision", model, data, base, evaluate, **options)
    way = Way(model, data, base, target, widths, evaluate, kept, elsewhere)
    moves = way.moves(unit)
    counts = np.linspace(0, len(moves), max(wanted.points, 2)).astype(int)  # both ends among them
    total = _most_models(np.unique(counts), TRIES if unit != "arena_bytes" else 0, bool(steps))
    with tqdm(desc="mixed precision, at most", unit="model", disable=not verbose, total=total) as bar:
        way.ahead([moves[:n] for n in np.unique(counts)])
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
    if not ok:
        _warn_over(unit, limit, chosen)
    ordered = tuple(sorted((point for point, _ in tried), key=lambda p: -_cost(p, unit)))
    return Mixed(qmodel, final, (unit, limit), tuple(moves), ordered, chosen, ok, tuple(made))


def _warn_over(unit: str, limit: int, chosen: Point) -> None:
    """Say that the result does not hold the budget, and what takes more: it is a model all the same, and `ok` False."""
    also = (
        "; kquant.compress(model, data, path=..., flash_bytes=...) shortens codes as well, and ends where nothing holds"
    )
    warn(
        f"mixed_precision: no widths that were tried hold {unit}={limit:,}; the result has {_cost(chosen, unit):,.0f}, "
        f"its layers at the fewest bits. Fewer channels take less (kquant.prune_channels)"
        f"{also if unit == 'flash_bytes' else ''}."
    )


def _most_models(counts: np.ndarray, tries: int, corrected: bool) -> int:
    """How many models a search measures at most: those on the way, a bisection between two of them, the programme's."""
    between = int(np.diff(counts).max(initial=1))
    return len(counts) + (between - 1).bit_length() + tries + corrected


def _programme(
    way: Way, moves: list[Move], widest: Point, greedy: Point, budget: tuple[str, int], bar: Any
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


def _budget(given: dict[str, int | str | None], target: str) -> tuple[str, int]:
    budgets = {name: value for name, value in given.items() if value is not None}
    if len(budgets) != 1:
        names = ", ".join(get_args(Budget))
        raise ValueError(f"mixed_precision: give one budget of {names}. Received: {', '.join(budgets) or 'none'}.")
    name, value = next(iter(budgets.items()))
    limit = whole_budget("mixed_precision", name, value, "bytes" if name.endswith("_bytes") else "bits times MACs")
    if name == "arena_bytes" and targets.load(target).arena not in available():
        raise ValueError(
            "mixed_precision: arena_bytes is measured by TFLM: it needs target='tflm' and pip install 'kquant[micro]'."
        )
    return name, limit


def _step(given: Any) -> Step:
    return given if isinstance(given, Step) else Step.model_validate(given)


def _cost(point: Point, unit: str) -> float:
    cost = getattr(point, unit)
    return float("inf") if cost is None else float(cost)


def _first_inside(
    way: Way, moves: list[Move], measured: dict[int, Point], unit: str, limit: int, bar: Any
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

"""A ladder of recipes, cheap ones first, that stops where the accuracy holds.

    as given -> other ranges -> equalization -> bias correction -> AdaRound -> more bits for the most sensitive layers
    -> 16-bit activations everywhere -> the advice to train

A rung that helps is kept, and the next one starts from it. Every rung is a recipe, so that what the search found can be
written down, and made again by `kquant.compress`.
"""

from __future__ import annotations

import numbers
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np

from kquant import targets
from kquant.analysis.diagnosis import Asked, analyzed
from kquant.analysis.separately import AnalysisElsewhere
from kquant.core.callers import is_callers, score_given
from kquant.core.checks import check_score, is_within
from kquant.core.progress import tqdm
from kquant.core.result import Result
from kquant.correct.steps import apply_steps
from kquant.files.destination import check_folder
from kquant.files.finished_work import Kept
from kquant.graph.given_model import check_keras
from kquant.graph.watched import state_kept
from kquant.prepare.quantization import quantize
from kquant.recipe.keys_apart import takes_recipe
from kquant.recipe.recipe import Recipe, load
from kquant.search.rung_recipes import observing, others, whole, widened, with_steps
from kquant.search.search_state import rounded, search_state
from kquant.tflite.file_content import file_content
from kquant.tflite.lowering import lower
from kquant.views.quantized_model import places, read
from kquant.views.recipe_steps import RANGES

SAMPLES = 256  # that the sensitivity of layers is measured on
ADVICE = (
    "train the best model: result.model.compile(...); result.model.fit(train, epochs=2) starts from its ranges; "
    "docs/recipes.md has the settings."
)


@dataclass(frozen=True)
class Rung:
    """One recipe that was tried.

    Attributes:
        name: what it adds.
        recipe: plain data of the whole recipe.
        score: what `evaluate` gave for the quantized model; -inf where the rung failed.
        drop: of the float model's score, minus this one.
        file_bytes: size of the TFLite file that `kquant.export` writes; 0 where the rung failed.
        seconds: that it took.
        kept: True where it is the best so far, so that later rungs start from it.
        failed: why there is no model of this recipe, else "".
    """

    name: str
    recipe: dict[str, Any]
    score: float
    drop: float
    file_bytes: int
    seconds: float
    kept: bool = False
    failed: str = ""

    @property
    def said(self) -> str:
        """Its figures in a line.

        Example:
            >>> Rung("equalization", {}, 0.9375, 0.0125, 8128, 2.04).said
            'score 0.9375, drop +0.0125, 8,128 bytes, 2.0 s'
        """
        if self.failed:
            return f"failed: {self.failed}"
        return f"score {self.score:.4f}, drop {self.drop:+.4f}, {self.file_bytes:,} bytes, {self.seconds:.1f} s"


@dataclass(frozen=True, eq=False, repr=False)
class Tuned(Result):
    """What `kquant.autotune` found.

    Attributes:
        model: the best quantized model.
        recipe: that made it.
        float_score: of the float model.
        max_drop: the budget.
        rungs: in the order they were tried.
        advice: what to do where the budget does not hold, else "".
    """

    model: keras.Model
    recipe: Recipe
    float_score: float
    max_drop: float
    rungs: tuple[Rung, ...]
    advice: str

    def __repr__(self) -> str:
        best, held = self.best, "" if self.ok else ", which does not hold"
        drop = f"drop {best.drop:+.4g} of {self.max_drop:g} allowed{held}"
        return f"Tuned({self.model.name!r}: {best.name}, score {best.score:.4g}, {drop}, {best.file_bytes:,} bytes)"

    @property
    def best(self) -> Rung:
        """The rung of `model`."""
        return [rung for rung in self.rungs if rung.kept][-1]

    @property
    def ok(self) -> bool:
        """True where the budget holds."""
        return is_within(self.best.drop, self.max_drop)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "ok": self.ok,
            "float_score": self.float_score,
            "max_drop": self.max_drop,
            "best": self.best.name,
            "rungs": [asdict(rung) for rung in self.rungs],
            "advice": self.advice,
        }


class RungsElsewhere(AnalysisElsewhere, Protocol):
    """Measures rungs in other processes."""

    def ahead(self, rungs: Sequence[tuple[str, Recipe]]) -> None:
        """Names and recipes that will be asked for unless a better rung comes before: begin them, and no others."""

    def rung(self, name: str, recipe: Recipe) -> Rung:
        """The row of a recipe, begun or not."""
        ...


@dataclass(frozen=True)
class Wanted:
    """Arguments of `autotune`."""

    max_drop: float
    target: str
    recipe: Recipe
    folder: str | Path | None

    def check(self) -> None:
        """Refuse what can be refused before anything runs."""
        if not isinstance(self.max_drop, numbers.Real) or not self.max_drop >= 0:
            raise ValueError(f"autotune: max_drop must be 0 or more. Received: {self.max_drop!r}.")
        check_folder(self.folder, "autotune", "search")


@takes_recipe
def autotune(
    model: keras.Model,
    data: Any,
    evaluate: Callable[[keras.Model], float],
    *,
    max_drop: float = 0.01,
    target: str = targets.DEFAULT,
    recipe: Any = "int8",
    folder: str | Path | None = None,
    verbose: bool = True,
) -> Tuned:
    """Climb from the given recipe to dearer ones until the accuracy holds.

    Copies: `model` stays as it was.

    Args:
        model: a built float Keras model.
        data: representative samples, see `kquant.calibrate`.
        evaluate: `(keras model) -> float`, higher is better; it is called with the float model and with quantized ones,
            which compute what their files compute.
        max_drop: the score may lie this far below the float model's.
        target: where the file is to run.
        recipe: the first rung.
        folder: keep finished rungs there, in rungs.json; the same call, with data in the same order and an `evaluate`
            that says the same of the float model again, goes on where it was stopped. No model is kept: the best model
            is made again from its recipe. Failed rungs are tried again.
        verbose: show a progress bar, and a line for every rung.

    Returns:
        The best model, its recipe, and a row for every rung.

    Raises:
        ValueError: what the first rung raises (a later one that cannot be made is reported as failed), a score that is
            no number, with its rung, or a folder of another search. What `evaluate` raises ends the search, too; rungs
            that are finished stay in the folder.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> wanted = model.predict(x, verbose=0).argmax(-1)
        >>> score = lambda m: float(np.mean(m.predict(x, verbose=0).argmax(-1) == wanted))
        >>> kquant.autotune(model, x, score, max_drop=0.1, verbose=False).ok
        True
    """
    check_keras(model, "autotune")
    return climbed(model, data, evaluate, Wanted(max_drop, target, load(recipe), folder), verbose=verbose)


def climbed(
    model: keras.Model,
    data: Any,
    evaluate: Callable[[keras.Model], float],
    wanted: Wanted,
    elsewhere: Callable[[float], RungsElsewhere] | None = None,
    *,
    verbose: bool,
) -> Tuned:
    """See `autotune`.

    Args:
        model: see there.
        data: see there.
        evaluate: see there.
        wanted: see there.
        elsewhere: score of the float model -> who measures the rungs behind the first; None: this process.
        verbose: see there.
    """
    max_drop, base = wanted.max_drop, wanted.recipe
    wanted.check()
    check_score("autotune", evaluate)
    float_score = score_of(evaluate, model, "the float model")
    options = {"target": wanted.target, "float_score": rounded(float_score)}
    kept = search_state(wanted.folder, "rungs.json", "autotune", model, data, base, evaluate, **options)
    others = None if elsewhere is None else elsewhere(float_score)
    search = _Search(model, data, evaluate, wanted.target, kept, float_score, max_drop, others)
    with tqdm(desc="autotune, at most", unit="rung", disable=not verbose, total=1) as bar:
        for name, tried in _ladder(search, base):
            bar.set_postfix_str(name)
            count = len(search.rungs)
            search.climb(name, tried)
            for rung in search.rungs[count:] if verbose else ():
                tqdm.write(f"{rung.name}: {rung.said}", file=sys.stderr)  # above the bar, and there when it is gone
            bar.total = _most_rungs(search, base)  # the first rung tells how many layers there are
            bar.update()
            if is_within(search.best.drop, max_drop):
                break
    tuned = search.result
    return tuned if tuned.ok else replace(tuned, advice=ADVICE)


def score_of(evaluate: Callable[[keras.Model], float], model: keras.Model, which: str, verb: str = "autotune") -> float:
    """What `evaluate` gives for a model, which stays as it was.

    Args:
        evaluate: of the caller.
        model: to judge.
        which: what it is called in an error.
        verb: who asks.

    Raises:
        ValueError: no finite number, for `which`.
    """
    # a model that runs moves its counters, seeds and metrics, and the caller's function may compile it
    with state_kept(model):
        given = evaluate(model)
    return score_given(verb, which, given)


def _ladder(search: _Search, base: Recipe) -> Iterator[tuple[str, Recipe]]:
    """The rungs; each reads what is the best so far when its turn comes."""
    is_static = base.mode == "static"
    ranges = [(f"{observer} ranges", observing(base, observer)) for observer in others(base) if is_static]
    # the first rung is measured here, since what it raises is the caller's to see; the next ones meanwhile elsewhere
    search.ahead([*ranges, ("equalization", with_steps(base, "equalize", before=RANGES))] if is_static else [])
    yield f"as given ({base.name})", base
    if not is_static:
        return
    yield from ranges
    yield "equalization", with_steps(search.recipe, "equalize", before=RANGES)
    # each of the next two starts from here, whatever the other one gains
    plain, few = search.recipe, search.recipe.weights.bits < 8
    if "adaround" not in [step.name for step in plain.steps]:  # not both: the rounding sees to the means
        # with few bits the ranges come first: AdaRound only chooses between the two codes beside a weight
        rounded = with_steps(plain, "sequential-mse") if few else plain
        both = [("bias correction", with_steps(plain, "bias")), ("AdaRound", with_steps(rounded, "adaround"))]
        search.ahead(both)
        yield from both
    wide = any(op.int16x8 for op in targets.load(search.target).ops.values())
    # 1, 2, 4, ... layers, as every rung is a whole model and an evaluation; all of them come last
    ranked = search.sensitive()
    counts = [1 << n for n in range(max(len(ranked) - 1, 0).bit_length())]
    parts = [(ranked[:count], few_bits) for count in counts for few_bits in [True] * few + [False] * wide]
    for place in range(len(parts)):
        search.ahead([*(widened(search.recipe, *part) for part in parts[place:]), *whole(search.recipe, few, wide)])
        yield widened(search.recipe, *parts[place])
    for place in range(few + wide):
        yield whole(search.recipe, few, wide)[place]


def _most_rungs(search: _Search, base: Recipe) -> int:
    """How many rungs `_ladder` has where none holds the budget, one for each name it may yield."""
    if base.mode != "static":
        return 1
    wide = any(op.int16x8 for op in targets.load(search.target).ops.values())
    few = base.weights.bits < 8
    layers = search.layers
    # 1, 2, 4, ... below the number of layers
    doublings = max(layers - 1, 0).bit_length()
    before = 2 + len(others(base))
    rounded = 0 if "adaround" in [step.name for step in base.steps] else 2
    return before + rounded + (doublings + 1) * (few + wide)


def tried(
    name: str,
    recipe: Recipe,
    make: Callable[[], keras.Model],
    evaluate: Callable[[keras.Model], float],
    before: float,
    verb: str = "autotune",
) -> tuple[Rung, keras.Model | ValueError]:
    """A recipe's row, and its model, or why there is none.

    Args:
        name: of the row.
        recipe: that is tried.
        make: gives its quantized model.
        evaluate: see `autotune`.
        before: score of the float model.
        verb: who asks.

    Raises:
        ValueError: a score that is no number; what `evaluate` raises passes, too, of whatever class it is.
    """
    given, started = recipe.plain(), time.perf_counter()
    score, size, failed = -np.inf, 0, ""
    made: keras.Model | ValueError
    try:
        made = make()
        size = len(file_content(lower(made)))
    except ValueError as error:
        if is_callers(error):
            raise  # a fault of the caller's data is none of the recipe
        failed, made = _first_line(error), error
    else:  # not inside: a fault of the caller's function is none of the recipe
        score = score_of(evaluate, made, f"the rung '{name}'", verb)
    seconds = time.perf_counter() - started
    return Rung(name, given, score, before - score, size, seconds, failed=failed), made


class _Search:
    """What has been tried, and the best of it."""

    def __init__(
        self,
        model: keras.Model,
        data: Any,
        evaluate: Any,
        target: str,
        kept: Kept,
        float_score: float,
        budget: float,
        elsewhere: RungsElsewhere | None,
    ) -> None:
        self.model, self.data, self.evaluate, self.elsewhere = model, data, evaluate, elsewhere
        self.target, self.kept, self.float_score, self.budget = target, kept, float_score, budget
        self.rungs: list[Rung] = []
        self.earlier = kept.rows("rungs", Rung)
        self.qmodel: keras.Model | None = None
        self.layers = 0

    @property
    def best(self) -> Rung:
        """The rung that later ones start from."""
        return [rung for rung in self.rungs if rung.kept][-1]

    @property
    def recipe(self) -> Recipe:
        """Of the best rung."""
        return load(self.best.recipe)

    @property
    def result(self) -> Tuned:
        """All there is so far."""
        return Tuned(self.best_model(), self.recipe, self.float_score, self.budget, tuple(self.rungs), "")

    def best_model(self) -> keras.Model:
        """Of the best rung; made again where it was found by an earlier call."""
        if self.qmodel is None:
            self.qmodel = self.make(self.recipe)
        return self.qmodel

    def make(self, recipe: Recipe) -> keras.Model:
        """The quantized model of a recipe."""
        qmodel = quantize(self.model, recipe, target=self.target)
        return apply_steps(qmodel, recipe.steps, self.data, verbose=False)

    def climb(self, name: str, recipe: Recipe) -> None:
        """Try a recipe, unless it was tried before."""
        given = recipe.plain()
        if any(rung.recipe == given for rung in self.rungs):
            return
        rung, qmodel = self.known(name, given), None
        if rung is None:
            rung, qmodel = self.measure(name, recipe)
        # of equal scores the earlier rung stays, which is the cheaper one
        better = not self.rungs or rung.score > self.best.score
        self.rungs.append(replace(rung, kept=better))
        if better:
            # None where an earlier call or another process measured it: `best_model` makes it if anybody asks
            self.qmodel = qmodel
        if qmodel is not None:
            self.layers = len(places(read(qmodel)))
        self.kept.store(rungs=[rung for rung in self.rungs if not rung.failed])

    def known(self, name: str, given: dict[str, Any]) -> Rung | None:
        """What an earlier call measured."""
        return next((r for r in self.earlier if r.name == name and r.recipe == given), None)

    def ahead(self, rungs: Sequence[tuple[str, Recipe]]) -> None:
        """Others may begin them."""
        if self.elsewhere is not None:
            done = [rung.recipe for rung in self.rungs]
            left = [(name, r, r.plain()) for name, r in rungs]
            self.elsewhere.ahead([(n, r) for n, r, plain in left if plain not in done and not self.known(n, plain)])

    def measure(self, name: str, recipe: Recipe) -> tuple[Rung, keras.Model | None]:
        """The model of a recipe and its score; one that fails is reported, unless there is nothing to go back to."""
        if self.rungs and self.elsewhere is not None:  # what the first one raises is the caller's to see
            return self.elsewhere.rung(name, recipe), None
        rung, qmodel = tried(name, recipe, lambda: self.make(recipe), self.evaluate, self.float_score)
        if isinstance(qmodel, ValueError):
            if not self.rungs:
                raise qmodel
            return rung, None
        return rung, qmodel

    def sensitive(self) -> list[str]:
        """Layers by what their quantization costs, most first; none, and a failed row, where it cannot be measured."""
        started = time.perf_counter()
        try:
            asked = Asked(SAMPLES, sensitivity=True, remedies=False, folder=None, verbose=False)
            analysis = analyzed(self.best_model(), self.data, None, asked, self.elsewhere)
        except ValueError as error:
            if is_callers(error):
                raise
            seconds, failed = time.perf_counter() - started, _first_line(error)
            name = "sensitivity of the layers"
            self.rungs.append(Rung(name, self.best.recipe, -np.inf, np.inf, 0, seconds, failed=failed))
            return []
        # first the layer whose return to float helps most, all others staying quantized
        gains = {r.name: r.sensitivity.all_but for r in analysis.layers if r.weights is not None and r.sensitivity}
        return sorted(gains, key=lambda name: -gains[name])


def _first_line(error: ValueError) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

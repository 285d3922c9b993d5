"""`kquant.on_ray.autotune`, `mixed_precision` and `analyze`: the same searches, their models measured by tasks.

A search goes its way here and asks for one row after the other. What it will ask for, unless a better model comes
before, is begun ahead: other observers, corrections, more bits for 1, 2, 4, ... layers; the points along the way to
fewer bits; settings of single layers; remedies. A row depends on the model, the data and the recipe alone, so the way,
and the result, are those of one process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kquant import targets
from kquant.analysis.diagnosis import Asked, analyzed
from kquant.analysis.passes import Metric
from kquant.analysis.remedies import Trials
from kquant.analysis.results import Analysis
from kquant.analysis.separately import Groups, Judged, Tried, judged_settings, tried_remedy
from kquant.correct.steps import apply_steps
from kquant.on_ray.candidates import Evaluate, tried_there
from kquant.on_ray.shipping import Begun, finished, packed, sent, started, unpacked
from kquant.prepare.quantization import quantize
from kquant.recipe.recipe import Recipe, load
from kquant.search import bit_widths, ladder, narrowing


class Analysing:
    """Settings and remedies of an analysis, as tasks; a verb's own, or a part of its search."""

    def __init__(self, ray: Any, who: str) -> None:
        self.ray, self.who = ray, who

    def judged(
        self, qmodel: keras.Model, x: list[np.ndarray], metric: Metric | None, groups: Groups
    ) -> Iterator[list[Judged]]:
        """See `analysis.separately`."""
        shared = sent(self.ray, self.who, model=packed(qmodel), data=x, metric=metric)
        calls = [(*shared, [sorted(names) for names in group]) for group in groups]
        return (rows for _, rows in finished(self.ray, _judged, calls))

    def tried(self, trials: Trials, changes: Sequence[str]) -> Iterator[Tried]:
        """See `analysis.separately`."""
        asked = {"recipe": trials.recipe.plain(), "target": trials.target, "data": trials.data}
        asked |= {"metric": trials.metric, "reached": (trials.value, trials.sqnr_db)}
        shared = sent(self.ray, self.who, model=packed(trials.model), **asked)
        return (row for _, row in finished(self.ray, _remedied, [(*shared, change) for change in changes]))


class Rungs(Analysing):
    """What `kquant.autotune` asks for."""

    def __init__(self, ray: Any, begun: Begun, target: str, before: float) -> None:
        super().__init__(ray, "on_ray.autotune")
        self.begun, self.target, self.before = begun, target, before

    def ahead(self, rungs: Sequence[tuple[str, Recipe]]) -> None:
        """See `search.ladder`."""
        self.begun.ahead([self._call(*rung) for rung in rungs])

    def rung(self, name: str, recipe: Recipe) -> ladder.Rung:
        """See `search.ladder`."""
        row: ladder.Rung = self.begun.result(*self._call(name, recipe))
        return row

    def _call(self, name: str, recipe: Recipe) -> tuple[Any, ...]:
        return name, recipe.plain(), self.target, self.before


class Points(Analysing):
    """What `kquant.mixed_precision` asks for."""

    def __init__(self, ray: Any, begun: Begun, target: str) -> None:
        super().__init__(ray, "on_ray.mixed_precision")
        self.begun, self.target = begun, target

    def ahead_points(self, recipes: Sequence[dict[str, Any]]) -> None:
        """See `search.narrowing`."""
        self.begun.ahead([(recipe, self.target) for recipe in recipes])

    def point(self, recipe: dict[str, Any]) -> narrowing.Point:
        """See `search.narrowing`."""
        point: narrowing.Point = self.begun.result(recipe, self.target)
        return point


def analyze(
    qmodel: keras.Model,
    data: Any,
    metric: Callable[[Any], float] | None = None,
    *,
    limit: int | None = 256,
    sensitivity: bool = True,
    remedies: bool = True,
    folder: str | Path | None = None,
    verbose: bool = True,
) -> Analysis:
    """`kquant.analyze`, with the settings of single layers and the remedies measured as tasks of Ray.

    Reads: `qmodel` stays as it was.

    Args:
        qmodel: see `kquant.analyze`.
        data: likewise; the samples that are used are sent to each process once.
        metric: likewise; sent along with what it refers to.
        limit: likewise.
        sensitivity: likewise.
        remedies: likewise.
        folder: likewise.
        verbose: likewise.

    Returns:
        What `kquant.analyze` returns, to the bit.

    Raises:
        ValueError: see `kquant.analyze`; Ray is not installed; or a metric that does not pickle.

    Example:
        >>> kquant.on_ray.analyze(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]), None, limit=0)
        Traceback (most recent call last):
        ValueError: analyze: limit must be 1 or more. Received: 0.
    """
    asked = Asked(limit, sensitivity, remedies, folder, verbose)
    asked.check()
    return analyzed(qmodel, data, metric, asked, Analysing(started(), "on_ray.analyze"))


def autotune(
    model: keras.Model,
    data: Any,
    evaluate: Evaluate,
    *,
    max_drop: float = 0.01,
    target: str = targets.DEFAULT,
    recipe: Any = "int8",
    folder: str | Path | None = None,
    verbose: bool = True,
) -> ladder.Tuned:
    """`kquant.autotune`, with the rungs behind the first measured as tasks of Ray, some of them before their turn.

    Copies: `model` stays as it was.

    Args:
        model: see `kquant.autotune`.
        data: likewise; sent to each process once, so arrays, or what pickles.
        evaluate: likewise; sent along with what it refers to.
        max_drop: likewise.
        target: likewise.
        recipe: likewise.
        folder: likewise.
        verbose: likewise.

    Returns:
        What `kquant.autotune` returns, to the bit but for the seconds.

    Raises:
        ValueError: see `kquant.autotune`; Ray is not installed; or data (a `tf.data.Dataset`) or an `evaluate` that do
            not pickle.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> kquant.on_ray.autotune(model, np.ones((64, 4)), lambda m: 1.0, max_drop=-1)
        Traceback (most recent call last):
        ValueError: autotune: max_drop must be 0 or more. Received: -1.
    """
    wanted = ladder.Wanted(max_drop, target, load(recipe), folder)
    wanted.check()
    ray = started()
    shared = sent(ray, "on_ray.autotune", model=packed(model), data=data, evaluate=evaluate)
    begun = Begun(ray, tried_there, shared)
    with contextlib.closing(begun):
        there: Callable[[float], ladder.RungsElsewhere] = lambda before: Rungs(ray, begun, target, before)  # noqa: E731
        return ladder.climbed(model, data, evaluate, wanted, there, verbose=verbose)


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
    evaluate: Evaluate | None = None,
    points: int = 6,
    folder: str | Path | None = None,
    verbose: bool = True,
) -> bit_widths.Mixed:
    """`kquant.mixed_precision`, with its analyses and the models along the way measured as tasks of Ray.

    Copies: `model` stays as it was.

    Args:
        model: see `kquant.mixed_precision`.
        data: likewise; sent to each process once, so arrays, or what pickles.
        flash_bytes: likewise.
        arena_bytes: likewise.
        bit_macs: likewise.
        widths: likewise.
        target: likewise.
        recipe: likewise.
        steps: likewise.
        evaluate: likewise; sent along with what it refers to.
        points: likewise.
        folder: likewise.
        verbose: likewise.

    Returns:
        What `kquant.mixed_precision` returns, to the bit.

    Raises:
        ValueError: see `kquant.mixed_precision`; Ray is not installed; or data (a `tf.data.Dataset`) or an `evaluate`
            that do not pickle.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> kquant.on_ray.mixed_precision(model, np.ones((64, 4)), flash_bytes=4000, widths=("int8",))
        Traceback (most recent call last):
        ValueError: mixed_precision: widths must be two or three of int4, int8, int16. Received: ('int8',).
    """
    budget = {"flash_bytes": flash_bytes, "arena_bytes": arena_bytes, "bit_macs": bit_macs}
    wanted = bit_widths.Wanted(budget, tuple(widths), target, load(recipe), tuple(steps), points, folder)
    wanted.check()
    ray = started()
    shared = sent(ray, "on_ray.mixed_precision", model=packed(model), data=data, evaluate=evaluate)
    begun = Begun(ray, _point, shared)
    with contextlib.closing(begun):
        return bit_widths.mixed(model, data, evaluate, wanted, Points(ray, begun, target), verbose=verbose)


def _judged(content: bytes, x: list[np.ndarray], metric: Metric | None, group: Sequence[Sequence[str]]) -> list[Judged]:
    """A task: some settings."""
    return judged_settings(unpacked(content), x, metric, [frozenset(names) for names in group])


def _remedied(
    content: bytes,
    recipe: dict[str, Any],
    target: str,
    data: list[np.ndarray],
    metric: Metric | None,
    reached: tuple[float, float],
    change: str,
) -> Tried:
    """A task: one remedy."""
    return tried_remedy(Trials(unpacked(content), load(recipe), target, data, metric, *reached), change)


def _point(content: bytes, data: Any, evaluate: Evaluate | None, recipe: dict[str, Any], target: str) -> Any:
    """A task: one model."""
    given = load(recipe)
    qmodel = apply_steps(quantize(unpacked(content), given, target=target), given.steps, data, verbose=False)
    return narrowing.point_of(qmodel, recipe, data, target, evaluate)

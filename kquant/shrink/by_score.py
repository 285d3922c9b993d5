"""What fits a budget by what models score: each part alone at some widths or ranks, then the cheapest steps.

    1. score    each part (a group of channels, a kernel) alone at some nine sizes: what `evaluate` gives
    2. choose   the step down that loses least score for each MAC or byte it saves, until the budget holds
    3. fill     what is left of the budget: the steps up that win most for each MAC or byte

Scores of parts are taken to add up; costs are counted exactly, as two narrow neighbours save less than each alone.
Judging each layer alone at a ladder of sizes is AIMET's (user guide, "Greedy Compression Ratio Selection"); its choice,
the highest score that all layers can have, also shrinks layers that save next to nothing. Steps by score for cost are
the greedy answer to the multiple-choice knapsack (Sinha and Zoltners, Operations Research 27, 1979).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import keras
import numpy as np

from kquant.core.progress import tqdm
from kquant.graph.graph import Graph
from kquant.shrink.channels import Channels
from kquant.shrink.choose import Ledger, Queue, Unit, ledger, out_of_reach, queues_of
from kquant.shrink.reconstruct import Job, refit

STEPS = 9  # widths judged for each group

Part = TypeVar("Part")
# models, each by what is left of it -> the number of each, and how good it is: a finite number, higher is better
Scores = Callable[[Sequence[Part]], Iterable[tuple[int, float]]]


@dataclass(frozen=True, eq=False)
class Ladder:
    """One group at every width that it may have, the widest first.

    Attributes:
        order: its channels, as they leave.
        gone: int[n], how many have left.
        reads, makes: int[n, sites], what has left each layer with a kernel.
        judged: int[m], indices of the widths whose score is known.
        scores: float64[n], the group alone; a straight line between those judged.
    """

    order: list[int]
    gone: np.ndarray
    reads: np.ndarray
    makes: np.ndarray
    judged: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True, eq=False)
class Tried(Generic[Part]):
    """Judges models that are made smaller, and refitted as far as there are samples.

    Attributes:
        graph: of the whole model.
        make: what is left -> the smaller model.
        jobs: what is left -> the layers that are to be refitted.
        few: samples; None: nothing is refitted.
        evaluate: the caller's; higher is better.
    """

    graph: Graph
    make: Callable[[Part], keras.Model]
    jobs: Callable[[Part], list[Job]]
    few: Any
    evaluate: Callable[[keras.Model], float]

    def judged(self, models: Sequence[Part]) -> Iterator[tuple[int, Any]]:
        """The number of each, and what `evaluate` gave for it."""
        for number, left in enumerate(models):
            small = self.make(left)
            if self.few is not None:
                refit(self.graph, small, self.jobs(left), self.few, verbose=False)
            yield number, self.evaluate(small)


def scored(models: Sequence[Part], scores: Scores[Part], *, unit: str, verbose: bool) -> list[float]:
    """The score of each model, whichever is judged first.

    Args:
        models: each by what is left of it.
        scores: judges them.
        unit: what the bar counts.
        verbose: show it.

    Example:
        >>> scored([3, 1], lambda models: enumerate(map(float, models)), unit="model", verbose=False)
        [3.0, 1.0]
    """
    bar = tqdm(scores(models), desc="scores", unit=unit, total=len(models), disable=not verbose)
    of = dict(bar)
    return [of[number] for number in range(len(models))]


@dataclass(frozen=True, eq=False)
class Step:
    """From the sizes of all parts to others.

    Attributes:
        rate: score for each MAC or byte between the two.
        places: where each part then is.
        cost: of the model then.
    """

    rate: float
    places: list[int]
    cost: int


def cheapest(
    scores: Sequence[Any], cost: Callable[[list[int]], int], limit: int, judged: Sequence[Any] | None = None
) -> list[int]:
    """Where each part is in the end: steps down of least score for their cost, then those up that the limit allows.

    Args:
        scores: for each part float[n], the part alone at each of its sizes, the largest first.
        cost: the place of each part, from 0 on -> of the model.
        limit: of the cost, not below that of all parts at their last places.
        judged: for each part the places that steps down may go to; all of them without.

    Example:
        >>> costs = [[100, 50, 20], [60, 30, 10]]
        >>> total = lambda places: sum(each[i] for each, i in zip(costs, places))
        >>> cheapest([[0.0, -1.0, -9.0], [0.0, -0.1, -0.2]], total, 110)
        [0, 2]
    """
    places, targets = [0] * len(scores), judged or [np.arange(len(each)) for each in scores]
    while cost(places) > limit:
        # Down to any target, not only the next: a small step may lose much and a larger one hardly more.
        places = min(_steps(scores, cost, places, targets), key=lambda step: step.rate).places
    while True:
        # The last step down may have saved more than was asked for.
        able = [step for step in _steps(scores, cost, places, None) if step.cost <= limit]
        if not able:
            return places
        places = max(able, key=lambda step: step.rate).places


def _steps(
    scores: Sequence[Any], cost: Callable[[list[int]], int], places: list[int], targets: Sequence[Any] | None
) -> Iterator[Step]:
    """Of one part each: down to every target, or up to the next place."""
    now = cost(places)
    for part, (each, place) in enumerate(zip(scores, places, strict=True)):
        # Up: the place before, of which the largest size has none.
        for other in range(place)[-1:] if targets is None else targets[part]:
            if targets is not None and other <= place:
                continue
            then = [*places[:part], int(other), *places[part + 1 :]]
            left = cost(then)
            # What saves nothing has no rate.
            if left != now:
                yield Step(float((each[place] - each[other]) / (now - left)), then, left)


def choose_by_score(
    channels: Channels,
    importances: np.ndarray,
    limit: int,
    unit: Unit,
    scores: Scores[np.ndarray],
    *,
    minimum: int,
    multiple: int,
    verbose: bool,
) -> np.ndarray:
    """The channels that stay.

    Args:
        channels: of the model.
        importances: float64[channels], the least important of a group lowest; NaN for those that stay.
        limit: of the budget.
        unit: "macs" or "weight_bytes".
        scores: judges models, each by bool[channels] that stay.
        minimum: every layer keeps at least this many channels.
        multiple: widths that change become a multiple of this.
        verbose: show a bar.

    Returns:
        bool[channels].

    Raises:
        ValueError: the budget cannot be met.
    """
    books, kept = ledger(channels, unit), np.ones(channels.count, bool)
    queues = [queue for queue in queues_of(channels, importances, minimum, multiple)[0] if len(queue.allowed) > 1]
    ladders = [_counted(books, queue) for queue in queues]
    # Before anything is judged, which takes minutes.
    least = _cost(books, unit, ladders, [len(ladder.gone) - 1 for ladder in ladders])
    if least > limit:
        raise ValueError(out_of_reach(channels, limit, least, unit, minimum, multiple))
    models = [kept, *(narrow for ladder in ladders for narrow in _narrow(ladder, kept))]
    whole, *narrowed = scored(models, scores, unit="width", verbose=verbose)
    left = iter(narrowed)
    ladders = [_judged(ladder, [whole, *(next(left) for _ in ladder.judged[1:])]) for ladder in ladders]
    values, judged = [ladder.scores for ladder in ladders], [ladder.judged for ladder in ladders]
    places = cheapest(values, lambda places: _cost(books, unit, ladders, places), limit, judged)
    for ladder, place in zip(ladders, places, strict=True):
        kept[ladder.order[: ladder.gone[place]]] = False
    return kept


def _counted(books: Ledger, queue: Queue) -> Ladder:
    """What a group's widths save, not judged."""
    gone = queue.width - np.array(queue.allowed)
    left = np.zeros((2, len(queue.order) + 1, len(books.sites)), np.int64)
    for number, channel in enumerate(queue.order):
        for site, reads, makes in books.of.get(channel, ()):
            left[:, number + 1, site] += reads, makes
    # `left` has what each channel takes along when it leaves, in the order of leaving; its running sum at `gone` is
    # what all of them took: [2, widths, sites].
    reads, makes = left.cumsum(axis=1)[:, gone]
    # Evenly over the widths that are allowed, both ends among them; few widths give the same one twice.
    judged = np.unique(np.linspace(0, len(gone) - 1, STEPS + 1).round().astype(int))
    return Ladder(queue.order, gone, reads, makes, judged, np.zeros(len(gone)))


def _narrow(ladder: Ladder, everything: np.ndarray) -> Iterator[np.ndarray]:
    """This group alone at each width that is judged but its own: bool[channels]."""
    for place in ladder.judged[1:]:
        kept = everything.copy()
        kept[ladder.order[: ladder.gone[place]]] = False
        yield kept


def _judged(ladder: Ladder, scores: Sequence[float]) -> Ladder:
    """With the scores of this group alone, of its own width first."""
    return replace(ladder, scores=np.interp(ladder.gone, ladder.gone[ladder.judged], scores))


def _cost(books: Ledger, unit: Unit, ladders: list[Ladder], places: list[int]) -> int:
    """What is left with each group at its place."""
    # Inputs and outputs are counted apart and multiplied in the end: two narrow neighbours save less than each alone.
    on = list(zip(ladders, places, strict=True))
    reads, makes = (sum(getattr(ladder, side)[i] for ladder, i in on) for side in ("reads", "makes"))
    return replace(books, reads=books.reads - reads, makes=books.makes - makes).total(unit)

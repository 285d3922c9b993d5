"""Which of its candidate ranks each layer gets for a budget.

    by score    the steps that lose least score for what they save, see `by_score`
    by energy   the highest s such that, with each layer at its cheapest candidate of score >= s, the budget holds; what
                is left goes to the layers with the lowest scores

The second is the greedy selection of AIMET's spatial SVD (user guide, "Greedy Compression Ratio Selection").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kquant.shrink.by_score import cheapest


@dataclass(frozen=True)
class Candidate:
    """A layer at one rank.

    Attributes:
        rank: channels between the halves; None for the layer as it is.
        cost: in the budget's unit.
        score: the higher, the better; of energy, infinite for the layer as it is.
    """

    rank: int | None
    cost: int
    score: float


def choose_ranks(ladders: Mapping[str, Sequence[Candidate]], limit: int, name: str = "model") -> dict[str, int]:
    """A rank for each layer that is split, so that the sum of costs is within a limit.

    Args:
        ladders: layer name -> candidates, cheapest first, the whole layer last.
        limit: of the sum of their costs.
        name: of the model, for the message.

    Returns:
        Layer name -> rank; layers that stay whole are left out.

    Raises:
        ValueError: the limit is below the sum of the cheapest.

    Example:
        >>> whole = Candidate(None, 100, float("inf"))
        >>> choose_ranks({"a": [Candidate(2, 20, 0.5), whole], "b": [Candidate(4, 40, 0.9), whole]}, 150)
        {'b': 4}
    """
    ladders = {key: _rising(ladder) for key, ladder in ladders.items()}
    _within_reach(ladders, limit, name)
    # Every score that a candidate has, from the best down: between two of them the choice is the same.
    scores = sorted({c.score for ladder in ladders.values() for c in ladder}, reverse=True)
    taken: dict[Any, int] = {}
    for lowest in scores:
        # There is always one: the whole layer, of infinite score.
        taken = {key: next(i for i, c in enumerate(ladder) if c.score >= lowest) for key, ladder in ladders.items()}
        if sum(ladders[key][i].cost for key, i in taken.items()) <= limit:
            break
    _spend(ladders, taken, limit)
    ranks = {key: ladders[key][i].rank for key, i in taken.items()}
    return {key: rank for key, rank in ranks.items() if rank is not None}


def cheapest_ranks(ladders: Mapping[str, Sequence[Candidate]], limit: int, name: str = "model") -> dict[str, int]:
    """A rank for each layer that is split, by the steps that lose least score for what they save.

    Args:
        ladders: layer name -> candidates, cheapest first, the whole layer last, whose score is the whole model's.
        limit: of the sum of their costs.
        name: of the model, for the message.

    Raises:
        ValueError: the limit is below the sum of the cheapest.

    Example:
        >>> whole = Candidate(None, 100, 0.9)
        >>> cheapest_ranks({"a": [Candidate(2, 20, 0.5), whole], "b": [Candidate(4, 60, 0.8), whole]}, 160)
        {'b': 4}
    """
    _within_reach(ladders, limit, name)
    # `cheapest` begins at the largest size.
    down = [list(reversed(ladder)) for ladder in ladders.values()]
    places = cheapest(
        [[c.score for c in ladder] for ladder in down],
        lambda places: sum(ladder[i].cost for ladder, i in zip(down, places, strict=True)),
        limit,
    )
    ranks = {key: ladder[i].rank for key, ladder, i in zip(ladders, down, places, strict=True)}
    return {key: rank for key, rank in ranks.items() if rank is not None}


def _within_reach(ladders: Mapping[str, Sequence[Candidate]], limit: int, name: str) -> None:
    least = sum(ladder[0].cost for ladder in ladders.values())
    if least > limit:
        raise ValueError(
            f"{name}: this budget cannot be reached by splitting layers: those that can be split may cost {limit:,} "
            f"together, and cost {least:,} at their lowest ranks. Ask for more, or use kquant.prune_channels too."
        )


def _rising(ladder: Sequence[Candidate]) -> list[Candidate]:
    """Without candidates that cost more than another and score no better."""
    kept: list[Candidate] = []
    for candidate in ladder:
        # Cheapest first, so one that scores no better than the last has no reason to be taken.
        if not kept or candidate.score > kept[-1].score:
            kept.append(candidate)
    return kept


def _spend(ladders: Mapping[str, Sequence[Candidate]], taken: dict[str, int], limit: int) -> None:
    """One step up for the layer that has the lowest score, while the limit allows it for any."""
    while True:
        left = limit - sum(ladders[key][i].cost for key, i in taken.items())
        able = [
            (ladders[key][i].score, key)
            for key, i in taken.items()
            if i + 1 < len(ladders[key]) and ladders[key][i + 1].cost - ladders[key][i].cost <= left
        ]
        if not able:
            return
        taken[min(able)[1]] += 1

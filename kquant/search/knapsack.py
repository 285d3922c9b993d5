"""Which of many things to give up, so that enough is saved and least is lost: an integer programme, solved exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

UNITS = 10_000


def least_loss(losses: Sequence[float], savings: Sequence[float], wanted: float) -> tuple[int, ...] | None:
    """The cheapest choice that saves enough.

        minimise sum_i loss_i x_i   under   sum_i saving_i x_i >= wanted,   x_i in {0, 1}

    By dynamic programming over what is saved so far: `best(u) = min(best(u), best(u - saving_i) + loss_i)`. Savings are
    whole numbers of `wanted / 10,000`, rounded down, so that the choice saves enough in any case; where all are whole
    numbers and `wanted` is at most 10,000, it is exact.

    Args:
        losses: of each thing, not below 0.
        savings: likewise.
        wanted: what is to be saved.

    Returns:
        Numbers of the chosen things, in order; None where all together save too little.

    Example:
        >>> least_loss([4.0, 3.0, 3.0], [10, 6, 6], 10), least_loss([1.0], [2], 3)
        ((0,), None)

    Source: Bellman, "Dynamic Programming", 1957, for the knapsack; here what it covers is what is saved.
    """
    if wanted <= 0:
        return ()
    unit = 1.0 if wanted <= UNITS else wanted / UNITS
    # best[u]: the least loss that saves u units or more, so there is no need to look beyond what is wanted
    most = int(np.ceil(wanted / unit))
    best = np.full(most + 1, np.inf)
    best[0] = 0.0
    # whether a thing lowered best[u], for the way back
    taken = np.zeros((len(losses), most + 1), bool)
    for i, (loss, saving) in enumerate(zip(losses, savings, strict=True)):
        # what must have been saved without this thing; nothing, where it saves more than is asked for
        before = np.maximum(np.arange(most + 1) - int(saving / unit), 0)
        other = best[before] + loss
        taken[i] = other < best
        best = np.where(taken[i], other, best)
    if not np.isfinite(best[most]):
        return None
    chosen, left = [], most
    # backwards: `taken[i]` knows of the things up to i alone
    for i in range(len(losses) - 1, -1, -1):
        if taken[i, left]:
            chosen.append(i)
            left = max(left - int(savings[i] / unit), 0)
    return tuple(reversed(chosen))

"""Whether one model is better than another on the same samples, or only luckier.

    outputs, metric -> which samples are right (a bit each) -> two of these -> McNemar's test

A metric that counts moves in steps of one over the number of samples. Steps that another draw of the samples would turn
round say nothing, and nothing may be recommended for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

CHANCE = 0.05  # of 100 draws of the samples, those in which two models that are as good differ so much
WHOLE = 1e-3  # of a sample: how far a share of samples may lie from a whole number of them, by float32's rounding


def chance(spoiled: int, mended: int) -> float:
    """How often two models that are as good differ so much or more on the same samples: McNemar's test, exact.

    Samples that both answer alike say nothing. Of the others either model has half, as a coin falls:

        p = min(1, 2 sum_{k <= min(spoiled, mended)} C(n, k) / 2^n),    n = spoiled + mended

    Source: McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 12, 1947; the binomial distribution in place of its normal approximation.

    Args:
        spoiled: samples that the first model alone answers right.
        mended: the second alone.

    Example:
        >>> round(chance(9, 1), 4), chance(3, 3)
        (0.0215, 1.0)
    """
    count, term, total = spoiled + mended, 1, 0
    for k in range(min(spoiled, mended) + 1):
        total += term
        term = term * (count - k) // (k + 1)
    return min(1.0, 2 * total / (1 << count))


def right_of(metric: Callable[[Any], float] | None, outputs: Any) -> str:
    """Which samples a model answers right, a bit each, as hexadecimal text; empty where the metric does not tell.

    Args:
        metric: one with an attribute `right`, as `metrics.top1` makes them, tells.
        outputs: of the model, for all samples.

    Example:
        >>> from kquant.analysis.metrics import top1
        >>> right_of(top1(np.array([1, 0])), np.array([[0.1, 0.9], [0.2, 0.8]])), right_of(np.mean, np.ones(2))
        ('80', '')
    """
    right = getattr(metric, "right", None)
    return "" if right is None else np.packbits(right(outputs)).tobytes().hex()


def by_chance(more: float, samples: int, right: str = "", right_before: str = "") -> float:
    """How often a value that is higher by `more` comes of two models that are as good; 0 where nobody can say.

    Where only the difference is known, as many samples as it is have changed at least, all of them to the better: that
    is the least that chance can be. A difference that is no whole number of samples is of a metric that does not count.

    Args:
        more: of the metric.
        samples: it was measured on.
        right: see `right_of`; of the model with the higher value.
        right_before: of the other.

    Example:
        >>> by_chance(2 / 256, 256), by_chance(8 / 256, 256), by_chance(0.123, 256)
        (0.5, 0.0078125, 0.0)
        >>> by_chance(8 / 256, 256, "ffff00", "0000ff")
        0.15158963203430176
    """
    if right and right_before:
        ours, theirs = (np.unpackbits(np.frombuffer(bytes.fromhex(bits), np.uint8)) for bits in (right, right_before))
        return chance(int(np.sum(theirs > ours)), int(np.sum(ours > theirs)))
    changed = more * samples
    counts = 0.0 <= changed <= samples and abs(changed - round(changed)) <= WHOLE
    return chance(0, round(changed)) if counts else 0.0


def is_sure(more: float, samples: int, right: str = "", right_before: str = "") -> bool:
    """True where the value is higher, and by more than chance makes; see `by_chance`.

    Example:
        >>> is_sure(2 / 256, 256), is_sure(8 / 256, 256), is_sure(-8 / 256, 256)
        (False, True, False)
    """
    return more > 0.0 and by_chance(more, samples, right, right_before) < CHANCE

"""What calibration sees of a tensor (`Statistics`), and how a range is chosen from it: an observer is one function."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

BINS = 2048
MOST_BATCHES = 8192
SMALLEST_EXPONENT = -20  # a histogram of zeros reaches 2^-20


@dataclass(frozen=True)
class Statistics:
    """What calibration saw of one tensor; statistics of several shards `merge`.

    Attributes:
        lows, highs: float32[batches], smallest and largest value of each batch.
        counts: int64[bins] over -reach to reach, empty where no observer asked for it.
        reach: a power of two above every |value|, so that the bins of any two histograms nest.
    """

    lows: np.ndarray
    highs: np.ndarray
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    reach: float = 0.0

    def merge(self, other: Statistics) -> Statistics:
        """Of two shards together: histograms are brought to the wider reach by powers of two."""
        lows, highs = np.concatenate([self.lows, other.lows]), np.concatenate([self.highs, other.highs])
        if not self.counts.size or not other.counts.size:
            filled = self if self.counts.size else other
            return Statistics(lows, highs, filled.counts, filled.reach)
        wide, narrow = (self, other) if self.reach >= other.reach else (other, self)
        counts, reach = narrow.counts, narrow.reach
        while reach < wide.reach:
            counts, reach = _widened(counts), reach * 2.0
        return Statistics(lows, highs, wide.counts + counts, wide.reach)


def _widened(counts: np.ndarray) -> np.ndarray:
    """The same histogram over twice the reach: pairs of bins join in the middle half."""
    quarter = np.zeros(counts.size // 4, np.int64)
    return np.concatenate([quarter, counts.reshape(-1, 2).sum(axis=1), quarter])


def histogram(values: np.ndarray) -> Statistics:
    """Counts of one batch, without its extremes.

    Args:
        values: float32[...].

    Example:
        >>> histogram(np.float32([0.0, 0.7, -0.7])).reach
        1.0
    """
    largest = float(np.abs(values).max(initial=0.0))
    exponent = max(math.frexp(largest)[1] if largest else SMALLEST_EXPONENT, SMALLEST_EXPONENT)  # largest < 2^exponent
    reach = math.ldexp(1.0, exponent)
    counts, _ = np.histogram(np.asarray(values, np.float64), bins=BINS, range=(-reach, reach))
    none = np.zeros(0, np.float32)
    return Statistics(none, none, counts.astype(np.int64), reach)


def thinned(extents: list[np.ndarray]) -> list[np.ndarray]:
    """Extremes of many batches in bounded memory: past `MOST_BATCHES`, the older half becomes pairs of batches.

    What is thinned lies thousands of batches back, where a moving average has forgotten it.

    Args:
        extents: float32[tensors, 2] for each batch, smallest and largest value.
    """
    if len(extents) < MOST_BATCHES:
        return extents
    older = np.stack(extents[: MOST_BATCHES // 2])
    lows, highs = older[..., 0], older[..., 1]
    pairs = np.stack([np.minimum(lows[::2], lows[1::2]), np.maximum(highs[::2], highs[1::2])], axis=-1)
    return [*pairs, *extents[MOST_BATCHES // 2 :]]


Observer = Callable[[Statistics], tuple[float, float]]


def minmax(statistics: Statistics) -> tuple[float, float]:
    """The smallest and the largest value of all.

    Example:
        >>> minmax(Statistics(np.float32([-1, -2]), np.float32([3, 1])))
        (-2.0, 3.0)
    """
    return float(statistics.lows.min()), float(statistics.highs.max())


def moving_average(statistics: Statistics, momentum: float = 0.9) -> tuple[float, float]:
    """Exponential moving average of the batches' extremes, divided by `1 - momentum^n`.

    Source: the zero debias of Adam, Kingma and Ba, arXiv:1412.6980, section 3.

    Example:
        >>> moving_average(Statistics(np.float32([-1, -1]), np.float32([2, 2])))
        (-1.0, 2.0)
    """
    n = statistics.lows.size
    weights = momentum ** np.arange(n - 1, -1, -1, dtype=np.float64)
    weights /= weights.sum()  # equals (1 - momentum) * momentum^k / (1 - momentum^n)
    return float(weights @ statistics.lows.astype(np.float64)), float(weights @ statistics.highs.astype(np.float64))


def percentile(statistics: Statistics, percent: float = 99.99) -> tuple[float, float]:
    """The range that holds `percent` of the values, half of the rest beyond each end; to a bin of the histogram.

    Example:
        >>> values = np.linspace(0, 1, 10001, dtype="float32")
        >>> s = histogram(values)
        >>> percentile(Statistics(values[:1], values[-1:], s.counts, s.reach), 90.0)
        (0.048828125, 0.951171875)
    """
    edges = np.linspace(-statistics.reach, statistics.reach, statistics.counts.size + 1)
    below = np.cumsum(statistics.counts)
    total = int(below[-1])
    left_out = int(total * (100.0 - percent) / 200.0)  # values beyond each end
    low = edges[int(np.searchsorted(below, left_out, side="right"))]
    high = edges[int(np.searchsorted(below, total - left_out)) + 1]
    return max(float(low), float(statistics.lows.min())), min(float(high), float(statistics.highs.max()))


OBSERVERS: dict[str, Observer] = {"minmax": minmax, "moving-average": moving_average, "percentile": percentile}
NEED_HISTOGRAM = frozenset({"percentile"})


def find(name: str) -> Observer:
    """The observer of that name.

    Raises:
        ValueError: unknown; names the nearest.
    """
    if name not in OBSERVERS:
        near = difflib.get_close_matches(name, OBSERVERS, 1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"observer '{name}' does not exist.{hint} There are: {', '.join(OBSERVERS)}.")
    return OBSERVERS[name]

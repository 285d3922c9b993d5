"""What calibration saw of one tensor. Statistics of shards and of devices merge exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

BINS = 2048
MOST_COUNT = 1 << 53  # where the sums of histograms stop being exact
MOST_BATCHES = 8192
SMALLEST_EXPONENT = -20  # a histogram of zeros reaches 2^-20
MOST_SAMPLES = 1024  # rows kept where an observer looks at whole samples


@dataclass(frozen=True)
class Statistics:
    """What calibration saw of one tensor; statistics of several shards `merge`.

    Attributes:
        lows, highs: float32[batches], smallest and largest value of each batch.
        counts: int64[bins] over -reach to reach, empty where no observer asked for it.
        reach: a power of two above every |value|, so that the bins of any two histograms nest.
        samples: float32[n, channels], whole rows of the tensor, empty where no observer asked for them.
        nearest: how near the first or last real step of a sample came to what marks padding: the largest distance among
            its features, of the step where that is least. Infinite where nothing marks any.
    """

    lows: np.ndarray
    highs: np.ndarray
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    reach: float = 0.0
    samples: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    nearest: float = math.inf

    def merge(self, other: Statistics) -> Statistics:
        """Of two shards together: histograms are brought to the wider reach by powers of two."""
        lows, highs = np.concatenate([self.lows, other.lows]), np.concatenate([self.highs, other.highs])
        rows = [s.samples for s in (self, other) if s.samples.size]
        samples = np.concatenate(rows)[:MOST_SAMPLES] if rows else self.samples
        nearest = min(self.nearest, other.nearest)
        if not self.counts.size or not other.counts.size:
            filled = self if self.counts.size else other
            return Statistics(lows, highs, filled.counts, filled.reach, samples, nearest)
        # only ever to the wider one: a bin that is split would have to guess where its values lie
        wide, narrow = (self, other) if self.reach >= other.reach else (other, self)
        counts, reach = narrow.counts, narrow.reach
        while reach < wide.reach:
            counts, reach = _widened(counts), reach * 2.0
        return Statistics(lows, highs, wide.counts + counts, wide.reach, samples, nearest)

    def checked(self, batches: int) -> Statistics:
        """These statistics, where they are ones that calibration can have seen; files may tell anything.

        Args:
            batches: that were seen.

        Raises:
            ValueError: a part of another shape or type, or numbers that no tensor has.
        """
        parts = (self.lows, self.highs, self.samples)
        if [(a.dtype.kind, a.ndim) for a in parts] != [("f", 1), ("f", 1), ("f", 2)]:
            raise ValueError("extremes and samples are no rows of floats")
        if self.counts.dtype.kind != "i" or self.counts.ndim != 1 or self.counts.size not in (0, BINS):
            raise ValueError(f"a histogram of other than {BINS} counts")
        if not self.lows.size == self.highs.size == batches > 0 or np.any(self.lows > self.highs):
            raise ValueError("extremes that are not those of the batches")
        if not all(np.all(np.isfinite(a)) for a in parts) or len(self.samples) > MOST_SAMPLES:
            raise ValueError("extremes or samples that are not finite")
        if self.counts.size and not (np.all(self.counts >= 0) and 0 < self.counts.sum() < MOST_COUNT):
            raise ValueError("a histogram with counts below 0, or without any")
        # frexp gives m in [0.5, 1): exactly 0.5 for powers of two, as 8 = 0.5 * 2^4
        if self.counts.size and not (0 < self.reach < math.inf and math.frexp(self.reach)[0] == 0.5):
            raise ValueError("a histogram whose reach is no power of two")
        if not self.nearest >= 0.0:
            raise ValueError("a distance below 0")
        return self


def _widened(counts: np.ndarray) -> np.ndarray:
    """The same histogram over twice the reach: pairs of bins join in the middle half."""
    quarter = np.zeros(counts.size // 4, np.int64)
    return np.concatenate([quarter, counts.reshape(-1, 2).sum(axis=1), quarter])


def histogram(values: np.ndarray, each: int = 1, largest: float = 0.0) -> Statistics:
    """Counts of one batch, without its extremes.

    Args:
        values: float32[...].
        each: how many values one of these stands for; batches count alike, however thinly they are looked at.
        largest: magnitude in the batch, where `values` are some of it only.

    Example:
        >>> histogram(np.float32([0.0, 0.7, -0.7])).reach
        1.0
    """
    flat = np.asarray(values, np.float64).reshape(-1)
    largest = max(largest, float(flat.max(initial=0.0)), -float(flat.min(initial=0.0)))
    # equal reaches at powers of two: bins of two histograms nest, so that shards add up exactly
    exponent = max(math.frexp(largest)[1] if largest else SMALLEST_EXPONENT, SMALLEST_EXPONENT)  # largest < 2^exponent
    reach = math.ldexp(1.0, exponent)
    bins = np.floor(flat * (BINS / 2 / reach)).astype(np.int64) + BINS // 2  # the factor is a power of two
    counts = np.bincount(np.minimum(bins, BINS - 1), minlength=BINS).astype(np.int64) * each
    none = np.zeros(0, np.float32)
    return Statistics(none, none, counts, reach)


def thinned(extents: list[np.ndarray], sizes: list[int]) -> tuple[list[np.ndarray], list[int]]:
    """Extremes of many batches in bounded memory: past `MOST_BATCHES`, the older half becomes pairs of batches.

    What is thinned lies thousands of batches back, where a moving average has forgotten it.

    Args:
        extents: float32[tensors, 2] for each batch, smallest and largest value.
        sizes: samples of each batch.
    """
    if len(extents) < MOST_BATCHES:
        return extents, sizes
    older = np.stack(extents[: MOST_BATCHES // 2])
    lows, highs = older[..., 0], older[..., 1]
    pairs = np.stack([np.minimum(lows[::2], lows[1::2]), np.maximum(highs[::2], highs[1::2])], axis=-1)
    both = np.reshape(sizes[: MOST_BATCHES // 2], (-1, 2)).sum(axis=1).tolist()
    return [*pairs, *extents[MOST_BATCHES // 2 :]], [*both, *sizes[MOST_BATCHES // 2 :]]

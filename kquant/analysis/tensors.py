"""What becomes of float values on the grid of their encoding: clipping, rounding, and how much of the grid is used."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import tensorflow as tf

from kquant.analysis.results import TensorReport
from kquant.analysis.sqnr import Noise, decibel
from kquant.calibration import observers
from kquant.calibration.tensor_statistics import BINS, Statistics, histogram
from kquant.layers.nodes import FakeQuant

COUNTED = 65521  # values of a batch that the histogram counts; a prime, so that they come from all channels
TAIL = 1e-3  # of the values beyond each end of what counts as used
SHOWN_BINS = 64


@dataclass
class Seen:
    """What one encoding met so far.

    Attributes:
        values, clipped: how many.
        signal, rounding, clipping: sums of squares of the values and of their errors.
        statistics: extremes of each batch and histogram.
    """

    values: int = 0
    clipped: int = 0
    signal: float = 0.0
    rounding: float = 0.0
    clipping: float = 0.0
    statistics: list[Statistics] = field(default_factory=list)

    def add(self, y: tf.Tensor, scale: tf.Tensor, zero_point: tf.Tensor, low: int, high: int) -> None:
        """One batch of float values, float[n], on a grid."""
        y = tf.cast(y, tf.float32)
        codes = tf.round(y / scale) + zero_point
        inside = tf.clip_by_value(codes, float(low), float(high))
        beyond = tf.not_equal(codes, inside)
        # in float64: squares of a million small errors add up
        error = tf.square(tf.cast((inside - zero_point) * scale, tf.float64) - tf.cast(y, tf.float64))
        clipping = float(tf.reduce_sum(tf.where(beyond, error, tf.zeros_like(error))))
        self.values += int(tf.size(y))
        self.clipped += int(tf.math.count_nonzero(beyond))
        self.signal += float(tf.reduce_sum(tf.square(tf.cast(y, tf.float64))))
        self.clipping += clipping
        self.rounding += float(tf.reduce_sum(error)) - clipping
        values = y.numpy()
        if values.size > COUNTED:
            values = values[np.linspace(0, values.size - 1, COUNTED).astype(int)]
        counted = histogram(values)
        extremes = [np.array([float(f(y))], np.float32) for f in (tf.reduce_min, tf.reduce_max)]
        self.statistics.append(replace(counted, lows=extremes[0], highs=extremes[1]))


def grid_of(layer: FakeQuant) -> tuple[tf.Tensor, tf.Tensor] | None:
    """Scale and zero point of an encoding that follows no other; None where it has seen no data."""
    scale, zero_point, seen = layer.grid()
    return (scale, zero_point) if bool(seen) else None


def tensor_report(layer: FakeQuant, source: FakeQuant, unit: str, made_by: str, seen: Seen) -> TensorReport:
    """The figures of one encoding.

    Args:
        layer: the encoding.
        source: the one whose range it takes; itself, but where it follows.
        unit: name of the layer that it belongs to.
        made_by: name of the layer whose output it holds.
        seen: the values that met it.
    """
    scale, zero_point = (float(v) for v in source.grid()[:2])
    low, high = (layer.spec.low - zero_point) * scale, (layer.spec.high - zero_point) * scale
    all_seen = merged(seen.statistics)
    # where half of the data has narrower ranges than all, more data would widen them further
    first = merged(seen.statistics[: max(1, len(seen.statistics) // 2)])
    noise = Noise(seen.signal, seen.rounding + seen.clipping)
    best_low, best_high = observers.mse(all_seen, layer.spec)
    # the same formula for both grids, from the histogram: what another range has to gain, not what was measured
    best, now = (
        float(observers.squared_error(all_seen, layer.spec, np.array([a]), np.array([b]), 1.0)[0])
        for a, b in ((best_low, best_high), (low, high))
    )
    counts, edges = _shown(all_seen)
    sites = zip(source.low.numpy(), source.high.numpy(), strict=True) if source.has_range else ()
    return TensorReport(
        name=layer.name,
        unit=unit,
        layer=made_by,
        bits=layer.spec.bits,
        low=low,
        high=high,
        seen_low=float(all_seen.lows.min()),
        seen_high=float(all_seen.highs.max()),
        clipped=seen.clipped / seen.values,
        used=_used(all_seen, low, high),
        rounding=seen.rounding / seen.values,
        clipping=seen.clipping / seen.values,
        sqnr_db=noise.db,
        moved=_width(all_seen) / max(_width(first), 1e-30),
        best_low=best_low,
        best_high=best_high,
        gain_db=0.0 if now <= best or best <= 0.0 else decibel(best / now),
        sites=tuple((float(a), float(b)) for a, b in sites),
        counts=counts,
        edges=edges,
        is_fixed=source.fixed is not None,
    )


def merged(statistics: list[Statistics]) -> Statistics:
    """Of all batches."""
    together = statistics[0]
    for other in statistics[1:]:
        together = together.merge(other)
    return together


def _held(s: Statistics) -> tuple[float, float]:
    """The range of 0 and all values but the tails."""
    edges = np.linspace(-s.reach, s.reach, s.counts.size + 1)
    below = np.cumsum(s.counts)
    beyond = TAIL * below[-1]
    first = max(edges[int(np.searchsorted(below, beyond, side="right"))], float(s.lows.min()))
    last = min(edges[int(np.searchsorted(below, below[-1] - beyond)) + 1], float(s.highs.max()))
    return min(first, 0.0), max(last, 0.0)


def _width(s: Statistics) -> float:
    first, last = _held(s)
    return last - first


def _used(s: Statistics, low: float, high: float) -> float:
    """Share of the grid that holds them."""
    first, last = _held(s)
    return max(min(last, high) - max(first, low), 0.0) / (high - low)


def _shown(s: Statistics) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The histogram over the seen range only, in few bins."""
    edges = np.linspace(-s.reach, s.reach, BINS + 1)
    used = np.flatnonzero(s.counts)
    a, b = edges[used[0]], edges[used[-1] + 1]
    centers = (edges[1:] + edges[:-1]) / 2
    # counts go to where the middle of their bin lies: few bins over the seen range nest in none of the 2048
    counts, shown = np.histogram(centers, bins=SHOWN_BINS, range=(float(a), float(b)), weights=s.counts)
    return tuple(int(n) for n in counts), tuple(float(e) for e in shown)

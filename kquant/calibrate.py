"""Representative data -> ranges.

The model runs in float; each tensor that has a range hands over its smallest and largest value of every batch, and a
histogram where an observer asks for one. An observer is one function from these `Statistics` to a range; statistics of
several shards `merge`.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tqdm.auto import tqdm

from kquant.core.nodes import FakeQuant, observing
from kquant.data import batches_of

BINS = 2048
FEW_SAMPLES = 32
HALVES_DIFFER = 2.0


@dataclass(frozen=True)
class Statistics:
    """What calibration saw of one tensor.

    Attributes:
        lows, highs: float32[batches], smallest and largest value of each batch.
        counts: int64[bins] over `edges`, empty where no observer asked for it.
        reach: the histogram runs from -reach to reach.
    """

    lows: np.ndarray
    highs: np.ndarray
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    reach: float = 0.0

    def merge(self, other: Statistics) -> Statistics:
        """Of two shards together: histograms are brought to the wider reach by powers of two."""
        lows, highs = np.concatenate([self.lows, other.lows]), np.concatenate([self.highs, other.highs])
        if not self.counts.size or not other.counts.size:
            wider = self if self.counts.size else other
            return Statistics(lows, highs, wider.counts, wider.reach)
        wide, narrow = (self, other) if self.reach >= other.reach else (other, self)
        counts, reach = narrow.counts, narrow.reach
        while reach < wide.reach:
            counts, reach = _widened(counts), reach * 2.0
        return Statistics(lows, highs, wide.counts + counts, wide.reach)


def _widened(counts: np.ndarray) -> np.ndarray:
    """The same histogram over twice the reach: pairs of bins join in the middle half."""
    quarter = counts.size // 4
    return np.concatenate([np.zeros(quarter, np.int64), counts.reshape(-1, 2).sum(axis=1), np.zeros(quarter, np.int64)])


Observer = Callable[[Statistics], tuple[float, float]]


def minmax(statistics: Statistics) -> tuple[float, float]:
    """The smallest and the largest value of all.

    Example:
        >>> minmax(Statistics(np.float32([-1, -2]), np.float32([3, 1])))
        (-2.0, 3.0)
    """
    return float(statistics.lows.min()), float(statistics.highs.max())


def moving_average(statistics: Statistics, momentum: float = 0.9) -> tuple[float, float]:
    """Exponential moving average of the batches' extremes, divided by `1 - momentum^n` (zero debias, Adam's).

    Example:
        >>> moving_average(Statistics(np.float32([-1, -1]), np.float32([2, 2])))
        (-1.0, 2.0)
    """
    n = statistics.lows.size
    weights = momentum ** np.arange(n - 1, -1, -1, dtype=np.float64)
    weights /= weights.sum()  # equals (1 - momentum) * momentum^k / (1 - momentum^n)
    return float(weights @ statistics.lows), float(weights @ statistics.highs)


def percentile(statistics: Statistics, percent: float = 99.99) -> tuple[float, float]:
    """The range that holds `percent` of the values, half of the rest beyond each end; from the histogram."""
    edges = np.linspace(-statistics.reach, statistics.reach, statistics.counts.size + 1)
    share = np.cumsum(statistics.counts) / max(1, statistics.counts.sum())
    tail = (1.0 - percent / 100.0) / 2.0
    low = edges[int(np.searchsorted(share, tail, side="right"))]
    high = edges[min(int(np.searchsorted(share, 1.0 - tail)) + 1, edges.size - 1)]
    return max(float(low), float(statistics.lows.min())), min(float(high), float(statistics.highs.max()))


OBSERVERS: dict[str, Observer] = {"minmax": minmax, "moving-average": moving_average, "percentile": percentile}
NEED_HISTOGRAM = frozenset({"percentile"})


def calibrate(
    qmodel: keras.Model, data: Any, *, batches: int | None = None, batch_size: int = 32, verbose: bool = True
) -> keras.Model:
    """Set the ranges of a quantized model from representative data.

    Args:
        qmodel: what `kquant.quantize` returned; its ranges are set in place.
        data: numpy array, list or dict of arrays (several inputs), `tf.data.Dataset`, `keras.utils.PyDataset` or a
            function that returns a generator; labels beside the inputs are ignored.
        batches: use this many batches only.
        batch_size: for arrays.
        verbose: show a progress bar.

    Returns:
        `qmodel`.

    Raises:
        ValueError: not a quantized model, no data, wrong shape or dtype, NaN or Inf.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> q = kquant.calibrate(kquant.quantize(model), np.ones((64, 4), "float32"), verbose=False)
    """
    nodes = [layer for layer in qmodel.layers if isinstance(layer, FakeQuant) and layer.has_range]
    if not nodes:
        raise ValueError(f"{qmodel.name}: nothing to calibrate; pass the model that kquant.quantize returned.")
    for node in nodes:
        observer(node.observer)
    found, samples = _observe(qmodel, nodes, batches_of(qmodel, data, batch_size), batches, verbose)
    if samples == 0:
        raise ValueError("calibrate: the data are empty; give at least one sample.")
    if samples < FEW_SAMPLES:
        warnings.warn(f"calibrate: {samples} samples are few; ranges want 100 or more.", stacklevel=2)
    _warn(found)
    for (name, site), statistics in found.items():
        layer = qmodel.get_layer(name)
        low, high = observer(layer.observer)(statistics)
        layer.set_range(site, low, high, float(statistics.lows.size))
    return qmodel


def observer(name: str) -> Observer:
    """The observer of that name.

    Raises:
        ValueError: unknown; names the nearest.
    """
    if name not in OBSERVERS:
        near = difflib.get_close_matches(name, OBSERVERS, 1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"observer '{name}' does not exist.{hint} There are: {', '.join(OBSERVERS)}.")
    return OBSERVERS[name]


def _observe(
    qmodel: keras.Model, nodes: Iterable[FakeQuant], data: Iterator[Any], limit: int | None, verbose: bool
) -> tuple[dict[tuple[str, int], Statistics], int]:
    """Run the data through; statistics of each (layer, site), and the number of samples."""
    wants = {node.name for node in nodes if node.observer in NEED_HISTOGRAM}
    keys: list[tuple[str, int]] = []

    @tf.function(reduce_retracing=True)
    def extremes(x: Any) -> tuple[tf.Tensor, list[tf.Tensor]]:
        rows, tensors, seen = [], [], []

        def collect(layer: FakeQuant, site: int, y: tf.Tensor) -> None:
            if layer.has_range:
                y = tf.cast(y, tf.float32)
                seen.append((layer.name, site))
                rows.append(tf.stack([tf.reduce_min(y), tf.reduce_max(y)]))
                if layer.name in wants:
                    tensors.append(y)

        with observing(collect):
            qmodel(x, training=False)
        keys[:] = seen
        return tf.stack(rows), tensors

    found: dict[tuple[str, int], Statistics] = {}
    extents: list[np.ndarray] = []
    samples = 0
    for number, x in enumerate(tqdm(data, desc="calibrate", unit="batch", disable=not verbose, total=limit)):
        if limit is not None and number >= limit:
            break
        rows, tensors = extremes(x)
        extents.append(rows.numpy())
        if not np.all(np.isfinite(extents[-1])):
            _refuse_infinite(keys, extents[-1])
        samples += int(keras.tree.flatten(x)[0].shape[0])
        for key, values in zip([k for k in keys if k[0] in wants], tensors, strict=True):
            new = _histogram(values.numpy())
            found[key] = found[key].merge(new) if key in found else new
    if not extents:
        return {}, 0
    stacked = np.stack(extents)
    for i, key in enumerate(keys):
        histogram = found.get(key, Statistics(stacked[:0, i, 0], stacked[:0, i, 1]))
        found[key] = Statistics(stacked[:, i, 0], stacked[:, i, 1], histogram.counts, histogram.reach)
    return found, samples


def _histogram(values: np.ndarray) -> Statistics:
    """Counts over a reach that is a power of two, so that histograms of any two batches merge."""
    largest = float(np.abs(values).max(initial=0.0))
    reach = 2.0 ** np.ceil(np.log2(largest)) if largest > 0 else 2.0**-20
    counts, _ = np.histogram(values, bins=BINS, range=(-reach, reach))
    return Statistics(np.zeros(0, np.float32), np.zeros(0, np.float32), counts.astype(np.int64), float(reach))


def _refuse_infinite(keys: list[tuple[str, int]], extents: np.ndarray) -> None:
    first = next(key for key, row in zip(keys, extents, strict=True) if not np.all(np.isfinite(row)))
    raise ValueError(
        f"calibrate: NaN or Inf first appears at '{first[0]}', although the input is finite. Check the weights of the "
        "layer before it and whether the data are scaled as the model was trained."
    )


def _warn(found: dict[tuple[str, int], Statistics]) -> None:
    """Name tensors whose ranges deserve a second look."""
    constant = [key[0] for key, s in found.items() if s.lows.min() == s.highs.max()]
    if constant:
        warnings.warn(
            f"calibrate: these tensors hold a single value on all data: {', '.join(constant[:5])}. Use data that vary.",
            stacklevel=3,
        )
    moved = []
    for key, s in found.items():
        half = s.lows.size // 2
        if half and key[0] not in constant:
            a = s.highs[:half].max() - s.lows[:half].min()
            b = s.highs[half:].max() - s.lows[half:].min()
            if max(a, b) > HALVES_DIFFER * max(min(a, b), 1e-12):
                moved.append(key[0])
    if moved:
        warnings.warn(
            f"calibrate: the range differs more than {HALVES_DIFFER:g} times between the first and the second half of "
            f"the data at: {', '.join(moved[:5])}. Shuffle the data, or use more.",
            stacklevel=3,
        )

"""Representative data -> ranges.

The model runs in float; each tensor that has a range hands over its smallest and largest value of every batch, and a
histogram where its observer asks for one. Ranges are stored when all data have been seen, so an interrupted calibration
leaves the old ones.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tqdm.auto import tqdm

from kquant import observers
from kquant.core.nodes import FakeQuant, observing
from kquant.data import batches_of, refuse_endless
from kquant.observers import Statistics, histogram

FEW_SAMPLES = 32
HALVES_DIFFER = 2.0


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
    if batches is not None and batches < 1:
        raise ValueError(f"calibrate: batches must be 1 or more. Received: {batches}.")
    if batches is None:
        refuse_endless(data)
    for node in nodes:
        observers.find(node.observer)
    found, samples = _observe(qmodel, nodes, batches_of(qmodel, data, batch_size), batches, verbose)
    if samples == 0:
        raise ValueError(
            "calibrate: the data are empty; give at least one sample. A function must return a new generator on each "
            "call."
        )
    if samples < FEW_SAMPLES:
        warnings.warn(f"calibrate: {samples} samples are few; ranges want 100 or more.", stacklevel=2)
    _warn(found)
    for (name, site), statistics in found.items():
        layer = qmodel.get_layer(name)
        low, high = observers.find(layer.observer)(statistics)
        layer.set_range(site, low, high, float(statistics.lows.size))
    return qmodel


def _observe(
    qmodel: keras.Model, nodes: Iterable[FakeQuant], data: Iterator[Any], limit: int | None, verbose: bool
) -> tuple[dict[tuple[str, int], Statistics], int]:
    """Run the data through; statistics of each (layer, site), and the number of samples."""
    wants = {node.name for node in nodes if node.observer in observers.NEED_HISTOGRAM}
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
    # islice asks for no batch beyond the limit, which may be slow to make
    for x in tqdm(itertools.islice(data, limit), desc="calibrate", unit="batch", disable=not verbose, total=limit):
        rows, tensors = extremes(x)
        extents.append(np.array(rows))  # a copy: `rows.numpy()` would keep the whole tensor alive
        extents = observers.thinned(extents)
        if not np.all(np.isfinite(extents[-1])):
            _refuse_infinite(keys, extents[-1])
        samples += int(keras.tree.flatten(x)[0].shape[0])
        for key, values in zip([k for k in keys if k[0] in wants], tensors, strict=True):
            new = histogram(values.numpy())
            found[key] = found[key].merge(new) if key in found else new
    if not extents:
        return {}, 0
    stacked = np.stack(extents)
    for i, key in enumerate(keys):
        binned = found.get(key, Statistics(stacked[:0, i, 0], stacked[:0, i, 1]))
        found[key] = Statistics(stacked[:, i, 0], stacked[:, i, 1], binned.counts, binned.reach)
    return found, samples


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

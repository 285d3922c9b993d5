"""`kquant.on_ray.observe`: what `kquant.observe` sees, shard by shard on a cluster, to the same bits."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import keras

from kquant.calibration.data import batch_count, batches_of, gives_batches
from kquant.calibration.observations import Observations, Reading, ends_of, observed, reading_of
from kquant.core.checks import check_count
from kquant.core.progress import tqdm
from kquant.on_ray.shipping import finished, packed, sent, started, unpacked


def observe(
    qmodel: keras.Model,
    data: Any,
    *,
    shards: int,
    limit: int | None = None,
    batch_size: int | None = None,
    verbose: bool = True,
) -> Observations:
    """Run data through the float function of a quantized model on a cluster of Ray, for `kquant.calibrate`.

    Reads: `qmodel` stays as it was.

    Args:
        qmodel: what `kquant.quantize` returned.
        data: arrays, of which each task is sent its part; or a `keras.utils.PyDataset`, which is sent whole and read in
            parts, so that samples may lie where the workers are.
        shards: number of tasks, at most the number of batches; more than processes, so that all have something to do.
        limit: see `kquant.observe`.
        batch_size: see `kquant.observe`.
        verbose: show a progress bar.

    Returns:
        What `kquant.observe` returns for all the data, to the bit, however many shards there are and whoever did them.

    Raises:
        ValueError: see `kquant.observe`; Ray is not installed; or data that cannot be sent in parts.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> q, x = kquant.quantize(model), np.ones((96, 4), "float32")
        >>> kquant.on_ray.observe(q, x, shards=0)
        Traceback (most recent call last):
        ValueError: on_ray.observe: shards must be 1 or more. Received: 0.
    """
    check_count("on_ray.observe", "shards", shards)
    if gives_batches(data) and not isinstance(data, keras.utils.PyDataset):
        raise ValueError(
            f"on_ray.observe: {type(data).__name__} cannot be sent to other processes in parts; give arrays or a "
            "keras.utils.PyDataset. Or let each process call kquant.observe(q, data, shard=(i, n)), and add up."
        )
    plan = reading_of(qmodel, data, limit, batch_size)
    total = batch_count(qmodel, data, plan.size, limit)
    ends = [ends_of((number, shards), total) for number in range(shards)]
    ray = started()
    model, whole = ray.put(packed(qmodel)), None
    if gives_batches(data):
        [whole] = sent(ray, "on_ray.observe", data=data)
    calls = []
    for start, stop in ends:
        rows = whole if whole is not None else _rows(data, start * plan.size, _end(stop * plan.size, limit))
        calls.append((model, rows, plan, limit, start, stop, whole is not None))
    parts: dict[int, Observations] = {}
    done = finished(ray, _observed, calls)
    for number, seen in tqdm(done, desc="calibrate", unit="shard", total=shards, disable=not verbose):
        parts[number] = seen
    return sum((parts[number] for number in range(1, shards)), start=parts[0])


def _rows(data: Any, start: int, stop: int) -> Any:
    """Samples of arrays, however they are nested."""
    return keras.tree.map_structure(lambda a: a[start:stop], data)


def _end(stop: int, limit: int | None) -> int:
    return stop if limit is None else min(stop, limit)


def _observed(
    content: bytes, data: Any, plan: Reading, limit: int | None, start: int, stop: int, is_whole: bool
) -> Observations:
    """A task: batches `start` to `stop` of all the data, which are here, or of which these rows were sent."""
    qmodel = unpacked(content)
    batches = batches_of(qmodel, data, plan.size, limit if is_whole else None)
    batches = itertools.islice(batches, start, stop) if is_whole else batches
    seen = observed(qmodel, batches, plan, start, stop - start, verbose=False)
    return replace(seen, some=None)  # samples stay where they are

"""Representative data -> what they show of every tensor (`Observations`), in float.

Each tensor that has a range hands over its smallest and largest value of every batch, and a histogram or whole rows
where its observer asks for them. Observations of shards, also of other machines, add up to those of all the data.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from kquant.calibration import observers, tensor_statistics
from kquant.calibration.data import batch_count, batches_of, refuse_endless
from kquant.calibration.tensor_statistics import MOST_SAMPLES, Statistics, histogram, thinned
from kquant.core.checks import check_count, static_length
from kquant.core.messages import first_of
from kquant.core.operators import facts
from kquant.core.renamed import Batches, renamed
from kquant.core.result import Result
from kquant.files.atomic import write_atomically
from kquant.files.destination import path_of
from kquant.files.untrusted import parse_json, read_arrays
from kquant.graph.given_model import check_keras
from kquant.graph.graph import Graph, outputs_of
from kquant.graph.keras_private import every_layer
from kquant.graph.tensorflow_private import operations_as_functions, operations_as_kernels
from kquant.graph.wrapped_calls import wrapped_calls
from kquant.layers.nodes import FakeQuant, encodings_of, observing
from kquant.ops import find
from kquant.views.quantized_model import graph_if_large, live_bytes, refuse_nested

SOME = 16  # samples that stay with the statistics
NONE = np.zeros(0, np.float32)
BEYOND = re.compile(r"indices\S* = (-?\d+) is not in \[0, (\d+)\)")  # what TensorFlow says of a position
EAGER_BATCHES = 8  # 200 samples in batches of 32 take 7
# What a batch costs beside its arithmetic is that of some 20 samples of a small model.
SMALLEST_BATCH, LARGEST_BATCH, BATCH_VALUES = 32, 128, 1 << 20
LIVE_BYTES = 1 << 28  # of the tensors of a batch that are alive together, where not all of them are held
# Values of a batch that its histogram counts: the first batches give hundreds of thousands for each tensor, where a
# percentile stands still; the batches after them add what is new at little cost.
MOST_VALUES, FEW_VALUES = 1 << 16, 1 << 12
Key = tuple[str, int]


@dataclass(frozen=True, eq=False, repr=False)
class Observations(Result):
    """What data show of a quantized model's tensors; `a + b` is that of two shards together.

    Attributes:
        tensors: (name of the `FakeQuant`, number of its call) -> statistics.
        sizes: int64[batches], samples of each batch that the statistics tell of.
        some: a few samples, in the structure of the inputs, and the float outputs for them, to measure with what the
            ranges cost; no file holds them.
    """

    tensors: dict[Key, Statistics]
    sizes: np.ndarray
    some: tuple[Any, Any] | None = None

    def __repr__(self) -> str:
        return f"Observations({len(self.tensors)} tensors, {self.samples} samples)"

    @property
    def samples(self) -> int:
        """How many were seen."""
        return int(self.sizes.sum())

    def __add__(self, other: Observations) -> Observations:
        """Of both shards.

        Raises:
            ValueError: they are of two models.
        """
        if set(self.tensors) != set(other.tensors):
            only = sorted({name for name, _ in set(self.tensors) ^ set(other.tensors)})
            raise ValueError(f"observations: these two are of different models; only one has {first_of(only)}.")
        merged = {key: s.merge(other.tensors[key]) for key, s in self.tensors.items()}
        sizes = np.concatenate([self.sizes, other.sizes])
        if len(sizes) >= tensor_statistics.MOST_BATCHES:
            merged, sizes = _shortened(merged, sizes, len(self.sizes))
        return Observations(merged, sizes, other.some if self.some is None else self.some)

    def save(self, path: str | Path) -> None:
        """Write them as an .npz file, to be joined elsewhere.

        Args:
            path: of the file.
        """
        arrays: dict[str, Any] = {"index": json.dumps({"tensors": list(self.tensors)}), "sizes": self.sizes}
        for i, s in enumerate(self.tensors.values()):
            arrays |= {f"{i}/lows": s.lows, f"{i}/highs": s.highs, f"{i}/counts": s.counts}
            arrays |= {f"{i}/reach": np.float64(s.reach), f"{i}/samples": s.samples}
            arrays |= {f"{i}/nearest": np.float64(s.nearest)} if s.nearest < math.inf else {}
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)
        write_atomically(path_of(path, "observations", "seen.npz"), content.getvalue(), "observations")

    @classmethod
    def load(cls, path: str | Path) -> Observations:
        """Read what `save` wrote.

        Args:
            path: of the file.

        Raises:
            ValueError: no such file, or another kind of file.
        """
        if not path_of(path, "observations", "seen.npz").is_file():
            raise ValueError(f"observations: no file {path}.")
        try:
            stored = read_arrays(path, "the file")
            return _read(stored, parse_json(str(stored["index"][()]), "the index"))
        except (KeyError, TypeError, ValueError) as error:
            said = str(error).rstrip(".")
            raise ValueError(f"observations: {path} is not what Observations.save wrote: {said}.") from error


def _shortened(
    tensors: dict[Key, Statistics], sizes: np.ndarray, known: int
) -> tuple[dict[Key, Statistics], np.ndarray]:
    """Extremes in bounded memory, thinned as one run over both shards thins them: batch by batch, behind the first."""
    rows = np.stack([np.stack([s.lows, s.highs], axis=1) for s in tensors.values()], axis=1)
    extents, counts = list(rows[:known]), sizes[:known].tolist()
    for row, size in zip(rows[known:], sizes[known:].tolist(), strict=True):
        extents, counts = thinned([*extents, row], [*counts, size])
    held = np.stack(extents)
    ends = {key: {"lows": held[:, i, 0], "highs": held[:, i, 1]} for i, key in enumerate(tensors)}
    return {key: replace(s, **ends[key]) for key, s in tensors.items()}, np.array(counts, np.int64)


def _read(stored: dict[str, np.ndarray], index: Any) -> Observations:
    """From the arrays of a file and its index; what does not go together is a `KeyError` or a `ValueError`."""
    keys = index.get("tensors") if isinstance(index, dict) else None
    if not isinstance(keys, list) or not all(
        isinstance(key, list) and [type(part) for part in key] == [str, int] for key in keys
    ):
        raise ValueError("the index is no list of names and numbers")
    sizes, tensors = stored["sizes"], {}
    if sizes.ndim != 1 or sizes.dtype.kind != "i" or not np.all(sizes > 0):
        raise ValueError("the sizes of batches are no counts")
    for i, (name, site) in enumerate(keys):
        lows, highs, counts, reach, samples = (
            stored[f"{i}/{part}"] for part in ("lows", "highs", "counts", "reach", "samples")
        )
        nearest = float(stored.get(f"{i}/nearest", np.array(math.inf))[()])
        tensors[name, site] = Statistics(lows, highs, counts, float(reach[()]), samples, nearest).checked(len(sizes))
    return Observations(tensors, sizes)


@renamed
def observe(
    qmodel: keras.Model,
    data: Any,
    *,
    limit: int | None = None,
    batch_size: int | None = None,
    shard: tuple[int, int] = (0, 1),
    verbose: bool = True,
) -> Observations:
    """Run data through the float function of a quantized model, and keep what its observers need.

    Reads: `qmodel` stays as it was.

    Args:
        qmodel: what `kquant.quantize` returned.
        data: see `kquant.calibrate`.
        limit: use this many samples only, the first ones.
        batch_size: for arrays; by default 32, up to 128 small samples, or fewer where memory asks for it.
        shard: `(i, n)`: only the i-th of n parts of these data, i from 0, cut between batches. The sum of all n in
            their order is, to the bit, what one call sees of all the data. Parts cut by hand add up to that but for the
            counts of histograms, which are finer in the first batches of each.
        verbose: show a progress bar.

    Returns:
        The observations: add those of all shards, and give the sum to `kquant.calibrate`.

    Raises:
        ValueError: not a quantized model, no data, wrong shape or dtype, NaN or Inf; a shard of data that do not tell
            how many batches they have, or of more parts than there are batches.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> q, x = kquant.quantize(model), np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> first, second = (kquant.observe(q, x, shard=(i, 2), verbose=False) for i in range(2))
        >>> both = first + second
        >>> both.samples, kquant.calibrate(q, both) is q
        (64, True)
    """
    check_keras(qmodel, "observe")
    refuse_nested(qmodel)
    nodes = [layer for layer in encodings_of(qmodel) if layer.has_range]
    if not nodes:
        raise ValueError(f"{qmodel.name}: nothing to calibrate; pass the model that kquant.quantize returned.")
    for name, given in (("limit", limit), ("batch_size", batch_size)):
        if given is not None:
            check_count("calibrate", name, given)
    if limit is None:
        refuse_endless(data)
    for node in nodes:
        observers.find(node.observer)
    plan = reading_of(qmodel, data, limit, batch_size)
    batches, total = batches_of(qmodel, data, plan.size, limit), batch_count(qmodel, data, plan.size, limit)
    start, stop = 0, total
    if shard != (0, 1):
        start, stop = ends_of(shard, total)
        batches, total = itertools.islice(batches, start, stop), stop - start
    seen = observed(qmodel, batches, plan, start, total, verbose=verbose)
    if seen.samples == 0:
        raise ValueError(
            "calibrate: the data are empty; give at least one sample. A function must return a new generator on each "
            "call."
        )
    return seen


class Reading(NamedTuple):
    """How data are read: `size` of a batch, and of the batches by which it was decided whether memory is planned."""

    size: int
    wished: int


def reading_of(qmodel: keras.Model, data: Any, limit: int | None, batch_size: int | None) -> Reading:
    """How all of some data are read, see `observe`; the same for every shard of them."""
    wished = batch_size or (SMALLEST_BATCH if isinstance(limit, Batches) else _batch_size(qmodel, data, limit))
    graph = graph_if_large(qmodel, wished)
    if batch_size is not None or graph is None:
        return Reading(wished, wished)
    return Reading(max(1, min(wished, LIVE_BYTES // live_bytes(graph))), wished)


def observed(
    qmodel: keras.Model, batches: Iterator[Any], plan: Reading, before: int, total: int | None, *, verbose: bool
) -> Observations:
    """What some batches show, looked at as if one run did them and those before.

    Args:
        qmodel: see `observe`.
        batches: see `batches_of`.
        plan: of all the data.
        before: number of batches of the same data that lie in front of these.
        total: of these batches, where it is known.
        verbose: show a progress bar.
    """
    nodes = [layer for layer in encodings_of(qmodel) if layer.has_range]
    with operations_as_kernels(), _some_as_functions(qmodel):
        return _observe(_Look(qmodel, nodes, graph_if_large(qmodel, plan.wished), before), batches, total, verbose)


def _some_as_functions(qmodel: keras.Model) -> contextlib.AbstractContextManager[None]:
    """Inside, layers that compute otherwise as kernels alone run as before: the last bit of a softmax moves a range."""
    rules = [(layer, find(layer)) for layer in every_layer(qmodel)]
    apart = [layer for layer, rule in rules if rule is not None and any(facts(c).as_function for c in rule.operators)]
    return wrapped_calls(apart, _as_function)


def _as_function(_: keras.layers.Layer, call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def run(*args: Any, **kwargs: Any) -> Any:
        with operations_as_functions():
            return call(*args, **kwargs)

    return run


def ends_of(shard: tuple[int, int], total: int | None) -> tuple[int, int]:
    """First batch of a shard, and the one behind its last.

    Args:
        shard: number of the part, from 0, and how many there are.
        total: batches of all the data; None where nobody knows.

    Raises:
        ValueError: no such part, or more parts than batches.

    Example:
        >>> [ends_of((i, 3), 8) for i in range(3)]
        [(0, 2), (2, 5), (5, 8)]
    """
    number, count = shard
    if total is None:
        raise ValueError(
            f"observe: shard={shard} needs data that tell how many batches they have: arrays, a PyDataset, or "
            "data.apply(tf.data.experimental.assert_cardinality(batches)), without `limit`."
        )
    if not 0 <= number < count or count > total:
        raise ValueError(
            f"observe: shard must be (i, n) with 0 <= i < n, and n at most the number of batches, {total}. Received: "
            f"{shard}."
        )
    return total * number // count, total * (number + 1) // count


def _batch_size(qmodel: keras.Model, data: Any, limit: int | None) -> int:
    """As many samples as hold `BATCH_VALUES` values, within bounds; few samples make two batches, so that halves can
    differ.
    """
    sample = sum(int(np.prod([n or 1 for n in t.shape[1:]])) for t in qmodel.inputs)
    leaf: Any = next(iter(keras.tree.flatten(data)), None)  # of arrays: the first input
    # nobody knows how many samples a dataset or a function holds: those keep the size that fits
    whole = hasattr(leaf, "shape") and len(leaf.shape) == len(qmodel.inputs[0].shape)
    fitting = max(SMALLEST_BATCH, min(BATCH_VALUES // max(sample, 1), LARGEST_BATCH))
    count = min(int(leaf.shape[0]), sys.maxsize if limit is None else limit) if whole else 0
    return min(fitting, -(-count // 2)) if count > SMALLEST_BATCH else fitting


def _told(data: Iterator[Any], total: int | None) -> Iterable[Any]:
    """The batches, with a bar."""
    from kquant.core.progress import tqdm  # takes as long to load as a batch of a small model to compute

    return tqdm(data, desc="calibrate", unit="batch", total=total)


def _observe(look: _Look, data: Iterator[Any], total: int | None, verbose: bool) -> Observations:
    """Run the data through; statistics of each (layer, site). `total`: of batches, where it is known beforehand."""
    tensors: dict[Key, Statistics] = {}
    extents: list[np.ndarray] = []
    sizes: list[int] = []
    nearest: dict[Key, float] = {}
    some = None
    for x in _told(data, total) if verbose else data:
        try:
            seen = look(x)
        except tf.errors.InvalidArgumentError as error:
            raise _beyond_a_table(look.batches - 1, error) from error
        # of the first batch alone, whose outputs are there; batches that come later are never kept
        if some is None and look.outputs is not None:
            some = keras.tree.map_structure(lambda t: t[:SOME], (x, look.outputs))
        extents.append(np.array(seen.rows))  # a copy: `rows.numpy()` would keep the whole tensor alive
        sizes.append(int(keras.tree.flatten(x)[0].shape[0]))
        # at every batch, since there may be millions of them
        extents, sizes = thinned(extents, sizes)
        if not np.all(np.isfinite(extents[-1])):
            _refuse_infinite(look.keys, extents[-1])
        nearest |= {key: min(nearest.get(key, math.inf), float(d)) for key, d in seen.nearest.items()}
        # of the whole batch: the few values that a histogram counts need not hold it
        largest = dict(zip(look.keys, np.abs(extents[-1]).max(axis=1).tolist(), strict=True))
        new = {key: histogram(np.asarray(values), look.steps[key], largest[key]) for key, values in seen.values.items()}
        new |= {key: Statistics(NONE, NONE, samples=y.numpy()) for key, y in seen.samples.items()}
        tensors |= {key: tensors[key].merge(s) if key in tensors else s for key, s in new.items()}
    if not extents:
        return Observations({}, np.zeros(0, np.int64))
    stacked = np.stack(extents)
    for i, key in enumerate(look.keys):
        counted = tensors.get(key, Statistics(NONE, NONE))
        ends = {"lows": stacked[:, i, 0], "highs": stacked[:, i, 1]}
        tensors[key] = replace(counted, **ends, nearest=nearest.get(key, math.inf))
    return Observations(tensors, np.array(sizes, np.int64), some)


def _beyond_a_table(number: int, error: Exception) -> Exception:
    """What to say of a batch with positions that an Embedding, or a gather, does not have; else the error as it is."""
    place = BEYOND.search(str(error))
    if place is None:
        return error
    return ValueError(
        f"data, batch {number}: position {place[1]} in a table of {place[2]} rows; give whole numbers from 0 to "
        f"{int(place[2]) - 1}, or build the model with a larger table."
    )


class _Seen(NamedTuple):
    """What one batch shows: `rows` float32[sites, 2], smallest and largest value of each; `values` float32[n] of those
    that want a histogram; `samples` float32[m, channels], whole rows of the few tensors whose observer looks at them;
    `nearest` float32[], see `Statistics`.
    """

    rows: tf.Tensor
    values: dict[Key, tf.Tensor | np.ndarray]
    samples: dict[Key, tf.Tensor]
    nearest: dict[Key, tf.Tensor]


class _Look:
    """One batch through the model in float.

    Tracing a graph takes as long as a few batches do without one, so only what comes after `EAGER_BATCHES` is traced,
    once, with an open batch axis.
    """

    def __init__(self, qmodel: keras.Model, nodes: Iterable[FakeQuant], graph: Graph | None, before: int) -> None:
        self.qmodel, self.graph = qmodel, graph
        self.wants, self.rows = (
            {node.name for node in nodes if node.observer in names}
            for names in (observers.NEED_HISTOGRAM, observers.NEED_SAMPLES)
        )
        self.keys: list[Key] = []
        self.steps: dict[Key, int] = {}  # how many values each one of a histogram stands for
        self.batches = before  # of these data in other shards: each batch is looked at as if one run did them all
        self.most = MOST_VALUES
        self.compiled: Any = None
        self.outputs: Any = None

    def __call__(self, x: Any) -> _Seen:
        self.batches += 1
        if self.batches <= EAGER_BATCHES:
            return self.run(x)
        if self.compiled is None:
            struct = self.qmodel.input if isinstance(self.qmodel, keras.Function) else self.qmodel.inputs
            specs = keras.tree.map_structure(lambda t: tf.TensorSpec((None, *t.shape[1:]), t.dtype), struct)
            # the number stands in the graph for good, so the many values of the first batches are taken eagerly
            self.most = FEW_VALUES
            self.compiled = tf.function(self.run, autograph=False).get_concrete_function(specs)
        return self.compiled(x)

    def run(self, x: Any) -> _Seen:
        lows, highs = [], []
        keys: list[Key] = []
        values: dict[Key, tf.Tensor | np.ndarray] = {}
        samples: dict[Key, tf.Tensor] = {}
        nearest: dict[Key, tf.Tensor] = {}

        def collect(layer: FakeQuant, site: int, y: tf.Tensor) -> None:
            if not layer.has_range:
                return
            y = tf.cast(y, tf.float32)
            keys.append((layer.name, site))
            if str(site) in layer.padding:
                nearest[keys[-1]] = layer.nearest_to_padding(y, site)
                # masked steps would stretch the range to a number like -999, which nothing reads
                y = layer.without_padding(y, site)
            lows.append(tf.reduce_min(y))
            highs.append(tf.reduce_max(y))
            if layer.name in self.wants:
                values[keys[-1]], self.steps[keys[-1]] = _spread(y, self.most)
            if layer.name in self.rows:
                samples[keys[-1]] = tf.reshape(y, (-1, y.shape[-1]))[:MOST_SAMPLES]

        with observing(collect):
            outputs = self.qmodel(x, training=False) if self.graph is None else outputs_of(self.graph, x)
        # in the order of the calls, which a graph that is traced keeps: its `rows` have no names
        self.keys = keys
        if self.outputs is None and tf.executing_eagerly():  # a later shard has graphs alone, and no outputs to keep
            self.outputs = outputs
        return _Seen(tf.stack([tf.stack(lows), tf.stack(highs)], axis=1), values, samples, nearest)


def _spread(y: tf.Tensor, most: int) -> tuple[tf.Tensor | np.ndarray, int]:
    """About `most` of a batch's values, from all over it, and how many each of them stands for.

    The step has no factor in common with a sample's size, so every channel and place is met in some sample.
    """
    size = math.prod(static_length(y, axis) for axis in range(1, len(y.shape)))
    step = max(1, (y.shape[0] or SMALLEST_BATCH) * size // most)
    while math.gcd(step, size) > 1:
        step += 1
    if not tf.executing_eagerly():
        return tf.reshape(y, (-1,))[::step], step
    # a copy: a view would keep the whole tensor alive
    return np.asarray(y).reshape(-1)[::step].copy(), step


def _refuse_infinite(keys: list[Key], extents: np.ndarray) -> None:
    first = next(key for key, row in zip(keys, extents, strict=True) if not np.all(np.isfinite(row)))
    raise ValueError(
        f"calibrate: NaN or Inf first appears at '{first[0]}', although the input is finite. Check the weights of the "
        "layer before it and whether the data are scaled as the model was trained."
    )

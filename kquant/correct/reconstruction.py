"""What a layer's weights meet in the quantized model, and what they should make of it: rows of inputs and of outputs.

Rows stream through one layer at a time; what is kept of them is bounded.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kquant.calibration.data import batches_of, refuse_endless
from kquant.core.checks import check_count
from kquant.graph.graph import Graph
from kquant.ops.rows import as_matrix
from kquant.views.quantized_model import Place, tensors

CHUNK_BYTES = 1 << 26  # of rows that are made at a time
KEPT_BYTES = 1 << 28  # of rows that are kept for one layer


@dataclass(frozen=True)
class Source:
    """Where rows come from.

    Attributes:
        graph: of the quantized model.
        qmodel: the model itself, which tells how its inputs look.
        data: see `kquant.calibrate`.
        limit: how many samples of them, or None.
        batch_size: for arrays.
    """

    graph: Graph
    qmodel: keras.Model
    data: Any
    limit: int | None = None
    batch_size: int = 32

    def __iter__(self) -> Iterator[Any]:
        return batches_of(self.qmodel, self.data, self.batch_size, self.limit)

    def check(self, step: str) -> None:
        """Refuse data that never end, and a limit below 1.

        Raises:
            ValueError: says which.
        """
        if self.limit is None:
            refuse_endless(self.data)
        else:
            check_count(step, "limit", self.limit)


@dataclass(frozen=True)
class Matrix:
    """A kernel as `y[n, g, m] = sum_k rows[n, g, k] * weights[g, k, m]`.

    Attributes:
        weights: float32[g, k, m].
        scale: float32[g, k, m], of every weight.
        low, high: codes.
    """

    weights: np.ndarray
    scale: np.ndarray
    low: int
    high: int

    def nearest(self) -> np.ndarray:
        """Codes rounded to nearest: float32[g, k, m]."""
        return np.clip(np.rint(self.weights / self.scale), self.low, self.high)


def matrix_of(place: Place, groups: int) -> Matrix:
    """The kernel of a layer with `rows`, as the layer quantizes it now."""
    weights = place.layer.weights_as_used()
    scale = np.broadcast_to(place.layer.scale_of(weights).numpy(), weights.shape)
    spec = place.layer.spec
    outputs = channels_of(place)
    return Matrix(
        as_matrix(weights.numpy(), groups, outputs), as_matrix(scale, groups, outputs), int(spec.low), int(spec.high)
    )


def channels_of(place: Place) -> int:
    """Number of output channels."""
    shape = getattr(place.layer.layer, place.layer.kernel_name).shape
    return int(np.prod([shape[axis] for axis in place.layer.channel_axes]))


def input_rows(source: Source, place: Place) -> Iterator[np.ndarray]:
    """float32[n, groups, k] of all calls of a layer in the quantized model, a chunk at a time."""
    wanted = [node.inputs[0] for node in place.calls]
    for xs in tensors(source.graph, wanted, source, quantized=True):
        for x in xs:
            for part in _chunks(place, x):
                yield _rows(place, part).numpy()


def pairs(source: Source, place: Place) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Inputs of the quantized model and outputs of the float one, side by side.

    Yields:
        `(call, samples, rows, y)`: number of the call, int64[n] which sample each row is of, float32[n, groups, k], and
        the layer's float output for those rows, before any activation: float32[n, channels].
    """
    ours, theirs = itertools.tee(source)  # in step, so that one batch is held, and random data are drawn once
    made = tensors(source.graph, [node.inputs[0] for node in place.calls], ours, quantized=True)
    wanted = tensors(source.graph, [node.outputs[0] for node in place.calls], theirs, quantized=False)
    first = 0
    for xs, ys in zip(made, wanted, strict=True):
        for call, (x, y) in enumerate(zip(xs, ys, strict=True)):
            done = 0
            for part in _chunks(place, x):
                # By samples on both sides: their rows are made from inputs on the one, and are the positions of outputs
                # on the other.
                target = y[done : done + len(part)]
                target = target.reshape(-1, target.shape[-1])
                numbers = first + done + np.arange(len(part))
                rows = _rows(place, part).numpy()
                yield call, np.repeat(numbers, len(target) // len(part)), rows, target
                done += len(part)
        first += len(xs[0])


def _rows(place: Place, x: np.ndarray) -> tf.Tensor:
    weights = place.rule.weights
    if weights is None or weights.rows is None:
        raise ValueError(f"{place.name}: this layer is not written as a product of matrices.")
    return weights.rows(place.layer.layer, tf.convert_to_tensor(x, tf.float32))


def _chunks(place: Place, x: np.ndarray) -> Iterator[np.ndarray]:
    """Some samples at a time, so that their rows stay within `CHUNK_BYTES`."""
    # One sample tells how many rows it becomes: a convolution reads each value many times.
    many = max(1, CHUNK_BYTES // max(1, 4 * int(np.prod(_rows(place, x[:1]).shape))))
    for start in range(0, len(x), many):
        yield x[start : start + many]


class Reservoir:
    """A uniform random sample of all rows that were offered, in bounded memory (Vitter's algorithm R).

    Args:
        most: rows to keep.
        rng: decides which.
    """

    def __init__(self, most: int, rng: np.random.Generator) -> None:
        self.most, self.rng, self.seen = most, rng, 0
        self.kept: list[np.ndarray] = []

    def offer(self, *columns: np.ndarray) -> None:
        """Take some of these rows: arrays of the same length, the same on every call."""
        count = len(columns[0])
        if not self.kept:
            self.kept = [np.empty((0, *c.shape[1:]), c.dtype) for c in columns]
        free = min(max(self.most - self.seen, 0), count)
        if free:
            # The first rows all stay, until the places are full.
            self.kept = [np.concatenate([k, c[:free]]) for k, c in zip(self.kept, columns, strict=True)]
        # Algorithm R for many at once: row number i takes a place drawn evenly from 0..i, where that is one of those
        # kept.
        places = np.arange(self.seen + free + 1, self.seen + count + 1)
        slots = (self.rng.random(count - free) * places).astype(np.int64)
        taken = np.flatnonzero(slots < self.most)
        for kept, column in zip(self.kept, columns, strict=True):
            kept[slots[taken]] = column[free + taken]  # of two for the same slot the later stays
        self.seen += count


def most_rows(wanted: int, width: int) -> int:
    """How many rows of `width` values are kept: `wanted`, where memory allows."""
    return max(1, min(wanted, KEPT_BYTES // (4 * max(1, width))))

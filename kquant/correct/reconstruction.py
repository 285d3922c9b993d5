"""What a layer's weights meet in the quantized model, and what they should make of it: rows of inputs and of outputs.

Rows stream through one layer at a time; what is kept of them is bounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from kquant.correct.sweep import Sweep
from kquant.graph.graph import Node
from kquant.ops.rows import as_matrix
from kquant.views.quantized_model import Place

CHUNK_BYTES = 1 << 26  # of rows that are made at a time
KEPT_BYTES = 1 << 28  # of rows that are kept for one layer


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


def input_rows(sweep: Sweep, place: Place, pick: Callable[[int], np.ndarray] | None = None) -> Iterator[np.ndarray]:
    """float32[n, groups, k] of all calls of a layer in the quantized model, a chunk at a time.

    Args:
        sweep: where they come from.
        place: the layer.
        pick: of so many positions, the numbers of those to make; all by default.
    """
    wanted = [node.inputs[0] for node in place.calls]
    for xs in sweep.values(place.calls[0], wanted, quantized=True):
        for call, x in zip(place.calls, xs, strict=True):
            count = len(x) * positions(call)
            at = np.arange(count) if pick is None else pick(count)
            many = max(1, CHUNK_BYTES // (4 * math.prod(row_shape(place))))
            for start in range(0, len(at), many):
                yield rows_at(place, x, at[start : start + many])


def positions(call: Node) -> int:
    """Output positions of one sample, each a row."""
    return int(np.prod(call.outputs[0].shape[1:-1]))


def row_shape(place: Place) -> tuple[int, int]:
    """Groups and inputs of each, which a row has."""
    sample = tf.zeros((1, *place.calls[0].inputs[0].shape[1:]))
    _, groups, k = rows_at(place, sample, np.zeros(1, np.int64)).shape
    return groups, k


def rows_at(place: Place, x: Any, at: np.ndarray) -> np.ndarray:
    """float32[n, groups, k]: what the kernel is multiplied by at these positions of a batch."""
    weights = place.rule.weights
    if weights is None or weights.rows is None:
        raise ValueError(f"{place.name}: this layer is not written as a product of matrices.")
    return weights.rows(place.layer.layer, tf.cast(x, tf.float32), at).numpy()


class Reservoir:
    """A uniform random sample of all rows that were offered, in bounded memory (Vitter's algorithm R).

    Args:
        most: rows to keep.
        rng: decides which.
    """

    def __init__(self, most: int, rng: np.random.Generator) -> None:
        self.most, self.rng, self.seen = most, rng, 0
        self._columns: list[np.ndarray] = []

    @property
    def kept(self) -> list[np.ndarray]:
        """The columns of the rows that are kept."""
        return [column[: self.seen] for column in self._columns]

    def offer(self, count: int, make: Callable[[np.ndarray], Sequence[np.ndarray]]) -> None:
        """Take some of these rows.

        Args:
            count: how many there are.
            make: columns of those that are taken, by their numbers, in increasing order.
        """
        free = min(max(self.most - self.seen, 0), count)
        # Algorithm R for many at once: row number i takes a place drawn evenly from 0..i, where that is one of those
        # kept. The first rows all stay, until the places are full.
        drawn = (self.rng.random(count - free) * np.arange(self.seen + free + 1, self.seen + count + 1)).astype(
            np.int64
        )
        taken = np.flatnonzero(drawn < self.most)
        # Of two for the same place the later stays: the first of them, seen from the end.
        places, last = np.unique(drawn[taken][::-1], return_index=True)
        chosen = taken[::-1][last]
        order = np.argsort(chosen)
        columns = make(np.concatenate([np.arange(free), free + chosen[order]]))
        if not self._columns:  # room for all: what is not written to takes no memory
            self._columns = [np.empty((self.most, *c.shape[1:]), c.dtype) for c in columns]
        for kept, column in zip(self._columns, columns, strict=True):
            kept[self.seen : self.seen + free] = column[:free]
            kept[places[order]] = column[free:]
        self.seen += count


def most_rows(wanted: int, width: int) -> int:
    """How many rows of `width` values are kept: `wanted`, where memory allows."""
    return max(1, min(wanted, KEPT_BYTES // (4 * max(1, width))))

"""What a layer's weights meet in the quantized model, and what they should make of it: rows of inputs and of outputs.

Rows stream through one layer at a time; what is kept of them is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from kquant.correct.sweep import Sweep
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


def input_rows(sweep: Sweep, place: Place) -> Iterator[np.ndarray]:
    """float32[n, groups, k] of all calls of a layer in the quantized model, a chunk at a time."""
    wanted = [node.inputs[0] for node in place.calls]
    for xs in sweep.values(place.calls[0], wanted, quantized=True):
        for x in xs:
            for part in _chunks(place, x.numpy()):
                yield _rows(place, part).numpy()


def pairs(sweep: Sweep, place: Place) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Inputs of the quantized model and outputs of the float one, side by side.

    Yields:
        `(call, samples, rows, y)`: number of the call, int64[n] which sample each row is of, float32[n, groups, k], and
        the layer's float output for those rows, before any activation: float32[n, channels].
    """
    read_in, made = [node.inputs[0] for node in place.calls], [node.outputs[0] for node in place.calls]
    first = 0
    for xs, ys in sweep.pairs(place.calls[0], read_in, made):
        for call, (x, y) in enumerate(zip(xs, ys, strict=True)):
            target, done = y.numpy(), 0
            for part in _chunks(place, x.numpy()):
                # By samples on both sides: their rows are made from inputs on the one, and are the positions of outputs
                # on the other.
                wanted = target[done : done + len(part)].reshape(-1, target.shape[-1])
                numbers = first + done + np.arange(len(part))
                rows = _rows(place, part).numpy()
                yield call, np.repeat(numbers, len(wanted) // len(part)), rows, wanted
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

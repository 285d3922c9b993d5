"""Second moments of what a layer reads in the quantized model, and of what it makes in the float one, summed over rows.

Rows are output positions; at most so many of them that the sums are good. Every eighth sample is summed apart, so that
what was fitted to the others can be judged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from kquant.correct.reconstruction import channels_of, positions, row_shape, rows_at
from kquant.correct.short_rounding import Moments
from kquant.correct.sweep import Sweep
from kquant.ops.rows import as_matrix
from kquant.views.quantized_model import Place

MOST_ROWS, MOST_VALUES, LEAST_ROWS = 1 << 17, 1 << 26, 8  # as in `range_search`
HELD_OUT = 8  # every 8th sample judges


@dataclass(frozen=True, eq=False)
class Sums:
    """Over rows, all float64.

    Attributes:
        count: rows.
        xx: [g, k, k].
        xy: [g, k, m].
        x: [g, k].
        y: [g, m].
    """

    count: int
    xx: np.ndarray
    xy: np.ndarray
    x: np.ndarray
    y: np.ndarray

    def __add__(self, other: Sums) -> Sums:
        pairs = ((getattr(self, name), getattr(other, name)) for name in ("count", "xx", "xy", "x", "y"))
        return Sums(*(a + b for a, b in pairs))

    def moments(self, weights: np.ndarray, centred: bool) -> Moments:
        """The means.

        Args:
            weights: float64[g, k, m], of the float model.
            centred: about the mean, where a bias makes up for it.
        """
        count = max(self.count, 1)
        gram, cross, mean, target = self.xx / count, self.xy / count, self.x / count, self.y / count
        if centred:
            gram = gram - mean[:, :, None] * mean[:, None, :]
            cross = cross - mean[:, :, None] * target[:, None, :]
        return Moments(gram, cross - gram @ weights, mean, target)


def row_sums(sweep: Sweep, place: Place, rng: np.random.Generator) -> tuple[Sums, Sums]:
    """Sums over most samples, and over those that are held out.

    Args:
        sweep: where rows come from.
        place: a layer that is a product of matrices.
        rng: draws rows where there are too many.
    """
    groups, k = row_shape(place)
    m = channels_of(place) // groups
    zero = Sums(0, np.zeros((groups, k, k)), np.zeros((groups, k, m)), np.zeros((groups, k)), np.zeros((groups, m)))
    sums = [zero, zero]
    there = sweep.samples * sum(positions(call) for call in place.calls)
    share = min(MOST_ROWS, max(MOST_VALUES // (groups * k), LEAST_ROWS * k)) / there
    bias = place.layer.float_bias()
    read_in, made = [node.inputs[0] for node in place.calls], [node.outputs[0] for node in place.calls]
    first = 0
    for xs, ys in sweep.pairs(place.calls[0], read_in, made):
        for call, x, y in zip(place.calls, xs, ys, strict=True):
            each = positions(call)
            count = len(x) * each
            at = np.arange(count) if share >= 1.0 else np.flatnonzero(rng.random(count) < share)
            outputs = tf.gather(tf.reshape(tf.cast(y, tf.float32), (count, -1)), at)
            outputs = (outputs if bias is None else outputs - bias).numpy().reshape(len(at), groups, m)
            judges = (first + at // each) % HELD_OUT == HELD_OUT - 1
            many = max(1, MOST_VALUES // (4 * math.prod((groups, k))))
            for start in range(0, len(at), many):
                part = slice(start, start + many)
                rows = rows_at(place, x, at[part])
                for number, chosen in enumerate((~judges[part], judges[part])):
                    sums[number] = sums[number] + _of(rows[chosen], outputs[part][chosen])
        first += len(xs[0])
    return sums[0], sums[1]


def _of(rows: np.ndarray, outputs: np.ndarray) -> Sums:
    # Over all positions of all samples: in float32 the last ones would be lost.
    x, y = rows.transpose(1, 2, 0).astype(np.float64), outputs.transpose(1, 0, 2).astype(np.float64)
    return Sums(len(rows), x @ x.transpose(0, 2, 1), x @ y, x.sum(axis=2), y.sum(axis=1))


def kernel_of(place: Place) -> np.ndarray:
    """The float kernel as float64[g, k, m]."""
    return as_matrix(place.layer.weights_as_used().numpy(), row_shape(place)[0], channels_of(place)).astype(np.float64)

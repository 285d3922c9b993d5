"""What a range says, and how it moves: arithmetic on a few numbers, each part one node of a graph."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from kquant.core.one_node import one_node
from kquant.core.spec import QuantSpec, encode_range
from kquant.layers.learned_ranges import is_dead

HELD = 4096  # ranges of tensors: of the largest models, some times over


class Numbers(NamedTuple):
    """What an encoding says, each float32[].

    Attributes:
        scale: of one step.
        zero_point: the code of real 0.
        low: the lowest real number of the grid.
        high: the highest.
        encoding: float32[2], scale and zero point.
    """

    scale: tf.Tensor
    zero_point: tf.Tensor
    low: tf.Tensor
    high: tf.Tensor
    encoding: tf.Tensor


def encoded(low: tf.Tensor, high: tf.Tensor, spec: QuantSpec) -> Numbers:
    """Of ranges, float32[sites] each: one encoding covers them all."""
    if not tf.executing_eagerly():
        return _encoded(low, high, spec)
    return _held(low.numpy().min(), high.numpy().max(), spec)


@lru_cache(HELD)
def _held(low: np.float32, high: np.float32, spec: QuantSpec) -> Numbers:
    """Outside of graphs, where calibration, its warnings and the file ask for those of the same ranges."""
    return Numbers(*(tf.constant(n, tf.float32) for n in _described(*encode_range(low, high, spec), spec)))


@one_node
def _encoded(low: tf.Tensor, high: tf.Tensor, spec: QuantSpec) -> Numbers:
    return _described(*encode_range(*whole(low, high), spec), spec)


def whole(low: tf.Tensor, high: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Lowest and highest of all sites, float32[] each of float32[sites]."""
    if low.shape[0] == 1:  # nothing to choose from
        return tf.reshape(low, ()), tf.reshape(high, ())
    return tf.reduce_min(low), tf.reduce_max(high)


@one_node
def numbers_of(scale: tf.Tensor, zero_point: tf.Tensor, spec: QuantSpec) -> Numbers:
    """Of an encoding, float32[] each."""
    return _described(scale, zero_point, spec)


def _described(scale: Any, zero_point: Any, spec: QuantSpec) -> Numbers:
    # Of the grid, not of the range that it was made for: the zero point is rounded, which moves both ends.
    low, high = (spec.low - zero_point) * scale, (spec.high - zero_point) * scale
    both: Any = tf if tf.is_tensor(scale) else np
    return Numbers(scale, zero_point, low, high, both.stack([scale, zero_point]))


@one_node
def averaged(
    ends: tuple[tf.Tensor, tf.Tensor], count: tf.Tensor, seen: tuple[tf.Tensor, tf.Tensor], site: int, momentum: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Moving averages of the smallest and largest value of batches, unbiased from the first on, and their number.

    Args:
        ends: lowest and highest so far, float32[sites].
        count: batches so far, float32[sites].
        seen: smallest and largest value of this batch, float32[].
        site: whose batch it is.
        momentum: of the averages.
    """
    here = tf.one_hot(site, tf.size(count))
    # a range without width, as of a tensor that was always 0, begins anew
    count = tf.where(tf.logical_and(is_dead(*ends), here > 0.0), 1.0, count + here)
    counted = tf.reduce_sum(count * here) if count.shape[0] != 1 else tf.reshape(count, ())
    # Adam's zero debias: 1 for the first batch, then ever nearer to 1 - momentum.
    rate = (1.0 - momentum) / (1.0 - tf.pow(momentum, counted))
    low, high = (now + here * rate * (value - now) for now, value in zip(ends, seen, strict=True))
    return low, high, count

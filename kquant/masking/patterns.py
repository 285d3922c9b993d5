"""Masks from scores: which weights stay, in which pattern.

    unstructured   the highest scores of the kernel
    "4x1"          blocks of 4 input channels by 1 output channel; a block's score is the mean or maximum of its own
    "2:4"          the 2 highest of every 4 neighbours along the axis that the kernel sums over

Ties go to the weight that comes first, so that the count is exact and a run repeats.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import tensorflow as tf

from kquant.core.checks import static_length

Pooling = Literal["mean", "max"]


@dataclass(frozen=True)
class Structure:
    """A pattern of zeros.

    Attributes:
        block: weights of a block along the input and the output axis.
        keep, of: `keep` of every `of` weights along the input axis may stay; 0 where there is no such rule.
    """

    block: tuple[int, int] = (1, 1)
    keep: int = 0
    of: int = 0

    @property
    def sparsity(self) -> float | None:
        """Share of zeros that the pattern itself prescribes."""
        return 1.0 - self.keep / self.of if self.of else None


def structure_of(text: str) -> Structure:
    """A pattern by its name: "unstructured", blocks "4x1" (inputs x outputs), or "2:4" (2 of 4 may stay).

    Raises:
        ValueError: another name, or numbers without sense.

    Example:
        >>> structure_of("2:4").sparsity, structure_of("4x1").block
        (0.5, (4, 1))
    """
    if text == "unstructured":
        return Structure()
    block, groups = re.fullmatch(r"(\d+)x(\d+)", text), re.fullmatch(r"(\d+):(\d+)", text)
    if block and min(int(n) for n in block.groups()) > 0:
        return Structure(block=(int(block[1]), int(block[2])))
    if groups and 0 < int(groups[1]) < int(groups[2]):
        return Structure(keep=int(groups[1]), of=int(groups[2]))
    raise ValueError(
        f"prune: structure must be 'unstructured', blocks like '4x1' (inputs x outputs) or '2:4'. Received: {text!r}."
    )


def highest(scores: tf.Tensor, sparsity: tf.Tensor | float) -> tf.Tensor:
    """Mask of the highest scores: `max(1, round(n * (1 - sparsity)))` of n; the first of equal ones.

    Args:
        scores: float32[...].
        sparsity: float64[].

    Returns:
        bool, like the scores.
    """
    flat = tf.reshape(scores, (-1,))
    n = static_length(flat, 0)
    # In double: float32 counts to 2^24, and a share such as 0.8 of many weights would come out one off.
    wanted = tf.round(n * (1.0 - tf.cast(sparsity, tf.float64)))
    kept = tf.cast(tf.clip_by_value(wanted, 1.0, float(n)), tf.int32)
    # All of them in order, not the first `kept`: XLA compiles no `k` that is known only when the graph runs.
    least = tf.gather(tf.math.top_k(flat, k=n).values, kept - 1)
    above, equal = flat > least, tf.equal(flat, least)
    # Of those that equal the last one that stays, so many from the front as there is room for.
    room = kept - tf.reduce_sum(tf.cast(above, tf.int32))
    first = tf.logical_and(equal, tf.cumsum(tf.cast(equal, tf.int32)) <= room)
    return tf.reshape(tf.logical_or(above, first), scores.shape)


def choose(
    scores: tf.Tensor, sparsity: tf.Tensor | float, structure: Structure, axes: tuple[int, int], pooling: Pooling
) -> tf.Tensor:
    """The mask of one kernel.

    Args:
        scores: float32, like the kernel.
        sparsity: float64[], share of zeros.
        structure: see `structure_of`.
        axes: of the kernel: input channels, output channels.
        pooling: of the scores of a block.

    Returns:
        bool, like the kernel.
    """
    if structure.of:
        return _groups(scores, sparsity, structure, axes[0])
    if structure.block != (1, 1):
        return _blocks(scores, sparsity, structure.block, axes, pooling)
    return highest(scores, sparsity)


def _blocks(
    scores: tf.Tensor, sparsity: tf.Tensor | float, block: tuple[int, int], axes: tuple[int, int], pooling: Pooling
) -> tf.Tensor:
    """Whole blocks; those at the far edges are smaller where the channels do not divide."""
    # Input and output channels last: [positions..., rows, columns], and each position of the kernel has blocks of its
    # own.
    order = _last(scores.shape.rank, axes)
    moved = tf.transpose(scores, order)
    rows, columns = (static_length(moved, axis) for axis in (-2, -1))
    above, beside = (math.ceil(n / size) for n, size in zip((rows, columns), block, strict=True))
    padding = [[0, 0]] * (moved.shape.rank - 2) + [[0, above * block[0] - rows], [0, beside * block[1] - columns]]
    # [positions, blocks down, within, blocks across, within]: a block is what axes 2 and 4 run over.
    shape = (-1, above, block[0], beside, block[1])
    if pooling == "max":
        # What is padded must never be the largest of its block.
        low = tf.constant(-np.inf, scores.dtype)
        pooled = tf.reduce_max(tf.reshape(tf.pad(moved, padding, constant_values=low), shape), axis=(2, 4))
    else:
        # A block at the edge is judged by the mean of the weights that it has.
        count = tf.reduce_sum(tf.reshape(tf.pad(tf.ones_like(moved), padding), shape), axis=(2, 4))
        pooled = tf.reduce_sum(tf.reshape(tf.pad(moved, padding), shape), axis=(2, 4)) / count
    kept = tf.repeat(tf.repeat(highest(pooled, sparsity), block[0], axis=1), block[1], axis=2)
    kept = tf.reshape(kept[:, :rows, :columns], moved.shape)
    return tf.transpose(kept, np.argsort(order))


def _groups(scores: tf.Tensor, sparsity: tf.Tensor | float, structure: Structure, axis: int) -> tf.Tensor:
    """The best `keep` of every `of` along the axis; before the ramp is done, the lowest of the others go first."""
    order = [a for a in range(scores.shape.rank) if a != axis % scores.shape.rank] + [axis % scores.shape.rank]
    moved = tf.transpose(scores, order)
    length = static_length(moved, -1)
    groups = math.ceil(length / structure.of)
    padding = [[0, 0]] * (moved.shape.rank - 1) + [[0, groups * structure.of - length]]
    # Below all scores, so that of a short group the real weights stay first.
    padded = tf.pad(moved, padding, constant_values=tf.constant(-np.inf, scores.dtype))
    places = tf.math.top_k(tf.reshape(padded, (-1, structure.of)), k=structure.keep).indices
    kept = tf.reduce_any(tf.one_hot(places, structure.of, on_value=True, off_value=False, dtype=tf.bool), axis=1)
    kept = tf.reshape(kept, padded.shape)[..., :length]  # pyright: ignore[reportArgumentType]
    kept = tf.transpose(kept, np.argsort(order))
    others = tf.size(scores) - tf.reduce_sum(tf.cast(kept, tf.int32))
    # How far the ramp has come: 1 where the schedule asks for what the pattern has in the end.
    done = tf.cast(sparsity, tf.float64) / (structure.sparsity or 1.0)
    zeros = tf.cast(tf.round(done * tf.cast(others, tf.float64)), tf.float64)
    # Those that the pattern keeps in the end stay in any case; the others go by their scores.
    ranked = tf.where(kept, tf.constant(np.inf, scores.dtype), scores)
    return highest(ranked, zeros / float(scores.shape.num_elements()))


def _last(rank: int, axes: tuple[int, int]) -> list[int]:
    """An order of axes with these two at the end."""
    end = [axis % rank for axis in axes]
    return [axis for axis in range(rank) if axis not in end] + end

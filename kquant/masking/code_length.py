"""What the codes of a kernel take in a file, as a loss: the entropy-aware regularizer of `prune` and `cluster`.

    loss = entropy * max(0, bits - least) / 8192         bits = sum_i b(x_i),  least = 8 target_bytes, shared by size

A weight x, in units of its grid (or between two shared values), lies between the codes k and k + 1:

    b(x) = b_k + (x - k) (b_{k+1} - b_k),   b_k = -log2 (n_k / N),   n_k weights are nearest to k, now

or, where more than half have the code m, b_m = 1 and b_k = 1 - log2 (n_k / (N - n_m)) (`kquant.layers.code_rate`). So
weights are drawn towards the neighbour that is more frequent, which then is more frequent still. The b_k themselves
get no gradient (straight through: the histogram counts rounded weights). 8192 bits are a KiB: `entropy` is what a KiB
costs. A code that nobody has counts as half a one. Source: the rate of entropy-constrained quantization (Chou,
Lookabaugh, Gray, IEEE Trans. ASSP 37 (1989)), with linear interpolation in place of its choice; Huffman codes lie
within a bit of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from kquant.layers.code_rate import KIBIBYTE, interpolated

LEVELS = 31  # of the grid of a masked kernel: in finer ones too few weights share a code to tell how frequent it is


@dataclass(frozen=True)
class Price:
    """What codes cost while a kernel trains.

    Attributes:
        entropy: loss for a KiB; 0: nothing.
        least_bits: of a weight on average, from which on they cost nothing.
    """

    entropy: float = 0.0
    least_bits: float = 0.0

    def __post_init__(self) -> None:
        if not (self.entropy >= 0.0 and self.least_bits >= 0.0):
            raise ValueError(
                f"entropy and target_bytes must be 0 or more. Received: entropy={self.entropy!r}, "
                f"bits of a weight {self.least_bits!r}."
            )

    def of(self, bits: tf.Tensor, weights: int) -> tf.Tensor:
        """The loss of a kernel: float32[].

        Args:
            bits: of all its codes.
            weights: how many it has.
        """
        return self.entropy * tf.nn.relu(bits - self.least_bits * weights) / KIBIBYTE


def price_of(entropy: float, target_bytes: int | None, shapes: Any) -> Price:
    """The price where all kernels together are to take so many bytes: the same number of bits for each weight.

    Args:
        entropy: loss for a KiB.
        target_bytes: of the codes of all kernels, not of the file; None: there is no end to it.
        shapes: of the kernels.

    Example:
        >>> from kquant.masking.code_length import price_of
        >>> price_of(0.1, 500, [(10, 20), (20, 40)]).least_bits
        4.0
    """
    total = sum(math.prod(shape) for shape in shapes)
    return Price(entropy, 0.0 if target_bytes is None else 8.0 * target_bytes / max(total, 1))


def refuse_unpriced(verb: str, asked: Iterable[tuple[float, int | None]]) -> None:
    """Bytes to stop at where no kernel has a price would be a wish without a word.

    Args:
        verb: who takes them, for the message.
        asked: `entropy` and `target_bytes` of each kernel.

    Raises:
        ValueError: some have `target_bytes`, and none has `entropy`.
    """
    prices, bytes_ = zip(*asked, strict=True) if (asked := list(asked)) else ((), ())
    wanted = next((each for each in bytes_ if each is not None), None)
    if wanted is not None and not any(prices):
        raise ValueError(
            f"{verb}: target_bytes={wanted} is where the price of codes ends, and they have none. Give entropy=0.5 "
            "with it, the loss for a KiB, or leave it out."
        )


def grid_bits(weights: tf.Tensor, axis: int) -> tf.Tensor:
    """Bits of a kernel on a grid of `LEVELS` codes for each channel: float32[].

    Args:
        weights: float32[...], masked ones 0: those stay, and get no gradient.
        axis: of the output channels.

    Example:
        >>> from kquant.masking.code_length import grid_bits
        >>> float(grid_bits(tf.constant([[0.0, 0.0, 0.0, 1.0]] * 2), 0))  # 6 of 0, 2 of the highest code
        8.0
    """
    high = LEVELS // 2
    others = [n for n in range(weights.shape.rank or 0) if n != axis % (weights.shape.rank or 1)]
    widest = tf.stop_gradient(tf.reduce_max(tf.abs(weights), axis=others, keepdims=True))
    steps = tf.clip_by_value(tf.math.divide_no_nan(weights, widest) * high, -high, high) + high
    return tf.reduce_sum(interpolated(steps, LEVELS))


def shared_bits(rows: tf.Tensor, table: tf.Tensor) -> tf.Tensor:
    """Bits of weights that take the nearest of a few values: float32[].

    Args:
        rows: float32[groups, n].
        table: float32[groups, values], ascending.
    """
    table = tf.stop_gradient(table)
    last = int(table.shape[1] or 1) - 1
    inside = tf.clip_by_value(rows, table[:, :1], table[:, -1:])
    below = tf.clip_by_value(tf.searchsorted(table, tf.stop_gradient(inside), side="right") - 1, 0, last - 1)
    low, high = (tf.gather(table, below + n, batch_dims=1) for n in (0, 1))
    steps = tf.cast(below, tf.float32) + tf.math.divide_no_nan(inside - low, high - low)
    return tf.reduce_sum(interpolated(steps, last + 1))

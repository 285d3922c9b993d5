"""`Codebook`: weights share a few values, and the values train."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from kquant.core.checks import static_length
from kquant.layers.transform import Transform
from kquant.masking.centroids import Init, centroids, scaled
from kquant.masking.code_length import Price, shared_bits

Channels = bool | Literal["scale"]
Aggregation = Literal["sum", "mean"]


@keras.saving.register_keras_serializable(package="kquant")
class Codebook(Transform):
    """Every weight becomes the nearest of a few trainable values.

        forward     w' = c[k],  k = argmin |w - c[k]|                          found anew from the kernel that trains
        backward    dL/dc[k] = sum (or mean) of dL/dw' over the weights of k;  dL/dw = dL/dw', straight through

    One codebook serves the kernel, or each output channel has one of its own, or all channels have one with ends at -1
    and 1, times a trainable scale for each channel (`per_channel="scale"`): quantized with a scale for each channel,
    its codes are the same in all of them.

    Args:
        clusters: number of values; a fixed zero and fixed ends count.
        init: how the first values are found: see `kquant.masking.centroids`.
        channel_axes: axes of the kernel that number the output channels.
        per_channel: False, True or "scale", as above.
        preserve_sparsity: one value is 0 and stays 0, and a weight that is exactly 0 does not train.
        train_values: False: the values stay as they were found; the scales of "scale" train all the same.
        aggregation: of the gradients of the weights that share a value.
        seed: of what the initializer draws.
        entropy: loss for a KiB of codes, see `kquant.masking.code_length`.
        least_bits: of a weight, from which on they cost nothing.

    Example:
        >>> book = Codebook(clusters=3, init="linear", preserve_sparsity=False)
        >>> book.build((2, 3))
        >>> weights = tf.constant([[0.0, 0.1, 1.0], [0.4, 0.6, 0.9]])
        >>> book.start(weights)
        >>> book(weights).numpy().tolist()
        [[0.0, 0.0, 1.0], [0.5, 0.5, 1.0]]
    """

    rank = 1
    shares = True

    def __init__(
        self,
        clusters: int,
        init: Init = "kmeans++",
        channel_axes: Sequence[int] = (-1,),
        per_channel: Channels = False,
        preserve_sparsity: bool = True,
        train_values: bool = True,
        aggregation: Aggregation = "sum",
        seed: int = 0,
        entropy: float = 0.0,
        least_bits: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.price = Price(float(entropy), float(least_bits))
        self.clusters = int(clusters)
        self.init: Init = init
        self.channel_axes = tuple(channel_axes)
        self.per_channel: Channels = per_channel
        self.preserve_sparsity, self.train_values = bool(preserve_sparsity), bool(train_values)
        self.aggregation, self.seed = aggregation, int(seed)
        self.fixed = ([-1.0, 1.0] if per_channel == "scale" else []) + ([0.0] if preserve_sparsity else [])
        least = max(2, len(self.fixed))
        if self.clusters < least:
            raise ValueError(
                f"clusters={clusters}, and at least {least} are needed with per_channel={per_channel!r} and "
                f"preserve_sparsity={preserve_sparsity}: {len(self.fixed)} of the values are fixed."
            )

    def build(self, shape: Any) -> None:
        """Make the values: float32[1 or channels, clusters but the fixed ones]."""
        kept = {axis % len(shape) for axis in self.channel_axes} if self.per_channel else set()
        # Axes of channels first: `_rows` then needs no more than a reshape.
        self.order = [*sorted(kept), *(axis for axis in range(len(shape)) if axis not in kept)]
        self.groups = self.groups_of(shape)
        # "scale": one shape for the kernel, one factor for each channel.
        books = 1 if self.per_channel == "scale" else self.groups
        self.centroids = self._variable("centroids", (books, self.clusters - len(self.fixed)), self.train_values)
        self.reach = self._variable("reach", (self.groups,), True) if self.per_channel == "scale" else None
        self.built = True

    def groups_of(self, shape: Any) -> int:
        """Parts of such a kernel that have values of their own: its output channels, or 1."""
        axes = self.channel_axes if self.per_channel else ()
        return math.prod(int(shape[axis]) for axis in axes)

    def _variable(self, name: str, shape: tuple[int, ...], trainable: bool) -> Any:
        return self.add_weight(
            name=name, shape=shape, initializer="zeros", trainable=trainable, dtype="float32", autocast=False
        )

    def start(self, weights: tf.Tensor) -> None:
        """Find the first values."""
        # In numpy: once, before any graph, and in double.
        rows = np.asarray(self._rows(tf.convert_to_tensor(weights)), np.float64)
        options: dict[str, Any] = {"keep_zero": self.preserve_sparsity, "seed": self.seed}
        if self.reach is not None:
            shape, reach = scaled(rows, self.clusters, self.init, **options)
            self.centroids.assign(shape[None])
            self.reach.assign(reach)
            return
        values = [centroids(row, self.clusters, self.init, **options) for row in rows]
        self.centroids.assign([self._free(row) for row in values])

    def _free(self, values: np.ndarray) -> np.ndarray:
        """The values that train."""
        return np.delete(values, np.flatnonzero(values == 0.0)[0]) if self.preserve_sparsity else values

    def table(self, rows: tf.Tensor) -> tf.Tensor:
        """The values, ascending: float32[1 or channels, clusters].

        Args:
            rows: float32[channels, n]. A channel's scale is never above its largest weight, so that every channel has
                a weight at an end of the codebook; int8 codes are then those of the other channels.
        """
        values = tf.convert_to_tensor(self.centroids)
        fixed = tf.tile(tf.constant([self.fixed], tf.float32), (static_length(values, 0), 1))
        values = tf.concat([values, fixed], axis=1) if self.fixed else values
        if self.reach is not None:
            largest = tf.stop_gradient(tf.reduce_max(tf.abs(rows), axis=1))
            # By its size: an optimizer may step across 0, and a negative factor would mirror the values.
            reach = tf.minimum(tf.abs(tf.convert_to_tensor(self.reach)), largest)
            # What trains between the ends must not pass them, or they would be ends no longer.
            values = tf.clip_by_value(values, -1.0, 1.0) * reach[:, None]
        # Ascending, as `places` searches among the midpoints; values that train may have passed each other.
        return tf.sort(values, axis=1)

    def indices(self, weights: tf.Tensor) -> tf.Tensor:
        """Place of every weight in `table`, shaped like the kernel: int32."""
        rows = self._rows(weights)
        return self._back(places(rows, self.table(rows)), weights.shape)

    def call(self, weights: tf.Tensor) -> tf.Tensor:
        """The kernel with shared values."""
        rows = self._rows(weights)
        shared = look_up(self.table(rows), rows, self.aggregation == "mean", self.preserve_sparsity)
        return self._back(shared, weights.shape)

    def charge(self, weights: tf.Tensor) -> tf.Tensor | None:
        """The price of the places of all weights."""
        if not self.price.entropy:
            return None
        rows = self._rows(weights)
        table = tf.broadcast_to(self.table(rows), (self.groups, self.clusters))
        return self.price.of(shared_bits(rows, table), static_length(rows, 0) * static_length(rows, 1))

    def derived(self, kernel: np.ndarray) -> Transform | None:
        """A codebook of the values of a kernel that was made of this one's, whole or by channels of its own."""
        rank = kernel.ndim
        for axes in ((), (rank - 1,), (rank - 2,), (rank - 2, rank - 1)) if rank > 1 else ((),):
            options = {"channel_axes": axes, "per_channel": bool(axes), "aggregation": self.aggregation}
            options |= asdict(self.price)
            book = Codebook(self.clusters, preserve_sparsity=False, train_values=self.train_values, **options)
            book.build(kernel.shape)
            rows = np.asarray(book._rows(tf.constant(kernel)))
            distinct = [_distinct(row) for row in rows]
            # So few weights fit any codebook, which says nothing of where they came from.
            if rows.shape[1] <= self.clusters or max(map(len, distinct)) > self.clusters:
                continue
            free = [row[row != 0.0] for row in distinct]
            # There is room for a zero that stays 0, beside all others; else 0 is a value like the rest.
            if self.preserve_sparsity and max(map(len, free)) < self.clusters:
                book = Codebook(self.clusters, train_values=self.train_values, **options)
                book.build(kernel.shape)
                distinct = free
            book.centroids.assign([_filled(row, self.clusters - len(book.fixed)) for row in distinct])
            return book
        return None

    def _rows(self, weights: tf.Tensor) -> tf.Tensor:
        """float32[1 or channels, weights of each]."""
        # Channels come first already, or there are none: no pass over the kernel.
        moved = weights if self.order == sorted(self.order) else tf.transpose(weights, self.order)
        return tf.reshape(moved, (self.groups, -1))

    def _back(self, rows: tf.Tensor, shape: Any) -> tf.Tensor:
        """The inverse of `_rows`."""
        moved = tf.reshape(rows, [int(shape[axis]) for axis in self.order])
        if self.order == sorted(self.order):
            return moved
        return tf.transpose(moved, [self.order.index(axis) for axis in range(len(self.order))])

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        names = ("clusters", "init", "per_channel", "preserve_sparsity", "train_values", "aggregation", "seed")
        own = {name: getattr(self, name) for name in names}
        return {**super().get_config(), **own, **asdict(self.price), "channel_axes": list(self.channel_axes)}


def _distinct(values: np.ndarray) -> np.ndarray:
    """Values in order, but for rounding."""
    values = np.unique(values)
    return values[np.append(True, np.diff(values) > 1e-5 * np.abs(values[1:]))]


def _filled(values: np.ndarray, count: int) -> np.ndarray:
    """As many values, the largest repeated; zeros where there are none."""
    return np.pad(values, (0, count - len(values)), mode="edge") if len(values) else np.zeros(count, np.float32)


def places(rows: tf.Tensor, table: tf.Tensor) -> tf.Tensor:
    """int32[groups, n]: index of the nearest of ascending values, by a search among the midpoints between them."""
    return tf.searchsorted((table[:, 1:] + table[:, :-1]) / 2.0, rows)


def look_up(table: tf.Tensor, rows: tf.Tensor, mean: bool, keep_zero: bool) -> tf.Tensor:
    """The nearest value of each weight, with the gradients of `Codebook`.

    Args:
        table: float32[groups, clusters], ascending.
        rows: float32[groups, n].
        mean: a value's gradient is the mean of those of its weights, not their sum.
        keep_zero: a weight that is 0 gets no gradient.

    Returns:
        float32[groups, n].
    """
    count = static_length(table, 0) * static_length(table, 1)

    # TensorFlow's own gradient of a look-up reaches the table alone, and not the weights that chose the places.
    @tf.custom_gradient
    def nearest(table: tf.Tensor, rows: tf.Tensor) -> Any:
        # All tables laid end to end: a row's places begin where its table does, and one look-up and one sum serve all.
        start = tf.range(table.shape[0], dtype=tf.int32)[:, None] * static_length(table, 1)
        index = tf.reshape(places(rows, table) + start, (-1,))

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            sums = tf.math.unsorted_segment_sum(tf.reshape(upstream, (-1,)), index, count)
            if mean:
                # A value without weights has sum 0 and count 0: its gradient is 0.
                ones = tf.ones_like(index, tf.float32)
                sums = tf.math.divide_no_nan(sums, tf.math.unsorted_segment_sum(ones, index, count))
            through = tf.where(tf.equal(rows, 0.0), 0.0, upstream) if keep_zero else upstream
            return tf.reshape(sums, table.shape), through

        return tf.reshape(tf.gather(tf.reshape(table, (-1,)), index), rows.shape), gradient

    return nearest(table, rows)

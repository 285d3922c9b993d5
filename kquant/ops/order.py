"""Rows in another order or number: taken, turned, rolled, repeated and tiled, by GATHER with constant indices; and
those of a table of numbers, by indices that the model is given.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kquant.ops.constant import as_array
from kquant.ops.index import ByShape, along, constant_indices, of_operation, picked, refuse_batch, reshaped
from kquant.ops.rule import Make, Rule, computed, looked_up

layers = keras.layers
K = keras.ops


def _take(op: Any, make: Make, x: Any, indices: Any, *_: Any, **__: Any) -> Any:
    if not isinstance(x, keras.KerasTensor):
        return _looked_up(op, make, x, indices)
    axis, wanted = along(op, op.axis, len(x.shape)), constant_indices(op, indices)
    y = picked(make, x, wanted.reshape(-1) % x.shape[axis], axis, f"{op.name}_rows")
    return reshaped(make, y, [*x.shape[1:axis], *wanted.shape, *x.shape[axis + 1 :]], op.name)


def _looked_up(op: Any, make: Make, table: Any, indices: Any) -> Any:
    """Rows of numbers by indices that the model is given: an Embedding, which trains where the numbers do."""
    rows = as_array(table).reshape(-1) if op.axis is None else as_array(table)
    if op.axis is not None and int(op.axis) % rows.ndim != 0:
        raise ValueError(
            f"{op.name} (Take): it looks up along axis {op.axis} of a table of shape {rows.shape}; the look-up of the "
            "file picks along the first. Move that axis to the front: keras.ops.take(np.moveaxis(table, axis, 0), "
            "indices, axis=0)."
        )

    def build() -> Any:
        new: Any = layers.Embedding(rows.shape[0], rows[0].size, name=f"{op.name}_rows")
        new.build()
        new.embeddings.assign(rows.reshape(rows.shape[0], -1))
        new.trainable = isinstance(table, keras.Variable) and table.trainable
        return new

    return reshaped(make, make("table", build)(indices), [*indices.shape[1:], *rows.shape[1:]], op.name)


def _take_along(op: Any, make: Make, x: Any, indices: Any, *_: Any, **__: Any) -> Any:
    axis, wanted = along(op, op.axis, len(x.shape)), constant_indices(op, indices)
    # Whole rows can be picked only if all other positions ask for the same ones.
    rows = np.moveaxis(wanted, axis, -1).reshape(-1, wanted.shape[axis])
    if not np.array_equal(rows, np.broadcast_to(rows[:1], rows.shape)):
        raise ValueError(
            f"{op.name} (TakeAlongAxis): its indices differ along other axes than {axis}; no int8 kernel does that. "
            "Take whole rows with keras.ops.take."
        )
    return picked(make, x, rows[0] % x.shape[axis], axis, op.name)


def _axes(op: Any, axis: Any, rank: int) -> list[int]:
    axes = list(range(rank)) if axis is None else np.atleast_1d(axis)
    return [along(op, a, rank) for a in axes]


def _flip(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    for a in _axes(op, {"Fliplr": 1, "Flipud": 0}.get(type(op).__name__, getattr(op, "axis", None)), len(x.shape)):
        x = picked(make, x, range(x.shape[a])[::-1], a, f"{op.name}_axis{a}", f"axis{a}")
    return x


def _roll(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    axes = _axes(op, op.axis, len(x.shape))
    for a, shift in zip(axes, np.broadcast_to(op.shift, len(axes)), strict=True):
        x = picked(make, x, np.roll(np.arange(x.shape[a]), shift), a, f"{op.name}_axis{a}", f"axis{a}")
    return x


def _repeat(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    a = along(op, op.axis, len(x.shape))
    repeats = constant_indices(op, op.repeats)
    return picked(make, x, np.repeat(np.arange(x.shape[a]), repeats.reshape(-1)), a, op.name)


def _tile(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    rank = len(x.shape)
    repeats = [int(n) for n in constant_indices(op, op.repeats).reshape(-1)]
    refuse_batch(op, [0] if len(repeats) > rank else [])
    repeats = [1] * (rank - len(repeats)) + repeats
    refuse_batch(op, [0] if repeats[0] != 1 else [])
    for a in range(1, rank):
        x = picked(make, x, np.tile(np.arange(x.shape[a]), repeats[a]), a, f"{op.name}_axis{a}", f"axis{a}")
    return x


def _broadcast(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    shape = [None if n is None or n == -1 else int(n) for n in op.shape]
    refuse_batch(op, [] if len(shape) == len(x.shape) and shape[0] in (None, 1, x.shape[0]) else [0])
    for a in range(1, len(shape)):
        if x.shape[a] != shape[a]:
            # Only an axis of 1 broadcasts: its one row as often as wanted.
            x = picked(make, x, [0] * (shape[a] or 1), a, f"{op.name}_axis{a}", f"axis{a}")
    return x


def _turned(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    """`rot90`: flips and a transposition."""
    rank = len(x.shape)
    first, second = (along(op, a, rank) for a in op.axes)
    # A quarter turn is one flip and the transposition below, half a turn two flips.
    for a in {0: (), 1: (second,), 2: (first, second), 3: (first,)}[op.k % 4]:
        x = picked(make, x, range(x.shape[a])[::-1], a, f"{op.name}_axis{a}", f"axis{a}")
    if op.k % 2 == 0:
        return x
    order = list(range(rank))
    order[first], order[second] = second, first
    return make("turn", lambda: layers.Permute(order[1:], name=op.name))(x)


TABLE = np.arange(-20.0, 20.0, dtype=np.float32).reshape(10, 2, 2) / 7
ROWS = np.array([1, 0, 4], np.int32).reshape(1, 3, 1, 1)
RULES = (
    Rule(
        operations=("Take",),
        expand=_take,
        examples=(
            computed(lambda x: K.take(x, [[3, 0], [-1, 1]], axis=2), (6, 5, 4)),
            computed(lambda x: K.take(x, 1, axis=1), (6, 5, 4)),
            looked_up(lambda x: layers.Dense(3)(layers.Flatten()(K.take(TABLE, x, axis=0))), 5),
        ),
    ),
    of_operation("TakeAlongAxis", _take_along, lambda x: K.take_along_axis(x, ROWS, axis=1)),
    of_operation("Flip Fliplr Flipud", _flip, lambda x: K.flip(x, (1, -1)), lambda x: K.flip(x, 2)),
    of_operation("Roll", _roll, lambda x: K.roll(x, 2, axis=1), lambda x: K.roll(x, (1, -2), axis=(2, 3))),
    of_operation("Repeat", _repeat, lambda x: K.repeat(x, 2, axis=1), lambda x: K.repeat(x, [1, 0, 3, 2], axis=-1)),
    of_operation("Tile", _tile, lambda x: K.tile(x, (1, 2, 1, 3))),
    of_operation("BroadcastTo", _broadcast, lambda x: ByShape()(x[:, :, ::-1])),
    of_operation("Rot90", _turned, lambda x: K.rot90(x, axes=(1, 2)), lambda x: K.rot90(x, k=3, axes=(2, 1))),
)

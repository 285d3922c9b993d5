"""Adaptive pooling: each axis by windows from `i n / out` to `(i + 1) n / out`, rounded outwards."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kquant.ops.border import refuse_channels_first
from kquant.ops.index import part, picked, reshaped
from kquant.ops.rule import Make, Rule, example, keras_layers

layers = keras.layers


def _windows(length: int, count: int) -> list[range]:
    return [range(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]


def _even(make: Make, x: Any, cls: type, size: int, name: str, key: str) -> Any:
    return make(key, lambda: cls((1, size), name=name))(x)


def _along(make: Make, x: Any, cls: type, axis: int, count: int, name: str) -> Any:
    """One axis, with what lies before it as rows and what lies behind it as channels."""
    shape = x.shape[1:]
    before, length, behind = (int(np.prod(n)) for n in (shape[: axis - 1], shape[axis - 1], shape[axis:]))
    key = f"axis{axis}_"
    y = reshaped(make, x, (before, length, behind), f"{name}_lines{axis}", f"{key}lines")
    windows = _windows(length, count)
    size = max(len(w) for w in windows)
    # Windows overlap and differ in length. A maximum does not mind a value twice, so short windows repeat their last
    # one; an average does, and pools each window by itself.
    if cls is layers.MaxPooling2D or len({len(w) for w in windows}) == 1:
        rows = [min(w.start + k, w.stop - 1) for w in windows for k in range(size)]
        y = picked(make, y, rows, 2, f"{name}_windows{axis}", f"{key}rows")
        y = _even(make, y, cls, size, f"{name}_pool{axis}", f"{key}pool") if size > 1 else y
    else:
        parts = []
        for i, w in enumerate(windows):
            row = part(make, y, {2: w}, f"{name}_window{axis}_{i}", f"{key}window{i}")
            parts.append(_even(make, row, cls, len(w), f"{name}_pool{axis}_{i}", f"{key}pool{i}"))
        y = make(f"{key}join", lambda: layers.Concatenate(axis=2, name=f"{name}_join{axis}"))(parts)
    return reshaped(make, y, (*shape[: axis - 1], count, *shape[axis:]), f"{name}_axis{axis}", f"{key}shape")


def _adaptive(cls: type) -> Any:
    def expand(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
        refuse_channels_first(op)
        size, shape = op.output_size, x.shape[1:-1]
        if len(shape) == 2 and all(n % out == 0 for n, out in zip(shape, size, strict=True)):
            # Whole windows side by side are an ordinary pool.
            window = [n // out for n, out in zip(shape, size, strict=True)]
            return make("pool", lambda: cls(window, name=op.name))(x)
        for axis, count in enumerate(size, 1):
            x = _along(make, x, cls, axis, count, op.name) if x.shape[axis] != count else x
        return x

    return expand


def _examples(classes: tuple[type, ...]) -> tuple[Any, ...]:
    if not classes:
        return ()
    one, two, three = classes
    return (
        example(lambda: one(3), shape=(8, 4)),
        example(lambda: two((2, 3)), shape=(4, 6, 3)),
        example(lambda: two((2, 3)), shape=(5, 7, 3)),
        # (TensorFlow ends the process on the maximum of a 3-D axis in one window; the file would not mind.)
        example(lambda: three((2, 2, 3)), shape=(4, 3, 3, 2)),
    )


AVERAGE = keras_layers(*(f"AdaptiveAveragePooling{rank}D" for rank in (1, 2, 3)))
MAX = keras_layers(*(f"AdaptiveMaxPooling{rank}D" for rank in (1, 2, 3)))
RULES = (
    Rule(layers=AVERAGE, expand=_adaptive(layers.AveragePooling2D), examples=_examples(AVERAGE)),
    Rule(layers=MAX, expand=_adaptive(layers.MaxPooling2D), examples=_examples(MAX)),
)

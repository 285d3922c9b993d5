"""Whatever holds samples -> checked batches for one model: arrays, datasets, generators, several inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf


def batches_of(model: keras.Model, data: Any, batch_size: int = 32) -> Iterator[Any]:
    """Batches in the structure of the model's inputs, labels dropped, every value checked.

    Args:
        model: tells names, shapes and dtypes.
        data: array, list or dict of arrays, `tf.data.Dataset`, `keras.utils.PyDataset`, or a function returning an
            iterator.
        batch_size: for arrays.

    Yields:
        float32 (or the input's dtype) tensors, one for each input.

    Raises:
        ValueError: wrong structure, shape, dtype, NaN or Inf; says which input and batch.
    """
    for number, batch in enumerate(_raw(model, data, batch_size)):
        yield _checked(model, batch, number)


def _raw(model: keras.Model, data: Any, batch_size: int) -> Iterator[Any]:
    if data is None:
        raise ValueError("data: expected samples. Received: None.")
    if isinstance(data, keras.utils.PyDataset):
        for i in range(data.num_batches or len(data)):
            yield _inputs_only(model, data[i])
    elif isinstance(data, tf.data.Dataset):
        for batch in data:
            yield _inputs_only(model, batch)
    elif callable(data):
        for batch in data():
            yield _inputs_only(model, batch)
    elif hasattr(data, "__next__"):
        raise ValueError(
            "data: received a generator that can run only once; pass the function that makes it, `lambda: samples()`."
        )
    else:
        yield from _arrays(model, data, batch_size)


def _arrays(model: keras.Model, data: Any, batch_size: int) -> Iterator[Any]:
    count = len(keras.tree.flatten(model.inputs))
    if isinstance(data, tuple) and count == 1 and len(data) == 2:
        data = data[0]  # (x, y)
    data = {k: np.asarray(v) for k, v in data.items()} if isinstance(data, dict) else data
    if isinstance(data, list) and count > 1:
        data = [np.asarray(v) for v in data]
    elif not isinstance(data, dict | tuple):
        data = np.asarray(data)
    sizes = {len(a) for a in keras.tree.flatten(data)}
    if len(sizes) != 1:
        raise ValueError(f"data: every input needs the same number of samples. Received: {sorted(sizes)}.")
    for start in range(0, sizes.pop(), batch_size):
        yield keras.tree.map_structure(lambda a, s=start: a[s : s + batch_size], data)


def _inputs_only(model: keras.Model, batch: Any) -> Any:
    """Drop labels and sample weights: `(x, y)` or `(x, y, w)` becomes `x`."""
    if not isinstance(batch, tuple):
        return batch
    count = len(keras.tree.flatten(model.inputs))
    if count > 1 and len(batch) == count and not isinstance(batch[0], tuple | list | dict):
        return batch
    return batch[0]


def _checked(model: keras.Model, batch: Any, number: int) -> Any:
    specs = model.inputs
    given = batch if not isinstance(batch, dict) else [_pick(batch, t.name, number) for t in specs]
    flat = [given] if len(specs) == 1 and not isinstance(given, list | tuple) else list(given)
    if len(flat) != len(specs):
        raise ValueError(
            f"data, batch {number}: expected {len(specs)} inputs ({', '.join(t.name for t in specs)}). "
            f"Received: {len(flat)}."
        )
    checked = [_one(np.asarray(x), t, number) for x, t in zip(flat, specs, strict=True)]
    struct = model._inputs_struct if hasattr(model, "_inputs_struct") else specs
    return keras.tree.pack_sequence_as(struct, checked)


def _pick(batch: dict[str, Any], name: str, number: int) -> Any:
    if name not in batch:
        raise ValueError(f"data, batch {number}: no input '{name}'. Received: {', '.join(map(str, batch))}.")
    return batch[name]


def _one(x: np.ndarray, spec: Any, number: int) -> tf.Tensor:
    where = f"data, batch {number}, input '{spec.name}'"
    if not (np.issubdtype(x.dtype, np.number) or x.dtype == bool):
        raise ValueError(f"{where}: expected numbers ({spec.dtype}). Received: dtype {x.dtype}.")
    expected = tuple(spec.shape[1:])
    if x.shape[1:] != expected and not _compatible(x.shape[1:], expected):
        raise ValueError(f"{where}: expected shape (batch, {', '.join(map(str, expected))}). Received: {x.shape}.")
    if not np.all(np.isfinite(x)):
        raise ValueError(f"{where}: NaN or Inf among the values; remove those samples.")
    return tf.convert_to_tensor(x.astype(spec.dtype))


def _compatible(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(shape) == len(expected) and all(e is None or e == s for s, e in zip(shape, expected, strict=True))

"""Whatever holds samples -> checked batches for one model: arrays, datasets, generators, several inputs."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kquant.calibration.data_scale import Expected, warn_of_scale
from kquant.core.callers import each_told, telling
from kquant.core.checks import array_of, has_shape, wrong_shape
from kquant.core.messages import first_of
from kquant.core.renamed import Batches
from kquant.layers.nodes import FakeQuant


@dataclass(frozen=True)
class Port:
    """An input as `batches_of` reads it of a model."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class Ports:
    """The inputs of something that is no Functional model.

    Attributes:
        inputs: in order.
        struct: the same, nested as batches are to be; None for a list.
    """

    inputs: Sequence[Port]
    struct: Any = None


def batches_of(model: keras.Model | Ports, data: Any, batch_size: int = 32, limit: int | None = None) -> Iterator[Any]:
    """Batches in the structure of the model's inputs, labels dropped, every value checked.

    A quantized model knows the range of its inputs: a first batch of another scale gets a warning, whatever verb reads
    the data.

    Args:
        model: tells names, shapes and dtypes.
        data: array, list or dict of arrays, `tf.data.Dataset`, `keras.utils.PyDataset`, or a function returning an
            iterator.
        batch_size: for arrays.
        limit: no more than this many samples; a `Batches` counts batches.

    Yields:
        float32 (or the input's dtype) tensors, one for each input.

    Raises:
        ValueError: wrong structure, shape, dtype, NaN or Inf; says which input and batch.
    """
    if isinstance(limit, Batches):
        yield from itertools.islice(batches_of(model, data, batch_size, limit.samples), limit)
        return
    # batches are cut, so that `limit` counts samples however the data are batched
    left, before = sys.maxsize if limit is None else limit, 0
    for number, batch in enumerate(_raw(model, data, batch_size)):
        checked = _checked(model, batch, number, before)
        if number == 0 and isinstance(model, keras.Model):
            _look_at_scale(model, checked)
        count = len(keras.tree.flatten(checked)[0])
        yield checked if count <= left else keras.tree.map_structure(lambda t, end=left: t[:end], checked)
        left, before = left - count, before + count
        if left <= 0:  # before the next batch is asked for
            return


def _look_at_scale(model: keras.Model, batch: Any) -> None:
    """Compare a batch with what a quantized model knows of its inputs."""
    known = {e.name: e for layer in model.layers if isinstance(layer, FakeQuant) for e in _expected(layer)}
    for t, x in zip(model.inputs, keras.tree.flatten(batch), strict=True):
        if t.name in known:
            warn_of_scale(f"data, input '{t.name}'", np.asarray(x), known[t.name])


def _expected(layer: FakeQuant) -> Iterator[Expected]:
    """The ranges of the inputs that one encoding serves: as calibrated, else as the float model's first layer tells."""
    if not layer.ports or not layer.has_range:
        return
    low, high = float(layer.low.numpy().min()), float(layer.high.numpy().max())
    for name, takes in layer.ports.items():
        if np.any(layer.count.numpy()):
            padding = tuple((value, value) for value in layer.padding.values())
            yield Expected(name, min(low, 0.0), max(high, 0.0), "which calibration saw", padding=padding)
        elif takes is not None:
            yield Expected(name, takes[0], takes[1], f"which its layer '{takes[2]}' takes")


def gather(model: keras.Model | Ports, data: Any, limit: int | None) -> list[np.ndarray]:
    """The first samples, one array for each input in order.

    Args:
        model: see `batches_of`.
        data: see `batches_of`.
        limit: see `batches_of`; None for all.

    Raises:
        ValueError: no data; see `batches_of`.
    """
    if limit is None:
        refuse_endless(data)
    collected = [[np.asarray(t) for t in keras.tree.flatten(x)] for x in batches_of(model, data, limit=limit)]
    if not collected or not sum(len(row[0]) for row in collected):
        raise ValueError("the data are empty; give at least one sample.")
    return [np.concatenate(column) for column in zip(*collected, strict=True)]


def batch_count(model: keras.Model | Ports, data: Any, batch_size: int = 32, limit: int | None = None) -> int | None:
    """How many batches `batches_of` will yield, for a progress bar; None where only running through them tells.

    Args:
        model: see `batches_of`.
        data: see `batches_of`; a function returning an iterator does not say how much it has.
        batch_size: for arrays.
        limit: see `batches_of`.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> batch_count(model, np.zeros((70, 4))), batch_count(model, np.zeros((70, 4)), limit=33)
        (3, 2)
        >>> batch_count(model, lambda: iter([])) is None
        True
    """
    most = int(limit) if isinstance(limit, Batches) else None
    if gives_batches(data):
        known = data.num_batches if isinstance(data, keras.utils.PyDataset) else None
        known = int(data.cardinality()) if isinstance(data, tf.data.Dataset) else known
        # nobody knows how many samples a batch of a dataset has: with a limit of samples there is nothing to say
        count = None if known is None or known < 0 or (limit is not None and most is None) else known
    else:
        leaf: Any = next(iter(keras.tree.flatten(_inputs_only(model, data))), None)
        count = None
        if hasattr(leaf, "shape") and len(leaf.shape):
            count = -(-(len(leaf) if limit is None or most is not None else min(len(leaf), limit)) // batch_size)
    return most if count is None else count if most is None else min(count, most)


def gives_batches(data: Any) -> bool:
    """True for what `batches_of` goes through batch by batch: everything but arrays."""
    return isinstance(data, tf.data.Dataset | keras.utils.PyDataset) or callable(data) or hasattr(data, "__next__")


def refuse_endless(data: Any, remedy: str = "say how much of it to use, like limit=1000") -> None:
    """Refuse data that say of themselves that they never end.

    Args:
        data: see `batches_of`.
        remedy: what to do about it.

    Raises:
        ValueError: a repeated `tf.data.Dataset`, or a `PyDataset` without a number of batches.
    """
    repeated = isinstance(data, tf.data.Dataset) and data.cardinality() == tf.data.INFINITE_CARDINALITY
    if repeated or (isinstance(data, keras.utils.PyDataset) and data.num_batches is None):
        raise ValueError(f"data: this dataset repeats forever; {remedy}.")


def _raw(model: keras.Model | Ports, data: Any, batch_size: int) -> Iterator[Any]:
    if isinstance(data, keras.utils.PyDataset):
        count = data.num_batches
        # without a number of batches it goes on until `limit` is reached; without that `refuse_endless` stopped it
        for i in itertools.count() if count is None else range(count):
            yield _inputs_only(model, telling(data.__getitem__)(i))
    elif isinstance(data, tf.data.Dataset):
        for batch in data:
            yield _inputs_only(model, batch)
    elif callable(data):
        batches: Any = telling(data)()
        for batch in each_told(batches):
            yield _inputs_only(model, batch)
    elif hasattr(data, "__next__"):
        raise ValueError(
            "data: received a generator that can run only once; pass the function that makes it, `lambda: samples()`."
        )
    elif isinstance(data, str | bytes | Path) or data is None:
        raise ValueError(f"data: expected samples (arrays, a dataset or a function). Received: {data!r}.")
    else:
        yield from _arrays(model, data, batch_size)


def _arrays(model: keras.Model | Ports, data: Any, batch_size: int) -> Iterator[Any]:
    beside, data = data, _inputs_only(model, data)
    count = len(model.inputs)
    _refuse_list_of_batches(data, model)
    if isinstance(data, dict):
        data = {k: array_of(f"data, input '{k}'", v) for k, v in data.items()}
    elif isinstance(data, list | tuple) and (count > 1 or _is_list_of_inputs(data, model.inputs[0])):
        data = [array_of(f"data, input {i}", v) for i, v in enumerate(data)]
    else:
        data = array_of("data", data)
    if any(a.ndim == 0 for a in keras.tree.flatten(data)):
        raise ValueError(f"data: expected arrays [samples, ...]. Received: {data}.")
    sizes = {len(a) for a in keras.tree.flatten(data)}
    if len(sizes) != 1:
        raise ValueError(f"data: every input needs the same number of samples. Received: {sorted(sizes)}.")
    for labels in beside[1:] if isinstance(beside, tuple) and beside is not data else ():
        if hasattr(labels, "shape") and np.ndim(labels) and {len(labels)} != sizes:
            raise ValueError(
                f"data: a tuple is (samples, labels), both of one length. Received: {sizes.pop()} samples, "
                f"{len(labels)} labels. Labels are not read here: the samples alone will do."
            )
    for start in range(0, sizes.pop(), batch_size):
        yield keras.tree.map_structure(lambda a, s=start: a[s : s + batch_size], data)


def _refuse_list_of_batches(data: Any, model: keras.Model | Ports) -> None:
    """A list means inputs, or samples; what looks like batches of the one input would be read as one array."""
    if not isinstance(data, list | tuple) or len(model.inputs) != 1 or len(data) < 2:
        return
    arrays: Sequence[Any] = data
    if np.ndim(arrays[0]) == len(model.inputs[0].shape):
        raise ValueError(
            f"data: expected one array for the one input '{model.inputs[0].name}'. Received: a list of {len(data)} "
            f"arrays, the first of shape {np.shape(arrays[0])}. A list means several inputs, or is read as one array; "
            "for batches pass a function: `lambda: iter(batches)`."
        )


def _is_list_of_inputs(data: Any, spec: Any) -> bool:
    """True for `[x]`, one array for the one input; a list of samples has one axis less."""
    return len(data) == 1 and np.ndim(data[0]) == len(spec.shape)


def _inputs_only(model: keras.Model | Ports, batch: Any) -> Any:
    """Drop labels and sample weights: `(x, y)` or `(x, y, w)` becomes `x`."""
    if not isinstance(batch, tuple):
        return batch
    count = len(model.inputs)
    # as Keras reads it: a flat tuple of as many as there are inputs is the inputs; labels come as ((a, b), y) then
    if count > 1 and len(batch) == count and not isinstance(batch[0], tuple | list | dict):
        return batch
    return batch[0] if 0 < len(batch) <= 3 else batch


def _checked(model: keras.Model | Ports, batch: Any, number: int, before: int) -> Any:
    """A batch as the model takes it: its number, and how many samples came before it, are for messages."""
    specs = model.inputs
    given = batch if not isinstance(batch, dict) else [_pick(batch, name, number) for name in _names(model)]
    flat = list(given) if isinstance(given, list | tuple) else [given]
    if len(flat) != len(specs):
        raise ValueError(
            f"data, batch {number}: expected {len(specs)} inputs ({', '.join(t.name for t in specs)}). "
            f"Received: {len(flat)}."
        )
    checked = [_one(x, t, number, before) for x, t in zip(flat, specs, strict=True)]
    if len({len(x) for x in checked}) > 1:
        raise ValueError(
            f"data, batch {number}: every input needs the same number of samples. "
            f"Received: {[len(x) for x in checked]}."
        )
    return keras.tree.pack_sequence_as(_structure(model), checked)


def _structure(model: keras.Model | Ports) -> Any:
    """The inputs, nested as the model takes them."""
    if isinstance(model, Ports):
        return model.inputs if model.struct is None else model.struct
    return model.input if isinstance(model, keras.Function) else model.inputs


def _names(model: keras.Model | Ports) -> list[str]:
    """The inputs in the model's order, as a dict of data names them: by key, or by the name of the input."""
    struct = _structure(model)
    keys = {id(t): key for key, t in struct.items()} if isinstance(struct, dict) else {}
    return [str(keys.get(id(t), t.name)) for t in model.inputs]


def _pick(batch: dict[str, Any], name: str, number: int) -> Any:
    if name not in batch:
        raise ValueError(f"data, batch {number}: no input '{name}'. Received: {', '.join(map(str, batch))}.")
    return batch[name]


def _one(given: Any, spec: Any, number: int, before: int) -> tf.Tensor:
    where = f"data, batch {number}, input '{spec.name}'"
    x = array_of(where, given)
    # NumPy's kind of bfloat16 is V, of no type that it knows
    real = x.dtype.kind in "fiub" or x.dtype == tf.bfloat16.as_numpy_dtype
    if not real or (x.dtype.kind == "f" and "int" in spec.dtype):
        way = _as_whole(x, spec)
        raise ValueError(f"{where}: expected numbers of type {spec.dtype}. Received: dtype {x.dtype}.{way}")
    expected = tuple(spec.shape[1:])
    if not has_shape(x.shape[1:], expected):
        raise ValueError(f"{where}: {wrong_shape(x.shape, expected)}")
    with np.errstate(over="ignore"):  # found right below
        converted = x.astype(spec.dtype)
    if not np.all(np.isfinite(converted)):
        hides = not np.any(np.isnan(converted)) and not np.any(converted == np.inf)
        way = "remove those samples" if not hides else "in a mask that is added to logits write -1e9"
        said = f"{'minus infinity' if hides else 'NaN or Inf'} among the values of {_samples_of(converted, before)}"
        raise ValueError(f"{where}: {said}; {way}.")
    return tf.convert_to_tensor(converted)


def _samples_of(x: np.ndarray, before: int) -> str:
    """Which samples of a batch hold what is not finite, by their numbers in the data."""
    bad = np.flatnonzero(~np.all(np.isfinite(x.reshape(len(x), -1)), axis=1))
    named = first_of(str(before + n) for n in bad)
    return f"{len(bad)} of the {len(x)} samples in this batch: {named} (counted from 0 over all data)"


def _as_whole(x: np.ndarray, spec: Any) -> str:
    """What to do with floats for an input of integers, for behind a full stop."""
    if x.dtype.kind != "f":
        return ""
    odd = x[x != np.rint(x)]  # NaN too
    if odd.size:
        return f" {odd[0]:g} among them is no whole number: is this the input '{spec.name}'?"
    return f" They are whole numbers: give x.astype('{spec.dtype}')."

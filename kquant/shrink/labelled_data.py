"""Samples with labels, for what needs a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kquant.calibration.data import batch_count, batches_of
from kquant.core.callers import each_told, telling

BATCH = 32


def labelled_batches(model: keras.Model, data: Any, labels: Any = None) -> Iterator[tuple[Any, Any]]:
    """Batches of (inputs, labels).

    Args:
        model: tells the inputs' structure.
        data: `(x, y)` arrays, a dataset of such batches, or a function returning an iterator of them; only x where
            `labels` is given.
        labels: [samples, ...], of arrays.

    Raises:
        ValueError: labels are missing, or not as many as samples.
    """
    if labels is None and isinstance(data, tuple) and len(data) == 2:
        data, labels = data
    if labels is not None:
        labels, start = np.asarray(labels), 0
        for x in batches_of(model, data, BATCH):
            count = len(keras.tree.flatten(x)[0])
            y = labels[start : start + count]
            if len(y) != count:
                raise ValueError(f"labels: expected one for each sample. Received: {len(labels)} for more samples.")
            yield x, tf.convert_to_tensor(y)
            start += count
        if start != len(labels):
            raise ValueError(f"labels: expected one for each sample. Received: {len(labels)} for {start} samples.")
        return
    if isinstance(data, tf.data.Dataset) or callable(data):
        batches: Any = data if isinstance(data, tf.data.Dataset) else telling(data)()
        for batch in each_told(batches):
            if not isinstance(batch, tuple) or len(batch) < 2:
                raise ValueError("data: this importance needs batches (inputs, labels); found no labels.")
            yield next(iter(batches_of(model, lambda b=batch[0]: iter([b])))), batch[1]
        return
    raise ValueError(
        "data: this importance needs samples with labels: data=(x, y), a dataset of (x, y), or data=x and labels=y. "
        f"Received: {type(data).__name__} without labels."
    )


def labelled_count(model: keras.Model, data: Any, labels: Any = None) -> int | None:
    """How many batches `labelled_batches` gives, for a progress bar; None where only running through them tells."""
    if labels is None and isinstance(data, tuple) and len(data) == 2:
        data = data[0]
    return batch_count(model, data, BATCH)


def loss_of(model: keras.Model, loss: Any = None) -> Callable[[Any, Any], Any]:
    """`(labels, outputs) -> scalar` of a Keras loss, its name, a function, or the compiled model.

    Raises:
        ValueError: none is given, and the model is not compiled with one.
    """
    if loss is None:
        loss = getattr(model, "loss", None)
    if loss is None:
        raise ValueError(
            f"{model.name}: importance='taylor' needs a loss. Compile the model with one, or give "
            "loss='sparse_categorical_crossentropy'."
        )
    if not (isinstance(loss, str | keras.losses.Loss) or callable(loss)):
        raise ValueError(f"loss: expected one Keras loss, its name or a function. Received: {loss!r}.")
    function: Any = keras.losses.get(loss) if isinstance(loss, str) else loss
    return lambda labels, outputs: tf.reduce_mean(function(labels, outputs))

"""`predict` of arrays in batches that are cut from them, as Keras computes it of a `tf.data.Dataset`.

Keras makes such a dataset at every call: some ten stages, which take 40 to 50 ms of the processor before the first
batch comes, as long as small networks take for hundreds of images. Batches of arrays are slices. What is no plain
array, and whatever else Keras' loop minds (callbacks, a strategy, `run_eagerly`), stays with it.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

DEFAULT_BATCH = 32  # Keras'
KINDS = "fiub"  # of NumPy's types: floats, integers, truths


def rows_of(arrays: Any) -> int:
    """How many samples plain arrays hold; 0 of anything else, of none, and where the arrays differ in it.

    Args:
        arrays: one, or a list or dict of them.

    Example:
        >>> rows_of([np.zeros((3, 2)), tf.zeros((3,))]), rows_of([np.zeros(3), np.zeros(2)]), rows_of(iter([1.0]))
        (3, 0, 0)
    """
    flat = keras.tree.flatten(arrays)
    if not flat or not all(_is_plain(a) for a in flat):
        return 0
    counts = {int(a.shape[0]) for a in flat}
    return counts.pop() if len(counts) == 1 else 0


def _is_plain(a: Any) -> bool:
    if isinstance(a, np.ndarray):
        return a.ndim > 0 and a.dtype.kind in KINDS
    return isinstance(a, tf.Tensor) and not tf.is_symbolic_tensor(a) and bool(len(a.shape)) and a.dtype != tf.string


def may_slice(model: keras.Model) -> bool:
    """True where one batch after the other goes through one graph, and nothing beside the data says how many."""
    most = getattr(keras.config, "max_steps_per_epoch", None)  # since Keras 3.12
    limited = most is not None and most() is not None
    alone = not tf.distribute.has_strategy() and model.distribute_strategy is tf.distribute.get_strategy()
    return alone and not (limited or model.run_eagerly) and model.steps_per_execution == 1


def predict(model: keras.Model, x: Any, batch_size: int | None = None, verbose: Any = "auto") -> Any:
    """`keras.Model.predict(model, x, batch_size, verbose)`, without a dataset.

    Args:
        model: of which `may_slice` is true.
        x: plain arrays, of which `rows_of` tells a number of samples.
        batch_size: 32 by default.
        verbose: as Keras takes it.

    Returns:
        An array, or a structure of them, as the model gives it.

    Example:
        >>> inputs = keras.Input((2,))
        >>> predict(keras.Model(inputs, keras.layers.Rescaling(2.0)(inputs)), np.ones((3, 2)), 2, verbose=0).tolist()
        [[2.0, 2.0], [2.0, 2.0], [2.0, 2.0]]
    """
    size, rows = batch_size or DEFAULT_BATCH, rows_of(x)
    steps = math.ceil(rows / size)
    bar = keras.callbacks.CallbackList(
        None, add_progbar=verbose != 0, verbose=verbose, epochs=1, steps=steps, model=model
    )
    model.make_predict_function()
    function: Any = model.predict_function
    # one trace for batches of any size, the last one's too: with each size of its own a large model is traced twice
    if not model.run_eagerly:
        function.get_concrete_function([(keras.tree.map_structure(_any_batch, _batch(x, 0, 1)),)])
    bar.on_predict_begin()
    made = []
    for step in range(steps):
        bar.on_predict_batch_begin(step)
        made.append(function([(_batch(x, step * size, size),)]))
        bar.on_predict_batch_end(step, {"outputs": made[-1]})
    bar.on_predict_end()
    return keras.tree.map_structure(lambda *parts: np.concatenate([np.asarray(y) for y in parts]), *made)


def _any_batch(rows: tf.Tensor) -> tf.TensorSpec:
    return tf.TensorSpec([None, *rows.shape[1:]], rows.dtype)


def _batch(arrays: Any, begin: int, size: int) -> Any:
    """Some samples as tensors: floats of the type that Keras computes in, and tuples for lists, as in its datasets."""

    def part(a: Any) -> tf.Tensor:
        rows = tf.convert_to_tensor(a[begin : begin + size])
        return tf.cast(rows, keras.config.floatx()) if rows.dtype.is_floating else rows

    return keras.tree.map_structure(part, keras.tree.lists_to_tuples(arrays))

"""`predict` and `evaluate` of arrays in batches that are cut from them, as Keras computes them of a `tf.data.Dataset`.

Keras makes such a dataset at every call: some ten stages, which take 40 to 50 ms of the processor before the first
batch comes, as long as small networks take for hundreds of images. Batches of arrays are slices. What is no plain
array, and whatever else Keras' loop minds (a strategy, functions that run eagerly, several steps in one, callbacks of
`predict`), stays with it. Callbacks of `evaluate` are called here as they are there.
"""

from __future__ import annotations

import math
import numbers
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from kquant.core.joined import joining
from kquant.graph.keras_private import in_order, results_of

DEFAULT_BATCH = 32  # Keras'
FILLED = 0.75  # of a batch, from which on it is filled up
KINDS = "fiub"  # of NumPy's types: floats, integers, truths


def size_of(who: str, batch_size: Any) -> int:
    """How many samples a batch of arrays has.

    Args:
        who: the verb that errors name.
        batch_size: that its caller gave.

    Raises:
        ValueError: it is none.

    Example:
        >>> size_of("predict", None), size_of("predict", np.int64(8))
        (32, 8)
        >>> size_of("predict", 8.0)
        Traceback (most recent call last):
        ValueError: predict: batch_size is a whole number of samples, 1 or more, or None. Received: 8.0.
    """
    if batch_size is None or (isinstance(batch_size, numbers.Integral) and int(batch_size) >= 0):
        return int(batch_size or DEFAULT_BATCH)  # 0 is None to Keras
    raise ValueError(f"{who}: batch_size is a whole number of samples, 1 or more, or None. Received: {batch_size!r}.")


class Ahead(NamedTuple):
    """Several batches that a `test_step` computes at once and judges one after the other (`by_xla.judging_ahead`).

    Attributes:
        size: of a batch, a scalar.
        data: `x`, `(x, y)` or `(x, y, sample_weight)` of all of them.
    """

    size: Any
    data: Any


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
    """True where one batch after the other goes through one graph, and nothing beside the data says how many.

    Example:
        >>> inputs = keras.Input((2,))
        >>> model = keras.Model(inputs, keras.layers.Rescaling(2.0)(inputs))
        >>> model.compile(run_eagerly=True)
        >>> may_slice(model)
        False
    """
    most = getattr(keras.config, "max_steps_per_epoch", None)  # since Keras 3.12
    limited = most is not None and most() is not None
    alone = not tf.distribute.has_strategy() and model.distribute_strategy is tf.distribute.get_strategy()
    eager = model.run_eagerly or tf.config.functions_run_eagerly()
    return alone and not (limited or eager) and model.steps_per_execution == 1


def predict(
    model: keras.Model,
    x: Any,
    batch_size: int | None = None,
    verbose: Any = "auto",
    rest: keras.Model | None = None,
) -> Any:
    """`keras.Model.predict(model, x, batch_size, verbose)`, without a dataset.

    Args:
        model: of which `may_slice` is true.
        x: plain arrays, of which `rows_of` tells a number of samples.
        batch_size: 32 by default.
        verbose: as Keras takes it.
        rest: runs a last batch that is far from full, where `model` has a size of its own for each; else one that is
            nearly full is filled up.

    Returns:
        An array, or a structure of them, as the model gives it.

    Example:
        >>> inputs = keras.Input((2,))
        >>> predict(keras.Model(inputs, keras.layers.Rescaling(2.0)(inputs)), np.ones((3, 2)), 2, verbose=0).tolist()
        [[2.0, 2.0], [2.0, 2.0], [2.0, 2.0]]
    """
    size, rows = size_of("predict", batch_size), rows_of(x)
    steps = math.ceil(rows / size)
    bar = keras.callbacks.CallbackList(
        None, add_progbar=verbose != 0, verbose=verbose, epochs=1, steps=steps, model=model
    )
    left, function = rows % size, _function(model, x)
    last = function
    if left and rest is not None and left < FILLED * size:
        with joining(False):  # its trace
            last = _function(rest, x)
    elif left and rest is not None:
        last = lambda given: _filled(function, given, size, left)  # noqa: E731
    bar.on_predict_begin()
    made = []
    for step in range(steps):
        bar.on_predict_batch_begin(step)
        made.append((function if rows - step * size >= size else last)([(_batch(x, step * size, size),)]))
        bar.on_predict_batch_end(step, {"outputs": made[-1]})
    bar.on_predict_end()
    return keras.tree.map_structure(lambda *parts: np.concatenate([np.asarray(y) for y in parts]), *made)


def data_of(x: Any, y: Any, sample_weight: Any) -> Any:
    """What Keras makes of the arguments of `evaluate`, where all are plain arrays of as many samples.

    Returns:
        `x`, `(x, y)` or `(x, y, sample_weight)`; None of everything else, and of weights that Keras has to spread
        over several outputs.

    Example:
        >>> data_of(np.ones(3), np.zeros(3), None), data_of(np.ones(3), np.zeros(2), None)
        ((array([1., 1., 1.]), array([0., 0., 0.])), None)
    """
    if y is not None and sample_weight is not None:
        try:
            keras.tree.assert_same_structure(y, sample_weight)
        except (ValueError, TypeError):
            return None
    data = keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
    return data if rows_of(data) else None


def evaluate(
    model: keras.Model,
    data: Any,
    batch_size: int | None = None,
    verbose: Any = "auto",
    callbacks: Any = None,
    return_dict: bool = False,
    ahead: int = 1,
) -> Any:
    """`keras.Model.evaluate(model, ...)`, without a dataset: the same steps, losses and metrics, batch by batch.

    Args:
        model: compiled, of which `may_slice` is true.
        data: that `data_of` gave.
        batch_size: 32 by default.
        verbose: as Keras takes it.
        callbacks: likewise.
        return_dict: likewise.
        ahead: so many batches are one call of `test_step`, as `Ahead`, where that is more than 1, and where losses and
            metrics can be traced so.

    Returns:
        As Keras: the loss, a list of it and metrics, or a dict of them by name.

    Example:
        >>> inputs = keras.Input((2,))
        >>> model = keras.Model(inputs, keras.layers.Rescaling(2.0)(inputs))
        >>> model.compile(loss="mse")
        >>> evaluate(model, (np.ones((3, 2)), np.zeros((3, 2))), 2, verbose=0)
        4.0
    """
    size, rows = size_of("evaluate", batch_size), rows_of(data)
    steps = math.ceil(rows / size)
    if not isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = keras.callbacks.CallbackList(
            callbacks, add_progbar=verbose != 0, verbose=verbose, epochs=1, steps=steps, model=model
        )
    model.make_test_function()
    function = _judging(model.test_function)
    if ahead > 1 and not _traces_ahead(function, data, size, ahead):
        ahead = 1
    model.stop_evaluating = False
    callbacks.on_test_begin()
    model.reset_metrics()
    logs: Any = {}
    for step in range(0, steps, ahead):
        callbacks.on_test_batch_begin(step)
        batch = _batch(data, step * size, ahead * size)
        if ahead > 1:
            batch = Ahead(tf.constant(size), batch)
        elif not step:  # after what callbacks begin with
            _trace(function, batch, rows % size == 0)
        logs = function(batch)
        callbacks.on_test_batch_end(min(step + ahead, steps) - 1, logs)
        if model.stop_evaluating:
            break
    logs = results_of(model, logs)
    callbacks.on_test_end(logs)
    return logs if return_dict else in_order(model, logs)


def _judging(function: Any) -> Any:
    """Keras' function, which takes an iterator, of one batch; it lasts as long as that one."""
    if not hasattr(function, "of_batch"):
        function.of_batch = tf.function(lambda batch: function([batch]), autograph=False, reduce_retracing=True)
    return function.of_batch


def _trace(function: Any, batch: Any, full: bool) -> None:
    """One trace for batches of any size; where all are full their size is known in it, as it is in Keras' loop."""
    function.get_concrete_function(keras.tree.map_structure(tf.type_spec_from_value if full else _any_batch, batch))


def _traces_ahead(function: Any, data: Any, size: int, ahead: int) -> bool:
    """True where a function takes `Ahead`; that it does not is remembered for as long as it lasts.

    Losses may ask for the size of a batch, and metrics keep a tensor for `result`: both may be done in a graph of one
    batch, and neither in that of a loop over batches.
    """
    if getattr(function, "one_by_one", False):
        return False
    try:
        several = Ahead(tf.constant(size), _batch(data, 0, ahead * size))
        function.get_concrete_function(keras.tree.map_structure(_any_batch, several))
    except Exception:  # whatever somebody's loss or metric raises
        # raises again what is wrong with the data or the model, which no way of running them mends
        _trace(function, _batch(data, 0, size), rows_of(data) % size == 0)
        function.one_by_one = True
        return False
    return True


def _function(model: keras.Model, x: Any) -> Any:
    """That of `predict`, with one trace for batches of any size: with each of its own a large model is traced twice."""
    model.make_predict_function()
    function: Any = model.predict_function
    if not model.run_eagerly:
        function.get_concrete_function([(keras.tree.map_structure(_any_batch, _batch(x, 0, 1)),)])
    return function


def _filled(function: Any, given: Any, size: int, rows: int) -> Any:
    """What a function makes of fewer rows than its size: the last one is repeated, and what comes of that dropped."""
    places = np.minimum(np.arange(size), rows - 1)
    return keras.tree.map_structure(
        lambda y: y[:rows], function(keras.tree.map_structure(lambda a: tf.gather(a, places), given))
    )


def _any_batch(rows: tf.Tensor) -> tf.TensorSpec:
    return tf.TensorSpec([None, *rows.shape[1:]] if rows.shape.rank else [], rows.dtype)


def _batch(arrays: Any, begin: int, size: int) -> Any:
    """Some samples as tensors: floats of the type that Keras computes in, and tuples for lists, as in its datasets."""

    def part(a: Any) -> tf.Tensor:
        rows = tf.convert_to_tensor(a[begin : begin + size])
        return tf.cast(rows, keras.config.floatx()) if rows.dtype.is_floating else rows

    return keras.tree.map_structure(part, keras.tree.lists_to_tuples(arrays))

"""`predict` of networks without convolutions by XLA, where a model predicts so much that compiling it pays.

    networks   no convolution in them, and no Embedding: recurrent layers, attention, Dense
    when       `MANY` batches of arrays in all, with variables as they are now; the call that reaches it counts
    else       Keras' own graph: other data, callbacks, a strategy, `run_eagerly`, `jit_compile=False` in `compile`

A step of a recurrent layer is a hundred small operations, and TensorFlow takes a few microseconds to start each; XLA
makes few of them. To compile takes it about as long as it saves in `MANY` batches. The codes are the same.
Where XLA refuses a model, its graph runs as before.

Batches are made larger where samples, and all that is computed of them, are small (`SAMPLES`, `NUMBERS`): what a batch
costs beside its samples is then paid less often, and no result depends on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kquant.graph.keras_private import every_layer, recorded_calls

MANY = 256
DEFAULT_BATCH = 32  # Keras'
SAMPLES = 256  # of a batch that is made larger
NUMBERS = 2**20  # at most so many in the largest tensor of such a batch
CONVOLUTIONS = tuple(getattr(keras.layers, name) for name in dir(keras.layers) if "Conv" in name)
# TensorFlow's graph refuses an index beyond the table; XLA takes the last row, and nobody hears of it.
LEFT_TO_GRAPHS = (*CONVOLUTIONS, keras.layers.Embedding)


@dataclass(frozen=True)
class Compiled:
    """What a model has predicted so far, and its function by XLA.

    Attributes:
        digest: of the variables.
        batches: with these variables.
        function: of Keras, once it is made.
        beside: Keras' function without XLA. Who lets go of that one, as `compile` and corrections do, means both.
        refused: XLA takes the model not.
    """

    digest: bytes = b""
    batches: int = 0
    function: Any = None
    beside: Any = None
    refused: bool = False


def batches_of(x: Any, batch_size: int | None) -> int:
    """How many batches arrays are; 0 of other data."""
    arrays = keras.tree.flatten(x)
    if not arrays or not all(isinstance(a, np.ndarray | tf.Tensor) and len(a.shape) for a in arrays):
        return 0
    counts = {int(a.shape[0]) for a in arrays}
    return math.ceil(counts.pop() / (batch_size or DEFAULT_BATCH)) if len(counts) == 1 else 0


def may_compile(model: keras.Model) -> bool:
    """Whether XLA makes a model faster that Keras itself does not compile by it."""
    if model.jit_compile or model.run_eagerly:
        return False
    return not any(isinstance(layer, LEFT_TO_GRAPHS) for layer in every_layer(model))


def counted(known: Compiled, digest: bytes, batches: int, beside: Any) -> Compiled:
    """What is known once a call of so many batches is there.

    Args:
        known: before.
        digest: of the variables.
        batches: of the call.
        beside: Keras' function without XLA now.
    """
    if known.digest != digest:
        return Compiled(digest, batches, refused=known.refused)
    function = known.function if known.beside is beside else None
    return replace(known, batches=known.batches + batches, function=function, beside=beside)


def largest(model: keras.Model, x: Any) -> int:
    """Numbers in the largest tensor that a model computes of one sample; an unknown length is the longest of the data.

    Args:
        model: a Functional one, as every quantized model is.
        x: arrays, a row for each sample.

    Example:
        >>> inputs = keras.Input((None, 4))
        >>> largest(keras.Model(inputs, keras.layers.Dense(8)(inputs)), np.zeros((2, 100, 4)))
        800
    """
    inputs = [tuple(a.shape[1:]) for a in keras.tree.flatten(x)]
    longest = max((n for shape in inputs for n in shape), default=1)
    made = [tuple(t.shape[1:]) for call in recorded_calls(model) for t in call.outputs]
    return max(math.prod(longest if n is None else n for n in shape) for shape in (*inputs, *made))


def batch_for(count: int, batch_size: int | None, of_sample: int) -> int:
    """The size of batches by XLA: what was asked for, times a power of two.

    Args:
        count: of samples.
        batch_size: that was asked for.
        of_sample: numbers in the largest tensor of one.

    Example:
        >>> batch_for(70, 32, 1), batch_for(128, 16, 64000), batch_for(4096, 64, 512)
        (128, 16, 256)
    """
    size = batch_size or DEFAULT_BATCH
    while size * 2 <= SAMPLES and size * 2 * of_sample <= NUMBERS and size < count:
        size *= 2
    return size


def in_whole_batches(run: Callable[[Any], Any], x: Any, size: int) -> Any:
    """`run(x)` with the last batch as large as the others, since XLA compiles each size of a batch anew.

    Args:
        run: gives outputs for arrays, a row for each sample.
        x: arrays of one length.
        size: of a batch.

    Example:
        >>> in_whole_batches(lambda x: x * 2, np.arange(3), 2)
        array([0, 2, 4])
    """
    count = len(keras.tree.flatten(x)[0])
    rest = count % size
    if not rest:
        return run(x)
    tail = keras.tree.map_structure(lambda a: _filled(np.asarray(a[count - rest :]), size), x)
    if rest == count:
        return keras.tree.map_structure(lambda y: y[:rest], run(tail))
    # a slice of an array is no copy of it: what lies in a file is not read here
    whole = run(keras.tree.map_structure(lambda a: a[: count - rest], x))
    return keras.tree.map_structure(lambda y, more: np.concatenate([y, more[:rest]]), whole, run(tail))


def _filled(rows: np.ndarray, size: int) -> np.ndarray:
    """Rows up to a size, by the last one again."""
    return np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), axis=0)])

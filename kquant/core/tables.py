"""Tables that a graph looks numbers up in, and what XLA makes of that on a processor.

XLA joins a chain of operations into one loop over the elements, which the processor then runs for several of them at
once, unless one of them reads a table: then it goes one by one, with all that stands before and behind. A branch is not
joined. So graphs for XLA look up in a branch that is always taken; for a GRU that halves the time.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

_BY_XLA: contextvars.ContextVar[bool] = contextvars.ContextVar("by_xla", default=False)


@contextlib.contextmanager
def for_xla(wanted: bool = True) -> Iterator[None]:
    """Inside, graphs are traced for XLA, where that is wanted and processors are all there is to compute on."""
    token = _BY_XLA.set(wanted and not tf.config.list_logical_devices("GPU"))
    try:
        yield
    finally:
        _BY_XLA.reset(token)


def looked_up(table: Any, places: tf.Tensor) -> tf.Tensor:
    """`table[places]`.

    Args:
        table: [entries].
        places: int32[...], from 0 on.

    Returns:
        Of the type of the table, shaped like `places`.

    Example:
        >>> from kquant.core.tables import for_xla, looked_up
        >>> looked_up(tf.constant([5.0, 7.0]), tf.constant([1, 0])).numpy().tolist()
        [7.0, 5.0]
        >>> with for_xla():
        ...     function = tf.function(lambda at: looked_up(tf.constant([5.0, 7.0]), at), jit_compile=True)
        ...     print(function(tf.constant([[1], [0]])).numpy().tolist())
        [[7.0], [5.0]]
    """
    if not _BY_XLA.get() or tf.executing_eagerly() or len(places.shape) < 2:
        return tf.gather(table, places)
    # no place is below 0, which XLA does not know
    taken = tf.reshape(places, (-1,))[0] >= 0
    table = tf.convert_to_tensor(table)
    values = tf.cond(taken, lambda: tf.gather(table, places), lambda: tf.zeros(tf.shape(places), table.dtype))
    values.set_shape(places.shape)
    return values

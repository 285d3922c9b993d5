"""Chains of operations on the elements of a tensor as one function by XLA, in graphs that leave the rest as it is.

Between two convolutions a simulation makes six to twenty-five passes over a tensor, of TensorFlow's operations each.
XLA makes one loop of them. Convolutions themselves are several times slower by XLA than by TensorFlow on a processor,
those of single channels twenty times, so such a network is not compiled as a whole.

What XLA has compiled stays in memory until the process ends, after its model is gone, too: 0.7 MB a function.
So a process counts what it has compiled (`so_far`), and stops at `MOST`.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

MOST = 512  # functions of a process
_COMPILED = {"functions": 0}
_JOINING: contextvars.ContextVar[bool] = contextvars.ContextVar("joining", default=False)


@contextlib.contextmanager
def joining(wanted: bool = True) -> Iterator[None]:
    """Inside, graphs that are traced have what is `joined` compiled, where that is wanted."""
    token = _JOINING.set(wanted)
    try:
        yield
    finally:
        _JOINING.reset(token)


def so_far() -> int:
    """How many functions this process has had compiled."""
    return _COMPILED["functions"]


def count(functions: int) -> None:
    """So many more are compiled."""
    _COMPILED["functions"] += functions


def is_joining() -> bool:
    """True where what is `joined` is compiled."""
    return _JOINING.get() and not tf.executing_eagerly()


def joined(function: Callable[[Any], tf.Tensor], dtype: tf.DType = tf.float32) -> Callable[[Any], tf.Tensor]:
    """The function as it is, or inside `joining` by XLA and with results in this type.

    Args:
        function: of a tensor or a list of them, element by element; whole numbers that the type holds come out.
        dtype: of the results.

    Example:
        >>> double = lambda x: tf.cast(x, tf.float64) * 2.0
        >>> joined(double)(tf.constant(3.0)).dtype.name
        'float64'
        >>> with joining():
        ...     made = tf.function(lambda x: joined(double)(x))(tf.constant(3.0))
        >>> made.dtype.name, float(made)
        ('float32', 6.0)
    """
    if not is_joining():
        return function
    count(1)
    return tf.function(lambda given: tf.cast(function(given), dtype), jit_compile=True, autograph=False)

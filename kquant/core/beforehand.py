"""What a graph computes of weights and ranges alone, computed before it: `predict` sees the same ones at every batch.

    with constants():            # while a graph is traced that is thrown away when a variable changes
        with beforehand(scale):  # nothing in here reads the graph's own tensors
            ...                  # runs once, now; the graph holds the results

A quantized layer takes a hundred small operations for its scales, multipliers and codes of weights. TensorFlow needs
about as long to build, optimize and start each of them as it needs for the convolution of one small image.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import tensorflow as tf

_CONSTANT: contextvars.ContextVar[bool] = contextvars.ContextVar("constant", default=False)


@contextlib.contextmanager
def constants() -> Iterator[None]:
    """Inside, graphs may hold what variables hold now. Who traces one so has to trace it again when they change."""
    # Of replicas each has variables of its own, which nobody outside of them can read.
    token = _CONSTANT.set(not tf.distribute.has_strategy())
    try:
        yield
    finally:
        _CONSTANT.reset(token)


def in_constants() -> bool:
    """True inside `constants`: of such a graph nobody asks a gradient."""
    return _CONSTANT.get()


def beforehand(*tensors: Any) -> AbstractContextManager[Any]:
    """A block that runs before the graph that is being traced, where that may be, and as ever elsewhere.

    Args:
        tensors: all that the block reads beside variables.
    """
    known = _CONSTANT.get() and not tf.executing_eagerly() and not any(map(tf.is_symbolic_tensor, tensors))
    return tf.init_scope() if known else contextlib.nullcontext()

"""Zeros that many layers ask for: initial values, encodings of floats."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import tensorflow as tf


def zeros(shape: Sequence[int], dtype: str = "float32") -> tf.Tensor:
    """Zeros of a few numbers; outside of graphs one tensor for all that ask, as TensorFlow fills one in a tenth of a
    millisecond, and a model has hundreds. Also an initializer for `add_weight`.

    Args:
        shape: small and known.
        dtype: name of the type.

    Example:
        >>> zeros((2,)).numpy().tolist(), zeros((2,)) is zeros([2])
        ([0.0, 0.0], True)
    """
    return _held(tuple(shape), dtype) if tf.executing_eagerly() else tf.zeros(shape, dtype)


@cache
def _held(shape: tuple[int, ...], dtype: str) -> tf.Tensor:
    return tf.constant(np.zeros(shape, dtype))

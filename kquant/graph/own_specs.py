"""Shapes of what a layer computes, where its class says them of another `call` than its own.

A layer that is derived from one of Keras' and has a `call` with more arguments (a cache) inherits a
`compute_output_spec` that does not know them. Keras asks it on symbolic tensors only: on data such a layer runs.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import keras

from kquant.graph.keras_private import every_layer

SPEC = "compute_output_spec"


@contextlib.contextmanager
def specs_of_calls(op: Any) -> Iterator[None]:
    """Inside, layers in `op` whose class has a `call` of its own and an older `compute_output_spec` run the former.

    Args:
        op: a layer or model.

    Example:
        >>> class Doubled(keras.layers.Softmax):
        ...     def compute_output_spec(self, x): return x
        >>> class Cached(Doubled):
        ...     def call(self, x, cache=None): return keras.ops.concatenate([x, x])
        >>> layer = Cached()
        >>> with specs_of_calls(layer):
        ...     layer(keras.Input((3,), batch_size=2), cache=None).shape
        (4, 3)
        >>> "compute_output_spec" in vars(layer)
        False
    """
    inside = every_layer(op) if isinstance(op, keras.layers.Layer) else []
    older = [layer for layer in inside if _is_older(type(layer)) and SPEC not in vars(layer)]
    for layer in older:  # past Keras, which would track what is set
        layer.__dict__[SPEC] = functools.partial(keras.Operation.compute_output_spec, layer)
    try:
        yield
    finally:
        for layer in older:
            del layer.__dict__[SPEC]


def _is_older(kind: type) -> bool:
    """True where a class above the one with the `call` says what comes out, other than by running it."""
    first = {name: next(i for i, c in enumerate(kind.__mro__) if name in vars(c)) for name in ("call", SPEC)}
    return first["call"] < first[SPEC] and kind.__mro__[first[SPEC]] not in (keras.layers.Layer, keras.Operation)

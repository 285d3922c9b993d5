"""Layers made in a hurry: those that are copied, or made to take over values, need no names or random numbers."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

NAME = "variable/"  # the slash keeps TensorFlow from putting the layer's name before it

CONSTANT = (keras.initializers.Zeros, keras.initializers.Ones, keras.initializers.Constant)


def with_one_name() -> contextlib.AbstractContextManager:
    """Inside, TensorFlow's own names of variables are all alike; Keras' `name` and `path` are not touched.

    The eager runtime builds the operator that makes a variable anew for each name: 0.6 ms, and a model has hundreds.
    """

    def create(following: Callable[..., Any], **kwargs: Any) -> Any:
        return following(**{**kwargs, "name": NAME})

    return tf.variable_creator_scope(create)


@contextlib.contextmanager
def without_random(layer: keras.layers.Layer) -> Iterator[None]:
    """Inside, `layer` builds with zeros: its values are about to be assigned. Its config stays what it was.

    Args:
        layer: not built yet.
    """
    zeros = keras.initializers.Zeros()
    own = {
        name: value
        for name, value in vars(layer).items()
        if isinstance(value, keras.initializers.Initializer) and not isinstance(value, CONSTANT)
    }
    for name in own:
        setattr(layer, name, zeros)
    try:
        yield
    finally:
        for name, value in own.items():
            setattr(layer, name, value)


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Inside, Python's garbage collector rests.

    What makes many objects, as the building of a model or of a file does, sets it off, and it then walks through all
    that Keras and TensorFlow hold: a fifth of a second, to find nothing.
    """
    rests = not gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not rests:
            gc.enable()

"""What a user gave is a Keras 3 model, or is refused with the way to one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

from kquant.graph.keras_private import every_layer

# Where Keras 2 keeps its classes: the legacy package, standalone Keras 2, and TensorFlow's own copy.
KERAS_2 = ("tf_keras", "keras.src.engine", "keras.engine", "tensorflow.python.keras")


def check_keras(model: Any, verb: str) -> None:
    """Refuse what is no Keras 3 model, with the way to one.

    Args:
        model: what a user gave.
        verb: that got it, for messages.

    Raises:
        ValueError: names what came.

    Example:
        >>> check_keras(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]), "quantize")
    """
    if isinstance(model, keras.Model):
        return
    kind = f"{type(model).__module__}.{type(model).__name__}"
    if any(cls.__module__.startswith(KERAS_2) for cls in type(model).__mro__):
        raise ValueError(
            f"{getattr(model, 'name', 'model')}: this is a Keras 2 model ({kind}); kquant reads Keras 3. Build the "
            "same model with Keras 3 (`import keras`) and copy the weights: `new.set_weights(old.get_weights())`; or "
            "save it, and kquant migrate brings the file over."
        )
    said, way = f"{verb}: expected a keras.Model. Received", "."
    if isinstance(model, str | Path):
        raise ValueError(f"{said}: the path {model}; load it with keras.models.load_model.")
    if isinstance(model, keras.layers.Layer):
        way = ". A single layer goes into keras.Sequential([keras.Input(shape), layer])."
    raise ValueError(f"{said}: {kind}{way}")


def layers_of(model: Any, verb: str) -> list[keras.layers.Layer]:
    """What was given and all layers in it, at any depth.

    Args:
        model: what a user gave.
        verb: that got it, for messages.

    Raises:
        ValueError: see `check_keras`.

    Example:
        >>> model = keras.Sequential([keras.layers.ReLU(name="relu")], name="m")
        >>> [layer.name for layer in layers_of(model, "quantize")]
        ['m', 'relu']
    """
    check_keras(model, verb)
    return every_layer(model)

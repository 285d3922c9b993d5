"""What a user gave is a Keras 3 model with weights that kquant can read, or is refused with the way to one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np

from kquant.core.messages import first_of
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
    kind = "None" if model is None else f"{type(model).__module__}.{type(model).__name__}"
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


def float_layers(model: Any, verb: str) -> list[keras.layers.Layer]:
    """`layers_of` a model whose weights are float32 numbers.

    Args:
        model: what a user gave.
        verb: that got it, for messages.

    Raises:
        ValueError: see `check_keras`; Keras quantized it, or its weights are not float32 or not finite: names the layer
            or variable.

    Example:
        >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2, name="head")], name="m")
        >>> [layer.name for layer in float_layers(model, "quantize")]
        ['m', 'x', 'head']
    """
    layers = layers_of(model, verb)
    grids = [layer.name for layer in layers if getattr(layer, "quantization_mode", None)]
    if grids:
        raise ValueError(
            f"{model.name}: Keras quantized {first_of(grids)} (`model.quantize`); kquant finds its own grids. Pass the "
            "float model, as it was before."
        )
    for variable in model.variables:
        if "float" in variable.dtype and variable.dtype != "float32":
            raise ValueError(
                f"{model.name}: variable '{variable.path}' is {variable.dtype}; kquant reads float32 weights. Rebuild "
                "the model with dtype float32 (or mixed_float16, which keeps float32 weights) and copy the weights."
            )
    check_finite(model)
    return layers


def check_finite(model: keras.Model) -> None:
    """Refuse weights that are no numbers; metrics may hold such.

    Args:
        model: any built Keras model.

    Raises:
        ValueError: names the variable.

    Example:
        >>> check_finite(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
    """
    for variable in model.weights:
        if "float" in variable.dtype and not np.all(np.isfinite(variable.numpy())):
            raise ValueError(f"{model.name}: variable '{variable.path}' holds NaN or Inf; restore a good checkpoint.")

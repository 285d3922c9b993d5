"""What every verb that makes another model asks of the one that it is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np

from kquant.core.messages import first_of, warn
from kquant.graph.keras_private import every_layer

# Where Keras 2 keeps its classes: the legacy package, standalone Keras 2, and TensorFlow's own copy.
KERAS_2 = ("tf_keras", "keras.src.engine", "keras.engine", "tensorflow.python.keras")
STEPS = ("train_step", "test_step", "predict_step", "compute_loss", "compute_metrics")


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
            "same model with Keras 3 (`import keras`) and copy the weights: `new.set_weights(old.get_weights())`."
        )
    said, way = f"{verb}: expected a keras.Model. Received", "."
    if isinstance(model, str | Path):
        raise ValueError(f"{said}: the path {model}; load it with keras.models.load_model.")
    if isinstance(model, keras.layers.Layer):
        way = ". A single layer goes into keras.Sequential([keras.Input(shape), layer])."
    raise ValueError(f"{said}: {kind}{way}")


def check_weights(model: keras.Model) -> None:
    """Refuse weights that kquant cannot read.

    Args:
        model: any built Keras model.

    Raises:
        ValueError: Keras quantized it, or its weights are not float32 or not finite; names the layer or variable.

    Example:
        >>> check_weights(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
    """
    grids = [layer.name for layer in every_layer(model) if getattr(layer, "quantization_mode", None)]
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


def warn_lost_losses(model: keras.Model) -> None:
    """Name layers whose activity regularizer training will not see: their outputs are computed inside a wrapper."""
    lost = [layer.name for layer in every_layer(model) if layer.activity_regularizer is not None]
    if lost:
        warn(
            f"quantize: the activity regularizers of {', '.join(lost)} do not act on the quantized model; kernel and "
            "bias regularizers do. Add the penalty to the loss where training needs it."
        )


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


def warn_lost_steps(model: keras.Model, new: keras.Model, verb: str) -> None:
    """Name what a class of the user's does in `fit` and the new model, which is of Keras' class, does not.

    Args:
        model: the given one.
        new: made of it.
        verb: that made it, called by the user and calling this.
    """
    if type(model).__module__.startswith("kquant."):
        return
    lost = [name for name in STEPS if _method(model, name) is not _method(new, name)]
    if lost:
        kind, named = type(model).__name__, ", ".join(lost)
        warn(
            f"{verb}: {kind} has {named} of its own, and the new model, a {type(new).__name__}, does not: fit would "
            f"train it in Keras' way. Write {named} in a class around the result, class Own(keras.Model), and train "
            "own = Own(new.inputs, new.outputs): the two are one set of weights (docs/training.md)."
        )


def _method(model: Any, name: str) -> Any:
    """The function behind a method, also one that was put into the model itself."""
    method = getattr(model, name)
    return getattr(method, "__func__", method)

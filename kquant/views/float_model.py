"""Read a float model: what it must be, what of it a new model will not do, and its calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from kquant.core.messages import first_of, warn
from kquant.graph.graph import Graph, trace
from kquant.graph.inputs import check_static, inputs_of
from kquant.ops import find
from kquant.ops.refused import remedy
from kquant.views.quantized_model import is_quantized

# What a user's class may do otherwise than Keras in `fit`.
STEPS = ("train_step", "test_step", "predict_step", "compute_loss", "compute_metrics")
Layers = Sequence[keras.layers.Layer]


def check_float(model: keras.Model, layers: Layers) -> None:
    """Refuse what kquant cannot quantize, with the way out.

    Args:
        model: a Keras 3 model.
        layers: in it, at any depth.

    Raises:
        ValueError: quantized already (by Keras too), or weights that are not float32 or not finite.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> check_float(model, model.layers)
    """
    if is_quantized(layers):
        raise ValueError(f"{model.name}: this model is quantized already; pass the float model.")
    check_weights(model, layers)


def check_weights(model: keras.Model, layers: Layers) -> None:
    """Refuse weights that kquant cannot read.

    Args:
        model: any built Keras model.
        layers: in it, at any depth.

    Raises:
        ValueError: Keras quantized it, or its weights are not float32 or not finite; names the layer or variable.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> check_weights(model, model.layers)
    """
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


def warn_lost_losses(layers: Layers) -> None:
    """Name layers whose activity regularizer training will not see: their outputs are computed inside a wrapper."""
    lost = [layer.name for layer in layers if layer.activity_regularizer is not None]
    if lost:
        warn(
            f"quantize: the activity regularizers of {', '.join(lost)} do not act on the quantized model; kernel and "
            "bias regularizers do. Add the penalty to the loss where training needs it."
        )


def warn_lost_steps(model: keras.Model, verb: str) -> None:
    """Name what a class of the user's does in `fit` and a model that is made of it, of Keras' class, does not.

    Args:
        model: the given one.
        verb: that makes a new one, called by the user and calling this.
    """
    if type(model).__module__.startswith("kquant."):
        return
    lost = [name for name in STEPS if _method(model, name) is not getattr(keras.Model, name)]
    if lost:
        kind, named = type(model).__name__, ", ".join(lost)
        warn(
            f"{verb}: {kind} has {named} of its own, and the new model, one of Keras' class, does not: fit would "
            f"train it in Keras' way. Write {named} in a class around the result, class Own(keras.Model), and train "
            "own = Own(new.inputs, new.outputs): the two are one set of weights (docs/training.md)."
        )


def _method(model: Any, name: str) -> Any:
    """The function behind a method, also one that was put into the model itself."""
    method = getattr(model, name)
    return getattr(method, "__func__", method)


def read(model: keras.Model, input_shape: Any) -> Graph:
    """The calls of a float model, with static shapes.

    Raises:
        ValueError: open or empty shapes, an `input_shape` that does not fit, or a `call` that cannot be followed.
    """
    inputs = inputs_of(model, input_shape)
    check_static(model.name, inputs)
    try:
        graph = trace(model, lambda op: is_known(op) or remedy(op) is not None, input_shape)
    except ValueError as error:
        if input_shape is None:
            raise
        raise ValueError(f"{model.name}: with input_shape={input_shape}: {error}") from error
    check_dtypes(graph)
    return graph


def check_dtypes(graph: Graph) -> None:
    """Refuse inputs that are no numbers, and float64 (a model without weights may compute in it, too).

    Raises:
        ValueError: naming the input or the layer.
    """
    given = {id(t): t for t in graph.input_tensors}
    for t in given.values():
        if not t.dtype.startswith(("float", "bfloat", "int", "uint", "bool")):
            raise ValueError(
                f"{graph.name}: input '{t.name}' is of type {t.dtype}, which no integer kernel reads. Keep what makes "
                "numbers of it in the application's preprocessing, and give the model those numbers."
            )
    for node in graph.nodes:
        read = {t.dtype for t in node.inputs if id(t) in given}
        if "float64" in ([node.op.compute_dtype] if isinstance(node.op, keras.layers.Layer) else read):
            raise ValueError(
                f"{node.name} ({type(node.op).__name__}): it computes in float64; kquant reads float32. Rebuild the "
                "model with dtype float32, its inputs and constants too."
            )


def is_known(op: Any) -> bool:
    """Layers and operations that stay whole when a float model is read."""
    return find(op) is not None

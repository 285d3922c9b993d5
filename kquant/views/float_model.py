"""Read a float model: what it must be, what of it a new model will not do, and its calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from kquant.core.messages import warn
from kquant.graph.graph import Graph, trace
from kquant.layers.transform import Carried
from kquant.ops.expansion import is_known
from kquant.ops.refused import remedy
from kquant.views.quantized_model import is_quantized
from kquant.views.released import release

# What a user's class may do otherwise than Keras in `fit`.
STEPS = ("train_step", "test_step", "predict_step", "compute_loss", "compute_metrics")
Layers = Sequence[keras.layers.Layer]


def read_given(model: keras.Model, layers: Layers, input_shape: Any) -> tuple[Graph, Carried]:
    """The calls of a float model that a user gave to be quantized, and what `kquant.prune` and the like put into it.

    Args:
        model: a Keras 3 model; it stays as it was.
        layers: in it, at any depth: `kquant.graph.given_model.float_layers`.
        input_shape: see `kquant.quantize`.

    Raises:
        ValueError: see `refuse_quantized` and `read`.
    """
    refuse_quantized(model, layers)
    warn_lost_losses(layers)
    warn_lost_steps(model, "quantize")
    plain, carried = release(model, layers)
    return read(plain, input_shape), carried


def refuse_quantized(model: keras.Model, layers: Layers) -> None:
    """Refuse a model that has grids already.

    Args:
        model: a Keras 3 model.
        layers: in it, at any depth.

    Raises:
        ValueError: it came from `kquant.quantize`.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> refuse_quantized(model, model.layers)
    """
    if is_quantized(layers):
        raise ValueError(f"{model.name}: this model is quantized already; pass the float model.")


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
    graph = trace(model, lambda op: is_known(op) or remedy(op) is not None, input_shape, static=True)
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

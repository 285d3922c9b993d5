"""Float model -> the same model with every layer that has kernels in a `Transformed`, without transforms yet."""

from __future__ import annotations

from typing import Any

import keras

from kquant.core.messages import warn
from kquant.core.origin import identities, mark
from kquant.graph.copies import copy_of, copy_state, is_described, own, stays_whole
from kquant.graph.given_model import check_finite, check_keras
from kquant.graph.graph import Graph, Node, rewrite, trace
from kquant.graph.keras_private import every_layer
from kquant.layers.nodes import Transformed
from kquant.layers.transform import kernel_at
from kquant.views.kernels import kernels_of
from kquant.views.quantized_model import is_quantized, refuse_nested


def to_transform(model: keras.Model, verb: str) -> keras.Model:
    """A model with weights of its own whose kernels take transforms, float or quantized like the given one.

    Args:
        model: see `wrapped`, or a quantized one.
        verb: that is to change it, for messages.

    Raises:
        ValueError: see `wrapped`; and weights that are NaN or Inf.
    """
    check_model(model, verb)
    check_finite(model)
    return copy_of(model) if is_quantized(every_layer(model)) else wrapped(model)


def check_model(model: Any, verb: str) -> None:
    """Refuse what is no Keras 3 model.

    Raises:
        ValueError: names what came.
    """
    check_keras(model, verb)
    refuse_nested(model)


def wrapped(model: keras.Model) -> keras.Model:
    """A Functional model with weights of its own; layers stay whole and keep their names.

    Args:
        model: a built float Keras 3 model: Functional, Sequential, nested or subclassed; layers that are wrapped
            already are copied with what they hold.

    Raises:
        ValueError: a model that is not built, or one whose own variables would be lost.
    """
    # With Keras' masks left alone: the result is a model of the same layers, which hand them on.
    graph = trace(model, stays_whole, masks=True, whole=_takes_transforms)
    _warn_lost_losses(model, graph)
    made: dict[int, Any] = {}
    taken = {t.name for t in graph.input_tensors}
    calls: dict[int, int] = {}

    def replace(node: Node, args: tuple, kwargs: dict) -> Any:
        _refuse_loose(node)
        if id(node.op) not in made:
            made[id(node.op)] = _own(node.op, taken)
        layer = made[id(node.op)]
        if node.owner is not None:  # its `call` was followed with training=False
            kwargs = {k: v for k, v in kwargs.items() if k != "training"}
        # A shared layer takes one step for all its calls: only call 0 moves masks and codebooks on.
        number = calls[id(node.op)] = calls.get(id(node.op), -1) + 1
        if isinstance(layer, Transformed):
            kwargs = {**kwargs, **({"site": number} if number else {})}
        return layer(*args, **kwargs)

    return rewrite(graph, replace)


def _takes_transforms(op: Any) -> bool:
    """True for a block of layers whose kernels can be found in it, and which its config makes again."""
    kernels = {id(kernel_at(op, path)) for path in kernels_of(op)}
    # A matrix that no rule knows would stay dense inside, and nobody would hear of it: then the block is opened
    # instead.
    return is_described(op) and all(id(v) in kernels for v in op.trainable_variables if len(v.shape) > 1)


def _warn_lost_losses(model: keras.Model, graph: Graph) -> None:
    """Name models and layers that are opened, of whose outputs no penalty is taken any more."""
    whole = {id(layer) for node in graph.nodes for layer in _inside(node.op)}
    opened = [layer for layer in _inside(model) if id(layer) not in whole and layer.activity_regularizer is not None]
    if opened:
        warn(
            f"the activity regularizers of {', '.join(layer.name for layer in opened)} do not act on the new model: "
            "these are opened into the layers that they are made of. Give one of those layers the regularizer, or put "
            "a keras.layers.ActivityRegularization behind them."
        )


def _inside(op: Any) -> list[Any]:
    """A layer and all in it; of an operation nothing."""
    return every_layer(op) if isinstance(op, keras.layers.Layer) else []


def _own(op: Any, taken: set[str]) -> Any:
    """The layer with weights of its own and a name of its own, wrapped where it has kernels."""
    if not isinstance(op, keras.layers.Layer):
        return own(op)
    new = own(op, name=_apart(op.name, taken))
    if isinstance(new, Transformed):
        new.paths = tuple(kernels_of(new.layer))  # files of earlier versions do not tell
        return new
    if not op.built or not kernels_of(new):
        return new
    layer = Transformed(new, {}, paths=tuple(kernels_of(new)))
    # Without a shape: what is inside is built already.
    layer.build()
    layer.trainable = op.trainable
    copy_state(op, new)  # setting `trainable` reaches what is inside
    mark(layer, identities(op))
    return layer


def _apart(name: str, taken: set[str]) -> str:
    """Layers of different nested models may share a name; a flat model wants them apart."""
    fresh, n = name, 1
    while fresh in taken:
        fresh, n = f"{name}_{n}", n + 1
    taken.add(fresh)
    return fresh


def _refuse_loose(node: Node) -> None:
    """A variable that is handed to an operation belongs to no layer of the new model: it would not train."""
    loose = [x for x in keras.tree.flatten((node.args, node.kwargs)) if isinstance(x, keras.Variable)]
    if loose:
        owner = node.name if node.owner is None else node.owner.name
        raise ValueError(
            f"{owner}: it computes with its variable '{loose[0].name}' outside any layer, so the new model could not "
            "train it. Make a keras.layers.Layer of that part."
        )


def as_loaded(model: keras.Model) -> keras.Model:
    """The same model made anew of its config.

    A layer that took on transforms late holds its variables in another order than one that is loaded with them, and an
    optimizer finds its state by that order.

    Args:
        model: float with `Transformed` layers, or quantized.
    """
    return copy_of(model) if is_quantized(every_layer(model)) else wrapped(model)

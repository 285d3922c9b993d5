"""A flat Functional copy of a float model, of the user's own layers; the given model is left alone."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import keras

from kquant.core.origin import fits, patterns_of
from kquant.graph.copies import again, copy_state
from kquant.graph.given_model import check_finite
from kquant.graph.graph import Graph, Node, legal_name, named_apart, rewrite, trace
from kquant.graph.keras_private import every_layer
from kquant.layers.nodes import Transformed
from kquant.ops import find
from kquant.views.quantized_model import is_quantized

layers = keras.layers
# One layer with two kernels; its two halves shrink each on their own.
SPLIT = (layers.SeparableConv1D, layers.SeparableConv2D)


def stays_whole(op: Any) -> bool:
    """Layers stay whole, models and Lambdas (whose function no config tells) unfold into layers and operations."""
    if isinstance(op, keras.layers.Layer):
        return not isinstance(op, keras.Model | layers.Lambda)
    return find(op) is not None


def read(model: keras.Model) -> Graph:
    """The calls of a float model, layers whole."""
    return trace(model, stays_whole)


def plain(model: keras.Model) -> keras.Model:
    """A flat Functional model of the same function, with layers and weights of its own.

    Args:
        model: a built float Keras model of any kind.

    Returns:
        The copy. Layers keep their names; a separable convolution becomes its two halves.

    Raises:
        ValueError: the model is quantized already, a weight is NaN or Inf, a layer is not described by its config, or
            a variable of the model itself is computed with.

    Example:
        >>> inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="inside")])
        >>> [layer.name for layer in plain(keras.Sequential([keras.Input((4,), name="x"), inner])).layers]
        ['x', 'inside']
    """
    held = every_layer(model)
    if is_quantized(held) or any(isinstance(layer, Transformed) for layer in held):
        raise ValueError(
            f"{model.name}: channels leave and kernels split in a plain float model. Received one that is quantized, "
            "pruned or clustered: shrink it before kquant.prune, kquant.cluster and kquant.quantize, or give "
            "kquant.strip(model)."
        )
    check_finite(model)
    graph = read(model)
    made: dict[tuple[int, str], Any] = {}
    values: list[tuple[Any, Any]] = []
    taken = {t.name for t in graph.input_tensors}

    def make_for(op: Any) -> Callable[[str, Callable[[], Any]], Any]:
        def make(key: str, factory: Callable[[], Any]) -> Any:
            if (id(op), key) not in made:
                made[id(op), key] = named_apart(factory(), taken)
            return made[id(op), key]

        return make

    def replace(node: Node, args: tuple, kwargs: dict) -> Any:
        _refuse_own_variables(model, node)
        kwargs = inference_only(kwargs)
        rule = find(node.op) if isinstance(node.op, SPLIT) else None
        if rule is not None and rule.expand is not None:
            return rule.expand(node.op, make_for(node.op), *args, **kwargs)
        # a shared layer is called several times and copied once
        first = (id(node.op), "copy") not in made
        new = make_for(node.op)("copy", lambda: again(node.op))
        if first:
            values.append((node.op, new))
        return new(*args, **kwargs)

    # values last: a new layer has no variables before its first call
    copy = rewrite(graph, replace, name=legal_name(graph.name, root=True))
    for old, new in values:
        if isinstance(old, keras.layers.Layer):
            copy_state(old, new)
    return copy


def names_of(graph: Graph, protect: str | Collection[str]) -> set[str]:
    """The layers that name patterns mean.

    Args:
        graph: of a model that `plain` made.
        protect: one pattern, or several.

    Raises:
        ValueError: a pattern matches no layer.
    """
    known = list(dict.fromkeys(node.name for node in graph.nodes))
    unknown = [pattern for pattern in patterns_of(protect) if not any(fits(name, pattern) for name in known)]
    if unknown:
        raise ValueError(f"protect: {graph.name} has no layer {unknown}. It has: {', '.join(known)}.")
    return {name for name in known if any(fits(name, pattern) for pattern in patterns_of(protect))}


def inference_only(kwargs: dict) -> dict:
    """Arguments of a call without those that Keras gives anew in training."""
    return {k: v for k, v in kwargs.items() if k not in ("training", "mask")}


def _refuse_own_variables(model: keras.Model, node: Node) -> None:
    if isinstance(node.op, keras.layers.Layer):
        return
    for x in keras.tree.flatten((node.args, node.kwargs)):
        if isinstance(x, keras.Variable):
            raise ValueError(
                f"{model.name}: its `call` computes with its variable '{x.path}' itself ({node.name}), which a smaller "
                "model of plain layers has no place for. Move the variable and what is computed with it into a Layer."
            )

"""Float model -> the same model with every layer that has kernels in a `Transformed`, without transforms yet."""

from __future__ import annotations

from typing import Any

import keras

from kquant.core.graph import Node, rewrite, trace
from kquant.core.nodes import Transformed
from kquant.core.origin import identities, mark
from kquant.ops.kernels import kernels_of

CONTAINERS = (keras.Model,)


def wrapped(model: keras.Model) -> keras.Model:
    """A Functional model with weights of its own; layers stay whole and keep their names.

    Args:
        model: a built float Keras 3 model: Functional, Sequential, nested or subclassed; layers that are wrapped
            already are copied with what they hold.

    Raises:
        ValueError: not a built Keras 3 model, or one whose own variables would be lost.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"prune: expected a keras.Model. Received: {type(model).__module__}.{type(model).__name__}.")
    graph = trace(model, stays_whole, masks=True)
    made: dict[int, Any] = {}
    taken = {t.name for t in keras.tree.flatten(graph.inputs)}
    calls: dict[int, int] = {}

    def replace(node: Node, args: tuple, kwargs: dict) -> Any:
        _refuse_loose(node)
        if id(node.op) not in made:
            made[id(node.op)] = _own(node.op, taken)
        layer = made[id(node.op)]
        if node.owner is not None:  # its `call` was followed with training=False
            kwargs = {k: v for k, v in kwargs.items() if k != "training"}
        number = calls[id(node.op)] = calls.get(id(node.op), -1) + 1
        if isinstance(layer, Transformed):
            kwargs = {**kwargs, **({"site": number} if number else {})}
        return layer(*args, **kwargs)

    return rewrite(graph, replace)


def stays_whole(op: Any) -> bool:
    """Keras' own layers, and those with variables of their own: only models and blocks of layers are opened."""
    if isinstance(op, CONTAINERS):
        return False
    if not isinstance(op, keras.layers.Layer):
        return True
    builtin = type(op).__module__.startswith(("keras.", "kquant."))
    return builtin or bool(op._trainable_variables or op._non_trainable_variables)


def _own(op: Any, taken: set[str]) -> Any:
    """The layer with weights of its own and a name of its own, wrapped where it has kernels."""
    if not isinstance(op, keras.layers.Layer):
        return _operation(op)
    new = type(op).from_config({**op.get_config(), "name": _apart(op.name, taken)})
    if op.built:
        new.build_from_config(op.get_build_config() or {})
        if len(new.variables) != len(op.variables):
            raise ValueError(
                f"{op.name} ({type(op).__name__}): a copy made from its config has {len(new.variables)} variables "
                f"instead of {len(op.variables)}; its get_config or build does not say all. Complete them."
            )
        for old, fresh in zip(op.variables, new.variables, strict=True):
            fresh.assign(old)
    new.trainable = op.trainable
    for old, fresh in zip(op._flatten_layers(), new._flatten_layers(), strict=False):
        fresh._trainable = old._trainable
    if isinstance(new, Transformed) or not op.built or not kernels_of(new):
        return new
    layer = Transformed(new, {})
    layer.build()
    layer.trainable = op.trainable
    mark(layer, identities(op))
    return layer


def _operation(op: Any) -> Any:
    """An operation of the new model's own, where it can be made again."""
    try:
        return type(op).from_config(op.get_config())
    except (NotImplementedError, TypeError, ValueError):
        return op


def _apart(name: str, taken: set[str]) -> str:
    """Layers of different nested models may share a name; a flat model wants them apart."""
    fresh, n = name, 1
    while fresh in taken:
        fresh, n = f"{name}_{n}", n + 1
    taken.add(fresh)
    return fresh


def _refuse_loose(node: Node) -> None:
    """A variable that is handed to an operation belongs to no layer of the new model: it would not train."""
    found = [x for x in keras.tree.flatten((node.args, node.kwargs)) if isinstance(x, keras.Variable)]
    if found:
        owner = node.name if node.owner is None else node.owner.name
        raise ValueError(
            f"{owner}: it computes with its variable '{found[0].name}' outside any layer, so the new model could not "
            "train it. Make a keras.layers.Layer of that part."
        )

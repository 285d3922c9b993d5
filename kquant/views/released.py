"""A float model without what `kquant.prune` and `kquant.cluster` put into it, which is kept beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from kquant.graph.copies import is_described, own, stays_whole
from kquant.graph.graph import Node, rewrite, trace
from kquant.layers.nodes import Transformed
from kquant.layers.transform import Carried, Held, kernel_at
from kquant.ops import find


def release(model: keras.Model, layers: Sequence[keras.layers.Layer]) -> tuple[keras.Model, Carried]:
    """A float model without transforms, its kernels as they were used; and the transforms, to be put back.

    Args:
        model: float; one without transforms comes back as it is.
        layers: in it, at any depth.

    Returns:
        The plain model, with weights of its own, and its transforms.
    """
    if not any(isinstance(layer, Transformed) for layer in layers):
        return model, {}
    carried: Carried = {}
    plain: dict[int, Any] = {}

    def replace(node: Node, args: tuple, kwargs: dict) -> Any:
        op = node.op
        if not isinstance(op, Transformed):
            return copied(op, plain)(*args, **kwargs)
        if id(op) not in plain:
            used = {kernel.path: (np.asarray(kernel.used), kernel.transforms) for kernel in op.kernels()}
            plain[id(op)] = with_kernels(op.layer, {path: values for path, (values, _) in used.items()})
            # By name and path, since what is done to the plain model next (folding, quantizing) makes new layers of it.
            carried[op.name] = {path: Held(*held) for path, held in used.items() if held[1]}
        return plain[id(op)](*args, **op.passed(kwargs))

    graph = trace(model, stays, masks=True, whole=is_described)
    return rewrite(graph, replace), carried


def stays(op: Any) -> bool:
    """Layers that stay whole; one with a rule is never opened, so that the file may have its operator."""
    return find(op) is not None or stays_whole(op)


def copied(op: Any, made: dict[int, Any]) -> Any:
    """A layer with weights of its own, made once; operations have none."""
    if id(op) not in made:
        made[id(op)] = own(op)
    return made[id(op)]


def with_kernels(layer: Any, values: Mapping[str, Any]) -> Any:
    """A copy with other values for some of its variables."""
    new = own(layer)
    for path, value in values.items():
        kernel_at(new, path).assign(value)
    return new

"""Put transforms of kernels into a model: what `kquant.prune` and `kquant.cluster` have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import keras
import tensorflow as tf

from kquant import quantized
from kquant.core import transforms as kernels
from kquant.core.graph import Graph, Node, rewrite, trace
from kquant.core.nodes import Compressed, QuantizedLSTM, Transformed
from kquant.core.origin import identities
from kquant.core.transforms import Transform
from kquant.ops.kernels import Kernel, kernels_of
from kquant.ops.rule import rebuild


@dataclass(frozen=True, eq=False)
class Site:
    """A kernel that a transform may be put on.

    Attributes:
        layer: the Keras layer; in a quantized model the one inside the wrapper.
        path: of the kernel in it.
        kernel: its geometry.
        weights: float32, as the model computes with it now.
        transforms: those that it has.
        position: "first" or "last" of the layers with kernels, or None.
    """

    layer: Any
    path: str
    kernel: Kernel
    weights: tf.Tensor
    transforms: tuple[Transform, ...]
    position: Literal["first", "last"] | None

    @property
    def names(self) -> tuple[tuple[str, str], ...]:
        """(name, class) under which recipes may speak of the layer."""
        return identities(self.layer)


Choose = Callable[[Site], Transform | None]


def transformed(model: keras.Model, choose: Choose) -> keras.Model:
    """A copy of the model with one more transform on the kernels that are chosen.

    Args:
        model: float, with transforms already or not, or quantized; built. It is not changed.
        choose: gives the transform of a kernel, neither built nor started; None leaves the kernel.

    Returns:
        A float model becomes a Functional one, its layers whole, `Transformed` around those with a chosen kernel;
        nested models are opened. A quantized model stays what it is.

    Raises:
        ValueError: the model is not built.
    """
    if not quantized.is_quantized(model):
        return _float(model, choose)
    new = quantized.copy(model)
    holders = [layer for layer in new._flatten_layers() if isinstance(layer, Compressed | QuantizedLSTM)]
    _add(holders, choose)
    quantized.forget_graphs(new)
    return new


def _float(model: keras.Model, choose: Choose) -> keras.Model:
    graph = trace(model, _is_whole)
    ops = {id(node.op): node.op for node in graph.nodes}
    made = {key: _own(op) for key, op in ops.items()}
    _add([op for op in made.values() if isinstance(op, Transformed)], choose)
    made = {key: op.layer if isinstance(op, Transformed) and not op.held else op for key, op in made.items()}
    return rewrite(graph, lambda node, args, kwargs: _call(graph, node, made[id(node.op)], args, kwargs))


def _call(graph: Graph, node: Node, op: Any, args: tuple, kwargs: dict) -> Any:
    """One call of the new layer; later calls of a shared one say so, for states move once in a step."""
    kwargs = {key: value for key, value in kwargs.items() if key != "site"}
    number = graph.calls()[id(node.op)].index(node)
    site = {"site": number} if number and isinstance(op, Transformed) else {}
    return op(*args, **kwargs, **site)


def _is_whole(op: Any) -> bool:
    """Models are opened; the user's layers, and operations between them, stay."""
    return not isinstance(op, keras.Model)


def _own(op: Any) -> Any:
    """A layer with weights of its own, in a `Transformed` where it has kernels; operations have no weights."""
    if not isinstance(op, keras.layers.Layer) or not op.built:
        return op
    if not isinstance(op, Transformed):
        layer = rebuild(op)
        return _wrapped(layer, op) if kernels_of(layer) else layer
    new = _wrapped(rebuild(op.layer), op)
    for path, found in op.transforms.items():
        for transform in found:
            new.transform_by(path, kernels.clone(transform))
    return new


def _wrapped(layer: Any, like: Any) -> Transformed:
    new = Transformed(layer, {})
    new.build(like.get_build_config()["input_shape"])
    new.trainable = like.trainable
    return new


def _add(holders: list[Any], choose: Choose) -> None:
    """Ask for every kernel of these wrappers, in their order."""
    sites = [(holder, path, kernel) for holder in holders for path, kernel in _kernels(holder)]
    for holder, path, kernel in sites:
        position = "first" if holder is sites[0][0] else "last" if holder is sites[-1][0] else None
        several = not isinstance(holder, Compressed)
        found = holder.transforms.get(path, ()) if several else holder.transforms
        value = holder.weights_as_used(path) if several else _before_gain(holder)
        transform = choose(Site(holder.layer, path, kernel, value, tuple(found), position))
        if transform is not None:
            holder.transform_by(path, transform) if several else holder.transform_by(transform)


def _kernels(holder: Any) -> Iterator[tuple[str, Kernel]]:
    """Of a wrapper in a quantized model only the kernel that it quantizes."""
    for path, kernel in kernels_of(holder.layer).items():
        if not isinstance(holder, Compressed) or path == holder.kernel_name:
            yield path, kernel


def _before_gain(holder: Compressed) -> tf.Tensor:
    return kernels.apply(holder.transforms, kernels.real(holder.layer, holder.kernel_name))

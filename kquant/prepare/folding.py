"""Fold `Affine` (batch norms, Rescaling, constants) into the layer before it, or after it where that is exact.

    conv then affine     w' = w * scale[out],  b' = b * scale + offset
    affine then conv     w' = w * scale[in],   b' = b + sum(w * offset)   (no zero padding, or no offset)
    affine then affine   scale' = s1 * s2,     offset' = o1 * s2 + o2

Source: Jacob et al., arXiv:1712.05877, section 3.2; Krishnamoorthi, arXiv:1806.08342, section 3.2.2.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import keras
import numpy as np

from kquant.core.checks import present
from kquant.core.messages import warn
from kquant.core.origin import origins
from kquant.graph.defaults import own_defaults
from kquant.graph.given_model import check_keras
from kquant.graph.graph import Graph, Node, rewrite, trace
from kquant.graph.keras_private import every_layer, growing
from kquant.graph.output_names import as_keras
from kquant.graph.unfold import substitute
from kquant.ops import find
from kquant.ops.affine import Affine, Moments, Norm, affine
from kquant.ops.expansion import expand_graph, is_known
from kquant.ops.rule import Weights
from kquant.prepare.unblock import move_past_affines
from kquant.views.float_model import refuse_quantized

layers = keras.layers


@dataclass(frozen=True, eq=False)
class Folded:
    """What `fold_graph` leaves behind for the quantized layers.

    Attributes:
        graph: without the layers that were folded.
        gains: layer name -> what its kernel was multiplied by; it broadcasts against the kernel.
        moments: layer name -> (mean, standard deviation) of its output channels, as the batch norm behind it had them.
        into: name of a layer that left -> of the one that computes it now.
        norms: layer name -> the batch norm behind it, which stays one in training.
        live: batch norms may stay so; else all are folded.
    """

    graph: Graph
    gains: dict[str, np.ndarray]
    moments: dict[str, Moments]
    into: dict[str, str]
    norms: dict[str, Norm] = field(default_factory=dict)
    live: bool = False


@dataclass(frozen=True)
class Fate:
    """What becomes of a batch norm, a Rescaling, a Normalization or a constant factor.

    Attributes:
        layer, kind: name and class.
        into: the layer whose weights take it in; None where it stays an operator of its own.
        reason: why it stays; empty where it folds.
    """

    layer: str
    kind: str
    into: str | None
    reason: str


def fold(model: keras.Model) -> keras.Model:
    """A float model with batch norms, Rescaling, Normalization and constant factors folded away.

    Copies: `model` stays as it was.

    Args:
        model: any built Keras 3 model.

    Returns:
        A Functional model of the same function (to float32 rounding). Its outputs keep their names: where the layer of
        that name was folded away, an Identity has it.

    Raises:
        ValueError: a quantized model, whose batch norms are folded already.

    Example:
        >>> inputs = keras.Input((4,))
        >>> x = keras.layers.BatchNormalization()(keras.layers.Dense(2)(inputs))
        >>> model = keras.Model(inputs, keras.layers.ReLU()(x))
        >>> [type(layer).__name__ for layer in fold(model).layers]
        ['InputLayer', 'Dense', 'ReLU']
    """
    check_keras(model, "fold")
    refuse_quantized(model, every_layer(model))
    graph = expand_graph(trace(model, is_known))
    folded = fold_graph(graph)
    return as_keras(rewrite(folded.graph, lambda node, args, kwargs: node.op(*args, **kwargs)))


def fold_graph(graph: Graph, *, live: bool = False) -> Folded:
    """`fold` of the graph of a model that `expand` made, whose layers may be changed; repeats until nothing is left.

    Args:
        graph: of that model.
        live: batch norms that train, right behind a layer with weights, leave the graph unfolded (`Folded.norms`).
    """
    graph = move_past_affines(graph, _exact)
    every = {node.op.name for node in graph.nodes if isinstance(node.op, Affine) and node.op.norm is not None}
    folded = Folded(graph, {}, {}, {}, live=live)
    with own_defaults(graph.layers):  # two factors in a row become a new layer
        while pairs := _pairs(folded.graph):
            folded = replace(folded, graph=_merge(folded, pairs))
    if live and len(folded.norms) < len(every):
        warn(
            f"quantize: {len(every) - len(folded.norms)} of {len(every)} batch norms stand behind no layer with "
            "weights; they are folded, and do not follow the batches in training."
        )
    left = [n.op for n in folded.graph.nodes if isinstance(n.op, Affine) and n.op.moments is not None]
    return replace(folded, moments=folded.moments | {op.name: op.moments for op in left})


def fates(graph: Graph) -> tuple[Fate, ...]:
    """What `fold_graph` makes of every batch norm and constant factor, in the order of the model; folds the graph.

    Args:
        graph: see `fold_graph`.
    """
    folded_ops = {id(node.op): node.op for node in graph.nodes if isinstance(node.op, Affine)}
    folded = fold_graph(graph)
    left = {node.op.name: node for node in folded.graph.nodes if isinstance(node.op, Affine)}
    result = []
    for op in folded_ops.values():
        layer, kind = origins(op)[-1] if origins(op) else (op.name, type(op).__name__)
        kept = op.name
        while kept in folded.into:  # a batch norm may be merged with a factor first
            kept = folded.into[kept]
        if kept not in left:
            result.append(Fate(layer, kind, kept, ""))
            continue
        together = "" if kept == op.name else f"merged with '{kept}'; "
        result.append(Fate(layer, kind, None, together + _why_apart(left[kept], folded.graph)))
    return tuple(result)


def _why_apart(node: Node, graph: Graph) -> str:
    """What keeps an `Affine` from its neighbours on both sides."""
    calls, consumers = graph.calls, graph.consumers
    outputs = {id(t) for t in graph.output_tensors}
    before = graph.producers.get(id(node.inputs[0]))
    readers = consumers.get(id(node.outputs[0]), [])
    if before is None:
        first = "before it is an input of the model"
    elif not _has_sums(before.op):
        first = f"{_said(before)} before it has no weights to take it in"
    elif _always_together(before.op, node.op, calls, consumers, outputs):
        first = f"{_said(before)} before it cannot take it in exactly"
    else:
        first = f"{_said(before)} before it is read elsewhere too, or called more than once"
    if id(node.outputs[0]) in outputs:
        return f"{first}; it makes an output of the model"
    if len(readers) != 1:
        return f"{first}; {len(readers)} layers read it"
    after = readers[0]
    if not _has_sums(after.op):
        return f"{first}; {_said(after)} behind it has none"
    if not _always_together(node.op, after.op, calls, consumers, outputs):
        return f"{first}; {_said(after)} behind it reads other tensors too, or is called more than once"
    if getattr(after.op, "groups", 1) > 1:
        return f"{first}; {_said(after)} behind it works in groups of channels"
    return f"{first}; {_said(after)} behind it pads with zeros, which its offset would have to reach"


def _said(node: Node) -> str:
    return f"'{node.op.name}' ({type(node.op).__name__})"


def _has_sums(op: Any) -> bool:
    weights = _weights(op)
    return weights is not None and weights.sums


def _pairs(graph: Graph) -> dict[int, tuple[Any, Any]]:
    """id(either layer) -> (first, second), each layer in one pair at most."""
    partners: dict[int, tuple[Any, Any]] = {}
    calls, consumers, producers = graph.calls, graph.consumers, graph.producers
    outputs = {id(t) for t in graph.output_tensors}
    for node in graph.nodes:
        if not isinstance(node.op, Affine) or id(node.op) in partners:
            continue
        for first, second in (_before(node, producers), _after(node, consumers)):
            if first is None or second is None or id(first) in partners or id(second) in partners:
                continue
            if _always_together(first, second, calls, consumers, outputs) and _exact(first, second):
                partners[id(first)] = partners[id(second)] = (first, second)
                break
    return partners


def _before(node: Node, producers: dict[int, Node]) -> tuple[Any, Any]:
    producer = producers.get(id(node.inputs[0]))
    return (producer.op if producer else None), node.op


def _after(node: Node, consumers: dict[int, list[Node]]) -> tuple[Any, Any]:
    readers = consumers.get(id(node.outputs[0]), [])
    return node.op, (readers[0].op if len(readers) == 1 else None)


def _always_together(
    first: Any, second: Any, calls: dict[int, list[Node]], consumers: dict[int, list[Node]], outputs: set[int]
) -> bool:
    """Every call of `first` is read by one call of `second` only, and `second` reads nothing else."""
    following = [consumers.get(id(node.outputs[0]), []) for node in calls[id(first)]]
    return (
        all(len(readers) == 1 and readers[0].op is second for readers in following)
        and all(id(node.outputs[0]) not in outputs for node in calls[id(first)])
        and len(calls[id(first)]) == len(calls[id(second)])
    )


def _exact(first: Any, second: Any) -> bool:
    """Both have weights, and nothing but them separates the two."""
    weights = [_weights(first), _weights(second)]
    if any(w is None or not w.sums for w in weights):
        return False
    if isinstance(second, Affine):
        return True
    if getattr(second, "groups", 1) > 1:
        return False
    padded = getattr(second, "padding", "valid") != "valid" or isinstance(second, layers.Conv2DTranspose)
    return not padded or not np.any(first.offset.numpy())


def _weights(op: Any) -> Weights | None:
    rule = find(op)
    return rule.weights if rule is not None and rule.expand is None else None


def _merge(folded: Folded, pairs: dict[int, tuple[Any, Any]]) -> Graph:
    """The first of each pair leaves the graph; the second computes both."""
    graph = folded.graph
    merged: dict[int, Any] = {}
    moved: dict[int, Any] = {}  # id(output of a first) -> its input
    nodes = []
    for node in graph.nodes:
        first, second = pairs.get(id(node.op), (None, None))
        args, kwargs = substitute((node.args, node.kwargs), moved)
        if node.op is first:
            moved[id(node.outputs[0])] = args[0]
            continue
        if second is not None and id(first) not in merged:
            into = _into_second if isinstance(first, Affine) else _into_first
            merged[id(first)] = into(first, second, folded)
            gone, kept = (first, second) if isinstance(first, Affine) else (second, first)
            folded.into[gone.name] = kept.name
        nodes.append(replace(node, op=merged.get(id(first), node.op), args=args, kwargs=kwargs))
    return replace(graph, nodes=tuple(nodes))


def _channelwise(values: np.ndarray, axes: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    """A vector over `axes` together, shaped to broadcast against `shape`."""
    kept = {axis % len(shape) for axis in axes}
    return values.reshape([n if axis in kept else 1 for axis, n in enumerate(shape)])


def _numbers(layer: Any, weights: Weights) -> tuple[np.ndarray, np.ndarray]:
    kernel = getattr(layer, weights.kernel).numpy().astype(np.float64)
    bias = getattr(layer, weights.bias, None) if weights.bias else None
    channels = int(np.prod([kernel.shape[a] for a in weights.channel_axes]))
    return kernel, np.zeros(channels) if bias is None else bias.numpy().astype(np.float64)


def _with_numbers(layer: Any, weights: Weights, kernel: np.ndarray, bias: np.ndarray) -> Any:
    bias_name = present(weights.bias, f"{layer.name}: a batch norm folds into it, and its rule names no bias.")
    if getattr(layer, bias_name, None) is None:
        _add_bias(layer, bias.shape)
    getattr(layer, weights.kernel).assign(kernel.astype(np.float32))
    getattr(layer, bias_name).assign(bias.astype(np.float32))
    return layer


def _add_bias(layer: Any, shape: tuple[int, ...]) -> None:
    """As its own `build` would have done; making the layer anew takes ten times as long."""
    layer.use_bias = True
    with growing(layer):
        layer.bias = layer.add_weight(
            name="bias",
            shape=shape,
            initializer="zeros",
            regularizer=layer.bias_regularizer,
            constraint=layer.bias_constraint,
            trainable=layer.trainable,
        )


def _scaled(moments: Moments | None, after: Affine) -> Moments | None:
    """Of `scale * y + offset`, where y has these."""
    if moments is None:
        return None
    scale, offset = after.scale.numpy().astype(np.float64), after.offset.numpy().astype(np.float64)
    return moments[0] * scale + offset, moments[1] * np.abs(scale)


def _into_first(layer: Any, after: Affine, folded: Folded) -> Any:
    weights: Any = _weights(layer)  # which made it one of a pair
    moments = after.moments or _scaled(folded.moments.get(layer.name), after)
    if moments is not None:
        folded.moments[layer.name] = moments
    scale, offset = after.scale.numpy().astype(np.float64), after.offset.numpy().astype(np.float64)
    if layer.name in folded.norms:
        folded.norms[layer.name] = folded.norms[layer.name].then(scale, offset)
        return layer
    if folded.live and after.norm is not None:
        folded.norms[layer.name] = after.norm
        return layer
    kernel, bias = _numbers(layer, weights)
    factor = _channelwise(scale, weights.channel_axes, kernel.shape)
    folded.gains[layer.name] = folded.gains.get(layer.name, np.ones(())) * factor
    return _with_numbers(layer, weights, kernel * factor, bias * scale + offset)


def _into_second(before: Affine, layer: Any, folded: Folded) -> Any:
    scale, offset = before.scale.numpy().astype(np.float64), before.offset.numpy().astype(np.float64)
    if isinstance(layer, Affine):
        factor, shift = layer.scale.numpy().astype(np.float64), layer.offset.numpy().astype(np.float64)
        trains = tuple(dict.fromkeys((*before.trains, *layer.trains)))
        both = affine(scale * factor, offset * factor + shift, channels=scale.size, name=layer.name, trains=trains)
        both.norm = None if before.norm is None or layer.norm is not None else before.norm.then(factor, shift)
        both.moments = layer.moments or _scaled(before.moments, layer)
        return both
    weights: Any = _weights(layer)
    kernel, bias = _numbers(layer, weights)
    spread = _channelwise(offset, (weights.input_axis,), kernel.shape)
    kept = {axis % kernel.ndim for axis in weights.channel_axes}
    summed = tuple(axis for axis in range(kernel.ndim) if axis not in kept)
    bias = bias + (kernel * spread).sum(axis=summed).reshape(-1)
    factor = _channelwise(scale, (weights.input_axis,), kernel.shape)
    folded.gains[layer.name] = folded.gains.get(layer.name, np.ones(())) * factor
    return _with_numbers(layer, weights, kernel * factor, bias)

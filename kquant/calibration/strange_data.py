"""Data of another scale than those of training, as a batch norm tells: pixels of 0..255 in the place of 0..1.

A batch norm keeps a mean and a variance and no largest value, and where few steps trained it both are still near their
initial 0 and 1. So two numbers stand against the root mean square of what its layer gives for the data at hand:

    allowed     sqrt(beta^2 + gamma^2)      what data give that are distributed as those in training
    explained   the same, where `share` is how far the averages have moved: a mean m and a variance v are then those of
                data of mean m / share and of variance v / share at most
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import keras
import numpy as np

from kquant.calibration.observations import Key, Observations
from kquant.calibration.tensor_statistics import Statistics
from kquant.core.messages import warn
from kquant.graph.graph import Graph, Node, outputs_of, reachable
from kquant.graph.keras_private import every_layer
from kquant.layers.nodes import Compressed, FakeQuant, observing
from kquant.views.quantized_model import graph_if_large, read

STRANGE = 16.0  # times what is allowed, which no other light reaches: a factor of 255 does
BEYOND = 1.5  # times what few steps explain: a batch is not the whole data set
FIRST_STEP = 0.01  # that averages have moved after one step, as Keras trains them by default


def warn_of_strange_data(qmodel: keras.Model, seen: Observations) -> None:
    """Name the first layer whose batch norm has seen data of another scale in training.

    Args:
        qmodel: the quantized model, whose caller the user called.
        seen: what the data show of it.
    """
    if not any(isinstance(layer, Compressed) and layer.mean is not None for layer in every_layer(qmodel)):
        return
    graph = read(qmodel)
    # a layer behind others may speak too: the first may be of another input, or may never have been trained
    for normed in (_normed(graph, node) for node in graph.nodes if key_of(node) in seen.tensors):
        if normed is None:
            continue
        layer = normed.made.op
        allowed, explained = _reach(layer)
        least = max(STRANGE * allowed, BEYOND * explained)
        if not np.isfinite(least):
            continue
        typical = _typical(qmodel, seen, normed.key, least)
        if typical <= least and normed.activated and _is_capped(seen.tensors[normed.key]):
            typical = _before(graph, seen, normed.made)
        if typical > least:
            warn(
                f"calibrate: '{layer.name}' gives values of {typical:.3g} (root mean square), {typical / allowed:.0f} "
                "times what the mean and variance of its batch norm allow for. Are these data scaled as those that "
                "trained the model (x / 255, x / 127.5 - 1)? The file is made for the data given here."
            )
            return  # what comes behind it repeats it


def key_of(node: Node) -> Key:
    """Under which observations hold what the call of an encoding gives: its name, and which of its calls it is."""
    return node.op.name, node.kwargs.get("site", 0)


class _Normed(NamedTuple):
    """A layer with a folded batch norm, and the encoding of what it gives.

    Attributes:
        made: the layer's call.
        key: under which observations hold it.
        activated: an activation stands between the two.
    """

    made: Node
    key: Key
    activated: bool


def _normed(graph: Graph, node: Node) -> _Normed | None:
    """The layer with a folded batch norm whose output, maybe behind its activation, this encoding holds."""
    tensor = next(iter(node.inputs), None)
    for activated in (False, True):
        made = graph.producers.get(id(tensor))
        if made is None:
            return None
        if isinstance(made.op, Compressed):
            return None if made.op.mean is None else _Normed(made, key_of(node), activated)
        tensor = next(iter(made.inputs), None)
    return None


def _is_capped(s: Statistics) -> bool:
    """True where every batch ends at the same value, as those do that an activation cuts off (ReLU6, tanh).

    A scale that is 255 times too large shows in what such an activation reads, and not in what it gives.
    """
    return any(ends[0] != 0.0 and bool(np.all(ends == ends[0])) for ends in (s.lows, s.highs))


def _before(graph: Graph, seen: Observations, made: Node) -> float:
    """Root mean square of what a layer gives in float, before its activation, the middle one of a few samples."""
    if seen.some is None:
        return 0.0
    sums = next(iter(made.outputs))
    part = replace(graph, outputs=sums, nodes=reachable(graph.nodes, [sums]))
    with observing(lambda *_: None):
        return float(np.median(_of_each(outputs_of(part, seen.some[0]))))


def _reach(layer: Any) -> tuple[float, float]:
    """Root mean squares of a layer's output: what its batch norm allows for, and what few steps of it explain.

    Both are infinite where the batch norm was never trained, as it says nothing then.
    """
    beta, gamma = layer.mean.numpy().astype(np.float64), np.abs(layer.deviation.numpy()).astype(np.float64)
    bias = layer.float_bias()
    moved = beta - (0.0 if bias is None else bias.numpy().astype(np.float64))  # the moving mean, in the output's units
    if not (np.any(moved) and (np.any(beta) or np.ptp(gamma) > 0.0)):
        return np.inf, np.inf
    # every moving variance was 1 to begin with: what is left of that is no more than the least of them
    share = max(1.0 - _least_variance(layer, gamma), FIRST_STEP)
    means = np.abs(beta) + np.abs(moved) * (1.0 / share - 1.0)
    squares = (beta**2 + gamma**2, means**2 + gamma**2 / share)
    allowed, explained = (float(np.sqrt(np.mean(each))) for each in squares)
    return max(allowed, 1e-12), explained


def _least_variance(layer: Any, gamma: np.ndarray) -> float:
    """The least moving variance of the layer's batch norm; 1, which tells nothing, where it cannot be read."""
    factor = layer.norm.factor() if layer.norm is not None else layer.gain
    if factor is None and tuple(layer.kernel_shape) == gamma.shape:  # a batch norm that folded into no layer
        factor = layer.weights_as_used()
    values = np.abs(np.zeros(0) if factor is None else np.asarray(factor, np.float64)).reshape(-1)
    if values.shape != gamma.shape or not np.all(values > 0.0):
        return 1.0
    return float(np.min((gamma / values)[gamma > 0.0] ** 2, initial=1.0))


def _typical(qmodel: keras.Model, seen: Observations, key: Key, least: float) -> float:
    """Root mean square of a tensor: of its histogram, else the middle one of a few samples; 0 where neither is there.

    Nothing is computed where not even the largest value is above `least`.
    """
    s = seen.tensors[key]
    if max(-s.lows.min(), s.highs.max()) <= least:
        return 0.0
    if counted := int(s.counts.sum()):
        centers = (np.arange(s.counts.size) + 0.5) * (2.0 * s.reach / s.counts.size) - s.reach
        return float(np.sqrt(np.sum(s.counts * centers**2) / counted))
    return 0.0 if seen.some is None else _of_samples(qmodel, seen.some[0], key)


def _of_samples(qmodel: keras.Model, x: Any, key: Key) -> float:
    """Root mean square of a tensor in float, the middle one of these samples."""
    each: list[np.ndarray] = []

    def collect(layer: FakeQuant, site: int, y: Any) -> None:
        if (layer.name, site) == key:
            each.append(_of_each(y))

    graph = graph_if_large(qmodel, len(keras.tree.flatten(x)[0]))
    with observing(collect):
        _ = qmodel(x, training=False) if graph is None else outputs_of(graph, x)
    return float(np.median(np.concatenate(each)))


def _of_each(y: Any) -> np.ndarray:
    """Root mean square of each sample."""
    values = np.asarray(y, np.float64)
    return np.sqrt(np.mean(values.reshape(len(values), -1) ** 2, axis=1))

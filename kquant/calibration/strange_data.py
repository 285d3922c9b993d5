"""Data of another scale than those of training, as a batch norm tells: pixels of 0..255 in the place of 0..1.

A batch norm keeps a mean and a variance and no largest value, and where few steps trained it both are still near their
initial 0 and 1. So two numbers stand against the root mean square of what its layer gives for the data at hand:

    allowed     sqrt(beta^2 + gamma^2)      what data give that are distributed as those in training
    explained   the same, where `share` is how far the averages have moved: a mean m and a variance v are then those of
                data of mean m / share and of variance v / share at most
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kquant.calibration.observations import Observations
from kquant.core.messages import warn
from kquant.graph.graph import Graph, Node, outputs_of
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
    graph, names = read(qmodel), {key[0] for key in seen.tensors}
    normed = (_normed(graph, node) for node in graph.nodes if node.op.name in names)
    layer, encoding = next((pair for pair in normed if pair is not None), (None, ""))
    if layer is None:
        return  # what comes behind the first one repeats it
    allowed, explained = _reach(layer)
    least = max(STRANGE * allowed, BEYOND * explained)
    typical = _typical(qmodel, seen, encoding, least)
    if typical > least:
        warn(
            f"calibrate: '{layer.name}' gives values of {typical:.3g} (root mean square), {typical / allowed:.0f} "
            "times what the mean and variance of its batch norm allow for. Are these data scaled as those that trained "
            "the model (x / 255, x / 127.5 - 1)? The file is made for the data given here."
        )


def _normed(graph: Graph, node: Node) -> tuple[Compressed, str] | None:
    """The layer with a folded batch norm whose output, behind its activation, this encoding holds; and its name."""
    tensor = next(iter(node.inputs), None)
    for _ in range(2):
        made = graph.producers.get(id(tensor))
        if made is None:
            return None
        if isinstance(made.op, Compressed):
            return None if made.op.mean is None else (made.op, node.op.name)
        tensor = next(iter(made.inputs), None)
    return None


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


def _typical(qmodel: keras.Model, seen: Observations, encoding: str, least: float) -> float:
    """Root mean square of a tensor: of its histogram, else the middle one of a few samples; 0 where neither is there.

    Nothing is computed where not even the largest value is above `least`.
    """
    held = [s for (name, _), s in seen.tensors.items() if name == encoding]
    if max(float(max(-s.lows.min(), s.highs.max())) for s in held) <= least:
        return 0.0
    squares, counted = 0.0, 0
    for s in held:
        centers = (np.arange(s.counts.size) + 0.5) * (2.0 * s.reach / max(s.counts.size, 1)) - s.reach
        squares, counted = squares + float(np.sum(s.counts * centers**2)), counted + int(s.counts.sum())
    if counted:
        return float(np.sqrt(squares / counted))
    return 0.0 if seen.some is None else _of_samples(qmodel, seen.some[0], encoding)


def _of_samples(qmodel: keras.Model, x: Any, encoding: str) -> float:
    """Root mean square of a tensor in float, the middle one of these samples."""
    each: list[np.ndarray] = []

    def collect(layer: FakeQuant, _: int, y: Any) -> None:
        if layer.name == encoding:
            values = np.asarray(y, np.float64)
            each.append(np.sqrt(np.mean(values.reshape(len(values), -1) ** 2, axis=1)))

    graph = graph_if_large(qmodel, len(keras.tree.flatten(x)[0]))
    with observing(collect):
        _ = qmodel(x, training=False) if graph is None else outputs_of(graph, x)
    return float(np.median(np.concatenate(each)))

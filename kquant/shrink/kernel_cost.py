"""What kernels cost: multiply-accumulates of one sample, and bytes of weights in an int8 file.

MACs     output positions * kernel height * kernel width * input channels * output channels
bytes    one for each weight of a kernel, four for the bias of each output channel
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import keras

from kquant.core.result import Result
from kquant.graph.given_model import check_keras
from kquant.graph.graph import Graph, Node
from kquant.ops import find_weighted
from kquant.ops.rule import Weights
from kquant.shrink.narrow import kernel_of
from kquant.views.flat_copy import plain, read
from kquant.views.multiplications import positions_of

BIAS_BYTES = 4


@dataclass(frozen=True)
class Cost(Result):
    """Of a model's convolutions and Dense layers.

    Attributes:
        macs: multiply-accumulates of one sample.
        weight_bytes: of their weights in an int8 file.
    """

    macs: int
    weight_bytes: int


def cost(model: keras.Model) -> Cost:
    """Multiply-accumulates and weight bytes of a float model's convolutions and Dense layers.

    Reads: `model` stays as it was.

    Batch norms cost nothing, as they fold into them. Recurrent and attention layers are not counted; `kquant.estimate`
    counts those too.

    Args:
        model: a built float Keras model.

    Returns:
        The two sums.

    Raises:
        ValueError: a convolution's output has no static shape.

    Example:
        >>> kquant.cost(keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)]))
        Cost(macs=3888, weight_bytes=124)
    """
    check_keras(model, "cost")
    graph = read(plain(model))
    macs, size = 0, 0
    for calls in graph.calls.values():
        weights = kernel_of(calls[0].op)
        if weights is not None:
            kernel = getattr(calls[0].op, weights.kernel).shape
            macs += positions(graph, calls) * math.prod(kernel)
            size += math.prod(kernel) + BIAS_BYTES * channels_made(weights, kernel)
    return Cost(macs, size)


def channels_made(weights: Weights, kernel: Any) -> int:
    """Output channels of a kernel of this shape."""
    return math.prod(int(kernel[axis]) for axis in weights.channel_axes)


def positions(graph: Graph, calls: Any) -> int:
    """How often every weight of a layer is multiplied with for one sample.

    Raises:
        ValueError: a shape is open.
    """
    return sum(_positions(graph, node) for node in calls)


def _positions(graph: Graph, node: Node) -> int:
    rule, tensor = find_weighted(node.op), node.outputs[0]
    if any(n is None for n in (*node.inputs[0].shape[1:], *tensor.shape[1:])):
        raise ValueError(
            f"{graph.name}, {node.name}: its output {tuple(tensor.shape)} has an open shape, so that its "
            "multiplications cannot be counted. Give the model's inputs static shapes, or a budget in weight_bytes."
        )
    kernel = getattr(node.op, rule.weights.kernel).shape if rule is not None and rule.weights is not None else ()
    return positions_of(rule, kernel, node.inputs[0].shape[1:], tensor.shape[1:])

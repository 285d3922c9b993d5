"""How often a layer multiplies with each of its weights: one count for the costs of float and of quantized models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from kquant.graph.graph import Graph, Node
from kquant.layers.kernel import Holder, holders
from kquant.layers.loop import Loop
from kquant.layers.nodes import FakeQuant
from kquant.ops import find
from kquant.ops.rule import Rule


def macs_of(rule: Rule | None, kernel: Sequence[int], x: Sequence[Any], y: Sequence[Any]) -> int:
    """Multiply-accumulates of one sample: `positions_of` times the size of the kernel, where a layer sums products.

    Args:
        rule: of the Keras layer.
        kernel: shape of the kernel.
        x: shape of the layer's input without the samples; an axis of unknown length counts once.
        y: shape of its output likewise.
    """
    if rule is not None and rule.weights is not None and not rule.weights.sums:
        return 0  # rows that are looked up, slopes that multiply: nothing is accumulated
    return positions_of(rule, kernel, x, y) * size_of(kernel)


def macs_of_model(graph: Graph) -> int:
    """Multiply-accumulates of one sample of a quantized model.

    Args:
        graph: see `kquant.views.quantized_model.read`.
    """
    return sum(macs_of_node(node) for node in graph.nodes if node.inputs and not isinstance(node.op, FakeQuant))


def macs_of_node(node: Node, layer: Holder | None = None) -> int:
    """Multiply-accumulates of one call for one sample.

    Args:
        node: the call.
        layer: whose weights it multiplies with; by default what is called.
    """
    op = node.op
    if isinstance(op, Loop):  # every step multiplies with every weight once
        weights = sum(size_of(kernel.shape) for holder in holders(op.step) for kernel in holder.kernels())
        return int(node.args[0][0].shape[1]) * weights
    layer = op if layer is None and isinstance(op, Holder) else layer
    y, x = node.outputs[0].shape[1:], node.inputs[0].shape[1:]
    if layer is not None:
        return sum(macs_of(find(layer.layer), kernel.shape, x, y) for kernel in layer.kernels())
    rule = find(op)
    # each number of the output sums over the last axis of the first input
    return size_of(y) * (x[-1] or 1) if rule is not None and "BATCH_MATMUL" in rule.operators else 0


def positions_of(rule: Rule | None, kernel: Sequence[int], x: Sequence[Any], y: Sequence[Any]) -> int:
    """How often every weight is multiplied with for one sample: see `macs_of`.

    A transposed convolution spreads every position of its input; the others gather for one of their output, which
    holds a number for each output channel.
    """
    if rule is not None and "TRANSPOSE_CONV" in rule.operators:
        return size_of(x[:-1])
    if rule is None or rule.weights is None:  # an LSTM: both of its matrices, once for each step
        return size_of(y[:-1])
    return size_of(y) // size_of([kernel[axis] for axis in rule.weights.channel_axes])


def size_of(shape: Sequence[Any]) -> int:
    """Values of a tensor of this shape; an axis of unknown length counts once."""
    return math.prod(int(n or 1) for n in shape)

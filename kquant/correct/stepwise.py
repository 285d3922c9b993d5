"""A model node by node over all batches: each node runs once for each batch, and only tensors still needed are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import keras
import tensorflow as tf

from kquant.graph.graph import Graph, Node, drop_read
from kquant.graph.unfold import substitute

# Called with a node and its outputs for each batch; True: the node has changed and runs once more.
Visit = Callable[[Node, list[list[Any]]], bool]


def run_stepwise(graph: Graph, batches: Iterable[Any], visit: Visit) -> None:
    """Compute a graph, so that a node may change before it runs again, and what comes after sees the change.

    Memory: of all samples, the tensors that are read by a node yet to come.

    Args:
        graph: of a quantized model.
        batches: inputs, as `kquant.calibration.data.batches_of` gives them.
        visit: see `Visit`; gets `[batch][output]`.
    """
    live: list[dict[int, Any]] = []
    names = [id(t) for t in keras.tree.flatten(graph.inputs)]
    for x in batches:
        live.append(dict(zip(names, keras.tree.flatten(x), strict=True)))
    last = graph.last_reads
    for i, node in enumerate(graph.nodes):
        made = _computed(node, live)
        # Once more at most: a second visit would measure what the first has just corrected.
        if visit(node, made):
            made = _computed(node, live)
        for values, outputs in zip(live, made, strict=True):
            values.update(zip((id(t) for t in node.outputs), outputs, strict=True))
            drop_read(values, last, i)


def _computed(node: Node, live: list[dict[int, Any]]) -> list[list[Any]]:
    """The outputs of one node for every batch."""
    made = []
    for values in live:
        args, kwargs = substitute((node.args, node.kwargs), values)
        made.append([tf.convert_to_tensor(y) for y in keras.tree.flatten(node.op(*args, **kwargs))])
    return made

"""The outputs of a graph with one tensor changed, for many such changes in one pass.

    tensor   rows as they are                     before all changes: not computed again
             change 2 | change 5                  behind both: the samples once for each
             change 2 | change 5 | change 7       one call of the layer for all of them

One pass for each change would call each layer as often as there are changes before it, and on few samples what a call
costs beside its arithmetic is nearly all of it: work would grow with the square of the depth.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kquant.graph.graph import Graph, Node, drop_read
from kquant.graph.unfold import substitute
from kquant.layers.nodes import Compressed, FakeQuant


def stacks(graph: Graph) -> bool:
    """True where every tensor has the samples along its first axis, but for what stands beside a tensor."""
    beside = _beside(graph)
    tensors = [*graph.input_tensors, *(t for node in graph.nodes for t in node.outputs)]
    return all(tuple(t.shape[:1]) == (None,) for t in tensors if id(t) not in beside)


def outputs_with(
    graph: Graph, values: Mapping[int, Any], changes: Sequence[tuple[Node, np.ndarray]]
) -> tuple[list[list[Any]], int]:
    """Outputs of the graph with another value of one tensor, for each of some changes.

    Args:
        graph: one that `stacks`.
        values: id(tensor) -> its value, of every tensor.
        changes: a node, and what its first output is to be: float32[samples, ...]. No two of one node.

    Returns:
        The outputs for each change, in the order of `graph.output_tensors`; and how many calls that took.
    """
    beside, number_of = _beside(graph), {id(node): n for n, (node, _) in enumerate(changes)}
    last = graph.last_reads | {id(t): len(graph.nodes) for t in graph.output_tensors}
    samples = int(values[id(graph.input_tensors[0])].shape[0])

    def rows_of(t: Any, number: int) -> Any:
        """One for each sample; a constant of the model has a single one for all of them."""
        value = changed.get(id(t), {}).get(number, values[id(t)])
        return value if value.shape[0] == samples else tf.repeat(value, samples, axis=0)

    changed: dict[int, dict[int, Any]] = {}  # id(tensor) -> number of the change -> the rows that it has there
    calls, known = 0, dict(values)
    for place, node in enumerate(graph.nodes):
        here = sorted({n for t in node.inputs for n in changed.get(id(t), ())})
        if here:
            read = [t for t in node.inputs if id(t) not in beside]
            rows = {id(t): [rows_of(t, n) for n in here] for t in read}
            stacked = {key: tf.concat(parts, axis=0) for key, parts in rows.items()}
            args, kwargs = substitute((node.args, node.kwargs), ChainMap(stacked, known))
            made = keras.tree.flatten(node.op(*args, **kwargs))
            calls += 1
            for t, y in zip(node.outputs, made, strict=True):
                # else a constant, which is one row whatever stands in front of it
                if id(t) not in beside and y.shape[0] == samples * len(here):
                    changed[id(t)] = dict(zip(here, tf.split(y, len(here)), strict=True))
        if id(node) in number_of:
            number = number_of[id(node)]
            # mixed precision: it is stacked with values of the model's own type
            value = tf.cast(tf.constant(changes[number][1], tf.float32), values[id(node.outputs[0])].dtype)
            changed.setdefault(id(node.outputs[0]), {})[number] = value
        drop_read(changed, last, place)
    ends = [(changed.get(id(t), {}), values[id(t)]) for t in graph.output_tensors]
    return [[rows.get(n, plain) for rows, plain in ends] for n in range(len(changes))], calls


def _beside(graph: Graph) -> set[int]:
    """Ids of encodings and of scales of sums, which these layers hand on beside their tensor: the same for all rows."""
    return {id(t) for node in graph.nodes if isinstance(node.op, FakeQuant | Compressed) for t in node.outputs[1:]}

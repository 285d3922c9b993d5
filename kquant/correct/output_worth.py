"""What an error of a layer's weights is worth to the model's output: one number for each output channel of each layer.

    a_c = E[sum_k (v' dz / dw_kc)^2] / sum_k E[x_k^2]         E over samples and random signs v

so that independent errors e of the weights of channel c change the outputs z by `a_c sum_k E[x_k^2] e^2` in mean square
(Gauss and Newton's; Hutchinson's estimator, Commun. Stat. Simul. Comput. 19 (1990)). z are the outputs in front of a
softmax or a sigmoid, in units of their deviation over the samples: an error of 0.01 is -20 dB.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kquant.correct.reconstruction import positions, rows_at
from kquant.graph.graph import Graph, Node
from kquant.graph.unfold import substitute
from kquant.layers.nodes import FakeQuant, observing
from kquant.ops import find
from kquant.views.quantized_model import Place
from kquant.views.step_places import host_of

SQUASHED = ({"SOFTMAX"}, {"LOGISTIC"}, {"LOG_SOFTMAX"})  # operators whose inputs are compared
SIGNS = 2  # random ones for each batch
BATCH = 8


def output_worth(
    graph: Graph, places: Sequence[Place], batches: Iterable[Any], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """float64[channels] of each layer that is a product of matrices; of those inside loops nothing.

    Args:
        graph: of a quantized model.
        places: its layers.
        batches: samples, see `batches_of`.
        rng: draws the signs.
    """
    known = [place for place in places if place.rows is not None and host_of(place.calls[0]) is place.calls[0]]
    ends = [_in_front(graph, t) for t in graph.output_tensors]
    gained = {place.name: 0.0 for place in known}
    powers = {place.name: 0.0 for place in known}
    sums, squares, count = 0.0, 0.0, 0
    for batch in batches:
        parts = [tf.convert_to_tensor(x) for x in keras.tree.flatten(batch)]
        for start in range(0, len(parts[0]), BATCH):
            values, slopes = _slopes(graph, known, ends, [x[start : start + BATCH] for x in parts], rng)
            z = np.concatenate([np.reshape(values[id(t)], (len(values[id(t)]), -1)) for t in ends], axis=1)
            z = z.astype(np.float64)
            sums, squares, count = sums + z.sum(axis=0), squares + (z**2).sum(axis=0), count + len(z)
            for place in known:
                _add(place, values, slopes[place.name], gained, powers)
    spread = float(np.sum(squares / count - (sums / count) ** 2)) or 1.0
    return {name: gained[name] / np.maximum(powers[name], 1e-30) / spread / SIGNS for name in gained}


def _in_front(graph: Graph, t: Any) -> Any:
    """The tensor that an output is made of without its encoding, and without what squashes it."""
    while (node := graph.producers.get(id(t))) is not None:
        if not isinstance(node.op, FakeQuant) and not _squashes(node):
            break
        t = node.inputs[0]
    return t


def _squashes(node: Node) -> str:
    rule = find(node.op)
    return next(iter(rule.operators)) if rule is not None and set(rule.operators) in SQUASHED else ""


def squash_of(graph: Graph, t: Any) -> str:
    """The operator that an output comes out of, where it is a softmax or a sigmoid; else "".

    Args:
        graph: of a quantized model.
        t: one of its outputs.
    """
    node = graph.producers.get(id(t))
    while node is not None and isinstance(node.op, FakeQuant):
        node = graph.producers.get(id(node.inputs[0]))
    return "" if node is None else _squashes(node)


def _slopes(
    graph: Graph, known: Sequence[Place], ends: Sequence[Any], inputs: Sequence[tf.Tensor], rng: np.random.Generator
) -> tuple[dict[int, Any], dict[str, list[list[Any]]]]:
    """All tensors of a batch in float, and for each sign and call of a layer the slope of the outputs there."""
    calls = [node for place in known for node in place.calls]
    wanted = {id(node): node for node in calls}
    with observing(lambda *_: None), tf.GradientTape(persistent=True) as tape:
        values: dict[int, Any] = {id(t): x for t, x in zip(graph.input_tensors, inputs, strict=True)}
        for node in graph.nodes:
            args, kwargs = substitute((node.args, node.kwargs), values)
            made = [tf.convert_to_tensor(y) for y in keras.tree.flatten(node.op(*args, **kwargs))]
            if id(node) in wanted:
                tape.watch(made[0])
            values.update((id(t), y) for t, y in zip(node.outputs, made, strict=True))
        drawn = [[rng.choice([-1.0, 1.0], values[id(t)].shape).astype(np.float32) for t in ends] for _ in range(SIGNS)]
        made = [tf.cast(values[id(t)], tf.float32) for t in ends]
        totals = [tf.add_n([tf.reduce_sum(z * v) for z, v in zip(made, vs, strict=True)]) for vs in drawn]
    slopes: dict[str, list[list[Any]]] = {place.name: [] for place in known}
    for total in totals:
        flat = tape.gradient(total, [values[id(node.outputs[0])] for node in calls])
        by_call = dict(zip([id(node) for node in calls], flat, strict=True))
        for place in known:
            slopes[place.name].append([by_call[id(node)] for node in place.calls])
    return values, slopes


def _add(
    place: Place, values: dict[int, Any], slopes: list[list[Any]], gained: dict[str, Any], powers: dict[str, Any]
) -> None:
    """A batch: slopes of the weights of each sample, squared, and squares of what they are multiplied by."""
    xs = [_rows(place, node, values) for node in place.calls]
    power = np.sum([np.sum(np.mean(x**2, axis=1), axis=(0, 2)) for x in xs], axis=0) / len(xs)
    powers[place.name] = powers[place.name] + np.repeat(power, place.layer.channels // len(power))
    for calls in slopes:
        total: Any = np.zeros(1)
        for x, slope in zip(xs, calls, strict=True):
            if slope is None:
                continue
            samples, at, groups, _ = x.shape
            g = np.reshape(slope, (samples, at, groups, -1))
            total = total + np.einsum("npgk,npgm->ngkm", x, g, optimize=True)
        if total.ndim == 4:  # an output depends on the layer
            # of every sample its own slope: squares of their mean would be less
            squares = np.sum(np.square(total, dtype=np.float64), axis=(0, 2))
            gained[place.name] = gained[place.name] + squares.reshape(-1)


def _rows(place: Place, node: Node, values: dict[int, Any]) -> np.ndarray:
    """float32[samples, positions, groups, k]."""
    x = values[id(node.inputs[0])]
    rows = rows_at(place, x, np.arange(len(x) * positions(node)))
    return rows.reshape(len(x), -1, *rows.shape[1:])

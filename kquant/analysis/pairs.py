"""Layers whose channels could be rescaled against each other without changing the function: `kquant.equalize` does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kquant.core.graph import Graph, Node
from kquant.core.nodes import Compressed, FakeQuant
from kquant.core.spec import SMALLEST_CHANNEL
from kquant.quantized import Place, places

layers = keras.layers
# f(s x) = s f(x) for s > 0 for each channel apart, and channels stay where they are. A capped ReLU limits s.
HOMOGENEOUS = (
    layers.ReLU,
    layers.LeakyReLU,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
    layers.Dropout,
)


@dataclass(frozen=True)
class Pair:
    """Two layers one behind the other.

    Attributes:
        first, second: names.
        spread: largest over smallest ratio, over the channels between, of the first layer's range to the second's;
            1 where they are equalized.
    """

    first: str
    second: str
    spread: float


def pairs(graph: Graph) -> list[Pair]:
    """Pairs of layers with one path from the first to the second, and nothing on it that mixes or shifts channels.

    Source: Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction", arXiv:1906.04721,
    section 4.1: ranges `r1_i` of output channel i and `r2_i` of input channel i are to be equal.
    """
    consumers = graph.consumers()
    known = {id(place.layer): place for place in places(graph)}
    found = []
    for place in known.values():
        follower = _next(place.calls[0], consumers) if len(place.calls) == 1 else None
        second = known.get(id(follower.op)) if follower is not None else None
        if second is None or len(second.calls) != 1:
            continue
        before, after = _by_output(place), _by_input(second)
        if before is not None and after is not None and before.shape == after.shape:
            live = _live(before) & _live(after)
            ratios = before[live] / after[live]
            found.append(Pair(place.name, second.name, float(ratios.max() / ratios.min()) if ratios.size else 1.0))
    return found


def _live(reaches: np.ndarray) -> np.ndarray:
    """Channels that are not dead, as `encode_weights` sees them."""
    return reaches > reaches.max(initial=0.0) * SMALLEST_CHANNEL


def _next(node: Node, consumers: dict[int, list[Node]]) -> Node | None:
    """The layer with weights that alone reads the output of this one."""
    while True:
        readers = [n for n in consumers.get(id(node.outputs[0]), []) if not _only_tells(n, node.outputs[0])]
        if len(readers) != 1:
            return None
        node = readers[0]
        if isinstance(node.op, Compressed):
            return node
        if not isinstance(node.op, (FakeQuant, *HOMOGENEOUS)):
            return None


def _only_tells(node: Node, tensor: Any) -> bool:
    """True where an encoding reads a tensor as the source of the one that it holds."""
    return isinstance(node.op, FakeQuant) and node.args[0] is not tensor


def _by_output(place: Place) -> np.ndarray | None:
    weights = np.abs(place.layer.weights_as_used().numpy().astype(np.float64))
    kept = {axis % weights.ndim for axis in place.layer.channel_axes}
    return weights.max(axis=tuple(a for a in range(weights.ndim) if a not in kept)).reshape(-1)


def _by_input(place: Place) -> np.ndarray | None:
    rule = place.rule.weights
    if rule is None or rule.input_axis is None or getattr(place.layer.layer, "groups", 1) != 1:
        return None
    weights = np.abs(place.layer.weights_as_used().numpy().astype(np.float64))
    kept = rule.input_axis % weights.ndim
    return weights.max(axis=tuple(a for a in range(weights.ndim) if a != kept))

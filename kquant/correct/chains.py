"""Pairs of layers that may share a factor for each channel: one follows the other, and nothing between bends it."""

from __future__ import annotations

from dataclasses import dataclass

import keras
import numpy as np

from kquant.correct.channels import channels_after, readers_of, reads_one_tensor
from kquant.graph.graph import Graph, Node
from kquant.layers.nodes import Compressed, FakeQuant
from kquant.views.quantized_model import Place, places


@dataclass(frozen=True, eq=False)
class Pair:
    """Two layers, the second reading channels of the first.

    Attributes:
        first, second: the layers.
        between: the nodes from one to the other, `FakeQuant` included.
        channels: int[n], the channel of the first behind each input channel of the second.
        clip: an activation between that is cut off above (ReLU6), or None.
    """

    first: Place
    second: Place
    between: tuple[Node, ...]
    channels: np.ndarray
    clip: Node | None

    @property
    def name(self) -> str:
        """Both names."""
        return f"{self.first.name} -> {self.second.name}"

    @property
    def quantizers(self) -> list[FakeQuant]:
        """What encodes the tensors between the two."""
        return [node.op for node in self.between if isinstance(node.op, FakeQuant) and node.op.has_range]


def find_pairs(graph: Graph) -> tuple[list[Pair], dict[str, str]]:
    """Every pair of a quantized model, and why the other layers are the first of none.

    Args:
        graph: what `kquant.views.quantized_model.read` gave.

    Returns:
        Pairs in the order of the model, and layer name -> reason.
    """
    able = {id(p.layer): p for p in places(graph) if _has_channels(p)}
    outputs, readers = {id(t) for t in graph.output_tensors}, readers_of(graph)
    pairs, ends = [], {}
    for place in able.values():
        outcome = _shared(place) or _follow(place, able, outputs, readers)
        if isinstance(outcome, Pair):
            pairs.append(outcome)
        else:
            ends[place.name] = outcome
    return pairs, ends


def _has_channels(place: Place) -> bool:
    weights = place.rule.weights
    return place.layer.sums and weights is not None and weights.input_axis is not None


def _shared(place: Place) -> str | None:
    if place.layer.shares:
        return "its weights share values (a codebook), which factors for single channels would pull apart"
    return f"it is called {len(place.calls)} times" if len(place.calls) > 1 else None


def _follow(first: Place, able: dict[int, Place], outputs: set[int], readers: dict[int, list[Node]]) -> Pair | str:
    """From a layer to the next, or the reason why there is none."""
    node, between, clip = first.calls[0], [], None
    channels = np.arange(int(node.outputs[0].shape[-1]))
    while True:
        # What the model gives away has to stay what it is.
        if any(id(t) in outputs for t in node.outputs):
            return "the model gives its output away"
        following = readers.get(id(node.outputs[0]), [])
        # A factor would reach the other readers too, which nothing divides by it again.
        if len(following) != 1:
            return f"{len(following)} layers read its output ({', '.join(n.name for n in following)})"
        node = following[0]
        if isinstance(node.op, Compressed):
            return _closed(first, able.get(id(node.op)), node, tuple(between), channels, clip)
        between.append(node)
        if isinstance(node.op, FakeQuant):
            continue
        # By trial on numbers: what a clip does to channels is allowed for once, and `limits_of` bounds the factors.
        after = channels_after(node, channels)
        if after is None and is_clipped(node) and clip is None:
            after, clip = channels, node
        if after is None:
            return _bent(node)
        channels = after


def _closed(
    first: Place, second: Place | None, node: Node, between: tuple[Node, ...], channels: np.ndarray, clip: Node | None
) -> Pair | str:
    if second is None:
        return f"{node.name} has no integer weights with input channels"
    reason = _shared(second)
    return f"{second.name}: {reason}" if reason else Pair(first, second, between, channels, clip)


def is_clipped(node: Node) -> bool:
    """True for a ReLU with a largest value."""
    return isinstance(node.op, keras.layers.ReLU) and node.op.max_value is not None and reads_one_tensor(node)


def _bent(node: Node) -> str:
    kind = type(node.op).__name__
    what = "is no scaling of each channel" if reads_one_tensor(node) else "reads more than one tensor"
    return f"{node.name} ({kind}) {what}"

"""What a model does to its inputs before anything else: the constants that scale them, channel by channel.

They tell what data the model takes, and where a grid of 256 codes cannot hold channels of unlike scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kquant.graph.graph import Graph, Node
from kquant.ops import find
from kquant.ops.affine import Affine
from kquant.ops.expansion import expand_alone
from kquant.ops.passive import is_idle

layers = keras.layers
# What images of 8 bits and sound of 16 bits are divided by.
PIXELS = (255.0, 256.0, 127.5, 127.0, 128.0)
SOUND = (32767.0, 32768.0)
FEW_CODES = 8.0
UNLIKE = 16.0  # ranges of channels: 4 bits of the narrow one are gone
DEVIATIONS = 3.0  # normal data lie within so many


@dataclass(frozen=True, eq=False)
class Scaling:
    """`scale * x + offset` at an input, of the layers that come first.

    Attributes:
        tensor: the input, of the graph.
        node: the last of these layers.
        scale, offset: float64[channels] (last axis).
        seen: (mean, standard deviation) of the input's channels, float64[channels] each, where a Normalization or a
            batch norm saw data.
    """

    tensor: Any
    node: Node
    scale: np.ndarray
    offset: np.ndarray
    seen: tuple[np.ndarray, np.ndarray] | None

    def takes(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(lowest, highest) of each channel that these layers were made for; None where they do not tell."""
        if self.seen is not None:
            mean, deviation = self.seen
            return mean - DEVIATIONS * deviation, mean + DEVIATIONS * deviation
        units = 1.0 / np.abs(self.scale)
        if np.ptp(self.scale) or np.ptp(self.offset) or not np.isclose(units[0], PIXELS + SOUND, rtol=1e-4).any():
            return None
        ends = ((0.0 if self.offset[0] >= 0.0 else -1.0) - self.offset) / self.scale, (1.0 - self.offset) / self.scale
        if np.isclose(units[0], SOUND, rtol=1e-4).any():
            ends = (-1.0 - self.offset) / self.scale, ends[1]
        return np.minimum(*ends), np.maximum(*ends)


def scalings(graph: Graph) -> list[Scaling]:
    """Those of every input that is read by one such layer only.

    Args:
        graph: of a float model, layers with a rule whole; nothing in it is changed.
    """
    consumers = graph.consumers
    read = (_scaling(t, consumers) for t in graph.input_tensors)
    return [s for s in read if s is not None]


def _scaling(tensor: Any, consumers: dict[int, list[Node]]) -> Scaling | None:
    """Follow the chain of affine layers from an input."""
    last, seen = None, None
    scale, offset = np.ones(1), np.zeros(1)
    t = tensor
    while len(readers := consumers.get(id(t), [])) == 1:
        pieces = affines(readers[0])
        if pieces is None:
            break
        if pieces and last is None and isinstance(readers[0].op, layers.Normalization | layers.BatchNormalization):
            seen = _seen(readers[0].op)
        for piece in pieces:
            factor, shift = (v.numpy().astype(np.float64) for v in (piece.scale, piece.offset))
            scale, offset = scale * factor, offset * factor + shift
        last, t = (readers[0] if pieces else last), readers[0].outputs[0]
    if last is None or not np.all(scale):
        return None
    return Scaling(tensor, last, scale, offset, seen)


def _seen(op: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Moments of what a Normalization or batch norm saw; None for one that saw nothing, or goes the other way."""
    batch_norm = isinstance(op, layers.BatchNormalization)
    mean, variance = (op.moving_mean, op.moving_variance) if batch_norm else (op.mean, op.variance)
    mean, variance = (np.asarray(keras.ops.convert_to_numpy(v), np.float64).reshape(-1) for v in (mean, variance))
    fresh = batch_norm and not np.any(mean) and np.all(variance == 1.0)
    return None if fresh or getattr(op, "invert", False) else (mean, np.sqrt(variance))


def affines(node: Node) -> list[Affine] | None:
    """The constant scalings over the last axis that one call consists of; none for one that does nothing at inference.

    Returns:
        None where the call is anything else.
    """
    rule = find(node.op)
    if rule is None or len(node.inputs) != 1 or len(node.outputs) != 1:
        return None
    if rule.weights is not None and not isinstance(node.op, Affine):  # most first layers: nothing to write out
        return None
    if rule.expand is None:  # what stays as it is needs no writing out either
        idle = is_idle(node.op, node.args[0])
        return [node.op] if isinstance(node.op, Affine) else [] if idle else None
    try:
        part = expand_alone(node)
    except ValueError:  # refused, which `plan` will say
        return None
    ops = [n.op for n in part.nodes if not isinstance(n.op, layers.Identity)]
    return ops if all(isinstance(op, Affine) for op in ops) else None


def inputs_take(graph: Graph) -> dict[str, tuple[float, float, str]]:
    """Input -> (lowest, highest, layer), where its first layers tell.

    Args:
        graph: see `scalings`.
    """
    taken = {}
    for s in scalings(graph):
        ends = s.takes()
        if ends is not None:
            taken[s.tensor.name] = (float(ends[0].min()), float(ends[1].max()), s.node.name)
    return taken


def advice(graph: Graph) -> list[str]:
    """What to know of inputs whose channels one grid of 256 codes does not hold, as their first layers tell.

    Args:
        graph: see `scalings`.
    """
    said = []
    for s in scalings(graph):
        mean, deviation = s.seen or (-s.offset / s.scale, 1.0 / np.abs(s.scale))
        low, high = mean - DEVIATIONS * deviation, mean + DEVIATIONS * deviation
        live = np.where(deviation > 0.0, high - low, np.inf)
        codes = 255.0 * live.min() / max(max(high.max(), 0.0) - min(low.min(), 0.0), 1e-30)
        narrow, wide = int(live.argmin()), int(deviation.argmax())
        if codes < FEW_CODES and live[wide] > UNLIKE * live[narrow]:
            said.append(
                f"input '{s.tensor.name}': its channels go from {low[narrow]:.3g} to {high[narrow]:.3g} ({narrow}) and "
                f"from {low[wide]:.3g} to {high[wide]:.3g} ({wide}), as '{s.node.name}' scales them; on one 8-bit grid "
                f"the narrowest gets {codes:.2g} of 256 codes. Run that layer in the application: "
                "kquant.split_preprocessing(model) takes it out."
            )
    return said

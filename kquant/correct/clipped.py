"""Clipped ReLUs (ReLU6) between two layers: `f(s x) = s f(x)` holds only for channels that never reach the clip."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kquant.core.messages import warn
from kquant.correct.chains import Pair
from kquant.graph.graph import Graph, Node
from kquant.layers.fake_quant import FakeQuant
from kquant.views.quantized_model import Place, tensors

# Batches of inputs, anew on each call; None where there are no data.
Samples = Callable[[], Iterable[Any]] | None

FAR = 6.0  # deviations from the mean that a channel is taken never to leave
MARGIN = 0.999  # of the clip, for what float32 rounds


@dataclass(frozen=True, eq=False)
class Extremes:
    """What data showed of a layer's output, before its activation: float64[channels] each."""

    low: np.ndarray
    high: np.ndarray


def extremes_of(graph: Graph, pairs: list[Pair], samples: Samples) -> dict[str, Extremes]:
    """The smallest and largest float output of the first layer of each pair; nothing without data."""
    if samples is None or not pairs:
        return {}
    extremes: dict[str, Extremes] = {}
    wanted = [pair.first.calls[0].outputs[0] for pair in pairs]
    for values in tensors(graph, wanted, samples(), quantized=False):
        for pair, y in zip(pairs, values, strict=True):
            rows = y.reshape(-1, y.shape[-1]).astype(np.float64)
            nothing = Extremes(np.full(rows.shape[1], np.inf), np.full(rows.shape[1], -np.inf))
            old = extremes.get(pair.first.name, nothing)
            extremes[pair.first.name] = Extremes(
                np.minimum(old.low, rows.min(axis=0)), np.maximum(old.high, rows.max(axis=0))
            )
    return extremes


def highest(place: Place, seen: Extremes | None) -> np.ndarray | None:
    """What a layer's output channels never exceed, from their moments and from data; None where neither is there."""
    layer = place.layer
    known = [] if seen is None else [seen.high]
    if layer.mean is not None and layer.deviation is not None:
        known.append(layer.mean.numpy().astype(np.float64) + FAR * layer.deviation.numpy().astype(np.float64))
    return np.maximum.reduce(known) if known else None


def limits_of(pair: Pair, seen: Extremes | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Smallest and largest factor of each channel that leaves the function as it is; None where all do.

    Below a clip M, a channel that stays under u < M takes factors up to M / u; one that reaches M takes none.
    """
    if pair.clip is None:
        return None
    top, clip = highest(pair.first, seen), float(pair.clip.op.max_value)
    count = int(pair.first.calls[0].outputs[0].shape[-1])
    if top is None:
        # Nothing is known of the channels: all may reach the clip.
        return np.ones(count), np.ones(count)
    free = top < clip * MARGIN
    # A channel that is never above 0 is cut to 0, whatever its factor.
    most = np.divide(clip * MARGIN, top, out=np.full(count, np.inf), where=top > 0)
    # From 0 on: a smaller factor takes a channel away from the clip.
    return np.where(free, 0.0, 1.0), np.where(free, most, 1.0)


def replaceable(graph: Graph, clip: Node) -> str | None:
    """Why a clipped ReLU cannot become a plain one, or None."""
    if len(graph.calls[id(clip.op)]) > 1:
        return "it is called more than once"
    for node in graph.consumers.get(id(clip.outputs[0]), []):
        if isinstance(node.op, FakeQuant) and node.op.sites > 1:
            return "its encoding is that of other tensors too"
        of_8_bit_sums = "accumulator" in node.kwargs and "sums" not in node.kwargs
        if "activation" in (node.kwargs.get("attributes") or {}) and not of_8_bit_sums:
            return "with 16-bit activations the clip is part of the requantization; quantize a model without it"
    return None


def replace_clips(graph: Graph, pairs: list[Pair], samples: Samples, verbose: bool) -> None:
    """Make the clipped ReLUs between pairs plain ones, and say what that does to the model."""
    clips = {id(pair.clip): pair.clip for pair in pairs if pair.clip is not None}
    reasons = {key: replaceable(graph, node) for key, node in clips.items()}
    for key, reason in reasons.items():
        if reason is not None:
            warn(f"equalize: {clips[key].name} keeps its clip: {reason}.")
    chosen = [node for key, node in clips.items() if reasons[key] is None]
    if not chosen:
        return
    # Before the clips go, while there is something to compare with.
    before = _outputs(graph, samples)
    reaching = [_reaching(pair) for pair in pairs if pair.clip in chosen]
    for node in chosen:
        node.op.max_value = None
        for reader in graph.consumers.get(id(node.outputs[0]), []):
            if isinstance(reader.op, FakeQuant):
                reader.op.unclipped = True
    if verbose:
        effect = _effect(graph, samples, before, reaching)
        print(f"equalize: {len(chosen)} clipped ReLUs became plain ones; {effect}")


def _outputs(graph: Graph, samples: Samples) -> list[np.ndarray]:
    if samples is None:
        return []
    wanted = graph.output_tensors
    batches = tensors(graph, wanted, samples(), quantized=False)
    return [np.concatenate([y.ravel() for y in values]).astype(np.float64) for values in batches]


def _reaching(pair: Pair) -> str:
    top = highest(pair.first, None)
    clip = pair.clip
    if top is None or clip is None:
        return f"{pair.first.name}: unknown"
    return f"{pair.first.name}: {int(np.sum(top >= clip.op.max_value))} of {top.size}"


def _effect(graph: Graph, samples: Samples, before: list[np.ndarray], reaching: list[str]) -> str:
    """How far the model's outputs moved on the data; without any, how many channels may have been clipped."""
    if not before:
        return f"no data to measure the effect on. Channels that may have reached the clip: {'; '.join(reaching)}"
    old, new = np.concatenate(before), np.concatenate(_outputs(graph, samples))
    moved = np.sqrt(np.mean((new - old) ** 2) / max(np.mean(old**2), 1e-30))
    return f"on the data its float outputs moved by {100 * moved:.3g} % (root mean square)"

"""Tensors whose one grid costs the model its outputs, and why: each is measured, and so is its remedy.

    all tensors on their grids     the outputs keep 20 dB: nothing is said, whatever the ranges look like
    one tensor alone on its grid   below 20 dB: it is named, where the cause is one that a better grid does not mend

A channel of a small range may matter or not: after folding, what multiplies it tells. So the outputs decide.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kquant.calibration.data_scale import are_pixels
from kquant.calibration.observations import Observations
from kquant.calibration.stacked_runs import outputs_with, stacks
from kquant.core.messages import first_of, warn
from kquant.core.origin import origins
from kquant.graph.graph import Graph, Node, outputs_of, run
from kquant.graph.unfold import substitute
from kquant.layers.nodes import Compressed, FakeQuant, encodings_of, observing, only
from kquant.layers.provenance import provenance_of
from kquant.ops import find
from kquant.ops.position import found_or_whole
from kquant.views.quantized_model import HELD_BYTES, graph_if_large, read, tensor_bytes
from kquant.views.widths import TYPES

# Healthy int8 models keep 20 to 40 dB, and networks of some layers that keep 20 dB lose about a point of accuracy.
ENOUGH_DB = 20.0
GAIN_DB = 6.0  # one bit: less is no remedy
FEW_CODES = 8  # of 256: what a channel has left that is named
MOST_TENSORS = 24  # measured alone, in models that lose their outputs
MOST_CALLS = 3000  # of layers, for that: some seconds; deep networks end there, the likeliest tensors done
SIXTEEN_BITS = 32767
HELD_AT_ONCE = 8  # of the largest tensor, what a pass for many tensors holds of each
UNLIKE = 16.0  # widths of channels: 4 bits of the narrow one are gone


@dataclass(frozen=True)
class _Loss:
    """A tensor that costs the outputs their signal: its name, what is wrong, and the remedy with what it gives."""

    cause: str
    said: str


def warn_of_losses(qmodel: keras.Model, seen: Observations) -> None:
    """Measure what the grids cost the outputs; where that is much, name the tensors that alone do.

    Args:
        qmodel: calibrated; it is not changed.
        seen: what the data showed, with some of them.
    """
    if seen.some is None:
        return  # of shards that were saved: there are no samples to measure with
    x, y = seen.some
    kept_db = _total_db(qmodel, x, y)
    if kept_db >= ENOUGH_DB:
        return
    _warn_of_pixels(qmodel, x, kept_db)  # first: what follows of it is no fault of the layers that are named then
    losses = _Model(qmodel, x).losses()
    for cause, remedy in REMEDIES.items():
        said = [f.said for f in losses if f.cause == cause]
        if said:
            warn(f"calibrate: {'; '.join(said[:3])}{_more(said)}. {remedy}")


def _warn_of_pixels(qmodel: keras.Model, x: Any, kept_db: float) -> None:
    """Name inputs that got images of 0..255, which few models read without scaling them."""
    entrances, given = read(qmodel).input_tensors, keras.tree.flatten(x)
    named = [t.name for t, v in zip(entrances, given, strict=True) if are_pixels(np.asarray(v))]
    if named:
        warn(
            f"calibrate: the pixels of {first_of(named)} go from 0 to 255, and the grids leave the outputs "
            f"{kept_db:.1f} dB of signal over noise. Was the model trained on 0..1 or -1..1, by a scaling that is no "
            "layer in it? Scale them here as there first: x / 255 (`--scale 1/255` on the command line) or "
            "x / 127.5 - 1."
        )


# What to do about each cause; what a remedy gives stands with the tensor.
REMEDIES = {
    "input": (
        "Bring the channels to one scale in the application, before the model: `kquant.split_preprocessing(model, "
        "data)` (`kquant split --data`) takes a Normalization, and the like, out of it; where it has none, it divides "
        "the columns by their widths."
    ),
    "channels": (
        "Bring the channels nearer to each other: `kquant.equalize(q, data)` before calibrating, where a layer with "
        "weights reads them, or a BatchNormalization that is trained before it."
    ),
    "softmax": (
        "Give the layer, and what reads its weights where that is another one, 16 bits by rules of the recipe: "
        "`activations = { bits = 16 }` keeps them in steps of 1/32768."
    ),
    "function": (
        "Keep what the function reads where it varies: put a BatchNormalization before it, clip it (keras.ops.clip), "
        "or subtract the maximum before an exponential."
    ),
    "wide function": (
        "Keep what the function reads where it varies, with a BatchNormalization before it; or give it and what reads "
        "it 16 bits by rules of the recipe, `activations = { bits = 16 }`."
    ),
}


def _more(said: list[str]) -> str:
    return f"; and {len(said) - 3} more" if len(said) > 3 else ""


def _db(counted: Sequence[bool], y: list[np.ndarray], quantized: list[np.ndarray]) -> float:
    """Of the output that lost most: variance over the power of the difference; 1 over the wrong ones of positions."""
    worst = np.inf
    for is_counted, a, b in zip(counted, y, quantized, strict=True):
        if is_counted:
            signal, noise = 1.0, float(np.mean(a != b))
        else:
            signal, noise = float(np.var(a, dtype=np.float64)), float(np.mean((a - b).astype(np.float64) ** 2))
        if signal > 0.0:
            # 120 dB at most, so that an output without any noise has a number too
            worst = min(worst, 10.0 * np.log10(signal / max(noise, signal * 1e-12)))
    return worst


def _outputs(values: Any) -> list[np.ndarray]:
    return [np.asarray(t, np.float32) for t in keras.tree.flatten(values)]


def _total_db(qmodel: keras.Model, x: Any, y: Any) -> float:
    """What the outputs keep with every activation on its grid."""
    graph = graph_if_large(qmodel, len(keras.tree.flatten(x)[0]))
    with only({layer.name for layer in encodings_of(qmodel)}):
        quantized = _outputs(qmodel(x, training=False) if graph is None else outputs_of(graph, x))
    return _db(found_or_whole(qmodel), _outputs(y), quantized)


class _Model:
    """The calls of a quantized model with their values in float on some samples."""

    def __init__(self, qmodel: keras.Model, x: Any) -> None:
        self.graph: Graph = read(qmodel)
        fitting = max(1, HELD_BYTES // sum(tensor_bytes(self.graph)))  # all values stay: fewer of large samples
        x = keras.tree.map_structure(lambda t: t[:fitting], x)
        self.samples = len(keras.tree.flatten(x)[0])
        with observing(lambda *_: None):
            self.values = run(self.graph, x)
        self.y = _outputs([self.values[id(t)] for t in self.graph.output_tensors])
        self.counted = found_or_whole(qmodel)
        self.makers, self.readers = self.graph.producers, self.graph.consumers
        self.target = provenance_of(n.op for n in self.graph.nodes).load_target()
        self.inputs = {id(t): t.name for t in self.graph.input_tensors}
        self.calls = 0

    def losses(self) -> list[_Loss]:
        """What is to be told, in order of the model."""
        kept = [n for n in self.graph.nodes if isinstance(n.op, FakeQuant) and not n.kwargs.get("peek")]
        # the grid of an output is what outputs are told in: a softmax that says the same of all samples is no fault
        ends = {id(t) for t in self.graph.output_tensors}
        inside = [n for n in kept if not n.op.follows and id(n.outputs[0]) not in ends]
        suspects = sorted(inside, key=self._codes_left)[:MOST_TENSORS]
        losses: dict[int, _Loss | None] = {}
        for node, alone in self.alone(suspects):
            losses[id(node)] = self._loss(node, alone)
            if self.calls >= MOST_CALLS:
                break
        return [f for node in kept if (f := losses.get(id(node))) is not None]

    def alone(self, nodes: Sequence[Node]) -> Iterator[tuple[Node, float]]:
        """Nodes in order, each with what the outputs keep with its tensor alone on its grid: dB."""
        if not stacks(self.graph):
            for node in nodes:
                yield node, self.db(node, self._gridded(node))
            return
        largest = self.samples * max(tensor_bytes(self.graph))
        many = max(1, HELD_BYTES // (HELD_AT_ONCE * largest))
        for start in range(0, len(nodes), many):
            group = nodes[start : start + many]
            with only(()):
                results, calls = outputs_with(self.graph, self.values, [(n, self._gridded(n)) for n in group])
            self.calls += calls
            for node, outputs in zip(group, results, strict=True):
                yield node, _db(self.counted, self.y, _outputs(outputs))

    def _gridded(self, node: Node) -> np.ndarray:
        return _on_grid(self._value(node), node.op)

    def _codes_left(self, node: Node) -> tuple[int, float]:
        """Inputs, then functions, then the rest, those first whose narrowest channel gets fewest codes."""
        v = self._value(node)
        kind = 0 if id(node.args[0]) in self.inputs else 1 if self._function(node) is not None else 2
        return kind, codes_of(v, _step(node.op), v.ndim - 1)[0]

    def _value(self, node: Node) -> np.ndarray:
        return np.asarray(self.values[id(node.outputs[0])], np.float32)

    def _function(self, node: Node) -> Node | None:
        """The call of a function whose output this encodes."""
        maker = self.makers.get(id(node.args[0]))
        rule = None if maker is None else find(maker.op)
        fixed = rule is not None and rule.output == "fixed"
        return maker if fixed or _is_table(maker) else None

    def _loss(self, node: Node, alone: float) -> _Loss | None:
        v, step = self._value(node), _step(node.op)
        if alone >= ENOUGH_DB:
            return None
        enough, costs = alone + GAIN_DB, f"that alone leaves the outputs {alone:.1f} dB of signal over noise"
        maker = self._function(node)
        steep = [n for n in self.readers.get(id(node.outputs[0]), []) if _is_table(n)]
        # each remedy is a pass through all that follows: none is tried where nothing would be told of what it gives
        if maker is None and not steep:
            return self._unlike(node, v, step, alone, costs)
        finer = np.float32(_reach(node.op) / SIXTEEN_BITS)
        # with the kernels behind it on their grids: where their columns are as unlike, finer codes help nothing
        wide = self.db(node, np.rint(v / finer) * finer, self._kernels(node))
        if maker is None and wide < enough:
            return self._unlike(node, v, step, alone, costs)
        if maker is None:
            said = f"{_layer(steep[0])} reads {v.min():.6g} to {v.max():.6g} in steps of {step:.2g}"
            return _Loss("function", f"{said}: {costs}")
        # no finer grid helps: what is lost is no fault of this one, and there would be no remedy to name
        if wide < enough and self.db(node, _apart(v, v.ndim - 1)) < enough:
            return None
        helps = wide >= enough and self._has_16(maker)
        costs += f"; in 16 bits {wide:.1f} dB" if helps else ""
        if _is_softmax(maker):
            said = f"{_layer(maker)} is a softmax over {v.shape[-1]}, an even share of which is "
            said += f"{1 / v.shape[-1] / step:.2g} of its steps of 1/256: {costs}"
            return _Loss("softmax" if helps else "function", said)
        codes = len(np.unique(np.rint(v / step)))
        said = f"{_layer(maker)} gives {v.min():.6g} to {v.max():.6g}, {codes} of 256 codes in steps of {step:.2g}"
        return _Loss("wide function" if helps else "function", f"{said}: {costs}")

    def _kernels(self, node: Node) -> set[str]:
        """The layers with weights that read a tensor: where its channels are unlike, so are their columns."""
        return {n.op.name for n in self.readers.get(id(node.outputs[0]), []) if isinstance(n.op, Compressed)}

    def _has_16(self, maker: Node) -> bool:
        rule = find(maker.op)
        if rule is None or 16 not in rule.widths:
            return False
        return all(self.target.supports(code, TYPES[16]) for code in rule.operators)

    def _unlike(self, node: Node, v: np.ndarray, step: float, alone: float, costs: str) -> _Loss | None:
        """Channels of unlike ranges: true where a grid for each would mend it."""
        name = self.inputs.get(id(node.args[0]))
        # the features of an input may lie along any axis (channels first, time last), those inside along the last
        axes = range(1, v.ndim) if name is not None else [v.ndim - 1]
        few, low, high, axis = min((*codes_of(v, step, a), a) for a in axes)
        widths = widths_of(v, axis)
        if few >= FEW_CODES or widths[high] < UNLIKE * widths[low]:
            return None
        if (apart := self.db(node, _apart(v, axis))) < alone + GAIN_DB:
            return None
        ends = [v.take(i, axis) for i in (low, high)]
        said = [f"{i} goes from {e.min():.3g} to {e.max():.3g}" for i, e in zip((low, high), ends, strict=True)]
        maker = self.makers.get(id(node.args[0]))
        what = f"input '{name}'" if name is not None else node.op.name if maker is None else _layer(maker)
        bits = node.op.spec.bits
        text = (
            f"the channels of {what} are of very unlike scale: along axis {axis}, {said[0]}, {said[1]}, and on their "
            f"one grid of {bits} bits the narrowest gets {few:.2g} of {1 << bits} codes: {costs}; with a grid for each "
            f"{apart:.1f} dB"
        )
        return _Loss("channels" if name is None else "input", text)

    def db(self, node: Node, value: np.ndarray, kernels: Collection[str] = ()) -> float:
        """What the outputs keep with another value of one tensor, these kernels quantized, and all else in float."""
        changed: dict[int, Any] = {id(node.outputs[0]): keras.ops.convert_to_tensor(value.astype(np.float32))}
        values = ChainMap(changed, self.values)
        with only(kernels):
            for other in self.graph.nodes:
                if other is node or not any(id(t) in changed for t in other.inputs):
                    continue
                args, kwargs = substitute((other.args, other.kwargs), values)
                self.calls += 1
                for t, made in zip(other.outputs, keras.tree.flatten(other.op(*args, **kwargs)), strict=True):
                    changed[id(t)] = made
        return _db(self.counted, self.y, _outputs([values[id(t)] for t in self.graph.output_tensors]))


def _layer(node: Node) -> str:
    """A layer by its name, and that of the user's layer which it is a part of: a rule of a recipe may name it."""
    whole = [name for name, _ in origins(node.op) if name != node.name]
    return f"'{node.name}'" + (f" (of '{whole[-1]}')" if whole else "")


def _is_table(node: Node | None) -> bool:
    """True for a function that is written as a table of its codes."""
    rule = None if node is None else find(node.op)
    return rule is not None and "GATHER" in rule.operators and rule.weights is None and not rule.indices


def _is_softmax(node: Node | None) -> bool:
    rule = None if node is None else find(node.op)
    return rule is not None and rule.operators == ("SOFTMAX",)


def _step(layer: FakeQuant) -> float:
    return float(layer.grid()[0])


def _on_grid(v: np.ndarray, layer: FakeQuant) -> np.ndarray:
    scale, zero_point, _ = (float(a) for a in layer.grid())
    with np.errstate(over="ignore"):  # minus infinity of masks: clipped
        v = np.rint(v / scale)
    return (np.clip(v + zero_point, layer.spec.low, layer.spec.high) - zero_point) * np.float32(scale)


def _reach(layer: FakeQuant) -> float:
    """The largest magnitude that a grid holds."""
    scale, zero_point, _ = (float(a) for a in layer.grid())
    return scale * max(layer.spec.high - zero_point, zero_point - layer.spec.low)


def widths_of(v: np.ndarray, axis: int) -> np.ndarray:
    """From the smallest to the largest value of each channel along an axis."""
    others = tuple(a for a in range(v.ndim) if a != axis)
    return v.max(axis=others) - v.min(axis=others)


def codes_of(v: np.ndarray, step: float, axis: int) -> tuple[float, int, int]:
    """Codes that the narrowest channel that varies gets, and which it and the widest are."""
    widths = widths_of(v, axis)
    live = np.where(widths > 0.0, widths, np.inf)
    low = int(live.argmin())
    return (float(live[low] / step) if widths[low] > 0.0 else np.inf), low, int(widths.argmax())


def _apart(v: np.ndarray, axis: int) -> np.ndarray:
    """Each channel on a grid of its own, around its middle."""
    others = tuple(a for a in range(v.ndim) if a != axis)
    low, high = v.min(axis=others, keepdims=True), v.max(axis=others, keepdims=True)
    step = np.where(high > low, (high - low) / 255.0, 1.0).astype(np.float32)
    return np.rint((v - low) / step) * step + low

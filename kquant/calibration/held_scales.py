"""Ranges that are widened until the kernels that compute the tensors take their scales.

A kernel multiplies its integers by `unit / scale` (`core.rescale`), and bounds that number. Where it is larger, the
range of what it computes is narrower than a fraction of one unit: rounding noise, or the constant that is left of
tensors much larger. Wider steps lose nothing then, and the user is told.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kquant.core.messages import first_of, warn
from kquant.core.rescale import unit_of
from kquant.core.spec import LARGEST_BIAS_CODE
from kquant.graph.graph import Graph, Node
from kquant.graph.keras_private import every_layer
from kquant.layers.learned_ranges import is_dead
from kquant.layers.nodes import Compressed, FakeQuant, encodings_of
from kquant.layers.provenance import provenance_of
from kquant.ops import find
from kquant.targets import Target
from kquant.views.loops import opened
from kquant.views.quantized_model import read
from kquant.views.widths import TYPES

ROUNDS = 8  # what is widened may be read by what was looked at before: an encoding of several tensors
MARGIN = 1.0 + 2.0**-16  # float32 roundings of a range and of its scale stay on the right side


def hold_scales(qmodel: keras.Model, verb: str = "calibrate") -> None:
    """Widen the ranges that are too narrow for what they are computed from, and say so.

    A tensor that is always 0 has a scale for no reason; where that is what makes another too narrow, it gives way.

    Args:
        qmodel: with its ranges; those are changed in place.
        verb: that the user called.
    """
    told = {name: span for name, span in widen_ranges(qmodel).items() if span > 0.0}
    if told:
        steps = {layer.name: float(layer.grid()[0]) for layer in encodings_of(qmodel) if layer.name in told}
        said = [f"{name} ({span:.3g} wide, in steps of {steps[name]:.3g})" for name, span in told.items()]
        warn(
            f"{verb}: these tensors carry hardly any signal: {first_of(said)}. They are that small beside what they "
            "are computed from, and the kernels take no finer steps there. If they should vary, bring what they are "
            "computed from to one scale, or give it 16 bits; if not, leave them out of the model."
        )


def widen_ranges(qmodel: keras.Model) -> dict[str, float]:
    """`hold_scales` without a word: the widths that the data had, by encoding, of the ranges that are wider now."""
    layers = encodings_of(qmodel)
    target = provenance_of(layers).load_target()
    types = {TYPES[16 if layer.spec.bits > 8 else 8] for layer in layers}
    limits = [limit for op in target.ops.values() for t in types if (limit := op.max_rescale_for(t)) is not None]
    if _largest_rescale(qmodel, layers) < min(limits, default=0.0):
        return {}  # as nearly always; reading the model takes time
    walk = _Walk(opened(read(qmodel), every=True), target)
    spans: dict[str, float] = {}
    for _ in range(ROUNDS):
        if not walk.widen(spans):
            break
    return spans


def _largest_rescale(qmodel: keras.Model, layers: list[FakeQuant]) -> float:
    """No operator has a larger one, whatever reads what."""
    scales = {layer: float(layer.grid()[0]) for layer in layers if not layer.follows}
    outputs = [scale for layer, scale in scales.items() if layer.has_range]
    if not outputs:
        return 0.0
    largest, weights, biases = max(scales.values()), 0.0, 0.0
    for layer in every_layer(qmodel):
        if isinstance(layer, Compressed) and layer.spec is not None:
            # one largest of each, whatever reads what: too large a bound only means that the model is walked through
            weights = max(weights, float(tf.reduce_max(tf.abs(layer.weights_as_used()))) / layer.spec.high)
            bias = layer.bias_as_used()
            # a channel's scale is widened until its bias fits (`encode_weights`): then s_in * s_w is |bias| / 2^30
            biases = max(biases, 0.0 if bias is None else float(tf.reduce_max(tf.abs(bias))) / LARGEST_BIAS_CODE)
    # the units of `core.rescale`: s of a sum, s_1 * s_2 of a product, s_in * s_w with weights
    return max(largest * max(1.0, largest, weights), biases) / min(outputs)


@dataclass(frozen=True, eq=False)
class _Walk:
    """The encodings of a quantized model in the order in which they are computed."""

    graph: Graph
    target: Target
    gave_way: set[str] = field(default_factory=set)  # tensors of zeros: each does so once

    def widen(self, spans: dict[str, float]) -> bool:
        """One pass; `spans` gets the widths that the data had. True where a range has changed."""
        makers, changed = self.graph.producers, False
        for node in self.graph.nodes:
            if not isinstance(node.op, FakeQuant) or not node.op.has_range or node.kwargs.get("peek"):
                continue
            limit = self._limit(node)
            if limit is None or self._is_clipped(makers.get(id(node.args[0]))):
                continue
            sources = [makers[id(e)].op for e in node.kwargs.get("encodings", ()) if id(e) in makers]
            unit = self._unit(node, sources, makers)
            scale = float(node.op.grid()[0])
            if unit is None or unit < limit * scale:
                continue
            # A live tensor keeps its steps where it is a dead one that makes its unit large: that one gives way,
            # once; the next pass sees whether it was enough. A dead tensor itself is simply widened.
            changed, alive = True, not _is_dead(node.op)
            dead = [s for s in sources if s.has_range and s.name not in self.gave_way and _is_dead(s)]
            giving = [s for s in dead if alive and float(s.grid()[0]) > scale]
            for source in giving:
                _set_scale(source, scale)
            self.gave_way.update(source.name for source in giving)
            if not giving:
                spans.setdefault(node.op.name, _span(node.op) if alive else 0.0)
                _set_scale(node.op, unit / limit * MARGIN)
        return changed

    def _limit(self, node: Node) -> float | None:
        known = self.target.ops.get(node.kwargs.get("kernel") or "")
        return None if known is None else known.max_rescale_for(TYPES[16 if node.op.spec.bits > 8 else 8])

    def _unit(self, node: Node, sources: list[Any], makers: dict[int, Node]) -> float | None:
        """What one unit of the kernel's integers is worth; None where no data have told yet."""
        code = node.kwargs["kernel"]
        if "accumulator" in node.kwargs:
            made = makers[id(node.kwargs["accumulator"])]
            encoding = made.kwargs.get("encoding")
            if not isinstance(made.op, Compressed) or not made.op.sums or encoding is None:
                return None
            # also for `largest_scale`: a large bias over a small input scale widens the scale of its channel
            scale = _scale_of(makers[id(encoding)], makers)
            return unit_of(code, [scale], made.op.largest_scale(scale))
        if not node.kwargs.get("encodings"):
            return None
        scales = [_scale_of(makers[id(e)], makers) for e in node.kwargs["encodings"]]
        return unit_of(code, scales)

    def _is_clipped(self, maker: Node | None) -> bool:
        """The narrow range is that of a function: what it says of large numbers would be lost."""
        rule = None if maker is None else find(maker.op)
        if maker is None or rule is None or rule.relu is None:
            return False
        return getattr(maker.op, "max_value", None) is not None


def _scale_of(node: Node, makers: dict[int, Node]) -> float:
    """Of an encoding, which may be that of what comes in."""
    while node.op.follows:
        node = makers[id(node.kwargs["encodings"][0])]
    return float(node.op.grid()[0])


def _is_dead(layer: FakeQuant) -> bool:
    low, high = (tf.convert_to_tensor(end) for end in (layer.low, layer.high))
    return bool(is_dead(tf.reduce_min(low), tf.reduce_max(high)))


def _span(layer: FakeQuant) -> float:
    return float(max(layer.high.numpy().max(), 0.0) - min(layer.low.numpy().min(), 0.0))


def _set_scale(layer: FakeQuant, scale: float) -> None:
    """The same range, wider or narrower; one of zeros goes to the right of 0."""
    low, high, steps = layer.low.numpy(), layer.high.numpy(), layer.spec.high - layer.spec.low
    if _is_dead(layer):
        low, high = np.zeros_like(low), np.full_like(high, scale * steps)
    else:
        # as wide as the grid makes it, which is symmetric or holds 0, and not as wide as the ends lie apart
        reach = 2.0 * max(-low.min(), high.max()) if layer.spec.symmetric else _span(layer)
        low, high = (end.astype(np.float64) * (scale * steps / reach) for end in (low, high))
    layer.low.assign(low.astype(np.float32))
    layer.high.assign(high.astype(np.float32))

"""What tfmot's quantizers learned -> the ranges of a quantized kquant model, tensor by tensor and kernel by kernel.

    tfmot                                            kquant
    MovingAverage / AllValues, min and max      range of the `FakeQuant` of the same tensor: the same scale and zero
                                                point, `(max - min) / 255` and `round(-128 - min / scale)`
    LastValue of a kernel, [-m, m] narrow, per  `reach` of the kernel: m, for every channel that has one scale here;
    tensor or per (last) axis                   times the gain of a batch norm that was folded into it

Where the two put their nodes at different tensors, one of the two grids has no counterpart: `Difference` names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import keras
import numpy as np

from kquant.graph.graph import Graph, Node, legal_name
from kquant.layers.kernel import Holder, holders
from kquant.layers.nodes import Compressed, FakeQuant
from kquant.migrate.tfmot_wrappers import OldRange
from kquant.ops import find
from kquant.ops.rule import MOVES
from kquant.views.loops import opened
from kquant.views.quantized_model import forget_graphs, read

FOLDED = "the layer is folded into another one, so the device has no codes there"


@dataclass(frozen=True)
class Difference:
    """A tensor or kernel that the two do not quantize alike.

    Attributes:
        tensor: name of the layer, and what of it.
        theirs: tfmot's range in words, "float" where it left the tensor in float.
        ours: kquant's.
        why: in words.
    """

    tensor: str
    theirs: str
    ours: str
    why: str


@dataclass(frozen=True)
class Ranges:
    """What became of tfmot's ranges.

    Attributes:
        tensors: how many tensors have tfmot's range.
        kernels: how many kernels.
        differences: what is not quantized alike.
        left: tensors without a range, by name.
        alike: names of the layers that quantize as tfmot's do.
    """

    tensors: int
    kernels: int
    differences: tuple[Difference, ...]
    left: tuple[str, ...]
    alike: frozenset[str]


def set_learned(qmodel: keras.Model, ranges: Iterable[OldRange], activations: Mapping[str, str]) -> Ranges:
    """Give a quantized model the ranges that tfmot learned.

    Args:
        qmodel: of the model inside tfmot's wrappers, changed in place.
        ranges: see `unwrap`.
        activations: name of a layer -> name of the function fused into it, as Keras 3 calls it.

    Returns:
        What was set, and what could not be.
    """
    setting = _Setting(qmodel, activations)
    given = list(ranges)
    for old in given:
        if old.tensor in ("output", "pre_activation"):
            setting.tensor(old)
        else:
            setting.kernel(old)
    # at the end, when it is known what the layers before them were given
    setting.carried()
    forget_graphs(qmodel)
    return setting.result()


class _Setting:
    """While ranges are set."""

    def __init__(self, qmodel: keras.Model, activations: Mapping[str, str]) -> None:
        self.graph: Graph = opened(read(qmodel))
        self.consumers, self.producers = self.graph.consumers, self.graph.producers
        self.made = {n.name: n.outputs[0] for n in self.graph.nodes if not isinstance(n.op, FakeQuant)}
        self.made |= {t.name: t for t in self.graph.input_tensors}
        self.holders = {holder.name: holder for holder in holders(qmodel)}
        self.activations = activations
        self.set: dict[str, OldRange] = {}  # name of a FakeQuant or holder -> what it was given
        self.behind: list[tuple[OldRange, str]] = []  # ranges of tensors that carry the encoding of others
        self.differences: list[Difference] = []

    def named(self, old: OldRange) -> str:
        """The tensor's name here: an activation that was inside a layer is one of its own."""
        name = legal_name(old.layer)
        own = f"{name}_{self.activations.get(old.layer, '')}"
        return own if old.is_output and own in self.made else name

    def tensor(self, old: OldRange) -> None:
        """The range of an activation."""
        name = self.named(old)
        tensor = self.made.get(name)
        if tensor is None:
            self.differ(name, old, "none", FOLDED)
            return
        nodes = [node.op for node in self.consumers.get(id(tensor), ()) if isinstance(node.op, FakeQuant)]
        if not nodes:
            self.behind.append((old, name))
        elif nodes[0].has_range:
            self.give(nodes[0], old, name)
        else:
            told = "that of its input"
            if nodes[0].fixed is not None:
                told = f"scale {nodes[0].fixed[0]:.6g}, zero point {nodes[0].fixed[1]}"
            self.differ(name, old, told, "the kernel on the device prescribes the encoding of its output")

    def give(self, node: FakeQuant, old: OldRange, name: str) -> None:
        """Set a range, at all places that share it."""
        before = self.set.get(node.name)
        low, high = float(np.min(old.low)), float(np.max(old.high))
        if before is not None and (before.low != old.low or before.high != old.high):
            low, high = min(low, float(before.low[0])), max(high, float(before.high[0]))
            self.differ(
                name, old, f"{low:.6g} .. {high:.6g}", "tensors that are joined share one encoding on the device"
            )
        for site in range(node.sites):
            node.set_range(site, low, high, exact=True)
        self.set[node.name] = OldRange(
            old.layer, old.tensor, np.array([low], np.float32), np.array([high], np.float32), old.bits
        )
        if old.bits != node.spec.bits:
            self.differ(name, old, f"{node.spec.bits} bits", f"tfmot's grid has {old.bits} bits")

    def carried(self) -> None:
        """Ranges behind layers that hand codes on: those of what comes in, where that has none of its own."""
        for old, name in self.behind:
            node = self.producers.get(id(self.made[name]))
            rule = None if node is None else find(node.op)
            if node is None or isinstance(node.op, Holder) or rule is None or rule.output not in MOVES:
                self.differ(
                    name, old, "none", "the layer behind is fused into it, so the device has no codes in between"
                )
                continue
            for source in _sources(node, self.producers):
                if source.name not in self.set and source.has_range:
                    self.give(source, old, name)
                elif source.name not in self.set or not _alike(self.set[source.name], old):
                    told = self.set.get(source.name)
                    ours = "that of its input" if told is None else _words(told)
                    self.differ(name, old, ours, "the kernel on the device hands the codes of its input on")

    def kernel(self, old: OldRange) -> None:
        """The range of a weight."""
        holder = self.holders.get(legal_name(old.layer))
        if not isinstance(holder, Compressed) or holder.spec is None:
            self.differ(f"{old.layer}/{old.tensor}", old, "-", FOLDED)
            return
        # kquant's grids of weights lie even about 0
        reach = np.maximum(np.abs(old.low), np.abs(old.high))
        gain = np.ones((1,), np.float32) if holder.gain is None else np.abs(np.asarray(holder.gain))
        shape = tuple(holder.correction("reach").shape)
        holder.set_reach(np.broadcast_to(_along(reach, holder) * gain, shape).astype(np.float32), by_data=True)
        self.set[holder.name] = old
        if old.bits != holder.spec.bits:
            self.differ(
                f"{old.layer}/{old.tensor}", old, f"{holder.spec.bits} bits", f"tfmot's grid has {old.bits} bits"
            )

    def differ(self, tensor: str, old: OldRange, ours: str, why: str) -> None:
        """Remember what has no counterpart."""
        self.differences.append(Difference(tensor, _words(old), ours, why))

    def result(self) -> Ranges:
        """What was set; kernels and tensors of which tfmot has no range are differences, too."""
        nodes = {node.op.name: node.op for node in self.graph.nodes if isinstance(node.op, FakeQuant)}
        left = [name for name, op in nodes.items() if op.has_range and name not in self.set]
        for name, op in nodes.items():
            if op.fixed is not None and not op.sites > 1:
                self.differences.append(
                    Difference(name, "float", f"scale {op.fixed[0]:.6g}", "the kernel on the device gives codes here")
                )
        kernels = [h for h in self.holders.values() if h.spec is not None]
        for holder in kernels:
            if holder.name not in self.set:
                why = "tfmot does not quantize these weights while it trains; its converter does so afterwards"
                self.differences.append(Difference(f"{holder.name}/kernel", "float", f"{holder.spec.bits} bits", why))
        follows = {name for name, op in nodes.items() if op.follows}
        return Ranges(
            sum(name in nodes for name in self.set),
            sum(name in self.holders for name in self.set),
            tuple(self.differences),
            tuple(left),
            frozenset({*self.set, *follows}),
        )


def _sources(node: Node, producers: Mapping[int, Node]) -> list[FakeQuant]:
    """The nearest quantizing nodes before a layer that hands codes on."""
    quantizers: list[FakeQuant] = []
    for tensor in node.inputs:
        before = producers.get(id(tensor))
        if before is None:
            continue
        if isinstance(before.op, FakeQuant):
            quantizers.append(before.op)
        else:
            quantizers += _sources(before, producers)
    return list({id(op): op for op in quantizers}.values())


def _along(reach: np.ndarray, holder: Compressed) -> np.ndarray:
    """One number for each index of the kernel's last axis, as tfmot has them, or one for all."""
    return reach if reach.size > 1 else reach.reshape(())


def _alike(a: OldRange, b: OldRange) -> bool:
    return bool(np.array_equal(a.low, b.low) and np.array_equal(a.high, b.high))


def _words(old: OldRange) -> str:
    return f"{float(np.min(old.low)):.6g} .. {float(np.max(old.high)):.6g}"

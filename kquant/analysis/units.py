"""The parts of a quantized model that can be quantized or not, each by itself, and what each costs.

A unit is a layer with the encoding of its output, an operation with an encoding of its own (an addition), a model
input, or an encoding that several tensors share (a concatenation).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from kquant.core.packed import bits_of
from kquant.graph.graph import Graph, Node
from kquant.graph.keras_private import every_layer
from kquant.layers.kernel import Holder, holders
from kquant.layers.loop import Loop
from kquant.layers.nodes import FakeQuant, encodings_of
from kquant.layers.provenance import NOWHERE
from kquant.ops import find
from kquant.tflite.block_weights import block_type
from kquant.views.loops import opened
from kquant.views.multiplications import macs_of_node, size_of
from kquant.views.packing import packed_types

BIAS_BYTES = 4
BLOCK_BYTES = 2  # of the scale of a block of weights


@dataclass(eq=False)
class Unit:
    """One part of the model.

    Attributes:
        name: of the user's layer, of the input, or of the layer that joins tensors in one encoding.
        kind: class of the layer.
        weighted: the layer that holds quantized weights (`layers.kernel.Holder`), or None.
        nodes: its calls.
        quants: the encodings that are its own.
        outputs: for each call, the tensor that the next layer reads.
        loop: that repeats a step, whose layers are one part of the model; None for others.
    """

    name: str
    kind: str
    weighted: Any = None
    nodes: list[Node] = field(default_factory=list)
    quants: list[FakeQuant] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    loop: Loop | None = None

    @property
    def holders(self) -> list[Any]:
        """The layers with weights."""
        own = [] if self.weighted is None else [self.weighted]
        return own if self.loop is None else [*own, *holders(self.loop.step)]

    @property
    def encodings(self) -> list[FakeQuant]:
        """The layers that quantize tensors."""
        return self.quants if self.loop is None else [*self.quants, *encodings_of(self.loop.step)]

    @property
    def weight_names(self) -> frozenset[str]:
        """For `layers.nodes.only`: the weights alone."""
        return frozenset(holder.name for holder in self.holders) | self._around

    @property
    def quant_names(self) -> frozenset[str]:
        """For `layers.nodes.only`: the tensors alone."""
        return frozenset(q.name for q in self.encodings) | self._around

    @property
    def _around(self) -> frozenset[str]:
        """The loop runs where a layer in it quantizes."""
        return frozenset() if self.loop is None else frozenset([self.loop.name])

    @property
    def names(self) -> frozenset[str]:
        """For `layers.nodes.only`."""
        return self.weight_names | self.quant_names


def units(graph: Graph) -> list[Unit]:
    """The units of a quantized model in its order.

    Args:
        graph: see `kquant.views.quantized_model.read`.
    """
    return list(_Units(graph).units.values())


def quantizes(node: Node) -> bool:
    """True where a call quantizes a tensor, and does not only tell an encoding beforehand."""
    return isinstance(node.op, FakeQuant) and not node.kwargs.get("peek", False)


class _Units:
    def __init__(self, graph: Graph) -> None:
        self.units: dict[int, Unit] = {}
        self.producers, self.told = graph.producers, opened(graph).producers
        self.names = {id(t): t.name for t in graph.input_tensors}
        self.joins = self.joined(graph)
        # known before any unit is made: the first call of a shared encoding must not give it to its layer
        roots: dict[int, set[int]] = {}  # encoding -> the layers that write into it
        quants = [node for node in graph.nodes if quantizes(node)]
        for node in quants:
            roots.setdefault(id(node.op), set()).add(self.root(node)[0])
        for node in graph.nodes:
            if _is_weighted(node.op):
                unit = self.unit(id(node.op), node.name, _kind(node.op))
                unit.weighted = node.op
                unit.nodes.append(node)
                unit.outputs.append(node.outputs[0])
            elif isinstance(node.op, Loop):
                if any(isinstance(layer, FakeQuant | Holder) for layer in every_layer(node.op.step)):
                    unit = self.unit(id(node.op), node.name, _kind(node.op))
                    unit.loop = node.op
                    unit.nodes.append(node)
                    unit.outputs.append(node.outputs[0])
            elif quantizes(node):
                self.add(node, shared=len(roots[id(node.op)]) > 1)

    def unit(self, key: int, name: str, kind: str) -> Unit:
        return self.units.setdefault(key, Unit(name, kind))

    def add(self, node: Node, shared: bool) -> None:
        """An encoding joins the layer whose output it holds, or the encoding that it follows."""
        key, root = self.root(node)
        if node.op.follows:
            # it has no range of its own that could be wide or narrow: it counts with the one that it follows
            source = self.told[id(node.kwargs["encodings"][0])].op
            next(unit for unit in self.units.values() if source in unit.encodings).quants.append(node.op)
            return
        if shared:
            # named after what makes them share: the user knows the Concatenate, and no encoding
            join = self.joins.get(id(node.op))
            name, kind = (node.name, "shared encoding") if join is None else (join.name, _kind(join.op))
            unit = self.unit(id(node.op), name, kind)
        elif root is None:
            unit = self.unit(key, self.names[key], "Input")
        elif isinstance(root.op, FakeQuant):
            unit = self.unit(id(node.op), node.name, "encoding")
        else:
            unit = self.unit(key, root.name, _kind(root.op))
            if unit.weighted is None:
                unit.nodes.append(root)
        if node.op not in unit.quants:
            unit.quants.append(node.op)
        # the layer's output is what the next one reads: behind its encoding, no longer its sums
        if unit.weighted is not None and root is not None and root.outputs[0] in unit.outputs:
            unit.outputs[unit.outputs.index(root.outputs[0])] = node.outputs[0]
        else:
            unit.outputs.append(node.outputs[0])

    def joined(self, graph: Graph) -> dict[int, Node]:
        """id(encoding) -> the call that reads several tensors in it, such as a concatenation."""
        joins: dict[int, Node] = {}
        for node in graph.nodes:
            made = [self.producers[id(t)].op for t in node.inputs if _is_data(t) and id(t) in self.producers]
            for op in made:
                if isinstance(op, FakeQuant) and made.count(op) > 1 and not isinstance(node.op, FakeQuant | Holder):
                    joins.setdefault(id(op), node)
        return joins

    def root(self, node: Node) -> tuple[int, Node | None]:
        """What made the tensor that is quantized, seen through a fused activation: (key, call)."""
        tensor = node.args[0]
        made = self.producers.get(id(tensor))
        if made is None:
            return id(tensor), None
        # of one input: an addition behind a layer with weights is an operator of its own, a ReLU is none
        before = self.producers.get(id(made.inputs[0])) if len(made.inputs) == 1 else None
        if before is not None and _is_weighted(before.op) and not isinstance(made.op, FakeQuant):
            made = before
        return id(made.op), made


def _is_weighted(op: Any) -> bool:
    return isinstance(op, Holder) and (op.spec is not None or op.storage == "float16")


def _kind(op: Any) -> str:
    return type(op.layer if isinstance(op, Holder) else op).__name__


def followed(graph: Graph) -> dict[str, FakeQuant]:
    """Name of each `FakeQuant` -> the one whose range its encoding comes from; itself, but where it follows."""
    graph = opened(graph)
    producers = graph.producers
    sources: dict[str, FakeQuant] = {}
    for node in graph.nodes:
        if isinstance(node.op, FakeQuant):
            source = producers[id(node.kwargs["encodings"][0])].op if node.op.follows else node.op
            # of one that follows another follower: calls come in order, so that one has its source already
            sources[node.op.name] = sources.get(source.name, source)
    return sources


def macs(unit: Unit) -> int:
    """Multiply-accumulates for one sample: positions of the output times the weights that each of them reads."""
    return sum(macs_of_node(node, unit.weighted) for node in unit.nodes)


def weight_bytes(unit: Unit) -> int:
    """Kernel and bias as a file stores them."""
    return sum(_weight_bytes(layer) for layer in unit.holders)


def _weight_bytes(layer: Holder) -> int:
    # two to a byte, an odd number of them rounded up for each kernel
    stored = sum(math.ceil(size_of(kernel.shape) * _stored_bits(layer) / 8) for kernel in layer.kernels())
    in_blocks = layer.spec is not None and layer.spec.in_blocks and layer.spec.block
    scales = sum(size_of(kernel.shape) // in_blocks for kernel in layer.kernels()) if in_blocks else 0
    return stored + BLOCK_BYTES * scales + BIAS_BYTES * layer.biases()


def _stored_bits(layer: Holder) -> int:
    if layer.spec is not None and layer.spec.in_blocks and layer.origin != NOWHERE:
        return bits_of(block_type(layer, layer.origin.load_target()) or "int8")
    if layer.storage in ("float16", "float32") or layer.spec is None:
        return 16 if layer.storage == "float16" else 32
    rule = find(layer.layer)
    if rule is None or layer.origin == NOWHERE:
        return 8
    target, dequantized = layer.origin.load_target(), layer.storage == "dequantized"
    able = packed_types(rule, target, layer.spec.bits, layer.input_bits, dequantized)
    return bits_of(able[0]) if able else 8


def live_bytes(unit: Unit, widths: dict[int, int]) -> int:
    """Inputs and output of the largest call together; what else is alive meanwhile, see `liveness.peak_bytes`.

    Args:
        unit: the part.
        widths: id(tensor) -> bits of a value, 32 where it is missing.
    """
    sizes = [0]
    for node, output in zip(unit.nodes, unit.outputs, strict=False):
        read = [t for t in node.inputs if _is_data(t)]
        sizes.append(sum(size_of(t.shape[1:]) * widths.get(id(t), 32) // 8 for t in (*read, output)))
    return max(sizes)


def widths(graph: Graph) -> dict[int, int]:
    """id(tensor) -> bits of its codes; what only moves codes keeps their width."""
    bits: dict[int, int] = {}
    for node in graph.nodes:
        if isinstance(node.op, FakeQuant):
            bits[id(node.outputs[0])] = node.op.spec.bits
        elif not isinstance(node.op, Holder) and node.inputs and id(node.inputs[0]) in bits:
            for tensor in node.outputs:
                bits[id(tensor)] = bits[id(node.inputs[0])]
    return bits


def _is_data(tensor: Any) -> bool:
    """Not an encoding or a scale of sums, which have no batch axis."""
    return len(tensor.shape) > 0 and tensor.shape[0] is None

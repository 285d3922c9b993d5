"""Walk a quantized model and write each call with its rule: the numbers are the layers' own, to the bit.

A tensor of the file exists where the model has a quantized tensor. `Compressed` and activations in front of a
`FakeQuant` have none: they are written when their `FakeQuant` is reached.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kquant import targets
from kquant.core.graph import Graph, Node, trace
from kquant.core.nodes import Compressed, FakeQuant
from kquant.core.program import Program, Ref
from kquant.core.spec import Encoding, QuantSpec
from kquant.lower.limits import refuse_extremes
from kquant.lower.passes import tidy
from kquant.ops import find
from kquant.ops.rule import Call, Constants, Rule
from kquant.targets import Target


def is_known(op: Any) -> bool:
    """Layers that stay whole when a quantized model is read."""
    return isinstance(op, FakeQuant | Compressed) or find(op) is not None


@dataclass(frozen=True, eq=False)
class Lowered:
    """A program and where each of its tensors comes from.

    Attributes:
        program: what is written.
        graph: the quantized model as traced.
        refs: id(tensor of `graph`) -> tensor of the program.
        target: what it was written for.
        recipe: name of the recipe it was made with.
    """

    program: Program
    graph: Graph
    refs: dict[int, Ref]
    target: Target
    recipe: str


def lower(qmodel: keras.Model) -> Lowered:
    """The model as integer operators.

    Args:
        qmodel: quantized and calibrated (or trained).

    Returns:
        The program, tidied (static shapes, batch 1, no operator that does nothing), and its origins.

    Raises:
        ValueError: not a quantized model, or a node without a range, by name.
    """
    graph = trace(qmodel, is_known)
    nodes = [n for n in graph.nodes if isinstance(n.op, FakeQuant)]
    if not nodes:
        raise ValueError(f"{qmodel.name}: not a quantized model; pass what kquant.quantize returned.")
    _refuse_unseen(nodes)
    target = targets.load(nodes[0].op.origin.get("target", "litert"))
    writer = _Writer(graph, target, Program(qmodel.name))
    for t in keras.tree.flatten(graph.inputs):
        writer.inputs[id(t)] = len(writer.inputs)
    writer.positions()
    for node in graph.nodes:
        writer.visit(node)
    program = writer.program
    for t in keras.tree.flatten(graph.inputs):
        writer.unread(t)
    program.inputs.sort(key=lambda ref: writer.order[id(ref)])
    program.outputs = [writer.refs[id(t)] for t in keras.tree.flatten(graph.outputs)]
    program = tidy(program, target)
    program.distinct_names()
    refuse_extremes(program, target)
    return Lowered(program, graph, writer.refs, target, nodes[0].op.origin.get("recipe", ""))


def _refuse_unseen(nodes: list[Node]) -> None:
    unseen = sorted({n.name for n in nodes if n.op.has_range and not np.any(np.asarray(n.op.count) > 0)})
    if unseen:
        raise ValueError(
            f"export: {len(unseen)} nodes have no range yet ({', '.join(unseen[:5])}). Run kquant.calibrate(model, "
            "data) or train the model first."
        )


@dataclass
class _Writer:
    """Tensors of the file by id of the model's tensor."""

    graph: Graph
    target: Target
    program: Program
    refs: dict[int, Ref] = field(default_factory=dict)
    inputs: dict[int, int] = field(default_factory=dict)
    order: dict[int, int] = field(default_factory=dict)
    producers: dict[int, Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.producers = self.graph.producers()
        self.quantized = {id(n.args[0]) for n in self.graph.nodes if isinstance(n.op, FakeQuant)}

    def positions(self) -> None:
        """Inputs that are read as indices are int32 inputs of the file, as they are."""
        read = {id(n.inputs[0]) for n in self.graph.nodes if (rule := self.rule(n)) is not None and rule.indices}
        for t in keras.tree.flatten(self.graph.inputs):
            if id(t) in read:
                ref = self.refs[id(t)] = self.program.value(t.name, _static(t), None, "int32")
                self.order[id(ref)] = self.inputs[id(t)]
                self.program.inputs.append(ref)

    def visit(self, node: Node) -> None:
        """Write a `FakeQuant` with all that it closes, or a layer that keeps its input's codes."""
        if isinstance(node.op, FakeQuant):
            self.refs[id(node.outputs[0])] = self.close(node)
            return
        rule = self.rule(node)
        if rule is None or rule.output not in ("same", "shared"):
            return
        inputs = [self.read(t, node) for t in node.inputs]
        output = self.program.value(node.name, _static(node.outputs[0]), inputs[0].encoding)
        self.refs[id(node.outputs[0])] = output
        self.write(rule, Call(node.op, inputs, output, node=node))

    def close(self, node: Node) -> Ref:
        """The tensor behind a `FakeQuant`, and the operators that make it."""
        made, op = node.args[0], node.op
        if id(made) in self.inputs:
            ref = self.program.value(made.name, _static(made), self.encoding(node))
            self.order[id(ref)] = self.inputs[id(made)]
            self.program.inputs.append(ref)
            return ref
        if id(made) in self.refs:  # a requantization
            source = self.refs[id(made)]
            output = self.program.value(f"{source.name}/{op.name}", source.shape, self.encoding(node))
            return self.program.emit("QUANTIZE", [source], output)
        last = self.producers[id(made)]
        output = self.program.value(last.name, _static(made), self.encoding(node))
        self.chain(last, output)
        return output

    def unread(self, t: Any) -> None:
        """An input that no output depends on stays an input of the file; its codes mean nothing."""
        if any(n == self.inputs[id(t)] for n in self.order.values()):
            return
        ref = self.program.value(t.name, _static(t), Encoding(np.float32([1.0]), np.int64([0]), QuantSpec()))
        self.order[id(ref)] = self.inputs[id(t)]
        self.program.inputs.append(ref)

    def chain(self, last: Node, output: Ref) -> None:
        """Write `last`, or the operator before it with `last` as its fused activation."""
        rule, activation, first = self.rule(last), "NONE", last
        if rule is not None and rule.relu is not None and id(last.inputs[0]) not in self.refs:
            activation = rule.relu(last.op) or "NONE"
            first = self.producers[id(last.inputs[0])]
            rule = self.rule(first)
        if rule is None:
            raise ValueError(f"{first.name} ({type(first.op).__name__}): no rule writes it.")
        inputs = [self.read(t, first) for t in self.data_inputs(first)]
        weights = self.constants(first, inputs[0]) if isinstance(first.op, Compressed) else None
        op = first.op.layer if isinstance(first.op, Compressed) else first.op
        clip = getattr(last.op, "max_value", None)
        clip = None if activation == "RELU6" else clip
        self.write(rule, Call(op, inputs, self.unclipped(output, clip), activation, weights, first))

    def unclipped(self, output: Ref, clip: float | None) -> Ref:
        """A ReLU's own maximum holds by itself where the range ends there; a wider (shared) range needs a MINIMUM."""
        encoding = output.encoding
        if clip is None or encoding is None:
            return output
        # halves away from zero, as the kernels round the bounds of their own activations
        code = int(np.floor(np.float64(np.float32(clip) / encoding.scale[0]) + 0.5) + encoding.zero_point[0])
        if code >= encoding.spec.high:
            return output
        before = self.program.value(f"{output.name}/unclipped", output.shape, encoding)
        self.pending_minimum = (before, code, output)
        return before

    pending_minimum: tuple[Ref, int, Ref] | None = None

    def write(self, rule: Rule, call: Call) -> None:
        """Let the rule write the call."""
        if rule.lower is None:
            raise ValueError(f"{call.op.name} ({type(call.op).__name__}): its rule has no lowering.")
        rule.lower(self.program, call)
        if self.pending_minimum is not None:
            before, code, output = self.pending_minimum
            self.pending_minimum = None
            limit = self.program.constant(f"{output.name}/limit", np.array([code], np.int8), output.encoding)
            self.program.emit("MINIMUM", [before, limit], output)

    def rule(self, node: Node) -> Rule | None:
        """The rule of a layer, of the wrapped one for `Compressed`."""
        return find(node.op.layer if isinstance(node.op, Compressed) else node.op, self.target)

    def data_inputs(self, node: Node) -> tuple[Any, ...]:
        """The tensors a layer computes with, encodings left out."""
        return node.inputs[:1] if isinstance(node.op, Compressed) else node.inputs

    def read(self, t: Any, node: Node) -> Ref:
        """The file's tensor for an input."""
        if id(t) not in self.refs:
            raise ValueError(
                f"{node.name}: its input is not quantized (a recipe rule with skip=true leaves layers float); a full-"
                "integer file needs every layer, so take the rule out before export."
            )
        return self.refs[id(t)]

    def encoding(self, node: Node) -> Encoding:
        """Scale and zero point of a `FakeQuant`, as its own code computes them."""
        op: FakeQuant = node.op
        if op.follows:
            source = self.refs[id(node.kwargs["sources"][0])].encoding
            if source is not None:
                return source
        scale, zero_point, _ = op.grid()
        return Encoding(
            np.asarray(scale, np.float32).reshape(1), np.asarray(zero_point).reshape(1).astype(np.int64), op.spec
        )

    def constants(self, node: Node, source: Ref) -> Constants:
        """Codes, scales and int32 bias of a `Compressed`, as its own code computes them."""
        op: Compressed = node.op
        if op.spec is None or source.encoding is None:
            raise ValueError(
                f"{node.name}: its weights are float (skip=true in the recipe); a full-integer file needs codes, so "
                "take the rule out before export."
            )
        codes, scale, bias = op.codes(tf.constant(source.encoding.scale[0]))
        scales = np.asarray(scale, np.float32).reshape(-1)
        steps = np.zeros(_channels(op, codes), np.int64) if bias is None else np.rint(np.asarray(bias)).astype(np.int64)
        return Constants(
            codes=np.asarray(codes).astype(np.int64),
            scale=scales,
            bias=steps,
            bias_scale=(scales * source.encoding.scale[0]).astype(np.float32),
            spec=op.spec,
            name=node.name,
        )


def _channels(op: Compressed, codes: Any) -> int:
    return int(np.prod([codes.shape[axis] for axis in op.channel_axes], dtype=np.int64))


def _static(t: Any) -> tuple[int, ...]:
    """Batch 1."""
    return (1, *t.shape[1:])

"""Walk a quantized model and write each call with its rule: the numbers are the layers' own, to the bit.

A tensor of the file exists where the model has a quantized tensor. `Compressed` and activations in front of a
`FakeQuant` have none: they are written when their `FakeQuant` is reached.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import keras  # pyright: ignore[reportMissingTypeStubs]
import numpy as np
import tensorflow as tf

from kquant.core.messages import first_of
from kquant.core.program import Program, Ref
from kquant.core.spec import Encoding, QuantSpec
from kquant.exact.narrow import Narrowed, drop_unread
from kquant.exact.neutral import take_neutral
from kquant.exact.simplify import simplify
from kquant.graph.graph import Graph, Node
from kquant.graph.keras_private import every_layer
from kquant.graph.precision import in_float32
from kquant.layers.kernel import Holder
from kquant.layers.loop import LoopPort, LoopResult, LoopState
from kquant.layers.nodes import Compressed, FakeQuant
from kquant.ops import find
from kquant.ops.loop_body import Body
from kquant.ops.rule import MOVES, Call, Constants, Rule
from kquant.targets import Target
from kquant.tflite.block_weights import block_constants, block_type
from kquant.tflite.limits import refuse_extremes
from kquant.tflite.loops import static, take_products_in
from kquant.tflite.passes import tidy
from kquant.tflite.subgraphs import distinct_names
from kquant.views.loops import opened
from kquant.views.packing import packed_types
from kquant.views.quantized_model import read
from kquant.views.simulated import activations_refused, weights_refused
from kquant.views.widths import index_tensors


@dataclass(frozen=True, eq=False)
class Lowered:
    """A program and where each of its tensors comes from.

    Attributes:
        program: what is written.
        graph: the quantized model as traced.
        refs: id(tensor of `graph`) -> tensor of the program.
        target: what it was written for.
        recipe: name of the recipe it was made with.
        floats: names of the layers that stay float on purpose ("*": all).
        narrowed: which channels of its tensors are not in the program, as no output depends on them.
    """

    program: Program
    graph: Graph
    refs: dict[int, Ref]
    target: Target
    recipe: str
    floats: frozenset[str] = frozenset()
    narrowed: Narrowed = Narrowed()


def lower(qmodel: keras.Model, *, shrink: bool = True, ranged: bool = True) -> Lowered:
    """The model as integer operators.

    Args:
        qmodel: quantized and calibrated (or trained).
        shrink: leave out the channels that no output code depends on, and operators that write what is there already.
        ranged: False where ranges are made up: they prove nothing of what a channel can hold.

    Returns:
        The program, tidied (static shapes, batch 1, no operator that does nothing), and its origins.

    Raises:
        ValueError: not a quantized model, or a node without a range, by name.
    """
    qmodel = in_float32(qmodel)
    whole, layers = read(qmodel), every_layer(qmodel)
    graph = opened(whole, every=True)
    nodes = [n for n in graph.nodes if isinstance(n.op, FakeQuant | Compressed)]
    # All that can be said without writing is said first, with the names of all layers at once.
    _refuse_unseen(layers)
    origin = nodes[0].op.origin
    target = origin.load_target()
    blocked = {n.name for n in nodes if {n.name, "*"} & {*origin.floats} and block_type(n.op, target)}
    _refuse_simulated([n for n in graph.nodes if isinstance(n.op, FakeQuant | Holder) and n.name not in blocked])
    if origin.skips:
        raise ValueError(
            f"export: the recipe skips {' '.join(origin.skips)}: these layers are float in the model and nowhere else. "
            "Take the rule out before export, or write float = true in place of skip = true (target 'litert')."
        )
    writer = _Writer(graph, target, Program(graph.name), frozenset(origin.floats))
    for t in graph.input_tensors:
        writer.inputs[id(t)] = len(writer.inputs)
    # Before any operator, since whoever reads indices looks for an input that is there already.
    writer.positions()
    for node in graph.nodes:
        writer.visit(node)
    program = writer.program
    for t in graph.input_tensors:
        writer.unread(t)
    # inputs entered the program as their readers were written; users give them in the order of the model
    program.inputs.sort(key=lambda ref: writer.order[id(ref)])
    program.outputs = [_output(writer, graph, t) for t in graph.output_tensors]
    # Tidying replaces tensors and fuses operators: names and limits are those of what is written.
    program = tidy(program, target)
    take_products_in(program, target)
    # first, since what made the constants goes with what nobody reads
    neutral = take_neutral(program) if shrink and ranged else 0
    narrowed = drop_unread(program, ranged) if shrink else Narrowed()
    if shrink and ((ranged and simplify(program)) or neutral or narrowed):
        tidy(program, target)
    keys = _name_by_keys(program, graph.outputs)
    distinct_names(program)
    program.output_names = keys if isinstance(graph.outputs, dict) else whole.output_names or ()
    refuse_extremes(program, target)
    return Lowered(program, whole, writer.refs, target, origin.recipe, writer.floats, narrowed)


def _output(writer: _Writer, graph: Graph, t: Any) -> Ref:
    """The file's tensor of a model output."""
    if id(t) not in writer.refs:
        raise ValueError(
            f"export: {graph.name} gives out what '{graph.producers[id(t)].name}' makes, which is no quantized "
            "tensor. Its outputs were changed after kquant.quantize: quantize a float model that has these outputs."
        )
    return writer.refs[id(t)]


def _name_by_keys(program: Program, outputs: Any) -> tuple[str, ...]:
    """The keys of a model that returns a dict: its outputs go by them where no other tensor has that name already."""
    if not isinstance(outputs, dict):
        return ()
    by_key = cast(dict[Any, Any], outputs)
    if any(isinstance(t, dict | list | tuple) for t in by_key.values()):
        return ()
    refs = {id(ref): ref for ref in program.outputs}
    for key, ref in zip(sorted(by_key), program.outputs, strict=True):  # the order of `keras.tree.flatten`
        if id(ref) in refs:  # the first of two keys for one tensor
            refs.pop(id(ref)).name = str(key)
    return tuple(str(key) for key in sorted(by_key))


def _refuse_unseen(layers: list[keras.layers.Layer]) -> None:
    """Every encoding of a model, also inside its layers, has seen a range."""
    # Keras' layers, and what they have, are untyped.
    encodings: list[Any] = [layer for layer in layers if isinstance(layer, FakeQuant)]
    unseen = sorted({str(e.name) for e in encodings if e.has_range and not np.any(e.count.numpy() > 0)})
    if unseen:
        raise ValueError(
            f"export: {len(unseen)} nodes have no range yet ({first_of(unseen)}). Run kquant.calibrate(model, "
            "data) or train the model first."
        )


def _refuse_simulated(nodes: list[Node]) -> None:
    """Kernels clip at the ends of their type and multiply codes: other grids live in the model only."""
    said: dict[str, list[str]] = {}
    for node in nodes:
        spec = node.op.spec
        held = isinstance(node.op, Holder)
        reason = "" if spec is None else weights_refused(spec) if held else activations_refused(spec)
        if reason:
            said.setdefault(reason, []).append(node.name)
    if said:
        lines = "; ".join(f"{first_of(sorted(set(names)))}: {reason}" for reason, names in said.items())
        raise ValueError(f"export: the model simulates what no kernel computes. {lines}.")


@dataclass
class _Writer:
    """Tensors of the file by id of the model's tensor; `floats` names the layers that stay float ("*": all).

    By id as well: `rules` of the calls, of the wrapped layer for `Compressed`, and how the weights of a `Compressed`
    are `stored`.
    """

    graph: Graph
    target: Target
    program: Program
    floats: frozenset[str] = frozenset()
    refs: dict[int, Ref] = field(default_factory=dict[int, Ref])
    inputs: dict[int, int] = field(default_factory=dict[int, int])
    order: dict[int, int] = field(default_factory=dict[int, int])
    producers: dict[int, Node] = field(default_factory=dict[int, Node])
    dequantized: dict[int, Ref] = field(default_factory=dict[int, Ref])
    rules: dict[int, Rule | None] = field(default_factory=dict[int, Rule | None])
    stored: dict[int, str] = field(default_factory=dict[int, str])
    ended: dict[tuple[int, bool], Ref] = field(default_factory=dict[tuple[int, bool], Ref])

    def __post_init__(self) -> None:
        self.producers = self.graph.producers
        self.encodings = {id(n.outputs[1]) for n in self.graph.nodes if isinstance(n.op, FakeQuant)}
        for node in self.graph.nodes:
            op = node.op.layer if isinstance(node.op, Compressed) else node.op
            self.rules[id(node)] = find(op, self.target)
        for node in self.graph.nodes:
            if isinstance(node.op, Compressed):
                self.stored[id(node.op)] = _stored(node.op, self.rules[id(node)], self.target)

    def positions(self) -> None:
        """Inputs that are read as indices are int32 inputs of the file, as they are."""
        read = index_tensors(self.graph, self.rules)
        for t in self.graph.input_tensors:
            if id(t) in read:
                ref = self.refs[id(t)] = self.program.value(t.name, static(t), None, "int32")
                self.order[id(ref)] = self.inputs[id(t)]
                self.program.inputs.append(ref)

    def visit(self, node: Node) -> None:
        """Write a `FakeQuant` with all that it closes, a float layer, or one that keeps its input's codes."""
        # An operator is written when its output's encoding is known, which the `FakeQuant` behind it holds: that one
        # closes it, with the activation between. What has no `FakeQuant` behind it keeps its input's codes.
        if isinstance(node.op, FakeQuant):
            # Asked for its encoding only, by a layer that computes with it (an LSTM): the tensor comes with another
            # call.
            if node.kwargs.get("peek"):
                return
            self.refs[id(node.outputs[0])] = self.close(node)
            return
        if isinstance(node.op, LoopPort):
            self.port(node)
            return
        rule = self.rules[id(node)]
        if node.name in self.floats or "*" in self.floats:
            self.refs[id(node.outputs[0])] = self.in_float(node, rule)
            return
        if rule is None or rule.output not in MOVES:
            return
        inputs = [self.read(t, node) for t in self.data_inputs(node)]
        output = self.program.value(node.name, static(node.outputs[0]), inputs[0].encoding, inputs[0].dtype)
        self.refs[id(node.outputs[0])] = output
        self.write(rule, Call(node.op, inputs, output, node=node))

    def port(self, node: Node) -> None:
        """An edge of a loop: between the first of its sequences and its first result, operators go to its body."""
        if isinstance(node.op, LoopResult):
            self.results(node)
            return
        if node.op.first:
            # what is made of the sequences beforehand stands outside
            self.body = Body(node.op.loop.name, int(node.args[0].shape[1]))
            self.outer, self.program = self.program, self.body.program
        if isinstance(node.op, LoopState):
            t = node.outputs[0]
            told = [n for n in self.graph.consumers.get(id(t), []) if n.kwargs.get("peek")]
            self.refs[id(t)] = self.body.state(node.name, static(t), self.encoding(told[0]) if told else None)
            return
        inside, self.program = self.program, self.outer
        sequence = self.as_float(node.args[0]) if node.name in self.floats else self.read(node.args[0], node)
        self.program = inside
        self.refs[id(node.outputs[0])] = self.body.step_of(sequence, self.target)

    def results(self, node: Node) -> None:
        """What a loop gives; the first of them closes it."""
        loop, result = node.op.loop, node.op.loop.results[node.op.number]
        if node.op.first:
            self.program = self.outer
            after = [self.read(t, node) for t in node.args[1]]
            every = [r.state for r in loop.results if r.every]
            last, rows = self.body.close(self.outer, after, [(after[n], f"{loop.name}/{n}") for n in every])
            self.ended = {(n, False): ref for n, ref in enumerate(last)}
            self.ended |= {(n, True): ref for n, ref in zip(every, rows, strict=True)}
        ref = self.ended[result.state, result.every]
        ref.name = loop.name if node.op.number == 0 else f"{loop.name}/{node.op.number}"
        self.refs[id(node.outputs[0])] = ref

    def in_float(self, node: Node, rule: Rule | None) -> Ref:
        """A layer that the recipe leaves float, behind a DEQUANTIZE where its input has codes."""
        if rule is None:
            raise ValueError(f"{node.name} ({type(node.op).__name__}): no rule writes it.")
        inputs = [self.as_float(t) for t in self.data_inputs(node)]
        # Positions stay int32 through what only moves or joins them.
        moved = rule.output in MOVES and {ref.dtype for ref in inputs} == {"int32"}
        output = self.program.value(node.name, static(node.outputs[0]), None, "int32" if moved else None)
        compressed = isinstance(node.op, Compressed)
        weights = self.float_constants(node) if compressed else None
        call = Call(node.op.layer if compressed else node.op, inputs, output, "NONE", weights, node)
        self.write(rule, call, rule.lower_float or rule.lower)
        return output

    def as_float(self, t: Any) -> Ref:
        """The float32 form of a tensor of the model, made once."""
        if id(t) in self.inputs and id(t) not in self.refs:
            ref = self.program.value(t.name, static(t), None)
            self.order[id(ref)] = self.inputs[id(t)]
            self.program.inputs.append(ref)
            self.refs[id(t)] = ref
        ref = self.refs[id(t)]
        if ref.encoding is None:
            return ref
        if id(ref) not in self.dequantized:
            output = self.program.value(f"{ref.name}/float", ref.shape, None)
            self.dequantized[id(ref)] = self.program.emit("DEQUANTIZE", [ref], output)
        return self.dequantized[id(ref)]

    def close(self, node: Node) -> Ref:
        """The tensor behind a `FakeQuant`, and the operators that make it."""
        made: Any = node.args[0]
        op = node.op
        if id(made) in self.inputs:
            ref = self.program.value(made.name, static(made), self.encoding(node))
            self.order[id(ref)] = self.inputs[id(made)]
            self.program.inputs.append(ref)
            return ref
        if id(made) in self.refs:  # a requantization
            source = self.refs[id(made)]
            output = self.program.value(f"{source.name}/{op.name}", source.shape, self.encoding(node))
            if source.encoding is None:  # computed in float: the codes carry its name
                output.name, source.name = source.name, f"{source.name}/float"
            return self.program.emit("QUANTIZE", [source], output)
        last = self.producers[id(made)]
        output = self.program.value(last.name, static(made), self.encoding(node))
        self.chain(last, output)
        return output

    def unread(self, t: Any) -> None:
        """An input that no output depends on stays an input of the file; its codes mean nothing."""
        if any(n == self.inputs[id(t)] for n in self.order.values()):
            return
        ref = self.program.value(t.name, static(t), Encoding(np.array([1.0], np.float32), np.array([0]), QuantSpec()))
        self.order[id(ref)] = self.inputs[id(t)]
        self.program.inputs.append(ref)

    def chain(self, last: Node, output: Ref) -> None:
        """Write `last`, or the operator before it with `last` as its fused activation."""
        # `last.inputs[0]` is no tensor of the file where no `FakeQuant` stands between: then the two are one operator.
        rule, activation, first = self.rules[id(last)], "NONE", last
        if rule is not None and rule.relu is not None and id(last.inputs[0]) not in self.refs:
            activation = rule.relu(last.op) or "NONE"
            first = self.producers[id(last.inputs[0])]
            rule = self.rules[id(first)]
        if rule is None:
            raise ValueError(f"{first.name} ({type(first.op).__name__}): no rule writes it.")
        inputs = [self.read(t, first) for t in self.data_inputs(first)]
        op, weights = first.op, None
        if isinstance(op, Compressed):
            # A table that is looked up has no grid of its own: its rule writes the numbers on that of the output.
            op, weights = op.layer, self.float_constants(first) if rule.indices else self.constants(first, inputs[0])
        clip = getattr(last.op, "max_value", None)
        # RELU6 ends at its 6 by itself.
        clip = None if activation == "RELU6" else clip
        encoding = output.encoding
        highest = self.highest_code(encoding, clip)
        if highest is None or encoding is None:
            self.write(rule, Call(op, inputs, output, activation, weights, first))
            return
        before = self.program.value(f"{output.name}/unclipped", output.shape, encoding)
        self.write(rule, Call(op, inputs, before, activation, weights, first))
        limit = self.program.codes(f"{output.name}/limit", np.array([highest]), encoding)
        self.program.emit("MINIMUM", [before, limit], output)

    def highest_code(self, encoding: Encoding | None, clip: float | None) -> int | None:
        """Where a ReLU's own maximum needs a MINIMUM; None where it holds by itself, because the range ends there."""
        if clip is None or encoding is None:
            return None
        # halves away from zero, as the kernels round the bounds of their own activations
        code = int(np.floor(np.float64(np.float32(clip) / encoding.scale[0]) + 0.5) + encoding.zero_point[0])
        return None if code >= encoding.spec.high else code

    def write(self, rule: Rule, call: Call, lower: Callable[[Program, Call], None] | None = None) -> None:
        """Let the rule write the call."""
        lower = lower or rule.lower
        if lower is None:
            raise ValueError(f"{call.op.name} ({type(call.op).__name__}): its rule has no lowering.")
        lower(self.program, call)

    def data_inputs(self, node: Node) -> tuple[Any, ...]:
        """The tensors a layer computes with, encodings left out."""
        return tuple(t for t in node.inputs if id(t) not in self.encodings)

    def read(self, t: Any, node: Node) -> Ref:
        """The file's tensor for an input."""
        if id(t) not in self.refs:
            raise ValueError(
                f"{node.name}: its input is not quantized. The model was changed after kquant.quantize; quantize the "
                "float model again."
            )
        return self.refs[id(t)]

    def encoding(self, node: Node) -> Encoding:
        """Scale and zero point of a `FakeQuant`, as its own code computes them."""
        op: FakeQuant = node.op
        # It has no range of its own: the file gives it the scale and zero point of its source, to the bit.
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
                f"{node.name}: its weights are float, or its input has no codes. The model was changed after "
                "kquant.quantize; quantize the float model again."
            )
        codes, scale, bias = op.codes(tf.constant(source.encoding.scale[0]))
        scales = np.asarray(scale, np.float32).reshape(-1)
        # Rules always write a bias; `passes` drops those of zeros where the kernels of the target do without.
        steps = np.zeros(_channels(op, codes), np.int64) if bias is None else np.rint(np.asarray(bias)).astype(np.int64)
        return Constants(
            codes=np.asarray(codes).astype(np.int64),
            scale=scales,
            bias=steps,
            bias_scale=(scales * source.encoding.scale[0]).astype(np.float32),
            spec=op.spec,
            name=node.name,
            dtype=self.stored[id(op)],
            bias_dtype="int64" if op.wide else "int32",
        )

    def float_constants(self, node: Node) -> Constants:
        """Kernel and bias of a layer with float activations, stored as the recipe says."""
        op: Compressed = node.op
        if op.spec is not None and op.spec.in_blocks:
            return block_constants(node.name, op, op.spec, self.stored[id(op)])
        bias = op.bias_as_used()
        codes, scale, _ = op.codes(tf.constant(1.0)) if op.spec is not None else (op.weights_as_used(), None, None)
        plain = op.storage == "float32" or scale is None
        used = op.weights_on_grid() if plain else codes
        kernel = op.weights_as_used().numpy() if op.spec is None else np.asarray(used)
        return Constants(
            codes=kernel,
            scale=None if plain else np.asarray(scale, np.float32).reshape(-1),
            bias=np.zeros(_channels(op, kernel), np.float32) if bias is None else np.asarray(bias, np.float32),
            bias_scale=None,
            # Without a spec nothing reads this one: there are no codes.
            spec=op.spec or QuantSpec(16, True, True),
            name=node.name,
            dtype=op.storage if op.storage.startswith("float") else self.stored[id(op)],
            bias_dtype="float32",
            # there is no kernel that multiplies float32 by int8 element by element (PReLU)
            dequantized=dequantized(op),
        )


def _stored(op: Compressed, rule: Rule | None, target: Target) -> str:
    """The narrowest packed type that holds the kernel's codes and that the target takes; int8 holds any width."""
    if op.spec is None or rule is None:
        return "int8"
    if op.spec.in_blocks:
        return block_type(op, target)
    return next(iter(packed_types(rule, target, op.spec.bits, op.input_bits, dequantized(op))), "int8")


def dequantized(op: Compressed) -> bool:
    """Whether a file makes the weights of a layer with float activations float before use."""
    return op.storage in ("dequantized", "float16") or (op.storage == "integer" and not op.sums)


def _channels(op: Compressed, codes: Any) -> int:
    return int(np.prod([codes.shape[axis] for axis in op.channel_axes], dtype=np.int64))

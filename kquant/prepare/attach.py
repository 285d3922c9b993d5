"""Plan -> Keras model: `FakeQuant` after every tensor that has a site, `Compressed` around every layer with weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from kquant.core.spec import FLOAT, QuantSpec
from kquant.graph.graph import Node, legal_name, rewrite
from kquant.layers.block_quant import BlockQuant, quantizer_of
from kquant.layers.head_quant import HeadQuant
from kquant.layers.loop import LoopPort, LoopResult, LoopStep
from kquant.layers.nodes import Compressed, FakeQuant
from kquant.layers.oscillations import warn_unfrozen
from kquant.layers.transform import Carried
from kquant.ops.real_steps import marks_padding
from kquant.ops.rule import MOVES, Rule, Weights
from kquant.prepare.attach_loops import Known, Loops
from kquant.prepare.folding import Folded
from kquant.prepare.places import Places
from kquant.recipe.training_section import Training
from kquant.views.plan import Group, Plan, Site


def attach(
    plan: Plan,
    folded: Folded,
    carried: Carried | None = None,
    takes: Mapping[str, tuple[float, float, str]] | None = None,
) -> keras.Model:
    """The quantized model: a Functional Keras model that trains, saves and loads like any other.

    Args:
        plan: without problems; its graph is of an expanded model that may be taken apart.
        folded: what folding left beside the graph: gains, kept apart from what trains, how the batch norms say their
            outputs are distributed, and those that stay one in training.
        carried: masks and codebooks of the float model, by the layer they were taken from.
        takes: input -> (lowest, highest, layer), where the first layer of the float model tells.

    Returns:
        The model, ranges unseen.
    """
    places = Places(carried or {})
    builder = _Builder(plan, folded, places, takes or {})
    qmodel = rewrite(plan.graph, builder.call, enter=builder.enter)
    places.warn_left()
    warn_unfrozen(builder.layers.values(), "quantize")
    for layer in builder.layers.values():
        if isinstance(layer, Compressed) and layer.mean is not None:
            for variable, values in zip((layer.mean, layer.deviation), folded.moments[layer.name], strict=True):
                variable.assign(values.astype(np.float32))
    return qmodel


class _Builder:
    """The new model while it grows, call by call.

    What it remembers cannot be planned: encodings are tensors of the new model, and exist once the call that makes them
    was made. By the id of a tensor: keras tensors compare elementwise.
    """

    def __init__(
        self, plan: Plan, folded: Folded, places: Places, takes: Mapping[str, tuple[float, float, str]]
    ) -> None:
        self.plan, self.folded, self.places, self.takes = plan, folded, places, takes
        self.known: dict[int, Known] = {}  # of quantized tensors
        self.converted: dict[tuple[int, int], Any] = {}  # (id(tensor), group) -> the tensor in that group's encoding
        self.pending: dict[int, dict[str, Any]] = {}  # of tensors to be quantized: FakeQuant's arguments
        self.layers: dict[int, Any] = {}  # id(layer of the plan), or group of an encoding -> the new layer
        self.names = {node.name for node in plan.graph.nodes}
        self.heads = _heads(plan)
        self.loops = Loops(self.known, self.state, self.name)
        self.looping = False

    def enter(self, old: Any, new: Any) -> Any:
        """Quantize a model input, unless it stays float or holds indices."""
        site = self.plan.sites.get(id(old))
        if site is None:
            return new
        # what the float model took here, before scalings were folded away: `predict` of a file warns by it
        known = self.takes.get(old.name)
        self.fake_quant(site).ports[old.name] = None if known is None else list(known)
        self.told(old, site)
        return self.quantize(new, site, {})

    def call(self, node: Node, args: tuple, kwargs: dict) -> Any:
        """One call of the float model, with its quantization."""
        rule = self.plan.rules[id(node)]
        if rule is None:
            raise ValueError(f"{node.name}: no rule.")  # make_plan has listed it as a problem
        if isinstance(node.op, LoopPort):
            return self.port(node, args)
        if self.plan.widths.calls[id(node)] == FLOAT:
            return self.in_float(node, rule, args, kwargs)
        args, kwargs = self.requantized(node, args, kwargs)
        inputs = [t for t in keras.tree.flatten((args, kwargs)) if isinstance(t, keras.KerasTensor)]
        known = [known.encoding if (known := self.known.get(id(t))) else None for t in inputs]
        # `x != value` compares codes in the file: the code of the value needs the grid of x, and that is known here
        if marks_padding(node.op) and node.op.value != 0.0 and known[-1] is not None:
            grid = self.known[id(inputs[-1])].spec
            kwargs = {**kwargs, "encoding": known[-1], "codes": [grid.low, grid.high]}
        y, details = self.compute(node, rule, args, kwargs, known[0])
        if rule.weights is None and all(e is not None for e in known):
            details = self.sources(rule, node, inputs, known)
        # an activation that the operator before takes over has no encoding of its own: what `FakeQuant` must know of
        # that operator waited for it
        if id(node.inputs[0]) in self.plan.fused:
            details = self.fuse(rule, node, self.pending[id(inputs[0])])
        out = node.outputs[0]
        if id(out) in self.plan.sites and (rule.output != "follows" or known[0] is not None):
            self.told(out, self.plan.sites[id(out)])
            return self.quantize(y, self.plan.sites[id(out)], details)
        if id(out) in self.plan.fused:
            self.pending[id(y)] = details
        elif known[0] is not None and rule.output in MOVES:
            # a reshape or a maximum pool moves codes about: no node, the encoding goes on as it is
            y = self.moved(node, y, self.known[id(inputs[0])])
        return y

    def moved(self, node: Node, y: Any, known: Known) -> Any:
        """What a call hands on: as it is, but for blocks, which are other ones where it changes the last axis.

        Where they are the same ones, rounding anew changes nothing: the largest of a block keeps its exponent.
        """
        if known.spec.block:
            again = BlockQuant(
                known.spec.to_config(), **self.settings(Training()), name=self.name(f"{node.name}_quant")
            )
            y, encoding = again(y)
            known = Known(encoding, known.spec)
        self.known[id(y)] = known
        return y

    def port(self, node: Node, args: tuple) -> Any:
        """An edge of a loop, whose encodings stay on their side of it."""
        self.looping = isinstance(node.op, LoopStep) or (self.looping and not isinstance(node.op, LoopResult))
        y, site = self.loops.port(node, args), self.plan.sites.get(id(node.outputs[0]))
        # a model output that was computed in float
        return y if site is None or self.looping else self.quantize(y, site, {"kernel": "QUANTIZE"})

    def state(self, t: Any) -> FakeQuant | None:
        """The holder of the encoding of a loop's state; None where it stays float."""
        site = self.plan.sites.get(id(t))
        return None if site is None else self.fake_quant(site)

    def in_float(self, node: Node, rule: Rule, args: tuple, kwargs: dict) -> Any:
        """A call that stays float; its weights may be quantized all the same."""
        skipped = self.plan.settings[id(node.op)].skip and node.op.name not in self.folded.norms
        if rule.weights is None or skipped:
            y = node.op(*args, **kwargs)
        else:
            if id(node.op) not in self.layers:
                self.layers[id(node.op)] = self.compressed(node.op, rule.weights, FLOAT)
            y = self.layers[id(node.op)](*args, **kwargs)[0]
        site = self.plan.sites.get(id(node.outputs[0]))
        return y if site is None else self.quantize(y, site, {"kernel": "QUANTIZE"})

    def compute(self, node: Node, rule: Rule, args: tuple, kwargs: dict, encoding: Any) -> tuple[Any, dict[str, Any]]:
        """The layer's own output, and what FakeQuant must know of its sums."""
        if rule.attach is not None and encoding is not None and self.plan.weights[id(node.op)] is not None:
            return self.whole(node, rule, args, encoding), {}
        table = rule.indices and self.trains(node.op)
        if rule.weights is None or (encoding is None and not table):
            return node.op(*args, **kwargs), {}
        bits = self.plan.widths.calls[id(node)]
        if id(node.op) not in self.layers:
            self.layers[id(node.op)] = self.compressed(node.op, rule.weights, bits)
        # a shared layer begins its training step at its first call; call 0 passes no argument, so that most graphs
        # have none
        number = self.plan.graph.calls[id(node.op)].index(node)
        site = {"site": number} if number else {}
        if table:
            return self.layers[id(node.op)](*args, **site, **kwargs)[0], {}
        y, accumulator, *sums = self.layers[id(node.op)](*args, encoding=encoding, **site, **kwargs)
        details = {"accumulator": accumulator, "kernel": rule.operators[0], "attributes": {}}
        return y, {**details, "sums": sums[0]} if sums else details

    def trains(self, op: Any) -> bool:
        """True for a layer whose weights train, or trained behind masks and codebooks."""
        return bool(op.trainable) or self.places.holds(op)

    def compressed(self, op: Any, weights: Weights, bits: int) -> Compressed:
        """The layer in its wrapper."""
        return _compressed(self.plan, self.folded, self.places, op, weights, bits)

    def whole(self, node: Node, rule: Rule, args: tuple, encoding: Any) -> Any:
        """The output of a layer with encodings inside, which must know its output's encoding beforehand."""
        spec, site = self.plan.weights[id(node.op)], self.plan.sites[id(node.outputs[0])]
        if rule.attach is None or spec is None:
            raise ValueError(f"{node.name}: its rule attaches nothing.")
        if id(node.op) not in self.layers:
            bits = self.plan.widths.calls[id(node)]
            layer = self.layers[id(node.op)] = rule.attach(node.op, spec, self.inside(node), bits)
            layer.learn(self.plan.settings[id(node.op)].training.for_weights())
            for kernel in layer.kernels():
                for transform in self.places.of(node.op, kernel.path):
                    kernel.transform_by(transform)
        # its gates compute with the encoding of the output before there is an output to quantize
        _, out = self.fake_quant(site)(args[0], peek=True)
        number = self.plan.graph.calls[id(node.op)].index(node)
        return self.layers[id(node.op)](args[0], encoding=encoding, out=out, **({"site": number} if number else {}))

    def inside(self, node: Node) -> Callable[[str], dict[str, Any]]:
        """Arguments of a `FakeQuant` inside a layer, by what it holds."""
        sites = len(self.plan.graph.calls[id(node.op)])
        training = self.plan.settings[id(node.op)].training
        training = moving(training)  # a power of two over 16 bits: nothing to learn
        return lambda what: {**self.settings(training), "sites": sites, "name": self.name(f"{node.name}_{what}_quant")}

    def training_of(self, group: Group) -> Training:
        """How a group's range trains."""
        return group.training or self.plan.recipe.training

    def settings(self, training: Training) -> dict[str, Any]:
        """What a `FakeQuant` of this model is made with."""
        return {
            "momentum": training.momentum,
            "freeze_after": 0 if training.ranges == "fixed" else training.freeze_ranges_after,
            "learning": training.for_tensors(),
            "origin": self.plan.provenance.to_config(),
        }

    def sources(self, rule: Rule, node: Node, inputs: list[Any], known: list[Any]) -> dict[str, Any]:
        """What FakeQuant must know of the inputs: for the kernel's own rounding, or for an encoding that follows."""
        if rule.arithmetic is not None:
            kernel, attributes = rule.arithmetic(node)
            bits = [self.known[id(t)].spec.bits for t in inputs]
            details = {"sources": inputs, "encodings": known, "kernel": kernel, "attributes": attributes}
            return {**details, "source_bits": bits}
        return {"sources": inputs, "encodings": known} if rule.output == "follows" else {}

    def fuse(self, rule: Rule, node: Node, details: dict[str, Any]) -> dict[str, Any]:
        """The arithmetic of the operator before, clamped by this activation."""
        if "attributes" not in details or rule.relu is None:
            return details
        form, maximum = rule.relu(node.op), node.op.max_value
        activation = form if form != "RELU" or maximum is None else float(maximum)
        return {**details, "attributes": {**details["attributes"], "activation": activation}}

    def requantized(self, node: Node, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Inputs that come in an encoding of their own, brought to the shared one."""
        counter = iter(range(len(node.inputs)))

        def visit(t: Any) -> Any:
            if not isinstance(t, keras.KerasTensor):
                return t
            number = next(counter)
            site = self.plan.edges.get((id(node), number))
            if site is None:
                return t
            self.told(node.inputs[number], site)
            if (id(t), site.group) not in self.converted:
                details: dict[str, Any] = {"kernel": "QUANTIZE", "attributes": {}}
                if source := self.known.get(id(t)):  # otherwise a layer that stays float made it
                    details |= {"sources": [t], "encodings": [source.encoding], "source_bits": [source.spec.bits]}
                self.converted[id(t), site.group] = self.quantize(t, site, details)
            return self.converted[id(t), site.group]

        both: Any = keras.tree.map_structure(visit, (args, kwargs))
        return both[0], both[1]

    def told(self, old: Any, site: Site) -> None:
        """Let the encoding of a tensor of the graph know what marks the padding in it."""
        if id(old) in self.plan.padding:
            self.fake_quant(site).padding[str(site.index)] = self.plan.padding[id(old)]

    def quantize(self, y: Any, site: Site, details: dict[str, Any]) -> Any:
        """FakeQuant of the site's group on `y`."""
        if site.index:
            details = {**details, "site": site.index}
        quantized, encoding = self.fake_quant(site)(y, **details)
        self.known[id(quantized)] = Known(encoding, self.layers[site.group].spec)
        return quantized

    def fake_quant(self, site: Site) -> FakeQuant:
        """The layer that holds the encoding of a site's group, made at its first use."""
        if site.group not in self.layers:
            group, joined = self.plan.groups[site.group], self.heads.get(site.group)
            given = group.spec.to_config()
            chosen = {} if joined is None else {"apart": given, "joined": joined.to_config()}
            self.layers[site.group] = (HeadQuant if chosen else quantizer_of(group.spec))(
                given,
                sites=group.sites,
                fixed=group.fixed,
                follows=group.follows,
                observer=group.observer,
                span=group.span,
                **chosen,
                **self.settings(self.training_of(group)),
                name=self.name(f"{group.name}_quant"),
                dtype="float32",
            )
        return self.layers[site.group]

    def name(self, wanted: str) -> str:
        """`wanted`, or with a number where a layer of the user has that name."""
        wanted = legal_name(wanted)
        name, n = wanted, 1
        while name in self.names:
            name = f"{wanted}_{n}"
            n += 1
        self.names.add(name)
        return name


def _heads(plan: Plan) -> dict[int, QuantSpec]:
    """Group of the joins for an output that keep apart what they join -> the grid that the recipe asks for."""
    own = {site.group for site in plan.sites.values()}  # a layer of 16 bits is among what is joined
    groups: dict[int, QuantSpec] = {}
    for node in plan.graph.nodes:
        edges = (plan.edges.get((id(node), i)) for i in range(len(node.inputs) if node.name in plan.heads else 0))
        grid = plan.settings[id(node.op)].activations
        groups |= {site.group: grid.spec(plan.heads[node.name]) for site in edges if site and site.group not in own}
    return groups


def moving(training: Training) -> Training:
    """The same training, with ranges that follow the batches where they would learn."""
    learns = training.learns_tensors or training.progressive or training.robust
    still = {"ranges": "moving", "progressive": None, "robust": None}
    return training.model_copy(update=still) if learns else training


def _compressed(plan: Plan, folded: Folded, places: Places, op: Any, weights: Weights, bits: int) -> Compressed:
    """The layer in its wrapper; the gain of a folded batch norm leaves the kernel that trains."""
    spec, gain = plan.weights[id(op)], folded.gains.get(op.name)
    if gain is not None:
        gain = np.where(gain == 0.0, 1.0, gain).astype(np.float32)  # a dead channel stays as it is
    rows = weights.block_axes if spec is not None and spec.in_blocks else None
    layer = Compressed(
        op,
        None if spec is None else spec.to_config(),
        kernel=weights.kernel,
        bias=weights.bias,
        channel_axes=rows or weights.channel_axes,
        sums=weights.sums,
        gain_shape=None if gain is None else gain.shape,
        moments=op.name in folded.moments,
        transforms=places.of(op, weights.kernel, gain),
        learning=plan.settings[id(op)].training.for_weights(),
        norm=_norm(plan, folded, op),
        observer=plan.settings[id(op)].weights.observer,
        input_bits=bits,
        storage=_storage(plan, op),
        origin=plan.provenance.to_config(),
    )
    if layer.norm is not None:
        norm = folded.norms[op.name]
        statistics = (norm.gamma, norm.beta, norm.mean, norm.variance)
        held = (layer.norm.gamma, layer.norm.beta, layer.norm.moving_mean, layer.norm.moving_variance)
        for variable, values in zip(held, statistics, strict=True):
            variable.assign(values.astype(np.float32))
    if gain is not None:
        # what trains is the kernel before the batch norm was folded in, as it would be in the float model: with
        # the gain inside, one learning rate would mean another in every channel
        variable = getattr(op, weights.kernel)
        layer.gain.assign(gain)
        variable.assign(variable.numpy() / gain)
    return layer


def _norm(plan: Plan, folded: Folded, op: Any) -> dict[str, Any] | None:
    """Arguments of the live batch norm of this layer."""
    norm = folded.norms.get(op.name)
    if norm is None:
        return None
    trains = {name: name in norm.trains for name in ("scale", "center")}
    after = plan.settings[id(op)].training.freeze_batch_norm_after
    parameters = {"channels": norm.gamma.size, "epsilon": norm.epsilon, "momentum": norm.momentum}
    return {**parameters, **trains, "freeze_after": after}


def _storage(plan: Plan, op: Any) -> str:
    """How a file keeps the weights of this layer where its activations are float."""
    dtype, mode = plan.settings[id(op)].weights.dtype, plan.recipe.mode
    if dtype == "float16" or mode == "weight-only":
        return "float16" if dtype == "float16" else "dequantized"
    return "integer" if mode == "dynamic" or not plan.settings[id(op)].stays_float else "float32"

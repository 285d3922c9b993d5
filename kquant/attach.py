"""Plan -> Keras model: `FakeQuant` after every tensor that has a site, `Compressed` around every layer with weights."""

from __future__ import annotations

from typing import Any

import keras

from kquant.core.graph import Node, rewrite
from kquant.core.nodes import Compressed, FakeQuant
from kquant.ops import find
from kquant.ops.rule import Rule
from kquant.plan import Plan, Site


def attach(plan: Plan) -> keras.Model:
    """The quantized model: a Functional Keras model that trains, saves and loads like any other.

    Args:
        plan: without problems; its graph is of an expanded model that may be taken apart.

    Returns:
        The model, ranges unseen.
    """
    builder = _Builder(plan)
    return rewrite(plan.graph, builder.call, enter=builder.enter)


class _Builder:
    """The new model while it grows: encodings and accumulator scales of its tensors, by id."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.encodings: dict[int, Any] = {}  # of quantized tensors
        self.pending: dict[int, dict[str, Any]] = {}  # of tensors to be quantized: FakeQuant's arguments
        self.layers: dict[int, Any] = {}
        self.names = {node.name for node in plan.graph.nodes}

    def enter(self, old: Any, new: Any) -> Any:
        """Quantize a model input."""
        return self.quantize(new, self.plan.sites[id(old)], {})

    def call(self, node: Node, args: tuple, kwargs: dict) -> Any:
        """One call of the float model, with its quantization."""
        rule = find(node.op, self.plan.target)
        if rule is None:
            raise ValueError(f"{node.name}: no rule.")  # make_plan has listed it as a problem
        args, kwargs = self.requantized(node, args, kwargs)
        inputs = [t for t in keras.tree.flatten((args, kwargs)) if isinstance(t, keras.KerasTensor)]
        known = [self.encodings.get(id(t)) for t in inputs]
        y, details = self.compute(node, rule, args, kwargs, known[0])
        if rule.arithmetic is not None and rule.weights is None and all(e is not None for e in known):
            kernel, attributes = rule.arithmetic(node)
            details = {"sources": inputs, "encodings": known, "kernel": kernel, "attributes": attributes}
        if id(node.inputs[0]) in self.plan.fused:
            details = self.fuse(rule, node, self.pending[id(inputs[0])])
        out = node.outputs[0]
        if id(out) in self.plan.sites:
            return self.quantize(y, self.plan.sites[id(out)], details)
        if id(out) in self.plan.fused:
            self.pending[id(y)] = details
        elif known[0] is not None and rule.output in ("same", "shared"):
            self.encodings[id(y)] = known[0]
        return y

    def compute(self, node: Node, rule: Rule, args: tuple, kwargs: dict, encoding: Any) -> tuple[Any, dict[str, Any]]:
        """The layer's own output, and what FakeQuant must know of its sums."""
        if rule.weights is None or encoding is None:
            return node.op(*args, **kwargs), {}
        if id(node.op) not in self.layers:
            spec = self.plan.weights[id(node.op)]
            self.layers[id(node.op)] = Compressed(
                node.op,
                None if spec is None else spec.to_config(),
                kernel=rule.weights.kernel,
                bias=rule.weights.bias,
                channel_axes=rule.weights.channel_axes,
                sums=rule.weights.sums,
            )
        y, accumulator = self.layers[id(node.op)](*args, encoding=encoding, **kwargs)
        return y, {"accumulator": accumulator, "kernel": rule.operators[0]}

    def fuse(self, rule: Rule, node: Node, details: dict[str, Any]) -> dict[str, Any]:
        """The arithmetic of the operator before, clamped by this activation."""
        if "sources" not in details or rule.relu is None:
            return details
        return {**details, "attributes": {**details["attributes"], "activation": rule.relu(node.op)}}

    def requantized(self, node: Node, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Inputs that come in an encoding of their own, brought to the shared one."""
        counter = iter(range(len(node.inputs)))

        def visit(t: Any) -> Any:
            if not isinstance(t, keras.KerasTensor):
                return t
            site = self.plan.edges.get((id(node), next(counter)))
            if site is None:
                return t
            details = {"sources": [t], "encodings": [self.encodings[id(t)]], "kernel": "QUANTIZE", "attributes": {}}
            return self.quantize(t, site, details)

        return keras.tree.map_structure(visit, (args, kwargs))

    def quantize(self, y: Any, site: Site, details: dict[str, Any]) -> Any:
        """FakeQuant of the site's group on `y`."""
        if site.group not in self.layers:
            group, plan = self.plan.groups[site.group], self.plan
            self.layers[site.group] = FakeQuant(
                group.spec.to_config(),
                sites=group.sites,
                fixed=group.fixed,
                follows=group.follows,
                momentum=plan.recipe.training.momentum,
                freeze_after=plan.recipe.training.freeze_ranges_after,
                observer=group.observer,
                origin={"recipe": plan.recipe.name, "target": plan.target.name},
                name=self.name(f"{group.name}_quant"),
                dtype="float32",
            )
        if site.index:
            details = {**details, "site": site.index}
        quantized, encoding = self.layers[site.group](y, **details)
        self.encodings[id(quantized)] = encoding
        return quantized

    def name(self, wanted: str) -> str:
        """`wanted`, or with a number where a layer of the user has that name."""
        name, n = wanted, 1
        while name in self.names:
            name = f"{wanted}_{n}"
            n += 1
        self.names.add(name)
        return name

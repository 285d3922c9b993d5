"""Graph + recipe + target -> what every tensor gets, before anything is built.

    fuse      a ReLU after a convolution is quantized once, at the end of the chain
    unify     concatenation, pooling, reshape, pad, transpose: one encoding on both sides
    requant   where a fixed encoding (softmax) meets a shared one, one QUANTIZE in between
    refuse    whatever the target cannot run in integers, by layer name
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import keras

from kquant.core.graph import Graph, Node
from kquant.core.recipe import Recipe
from kquant.core.spec import QuantSpec
from kquant.ops import find
from kquant.ops.rule import Rule
from kquant.targets import Target


@dataclass(frozen=True)
class Group:
    """One encoding: the layer that will hold it."""

    name: str
    spec: QuantSpec
    observer: str
    fixed: tuple[float, int] | None = None
    follows: bool = False
    sites: int = 1


@dataclass(frozen=True)
class Site:
    """One place where a tensor is quantized.

    Attributes:
        group: key of its `Group`.
        index: number among the sites of the group.
    """

    group: int
    index: int


@dataclass(frozen=True)
class Problem:
    """A layer that cannot be integer on the target, and the remedy."""

    layer: str
    kind: str
    reason: str

    def __str__(self) -> str:
        return f"{self.layer} ({self.kind}): {self.reason}"


@dataclass(frozen=True, eq=False)
class Plan:
    """What every tensor of the graph gets.

    Attributes:
        graph, recipe, target: what it was made from.
        groups: key -> encoding.
        sites: id(tensor) -> where it is quantized (inputs and node outputs).
        edges: (id(node), input number) -> requantization of that one input.
        fused: id(tensor) of the outputs that a following activation takes over.
        weights: id(layer) -> grid of its kernel; None leaves it float.
        problems: what the target cannot do.
    """

    graph: Graph
    recipe: Recipe
    target: Target
    groups: dict[int, Group]
    sites: dict[int, Site]
    edges: dict[tuple[int, int], Site]
    fused: frozenset[int]
    weights: dict[int, QuantSpec | None]
    problems: tuple[Problem, ...]


@dataclass
class _Classes:
    """Union-find over tensors that must share an encoding."""

    parent: dict[int, int] = field(default_factory=dict)
    fixed: dict[int, tuple[float, int]] = field(default_factory=dict)

    def root(self, tensor: Any) -> int:
        key = id(tensor)
        while self.parent.get(key, key) != key:
            key = self.parent[key]
        return key

    def join(self, a: Any, b: Any) -> None:
        first, second = self.root(a), self.root(b)
        if first != second:
            self.parent[second] = first
            if second in self.fixed:
                self.fixed[first] = self.fixed.pop(second)


def make_plan(graph: Graph, recipe: Recipe, target: Target) -> Plan:
    """Decide for every tensor.

    Args:
        graph: of an expanded model.
        recipe: what is wanted.
        target: what there are kernels for.

    Returns:
        The plan; `problems` is not empty where the target cannot run it in integers.

    Raises:
        ValueError: a rule of the recipe matches no layer.
    """
    rules = {id(node): find(node.op, target) for node in graph.nodes}
    positions = _positions(graph, rules)
    _check_patterns(graph, recipe, positions)
    fused = _fused(graph, rules, target)
    classes, requantized = _classes(graph, rules, fused)
    settings = {id(n.op): recipe.settings(n.name, type(n.op).__name__, positions.get(id(n.op))) for n in graph.nodes}
    groups, sites, edges = _sites(graph, rules, fused, classes, requantized, settings, recipe)
    weights = {
        id(node.op): None if settings[id(node.op)][2] else _weight_grid(settings[id(node.op)][1].spec(), rule)
        for node in graph.nodes
        if (rule := rules[id(node)]) is not None and rule.weights is not None
    }
    problems = tuple(p for node in graph.nodes if (p := problem(node, rules[id(node)], target)) is not None)
    problems += tuple(_mixed(graph, rules))
    return Plan(graph, recipe, target, groups, sites, edges, fused, weights, problems)


def problem(node: Node, rule: Rule | None, target: Target) -> Problem | None:
    """Why this call cannot be integer on the target, or None."""
    kind = type(node.op).__name__
    if rule is None:
        return Problem(node.name, kind, "kquant has no rule for it; replace it by layers that have one")
    reason = rule.refuse(node) if rule.refuse is not None else None
    if reason is not None:
        return Problem(node.name, kind, reason)
    missing = [code for code in rule.operators if not target.supports(code)]
    if missing:
        return Problem(
            node.name, kind, f"{target.title} has no int8 kernel {', '.join(missing)}; choose another layer or target"
        )
    reason = _too_large(node, rule, target)
    return None if reason is None else Problem(node.name, kind, reason)


def _too_large(node: Node, rule: Rule, target: Target) -> str | None:
    """A tensor of more dimensions than an operator takes; layers with weights are written in four."""
    rank = max(len(t.shape) for t in (*node.inputs, *node.outputs))
    limits = [(target.ops[code].max_rank, code) for code in rule.operators if rule.weights is None]
    for limit, code in limits:
        if limit is not None and rank > limit:
            return (
                f"a tensor of rank {rank}, batch included; {target.title} takes {code} up to rank {limit}. Put a "
                "Reshape before and after it"
            )
    return None


def _weight_grid(spec: QuantSpec, rule: Rule) -> QuantSpec:
    per_axis = spec.per_axis and rule.weights is not None and rule.weights.per_axis
    return QuantSpec(spec.bits, spec.symmetric, spec.narrow, per_axis)


def _positions(graph: Graph, rules: dict[int, Rule | None]) -> dict[int, str]:
    """The first and the last layer with weights."""
    weighted = [n.op for n in graph.nodes if (r := rules[id(n)]) is not None and r.weights is not None]
    return {id(weighted[0]): "first", id(weighted[-1]): "last"} if weighted else {}


def _check_patterns(graph: Graph, recipe: Recipe, positions: dict[int, str]) -> None:
    for rule in recipe.rules:
        if not any(rule.matches(n.name, type(n.op).__name__, positions.get(id(n.op))) for n in graph.nodes):
            wanted = ", ".join(f"{k}='{v}'" for k in ("layer", "type", "position") if (v := getattr(rule, k)))
            names = ", ".join(sorted({n.name for n in graph.nodes})[:20])
            raise ValueError(f"recipe '{recipe.name}': the rule {wanted} matches no layer. Layers: {names}.")


def _fused(graph: Graph, rules: dict[int, Rule | None], target: Target) -> frozenset[int]:
    """Outputs whose only reader is an activation that the operator before it takes over."""
    consumers = graph.consumers()
    outputs = {id(t) for t in keras.tree.flatten(graph.outputs)}
    found = set()
    for node in graph.nodes:
        rule, t = rules[id(node)], node.outputs[0]
        readers = consumers.get(id(t), [])
        able = rule is not None and all(code in target.ops and target.ops[code].fuses for code in rule.operators)
        if not able or not rule.fuses or id(t) in outputs or len(readers) != 1:
            continue
        after = rules[id(readers[0])]
        if after is not None and after.relu is not None and after.relu(readers[0].op) is not None:
            found.add(id(t))
    return frozenset(found)


def _classes(
    graph: Graph, rules: dict[int, Rule | None], fused: frozenset[int]
) -> tuple[_Classes, set[tuple[int, int]]]:
    """Which tensors share an encoding, and which inputs need a requantization instead."""
    classes, requantized = _Classes(), set()
    for node in graph.nodes:
        rule, out = rules[id(node)], node.outputs[0]
        if rule is None:
            continue
        if rule.output == "fixed" and rule.fixed is not None:
            classes.fixed[classes.root(out)] = rule.fixed
        elif rule.output in ("same", "follows"):
            classes.join(node.inputs[0], out)
        elif rule.output == "shared":
            encodings = {classes.fixed.get(classes.root(t)) for t in node.inputs}
            for i, t in enumerate(node.inputs):
                if len(encodings) > 1 and classes.fixed.get(classes.root(t)) is not None:
                    requantized.add((id(node), i))
                else:
                    classes.join(t, out)
    return classes, requantized


def _indices(graph: Graph, rules: dict[int, Rule | None]) -> set[int]:
    """Ids of the tensors that are read as positions."""
    return {id(n.inputs[0]) for n in graph.nodes if (rule := rules[id(n)]) is not None and rule.indices}


def _mixed(graph: Graph, rules: dict[int, Rule | None]) -> list[Problem]:
    """Positions must be inputs of the model, and nothing else."""
    indices, inputs = _indices(graph, rules), {id(t) for t in keras.tree.flatten(graph.inputs)}
    problems = []
    for node in graph.nodes:
        rule = rules[id(node)]
        if rule is None or not any(id(t) in indices for t in node.inputs):
            continue
        if not rule.indices:
            reason = "it computes with an input that another layer reads as indices; give the model two inputs"
            problems.append(Problem(node.name, type(node.op).__name__, reason))
        elif id(node.inputs[0]) not in inputs:
            reason = "its indices are computed by the model; make them an input of the model of their own"
            problems.append(Problem(node.name, type(node.op).__name__, reason))
    return problems


def _sites(
    graph: Graph,
    rules: dict[int, Rule | None],
    fused: frozenset[int],
    classes: _Classes,
    requantized: set[tuple[int, int]],
    settings: dict[int, Any],
    recipe: Recipe,
) -> tuple[dict[int, Group], dict[int, Site], dict[tuple[int, int], Site]]:
    """Give every tensor that is computed anew a place in the group of its class."""
    groups: dict[int, Group] = {}
    sites: dict[int, Site] = {}
    edges: dict[tuple[int, int], Site] = {}

    def join(key: int, name: str, activations: Any, fixed: Any = None, follows: bool = False) -> Site:
        if key not in groups:
            groups[key] = Group(name, activations.spec(), activations.observer, fixed, follows)
            return Site(key, 0)
        groups[key] = Group(**{**groups[key].__dict__, "sites": groups[key].sites + 1})
        return Site(key, groups[key].sites - 1)

    indices = _indices(graph, rules)
    for t in keras.tree.flatten(graph.inputs):
        if id(t) in indices:
            continue
        sites[id(t)] = join(classes.root(t), t.name, recipe.activations)
    for node in graph.nodes:
        rule, out = rules[id(node)], node.outputs[0]
        activations, _, skip = settings[id(node.op)]
        if rule is None or skip:
            continue
        for i in range(len(node.inputs)):
            if (id(node), i) in requantized:
                edges[id(node), i] = join(classes.root(out), f"{node.name}_in{i}", activations)
        if rule.output == "fixed":
            sites[id(out)] = join(id(out), node.name, activations, fixed=rule.fixed)
        elif rule.output == "follows":
            sites[id(out)] = join(id(out), node.name, activations, follows=True)
        elif rule.output == "own" and id(out) not in fused:
            sites[id(out)] = join(classes.root(out), node.name, activations)
    return groups, sites, edges


def describe(problems: Iterable[Problem], target: Target) -> str:
    """One message for all problems."""
    lines = "\n".join(f"  {p}" for p in problems)
    return f"These layers cannot run in integers on {target.title}:\n{lines}"

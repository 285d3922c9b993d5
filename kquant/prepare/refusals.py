"""What a float model has that no integer kernel computes: every layer of it at once, each with its remedy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras

from kquant import targets
from kquant.graph.graph import Graph, Node
from kquant.ops import find
from kquant.ops.refused import remedy
from kquant.prepare.expansion import expand_alone, expand_graph
from kquant.views.plan import Problem

REPLACE = "replace it by layers that have one, or leave it out of the exported model"


def expanded(graph: Graph, target: targets.Target) -> keras.Model:
    """`expand_graph`, or all that it refuses at once.

    Raises:
        ValueError: naming every layer without a rule, and every one that its rule refuses, with the remedy.
    """
    unknown = unknown_layers(graph)
    known = [node for node in graph.nodes if find(node.op) is not None]
    refusal = None
    if not unknown:
        try:
            return expand_graph(graph, target)
        except ValueError as error:
            refusal = error
    problems = [*unknown, *_refusals(known, target)]
    if refusal is not None and len(problems) < 2:
        raise refusal
    raise ValueError(describe(problems, target)) from refusal


def describe(problems: Iterable[Problem], target: targets.Target) -> str:
    """One message for all problems."""
    lines = "\n".join(f"  {p}" for p in problems)
    return f"These layers cannot run in integers on {target.title}:\n{lines}"


def _refusals(nodes: list[Node], target: targets.Target) -> list[Problem]:
    """The calls that `expand_graph` refuses, each tried alone."""
    problems = []
    for node in nodes:
        try:
            if all(t.shape for t in node.inputs):  # without axes: what made it is refused
                expand_alone(node, target)
        except ValueError as error:
            kind = type(node.op).__name__
            reason = str(error).removeprefix(f"{node.name} ({kind}): ").removeprefix(f"{node.name}: ").rstrip(".")
            problems.append(Problem(node.name, kind, reason))
    return problems


def unknown_layers(graph: Graph) -> list[Problem]:
    """Layers without a rule; one that was unfolded shows once, with the operations in it that have none."""
    unknown: dict[int, tuple[Any, set[str]]] = {}
    remedies: dict[str, str] = {}
    for node in graph.nodes:
        if find(node.op) is None:
            owner = None if isinstance(node.op, keras.layers.Layer) else node.owner
            kind = type(node.op).__name__
            unknown.setdefault(id(owner or node.op), (owner, set()))[1].add(kind)
            remedies[kind] = remedy(node.op) or ""
    problems = []
    for node in graph.nodes:
        owner = None if isinstance(node.op, keras.layers.Layer) else node.owner
        owner, kinds = unknown.pop(id(owner or node.op), (None, set()))
        said = "; ".join(f"{k}: {remedies[k]}" for k in sorted(kinds) if remedies[k])
        if owner is not None:
            reason = f"it unfolds into {', '.join(sorted(kinds))}, which kquant has no rule for; {said or REPLACE}"
            problems.append(Problem(owner.name, type(owner).__name__, reason))
        elif kinds:
            reason = remedy(node.op) or f"kquant has no rule for it; {REPLACE}"
            problems.append(Problem(node.name, type(node.op).__name__, reason))
    return problems

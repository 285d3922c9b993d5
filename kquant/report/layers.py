"""The list of supported layers, read off the rules: `python -m kquant.report.layers > docs/layers.md`."""

from __future__ import annotations

from functools import cache

import keras

from kquant import targets
from kquant.core.graph import Graph, Node, trace
from kquant.expand import expand_graph
from kquant.ops import FAMILIES, find, passive
from kquant.ops.refused import LAYERS, OPERATIONS, UNFOLDED
from kquant.ops.rule import Rule

HEAD = """# Supported layers

Generated from the rules in `kquant/ops` by `make docs`. Subclassed models, nested models and custom layers whose `call`
is made of these layers and operations unfold into them. Operators are the same on every target where none is named;
`kquant check MODEL.keras --target tflm` says what becomes of each layer of a model, and refuses the rest by name.
"""
MORE = """## unfolded

Layers without a rule whose `call` consists of what has one.

| layer | becomes |
| --- | --- |
"""
REFUSED = """## refused

No integer form, whatever the settings.

| layer | why, and what to do |
| --- | --- |
"""


def markdown() -> str:
    """One table for each family: Keras layers and operations, and the operators that they become."""
    parts = [HEAD]
    for family in FAMILIES:
        summary = (family.__doc__ or "").strip().splitlines()[0]
        rows: dict[str, list[Rule]] = {}
        for rule in family.RULES:
            public = [cls.__name__ for cls in rule.layers if cls.__module__.startswith("keras")]
            for name in (*public, *(f"ops.{operation}" for operation in rule.operations)):
                rows.setdefault(name, []).append(rule)
        if not rows:
            continue
        gone = "nothing in the file" if family is passive else ""
        lines = [f"| {_names(name)} | {gone or _measured(name) or _becomes(rules)} |" for name, rules in rows.items()]
        title = family.__name__.rsplit(".", 1)[-1]
        head = [f"## {title}", "", summary, "", "| layer | becomes |", "| --- | --- |"]
        parts.append("\n".join([*head, *lines, ""]))
    parts.append(MORE + "".join(f"| `{name}` | {how} |\n" for name, how in UNFOLDED.items()))
    refused = {**LAYERS, **{f"ops.{name}": why for name, why in OPERATIONS.items()}}
    parts.append(REFUSED + "".join(f"| `{name}` | {why} |\n" for name, why in refused.items()))
    return "\n".join(parts)


def _names(name: str) -> str:
    """The name, and the others under which `keras.layers` exports the same class."""
    cls = getattr(keras.layers, name, None)
    others = [n for n in dir(keras.layers) if n != name and cls is not None and getattr(keras.layers, n) is cls]
    return ", ".join(f"`{n}`" for n in (name, *others))


def _becomes(rules: list[Rule]) -> str:
    """Operators of each way to write it; simpler layers where a rule explains it by those."""
    found = [", ".join(rule.operators) for rule in rules if rule.operators]
    if any(rule.expand is not None for rule in rules):
        found.append("simpler layers")
    return "; or ".join(dict.fromkeys(found))


def _measured(name: str) -> str:
    """The operators that the examples of the rules become; longer ways (with an activation, say) left out."""
    on: dict[str, list[str]] = {}
    for target, sets in _examples().get(name, {}).items():
        for way in _shortest(sets):
            on.setdefault(way, []).append(target)
    everywhere = len(targets.names())
    return "; or ".join(way if len(who) == everywhere else f"{way} ({', '.join(who)})" for way, who in on.items())


def _shortest(ways: list[tuple[str, ...]]) -> dict[str, None]:
    kept = [way for way in ways if not any(set(other) < set(way) for other in ways)]
    return dict.fromkeys(", ".join(way) or "nothing in the file" for way in kept)


@cache
def _examples() -> dict[str, dict[str, list[tuple[str, ...]]]]:
    """Class -> target -> the operators that each example with it becomes."""
    found: dict[str, dict[str, list[tuple[str, ...]]]] = {}
    for build in (build for family in FAMILIES for rule in family.RULES for build in rule.examples):
        for node in trace(build(), lambda op: find(op) is not None).nodes:
            kind = type(node.op).__name__
            kind = kind if isinstance(node.op, keras.layers.Layer) else f"ops.{kind}"
            for target, way in _ways(node).items():
                known = found.setdefault(kind, {}).setdefault(target, [])
                known.extend([way] if way not in known else [])
    return found


def _ways(node: Node) -> dict[str, tuple[str, ...]]:
    """Target -> the operators of one call, each once; targets that lack one are left out."""
    tensors = list({id(t): t for t in node.inputs}.values())
    part = expand_graph(Graph(node.name, tensors, list(node.outputs), (node,)))
    nodes = trace(part, lambda op: find(op) is not None).nodes
    ways = {}
    for name in targets.names():
        target = targets.load(name)
        rules = [find(n.op, target) for n in nodes]
        codes = tuple(dict.fromkeys(code for rule in rules if rule is not None for code in rule.operators))
        if all(target.supports(code) for code in codes):
            ways[name] = codes
    return ways


if __name__ == "__main__":
    print(markdown(), end="")

"""The list of supported layers, read off the rules: `python -m kquant.report.layers > docs/layers.md`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import keras  # pyright: ignore[reportMissingTypeStubs]

from kquant import __all__ as public_names  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType]
from kquant import targets
from kquant.core.packed import PACKED
from kquant.graph.graph import Node, trace
from kquant.ops import FAMILIES, RULES, find, passive, rules_of
from kquant.ops.expansion import expand_alone, widened
from kquant.ops.refused import LAYERS, OPERATIONS, UNFOLDED
from kquant.ops.rule import Rule
from kquant.views.loops import opened
from kquant.views.widths import has_width

HEAD = """# Supported layers

Generated from the rules in `kquant/ops` by `make docs`. Subclassed models, nested models and custom layers whose `call`
is made of these layers and operations unfold into them. Operators are the same on every target where none is named;
`kquant check MODEL.keras --target tflm` says what becomes of each layer of a model, and refuses the rest by name. The
index names all layers, then operations; its links lead to the tables of their kinds, which stand behind it.

The column 16x8 names the targets on which all of a layer can compute with 16-bit activations (PReLU by other operators,
as `relu(x) - alpha relu(-x)`); elsewhere what lacks a kernel stays in 8 bits between two QUANTIZE. A column like int4
names the targets that take its weights packed, several to a byte; elsewhere weights of so few bits are stored in the
next wider type, int8 at last. [formats.md](formats.md) has the rest.
"""
EVERYWHERE = "every target"
INDEX = """## from A to Z

| layer | runs on | more |
| --- | --- | --- |
"""
# Type of the target files -> its title, the widest first.
COLUMNS = {"int16x8": "16x8", **{name: name for name in reversed(PACKED)}}
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
    """One table for each family: Keras layers and operations, and the operators that they become; an index in front."""
    parts: list[str] = []
    places: dict[str, dict[str, str]] = {}  # name -> title of a table -> where it runs
    for family in FAMILIES:
        summary = " ".join((family.__doc__ or "").strip().split("\n\n")[0].splitlines())
        # several rules may speak for one class: with and without an activation, or in other orders of its axes
        rows: dict[str, list[Rule]] = {}
        for rule in rules_of(family):
            public = [cls.__name__ for cls in rule.layers if cls.__module__.startswith("keras") or _is_ours(cls)]
            # ports of loops, which stand in no model, are neither written nor made of others
            operations = rule.operations if rule.lower or rule.expand else ()
            for name in (*public, *(f"ops.{operation}" for operation in operations)):
                rows.setdefault(name, []).append(rule)
        if not rows:
            continue
        gone = "nothing in the file" if family is passive else ""
        lines: list[str] = []
        for name, rules in rows.items():
            # what the examples became, since that is true; the rule's word only where no example has the layer
            becomes = gone or _measured(name) or _becomes(rules)
            where = " | ".join(_where(name, type) for type in COLUMNS)
            lines.append(f"| {_names(name)} | {becomes} | {where} |")
        title = family.__name__.rsplit(".", 1)[-1]
        for name in rows:
            places.setdefault(name, {})[title] = EVERYWHERE if gone else _runs_on(name)
        titles = " | ".join(("layer", "becomes", *COLUMNS.values()))
        head = [f"## {title}", "", summary, "", f"| {titles} |", f"|{' --- |' * (2 + len(COLUMNS))}"]
        parts.append("\n".join([*head, *lines, ""]))
    parts.append(MORE + "".join(f"| `{name}` | {how} |\n" for name, how in UNFOLDED.items()))
    refused = {**LAYERS, **{f"ops.{name}": why for name, why in OPERATIONS.items()}}
    parts.append(REFUSED + "".join(f"| `{name}` | {why} |\n" for name, why in refused.items()))
    places |= {name: {"unfolded": "where its parts do"} for name in UNFOLDED}
    places |= {name: {"refused": "nothing"} for name in refused}
    return "\n".join([HEAD, _index(places), *parts])


def _index(places: dict[str, dict[str, str]]) -> str:
    """Layers by their names, then operations, each with the targets that run it in 8 bits and links to its tables."""
    lines: list[str] = []
    for name in sorted(places, key=lambda name: (name.startswith("ops."), name.removeprefix("ops.").casefold())):
        links = ", ".join(f"[{title}](#{title})" for title in places[name])
        lines.append(f"| {_names(name)} | {', '.join(dict.fromkeys(places[name].values()))} | {links} |\n")
    return INDEX + "".join(lines)


def _runs_on(name: str) -> str:
    """Targets with a file of some example; what no example shows runs where its operators do."""
    able = list(_examples().get(name, {}))
    return ", ".join(able) if 0 < len(able) < len(_kernels()) else EVERYWHERE


def _is_ours(cls: type) -> bool:
    """True for a layer that users put into models of theirs, as one of kquant's public names."""
    return cls.__module__.startswith("kquant.") and cls.__name__ in public_names


def _names(name: str) -> str:
    """The name, and the others under which `keras.layers` exports the same class."""
    if name in public_names:
        return f"`kquant.{name}`"
    cls = getattr(keras.layers, name, None)
    others = [n for n in dir(keras.layers) if n != name and cls is not None and getattr(keras.layers, n) is cls]
    return ", ".join(f"`{n}`" for n in (name, *others))


def _becomes(rules: list[Rule]) -> str:
    """Operators of each way to write it; simpler layers where a rule explains it by those."""
    ways = [", ".join(rule.operators) for rule in rules if rule.operators]
    if any(rule.expand is not None for rule in rules):
        ways.append("simpler layers")
    return "; or ".join(dict.fromkeys(ways))


def _measured(name: str) -> str:
    """The operators that the examples of the rules become; longer ways (with an activation, say) left out."""
    on: dict[str, list[str]] = {}
    for target, ways in _examples().get(name, {}).items():
        for way in _shortest([way.codes for way in ways]):
            on.setdefault(way, []).append(target)
    everywhere = len(_kernels())
    return "; or ".join(way if len(who) == everywhere else f"{way} ({', '.join(who)})" for way, who in on.items())


def _shortest(ways: list[tuple[str, ...]]) -> dict[str, None]:
    # a longer way has all of a shorter one and something beside it: an activation, a reshape
    kept = [way for way in ways if not any(set(other) < set(way) for other in ways)]
    return dict.fromkeys(", ".join(way) or "nothing in the file" for way in kept)


def _where(name: str, type: str) -> str:
    """The targets on which some example of a layer runs wholly in a type, or has weights of it."""
    able = [target for target, ways in _examples().get(name, {}).items() if any(type in way.types for way in ways)]
    return ", ".join(able)


@dataclass(frozen=True)
class _Way:
    """What an example becomes: its operators, each once; in which of `COLUMNS` all run, or weights may be packed."""

    codes: tuple[str, ...]
    types: frozenset[str]


@cache
def _examples() -> dict[str, dict[str, list[_Way]]]:
    """Class -> target -> what each example with it becomes."""
    examples: dict[str, dict[str, list[_Way]]] = {}
    for build in (build for rule in RULES for build in rule.examples):
        # an example is of one rule, and shows every layer in it
        for node in trace(build(), lambda op: find(op) is not None).nodes:
            kind = type(node.op).__name__
            kind = kind if isinstance(node.op, keras.layers.Layer) else f"ops.{kind}"
            for target, way in _ways(node).items():
                known = examples.setdefault(kind, {}).setdefault(target, [])
                known.extend([way] if way not in known else [])
    return examples


def _kernels() -> list[targets.Target]:
    """The targets whose rows are about the kernels themselves; an accelerator beside them changes no kernel."""
    return [target for target in map(targets.load, targets.names()) if target.accelerator is None]


def _ways(node: Node) -> dict[str, _Way]:
    """Target -> what one call becomes; targets that lack an operator are left out."""
    ways: dict[str, _Way] = {}
    for target in _kernels():
        nodes = _parts(node, target)
        rules = [rule for n in nodes if (rule := find(n.op, target)) is not None]
        codes = tuple(dict.fromkeys(code for rule in rules for code in rule.operators))
        if not all(target.supports(code) for code in codes):
            continue
        # Without weights there is nothing to pack, though every operator of it might; what stands in front of bands
        # has 8 bits or more whatever the recipe says.
        packs = [rule for rule in rules if rule.weights is not None and not any(each.wide for each in rules)]
        weighted = [code for rule in packs for code in rule.operators]
        types = {name for name in PACKED if weighted and all(target.supports(code, name) for code in weighted)}
        if _computes_wide(nodes, target) or _computes_wide(_in_wider_layers(node, nodes, target), target):
            types.add("int16x8")
        ways[target.name] = _Way(codes, frozenset(types))
    return ways


def _computes_wide(nodes: tuple[Node, ...], target: targets.Target) -> bool:
    return all(has_width(target, rule, 16) for n in nodes if (rule := find(n.op, target)) is not None)


def _in_wider_layers(node: Node, parts: tuple[Node, ...], target: targets.Target) -> tuple[Node, ...]:
    """What a call comes apart into where it is to compute in 16 bits."""
    rules = (find(n.op, target) for n in parts)
    if not any(rule is not None and rule.widen is not None for rule in rules):
        return parts
    graph = expand_alone(node, target)
    return widened(graph, frozenset(n.name for n in graph.nodes), target).nodes


def _parts(node: Node, target: targets.Target) -> tuple[Node, ...]:
    """What a call comes apart into; most stay as they are, which need not be made again to be known."""
    rule = find(node.op, target)
    if rule is not None and rule.expand is None and not (node.args and passive.is_idle(node.op, node.args[0])):
        return (node,)
    return opened(expand_alone(node, target)).nodes


if __name__ == "__main__":
    print(markdown(), end="")

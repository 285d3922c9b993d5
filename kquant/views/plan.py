"""Graph + recipe + target -> what every tensor gets, before anything is built.

fuse      a ReLU after a convolution is quantized once, at the end of the chain
unify     concatenation, pooling, reshape, pad, transpose: one encoding on both sides
requant   where a fixed encoding (softmax) meets a shared one, one QUANTIZE in between
refuse    whatever the target cannot run in integers, by layer name
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kquant.core.origin import identities
from kquant.core.spec import FLOAT, INDEX, KERNEL_BITS, QuantSpec
from kquant.graph.graph import Graph, Node
from kquant.graph.stored import Stored
from kquant.layers.provenance import Provenance
from kquant.ops import find
from kquant.ops.real_steps import unread_padding
from kquant.ops.refused import Problem, describe
from kquant.ops.rule import Rule
from kquant.recipe.recipe import Recipe, Settings
from kquant.recipe.training_section import Training
from kquant.targets import Target
from kquant.views.classes import Classes
from kquant.views.fronts import Fronts, fronts
from kquant.views.half_weights import half_weights
from kquant.views.heads import widened_heads
from kquant.views.packing import Packing, divided, packing
from kquant.views.widths import TYPES, Widths, container, find_widths, index_tensors, moves_indices


@dataclass(frozen=True)
class Group:
    """One encoding: the layer that will hold it."""

    name: str
    spec: QuantSpec
    observer: str
    fixed: tuple[float, int] | None = None
    follows: bool = False
    sites: int = 1
    span: tuple[float, float] | None = None
    training: Training | None = None


@dataclass(frozen=True)
class Site:
    """One place where a tensor is quantized.

    Attributes:
        group: key of its `Group`.
        index: number among the sites of the group.
    """

    group: int
    index: int


@dataclass(frozen=True, eq=False)
class Plan:
    """What every tensor of the graph gets.

    Attributes:
        graph, recipe, target: what it was made from.
        rules: id(node) -> what says how the call is quantized and written; None where nothing does.
        groups: key -> encoding.
        sites: id(tensor) -> where it is quantized (inputs and node outputs).
        edges: (id(node), input number) -> requantization of that one input.
        fused: id(tensor) of the outputs that a following activation takes over.
        settings: id(layer) -> what the recipe says.
        weights: id(layer) -> grid of its kernel; None leaves it float.
        packings: id(layer) -> how the codes of its kernel are stored, where it has a grid.
        widths: how wide every call computes.
        heads: joins for outputs that compute in 16 bits, so that each part keeps its grid -> bits that the recipe says.
        padding: id(tensor) -> the value that marks padded steps in it, where nothing else reads those.
        provenance: what every layer of the new model remembers.
        problems: what the target cannot do.
    """

    graph: Graph
    recipe: Recipe
    target: Target
    rules: dict[int, Rule | None]
    groups: dict[int, Group]
    sites: dict[int, Site]
    edges: dict[tuple[int, int], Site]
    fused: frozenset[int]
    settings: dict[int, Settings]
    weights: dict[int, QuantSpec | None]
    packings: dict[int, Packing]
    widths: Widths
    heads: dict[str, int]
    padding: dict[int, float]
    provenance: Provenance
    problems: tuple[Problem, ...]

    @property
    def refusal(self) -> str:
        """One message for all problems."""
        return describe(self.problems, self.target)

    @property
    def widenable(self) -> frozenset[str]:
        """Names of the calls that have 8 bits instead of 16, and whose rules know the function of other layers."""
        rules = ((node.name, self.rules[id(node)]) for node in self.widths.narrowed)
        return frozenset(name for name, rule in rules if rule is not None and rule.widen is not None)


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
    settings = {id(n.op): recipe.settings(identities(n.op), positions.get(id(n.op))) for n in graph.nodes}
    heads = widened_heads(graph, rules, settings, target)
    bits = {key: settings[key].activations.bits for key in heads}
    settings |= heads
    front = fronts(graph, rules, settings)
    settings |= front.settings
    # Which activations are fused decides widths (an operator and its activation have one), and widths decide again:
    # an operator that stays float fuses nothing.
    fused = _fused(graph, rules, settings, target)
    widths = find_widths(graph, rules, settings, recipe, target, fused, front)
    fused = frozenset(t for t in fused if widths.tensors[t] != FLOAT)
    names = {id(t): node.name for node in graph.nodes for t in node.outputs}
    draft = _Draft(graph, rules, settings, recipe, target, fused, widths, names, front)
    # Tensors that must share an encoding are one class; inputs that would force too much into one are requantized.
    classes, requantized = _classes(draft)
    groups, sites, edges = _sites(draft, classes, requantized)
    weights, packings = _weights(draft)
    verdicts = (
        problem(node, rules[id(node)], target, widths.calls[id(node)])
        for node in graph.nodes
        if not settings[id(node.op)].skip or rules[id(node)] is None  # a skipped one stays float, if it has a rule
    )
    problems = tuple(p for p in verdicts if p is not None)
    problems += tuple(_mixed(graph, rules)) + tuple(half_weights(graph, rules, settings, widths, target))
    return Plan(
        graph=graph,
        recipe=recipe,
        target=target,
        rules=rules,
        groups=groups,
        sites=sites,
        edges=edges,
        fused=fused,
        settings=settings,
        weights=weights,
        packings=packings,
        widths=widths,
        heads={node.name: bits[id(node.op)] for node in graph.nodes if id(node.op) in heads},
        padding=unread_padding(graph),
        provenance=_provenance(draft),
        problems=problems,
    )


def _provenance(draft: _Draft) -> Provenance:
    """What every layer of the new model remembers."""
    calls = [(node, draft.settings[id(node.op)].skip) for node in draft.graph.nodes]
    floats = {node.name for node, skip in calls if not skip and draft.widths.calls[id(node)] == FLOAT}
    return Provenance.of(draft.recipe, draft.target, {node.name for node, skip in calls if skip}, floats)


def problem(node: Node, rule: Rule | None, target: Target, bits: int = 8) -> Problem | None:
    """Why this call cannot run on the target in its width, or None."""
    kind = type(node.op).__name__
    if rule is None:
        return Problem(node.name, kind, "kquant has no rule for it; replace it by layers that have one")
    # before the operators: the rule's own reason says what to change, a missing kernel only that there is none
    reason = rule.refuse(node) if rule.refuse is not None else None
    if reason is not None:
        return Problem(node.name, kind, reason)
    if bits == FLOAT:
        return _float_problem(node, rule, target)
    # int8 is asked for whatever the width: a call without a kernel of 16 bits was narrowed to 8 by `find_widths`
    missing = [code for code in (*rule.operators, *rule.helpers) if not target.supports(code)]
    if missing:
        return Problem(node.name, kind, f"{target.title} has no int8 kernel {', '.join(missing)}; {rule.instead}")
    reason = _too_large(node, rule, target)
    return None if reason is None else Problem(node.name, kind, reason)


def _float_problem(node: Node, rule: Rule, target: Target) -> Problem | None:
    """Why this call cannot be left in float, or None."""
    kind = type(node.op).__name__
    # first: on target 'litert' it would stay float no more than here
    missing = [code for code in (*rule.operators, *rule.helpers) if not target.supports(code)]
    if FLOAT not in rule.widths and missing:  # nor would a static recipe help here
        reason = f"it is to stay float, and kquant writes it in integers only, for which {target.title} has no kernel "
        return Problem(node.name, kind, f"{reason}{', '.join(missing)}; {rule.instead}")
    if FLOAT not in rule.widths:
        reason = "it is to stay float, and kquant writes it in integers only; take a static recipe (int8, int16x8), or "
        return Problem(node.name, kind, reason + "leave it out of the rule that says float = true")
    if not target.floats:
        return Problem(node.name, kind, f"{target.title} runs integers only; leave float layers to target 'litert'")
    return None


def _too_large(node: Node, rule: Rule, target: Target) -> str | None:
    """A tensor of more dimensions than an operator takes; convolutions are written in four, whatever they have."""
    rank = rule.rank(node) if rule.rank else max(len(t.shape) for t in (*node.inputs, *node.outputs))
    limits = [(target.ops[code].max_rank, code) for code in rule.operators if rule.weights is None or rule.rank]
    for limit, code in limits:
        if limit is not None and rank > limit:
            return f"a tensor of rank {rank}, batch included; {target.title} takes {code} up to rank {limit}. " + (
                "Move fewer axes at a time" if code == "TRANSPOSE" else "Put a Reshape before and after it"
            )
    return None


def _weights(draft: _Draft) -> tuple[dict[int, QuantSpec | None], dict[int, Packing]]:
    """Grids of the kernels, and how their codes are stored."""
    grids: dict[int, QuantSpec | None] = {}
    packings: dict[int, Packing] = {}
    for node in draft.graph.nodes:
        rule, key, bits = draft.rules[id(node)], id(node.op), draft.widths.calls[id(node)]
        if rule is None or (rule.weights is None and rule.attach is None):
            continue
        settings, unpacked_first = divided(node.op, draft.settings[key], rule), draft.recipe.mode == "weight-only"
        width = FLOAT if bits == INDEX else bits  # rows that are looked up belong to no kernel's type
        stored = packing(node.op, settings, rule, draft.target, width, unpacked_first)
        grids[key] = _weight_grid(settings, rule, stored, draft.target, bits)
        if grids[key] is not None:
            packings[key] = stored
    return grids, packings


def _weight_grid(settings: Settings, rule: Rule, stored: Packing, target: Target, bits: int) -> QuantSpec | None:
    """The kernel's grid; None where the weights stay float, or are rows on the grid of the layer's output."""
    wanted = settings.weights
    if settings.skip or wanted.dtype == "float16" or (rule.indices and bits != FLOAT):
        return None
    spec = replace(wanted.spec(), bits=stored.bits)
    # an LSTM, whose kernel takes one scale for each of its matrices
    if rule.weights is None:
        return replace(spec, per_axis=False)
    kernel = "int16x8" if bits == 16 else stored.packed or "int8"
    # in float no kernel reads the codes; else every operator that the layer is written with must take a scale a channel
    able = bits == FLOAT or all(target.per_axis_for(code, kernel) for code in rule.operators)
    return replace(spec, per_axis=wanted.per_axis and rule.weights.per_axis and able)


def _positions(graph: Graph, rules: dict[int, Rule | None]) -> dict[int, str]:
    """The first and the last layer with weights."""
    weighted = [n.op for n in graph.nodes if (r := rules[id(n)]) is not None and r.weights is not None]
    return {id(weighted[0]): "first", id(weighted[-1]): "last"} if weighted else {}


def _check_patterns(graph: Graph, recipe: Recipe, positions: dict[int, str]) -> None:
    for rule in recipe.rules:
        known = ((name, kind, positions.get(id(n.op))) for n in graph.nodes for name, kind in identities(n.op))
        if not any(rule.matches(*each) for each in known):
            wanted = ", ".join(f"{k}='{v}'" for k in ("layer", "type", "position") if (v := getattr(rule, k)))
            names = sorted({identities(n.op)[-1][0] for n in graph.nodes})
            shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
            raise ValueError(
                f"recipe '{recipe.name}': the rule {wanted} matches no layer. Layers: {shown}. (A batch norm or a "
                "constant that was folded goes by the name of the layer it was folded into.) Leave the rule out, or "
                "take a recipe without it."
            )


def _fused(
    graph: Graph, rules: dict[int, Rule | None], settings: dict[int, Settings], target: Target
) -> frozenset[int]:
    """Outputs whose only reader is an activation that the operator before it takes over."""
    consumers = graph.consumers
    outputs = {id(t) for t in graph.output_tensors}
    taken_over = set()
    for node in graph.nodes:
        rule, t = rules[id(node)], node.outputs[0]
        readers = consumers.get(id(t), [])
        # a second reader, or the model's caller, sees the numbers before the activation: those need an encoding then
        if rule is None or not rule.fuses or id(t) in outputs or len(readers) != 1:
            continue
        if not all(target.fuses(code) for code in rule.operators):
            continue
        after, reader = rules[id(readers[0])], settings[id(readers[0].op)]
        apart = reader.stays_float or reader.skip  # also where the operator is float too: it loses nothing then
        if not apart and after is not None and after.relu is not None and after.relu(readers[0].op) is not None:
            taken_over.add(id(t))
    return frozenset(taken_over)


@dataclass(frozen=True, eq=False)
class _Draft:
    """What the next two steps read."""

    graph: Graph
    rules: dict[int, Rule | None]
    settings: dict[int, Settings]
    recipe: Recipe
    target: Target
    fused: frozenset[int]
    widths: Widths
    names: dict[int, str]
    front: Fronts
    converted: dict[tuple[int, int], object] = field(default_factory=dict)

    def fixed(self, rule: Rule, bits: int) -> tuple[float, int] | None:
        """(scale, zero point) that the kernel prescribes for its output."""
        return rule.fixed if bits == 8 else self.target.ops[rule.operators[0]].fixed_for("int16x8")

    def inputs(self, node: Node) -> list[Any]:
        """The tensors that a call reads: where one comes in another width, what stands for its conversion."""
        read: list[Any] = list(node.inputs)
        for i, t, bits in self.widths.conversions(node):
            read[i] = self.converted.setdefault((id(t), bits), _Converted(str(self.names.get(id(t), t.name))))
        return read


def _states(draft: _Draft) -> dict[int, Node]:
    """id(tensor) -> the port of a loop's state that gives it."""
    ports = [node for node in draft.graph.nodes if (r := draft.rules[id(node)]) is not None and r.output == "state"]
    return {id(node.outputs[0]): node for node in ports}


Placed = tuple[dict[int, Group], dict[int, Site], dict[tuple[int, int], Site]]


class _Converted:
    """A tensor in another width than the one it was computed in."""

    def __init__(self, name: str) -> None:
        self.name = name  # of the layer that computed it


def _classes(draft: _Draft) -> tuple[Classes, set[tuple[int, int]]]:
    """Which tensors share an encoding, and which inputs need a requantization instead."""
    classes, requantized = Classes(), set()
    states = _states(draft)
    for node in draft.graph.nodes:
        rule, out = draft.rules[id(node)], node.outputs[0]
        bits = draft.widths.calls[id(node)]
        if rule is None or bits in (FLOAT, INDEX):
            continue
        inputs = draft.inputs(node)
        # An "own" encoding needs no entry: a tensor that nobody joined is a class.
        if rule.output == "fixed" and rule.fixed is not None:
            prescribed = draft.fixed(rule, bits)
            if prescribed is not None:
                classes.fixed[classes.root(out)] = prescribed
        elif rule.output == "closed":
            # an edge of a loop: what is outside must not widen the encoding inside, nor the other way round
            classes.close(out, inputs[0])
        elif rule.output in ("same", "follows"):
            # what follows gets new codes, but in the scale of its input: whatever shares with one shares with both
            classes.join(inputs[0], out)
        elif rule.output == "shared":
            # Inputs of one prescribed encoding (two softmaxes) share it. With any other among them they are
            # requantized: their kernels write the encoding that is prescribed, and no wider one.
            told = [t for t in inputs if id(t) not in states]  # a state takes the encoding of what follows it
            encodings = {classes.fixed.get(classes.root(t)) for t in told}
            for i, t in enumerate(inputs):
                if len(encodings) > 1 and classes.fixed.get(classes.root(t)) is not None:
                    requantized.add((id(node), i))
                else:
                    classes.join(t, out)
    return classes, requantized


def _mixed(graph: Graph, rules: dict[int, Rule | None]) -> list[Problem]:
    """Positions must be inputs of the model or parts of them, and nothing else."""
    indices, given = index_tensors(graph, rules), {id(t) for t in graph.input_tensors}
    reader = next((n for n in graph.nodes if (r := rules[id(n)]) is not None and r.indices), None)
    problems = []
    for node in graph.nodes:
        rule = rules[id(node)]
        read = node.inputs[:1] if rule is not None and rule.told else node.inputs
        if rule is None or not any(id(t) in indices for t in read) or isinstance(node.op, Stored):
            continue  # a constant reads nothing
        # parts of an input are positions as it is, as long as nothing that was computed is among them
        handed_on = moves_indices(rule) and id(node.outputs[0]) in indices
        if handed_on:
            given.update(id(t) for t in node.outputs if all(id(s) in given for s in node.inputs))
        elif not rule.indices and reader is not None:
            reason = (
                f"it computes with an input that another layer ({reader.name}) reads as indices; one input of the file "
                "is whole numbers or codes, not both. Give the model two inputs: an int32 one for the indices, and one "
                "for the numbers"
            )
            problems.append(Problem(node.name, type(node.op).__name__, reason))
        elif id(node.inputs[0]) not in given:
            reason = (
                "its indices are computed by the model; slices, reshapes, stacks and splits of an input are indices, "
                "sums, products, roundings and what an argmax found are not. Make them an input of the model of their "
                "own, or end the model at them"
            )
            problems.append(Problem(node.name, type(node.op).__name__, reason))
    return problems


def _sites(draft: _Draft, classes: Classes, requantized: set[tuple[int, int]]) -> Placed:
    """Give every tensor that is computed anew a place in the group of its class."""
    groups: dict[int, Group] = {}
    sites: dict[int, Site] = {}
    edges: dict[tuple[int, int], Site] = {}
    conversions: dict[int, Site] = {}

    def join(key: int, name: str, activations: Any, bits: int, observer: str | None = None, **kind: Any) -> Site:
        if key not in groups:
            # 6 bits of a recipe live in int8 codes as they are; a call that was narrowed from 16 gets all 8
            spec = activations.spec(None if container(activations.bits) == bits else bits)
            groups[key] = Group(name, spec, observer or activations.observer, **kind)
            return Site(key, 0)
        # one encoding must hold what each of its tensors can give
        spans = [span for span in (groups[key].span, kind.get("span")) if span is not None]
        span = (min(low for low, _ in spans), max(high for _, high in spans)) if spans else None
        groups[key] = replace(groups[key], sites=groups[key].sites + 1, span=span)
        return Site(key, groups[key].sites - 1)

    for t in draft.graph.input_tensors:
        bits = draft.widths.tensors[id(t)]
        if bits not in (FLOAT, INDEX):
            said = draft.front.of_input(t, draft.recipe.activations)
            sites[id(t)] = join(classes.root(t), t.name, bits=bits, **said)
    for node in draft.graph.nodes:
        rule, out = draft.rules[id(node)], node.outputs[0]
        activations, bits = draft.settings[id(node.op)].activations, draft.widths.tensors[id(out)]
        trains: dict[str, Any] = {"training": draft.settings[id(node.op)].training}
        if rule is None or bits in (FLOAT, INDEX):
            continue
        if draft.widths.calls[id(node)] == FLOAT:  # a model output that was computed in float
            sites[id(out)] = join(classes.root(out), node.name, activations, bits, **trains)
            continue
        for i, t in enumerate(draft.inputs(node)):
            if (id(node), i) in requantized:
                edges[id(node), i] = join(classes.root(out), f"{node.name}_in{i}", activations, bits, **trains)
            elif isinstance(t, _Converted):
                if id(t) not in conversions:  # one QUANTIZE serves all that read the tensor in this width
                    conversions[id(t)] = join(classes.root(t), f"{t.name}_{bits}bit", activations, bits, **trains)
                edges[id(node), i] = conversions[id(t)]
        # Keyed by the tensor, not its class: a prescribed encoding is a node of its own, even where a Concatenate has
        # joined two of them; one that follows holds no range, which is with the other tensors of its class.
        if rule.output == "fixed":
            sites[id(out)] = join(id(out), node.name, activations, bits, **trains, fixed=draft.fixed(rule, bits))
        elif rule.output == "follows":
            sites[id(out)] = join(id(out), node.name, activations, bits, **trains, follows=True)
        elif rule.output == "own" and id(out) not in draft.fused:
            span = None if rule.span is None else rule.span(node.op)
            sites[id(out)] = join(classes.root(out), node.name, activations, bits, rule.observer, **trains, span=span)
    _place_states(draft, classes, join, sites)
    return _held(draft, classes, groups), sites, edges


def _place_states(draft: _Draft, classes: Classes, join: Callable[..., Site], sites: dict[int, Site]) -> None:
    """The states of loops, which are asked for their encodings only."""
    for node in _states(draft).values():
        out, root = node.outputs[0], classes.root(node.outputs[0])
        settings, bits = draft.settings[id(node.op)], draft.widths.tensors[id(out)]
        if bits == FLOAT:
            continue
        sites[id(out)] = Site(root, 0)
        if root in classes.fixed:
            kind = {"training": settings.training, "fixed": classes.fixed[root]}
            sites[id(out)] = join(id(out), node.name, settings.activations, bits, **kind)


def _held(draft: _Draft, classes: Classes, groups: dict[int, Group]) -> dict[int, Group]:
    """The groups, whose scales stay above what the kernels that read their tensors check."""
    held = dict(groups)
    for node in draft.graph.nodes:
        rule = draft.rules[id(node)]
        if rule is None or draft.widths.calls[id(node)] not in KERNEL_BITS:
            continue
        known = [draft.target.ops[code] for code in rule.operators if code in draft.target.ops]
        # below such a limit the kernel ends the process (int8) or multiplies by 0 (int16)
        limits = [op.min_scale_for(TYPES[draft.widths.calls[id(node)]]) for op in known]
        limit = max((limit for limit in limits if limit is not None), default=None)
        if limit is None:
            continue
        beta = rule.arithmetic(node)[1].get("beta", 1.0) if rule.arithmetic is not None else 1.0  # times the scale
        # the scale must exceed the limit, so the least one that serves is the next float32
        smallest = float(np.nextafter(np.float32(limit / beta), np.float32(np.inf)))
        for key in {classes.held(t) for t in draft.inputs(node)} & set(held):
            spec = held[key].spec
            held[key] = replace(held[key], spec=replace(spec, smallest=max(spec.smallest, smallest)))
    return held

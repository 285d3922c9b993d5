"""Before anything is built or trained: what becomes of each Keras layer on a target; `placing` goes on from there."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import keras

from kquant import targets
from kquant.core.messages import first_of
from kquant.core.origin import identities
from kquant.core.packed import MOST_BITS, bits_of
from kquant.core.result import Result
from kquant.graph.given_model import float_layers
from kquant.graph.graph import Graph, Node
from kquant.ops import find
from kquant.ops.expansion import expand_alone, expanded, unknown_layers
from kquant.prepare.folding import Fate, fates
from kquant.prepare.placement import Placement
from kquant.prepare.preprocessing import advice
from kquant.prepare.quantization import check_recipe, planned
from kquant.recipe import recipe as recipes
from kquant.views.float_model import is_known, read, refuse_quantized
from kquant.views.loops import opened
from kquant.views.packing import Packing, times
from kquant.views.plan import Plan, problem
from kquant.views.simulated import simulated
from kquant.views.widths import container

Status = Literal["integer", "decomposed", "folded", "removed", "no kernel", "refused"]


@dataclass(frozen=True)
class LayerCheck:
    """One call of one layer.

    Attributes:
        layer, kind: name and class.
        status: "integer" (one operator), "decomposed" (several), "folded" (part of the weights of another layer),
            "removed" (does nothing at inference), "no kernel" (the target lacks it), "refused" (no integer form).
        operators: the TFLite operators that it becomes.
        remedy: what to do, empty where nothing is wrong.
        weights: how the recipe has its kernels stored, a form for each kind: "8 bits", "4 bits, packed" (two to a
            byte), "4 bits in 8", "4 bits in blocks of 32, packed", "float16", "float32"; empty without a
            recipe or without weights.
    """

    layer: str
    kind: str
    status: Status
    operators: tuple[str, ...]
    remedy: str
    weights: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class CheckReport(Result):
    """What `kquant.check` found.

    Attributes:
        model, target: names.
        layers: one row for each layer call in order, then the layers without a rule.
        folds: every batch norm and constant factor: the layer that takes it in, or why it stays an operator; empty
            where a layer has no integer form, as only the whole model tells.
        advice: what costs accuracy, or time, although every layer can be integer.
        recipe: its name; empty where none was given.
        boxes: of a detector, whether the file can choose its boxes itself, and which operator of it is float then.
        labels: of a network trained with CTC, which output they are read of, and how.
        placement: where the operators run, on a target with an accelerator beside its processor; None on others, and
            where a layer has no integer form.
    """

    model: str
    target: str
    layers: tuple[LayerCheck, ...]
    folds: tuple[Fate, ...] = ()
    advice: tuple[str, ...] = ()
    recipe: str = ""
    placement: Placement | None = None
    boxes: str = ""
    labels: str = ""

    def __repr__(self) -> str:
        bad = [row.layer for row in self.layers if row.status in ("no kernel", "refused")]
        said = f"{first_of(bad)} cannot be integer" if bad else "every layer can be integer"
        return f"CheckReport({self.model!r} on {self.target}: {said}, {len(self.layers)} layers)"

    @property
    def ok(self) -> bool:
        """True where every layer can be integer."""
        return all(row.status not in ("no kernel", "refused") for row in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "ok": self.ok}


def forecast(
    model: keras.Model,
    target: str = targets.DEFAULT,
    *,
    recipe: str | Path | dict[str, Any] | recipes.Recipe | None = None,
    input_shape: Any = None,
) -> CheckReport:
    """`kquant.check`, which explains the arguments, but for the `placement` of its report.

    Raises:
        ValueError: see `kquant.check`.
    """
    chosen, goal = None if recipe is None else recipes.load(recipe), targets.load(target)
    if chosen is not None:
        check_recipe(chosen, goal)
    refuse_quantized(model, float_layers(model, "quantize"))
    graph = read(model, input_shape)
    rows = [_row(node, goal) for node in graph.nodes if is_known(node.op)]
    refused = [LayerCheck(p.layer, p.kind, "refused", (), p.reason) for p in unknown_layers(graph)]
    report = CheckReport(model.name, goal.name, (*rows, *refused), advice=tuple(advice(graph)))
    if not report.ok:
        return report
    report = _with_folds(report, graph, goal)
    return report if chosen is None else _with_weights(report, graph, goal, chosen)


def _with_folds(report: CheckReport, graph: Graph, target: targets.Target) -> CheckReport:
    """The batch norms among the rows, from a copy of the model that is folded."""
    folds = fates(expanded(graph, target))
    gone = {(fate.layer, fate.kind) for fate in folds if fate.into is not None}
    rows = tuple(
        replace(row, status="folded", operators=()) if (row.layer, row.kind) in gone else row for row in report.layers
    )
    return replace(report, layers=rows, folds=folds)


def _with_weights(report: CheckReport, graph: Graph, target: targets.Target, recipe: recipes.Recipe) -> CheckReport:
    """How the recipe has the weights stored, and what of it the target cannot do."""
    plan, _ = planned(expanded(graph, target), recipe, target)
    refused = {(p.layer, p.kind): p.reason for p in plan.problems}
    forms: dict[tuple[str, str], set[str]] = {}
    slow: dict[str, Packing] = {}
    # export would refuse them: not the layers that it names only, but those that they stand for
    no_kernel, kept_out = simulated(plan), dict[tuple[str, str], str]()
    for op in {id(node.op): node.op for node in plan.graph.nodes if id(node.op) in no_kernel}.values():
        kept_out |= dict.fromkeys(identities(op), no_kernel[id(op)])
    for op in {id(node.op): node.op for node in plan.graph.nodes if id(node.op) in plan.weights}.values():
        for identity in identities(op):
            forms.setdefault(identity, set()).add(_stored(op, plan))
        packing = plan.packings.get(id(op))
        if packing is not None and packing.packed and packing.slowdown is not None and not packing.avoided:
            slow[op.name] = packing
    rows = []
    for row in report.layers:
        key = (row.layer, row.kind)
        kept = () if row.status == "folded" else tuple(sorted(forms.get(key, ())))
        rows.append(replace(row, weights=kept))
        if key in refused or (key in kept_out and row.status != "folded"):
            reason = refused.pop(key, "") or kept_out[key]
            rows[-1] = replace(row, status="refused", remedy=reason)
    rows += [LayerCheck(name, kind, "refused", (), reason) for (name, kind), reason in refused.items()]
    said = (*report.advice, _slow(slow, target)) if slow else report.advice
    return replace(report, layers=tuple(rows), advice=said, recipe=recipe.name)


def _stored(op: Any, plan: Plan) -> str:
    """How a layer's kernel is stored."""
    settings, packing = plan.settings[id(op)], plan.packings.get(id(op))
    if settings.weights.dtype == "float16":
        return "float16"
    in_blocks = packing is not None and settings.weights.block and packing.packed
    if settings.skip or (settings.stays_float and not in_blocks and (packing is None or plan.recipe.mode == "static")):
        return "float32"
    if packing is None:  # rows that are looked up are codes of the layer's output
        return f"{container(settings.activations.bits)} bits"
    if packing.bits > MOST_BITS:
        return f"{packing.bits} bits"
    held = bits_of(packing.packed or "int8")
    wide, grid = "" if held == packing.bits else f" in {held}", plan.weights[id(op)]
    blocks = f" in blocks of {grid.block}" if grid is not None and grid.in_blocks else ""
    return f"{packing.bits} bits{wide}{blocks}{', packed' if packing.packed else ''}"


def _slow(slow: dict[str, Packing], target: targets.Target) -> str:
    bits = "- and ".join(map(str, sorted({bits_of(packing.packed) for packing in slow.values()})))
    span = times(packing.slowdown for packing in slow.values())
    return (
        f"packed {bits}-bit weights of {first_of(list(slow))} cost {span} the latency of 8-bit ones on "
        f'{target.title}; `prefer = "latency"` in the recipe, or in a rule for some, keeps 8 bits there'
    )


def _row(node: Node, target: targets.Target) -> LayerCheck:
    name, kind = node.name, type(node.op).__name__
    try:
        part = expand_alone(node, target)
    except ValueError as error:
        return LayerCheck(name, kind, "refused", (), str(error))
    graph = opened(part)
    nodes = [n for n in graph.nodes if not isinstance(n.op, keras.layers.Identity)]
    rules = [find(n.op, target) for n in nodes]
    operators = tuple(code for rule in rules if rule is not None for code in rule.operators)
    for n, rule in zip(nodes, rules, strict=True):
        refusal = problem(n, rule, target)
        if refusal is not None:
            missing = rule is not None and any(not target.supports(code) for code in rule.operators)
            return LayerCheck(name, kind, "no kernel" if missing else "refused", operators, refusal.reason)
    if not operators:
        return LayerCheck(name, kind, "removed", (), "")
    return LayerCheck(name, kind, "integer" if len(operators) == 1 else "decomposed", operators, "")

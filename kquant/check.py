"""Before anything is built or trained: what becomes of each Keras layer on a target."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import keras

from kquant import targets
from kquant.core.defaults import own_defaults
from kquant.core.graph import Graph, Node, alone, trace
from kquant.expand import expand_graph
from kquant.fold import Fate, fates
from kquant.ops import find
from kquant.plan import problem
from kquant.preprocessing import advice
from kquant.quantize import check_model, expanded, is_known, read, unknown_layers

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
    """

    layer: str
    kind: str
    status: Status
    operators: tuple[str, ...]
    remedy: str


@dataclass(frozen=True)
class CheckReport:
    """What `kquant.check` found.

    Attributes:
        model, target: names.
        layers: one row for each layer call in order, then the layers without a rule.
        folds: every batch norm and constant factor: the layer that takes it in, or why it stays an operator; empty
            where a layer has no integer form, as only the whole model tells.
        advice: what costs accuracy although every layer can be integer.
    """

    model: str
    target: str
    layers: tuple[LayerCheck, ...]
    folds: tuple[Fate, ...] = ()
    advice: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True where every layer can be integer."""
        return all(row.status not in ("no kernel", "refused") for row in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "ok": self.ok}


def check(model: keras.Model, target: str = "tflm", *, input_shape: Any = None) -> CheckReport:
    """Tell for every layer whether it can be integer on the target, before training or calibration.

    Args:
        model: any built Keras 3 model; it is not changed.
        target: "litert", "tflm" or "ethos-u".
        input_shape: static shape(s) for models with open dimensions, batch axis included.

    Returns:
        The report. Batch norms and constant factors are "folded" where a neighbour takes them in, as recipes do by
        default (`fold = true`); `report.folds` says into which, or why not.

    Raises:
        ValueError: not a Keras 3 model, or one whose `call` cannot be followed.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="gelu")])
        >>> [(row.layer != "", row.status) for row in kquant.check(model).layers]
        [(True, 'decomposed')]
    """
    check_model(model)
    goal = targets.load(target)
    graph = read(model, input_shape)
    rows = [_row(node, goal) for node in graph.nodes if is_known(node.op)]
    refused = [LayerCheck(p.layer, p.kind, "refused", (), p.reason) for p in unknown_layers(graph)]
    found = CheckReport(model.name, goal.name, (*rows, *refused), advice=tuple(advice(graph)))
    return _with_folds(found, graph, goal) if found.ok else found


def _with_folds(report: CheckReport, graph: Graph, target: targets.Target) -> CheckReport:
    """The batch norms among the rows, from a copy of the model that is folded."""
    with own_defaults(graph.layers()):
        found = fates(trace(expanded(graph, target), is_known))
    gone = {(fate.layer, fate.kind) for fate in found if fate.into is not None}
    rows = tuple(
        replace(row, status="folded", operators=()) if (row.layer, row.kind) in gone else row for row in report.layers
    )
    return replace(report, layers=rows, folds=found)


def _row(node: Node, target: targets.Target) -> LayerCheck:
    name, kind = node.name, type(node.op).__name__
    try:
        part = expand_graph(alone(node))
    except ValueError as error:
        return LayerCheck(name, kind, "refused", (), str(error))
    nodes = [n for n in trace(part, is_known).nodes if not isinstance(n.op, keras.layers.Identity)]
    rules = [find(n.op, target) for n in nodes]
    operators = tuple(code for rule in rules if rule is not None for code in rule.operators)
    for n, rule in zip(nodes, rules, strict=True):
        found = problem(n, rule, target)
        if found is not None:
            missing = rule is not None and any(not target.supports(code) for code in rule.operators)
            return LayerCheck(name, kind, "no kernel" if missing else "refused", operators, found.reason)
    if not operators:
        return LayerCheck(name, kind, "removed", (), "")
    return LayerCheck(name, kind, "integer" if len(operators) == 1 else "decomposed", operators, "")

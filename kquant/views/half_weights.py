"""Weights of float16 are of layers that compute in float: no kernel multiplies codes by them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kquant.core.spec import FLOAT
from kquant.graph.graph import Graph
from kquant.ops.refused import Problem
from kquant.ops.rule import Rule
from kquant.recipe.recipe import Settings
from kquant.targets import Target
from kquant.views.widths import Widths

REASON = "weights of dtype = 'float16' are of layers that compute in float, and this one computes in integers; "
# where the layer may stay float
OR_FLOAT = ", or add float = true for the layer; recipe 'float16' is for a model that is float as a whole"


def half_weights(
    graph: Graph,
    rules: Mapping[int, Rule | None],
    settings: Mapping[int, Settings],
    widths: Widths,
    target: Target,
) -> Iterator[Problem]:
    """Layers that are to have them and compute in integers, each once.

    Args:
        graph: of an expanded model.
        rules: of its calls, by `id(node)`.
        settings: of its layers, by `id(layer)`.
        widths: of its calls.
        target: of the file.
    """
    told: set[int] = set()
    for node in graph.nodes:
        rule, wanted = rules[id(node)], settings[id(node.op)]
        if rule is None or not (rule.weights or rule.attach) or wanted.skip or wanted.weights.dtype != "float16":
            continue
        if widths.calls[id(node)] != FLOAT and id(node.op) not in told:
            told.add(id(node.op))
            able = target.floats and FLOAT in rule.widths
            yield Problem(node.name, type(node.op).__name__, f"{REASON}leave dtype out{OR_FLOAT if able else ''}")

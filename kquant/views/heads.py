"""Joins for an output of the model of what has a range of its own and what has another: boxes beside scores.

CONCATENATION takes one scale for all that it joins. Where some of it comes from a sigmoid, softmax or tanh, whose scale
the kernels prescribe, and the rest from a layer whose range the data tell, the common 8-bit grid is as coarse as the
widest needs: scores of 0 to 1 beside boxes of 0 to 400 pixels have one code, 0. In 16 bits both keep more than the
eight bits that they were computed in, and all that costs is one byte for each value of the output.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kquant.graph.graph import Graph, Node
from kquant.ops.rule import MOVES, Rule
from kquant.recipe.recipe import Settings
from kquant.targets import Target
from kquant.views.widths import TYPES, container, has_width

FIXED, OWN = "fixed", "own"
WIDE = 16


def widened_heads(
    graph: Graph, rules: Mapping[int, Rule | None], settings: Mapping[int, Settings], target: Target
) -> dict[int, Settings]:
    """id(layer) -> settings with 16 bits, of the joins that are to keep apart what they join.

    None where the target has no 16-bit kernel for one of them, or an accelerator that takes it in 8 bits only: half a
    chain of joins would only move the loss.
    """
    joins = [node for node in mixed_joins(graph, rules) if _is_asked(settings[id(node.op)])]
    able = target.supports("QUANTIZE", TYPES[WIDE]) and all(_is_able(target, rules[id(node)]) for node in joins)
    return {id(node.op): _widened(settings[id(node.op)]) for node in joins} if able else {}


def _is_able(target: Target, rule: Rule | None) -> bool:
    if rule is None or not has_width(target, rule, WIDE):
        return False
    narrow_only = (
        target.takes(code) is not False and target.takes(code, TYPES[WIDE]) is False for code in rule.operators
    )
    return not any(narrow_only)


def _is_asked(wanted: Settings) -> bool:
    narrow = not wanted.skip and not wanted.stays_float and container(wanted.activations.bits) < WIDE
    return narrow and wanted.activations.heads == "apart"


def _widened(wanted: Settings) -> Settings:
    return Settings(wanted.activations.model_copy(update={"bits": WIDE}), *wanted[1:])


def mixed_joins(graph: Graph, rules: Mapping[int, Rule | None]) -> list[Node]:
    """The joins of prescribed and own ranges that nothing computes with any more, and those behind them.

    Args:
        graph: of an expanded model.
        rules: id(node) -> rule.

    Returns:
        Calls, in order: those that mix, and the joins of their results.
    """
    ends = _moved_only(graph, rules)
    origins: dict[int, frozenset[str]] = {id(t): frozenset({OWN}) for t in graph.input_tensors}
    mixed: list[Node] = []
    tensors: set[int] = set()  # that a mixing join has written
    for node in graph.nodes:
        rule = rules[id(node)]
        moved = rule is not None and rule.output in MOVES
        kinds = frozenset[str]().union(*(origins[id(t)] for t in node.inputs)) if moved else frozenset({OWN})
        if rule is not None and rule.output == "fixed":
            kinds = frozenset({FIXED})
        origins |= {id(t): kinds for t in node.outputs}
        behind = moved and any(id(t) in tensors for t in node.inputs)
        joins = moved and len({id(t) for t in node.inputs}) > 1 and _keeps_all(node)
        if id(node.outputs[0]) in ends and (behind or (joins and len(kinds) > 1)):
            tensors.update(id(t) for t in node.outputs)
            if rule is not None and rule.output == "shared":
                mixed.append(node)
    return mixed


def _keeps_all(node: Node) -> bool:
    """A join has a place for each value that it takes; a maximum gives one of several."""
    sizes = [int(np.prod(t.shape[1:], dtype=np.int64)) for t in (*node.inputs, node.outputs[0])]
    return sum(sizes[:-1]) == sizes[-1]


def _moved_only(graph: Graph, rules: Mapping[int, Rule | None]) -> set[int]:
    """Ids of the tensors whose values reach outputs of the model as they are, and go nowhere else."""
    readers = graph.consumers
    outputs = {id(t) for t in graph.output_tensors}
    ends: set[int] = set()
    for node in reversed(graph.nodes):
        for t in node.outputs:
            reading = readers.get(id(t), [])
            moving = all((r := rules[id(n)]) is not None and r.output in MOVES for n in reading)
            if moving and (reading or id(t) in outputs) and all(id(o) in ends for n in reading for o in n.outputs):
                ends.add(id(t))
    return ends

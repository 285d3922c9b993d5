"""Joins for an output of the model of what has a range of its own and what has another: boxes beside scores.

CONCATENATION takes one scale for all that it joins, as coarse as the widest needs: scores of 0 to 1 beside boxes of 0
to 400 pixels have one code, 0. In 16 bits all keep more than the eight bits that they were computed in, and all that
costs is one byte for each value of the output. Widths are decided before data show ranges, so structure tells which
joins may need it, and `calibration.alike_heads` takes the bits back where data show ranges that are alike:

scores and others   some come from a sigmoid, softmax or tanh, whose scale the kernels prescribe, or are clipped to 0 to
                    1 (hard_sigmoid), and the rest from a layer whose range the data tell
heads side by side  columns of two or more layers with a matrix (boxes, landmarks, logits), one beside the other, no
                    activation behind: each layer means another thing by its numbers
decoded boxes       columns behind a function (an exponential, the ReLU of distances) beside such ones, and a layer's
                    columns, scaled or behind a function, beside others of it as they are

Rows of one kind below each other (levels of a pyramid), feature maps (all behind activations, or read by others too)
and what kquant itself takes apart and joins again stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kquant.core.float_formats import FLOAT_FORMATS
from kquant.core.origin import origins
from kquant.graph.graph import Graph, Node
from kquant.graph.stored import Stored
from kquant.ops.rule import MOVES, Rule
from kquant.recipe.recipe import Settings
from kquant.targets import Target
from kquant.views.widths import TYPES, container, has_width

FIXED, OWN = "fixed", "own"
RAW, SCALED, CURVED = "raw", "scaled", "curved"
WIDE = 16
ALIKE = 2.0  # times the steps of each part at most has a grid that all may share: one bit is lost


@dataclass(frozen=True)
class Columns:
    """What a tensor holds that matrices have given, moved at most.

    Attributes:
        made_by: the user's layers, each by its path of (name, class); none have made a constant.
        axis: of the tensor, that numbers their columns.
        kinds: what became of them: nothing (`RAW`), a sum or product (`SCALED`), a function (`CURVED`); several in
            what was joined.
    """

    made_by: frozenset[tuple[tuple[str, str], ...]]
    axis: int
    kinds: frozenset[str] = frozenset()


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
    return rule is not None and has_width(target, rule, WIDE) and takes_wide(target, rule.operators)


def takes_wide(target: Target, codes: Iterable[str]) -> bool:
    """True where the target has operators in 16 bits, and no accelerator of it that takes one in 8 bits only."""
    return all(
        target.supports(code, TYPES[WIDE])
        and (target.takes(code) is False or target.takes(code, TYPES[WIDE]) is not False)
        for code in codes
    )


def _is_asked(wanted: Settings) -> bool:
    narrow = not wanted.skip and not wanted.stays_float and container(wanted.activations.bits) < WIDE
    # floats have the width of their format, and are simulated only
    return narrow and wanted.activations.heads == "apart" and wanted.activations.kind not in FLOAT_FORMATS


def _widened(wanted: Settings) -> Settings:
    return Settings(wanted.activations.model_copy(update={"bits": WIDE}), *wanted[1:])


def mixed_joins(graph: Graph, rules: Mapping[int, Rule | None]) -> list[Node]:
    """The joins of unlike parts that nothing computes with any more, and those behind them.

    Args:
        graph: of an expanded model.
        rules: id(node) -> rule.

    Returns:
        Calls, in order: those that mix, and the joins of their results.
    """
    ends = _moved_only(graph, rules)
    ranges: dict[int, frozenset[str]] = {id(t): frozenset({OWN}) for t in graph.input_tensors}
    columns: dict[int, Columns] = {}
    mixed: list[Node] = []
    tensors: set[int] = set()  # that a mixing join has written
    for node in graph.nodes:
        rule = rules[id(node)]
        moved = rule is not None and rule.output in MOVES
        kinds = frozenset[str]().union(*(ranges[id(t)] for t in node.inputs)) if moved else frozenset({OWN})
        if rule is not None and (rule.output == "fixed" or _is_clipped(node, rule)):
            kinds = frozenset({FIXED})
        ranges |= {id(t): kinds for t in node.outputs}
        if (made := _columns(node, rule, columns)) is not None:
            columns |= {id(t): made for t in node.outputs}
        behind = moved and any(id(t) in tensors for t in node.inputs)
        joins = moved and len({id(t) for t in node.inputs}) > 1 and keeps_all(node)
        joins = joins and (len(kinds) > 1 or _beside(node, columns, ends))
        if id(node.outputs[0]) in ends and (behind or joins):
            tensors.update(id(t) for t in node.outputs)
            if rule is not None and rule.output == "shared":
                mixed.append(node)
    return mixed


def _is_clipped(node: Node, rule: Rule) -> bool:
    """True for what ends at 1 as a sigmoid does: hard_sigmoid is a ReLU with that bound."""
    return rule.relu is not None and rule.arithmetic is not None and rule.arithmetic(node)[1].get("maximum") == 1.0


def _columns(node: Node, rule: Rule | None, known: Mapping[int, Columns]) -> Columns | None:
    """What a call gives, where that is the columns of matrices, what was computed of them, or a constant; else None."""
    last = len(node.outputs[0].shape) - 1
    if isinstance(node.op, Stored):
        return Columns(frozenset(), last)
    parts = [part for t in node.inputs if (part := known.get(id(t))) is not None]
    made_by = frozenset[Any]().union(*(part.made_by for part in parts))
    kinds = frozenset[str]().union(*(part.kinds for part in parts))
    pure = bool(parts) and len(parts) == len(node.inputs)
    if rule is None or _is_clipped(node, rule):
        return None
    if rule.output in MOVES:
        places = {_moved_axis(node, part.axis) for part in parts if part.made_by}
        axis = places.pop() if pure and len(places) == 1 else None
        return None if axis is None else Columns(made_by, axis, kinds)
    if rule.weights is None:
        return _computed(node, parts) if pure and rule.output == "own" else None
    if not rule.fuses:
        return None
    if rule.weights.input_axis in rule.weights.channel_axes:  # a scale for each channel: of a head, or of a feature map
        return Columns(made_by, last, _scaled(kinds)) if pure else None
    return Columns(frozenset({origins(node.op) or ((node.name, type(node.op).__name__),)}), last, frozenset({RAW}))


def _computed(node: Node, parts: list[Columns]) -> Columns | None:
    """What an operation without weights makes of columns and constants: corners of boxes, sizes by an exponential."""
    given = [part for part in parts if part.made_by]
    if len({part.axis for part in given}) != 1:
        return None
    if len(parts) == 1:  # a function of each number; not what a reduction leaves
        same = node.outputs[0].shape == node.inputs[0].shape
        return Columns(given[0].made_by, given[0].axis, frozenset({CURVED})) if same else None
    made_by = frozenset[Any]().union(*(part.made_by for part in given))
    kinds = _scaled(frozenset[str]().union(*(part.kinds for part in given)))
    # the sum of a layer's columns and of features behind another is features again, as in a residual block
    mixed = len(kinds) > 1 and any(part.made_by != made_by for part in given)
    return None if mixed else Columns(made_by, given[0].axis, kinds)


def _scaled(kinds: frozenset[str]) -> frozenset[str]:
    return frozenset(SCALED if kind == RAW else kind for kind in kinds)


def _moved_axis(node: Node, axis: int) -> int | None:
    """Where a call that moves codes leaves an axis; None where it is not known any more."""
    before, after = node.inputs[0].shape, node.outputs[0].shape
    dims = getattr(node.op, "dims", None)  # of a Permute; counted from 1, without the samples
    if dims is not None:
        return tuple(dims).index(axis) + 1
    if len(before) == len(after) and (axis < len(before) - 1 or before[-1] == after[-1]):
        return axis
    if axis == len(before) - 1:  # rows [positions, anchors * 4] become [positions * anchors, 4]
        return len(after) - 1
    return axis if before[: axis + 1] == after[: axis + 1] else None


def _beside(node: Node, columns: Mapping[int, Columns], ends: set[int]) -> bool:
    """A join puts columns of different layers next to each other."""
    # what others read as well is a feature map, as those that a block of DenseNet joins
    parts = [columns.get(id(t)) for t in node.inputs if id(t) in ends]
    axes = [i for i, size in enumerate(node.outputs[0].shape[1:], 1) if size != node.inputs[0].shape[i]]
    heads = [part for part in parts if part is not None and part.made_by and axes == [part.axis]]
    return any(_is_unlike(a, b) for i, a in enumerate(heads) for b in heads[:i])


def _is_unlike(a: Columns, b: Columns) -> bool:
    """Columns of different layers, or of one as they are and scaled; behind activations both are a feature map."""
    return {*a.kinds, *b.kinds} != {CURVED} and (not a.made_by & b.made_by or a.kinds != b.kinds)


def keeps_all(node: Node) -> bool:
    """A join has a place for each value that it takes; a maximum gives one of several.

    Args:
        node: a call that moves codes.
    """
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

"""Move layers that act in training only (dropout, noise) out from between layers that become one operator.

    layer, dropout, affine    layer, affine, dropout'     the affine folds into the layer before
    affine, dropout, layer    dropout', affine, layer     ... or into the one behind
    layer, dropout, ReLU      layer, ReLU(dropout')       the ReLU fuses

In training the graph computes what it did (`layers.training_only`); inference never saw these layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import numpy as np

from kquant.core.origin import identities, mark, origins
from kquant.graph.graph import Graph, Node
from kquant.graph.unfold import substitute
from kquant.layers.training_only import Conjugated, ReLUBehind
from kquant.ops import find
from kquant.ops.affine import Affine
from kquant.ops.passive import MULTIPLIES, TRAINING_ONLY


def move_past_affines(graph: Graph, exact: Callable[[Any, Any], bool]) -> Graph:
    """Affine maps change places with the layers that keep them from a neighbour to fold into.

    Args:
        graph: of a model that `expand` made, whose layers may be changed.
        exact: `(first, second)` tells whether the one folds into the other where nothing separates them.
    """
    places = _Places(graph)
    for node in graph.nodes:
        op = places.op(node)
        if not isinstance(op, Affine):
            continue
        first, passed = places.before(node)
        if passed and first is not None and exact(places.op(first), op):
            places.rotate([*passed, node], to_front=True)
            continue
        last, passed = places.after(node)
        if passed and last is not None and exact(op, places.op(last)):
            places.rotate([node, *passed], to_front=False)
    return places.graph({})


def move_into_relus(graph: Graph) -> Graph:
    """A ReLU takes in the layers between it and an operator that computes it for nothing."""
    places, made = _Places(graph), {}
    gone: dict[int, Any] = {}  # id(output of a layer that left) -> its input
    for node in graph.nodes:
        rule = find(node.op)
        if rule is None or rule.relu is None or isinstance(node.op, ReLUBehind):
            continue
        first, passed = places.before(node)
        maker = None if first is None else find(first.op)
        if first is None or not passed or maker is None or not maker.fuses:
            continue
        key = tuple(id(n.op) for n in (*passed, node))
        if key not in made:
            made[key] = _behind(node.op, [n.op for n in passed])
        places.ops[id(node)] = made[key]
        gone.update({id(n.outputs[0]): first.outputs[0] for n in passed})
    return places.graph(gone)


def _behind(relu: Any, passed: list[Any]) -> ReLUBehind:
    new = ReLUBehind(passed, **relu.get_config())
    mark(new, (*origins(relu), *(identity for op in passed for identity in identities(op))))
    return new


@dataclass
class _Places:
    """The nodes of a graph, whose operations change places; tensors stay, as they are all of one shape."""

    given: Graph
    ops: dict[int, Any] = field(default_factory=dict)
    made: dict[tuple[int, int, bool], Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.producers, self.consumers = self.given.producers, self.given.consumers
        self.ends = {id(t) for t in keras.tree.flatten(self.given.outputs)}

    def op(self, node: Node) -> Any:
        """What stands at this place now."""
        return self.ops.get(id(node), node.op)

    def before(self, node: Node) -> tuple[Node | None, list[Node]]:
        """The nearest node before that acts at inference, None where there is none, and those between, in order."""
        passed: list[Node] = []
        while True:
            t = (passed[0] if passed else node).inputs[0]
            source = self.producers.get(id(t))
            if source is None or id(t) in self.ends or len(self.consumers[id(t)]) != 1:
                return None, passed
            if not isinstance(self.op(source), TRAINING_ONLY):
                return source, passed
            passed.insert(0, source)

    def after(self, node: Node) -> tuple[Node | None, list[Node]]:
        """The nearest node behind that acts at inference, None where there is none, and those between, in order."""
        passed: list[Node] = []
        while True:
            t = (passed[-1] if passed else node).outputs[0]
            readers = self.consumers.get(id(t), [])
            if id(t) in self.ends or len(readers) != 1:
                return None, passed
            if not isinstance(self.op(readers[0]), TRAINING_ONLY):
                return readers[0], passed
            passed.append(readers[0])

    def rotate(self, nodes: list[Node], *, to_front: bool) -> None:
        """The affine at one end of `nodes` goes to the other end; the layers that it passes are conjugated."""
        affine = self.op(nodes[-1 if to_front else 0])
        passed = [self.conjugated(self.op(n), affine, to_front) for n in nodes if self.op(n) is not affine]
        for node, op in zip(nodes, [affine, *passed] if to_front else [*passed, affine], strict=True):
            self.ops[id(node)] = op

    def conjugated(self, op: Any, affine: Affine, outside: bool) -> Any:
        """What `op` is on the other side of an affine; the same layer for calls that share both."""
        scale, offset = (v.numpy().astype(np.float64) for v in (affine.scale, affine.offset))
        if isinstance(op, MULTIPLIES) and not np.any(offset):
            return op
        key = (id(op), id(affine), outside)
        if key not in self.made:
            if outside:  # x is what the affine made: undo it first
                scale, offset = 1.0 / np.where(scale == 0.0, np.inf, scale), -offset / np.where(scale == 0.0, 1, scale)
            new = Conjugated(op, scale, offset, name=op.name, dtype=op.dtype_policy)
            mark(new, identities(op))
            self.made[key] = new
        return self.made[key]

    def graph(self, gone: dict[int, Any]) -> Graph:
        """The graph as it is now, without the nodes whose outputs are `gone`."""
        nodes = []
        for node in self.given.nodes:
            if id(node.outputs[0]) not in gone:
                args, kwargs = substitute((node.args, node.kwargs), gone)
                nodes.append(replace(node, op=self.op(node), args=args, kwargs=kwargs))
        return replace(self.given, nodes=tuple(nodes))

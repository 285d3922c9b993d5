"""A graph with its loops open: the calls of a step stand among those of the model, between ports.

    x -> LoopStep -> (the calls of one step) -> LoopResult -> y
               LoopState ^                 | the next state

What a step computes is planned, quantized and written as if it stood there once. The graph cannot be run: who runs a
model reads it with its loops whole.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kquant.core.origin import mark, origins
from kquant.graph.graph import Graph, Node
from kquant.graph.unfold import substitute
from kquant.layers.loop import Loop, LoopPort, LoopResult, LoopState, LoopStep


def opened(graph: Graph, *, every: bool = False) -> Graph:
    """The graph with the calls of every loop's step in the place of the loop.

    Args:
        graph: of a float or of a quantized model.
        every: repeat the step of a shared loop at each of its calls; by default it stands at the first one, and the
            others have ports only.
    """
    nodes: list[Node] = []
    aliases: dict[int, Any] = {}  # an encoding at an edge of a loop -> the one that its `FakeQuant` gives
    met: set[int] = set()
    for node in graph.nodes:
        if isinstance(node.op, Loop):
            nodes += _open(_told(node, aliases), aliases, id(node.op) in met and not every)
            met.add(id(node.op))
        else:
            nodes.append(_told(node, aliases) if aliases else node)
    return graph if not met else replace(graph, nodes=tuple(nodes))


def _open(node: Node, aliases: dict[int, Any], again: bool) -> list[Node]:
    """The calls of one loop."""
    loop: Loop = node.op
    xs, encodings, states = loop.ports
    aliases |= {
        id(inside): outside for inside, outside in zip(encodings, node.kwargs.get("encodings", ()), strict=True)
    }
    nodes = [
        _port(LoopStep(loop, n, n == 0), (x,), (t,)) for n, (x, t) in enumerate(zip(node.args[0], xs, strict=True))
    ]
    if not again:
        nodes += [_port(LoopState(loop, n, False), (), (t,)) for n, t in enumerate(states)]
        nodes += [_told(call, aliases) for call in loop.nodes]
    after, grids = loop.ends
    count = len(loop.results)
    for n, result in enumerate(loop.results):
        nodes.append(_port(LoopResult(loop, n, n == 0), (after[result.state], after), node.outputs[n : n + 1]))
        if grids:
            aliases[id(node.outputs[count + n])] = grids[result.state]
    return nodes


def _told(node: Node, aliases: dict[int, Any]) -> Node:
    """A call that reads encodings from where they come from, inside a loop or outside."""
    args, kwargs = substitute((node.args, node.kwargs), aliases)
    return replace(node, args=args, kwargs=kwargs)


def _port(op: LoopPort, args: tuple, outputs: tuple) -> Node:
    mark(op, origins(op.loop))
    return Node(op, args, {}, tuple(outputs))

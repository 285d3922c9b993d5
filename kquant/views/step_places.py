"""The layers with weights of a quantized model, those in the steps of its loops too.

A correction asks for what such a layer reads and makes: `StepTensor`s stand for it, which a sweep computes by running
the loop.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras

from kquant.graph.graph import Graph, Node
from kquant.layers.loop import Loop
from kquant.views.quantized_model import Place, is_whole, place_of, places


class StepTensor(keras.KerasTensor):
    """A tensor of a loop's step, at all steps of a call.

    Attributes:
        host: the call.
        inside: the tensor of the model of one step, [batch, 1, ...]; this one is [batch, steps, ...].
    """

    def __init__(self, host: Node, inside: keras.KerasTensor) -> None:
        shape = tuple(inside.shape)
        # the scale of a layer's sums has no samples
        shape = (shape[0], host.args[0][0].shape[1], *shape[2:]) if len(shape) > 1 else shape
        super().__init__(shape, inside.dtype)
        self.host, self.inside = host, inside


def host_of(node: Node) -> Node:
    """The call of the graph that a call belongs to: itself, or that of the loop around it."""
    first = node.inputs[0]
    return first.host if isinstance(first, StepTensor) else node


def every_place(graph: Graph, blocks: bool = False) -> list[Place]:
    """The layers whose weights are codes, in the order of the model; a loop's stand where its first call does.

    Args:
        graph: of a quantized model, loops whole.
        blocks: see `places`.
    """
    numbers = {id(node): n for n, node in enumerate(graph.nodes)}
    hosts: dict[int, list[Node]] = {}
    for node in graph.nodes:
        if isinstance(node.op, Loop):
            hosts.setdefault(id(node.op), []).append(node)
    unordered = [*places(graph, blocks), *(place for calls in hosts.values() for place in _inside(calls, blocks))]
    return sorted(unordered, key=lambda place: numbers[id(host_of(place.calls[0]))])


def _inside(hosts: Sequence[Node], blocks: bool) -> list[Place]:
    """Those in the step of one loop, each with its calls in every call of the loop."""
    loop: Loop = hosts[0].op
    step = Graph(loop.name, loop.step.inputs, loop.step.outputs, loop.nodes)
    calls: dict[int, list[Node]] = {}
    for node in step.nodes:
        if is_whole(node.op, blocks):
            calls.setdefault(id(node.op), []).append(node)
    made = [place_of(nodes, step.consumers) for nodes in calls.values()]
    return [_at_all_steps(place, hosts) for place in made if place is not None]


def _at_all_steps(place: Place, hosts: Sequence[Node]) -> Place:
    """The place with tensors of all steps."""
    calls = [
        Node(call.op, (StepTensor(host, call.inputs[0]),), {}, tuple(StepTensor(host, t) for t in call.outputs))
        for host in hosts
        for call in place.calls
    ]
    return Place(place.layer, tuple(calls), place.activations * len(hosts), place.rule)

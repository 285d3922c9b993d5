"""What of a quantized model has encodings of its own, by the names that files of encodings use.

A tensor is called like the layer that makes it (a model input like the input), a kernel `layer/kernel`. A layer that is
called more than once makes `layer`, `layer_1`, ... in the order of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kquant.graph.graph import Graph, Node
from kquant.layers.kernel import Holder
from kquant.layers.nodes import Compressed, FakeQuant


@dataclass(frozen=True, eq=False)
class EncodingSites:
    """Name -> what holds the encoding.

    Attributes:
        tensors: the layer that quantizes the tensor, and the one whose encoding it has: another where it follows.
        inside: of tensors inside an operator (the cell state of an LSTM), the layer and the scale that the kernel has.
        kernels: the layer whose kernel it is.
        biases: names only: their scale is that of the input times that of the kernel.
    """

    tensors: Mapping[str, tuple[FakeQuant, FakeQuant]]
    inside: Mapping[str, tuple[FakeQuant, np.ndarray]]
    kernels: Mapping[str, Compressed]
    biases: tuple[str, ...]


def encoding_sites(graph: Graph, *, peeks: bool = False) -> EncodingSites:
    """The places of a quantized model that have an encoding.

    Args:
        graph: of it, loops open.
        peeks: list what a layer asks of its output's encoding beforehand, too: files of version 0.1 do.
    """
    weighted = {n.name: n.op for n in graph.nodes if isinstance(n.op, Compressed) and n.op.spec is not None}
    holders = [node for node in graph.nodes if isinstance(node.op, Holder)]
    return EncodingSites(
        tensors=_tensors(graph, peeks),
        inside={f"{node.name}/{what}": held for node in holders for what, held in node.op.tensors_inside().items()},
        kernels={f"{name}/{op.kernel_name}": op for name, op in weighted.items()},
        biases=tuple(f"{name}/{op.bias_name}" for name, op in weighted.items() if op.bias_name),
    )


def _tensors(graph: Graph, peeks: bool) -> dict[str, tuple[FakeQuant, FakeQuant]]:
    names = {id(t): t.name for t in graph.input_tensors}
    names |= {id(t): node.name for node in graph.nodes for t in node.outputs if not isinstance(node.op, FakeQuant)}
    tensors: dict[str, tuple[FakeQuant, FakeQuant]] = {}
    nodes = [node for node in graph.nodes if isinstance(node.op, FakeQuant) and (peeks or not node.kwargs.get("peek"))]
    # peeks last, so that tensors have the same names with them and without
    for node in sorted(nodes, key=lambda node: bool(node.kwargs.get("peek"))):
        made = node.args[0]
        wanted = names.get(id(made), f"{node.op.name}")
        name, n = wanted, 1
        while name in tensors:
            name, n = f"{wanted}_{n}", n + 1
        names[id(node.outputs[0])] = f"{name}/{node.op.name}"  # what a requantization of it is called
        tensors[name] = (node.op, _followed(node, graph.producers).op)
    return tensors


def _followed(node: Node, producers: dict[int, Node]) -> Node:
    """The `FakeQuant` whose encoding this one has: itself, or that of its first source."""
    while node.op.follows and node.kwargs.get("sources"):
        node = producers[id(node.kwargs["sources"][0])]
        while not isinstance(node.op, FakeQuant):  # layers that keep their input's codes
            node = producers[id(node.inputs[0])]
    return node

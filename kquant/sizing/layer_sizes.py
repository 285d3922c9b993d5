"""The figures of a file by Keras layer: operators, multiplications, stored bytes, bytes that are alive."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from kquant.core.operators import facts
from kquant.core.origin import identities
from kquant.graph.graph import Graph
from kquant.layers.nodes import FakeQuant
from kquant.sizing.estimates import LayerSize
from kquant.tflite.memory_plan import memory_plan
from kquant.tflite.reader import FileModel, FileOperator
from kquant.views.loops import opened
from kquant.views.multiplications import macs_of_node

NUMBER = re.compile(r"_\d+$")  # that tells apart the tensors of several calls of one layer (`distinct_names`)


def layer_sizes(owners: Mapping[str, str], counted: Mapping[str, int], file: FileModel) -> tuple[LayerSize, ...]:
    """One row for each layer, in the order in which they run.

    Args:
        owners: see `owners_of`.
        counted: see `macs_by_layer`.
        file: what was written.
    """
    alive, stored = memory_plan(file).alive_bytes, stored_bytes(file)
    groups: dict[str, list[FileOperator]] = {}
    for op in file.operators:
        groups.setdefault(layer_of(file, op, owners), []).append(op)
    rows = [
        LayerSize(
            layer=name,
            operators=dict(Counter(op.code for op in group)),
            macs=counted.get(name, 0),
            flash_bytes=sum(stored[op.index] for op in group),
            alive_bytes=max(alive[op.index] for op in group),
        )
        for name, group in groups.items()
    ]
    # what multiplies under a name that the file does not have: it is in the sum all the same
    rows += [LayerSize(name, {}, count, 0, 0) for name, count in counted.items() if count and name not in groups]
    return tuple(rows)


def layer_of(file: FileModel, op: FileOperator, owners: Mapping[str, str]) -> str:
    """The user's layer that an operator comes from: that of its weights; of others, the one that names its output, or
    what it writes into a state. One that starts others (CALL_ONCE) has none.

    Args:
        file: with the operator.
        op: one of its operators.
        owners: see `owners_of`.
    """
    at = next((i for i in facts(op.code).weights if i < len(op.inputs) and op.inputs[i] >= 0), None)
    weights = None if at is None else file.tensors[op.inputs[at]]
    # a matrix product of two tensors that are computed has no weights of its own
    written = next(iter(op.outputs or op.inputs[::-1]), None)
    if written is None:
        return op.code
    named = file.tensors[written] if weights is None or "/" not in weights.name else weights
    # names of layers have no slash, those of tensors have one behind them: `head/kernel`
    name = named.name.split("/")[0]
    return owners.get(name) or owners.get(NUMBER.sub("", name)) or name


def owners_of(graph: Graph) -> dict[str, str]:
    """Name of each call in a quantized model -> the user's layer that it comes from, as `kquant.check` calls it."""
    nodes = [node for node in (*opened(graph).nodes, *graph.nodes) if not isinstance(node.op, FakeQuant)]
    return {node.name: identities(getattr(node.op, "layer", node.op))[-1][0] for node in nodes}


def macs_by_layer(graph: Graph, owners: Mapping[str, str]) -> Counter[str]:
    """Multiply-accumulates of one sample by the user's layer; also of layers that stay float."""
    counts: Counter[str] = Counter()
    for node in graph.nodes:
        if isinstance(node.op, FakeQuant) or not node.inputs:
            continue
        counts[owners[node.name]] += macs_of_node(node)
    return counts


def stored_bytes(file: FileModel) -> list[int]:
    """For each operator, bytes of the constants that no operator before it reads."""
    seen: set[int] = set()
    sizes: list[int] = []
    for op in file.operators:
        new = {i for i in op.inputs if i >= 0} - seen
        seen |= new
        sizes.append(sum(file.tensors[i].size_bytes for i in new))
    return sizes

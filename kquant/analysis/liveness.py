"""How much memory the activations of a model need at the same time: a sweep over its calls in order.

What one operator of the file writes is one tensor, whatever number of calls the model has for it: a layer, the ReLU
that it takes over, and the encoding of the output.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

from kquant.analysis.units import quantizes, widths
from kquant.graph.graph import Graph, Node
from kquant.layers.kernel import Holder
from kquant.layers.nodes import FakeQuant
from kquant.layers.provenance import ALL, provenance_of
from kquant.ops import find
from kquant.ops.rule import MOVES
from kquant.views.multiplications import size_of

FLOAT_BYTES = 4


@dataclass
class Live:
    """One tensor in memory.

    Attributes:
        bytes: of one sample.
        first, last: calls that write and read it, both included; inputs are there from the first call, outputs to the
            last.
        values: how many it holds.
        quantized: it holds codes.
        in_float: a layer made it that stays float among others.
    """

    bytes: int
    first: int
    last: int
    values: int = 0
    quantized: bool = False
    in_float: bool = False


def peak_bytes(graph: Graph) -> int:
    """Bytes of the activations that are alive together, where that is most.

    `max_t sum_i bytes_i [first_i <= t <= last_i]` over the calls t in order, for one sample. A runtime that finds no
    place without gaps needs more.

    Args:
        graph: of a quantized model, see `kquant.views.quantized_model.read`.

    Returns:
        Its size; of tensors without an encoding as float32.

    Example:
        >>> inputs = keras.Input((8,), name="x")  # is alive until the sum has read it
        >>> hidden = keras.layers.Dense(8)(keras.layers.Dense(32)(inputs))
        >>> q = kquant.quantize(keras.Model(inputs, keras.layers.Add()([inputs, hidden])))
        >>> peak_bytes(kquant.views.quantized_model.read(q))
        48
    """
    # the sum grows where a tensor begins and nowhere else, so the beginnings are the times to look at
    tensors = live_tensors(graph)
    return max(sum(t.bytes for t in tensors if t.first <= at <= t.last) for at in {t.first for t in tensors})


def live_tensors(graph: Graph) -> list[Live]:
    """Every tensor that the file keeps, from the call that writes it to the last that reads it.

    Args:
        graph: see `peak_bytes`.
    """
    bits, consumers, producers = widths(graph), graph.consumers, graph.producers
    outputs, floats = graph.output_tensors, _floats(graph)
    kept = {id(t) for t in outputs}
    live = {id(t): Live(_bytes(t, bits), 0, 0) for t in graph.input_tensors}
    copies: dict[int, Live] = {}  # id(tensor with codes) -> the same in float
    for at, node in zip(itertools.count(2, 2), graph.nodes, strict=False):  # between two calls is room for a conversion
        # One operator of the file is up to three calls here (layer, ReLU, encoding): they write the same tensor.
        source = _completed(node, live)
        if source is None and _is_fused(node, producers, consumers, kept):
            source = node.inputs[0]
        made = Live(0, at, at) if source is None else live[id(source)]
        for tensor in [live[id(t)] for t in node.inputs if id(t) in live and live[id(t)] is not made]:
            if node.name in floats and tensor.quantized:
                # one DEQUANTIZE serves every float layer that reads these codes; it runs right before the first of them
                copy = copies.setdefault(id(tensor), Live(tensor.values * FLOAT_BYTES, at - 1, at, tensor.values))
                tensor.last, copy.last = max(tensor.last, copy.first), max(copy.last, at)
            else:
                tensor.last = max(tensor.last, made.first)  # an operator reads as it starts to write
        # sizes at the last call of the operator: a layer's float32 become int8 where its encoding completes it
        if not isinstance(node.op, FakeQuant) or quantizes(node):
            made.values = size_of(node.outputs[0].shape[1:])
            made.bytes = made.values * FLOAT_BYTES if node.name in floats else _bytes(node.outputs[0], bits)
            made.quantized |= isinstance(node.op, FakeQuant) or (node.name not in floats and _keeps_codes(node, live))
            made.in_float |= node.name in floats
        live[id(node.outputs[0])] = made
        # a Split writes several tensors at once
        if not isinstance(node.op, FakeQuant | Holder):  # the further outputs of those are scales
            live |= {id(t): replace(made, bytes=_bytes(t, bits)) for t in node.outputs[1:]}
    for t in outputs:
        live[id(t)].last = 2 * len(graph.nodes) + 2
    return list({id(tensor): tensor for tensor in (*live.values(), *copies.values())}.values())


def _floats(graph: Graph) -> frozenset[str]:
    """Layers that the recipe leaves float among others: the file converts what they read and write."""
    return frozenset(provenance_of(node.op for node in graph.nodes).floats) - {ALL}


def _bytes(tensor: Any, bits: dict[int, int]) -> int:
    return size_of(tensor.shape[1:]) * bits.get(id(tensor), 32) // 8


def _completed(node: Node, live: dict[int, Live]) -> Any:
    """The tensor whose encoding a `FakeQuant` is; None for other calls, and where it writes codes in a new encoding."""
    if not isinstance(node.op, FakeQuant):
        return None
    source = node.args[0]
    return None if quantizes(node) and (live[id(source)].quantized or live[id(source)].in_float) else source


def _is_fused(node: Node, producers: dict[int, Node], consumers: dict[int, list[Node]], kept: set[int]) -> bool:
    """A ReLU that the operator before it takes over."""
    rule = None if isinstance(node.op, FakeQuant | Holder) else find(node.op)
    if rule is None or rule.relu is None or rule.relu(node.op) is None:
        return False
    source = node.inputs[0]
    before = producers.get(id(source))
    if before is None or isinstance(before.op, FakeQuant):
        return False
    maker = find(before.op.layer if isinstance(before.op, Holder) else before.op)
    return maker is not None and maker.fuses and len(consumers[id(source)]) == 1 and id(source) not in kept


def _keeps_codes(node: Node, live: dict[int, Live]) -> bool:
    """Its output is in the encoding of its inputs: another encoding is an operator of its own."""
    rule = None if isinstance(node.op, FakeQuant | Holder) else find(node.op)
    if rule is None or rule.output not in MOVES:
        return False
    return all(live[id(t)].quantized for t in node.inputs if id(t) in live)

"""Heads that an output joins, once data have shown their ranges: where those are alike, one grid of 8 bits will do.

Structure cannot tell it (`views.heads`): the map of a YOLO head, boxes beside classes, and the features of a segmenter
are the same convolutions in the same Concatenate. So `quantize` gives such a join 16 bits, and calibration takes them
back where the grid that all would share has steps at most twice as coarse as those of each, which is one bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

from kquant.core.messages import first_of, warn
from kquant.graph.graph import Graph, Node
from kquant.layers.head_quant import HeadQuant
from kquant.layers.nodes import FakeQuant, encodings_of
from kquant.ops import find
from kquant.ops.rule import MOVES
from kquant.views.heads import ALIKE
from kquant.views.quantized_model import forget_graphs, read


def part_heads(qmodel: keras.Model) -> Sequence[HeadQuant]:
    """The encodings of joins for outputs, wide again, whatever a calibration before has chosen.

    Args:
        qmodel: a quantized model; changed in place.
    """
    heads = [layer for layer in encodings_of(qmodel) if isinstance(layer, HeadQuant)]
    for head in heads:
        head.take(head.apart.bits)
    return heads


def join_alike(
    qmodel: keras.Model, heads: Sequence[HeadQuant], ranges: Callable[[HeadQuant, int], tuple[float, float]]
) -> None:
    """One grid of 8 bits for heads whose ranges are alike, and its range for each of them.

    Args:
        qmodel: with its ranges; changed in place.
        heads: of the model, as `part_heads` gave them.
        ranges: of a head and the number of its part, on the grid that would join them.
    """
    if not heads:
        return
    graph = read(qmodel)
    joined: dict[str, int] = {}
    for head in heads:
        calls = [node for node in graph.nodes if node.op is head]
        parts = [_part(graph, node) for node in calls]
        ends = [ranges(head, site) for site in range(head.sites)]
        low, high = min(0.0, *(e[0] for e in ends)), max(0.0, *(e[1] for e in ends))
        if not _is_alike(parts, 2.0 * max(-low, high) if head.joined.symmetric else high - low):
            continue
        head.take(head.joined.bits)
        joined[graph.consumers[id(calls[0].outputs[0])][0].name] = head.spec.bits
        for site, (least, most) in enumerate(ends):
            head.set_range(site, least, most)
        # parts on the very grid that joins them are joined as they are: a second rounding would only cost
        for call, part in zip(calls, parts, strict=True):
            if part is not None and part.op.has_range and part.op.spec == head.spec and _is_read_by(graph, call, part):
                for site in range(part.op.sites):
                    part.op.set_range(site, low, high, exact=True)
    forget_graphs(qmodel)
    if joined:
        bits = " and ".join(str(n) for n in sorted(set(joined.values())))
        warn(
            f"calibrate: what an output of the model joins has ranges that are alike: {first_of(list(joined))}. It has "
            f"{bits} bits after all, one grid, which costs no part more than one bit."
        )


def _part(graph: Graph, node: Node) -> Node | None:
    """The call that made the codes which this one brings to the common grid; None where they were floats."""
    encodings = node.kwargs.get("encodings") or ()
    made = graph.producers.get(id(encodings[0])) if encodings else None
    while made is not None and isinstance(made.op, FakeQuant) and made.op.follows:
        made = graph.producers.get(id(made.kwargs["encodings"][0]))
    return made if made is not None and isinstance(made.op, FakeQuant) else None


def _is_alike(parts: list[Node | None], width: float) -> bool:
    """Whether a range this wide has steps at most `ALIKE` times those of each part."""
    known: list[FakeQuant] = [part.op for part in parts if part is not None]
    if len(known) < len(parts) or any(part.spec.bits > 8 for part in known):
        return False
    return all(width <= ALIKE * float(part.grid()[0]) * (part.spec.high - part.spec.low) for part in known)


def _is_read_by(graph: Graph, call: Node, part: Node) -> bool:
    """Whether nothing but the common grid reads a part, moved or not."""
    outputs = {id(t) for t in graph.output_tensors}
    waiting: list[Any] = [part.outputs[0]]
    while waiting:
        t = waiting.pop()
        readers = [node for node in graph.consumers.get(id(t), []) if node.op is not call.op]
        rules = [find(node.op) for node in readers]
        if id(t) in outputs or any(rule is None or rule.output not in MOVES for rule in rules):
            return False
        waiting += [out for node in readers for out in node.outputs]
    return True

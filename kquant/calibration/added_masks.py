"""Masks that the application adds to attention's logits: 0 where a key counts, -1e9 or so where not.

Such an input has a range that leaves it, and the sum, one code for all that is not hidden. Where it does nothing but
that, both are bounded: what is hidden gets the lowest code of the sum, 8 below every logit, as with the masks of
`kquant.ops.masks`.

    mask [-1e9, 0]  ->  [-(highest logit - lowest of the sum), 0]
    sum             ->  [lowest logit - 8, highest logit]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np

from kquant.calibration.observations import Observations
from kquant.core.messages import first_of, warn
from kquant.graph.graph import Graph, Node
from kquant.layers.nodes import FakeQuant, encodings_of
from kquant.ops import find
from kquant.ops.constant import MASKED_BELOW, MINUS_INFINITY
from kquant.ops.rule import MOVES
from kquant.views.quantized_model import read


@dataclass(frozen=True)
class _Sum:
    """Logits and a mask, in front of a softmax.

    Attributes:
        logits: holds their encoding.
        made: holds that of the sum.
        site: of the sum's call.
        below: how far the lowest code must lie under every logit.
    """

    logits: FakeQuant
    made: FakeQuant
    site: int
    below: float


def bound_added_masks(qmodel: keras.Model, seen: Observations) -> None:
    """Give the ranges of masks that are added, and of what they are added to, an end; warn of others that reach so far.

    Both ranges stay from there on: in training, too, they would follow minus infinity.

    Args:
        qmodel: the quantized model, with the ranges of its observers.
        seen: what the data show of it.
    """
    far = {name for (name, _), s in seen.tensors.items() if _hides(s.lows)}
    if not any(layer.ports and layer.name in far for layer in encodings_of(qmodel)):
        return
    graph, left = read(qmodel), list[str]()
    for number, t in enumerate(graph.input_tensors):
        for node in graph.consumers.get(id(t), []):
            values = _some_of(seen, number)
            if isinstance(node.op, FakeQuant) and node.op.name in far and (values is None or _hides(values)):
                sums = list(_sums(graph, node.outputs[0]))
                if sums and all(sums):
                    _bound(node.op, [s for s in sums if s], _lowest(values))
                elif any(s is not None for s in sums):
                    left.append(t.name)
    if left:
        warn(
            f"calibrate: the data of {first_of(left)} reach minus infinity ({MINUS_INFINITY:g} or less), as masks that "
            "are added to the logits of a softmax do; something else reads them too, or stands between the sum and the "
            "softmax, and few codes are left for what is not hidden. Feed 1 where a position counts and 0 where not, "
            "and add (1.0 - mask) * -1e9 in the model; or give what else reads it an input of its own."
        )


def _hides(values: np.ndarray) -> bool:
    """True where one number stands for minus infinity; samples of a sound that is not scaled differ down there."""
    low = values[values <= MINUS_INFINITY]
    return low.size > 0 and float(low.min()) == float(low.max())


def _some_of(seen: Observations, number: int) -> np.ndarray | None:
    """A few samples of an input; observations of a file have none."""
    return None if seen.some is None else np.asarray(keras.tree.flatten(seen.some[0])[number], np.float32)


def _lowest(values: np.ndarray | None) -> float:
    """The least number that hides nothing: 0, but for a bias of distances in the same tensor."""
    return 0.0 if values is None else float(np.min(values, initial=0.0, where=values > MINUS_INFINITY))


def _sums(graph: Graph, t: Any) -> Iterator[_Sum | Literal[False] | None]:
    """What reads a tensor, behind what moves it: False for other sums than those in front of softmaxes, None for the
    rest.
    """
    for node in _readers(graph, t):
        rule = find(node.op)
        if rule is not None and rule.output in MOVES and len(node.inputs) == 1:
            yield from _sums(graph, node.outputs[0])
        else:
            yield _sum_of(graph, node, t)


def _readers(graph: Graph, t: Any) -> list[Node]:
    """Those that compute with it; an encoding behind a sum is told of its sources, too."""
    return [n for n in graph.consumers.get(id(t), []) if not isinstance(n.op, FakeQuant) or n.args[0] is t]


def _sum_of(graph: Graph, node: Node, t: Any) -> _Sum | Literal[False] | None:
    rule, behind = find(node.op), _readers(graph, node.outputs[0])
    if rule is None or rule.operators not in (("ADD",), ("SUB",)):
        return None
    if rule.operators != ("ADD",) or len(node.inputs) != 2 or len(behind) != 1:
        return False
    logits = _encoding_of(graph, next(x for x in node.inputs if x is not t))
    ends = list(_ends(graph, behind[0].outputs[0])) if isinstance(behind[0].op, FakeQuant) else [None]
    betas = [_beta(end) for end in ends]
    if logits is None or None in betas or not betas or not behind[0].op.has_range:
        return False
    below = MASKED_BELOW / min(b for b in betas if b is not None)
    return _Sum(logits, behind[0].op, behind[0].kwargs.get("site", 0), below)


def _ends(graph: Graph, t: Any) -> Iterator[Node | None]:
    """What computes with a tensor, behind what moves it."""
    for node in _readers(graph, t):
        rule = find(node.op)
        if rule is not None and rule.output in MOVES and len(node.inputs) == 1:
            yield from _ends(graph, node.outputs[0])
        else:
            yield node


def _beta(node: Node | None) -> float | None:
    """What a softmax multiplies by before it; None where it is none."""
    rule = None if node is None else find(node.op)
    if node is None or rule is None or rule.operators != ("SOFTMAX",):
        return None
    return 1.0 if rule.arithmetic is None else float(rule.arithmetic(node)[1].get("beta", 1.0))


def _encoding_of(graph: Graph, t: Any) -> FakeQuant | None:
    """What holds the range of a tensor, before what moves it."""
    node = graph.producers.get(id(t))
    while node is not None and not isinstance(node.op, FakeQuant):
        rule = find(node.op)
        if rule is None or rule.output not in MOVES or len(node.inputs) != 1:
            return None
        node = graph.producers.get(id(node.inputs[0]))
    return node.op if node is not None and node.op.has_range else None


def _bound(mask: FakeQuant, sums: list[_Sum], lowest: float) -> None:
    most = max(0.0, float(mask.high.numpy().max()))
    reach = 0.0
    for s in sums:
        low, high = min(float(s.logits.low.numpy().min()), 0.0), max(float(s.logits.high.numpy().max()), 0.0)
        s.made.set_range(s.site, low + lowest - s.below, high + most)
        scale, zero_point, _ = (float(number) for number in s.made.grid())
        # the highest logit and the lowest code of the mask sum to no more than the lowest code of the sum
        reach = max(reach, high - (s.made.spec.low - zero_point) * scale)
        s.made.trainable = False
    steps = mask.spec.high - mask.spec.low
    for site in range(mask.sites):
        mask.set_range(site, -reach * (1.0 + 2.0 / steps), most)  # its zero point may move the grid by half a step
    mask.trainable = False

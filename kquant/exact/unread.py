"""Channels that no output code depends on: the smallest set of channels that has to stay, found from the outputs back.

Kept are the channels of the program's inputs and outputs, whatever a kept channel needs, and what stays together with
one. The rest is multiplied by zeros alone, holds one code that the next bias can hold, or is read by nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kquant.core.program import Operator, Program, Ref
from kquant.exact.flow import Flow, flow_of
from kquant.exact.spans import Span, spans_of


@dataclass(frozen=True, eq=False)
class Reading:
    """What of a program is read.

    Attributes:
        kept: id(computed tensor) -> bool[channels].
        flows: id(operator) -> how channels go through it; None: unknown.
        spans: id(tensor) -> its codes.
    """

    kept: dict[int, np.ndarray]
    flows: dict[int, Flow | None]
    spans: Mapping[int, Span]


def reading_of(program: Program) -> Reading:
    """Follow what is read from the outputs back, until nothing more is found.

    Args:
        program: tidied.
    """
    spans = spans_of(program)
    return followed(program, spans, {id(op): flow_of(op, spans) for op in program.operators})


def followed(
    program: Program, spans: Mapping[int, Span], flows: dict[int, Flow | None], empty: bool = False
) -> Reading:
    """`reading_of`, with operators that read as `flows` says.

    Args:
        program: tidied.
        spans: of its tensors.
        flows: id(operator) -> how channels go through it.
        empty: a kernel may be left without a channel.
    """
    computed = [*program.inputs, *(ref for op in program.operators for ref in op.outputs)]
    kept = {id(ref): np.zeros(_channels(ref), bool) for ref in computed}
    for ref in (*program.inputs, *program.outputs):
        kept[id(ref)][:] = True
    found = Reading(kept, flows, spans)
    while any([_read(op, found) for op in reversed(program.operators)]) or (
        not empty and _nothing_empty(program, found)
    ):
        pass
    return found


def _channels(ref: Ref) -> int:
    return ref.shape[-1] if ref.shape else 1


def _read(op: Operator, found: Reading) -> bool:
    """One operator: what it keeps more than before; False where that is nothing."""
    kept, flow = found.kept, found.flows[id(op)]
    if flow is None:
        if not any(kept[id(ref)].any() for ref in op.outputs):
            return False
        touched = [ref for ref in (*op.inputs, *op.outputs) if ref is not None and id(ref) in kept]
        return any([_keep(kept, ref, True) for ref in touched])
    output = op.outputs[0]
    more = False
    for link in flow.links:
        together = np.logical_or(kept[id(link.source)][link.inner], kept[id(output)][link.outer])
        more |= _keep(kept, link.source, together, link.inner) | _keep(kept, output, together, link.outer)
    if flow.need is not None:
        more |= _keep(kept, flow.need.sums.source, np.any(flow.need.reads[kept[id(output)]], axis=0))
    if kept[id(output)].any():
        more |= any([_keep(kept, ref, True) for ref in flow.keeps])
    return more


def _keep(
    kept: dict[int, np.ndarray], ref: Ref, these: np.ndarray | bool, at: np.ndarray | slice = slice(None)
) -> bool:
    """Keep channels; True where one of them was not kept before."""
    held = kept[id(ref)]
    before = int(held.sum())
    np.logical_or.at(held, np.arange(held.size)[at], these)
    return int(held.sum()) > before


def _nothing_empty(program: Program, found: Reading) -> bool:
    """A kernel that needs no channel reads one all the same: there are no tensors without any."""
    for op in program.operators:
        flow = found.flows[id(op)]
        if flow is None or flow.need is None or not found.kept[id(op.outputs[0])].any():
            continue
        source = flow.need.sums.source
        if not found.kept[id(source)].any():
            constant = found.spans[id(source)].constant
            return _keep(found.kept, source, True, np.array([int(np.argmax(constant))]))
    return False

"""Channels that no output code depends on: the smallest set of channels that has to stay, found from the outputs back.

Kept are the channels of the program's inputs and outputs, whatever a kept channel needs, and what stays together with
one. The rest is multiplied by zeros alone, holds one code that the next bias can hold, or is read by nobody.
"""

from __future__ import annotations

import heapq
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


def reading_of(program: Program, ranged: bool = True) -> Reading:
    """Follow what is read from the outputs back, until nothing more is found.

    Args:
        program: tidied.
        ranged: see `spans_of`.
    """
    spans = spans_of(program, ranged)
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
    reading = Reading(kept, flows, spans)
    _follow(program, reading, empty)
    return reading


def _follow(program: Program, reading: Reading, empty: bool) -> None:
    """Ask every operator, from the last on, and again where a tensor of it keeps more: work grows with their number."""
    near: dict[int, list[int]] = {}  # id(tensor) -> numbers of the operators that have to do with it
    for number, op in enumerate(program.operators):
        for ref in _touched(op, reading):
            near.setdefault(id(ref), []).append(number)
    # The last first (numbers are negative): readers stand behind makers, so that most operators are asked once.
    waiting, in_line = [-n for n in range(len(program.operators))], set(range(len(program.operators)))
    heapq.heapify(waiting)
    asked: list[int] = []  # since it was last looked whether their kernels read something
    while waiting or asked:
        if waiting:
            number = -heapq.heappop(waiting)
            in_line.discard(number)
            heapq.heappush(asked, number)
            grown = _read(program.operators[number], reading)
        else:
            # Not while others wait: one of them may ask for a channel, and this kernel reads that one then.
            op = program.operators[heapq.heappop(asked)]
            grown = [] if empty else _nothing_empty(op, reading)
        for other in {n for ref in grown for n in near[id(ref)]} - in_line:
            in_line.add(other)
            heapq.heappush(waiting, -other)


def _touched(op: Operator, reading: Reading) -> list[Ref]:
    """The computed tensors that an operator reads and writes, each once."""
    refs = {id(ref): ref for ref in (*op.inputs, *op.outputs) if ref is not None and id(ref) in reading.kept}
    return list(refs.values())


def _channels(ref: Ref) -> int:
    return ref.shape[-1] if ref.shape else 1


def _read(op: Operator, reading: Reading) -> list[Ref]:
    """One operator: the tensors of which it keeps more than was kept before."""
    kept, flow = reading.kept, reading.flows[id(op)]
    if flow is None:
        if not any(kept[id(ref)].any() for ref in op.outputs):
            return []
        return [ref for ref in _touched(op, reading) if _keep(kept, ref, True)]
    output = op.outputs[0]
    grown: list[Ref] = []
    for link in flow.links:
        # Both ways: what one end keeps the other has to keep.
        together = np.logical_or(kept[id(link.source)][link.inner], kept[id(output)][link.outer])
        ends = (link.source, link.inner), (output, link.outer)
        grown += [ref for ref, at in ends if _keep(kept, ref, together, at)]
    if flow.need is not None:
        source = flow.need.sums.source
        grown += [source] if _keep(kept, source, np.any(flow.need.reads[kept[id(output)]], axis=0)) else []
    if kept[id(output)].any():
        grown += [ref for ref in flow.keeps if _keep(kept, ref, True)]
    return grown


def _keep(
    kept: dict[int, np.ndarray], ref: Ref, these: np.ndarray | bool, at: np.ndarray | slice = slice(None)
) -> bool:
    """Keep channels; True where one of them was not kept before."""
    held = kept[id(ref)]
    before = int(held.sum())
    # `at`, as a channel may stand there several times (a reshape repeats them): plain indexing keeps the last alone.
    np.logical_or.at(held, np.arange(held.size)[at], these)
    return int(held.sum()) > before


def _nothing_empty(op: Operator, reading: Reading) -> list[Ref]:
    """A kernel that needs no channel reads one all the same: there are no tensors without any."""
    flow = reading.flows[id(op)]
    if flow is None or flow.need is None or not reading.kept[id(op.outputs[0])].any():
        return []
    source = flow.need.sums.source
    if reading.kept[id(source)].any():
        return []
    reading.kept[id(source)][int(np.argmax(reading.spans[id(source)].constant))] = True
    return [source]

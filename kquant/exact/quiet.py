"""Channels that are next to dead: what one adds to the sums of its readers, at most, in codes of their outputs.

A kernel that sums over channels computes, for output o,

    acc_o = b_o + sum over c, p of w_ocp (q_cp - z)

With q_c between `low_c` and `high_c` for every input (`spans`; real 0 too where the kernel pads), and w+ and w- the
positive and negative weights, channel c moves that sum by no more than

    r_oc = max |sum over p of w+_ocp (high_c - z) + w-_ocp (low_c - z)|, and with low and high the other way round

units, each worth `u_o = s_in s_o / s_out` codes of the output. Where the weights of several channels become zeros, what
they add up to counts: with `u_o sum r_oc < 1/2` no code of the reader moves by more than one, whatever the input is.
Channels that go together (through depthwise kernels, pooling, sums of tensors) are one, and count at all of their
readers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from kquant.core.program import Operator, Program
from kquant.exact.flow import Flow, Need
from kquant.exact.spans import Span, spans_of
from kquant.exact.sums import scales_of
from kquant.exact.unread import followed, reading_of


@dataclass(frozen=True, eq=False)
class Quiet:
    """Channels that go together, once nobody reads them.

    Attributes:
        codes: what they add to the output of a reader, at most.
        reads: name of a kernel's weights, and which of its input channels.
        channels: how many there are, over all tensors.
    """

    codes: float
    reads: tuple[tuple[str, int], ...]
    channels: int


Key = tuple[int, int]  # a tensor and a channel of it


def quiet_channels(program: Program, able: Callable[[Operator], bool], limit: float) -> tuple[Quiet, ...]:
    """Channels that may become silent: what all of them together add to any output stays below a limit.

    Args:
        program: tidied; stays as it is.
        able: whether weights of an operator may become zeros.
        limit: in codes of an output; 0.5 lets no code of a reader move by more than one, `inf` takes all.

    Returns:
        The quietest first. Dead ones, which `drop_unread` takes out, are not among them.
    """
    spans, reading = spans_of(program), reading_of(program)
    silenced = {id(op): _silenced(op, reading.flows[id(op)], able) for op in program.operators}
    # What stays although no able kernel reads anything: others need it, or the model's inputs and outputs.
    pinned = followed(program, spans, silenced, empty=True).kept
    groups = _groups(program, reading.flows)
    reads: dict[Key, list[tuple[Operator, str, int, np.ndarray]]] = {}
    for op in program.operators:
        flow = reading.flows[id(op)]
        if flow is None or flow.need is None or not able(op):
            continue
        for channel, codes in enumerate(_codes(op, flow.need, spans).T):
            key = (id(flow.need.sums.source), channel)
            reads.setdefault(groups.get(key, key), []).append((op, flow.need.sums.weights.name, channel, codes))
    members: dict[Key, list[Key]] = {}
    for tensor, kept in reading.kept.items():
        for channel in np.flatnonzero(kept):
            key = (tensor, int(channel))
            members.setdefault(groups.get(key, key), []).append(key)
    free = [g for g, held in members.items() if g in reads and not any(pinned[t][c] for t, c in held)]
    return tuple(_chosen({g: reads[g] for g in free}, {g: len(members[g]) for g in free}, limit))


def _chosen(
    reads: dict[Key, list[tuple[Operator, str, int, np.ndarray]]], sizes: dict[Key, int], limit: float
) -> Iterator[Quiet]:
    """From the quietest on, as long as no output of a reader gets more than the limit from all of them."""
    worst = {group: max(float(codes.max()) for *_, codes in held) for group, held in reads.items()}
    sums: dict[int, np.ndarray] = {}
    for group in sorted(reads, key=lambda g: worst[g]):
        # A kernel may read several channels of a group: its outputs get what all of them add.
        together = {id(op): np.zeros(len(codes)) for op, *_, codes in reads[group]}
        for op, *_, codes in reads[group]:
            together[id(op)] = together[id(op)] + codes
        after = {key: codes + sums.get(key, 0.0) for key, codes in together.items()}
        # One that is too much is passed over: a later one may be read where there is room.
        if all(codes.max() < limit for codes in after.values()):
            sums |= after
            yield Quiet(worst[group], tuple((name, channel) for _, name, channel, _ in reads[group]), sizes[group])


def _silenced(op: Operator, flow: Flow | None, able: Callable[[Operator], bool]) -> Flow | None:
    """The operator as it would be if its weights were zeros: it reads nothing."""
    if flow is None or flow.need is None or not able(op):
        return flow
    return replace(flow, need=replace(flow.need, reads=np.zeros_like(flow.need.reads)))


def _codes(op: Operator, need: Need, spans: Mapping[int, Span]) -> np.ndarray:
    """float64[outputs, inputs]: what a channel adds to an output, at most, in codes of it."""
    sums, given = need.sums, spans[id(need.sums.source)]
    low, high = (np.asarray(end, np.float64) - sums.zero for end in (given.low, given.high))
    # Beside the edges the kernel multiplies 0, whatever codes the channel has.
    if sums.padded:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
    up, down = (f(sums.codes, 0).sum(axis=1).astype(np.float64) for f in (np.maximum, np.minimum))
    most = np.maximum(np.abs(up * high + down * low), np.abs(up * low + down * high))
    return most * (scales_of(sums) / np.float64(op.outputs[0].grid.scale[0]))[:, None]


def _groups(program: Program, flows: dict[int, Flow | None]) -> dict[Key, Key]:
    """Each channel that stays or goes with others -> the one that stands for them."""
    parents: dict[Key, Key] = {}

    def root(key: Key) -> Key:
        while parents.get(key, key) != key:
            key = parents[key]
        return key

    for op in program.operators:
        flow = flows[id(op)]
        for link in () if flow is None else flow.links:
            for inner, outer in zip(link.inner.tolist(), link.outer.tolist(), strict=True):
                # Two sets become one: the root of the first gets the second's as its parent.
                a, b = root((id(link.source), inner)), root((id(op.outputs[0]), outer))
                parents[a] = parents.setdefault(b, b)
    return {key: root(key) for key in parents}

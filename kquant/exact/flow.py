"""Which channels of its operands an operator needs for which of its output, and which stay or go together.

A kernel that sums over channels needs those that it multiplies with more than zeros. A kernel that goes channel by
channel (depthwise, pooling, elementwise) keeps a channel of its operand where it keeps that of its output, and the
other way round, as its tensors have one shape. Whoever has no entry here keeps all that it touches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from kquant.core.operators import facts
from kquant.core.program import Operator, Ref
from kquant.exact.spans import Span
from kquant.exact.sums import BIAS_LIMITS, Sums, sums_of

BIAS_BYTES = 8  # of one output, at most


@dataclass(frozen=True, eq=False)
class Link:
    """Channel `inner[i]` of an operand stays where channel `outer[i]` of the output does, and goes where it goes."""

    source: Ref
    inner: np.ndarray
    outer: np.ndarray


@dataclass(frozen=True, eq=False)
class Need:
    """Of a kernel that sums over channels.

    Attributes:
        sums: the kernel.
        reads: bool[outputs, inputs]: this output can't do without that channel.
        constant: bool[outputs]: it gives one code whatever it reads, so that it needs no channel.
        folded: int64[outputs, inputs]: what a constant channel adds to each sum, where it may go.
    """

    sums: Sums
    reads: np.ndarray
    constant: np.ndarray
    folded: np.ndarray


@dataclass(frozen=True, eq=False)
class Flow:
    """Of one operator; operands in neither list are stored, or are needed whole (`keeps`)."""

    links: tuple[Link, ...] = ()
    need: Need | None = None
    keeps: tuple[Ref, ...] = ()


def flow_of(op: Operator, spans: Mapping[int, Span]) -> Flow | None:
    """How channels go through an operator; None where nothing is known of it, and all of its tensors stay whole.

    Args:
        op: of the program.
        spans: of its tensors.
    """
    if len(op.outputs) != 1 or not op.outputs[0].shape or op.graphs:
        return None
    if facts(op.code).unit == "weights":
        return _summed(op, spans)
    if op.code in FLOWS:
        return FLOWS[op.code](op)
    return _elementwise(op) if facts(op.code).time == "local" else None


def _summed(op: Operator, spans: Mapping[int, Span]) -> Flow | None:
    sums = sums_of(op)
    if sums is None:
        return None
    if sums.depthwise:
        # All outputs of one channel go together: how many there are is the same for every channel of a kernel.
        outputs = np.arange(len(sums.codes))
        return Flow((Link(sums.source, outputs // sums.depthwise, outputs),))
    made, given = spans.get(id(op.outputs[0])), spans.get(id(sums.source))
    if made is None or given is None:
        return None
    # What a constant channel adds is known, so that the bias can hold it and nobody has to read the channel.
    total = sums.codes.sum(axis=1)
    add = total * np.where(given.constant, given.low - sums.zero, 0)
    # With 0 beside the edges a constant is none, unless it is the code of 0, which adds nothing.
    folds = given.constant & (not sums.padded)
    if sums.bias is None and folds.sum() * sums.codes.shape[1] < BIAS_BYTES:
        folds = folds & False  # a bias would have to be added that takes more than the weights
    # Code of real 0: adds nothing beside the edges either, and asks for no bias.
    silent = given.constant & (given.low == sums.zero)
    # Where a bias could not hold all of it, nothing is folded.
    reach = np.abs(sums.offsets) + np.abs(add * folds).sum(axis=1)
    if np.any(reach >= BIAS_LIMITS[sums.source.dtype]):
        folds = folds & False
    # With weights of zeros the bias alone makes the code: there has to be one, and it must hold that sum.
    constant = (
        made.constant & (sums.bias is not None) & (np.abs(_sum_for(sums, given)) < BIAS_LIMITS[sums.source.dtype])
    )
    reads = np.any(sums.codes, axis=1) & ~(folds | silent) & ~constant[:, None]
    return Flow(need=Need(sums, reads, constant, add * folds))


def _sum_for(sums: Sums, given: Span) -> np.ndarray:
    """A sum that gives the code of an output which is constant."""
    return sums.reach(given.low, given.high)[0].astype(np.int64)


def constant_sums(need: Need, spans: Mapping[int, Span]) -> np.ndarray:
    """int64[outputs]: the bias that alone makes the code of a constant output."""
    return _sum_for(need.sums, spans[id(need.sums.source)])


def _elementwise(op: Operator) -> Flow | None:
    """Channel by channel, operands with one channel for all read whole."""
    count = op.outputs[0].shape[-1]
    # Stored operands ask for nothing: they are cut where the output is (`narrow`).
    computed = [ref for ref in op.inputs if ref is not None and ref.data is None]
    links = [_same(ref, count) for ref in computed if ref.shape and ref.shape[-1] == count]
    return Flow(tuple(links), keeps=tuple(ref for ref in computed if not ref.shape or ref.shape[-1] != count))


def _same(ref: Ref, count: int) -> Link:
    return Link(ref, np.arange(count), np.arange(count))


def _first(op: Operator) -> Flow | None:
    """The first operand alone has channels, and as many as the output."""
    source, count = op.inputs[0], op.outputs[0].shape[-1]
    if source is None or not source.shape or source.shape[-1] != count:
        return None
    return Flow((_same(source, count),) if source.data is None else ())


def _reduced(op: Operator) -> Flow | None:
    """Over positions."""
    source, axes = op.inputs[0], op.inputs[1]
    if source is None or axes is None or axes.data is None:
        return None
    over = [int(axis) % len(source.shape) for axis in axes.data.reshape(-1)]
    return None if len(source.shape) - 1 in over else _first(op)


def _padded(op: Operator) -> Flow | None:
    paddings = op.inputs[1]
    return None if paddings is None or paddings.data is None or np.any(paddings.data[-1]) else _first(op)


def _transposed(op: Operator) -> Flow | None:
    order = op.inputs[1]
    if order is None or order.data is None or int(order.data[-1]) != len(order.data) - 1:
        return None
    return _first(op)


def _sliced(op: Operator) -> Flow | None:
    """A part of other axes; where it begins and how long it is must be stored, as that is rewritten."""
    stored = [ref for ref in op.inputs[1:] if ref is not None and ref.data is not None]
    masks = ("ellipsisMask", "newAxisMask", "shrinkAxisMask", "offset")
    plain = len(stored) == len(op.inputs) - 1 and not any(op.options.get(mask) for mask in masks)
    return _first(op) if plain and len(stored[0].shape) == 1 else None


def _reshaped(op: Operator) -> Flow | None:
    """Where the last axes are multiples of each other, the channels of a longer one repeat those of the shorter."""
    source, made = op.inputs[0], op.outputs[0]
    if source is None or not source.shape or source.data is not None:
        return None
    before, after = source.shape[-1], made.shape[-1]
    if after % before and before % after:
        return None
    longest = np.arange(max(before, after))
    return Flow((Link(source, longest % before, longest % after),))


def _concatenated(op: Operator) -> Flow | None:
    rank, links, begin = len(op.outputs[0].shape), [], 0
    along = op.options["axis"] % rank == rank - 1
    for ref in op.inputs:
        if ref is None or len(ref.shape) != rank:
            return None
        # Along another axis every operand has the output's channels, and `begin` stays 0.
        inner = np.arange(ref.shape[-1])
        if ref.data is None:
            links.append(Link(ref, inner, inner + begin))
        begin += ref.shape[-1] if along else 0
    return Flow(tuple(links))


def _gathered(op: Operator) -> Flow | None:
    """Rows of a table: its channels are those of the output."""
    table, positions = op.inputs
    if table is None or positions is None or len(table.shape) < 2:
        return None
    rank = len(table.shape)
    # Along the last axis positions choose channels, and which ones is not followed.
    if op.options["axis"] % rank == rank - 1 or op.options.get("batchDims"):
        return None
    count = op.outputs[0].shape[-1]
    links = (_same(table, count),) if table.data is None else ()
    return Flow(links, keeps=(positions,) if positions.data is None else ())


FLOWS: dict[str, Callable[[Operator], Flow | None]] = {
    **dict.fromkeys(("AVERAGE_POOL_2D", "MAX_POOL_2D", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"), _first),
    **dict.fromkeys(("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN"), _reduced),
    **dict.fromkeys(("SLICE", "STRIDED_SLICE"), _sliced),
    "CONCATENATION": _concatenated,
    "GATHER": _gathered,
    "PAD": _padded,
    "RESHAPE": _reshaped,
    "TRANSPOSE": _transposed,
}

"""What codes each channel of a tensor can hold, whatever the inputs are: intervals through the kernels' arithmetic.

A channel is an index of the last axis. Every kernel here never falls where its operands rise (or is tabulated), so that
the ends of an interval go through it: what comes out is between the two. Where the runtimes round differently, an
interval holds the codes of all of them; one with equal ends is a constant on each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from kquant.arithmetic import KERNELS, Grid, activation_range
from kquant.arithmetic.grid import RUNTIMES as ARITHMETICS
from kquant.core.operators import facts
from kquant.core.program import Operator, Program, Ref
from kquant.exact.sums import Sums, enclosed, sums_of

# The ends of the types that hold codes: kernels clip to these, whatever grid a tensor was given.
ENDS = {"int8": (-128, 127), "int16": (-32768, 32767)}


@dataclass(frozen=True, eq=False)
class Span:
    """The codes of a tensor, channel by channel.

    Attributes:
        low, high: int64[channels], or [1] for a tensor that goes with every channel; both ends included.
    """

    low: np.ndarray
    high: np.ndarray

    @property
    def constant(self) -> np.ndarray:
        """bool[channels]: it holds one code at every position, for every input."""
        return self.low == self.high

    def at(self, channels: np.ndarray) -> Span:
        """These channels in this order."""
        return Span(self.low[channels], self.high[channels])

    def within(self, low: int, high: int) -> Span:
        """Clipped as a fused activation does."""
        return Span(np.clip(self.low, low, high), np.clip(self.high, low, high))

    def joined(self, other: Span) -> Span:
        """What is in either."""
        return Span(np.minimum(self.low, other.low), np.maximum(self.high, other.high))


def spans_of(program: Program, ranged: bool = True) -> dict[int, Span]:
    """id(tensor) -> its span, of every computed tensor that holds codes.

    Args:
        program: its inputs may hold any code.
        ranged: its ranges are those that the model has; False: they are made up, and weights alone say anything, zeros
            that a channel is constant.
    """
    known = {id(ref): span for ref in program.inputs if (span := whole(ref)) is not None}
    for op in program.operators:
        made = _made(op, known)
        if made is not None and not ranged:
            made = _by_weights(op, made)
        for ref in op.outputs:
            span = made if made is not None else whole(ref)
            if span is not None:
                known[id(ref)] = span
    return known


def _by_weights(op: Operator, made: Span) -> Span | None:
    """Constants where all weights are zeros, any code elsewhere."""
    sums, ends = sums_of(op) if facts(op.code).unit == "weights" else None, whole(op.outputs[0])
    if sums is None or ends is None:
        return None
    # A sum of zeros is its bias on any range; what else looks constant may owe that to the made-up ends.
    silent = ~np.any(sums.codes, axis=(1, 2))
    return Span(np.where(silent, made.low, ends.low), np.where(silent, made.high, ends.high))


def whole(ref: Ref) -> Span | None:
    """All codes of its type, or those that it stores; None for what holds no codes."""
    if ref.encoding is None or ref.dtype not in ENDS or not ref.shape:
        return None
    if ref.data is not None:
        rows = ref.data.astype(np.int64).reshape(-1, ref.shape[-1])
        return Span(rows.min(axis=0), rows.max(axis=0))
    ends = ENDS[ref.dtype]
    return Span(np.full(ref.shape[-1], ends[0], np.int64), np.full(ref.shape[-1], ends[1], np.int64))


def grid_of(ref: Ref) -> Grid:
    """As the arithmetic takes it: one scale, and the ends of the type."""
    scale, zero = tf.constant(ref.grid.scale[0], tf.float32), tf.constant(ref.grid.zero_point[0], tf.float32)
    return Grid(scale, zero, *ENDS[ref.dtype])


def ends_of(op: Operator) -> tuple[int, int]:
    """Smallest and largest code that the operator's fused activation lets through."""
    activation = op.options.get("fusedActivationFunction")
    low, high = activation_range(grid_of(op.outputs[0]), None if activation in (None, "NONE") else activation)
    return int(low), int(high)


def _made(op: Operator, known: dict[int, Span]) -> Span | None:
    """What an operator writes; None where it is not among those that are known, or does not write codes."""
    if len(op.outputs) != 1 or whole(op.outputs[0]) is None:
        return None
    if facts(op.code).unit == "weights":
        sums = sums_of(op)
        source = None if sums is None else known.get(id(sums.source))
        return None if sums is None or source is None else _summed(op, sums, source)
    if op.code not in SPANS:
        return None
    # None also for operands that hold no codes (shapes, axes): each function asks for those that it needs.
    given = [known.get(id(ref), None if ref is None or ref.data is None else whole(ref)) for ref in op.inputs]
    return SPANS[op.code](op, given)


def _summed(op: Operator, sums: Sums, source: Span) -> Span:
    """Codes of sums of products."""
    low, high = sums.reach(source.low, source.high)
    return Span(*enclosed(op, sums, low, high, grid_of(op.outputs[0]), ends_of(op)))


Made = Callable[[Operator, Sequence[Any]], Span | None]


def _moved(op: Operator, given: Sequence[Any]) -> Span | None:
    """Codes change their place and stay in their channel."""
    source, before, made = given[0], op.inputs[0], op.outputs[0].shape
    if source is None or before is None:
        return None
    shape = before.shape
    if op.code == "RESHAPE":
        return _reshaped(source, shape[-1], made[-1])
    # Which channels are left, or where they went, is not followed: any of them may be anywhere.
    if shape[-1] != made[-1] or (op.code == "TRANSPOSE" and not _last_stays(op)):
        return Span(np.full(made[-1], source.low.min()), np.full(made[-1], source.high.max()))
    return source


def _last_stays(op: Operator) -> bool:
    order = op.inputs[1]
    return order is not None and order.data is not None and int(order.data[-1]) == len(order.data) - 1


def _reshaped(source: Span, before: int, after: int) -> Span:
    """Channels over another last axis: that of one a multiple of the other's, or all together."""
    # The last axis runs fastest: the element at place i lies in channel i modulo the width, before as after.
    if after % before == 0:
        return source.at(np.arange(after) % before)
    if before % after == 0:
        return Span(source.low.reshape(-1, after).min(axis=0), source.high.reshape(-1, after).max(axis=0))
    return Span(np.full(after, source.low.min()), np.full(after, source.high.max()))


def _padded(op: Operator, given: Sequence[Any]) -> Span | None:
    """Code of real 0 around it."""
    source, paddings = given[0], op.inputs[1]
    # Channels in front would move the others: nothing is said of the output then.
    if source is None or paddings is None or paddings.data is None or np.any(paddings.data[-1]):
        return None
    zero = np.full_like(source.low, op.outputs[0].grid.zero_point[0])
    return source.joined(Span(zero, zero)) if np.any(paddings.data) else source


def _concatenated(op: Operator, given: Sequence[Any]) -> Span | None:
    rank = len(op.outputs[0].shape)
    if any(span is None for span in given) or not _one_grid(op):
        return None
    if op.options["axis"] % rank == rank - 1:
        return Span(np.concatenate([s.low for s in given]), np.concatenate([s.high for s in given]))
    joined = given[0]
    for span in given[1:]:
        joined = joined.joined(span)
    return joined


def _one_grid(op: Operator) -> bool:
    """Codes of all operands mean what those of the output mean."""
    grids = [ref.encoding for ref in op.inputs if ref is not None and ref.encoding is not None]
    return all(grid.same_as(op.outputs[0].grid) for grid in grids)


def _pooled(op: Operator, given: Sequence[Any]) -> Span | None:
    """Averages and maxima lie between the ends: those are whole numbers, so rounding does not leave them."""
    return None if given[0] is None or not _one_grid(op) else given[0].within(*ends_of(op))


def _extreme(op: Operator, given: Sequence[Any]) -> Span | None:
    if any(span is None for span in given) or not _one_grid(op):
        return None
    pick = np.maximum if op.code == "MAXIMUM" else np.minimum
    return Span(pick(given[0].low, given[1].low), pick(given[0].high, given[1].high))


def _averaged(op: Operator, given: Sequence[Any]) -> Span | None:
    """MEAN of the same code everywhere, at either end."""
    source, axes = op.inputs[0], op.inputs[1]
    if source is None or given[0] is None or axes is None or axes.data is None:
        return None
    over = [int(axis) % len(source.shape) for axis in axes.data.reshape(-1)]
    if len(source.shape) - 1 in over:
        return None
    # The kernel runs on both ends at once, a batch of two in front of the tensor's own axes: those move by one.
    ends = np.stack([given[0].low, given[0].high])
    filled = np.broadcast_to(ends.reshape(2, *[1] * (len(source.shape) - 1), -1), (2, *source.shape))
    return _hull(op, [source], [filled], axes=[axis + 1 for axis in over])


def _combined(op: Operator, given: Sequence[Any]) -> Span | None:
    """ADD, SUB, MUL: at the corners of the two intervals."""
    if any(span is None for span in given):
        return None
    (a, b), count = given, op.outputs[0].shape[-1]
    # With the other operand fixed each of them only rises or only falls: the extremes are at the corners.
    corners = [(a.low, b.low), (a.low, b.high), (a.high, b.low), (a.high, b.high)]
    both = [np.stack([np.broadcast_to(corner[n], count) for corner in corners]) for n in (0, 1)]
    activation = op.options.get("fusedActivationFunction")
    return _hull(op, op.inputs, both, activation=None if activation == "NONE" else activation)


def _tabulated(op: Operator, given: Sequence[Any]) -> Span | None:
    """A function of one code: the extremes of its table between the ends."""
    source = op.inputs[0]
    if source is None or given[0] is None or source.dtype != "int8":
        return None
    tables = tables_of(op)
    # Rows of the table, which begins at code -128; the end of a slice is not in it.
    first, last = given[0].low + 128, given[0].high + 129
    pairs = {(int(a), int(b)) for a, b in zip(first, last, strict=True)}
    # Channels often share an interval: each is looked through once.
    low = {pair: min(int(t[slice(*pair)].min()) for t in tables) for pair in pairs}
    high = {pair: max(int(t[slice(*pair)].max()) for t in tables) for pair in pairs}
    order = list(zip(first.tolist(), last.tolist(), strict=True))
    return Span(np.array([low[p] for p in order], np.int64), np.array([high[p] for p in order], np.int64))


def tables_of(op: Operator) -> list[np.ndarray]:
    """int64[256]: the codes that a function of one code gives for -128 to 127, for each runtime."""
    options = {"alpha": op.options["alpha"]} if op.code == "LEAKY_RELU" else {}
    return runs_of(op, op.inputs[:1], [np.arange(-128, 128)], **options)


def grids_alike(one: Ref, other: Ref) -> bool:
    """A code means the same in both."""
    return one.grid.same_as(other.grid)


def _hull(op: Operator, sources: Sequence[Ref | None], codes: list[np.ndarray], **options: Any) -> Span:
    """The extremes over the first axis and over the runtimes."""
    rows = [run.reshape(len(codes[0]), -1, run.shape[-1]) for run in runs_of(op, sources, codes, **options)]
    return Span(np.min([r.min(axis=(0, 1)) for r in rows], axis=0), np.max([r.max(axis=(0, 1)) for r in rows], axis=0))


def runs_of(op: Operator, sources: Sequence[Ref | None], codes: list[np.ndarray], **options: Any) -> list[np.ndarray]:
    """The kernel on some codes, as each runtime computes it.

    Args:
        op: whose.
        sources: its operands that hold codes.
        codes: of each of them.
        options: of the kernel.
    """
    grids, out = [grid_of(ref) for ref in sources if ref is not None], grid_of(op.outputs[0])
    given = [tf.constant(c, tf.int32) for c in codes]
    made = [KERNELS[op.code](given, grids, out, runtime=name, **options) for name in ARITHMETICS]
    return [np.rint(np.asarray(codes)).astype(np.int64) for codes in made]


SPANS: dict[str, Made] = {
    **dict.fromkeys(("RESHAPE", "TRANSPOSE", "SLICE", "STRIDED_SLICE"), _moved),
    **dict.fromkeys(("RESIZE_NEAREST_NEIGHBOR", "RESIZE_BILINEAR", "AVERAGE_POOL_2D", "MAX_POOL_2D"), _pooled),
    **dict.fromkeys(("ADD", "SUB", "MUL"), _combined),
    **dict.fromkeys(("MAXIMUM", "MINIMUM"), _extreme),
    **dict.fromkeys(
        ("RELU", "RELU6", "QUANTIZE", "LOGISTIC", "TANH", "LEAKY_RELU", "HARD_SWISH", "ABS", "ELU"), _tabulated
    ),
    "PAD": _padded,
    "CONCATENATION": _concatenated,
    "MEAN": _averaged,
}

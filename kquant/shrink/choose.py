"""Which channels leave for a budget: the least important first, counted exactly after each.

Multiplications of a layer are a product of its input and output channels, so what a channel saves shrinks as others
leave; the sums are kept up to date instead of being estimated beforehand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Literal, get_args

import numpy as np

from kquant.shrink.channels import Channels, Site
from kquant.shrink.kernel_cost import BIAS_BYTES, positions

Unit = Literal["macs", "weight_bytes"]


SMALLEST = 100  # of anything, that has a fraction because it was computed: 1.5 is a mistake


def budget(macs: float | None, weight_bytes: float | None) -> tuple[Unit, float]:
    """Which of two budgets is given, and its share or number.

    Raises:
        ValueError: none, both, or no positive number.
    """
    given = [(unit, n) for unit, n in zip(get_args(Unit), (macs, weight_bytes), strict=True) if n is not None]
    if len(given) != 1:
        raise ValueError(
            f"one budget is to be given, like macs=0.6 or weight_bytes=50_000. Received: macs={macs}, "
            f"weight_bytes={weight_bytes}."
        )
    unit, share = given[0]
    if not isinstance(share, Real) or isinstance(share, bool) or not 0 < share < math.inf:
        raise ValueError(f"{unit}: expected a share in (0, 1] or a number. Received: {share!r}.")
    if 1 < share < SMALLEST and share != round(share):
        raise ValueError(f"{unit}: expected a share in (0, 1], or how many. Received: {share!r}, which is neither.")
    return unit, float(share)


@dataclass
class Ledger:
    """Kernels' channels as they are left.

    Attributes:
        sites: the layers with a kernel.
        reads, makes: int64[sites], how many channels each has left.
        macs_each, bytes_each: float64[sites], of one input and one output channel together.
        of: channel -> [(site, times among its inputs, times among its outputs)].
    """

    sites: list[Site]
    reads: np.ndarray
    makes: np.ndarray
    macs_each: np.ndarray
    bytes_each: np.ndarray
    of: dict[int, list[tuple[int, int, int]]] = field(default_factory=dict)

    def remove(self, channel: int) -> None:
        """Without this channel."""
        for site, reads, makes in self.of.get(channel, ()):
            self.reads[site] -= reads
            self.makes[site] -= makes

    def total(self, unit: Unit) -> int:
        """The sum over all kernels."""
        pairs = np.array([r if s.maker else 1 for s, r in zip(self.sites, self.reads, strict=True)]) * self.makes
        if unit == "macs":
            return int(np.rint(self.macs_each @ pairs))
        return int(np.rint(self.bytes_each @ pairs)) + BIAS_BYTES * int(self.makes.sum())


def ledger(channels: Channels, unit: Unit) -> Ledger:
    """The books of a whole model; open shapes are refused where multiplications count."""
    sites, of = channels.kernels, {}
    reads, makes = (np.array([len(getattr(s, name)) for s in sites], np.int64) for name in ("reads", "makes"))
    sizes = np.array([math.prod(getattr(s.op, s.held.kernel).shape) for s in sites], np.float64)
    # A kernel's weights for one input and one output channel (its positions); depthwise ones have no inputs of their
    # own.
    each = sizes / (makes * np.array([r if s.maker else 1 for s, r in zip(sites, reads, strict=True)]))
    places = [positions(channels.graph, s.calls) if unit == "macs" else 0 for s in sites]
    for number, site in enumerate(sites):
        inside: dict[int, list[int]] = {}
        for side, members in enumerate((site.reads, site.makes)):
            # A channel may be there several times: behind a Flatten once for each position, in a concatenation of a
            # tensor with itself.
            for channel, times in zip(*np.unique(members, return_counts=True), strict=True):
                inside.setdefault(int(channel), [0, 0])[side] = int(times)
        for channel, (as_input, as_output) in inside.items():
            of.setdefault(channel, []).append((number, as_input, as_output))
    return Ledger(sites, reads, makes, each * np.array(places), each, of)


def check_widths(**given: int) -> None:
    """Refuse limits of widths or ranks that are no whole numbers from 1 on.

    Args:
        **given: name of the argument -> its value.

    Raises:
        ValueError: names the argument.
    """
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name}: expected a whole number, 1 or more. Received: {value!r}.")


def widths_allowed(width: int, minimum: int, multiple: int) -> list[int]:
    """Numbers of channels that a group may be left with, most first.

    Example:
        >>> widths_allowed(20, 4, 8), widths_allowed(3, 4, 1)
        ([20, 16, 8], [3])
    """
    lower = [n for n in range(width - 1, 0, -1) if n % multiple == 0 and n >= minimum]
    return [width, *lower]


def choose(
    channels: Channels, scores: np.ndarray, limit: int, unit: Unit, *, minimum: int, multiple: int
) -> np.ndarray:
    """The channels that stay.

    Args:
        channels: of the model.
        scores: float64[channels], the least important lowest; NaN for those that stay.
        limit: of the budget.
        unit: "macs" or "weight_bytes".
        minimum: every layer keeps at least this many channels.
        multiple: widths that change become a multiple of this.

    Returns:
        bool[channels].

    Raises:
        ValueError: the budget cannot be met.
    """
    books, kept = ledger(channels, unit), np.ones(channels.count, bool)
    total = books.total(unit)
    queues, waiting = queues_of(channels, scores, minimum, multiple)
    for group in waiting:
        if total <= limit:
            break
        queue = queues[group]
        queue.asked += 1
        # One channel was asked for, and it may be that several go now: all that an allowed width waited for.
        while queue.leaves():
            leaving = queue.order[queue.gone]
            kept[leaving] = False
            books.remove(leaving)
            queue.gone += 1
        total = books.total(unit)
    if total > limit:
        raise ValueError(out_of_reach(channels, limit, total, unit, minimum, multiple))
    return kept


@dataclass
class Queue:
    """Channels of one group in the order in which they leave.

    Attributes:
        order: channels, least important first.
        width: of the group, with those that must stay.
        allowed: widths that it may have.
        asked, gone: how many were to leave, and how many have left.
    """

    order: list[int]
    width: int
    allowed: list[int]
    asked: int = 0
    gone: int = 0

    def leaves(self) -> bool:
        """One more leaves: the next allowed width is reached by those that were to leave."""
        # With multiples of 8, seven wait until the eighth is asked for.
        next_width = max((n for n in self.allowed if n < self.width - self.gone), default=None)
        return next_width is not None and self.width - self.asked <= next_width


def queues_of(channels: Channels, scores: np.ndarray, minimum: int, multiple: int) -> tuple[list[Queue], list[int]]:
    """A queue for each group, and the groups in which one channel after the other is least important."""
    queues, waiting = [], []
    for _, members in channels.groups():
        free = [int(c) for c in members if int(c) not in channels.fixed and not math.isnan(scores[c])]
        order = sorted(free, key=lambda c: (scores[c], c))
        fixed = len(members) - len(free)
        # Channels that must stay count among those that are left.
        allowed = [n for n in widths_allowed(len(members), minimum, multiple) if n >= fixed]
        waiting += [(scores[c], c, len(queues)) for c in order]
        queues.append(Queue(order, len(members), allowed))
    return queues, [group for _, _, group in sorted(waiting)]


def out_of_reach(channels: Channels, limit: int, left: int, unit: Unit, minimum: int, multiple: int) -> str:
    """The message about a budget below what the narrowest model needs."""
    reasons: dict[str, list[str]] = {}
    for site in channels.kernels:
        why = next((channels.fixed[int(c)] for c in site.makes if int(c) in channels.fixed), None)
        if why is not None and site.maker:
            reasons.setdefault(why, []).append(site.name)
    stays = "; ".join(f"{', '.join(names)}: {why}" for why, names in reasons.items())
    return (
        f"{channels.graph.name}: {limit:,} {unit} cannot be reached; the narrowest model has {left:,}, with at least "
        f"{minimum} channels in each layer and widths in multiples of {multiple}. Ask for more, or lower `minimum` or "
        f"`multiple`. Layers that keep their width: {stays or 'none'}."
    )


def savings(channels: Channels, unit: Unit) -> np.ndarray:
    """What each channel saves when it alone leaves: float64[channels]."""
    books = ledger(channels, unit)
    each, extra = (books.macs_each, 0) if unit == "macs" else (books.bytes_each, BIAS_BYTES)
    saved = np.zeros(channels.count)
    for channel, members in books.of.items():
        for site, as_input, as_output in members:
            reads, makes = int(books.reads[site]), int(books.makes[site])
            if books.sites[site].maker:
                # A channel that one kernel reads and makes (a convolution inside a residual addition) takes a row and a
                # column: their crossing counts once.
                saved[channel] += each[site] * (reads * makes - (reads - as_input) * (makes - as_output))
            else:
                saved[channel] += each[site] * as_output
            saved[channel] += extra * as_output
    return saved

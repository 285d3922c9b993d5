"""Channels of a float model: which of them are one and the same, who makes and reads them, which must stay and why.

A channel runs from the kernels that make it to the kernels that read it; an addition makes one channel of two, so that
all convolutions of a residual stage shrink together. Where a kernel's axes are is asked of the layer's rule, what other
operations do to channels of the operation itself (`follow`). Whatever is not understood keeps its channels.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kquant.core.checks import present
from kquant.graph.graph import Graph, Node
from kquant.ops.rule import Weights
from kquant.shrink.follow import channels_of, elementwise, pairing
from kquant.shrink.narrow import keeps_channels, kernel_of
from kquant.views.flat_copy import names_of


@dataclass(frozen=True, eq=False)
class Site:
    """A layer or operation, with the channels of its first input and of its output.

    Attributes:
        op: the layer or operation.
        calls: where it is called.
        weights: where its kernel is, None without one.
        reads, makes: int[n], the channel behind each index of the last axes.
        maker: it makes new channels (a depthwise convolution does not).
    """

    op: Any
    calls: tuple[Node, ...]
    weights: Weights | None
    reads: np.ndarray
    makes: np.ndarray
    maker: bool

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.op.name

    @property
    def held(self) -> Weights:
        """`weights`, of a layer with a kernel.

        Raises:
            ValueError: it has none.
        """
        return present(self.weights, f"{self.name}: no kernel is known of it.")


@dataclass(frozen=True, eq=False)
class Channels:
    """All channels of a model.

    Attributes:
        graph: of the model.
        sites: every layer and operation, in order.
        tensors: id(tensor) -> int[n], the channel behind each index of its last axis.
        fixed: channel -> why it must stay.
        count: channels are numbered below it.
    """

    graph: Graph
    sites: tuple[Site, ...]
    tensors: dict[int, np.ndarray]
    fixed: dict[int, str]
    count: int

    @property
    def kernels(self) -> list[Site]:
        """The sites with a kernel."""
        return [site for site in self.sites if site.weights is not None]

    def groups(self) -> list[tuple[tuple[Site, ...], np.ndarray]]:
        """(makers, channels) for every set of channels that the same kernels make, in the model's order."""
        makers: dict[int, list[int]] = {}
        for number, site in enumerate(self.sites):
            if site.maker:
                for channel in np.unique(site.makes):
                    makers.setdefault(int(channel), []).append(number)
        members_of: dict[tuple[int, ...], list[int]] = {}
        for channel, numbers in sorted(makers.items()):
            members_of.setdefault(tuple(numbers), []).append(channel)
        return [(tuple(self.sites[n] for n in key), np.array(members)) for key, members in sorted(members_of.items())]


@dataclass
class _Tie:
    """Numbers that turn out to be one and the same, and those that must stay."""

    parents: list[int] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)

    def fresh(self, count: int, reason: str | None = None) -> np.ndarray:
        """New channels, fixed where there is a reason."""
        new = np.arange(len(self.parents), len(self.parents) + count)
        self.parents.extend(new.tolist())
        if reason is not None:
            self.fix(new, reason)
        return new

    def root(self, i: int) -> int:
        """The number that stands for all that are one with `i`."""
        while self.parents[i] != i:
            # Path halving (Tarjan and van Leeuwen, JACM 31, 1984): each number on the way points two steps on from now
            # on.
            self.parents[i] = i = self.parents[self.parents[i]]
        return i

    def one(self, a: np.ndarray, b: np.ndarray) -> None:
        """Index by index the same."""
        for i, j in zip(a.tolist(), b.tolist(), strict=True):
            i, j = self.root(i), self.root(j)
            if i != j:
                low, high = min(i, j), max(i, j)
                # The lower one stands for both, so that channels stay in the order in which the model makes them.
                self.parents[high] = low
                # A reason to stay is kept under the number that stands for the channel; what one of the two had holds
                # for both.
                reason = self.reasons.get(low, self.reasons.pop(high, None))
                if reason is not None:
                    self.reasons[low] = reason

    def fix(self, channels: np.ndarray, reason: str, *, first: bool = True) -> None:
        """These stay; the first reason is remembered, unless a better one comes."""
        for i in channels.tolist():
            root = self.root(i)
            self.reasons[root] = self.reasons.get(root, reason) if first else reason

    def reason(self, channels: list[np.ndarray]) -> str:
        """The first that is known."""
        return next(self.reasons[self.root(i)] for many in channels for i in many.tolist())

    def fixed(self, channels: np.ndarray) -> bool:
        """All of them stay."""
        return all(self.root(i) in self.reasons for i in channels.tolist())


@dataclass
class _Follower:
    """What is known so far."""

    protect: Collection[str]
    tie: _Tie = field(default_factory=_Tie)
    tensors: dict[int, np.ndarray] = field(default_factory=dict)
    sites: dict[int, Site] = field(default_factory=dict)
    calls: dict[int, list[Node]] = field(default_factory=dict)
    known: dict[str, Any] = field(default_factory=dict)

    def visit(self, node: Node) -> None:
        """One call."""
        reads = [self.tensors.get(id(t), np.zeros(0, int)) for t in node.inputs]
        weights = kernel_of(node.op)
        if weights is not None:
            makes = self.kernel(node, weights, reads[0])
        else:
            makes = self.passed(node, reads)
        if makes is None:
            makes = self.stop(node, reads, f"{_said(node.op)} mixes channels in a way that is not followed")
        if node.name in self.protect:
            self.tie.fix(makes, "it is protected")
        for t in node.outputs:
            first = t is node.outputs[0]
            self.tensors[id(t)] = makes if first else self.tie.fresh(channels_of(t) or 0, "one of several outputs")
        self.note(node, weights, reads[0] if reads else np.zeros(0, int), makes)

    def kernel(self, node: Node, weights: Weights, reads: np.ndarray) -> np.ndarray | None:
        """Output channels of a layer with a kernel."""
        op, count = node.op, channels_of(node.outputs[0])
        shape = getattr(op, weights.kernel).shape
        if len(node.inputs) != 1 or count is None or shape[weights.input_axis] * _groups(op) != len(reads):
            return None
        reason = _unable(op)
        if reason is not None:
            return self.stop(node, [reads], reason)
        # A depthwise kernel keeps its input's channels, each as often as the multiplier says, and side by side: Keras'
        # order.
        makes = np.repeat(reads, count // len(reads)) if keeps_channels(weights, len(shape)) else self.tie.fresh(count)
        activation = getattr(op, "activation", None)
        if activation is not None and not elementwise(activation, count):
            name = getattr(activation, "__name__", activation)
            self.tie.fix(makes, f"{_said(op)} has the activation {name}, which mixes channels")
        return makes

    def passed(self, node: Node, reads: list[np.ndarray]) -> np.ndarray | None:
        """Output channels of an operation without a kernel, None where it mixes them."""
        if any(map(len, reads)) and all(map(self.tie.fixed, reads)):  # nothing to find out
            return self.tie.fresh(channels_of(node.outputs[0]) or 0, self.tie.reason(reads))
        pair = pairing(node, self.known)
        if pair is None:
            return None
        of: dict[int, int] = {}
        for numbers, channels in zip(pair.reads, reads, strict=True):
            if numbers is not None:
                for number, channel in zip(numbers.tolist(), channels.tolist(), strict=True):
                    # Equal numbers on several inputs are one channel from here on: what an addition adds can only leave
                    # together.
                    self.tie.one(np.array([of.setdefault(number, channel)]), np.array([channel]))
        return np.array([of[number] for number in pair.makes.tolist()])

    def stop(self, node: Node, reads: list[np.ndarray], reason: str) -> np.ndarray:
        """All that it reads stays, and what it makes too."""
        for channels in reads:
            self.tie.fix(channels, reason)
        return self.tie.fresh(channels_of(node.outputs[0]) or 0, reason)

    def note(self, node: Node, weights: Weights | None, reads: np.ndarray, makes: np.ndarray) -> None:
        """Remember the call; calls of one layer have the same channels."""
        calls = self.calls.setdefault(id(node.op), [])
        calls.append(node)
        site = self.sites.get(id(node.op))
        if site is None:
            maker = weights is not None and not keeps_channels(weights, len(getattr(node.op, weights.kernel).shape))
            site = Site(node.op, (node,), weights, reads, makes, maker)
            self.sites[id(node.op)] = site
            return
        for first, second in ((site.reads, reads), (site.makes, makes)):
            # A shared layer has one kernel: what it reads in one call are the channels that it reads in the other.
            if len(first) == len(second):
                self.tie.one(first, second)
            else:
                for channels in (first, second):
                    self.tie.fix(channels, f"{_said(node.op)} is shared by tensors of different widths")


def follow_channels(graph: Graph, protect: str | Collection[str] = ()) -> Channels:
    """The channels of a model that `plain` made.

    Args:
        graph: of the model.
        protect: name patterns of layers whose output keeps its width.

    Raises:
        ValueError: a protected layer is not there.
    """
    follower = _Follower(names_of(graph, protect))
    for t in graph.input_tensors:
        follower.tensors[id(t)] = follower.tie.fresh(channels_of(t) or 0, f"they are those of the input '{t.name}'")
    for node in graph.nodes:
        follower.visit(node)
    for t in graph.output_tensors:
        # Over any other reason: that nobody can change.
        follower.tie.fix(follower.tensors[id(t)], "they are outputs of the model", first=False)
    return _settled(graph, follower)


def _settled(graph: Graph, follower: _Follower) -> Channels:
    """Every channel under the number that stands for it."""
    tie = follower.tie
    # Only now all that is one is known to be.
    roots = np.array([tie.root(i) for i in range(len(tie.parents))], int)
    sites = tuple(
        Site(s.op, tuple(follower.calls[key]), s.weights, roots[s.reads], roots[s.makes], s.maker)
        for key, s in follower.sites.items()
    )
    tensors = {key: roots[channels] for key, channels in follower.tensors.items()}
    return Channels(graph, sites, tensors, dict(tie.reasons), len(roots))


def _said(op: Any) -> str:
    return f"{op.name} ({type(op).__name__})"


def _groups(op: Any) -> int:
    return int(getattr(op, "groups", 1) or 1)


def _unable(op: Any) -> str | None:
    """Why a layer with a kernel keeps its width, and that of its input."""
    if getattr(op, "data_format", "channels_last") == "channels_first":
        return f"{_said(op)} has its channels first"
    if _groups(op) > 1:
        return f"{_said(op)} has {op.groups} groups, which would have to stay of equal size"
    return None

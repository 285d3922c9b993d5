"""Structured pruning: channels leave, and the model that is left is a plain, smaller Keras model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import keras
import numpy as np

from kquant.calibration.data import gather
from kquant.core.callers import score_given
from kquant.core.checks import check_score
from kquant.core.progress import tqdm
from kquant.core.result import Result
from kquant.core.table import Table
from kquant.graph.given_model import check_keras
from kquant.graph.graph import Node, rewrite
from kquant.graph.output_names import as_keras
from kquant.shrink.by_score import Tried, choose_by_score
from kquant.shrink.channels import Channels, follow_channels
from kquant.shrink.choose import Unit, budget, check_widths, choose, ledger, savings
from kquant.shrink.importance import NAMES, Importance, by_bn_scale, by_l1, by_taylor, norm_behind
from kquant.shrink.labelled_data import labelled_batches, labelled_count, loss_of
from kquant.shrink.narrow import narrow_values, narrower
from kquant.shrink.reconstruct import FEW, Job, can_refit, refit
from kquant.views.flat_copy import inference_only, plain, read
from kquant.views.float_model import warn_lost_steps


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that only leave together with others of their number.

    Attributes:
        layers: that make them; an addition ties the channels of several layers.
        width: how many there are.
        macs: multiply-accumulates of these layers, None where shapes are open.
        removable: how many of them may leave.
        reason: why the others must stay, None where all may leave.
    """

    layers: tuple[str, ...]
    width: int
    macs: int | None
    removable: int
    reason: str | None


@dataclass(frozen=True, repr=False)
class ChannelGroups(Result):
    """What `kquant.channel_groups` found, in the model's order; `str` is a table."""

    groups: tuple[ChannelGroup, ...]

    def __repr__(self) -> str:
        able = sum(group.removable > 0 for group in self.groups)
        return f"ChannelGroups({able} of {len(self.groups)} groups of channels can get narrower)"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)

    @property
    def table(self) -> Table:
        """A line for each group."""
        columns = ("layers", "channels", "MACs", "may leave", "the others stay because")
        rows = tuple(
            (
                ", ".join(g.layers),
                str(g.width),
                "?" if g.macs is None else f"{g.macs:,}",
                str(g.removable),
                g.reason or "",
            )
            for g in self.groups
        )
        return Table("Channels", columns, rows, right=columns[1:4])

    def __str__(self) -> str:
        return str(self.table)


def channel_groups(model: keras.Model, *, protect: str | Collection[str] = ()) -> ChannelGroups:
    """Which layers can lose channels, which only together, and which not and why.

    Reads: `model` stays as it was.

    Args:
        model: a built float Keras model.
        protect: name patterns of layers whose output keeps its width.

    Returns:
        One group for each set of channels that the same layers make.

    Raises:
        ValueError: the model cannot be copied, or a protected layer is not there.

    Example:
        >>> x = inputs = keras.Input((8, 8, 3))
        >>> for name in ("a", "b"):
        ...     y = keras.layers.Conv2D(3, 3, padding="same", name=name)(x)
        ...     x = y if x is inputs else keras.layers.Add()([x, y])
        >>> y = keras.layers.Dense(2, name="head")(keras.layers.Flatten()(x))
        >>> print(kquant.channel_groups(keras.Model(inputs, y)))
        layers  channels  MACs    may leave  the others stay because
        a, b           3  10,368          3
        head           2     384          0  they are outputs of the model
    """
    check_keras(model, "channel_groups")
    channels = follow_channels(read(plain(model)), protect)
    try:
        books = ledger(channels, "macs")
        macs: dict[str, Any] = {
            s.name: int(each * m * (r if s.maker else 1))
            for s, each, m, r in zip(books.sites, books.macs_each, books.makes, books.reads, strict=True)
        }
    except ValueError:  # open shapes
        macs = {}
    groups = []
    for makers, members in channels.groups():
        reasons = [channels.fixed[int(c)] for c in members if int(c) in channels.fixed]
        names = tuple(s.name for s in makers)
        total = sum(macs[name] for name in names) if macs else None
        groups.append(ChannelGroup(names, len(members), total, len(members) - len(reasons), next(iter(reasons), None)))
    return ChannelGroups(tuple(groups))


def prune_channels(
    model: keras.Model,
    *,
    macs: float | None = None,
    weight_bytes: float | None = None,
    importance: Importance = "l1",
    data: Any = None,
    labels: Any = None,
    loss: Any = None,
    reconstruct: bool = True,
    evaluate: Callable[[keras.Model], float] | None = None,
    protect: str | Collection[str] = (),
    minimum: int = 4,
    multiple: int = 1,
    verbose: bool = True,
) -> keras.Model:
    """A smaller model without the least important channels: convolutions, Dense and all that hangs on them shrink.

    Copies: `model` stays as it was.

    Channels are ranked over the whole model and leave until the budget is met. Those that an addition or a
    multiplication ties together (residual blocks, squeeze-excite) leave together; layers that mix channels in ways that
    are not understood, and the model's inputs and outputs, keep their width (`kquant.channel_groups` says which). Then
    every layer that lost input channels is refitted on `data` so that it gives what it gave before:

        W', b' = argmin sum over samples of |y - (x' W' + b')|^2     y: of the whole model, x': of the smaller one

    Args:
        model: a built float Keras model.
        macs: the budget: multiply-accumulates to keep of those in convolutions and Dense, as a share (0.6) or, above 1,
            a number. One budget is to be given.
        weight_bytes: the budget: bytes of their weights in an int8 file, as a share or a number.
        importance: "l1" (size of the filters), "bn-scale" (size of the batch norms' gamma, for models trained with an
            L1 penalty on it) or "taylor" (what the loss would lose, for each
            MAC or byte saved; needs data with labels; the best where a few thousand labelled samples are at hand).
        data: representative samples, see `kquant.calibrate`; for "taylor" (x, y), unless `labels` is given.
        labels: of `data` where that is an array, float or int[samples, ...].
        loss: for "taylor", a Keras loss, its name or `(labels, outputs) -> value`; by default what the model is
            compiled with.
        reconstruct: refit weights; needs `data`, and is left out without.
        evaluate: `(keras model) -> float`, higher is better, called for some nine widths of each group alone, refitted
            on the first 256 of `data` where they are given. Widths are then those that lose least of it for what they
            save, and `importance` only says which channels of a group leave first.
        protect: name patterns of layers whose output keeps its width.
        minimum: channels that every layer keeps at least.
        multiple: widths that change become a multiple of this; kernels like 8 or 16.
        verbose: show progress and the new widths.

    Returns:
        A Functional model of plain layers with the same names, to be compiled and fine-tuned; nothing of kquant in it.

    Raises:
        ValueError: no budget or two, a budget out of reach, labels or loss missing, a score that is no number, or a
            model that cannot be copied.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(16, 3), keras.layers.Conv2D(8, 3),
        ...                           keras.layers.Flatten(), keras.layers.Dense(2)])
        >>> small = kquant.prune_channels(model, macs=0.5, verbose=False)
        >>> kquant.cost(small).macs <= 0.5 * kquant.cost(model).macs, small.output_shape
        (True, (None, 2))

    Sources: criteria, see `kquant.shrink.importance`; least squares, He et al., "Channel Pruning for Accelerating Very
    Deep Neural Networks", arXiv:1707.06168, section 3.1, equation 1, and 3.2.
    """
    ranked = Ranked(importance, data, labels, loss)
    return cut(model, Wanted(macs, weight_bytes, ranked, reconstruct, evaluate, protect, minimum, multiple, verbose))


@dataclass(frozen=True, eq=False)
class Ranked:
    """What channels are ranked by; see `prune_channels`."""

    importance: str
    data: Any
    labels: Any
    loss: Any


@dataclass(frozen=True, eq=False)
class Wanted:
    """Arguments of `prune_channels`."""

    macs: float | None
    weight_bytes: float | None
    ranked: Ranked
    reconstruct: bool
    evaluate: Callable[[keras.Model], float] | None
    protect: str | Collection[str]
    minimum: int
    multiple: int
    verbose: bool

    def check(self) -> None:
        """Refuse what can be refused before anything runs."""
        budget(self.macs, self.weight_bytes)
        check_widths(minimum=self.minimum, multiple=self.multiple)
        if self.evaluate is not None:
            check_score("prune_channels", self.evaluate)


# samples to refit on, None without; models, each by bool[channels] that stay -> number of each, what `evaluate` gave
Elsewhere = Callable[[Any, Sequence[np.ndarray]], Iterable[tuple[int, Any]]]


def cut(model: keras.Model, wanted: Wanted, elsewhere: Elsewhere | None = None) -> keras.Model:
    """See `prune_channels`.

    Args:
        model: see there.
        wanted: its other arguments.
        elsewhere: who judges the models; None: this process.
    """
    check_keras(model, "prune_channels")
    wanted.check()
    unit, share = budget(wanted.macs, wanted.weight_bytes)
    wide = plain(model)
    channels = follow_channels(read(wide), wanted.protect)
    whole = ledger(channels, unit).total(unit)
    limit = round(share * whole) if share <= 1 else int(share)
    ranks = _ranks(channels, wide, model, wanted.ranked, wanted.verbose)
    if wanted.ranked.importance == "taylor":  # a loss, so that the least for each MAC or byte saved leaves first
        ranks = ranks / np.maximum(savings(channels, unit), 1.0)
    samples = wanted.ranked.data if wanted.reconstruct else None
    widths: dict[str, Any] = {"minimum": wanted.minimum, "multiple": wanted.multiple}
    if wanted.evaluate is None:
        kept = choose(channels, ranks, limit, unit, **widths)
    else:
        few = None if samples is None else gather(wide, samples, FEW)
        here = trying(channels, few, wanted.evaluate).judged
        judge = here if elsewhere is None else partial(elsewhere, few)
        kept = choose_by_score(channels, ranks, limit, unit, partial(_scores, judge), **widths, verbose=wanted.verbose)
    small = smaller(channels, kept)
    if samples is not None:
        refit(channels.graph, small, _jobs(channels, kept), samples, verbose=wanted.verbose)
    if wanted.verbose:
        tqdm.write(_changes(channels, kept, unit, whole))
    warn_lost_steps(model, "prune_channels")
    return as_keras(small)


def smaller(channels: Channels, kept: np.ndarray) -> keras.Model:
    """The model with some of its channels.

    Args:
        channels: of the whole model.
        kept: bool[channels].

    Returns:
        A plain Functional model; its weights are those of the whole model that belong to these channels.
    """
    sites = {id(site.op): site for site in channels.sites}
    made: dict[int, Any] = {}

    def replace(node: Node, args: tuple, kwargs: dict) -> Any:
        site = sites[id(node.op)]
        if id(node.op) not in made:
            made[id(node.op)] = narrower(node.op, *_indices(site, kept))
        return made[id(node.op)](*args, **inference_only(kwargs))

    # Layers are built by being called, with the shapes of the smaller model; their values come after.
    model = rewrite(channels.graph, replace)
    for site in channels.sites:
        narrow_values(site.op, made[id(site.op)], *_indices(site, kept))
    return model


def trying(channels: Channels, few: Any, evaluate: Callable[[keras.Model], float]) -> Tried[np.ndarray]:
    """Judges models with some of the channels, which are masks of them.

    Args:
        channels: of the whole model.
        few: samples; None: nothing is refitted.
        evaluate: see `prune_channels`.
    """
    return Tried(channels.graph, partial(smaller, channels), partial(_jobs, channels), few, evaluate)


def _scores(
    judge: Callable[[Sequence[np.ndarray]], Iterable[tuple[int, Any]]], models: Sequence[np.ndarray]
) -> Iterator[tuple[int, float]]:
    """What the judge gave, as numbers."""
    for number, given in judge(models):
        kept = models[number]
        yield number, score_given("prune_channels", f"the model with {kept.sum()} of {kept.size} channels", given)


def _jobs(channels: Channels, kept: np.ndarray) -> list[Job]:
    """Layers that lost input channels."""
    jobs = []
    for site in channels.kernels:
        # One that lost outputs only gives what it gave on those that stay.
        if can_refit(site.op) and not np.all(kept[site.reads]):
            norm = norm_behind(channels.graph, site.calls)
            makes = kept[site.makes].nonzero()[0]
            jobs.append(Job(site.name, site.calls, makes, None if norm is None else norm.name))
    return jobs


def _indices(site: Any, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    return kept[site.reads].nonzero()[0], kept[site.makes].nonzero()[0], (len(site.reads), len(site.makes))


def _ranks(channels: Channels, wide: keras.Model, model: keras.Model, ranked: Ranked, verbose: bool) -> np.ndarray:
    importance, data, labels = ranked.importance, ranked.data, ranked.labels
    if importance == "l1":
        return by_l1(channels)
    if importance == "bn-scale":
        scores = by_bn_scale(channels)
        if np.all(np.isnan(scores)):
            raise ValueError(f"{model.name}: importance='bn-scale' reads gamma of batch norms, and the model has none.")
        return scores
    if importance != "taylor":
        raise ValueError(f"importance: expected one of {', '.join(NAMES)}. Received: {importance!r}.")
    computed = loss_of(model, ranked.loss)
    count = labelled_count(wide, data, labels)
    return by_taylor(channels, wide, lambda: labelled_batches(wide, data, labels), computed, verbose, count)


def _changes(channels: Channels, kept: np.ndarray, unit: Unit, whole: int) -> str:
    """A line for each group, and the budget."""
    books = ledger(channels, unit)
    for channel in np.flatnonzero(~kept):
        books.remove(int(channel))
    lines = []
    for makers, members in channels.groups():
        why = next((channels.fixed[int(c)] for c in members if int(c) in channels.fixed), None)
        stays = f"  ({why})" if why else ""
        lines.append(f"  {', '.join(s.name for s in makers)}: {len(members)} -> {int(kept[members].sum())}{stays}")
    left = books.total(unit)
    return "\n".join([f"{channels.graph.name}: {whole:,} -> {left:,} {unit} ({left / whole:.1%})", *lines])

"""Low-rank factorization: kernels split in two, ranks chosen for a budget.

Every layer alone is judged at candidate ranks, by what `evaluate` gives, its second half refitted where there are data,
or by the energy that is kept; `ranks` chooses among them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any

import keras
import numpy as np

from kquant.calibration.data import gather
from kquant.core.callers import score_given
from kquant.core.checks import check_score
from kquant.core.progress import tqdm
from kquant.graph.copies import again, copy_state, settle
from kquant.graph.given_model import check_keras
from kquant.graph.graph import Graph, Node, named_apart, rewrite
from kquant.graph.output_names import as_keras
from kquant.shrink.by_score import Scores, Tried, scored
from kquant.shrink.choose import Unit, budget, check_widths
from kquant.shrink.factors import as_wide_matrix, can_split, halves, singular_values, split
from kquant.shrink.importance import norm_behind
from kquant.shrink.kernel_cost import BIAS_BYTES, cost, positions
from kquant.shrink.narrow import kernel_of
from kquant.shrink.ranks import Candidate, cheapest_ranks, choose_ranks
from kquant.shrink.reconstruct import FEW, Job, refit
from kquant.views.flat_copy import inference_only, names_of, plain, read
from kquant.views.float_model import warn_lost_steps

STEPS = 10  # of each layer's cost


def factorize(
    model: keras.Model,
    *,
    macs: float | None = None,
    weight_bytes: float | None = None,
    ranks: Mapping[str, int] | None = None,
    data: Any = None,
    evaluate: Callable[[keras.Model], float] | None = None,
    protect: str | Collection[str] = (),
    multiple: int = 1,
    verbose: bool = True,
) -> keras.Model:
    """A model whose convolutions and Dense layers are split in two of low rank, where that saves most for least.

    Copies: `model` stays as it was.

    A `k x k` convolution becomes a `k x 1` one without bias and a `1 x k` one of its name; a Dense layer or a 1x1
    convolution becomes two of its kind. At full rank the function is the same to float rounding; the squared error of a
    kernel is the sum of the squared singular values that are left out.

    Args:
        model: a built float Keras model.
        macs: the budget: multiply-accumulates to keep of those in convolutions and Dense, as a share (0.6) or, above 1,
            a number. One budget, or `ranks`, is to be given.
        weight_bytes: the budget: bytes of their weights in an int8 file, as a share or a number.
        ranks: layer name -> rank, chosen by you; other layers stay whole.
        data: representative samples, see `kquant.calibrate`: every second half is refitted on them by least squares, so
            that it gives what the whole layer gave. Left out without.
        evaluate: `(keras model) -> float`, higher is better, called for some ten ranks of each layer alone, refitted on
            the first 256 of `data` where they are given; without it a layer is judged by the share of its kernel's
            squared norm that is kept.
        protect: name patterns of layers that stay whole.
        multiple: ranks become a multiple of this.
        verbose: show progress and the ranks.

    Returns:
        A Functional model of plain layers, to be compiled and fine-tuned; nothing of kquant in it.

    Raises:
        ValueError: no budget or two, one out of reach, unknown layers or ranks, a score that is no number, or a model
            that cannot be copied.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 4)), keras.layers.Conv2D(16, 3, name="conv")])
        >>> low = kquant.factorize(model, macs=0.5, verbose=False)
        >>> [(layer.name, tuple(layer.kernel.shape)) for layer in low.layers[1:]]
        [('conv_first', (3, 1, 4, 4)), ('conv', (1, 3, 4, 16))]

    Source: Jaderberg et al., "Speeding up Convolutional Neural Networks with Low Rank Expansions", arXiv:1405.3866,
    section 2.2; ranks, see `kquant.shrink.ranks`.
    """
    return split_up(model, Wanted(macs, weight_bytes, ranks, data, evaluate, protect, multiple, verbose))


@dataclass(frozen=True, eq=False)
class Wanted:
    """Arguments of `factorize`."""

    macs: float | None
    weight_bytes: float | None
    ranks: Mapping[str, int] | None
    data: Any
    evaluate: Callable[[keras.Model], float] | None
    protect: str | Collection[str]
    multiple: int
    verbose: bool

    def check(self) -> None:
        """Refuse what can be refused before anything runs."""
        check_widths(multiple=self.multiple)
        if self.evaluate is not None:
            check_score("factorize", self.evaluate)
        if self.ranks is None:
            budget(self.macs, self.weight_bytes)


# samples to refit on, None without; models, each by its ranks -> number of each, what `evaluate` gave for it
Elsewhere = Callable[[Any, Sequence[dict[str, int]]], Iterable[tuple[int, Any]]]


def split_up(model: keras.Model, wanted: Wanted, elsewhere: Elsewhere | None = None) -> keras.Model:
    """See `factorize`.

    Args:
        model: see there.
        wanted: its other arguments.
        elsewhere: who judges the models; None: this process.
    """
    check_keras(model, "factorize")
    wanted.check()
    ranks, verbose = wanted.ranks, wanted.verbose
    wide = plain(model)
    graph = read(wide)
    able = _able(graph, ranks or {}, names_of(graph, wanted.protect))
    if ranks is not None:
        if wanted.macs is not None or wanted.weight_bytes is not None:
            raise ValueError("factorize: either ranks or a budget is to be given. Received both.")
        chosen = _checked(ranks, able, graph)
    else:
        unit, share = budget(wanted.macs, wanted.weight_bytes)
        whole = getattr(cost(wide), unit)
        limit = round(share * whole) if share <= 1 else int(share)
        scores = None if wanted.evaluate is None else partial(_scores, _judge(wide, graph, wanted, elsewhere))
        ladders = _ladders(graph, able, unit, wanted.multiple, scores, verbose)
        # Of the budget what is left for layers that can be split: the others cost what they cost.
        limit += sum(ladder[-1].cost for ladder in ladders.values()) - whole
        chosen = (choose_ranks if scores is None else cheapest_ranks)(ladders, limit, graph.name)
    low = factorized(graph, chosen)
    if wanted.data is not None:
        refit(graph, low, _jobs(graph, chosen), wanted.data, verbose=verbose)
    if verbose:
        tqdm.write(_changes(wide, low, able, chosen))
    warn_lost_steps(model, "factorize")
    return as_keras(low)


def factorized(graph: Graph, ranks: Mapping[str, int]) -> keras.Model:
    """The model with some of its layers split, the others copied.

    Args:
        graph: of a model that `plain` made.
        ranks: layer name -> rank.
    """
    made: dict[int, Any] = {}
    taken = {node.name for node in graph.nodes} | {t.name for t in graph.input_tensors}

    def replace(node: Node, args: tuple, kwargs: dict) -> Any:
        op, kwargs = node.op, inference_only(kwargs)
        if id(op) not in made:
            made[id(op)] = halves(op, ranks[op.name]) if op.name in ranks else again(op)
            if op.name in ranks:
                # The second half has the layer's name; the first one's must be new.
                named_apart(made[id(op)][0], taken)
        if op.name not in ranks:
            return made[id(op)](*args, **kwargs)
        first, second = made[id(op)]
        return second(first(*args, **kwargs))

    model = rewrite(graph, replace)
    for op in {id(node.op): node.op for node in graph.nodes}.values():
        if op.name not in ranks:
            if isinstance(op, keras.layers.Layer):
                copy_state(op, made[id(op)])
            continue
        for layer, kernel in zip(made[id(op)], split(op.kernel.numpy(), ranks[op.name]), strict=True):
            layer.kernel.assign(kernel.astype(np.float32))
            settle(op, layer)
        # The first half has none: its sums are not the layer's, and a bias there would only pass through the second
        # kernel.
        if op.use_bias:
            made[id(op)][1].bias.assign(op.bias)
    return model


def _able(graph: Graph, named: Collection[str], protect: Collection[str]) -> dict[str, tuple[Node, ...]]:
    """Layer name -> calls, of those that can be split."""
    unknown = sorted(set(named) - {node.name for node in graph.nodes})
    if unknown:
        raise ValueError(
            f"{graph.name} has no layer {unknown}. It has: {', '.join(dict.fromkeys(n.name for n in graph.nodes))}."
        )
    calls = graph.calls.values()
    return {c[0].name: tuple(c) for c in calls if can_split(c[0].op) is None and c[0].name not in protect}


def _checked(ranks: Mapping[str, int], able: Mapping[str, Any], graph: Graph) -> dict[str, int]:
    ops = {node.name: node.op for node in graph.nodes}
    for name, rank in ranks.items():
        if name not in able:
            reason = can_split(ops[name]) or "it is protected"
            raise ValueError(f"{name} ({type(ops[name]).__name__}): it cannot be split, because {reason}.")
        full = full_rank(ops[name])
        if not isinstance(rank, Integral) or isinstance(rank, bool) or not 1 <= rank <= full:
            raise ValueError(f"{name}: its rank must be a whole number in 1..{full}. Received: {rank!r}.")
    return {name: int(rank) for name, rank in ranks.items()}


def full_rank(op: Any) -> int:
    """The rank at which the two halves are the whole layer."""
    return min(as_wide_matrix(op.kernel.numpy()).shape)


def _ladders(
    graph: Graph,
    able: Mapping[str, tuple[Node, ...]],
    unit: Unit,
    multiple: int,
    scores: Scores[dict[str, int]] | None,
    verbose: bool,
) -> dict[str, list[Candidate]]:
    """Candidates of each layer, cheapest first, the whole layer last."""
    costs = {name: _costs(graph, calls, unit) for name, calls in able.items()}
    ranks: dict[str, list[int]] = {}
    for name, (whole, each, extra) in costs.items():
        # Ranks whose two halves cost a tenth, two tenths, ... of the whole layer.
        steps = {int((whole * step / STEPS - extra) // each) // multiple * multiple for step in range(1, STEPS)}
        # The lowest rank too, so that every budget which can be met is. A rank that costs as much as the layer is no
        # gain.
        most = full_rank(able[name][0].op)
        ranks[name] = sorted(r for r in steps | {multiple} if 1 <= r <= most and each * r + extra < whole)
    if scores is None:
        uncut, values = float("inf"), [s for name, each in ranks.items() for s in _energies(able[name][0].op, each)]
    else:
        models = [{}, *({name: rank} for name, each in ranks.items() for rank in each)]
        uncut, *values = scored(models, scores, unit="rank", verbose=verbose)
    left, ladders = iter(values), {}
    for name, (whole, each, extra) in costs.items():
        split_ones = [Candidate(rank, each * rank + extra, next(left)) for rank in ranks[name]]
        ladders[name] = [*split_ones, Candidate(None, whole, uncut)]
    return ladders


def _energies(op: Any, ranks: Sequence[int]) -> list[float]:
    """|W_r|^2 / |W|^2 at each rank. A kernel of zeros loses nothing."""
    energy = np.cumsum(singular_values(op) ** 2)
    return [float(energy[r - 1] / energy[-1]) if energy[-1] else 1.0 for r in ranks]


def trying(graph: Graph, few: Any, evaluate: Callable[[keras.Model], float]) -> Tried[dict[str, int]]:
    """Judges models with some layers split, which are the ranks of these.

    Args:
        graph: of the whole model.
        few: samples; None: nothing is refitted.
        evaluate: see `factorize`.
    """
    return Tried(graph, partial(factorized, graph), partial(_jobs, graph), few, evaluate)


Judge = Callable[[Sequence[dict[str, int]]], Iterable[tuple[int, Any]]]


def _judge(wide: keras.Model, graph: Graph, wanted: Wanted, elsewhere: Elsewhere | None) -> Judge:
    """Here or elsewhere."""
    few = None if wanted.data is None else gather(wide, wanted.data, FEW)
    if elsewhere is not None:
        return partial(elsewhere, few)
    evaluate: Any = wanted.evaluate
    return trying(graph, few, evaluate).judged


def _scores(judge: Judge, models: Sequence[dict[str, int]]) -> Iterator[tuple[int, float]]:
    """What the judge gave, as numbers."""
    for number, given in judge(models):
        split = ", ".join(f"'{name}' at rank {rank}" for name, rank in models[number].items()) or "every layer whole"
        yield number, score_given("factorize", f"the model with {split}", given)


def _costs(graph: Graph, calls: Sequence[Node], unit: Unit) -> tuple[int, int, int]:
    """Of a whole layer, of each rank of its halves, and of the halves beside that."""
    op = calls[0].op
    kernel = op.kernel.shape
    rows, columns = as_wide_matrix(np.empty(kernel)).shape
    if unit == "weight_bytes":
        biases = BIAS_BYTES * kernel[-1]
        return int(np.prod(kernel)) + biases, rows + columns + BIAS_BYTES, biases
    # Strides along the height act in the first half: what lies between the halves is as high as the output, and as wide
    # as the input.
    first, _ = halves(op, 1)
    between = [first.compute_output_shape(call.inputs[0].shape) for call in calls]
    places = positions(graph, calls)
    inner = sum(int(np.prod(shape[1:-1], dtype=np.int64)) for shape in between)
    return places * int(np.prod(kernel)), inner * rows + places * columns, 0


def _jobs(graph: Graph, ranks: Mapping[str, int]) -> list[Job]:
    jobs = []
    for calls in graph.calls.values():
        op = calls[0].op
        # Causal padding is not written in rows of inputs (`can_refit`).
        if op.name in ranks and getattr(op, "padding", "valid") != "causal":
            norm = norm_behind(graph, calls)
            # All output channels: they are as many as before.
            makes = np.arange(op.kernel.shape[-1])
            jobs.append(Job(op.name, tuple(calls), makes, None if norm is None else norm.name))
    return jobs


def _changes(wide: keras.Model, low: keras.Model, able: Collection[str], ranks: Mapping[str, int]) -> str:
    """A line for each layer with a kernel, and what the model costs."""
    before, after = cost(wide), cost(low)
    weights = f"{before.weight_bytes:,} -> {after.weight_bytes:,} weight bytes"
    lines = [f"{wide.name}: {before.macs:,} -> {after.macs:,} MACs, {weights}"]
    for layer in wide.layers:
        if layer.name in ranks:
            lines.append(f"  {layer.name}: rank {ranks[layer.name]} of {full_rank(layer)}")
        elif kernel_of(layer) is not None:
            reason = "" if layer.name in able else f" ({can_split(layer) or 'it is protected'})"
            lines.append(f"  {layer.name}: whole{reason}")
    return "\n".join(lines)

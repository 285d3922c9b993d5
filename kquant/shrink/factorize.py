"""Low-rank factorization: kernels split in two, ranks chosen for a budget.

    1. score    every layer alone at every candidate rank: what `evaluate` gives, or the energy that is kept
    2. choose   the highest score s such that, with each layer at its cheapest candidate of score >= s, the budget holds
    3. spend    what is left of the budget on the layers with the lowest scores

Greedy selection by a common lowest score is that of AIMET's spatial SVD (user guide, "Greedy Compression Ratio
Selection"): a ladder of ten steps of cost for each layer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from tqdm.auto import tqdm

from kquant.core.graph import Graph, Node, rewrite
from kquant.shrink.choose import Unit, budget, check_widths
from kquant.shrink.cost import BIAS_BYTES, cost, positions
from kquant.shrink.factors import as_wide_matrix, can_split, halves, singular_values, split
from kquant.shrink.importance import norm_behind
from kquant.shrink.narrow import kernel_of
from kquant.shrink.plain import again, copy_values, inference_only, named_apart, plain, read, settle
from kquant.shrink.reconstruct import Job, refit

STEPS = 10  # of each layer's cost


@dataclass(frozen=True)
class Candidate:
    """A layer at one rank.

    Attributes:
        rank: channels between the halves; None for the layer as it is.
        cost: in the budget's unit.
        score: the higher, the better; infinite for the layer as it is.
    """

    rank: int | None
    cost: int
    score: float


def factorize(
    model: keras.Model,
    *,
    macs: float | None = None,
    weight_bytes: float | None = None,
    ranks: Mapping[str, int] | None = None,
    data: Any = None,
    evaluate: Callable[[keras.Model], float] | None = None,
    protect: Collection[str] = (),
    multiple: int = 1,
    verbose: bool = True,
) -> keras.Model:
    """A model whose convolutions and Dense layers are split in two of low rank, where that saves most for least.

    A `k x k` convolution becomes a `k x 1` one without bias and a `1 x k` one of its name; a Dense layer or a 1x1
    convolution becomes two of its kind. At full rank the function is the same to float rounding; the squared error of a
    kernel is the sum of the squared singular values that are left out.

    Args:
        model: a built float Keras model; it is not changed.
        macs: the budget: multiply-accumulates to keep of those in convolutions and Dense, as a share (0.6) or, above 1,
            a number. One budget, or `ranks`, is to be given.
        weight_bytes: the budget: bytes of their weights in an int8 file, as a share or a number.
        ranks: layer name -> rank, chosen by you; other layers stay whole.
        data: representative samples, see `kquant.calibrate`: every second half is refitted on them by least squares, so
            that it gives what the whole layer gave. Left out without.
        evaluate: `(keras model) -> float`, higher is better, called for some ten ranks of each layer alone; without it
            a layer is judged by the share of its kernel's squared norm that is kept.
        protect: names of layers that stay whole.
        multiple: ranks become a multiple of this.
        verbose: show progress and the ranks.

    Returns:
        A Functional model of plain layers, to be compiled and fine-tuned; nothing of kquant in it.

    Raises:
        ValueError: no budget or two, one out of reach, unknown layers or ranks, or a model that cannot be copied.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 4)), keras.layers.Conv2D(16, 3, name="conv")])
        >>> low = kquant.factorize(model, macs=0.5, verbose=False)
        >>> [(layer.name, tuple(layer.kernel.shape)) for layer in low.layers[1:]]
        [('conv_first', (3, 1, 4, 4)), ('conv', (1, 3, 4, 16))]

    Source: Jaderberg et al., "Speeding up Convolutional Neural Networks with Low Rank Expansions", arXiv:1405.3866,
    section 2.2; ranks as AIMET chooses them.
    """
    check_widths(multiple=multiple)
    wide = plain(model)
    graph = read(wide)
    able = _able(graph, {*protect, *(ranks or {})}, protect)
    if ranks is not None:
        if macs is not None or weight_bytes is not None:
            raise ValueError("factorize: either ranks or a budget is to be given. Received both.")
        chosen = _checked(ranks, able, graph)
    else:
        unit, share = budget(macs, weight_bytes)
        whole = getattr(cost(wide), unit)
        limit = round(share * whole) if share <= 1 else int(share)
        ladders = _ladders(graph, able, unit, multiple, evaluate, verbose)
        chosen = choose_ranks(ladders, limit - whole + sum(ladder[-1].cost for ladder in ladders.values()), graph.name)
    low = factorized(graph, chosen)
    if data is not None:
        refit(graph, low, _jobs(graph, chosen), data, verbose=verbose)
    if verbose:
        tqdm.write(_changes(wide, low, able, chosen))
    return low


def factorized(graph: Graph, ranks: Mapping[str, int]) -> keras.Model:
    """The model with some of its layers split, the others copied.

    Args:
        graph: of a model that `plain` made.
        ranks: layer name -> rank.
    """
    made: dict[int, Any] = {}
    taken = {node.name for node in graph.nodes} | {t.name for t in keras.tree.flatten(graph.inputs)}

    def replace(node: Node, args: tuple, kwargs: dict) -> Any:
        op, kwargs = node.op, inference_only(kwargs)
        if id(op) not in made:
            made[id(op)] = halves(op, ranks[op.name]) if op.name in ranks else again(op)
            if op.name in ranks:
                named_apart(made[id(op)][0], taken)
        if op.name not in ranks:
            return made[id(op)](*args, **kwargs)
        first, second = made[id(op)]
        return second(first(*args, **kwargs))

    model = rewrite(graph, replace)
    for op in {id(node.op): node.op for node in graph.nodes}.values():
        if op.name not in ranks:
            copy_values(op, made[id(op)])
            continue
        for layer, kernel in zip(made[id(op)], split(op.kernel.numpy(), ranks[op.name]), strict=True):
            layer.kernel.assign(kernel.astype(np.float32))
            settle(op, layer)
        if op.use_bias:
            made[id(op)][1].bias.assign(op.bias)
    return model


def choose_ranks(ladders: Mapping[str, Sequence[Candidate]], limit: int, name: str = "model") -> dict[str, int]:
    """A rank for each layer that is split, so that the sum of costs is within a limit.

    Args:
        ladders: layer name -> candidates, cheapest first, the whole layer last.
        limit: of the sum of their costs.
        name: of the model, for the message.

    Returns:
        Layer name -> rank; layers that stay whole are left out.

    Raises:
        ValueError: the limit is below the sum of the cheapest.

    Example:
        >>> whole = Candidate(None, 100, float("inf"))
        >>> choose_ranks({"a": [Candidate(2, 20, 0.5), whole], "b": [Candidate(4, 40, 0.9), whole]}, 150)
        {'b': 4}
    """
    ladders = {key: _rising(ladder) for key, ladder in ladders.items()}
    least = sum(ladder[0].cost for ladder in ladders.values())
    if least > limit:
        raise ValueError(
            f"{name}: this budget cannot be reached by splitting layers: those that can be split may cost {limit:,} "
            f"together, and cost {least:,} at their lowest ranks. Ask for more, or use kquant.prune_channels too."
        )
    scores = sorted({c.score for ladder in ladders.values() for c in ladder}, reverse=True)
    taken: dict[Any, int] = {}
    for lowest in scores:
        taken = {key: next(i for i, c in enumerate(ladder) if c.score >= lowest) for key, ladder in ladders.items()}
        if sum(ladders[key][i].cost for key, i in taken.items()) <= limit:
            break
    _spend(ladders, taken, limit)
    found = {key: ladders[key][i].rank for key, i in taken.items()}
    return {key: rank for key, rank in found.items() if rank is not None}


def _rising(ladder: Sequence[Candidate]) -> list[Candidate]:
    """Without candidates that cost more than another and score no better."""
    kept: list[Candidate] = []
    for candidate in ladder:
        if not kept or candidate.score > kept[-1].score:
            kept.append(candidate)
    return kept


def _spend(ladders: Mapping[str, Sequence[Candidate]], taken: dict[str, int], limit: int) -> None:
    """One step up for the layer that has the lowest score, while the limit allows it for any."""
    while True:
        left = limit - sum(ladders[key][i].cost for key, i in taken.items())
        able = [
            (ladders[key][i].score, key)
            for key, i in taken.items()
            if i + 1 < len(ladders[key]) and ladders[key][i + 1].cost - ladders[key][i].cost <= left
        ]
        if not able:
            return
        taken[min(able)[1]] += 1


def _able(graph: Graph, named: Collection[str], protect: Collection[str]) -> dict[str, tuple[Node, ...]]:
    """Layer name -> calls, of those that can be split."""
    unknown = sorted(set(named) - {node.name for node in graph.nodes})
    if unknown:
        raise ValueError(
            f"{graph.name} has no layer {unknown}. It has: {', '.join(dict.fromkeys(n.name for n in graph.nodes))}."
        )
    calls = graph.calls().values()
    return {c[0].name: tuple(c) for c in calls if can_split(c[0].op) is None and c[0].name not in protect}


def _checked(ranks: Mapping[str, int], able: Mapping[str, Any], graph: Graph) -> dict[str, int]:
    ops = {node.name: node.op for node in graph.nodes}
    for name, rank in ranks.items():
        if name not in able:
            reason = can_split(ops[name]) or "it is protected"
            raise ValueError(f"{name} ({type(ops[name]).__name__}): it cannot be split, because {reason}.")
        full = full_rank(ops[name])
        if not 1 <= rank <= full:
            raise ValueError(f"{name}: its rank must be in 1..{full}. Received: {rank}.")
    return dict(ranks)


def full_rank(op: Any) -> int:
    """The rank at which the two halves are the whole layer."""
    return min(as_wide_matrix(op.kernel.numpy()).shape)


def _ladders(
    graph: Graph,
    able: Mapping[str, tuple[Node, ...]],
    unit: Unit,
    multiple: int,
    evaluate: Callable[[keras.Model], float] | None,
    verbose: bool,
) -> dict[str, list[Candidate]]:
    """Candidates of each layer, cheapest first, the whole layer last."""
    found: dict[str, list[Candidate]] = {}
    for name, calls in tqdm(able.items(), desc="ranks", unit="layer", disable=not verbose):
        whole, each, extra = _costs(graph, calls, unit)
        steps = {int((whole * step / STEPS - extra) // each) // multiple * multiple for step in range(1, STEPS)}
        ranks = sorted(r for r in steps | {multiple} if 1 <= r <= full_rank(calls[0].op) and each * r + extra < whole)
        if evaluate is None:
            energy = np.cumsum(singular_values(calls[0].op) ** 2)
            scores = [float(energy[r - 1] / energy[-1]) if energy[-1] else 1.0 for r in ranks]
        else:
            scores = [float(evaluate(factorized(graph, {name: r}))) for r in ranks]
        split_ones = [Candidate(r, each * r + extra, s) for r, s in zip(ranks, scores, strict=True)]
        found[name] = [*split_ones, Candidate(None, whole, float("inf"))]
    return found


def _costs(graph: Graph, calls: Sequence[Node], unit: Unit) -> tuple[int, int, int]:
    """Of a whole layer, of each rank of its halves, and of the halves beside that."""
    op = calls[0].op
    kernel = op.kernel.shape
    rows, columns = as_wide_matrix(np.empty(kernel)).shape
    if unit == "weight_bytes":
        biases = BIAS_BYTES * kernel[-1]
        return int(np.prod(kernel)) + biases, rows + columns + BIAS_BYTES, biases
    first, _ = halves(op, 1)
    between = [first.compute_output_shape(call.inputs[0].shape) for call in calls]
    places = positions(graph, calls)
    inner = sum(int(np.prod(shape[1:-1], dtype=np.int64)) for shape in between)
    return places * int(np.prod(kernel)), inner * rows + places * columns, 0


def _jobs(graph: Graph, ranks: Mapping[str, int]) -> list[Job]:
    found = []
    for calls in graph.calls().values():
        op = calls[0].op
        if op.name in ranks and getattr(op, "padding", "valid") != "causal":
            norm = norm_behind(graph, calls)
            makes = np.arange(op.kernel.shape[-1])
            found.append(Job(op.name, tuple(calls), makes, None if norm is None else norm.name))
    return found


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

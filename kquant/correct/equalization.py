"""Cross-layer equalization: a factor moves from a channel's weights to those that read it, and the function stays.

    y' = s y    W1' = s W1 (output channels), b1' = s b1    W2' = W2 / s (input channels)

holds wherever what lies between is positively homogeneous (nothing, ReLU, pools, ...). With r1, r2 the largest weights
of a channel in both layers, `s = sqrt(r2 / r1)` makes the two equal; it goes through all pairs until nothing moves.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv:1906.04721,
section 4.1 (its s is the reciprocal of the one here).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kquant.calibration.data import batches_of, refuse_endless
from kquant.core.messages import first_of, warn
from kquant.core.progress import tqdm
from kquant.core.renamed import renamed
from kquant.correct.absorb import absorb_biases
from kquant.correct.chains import Pair, find_pairs
from kquant.correct.channels import largest, numbering
from kquant.correct.clipped import Extremes, extremes_of, limits_of, replace_clips
from kquant.graph.given_model import check_keras
from kquant.layers.nodes import FakeQuant
from kquant.views.quantized_model import Place, forget_graphs, read
from kquant.views.recipe_steps import step_done

STILL = 1e-5  # a sweep whose factors all lie this near to 1 (log2) is the last one
TOUCH = 1e-3  # a pair whose factors all lie this near to 1 (log2) stays as it is
MOST = 1e8  # jakc4103/DFQ: no factor beyond this
DEAD = 1e-10  # of the largest product of a channel's two ranges
SMALL = 1e-6
ITERATIONS = 1000  # long chains settle slowly: 27 layers take 700
Limits = tuple[np.ndarray, np.ndarray]  # smallest and largest factor of each channel


@dataclass(frozen=True, eq=False)
class Step:
    """What equalization does to one pair.

    Attributes:
        pair: the two layers.
        factors: float64[channels of the first], what its outputs are multiplied by.
        used: share of the layer's grid that an average channel uses, `mean(r) / max(r)`: of the first and the second
            layer, before and after.
        note: what could not be moved, and why.
    """

    pair: Pair
    factors: np.ndarray
    used: tuple[float, float, float, float]
    note: str = ""

    @property
    def moves(self) -> bool:
        """True where a factor differs from 1."""
        return bool(np.any(np.abs(np.log2(self.factors)) > TOUCH))


class ForgottenRanges(UserWarning):
    """Ranges have to be found anew; who does that next, or says so in other words, ignores it."""


@dataclass(frozen=True, eq=False)
class Equalization:
    """What `equalize` would do to a model; printed, a line for each pair.

    Attributes:
        steps: of each pair.
        ends: layer -> why no pair begins with it.
        sweeps: how many it took until nothing moved.
    """

    steps: tuple[Step, ...]
    ends: dict[str, str]
    sweeps: int

    def __str__(self) -> str:
        """A table for people."""
        lines = [f"equalize: {len(self.steps)} pairs, {self.sweeps} sweeps; share of the grid that a channel uses"]
        for step in self.steps:
            a, b, c, d = (f"{100 * share:5.1f}" for share in step.used)
            span = f"factors {step.factors.min():.3g} to {step.factors.max():.3g}" if step.moves else "stays"
            lines.append(f"  {step.pair.name}: {a} -> {b} %, {c} -> {d} %, {span}{'; ' * bool(step.note)}{step.note}")
        lines += [f"  {name} begins no pair: {reason}" for name, reason in self.ends.items()]
        return "\n".join(lines)


@renamed
def equalize(
    qmodel: keras.Model,
    data: Any = None,
    *,
    absorb: bool = False,
    replace_relu6: bool = False,
    powers_of_two: bool = False,
    iterations: int = ITERATIONS,
    limit: int | None = None,
    batch_size: int = 32,
    verbose: bool = True,
) -> keras.Model:
    """Give the channels of layers that follow each other equal weight ranges; the float function stays as it is.

    In place: changes `qmodel` and returns it.

    It helps where one scale holds for a whole kernel, and costs nothing at inference. Ranges of the activations inside
    the pairs are forgotten: calibrate afterwards, with data or with `kquant.data_free_ranges`.

    Args:
        qmodel: what `kquant.quantize` returned.
        data: see `kquant.calibrate`; optional, tells which channels of a ReLU6 never reach 6.
        absorb: move what a ReLU always lets through, `c = max(0, mean - 3 deviation)`, into the next bias, where no
            zero padding comes between (see `kquant.correct.absorb`). One value in 740 of a channel falls below it
            where its batch norm knows it well, so this changes the float function a little.
        replace_relu6: make clipped ReLUs plain ones first. This changes the function; the report says by how much.
        powers_of_two: round the factors to powers of two, so that the float function stays the same to the bit; ranges
            of a pair then differ by up to a factor of 2.
        iterations: sweeps over all pairs at most.
        limit: use this many samples only, the first ones.
        batch_size: for arrays.
        verbose: print a line for each pair.

    Returns:
        `qmodel`.

    Raises:
        ValueError: not a quantized model, or data without an end.

    Example:
        >>> layers = [keras.layers.Dense(8, activation="relu"), keras.layers.Dense(3)]
        >>> q = kquant.quantize(keras.Sequential([keras.Input((4,)), *layers]))
        >>> q = kquant.calibrate(kquant.equalize(q, verbose=False), np.ones((64, 4), "float32"), verbose=False)
    """
    check_keras(qmodel, "equalize")
    graph = read(qmodel)
    if limit is None:
        refuse_endless(data)
    pairs, _ = find_pairs(graph)
    samples = None if data is None else lambda: batches_of(qmodel, data, batch_size, limit)
    seen = extremes_of(graph, pairs, samples)
    if replace_relu6:
        replace_clips(graph, pairs, samples, verbose)
    # Reads the model once more: ReLUs that were clipped are plain by now.
    plan = plan_equalization(qmodel, seen=seen, powers_of_two=powers_of_two, iterations=iterations, verbose=verbose)
    _apply([step for step in plan.steps if step.moves])
    changed = [step.pair for step in plan.steps if step.moves]
    if absorb:
        # After the factors: what a channel lets through is that many times as large.
        changed += absorb_biases([step.pair for step in plan.steps], _scaled(seen, plan), verbose=verbose)
    forget_ranges([node for pair in changed for node in pair.quantizers])
    if verbose:
        print(plan)
    forget_graphs(qmodel)
    return step_done(qmodel, "equalize")


def plan_equalization(
    qmodel: keras.Model,
    data: Any = None,
    *,
    seen: dict[str, Extremes] | None = None,
    powers_of_two: bool = False,
    iterations: int = ITERATIONS,
    verbose: bool = False,
) -> Equalization:
    """What `equalize` would do, without doing it.

    Args:
        qmodel: what `kquant.quantize` returned; it is not changed.
        data: see `equalize`.
        seen: extremes of layers by name, in place of `data`.
        powers_of_two: see `equalize`.
        iterations: sweeps over all pairs at most.
        verbose: show a progress bar.

    Returns:
        The factors of every pair; printed, a table.

    Raises:
        ValueError: not a quantized model.

    Example:
        >>> layers = [keras.layers.Dense(8, activation="relu"), keras.layers.Dense(3)]
        >>> q = kquant.quantize(keras.Sequential([keras.Input((4,)), *layers]))
        >>> [step.pair.second.name for step in plan_equalization(q).steps] == [q.layers[-2].name]
        True
    """
    graph = read(qmodel)
    pairs, ends = find_pairs(graph)
    samples = None if data is None else lambda: batches_of(qmodel, data)
    seen = extremes_of(graph, pairs, samples) if seen is None else seen
    limits = [limits_of(pair, seen.get(pair.first.name)) for pair in pairs]
    state = _State(pairs)
    before = state.used()
    sweeps = 0
    with tqdm(total=iterations, desc="equalize", unit="sweep", disable=not verbose, leave=False) as bar:
        while sweeps < iterations:
            sweeps += 1
            bar.update()
            if not state.sweep(limits):
                break
    state.shrink_dead(limits)
    if powers_of_two:
        state.round_factors()
    steps = [
        Step(pair, state.factors[i], (a, c, b, d), _note(limits[i]))
        for i, (pair, (a, b), (c, d)) in enumerate(zip(pairs, before, state.used(), strict=True))
    ]
    return Equalization(tuple(steps), ends, sweeps)


class _State:
    """Magnitudes of the kernels while factors move; float64, with all axes reduced that number no channel."""

    def __init__(self, pairs: list[Pair]) -> None:
        self.pairs = pairs
        self.factors = [np.ones(int(pair.first.calls[0].outputs[0].shape[-1])) for pair in pairs]
        self.numbers: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.sizes: dict[int, np.ndarray] = {}
        for place in {id(p.layer): p for pair in pairs for p in (pair.first, pair.second)}.values():
            makes, reads = numbering(place)
            # A factor is one for all positions of a kernel, so that the largest magnitude of them is all that sweeps
            # need.
            free = tuple(a for a in range(makes.ndim) if makes.shape[a] == 1 == reads.shape[a])
            weights = np.abs(place.layer.weights_as_used().numpy().astype(np.float64))
            self.numbers[id(place.layer)] = (makes, reads)
            self.sizes[id(place.layer)] = weights.max(axis=free, keepdims=True)

    def ranges(self, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
        """The largest weight that makes, and that reads, each channel of the pair."""
        first, second = id(pair.first.layer), id(pair.second.layer)
        count = self.factors[self.pairs.index(pair)].size
        makes = largest(self.sizes[first], self.numbers[first][0], count)
        reads = largest(self.sizes[second], self.numbers[second][1], pair.channels.size)
        # Behind a Flatten several inputs of the second layer are one channel of the first.
        return makes, largest(reads, pair.channels, count)

    def used(self) -> list[tuple[float, float]]:
        """For each pair the share of the grid that an average channel of either layer uses."""
        return [(_share(a), _share(b)) for a, b in map(self.ranges, self.pairs)]

    def sweep(self, limits: list[Limits | None]) -> bool:
        """Every pair once, `s = sqrt(reads / makes)`; False when nothing moved."""
        moved = 0.0
        for i, pair in enumerate(self.pairs):
            makes, reads = self.ranges(pair)
            # makes s = reads / s: both have the range sqrt(makes reads) then.
            ratio = np.divide(reads, makes, out=np.ones_like(makes), where=alive(makes, reads))
            moved = max(moved, self.towards(i, np.sqrt(ratio), limits[i]))
        return moved > STILL

    def shrink_dead(self, limits: list[Limits | None]) -> None:
        """A channel without weights is a constant, or read by nobody.

        Equal ranges would give it an enormous factor, and its bias with it. It becomes as small as the second layer's
        range allows, its own weights not below `SMALL` of the first layer's; the last pair comes first, because each
        looks at the weights behind it.
        """
        for i, pair in reversed(list(enumerate(self.pairs))):
            makes, reads = self.ranges(pair)
            living = alive(makes, reads)
            if living.any():
                dead, least = ~living & (reads > 0), SMALL * makes[living].max()
                floor = np.divide(least, makes, out=np.zeros_like(makes), where=makes > least / 2)
                smallest = np.maximum(reads / reads[living].max(), floor)
                self.towards(i, np.where(dead, smallest, 1.0), limits[i])

    def towards(self, i: int, step: np.ndarray, limits: Limits | None) -> float:
        """Multiply the channels of a pair as far as its limits go; log2 of the largest factor."""
        low, high = limits or (0.0, np.inf)
        # What is limited is the factor as a whole, over all sweeps.
        step = np.clip(np.clip(step * self.factors[i], 1.0 / MOST, MOST), low, high) / self.factors[i]
        self.move(i, step)
        return float(np.abs(np.log2(step)).max())

    def move(self, i: int, step: np.ndarray) -> None:
        """Multiply the channels of a pair."""
        pair = self.pairs[i]
        first, second = id(pair.first.layer), id(pair.second.layer)
        self.sizes[first] = self.sizes[first] * step[self.numbers[first][0]]
        self.sizes[second] = self.sizes[second] / step[pair.channels][self.numbers[second][1]]
        self.factors[i] = self.factors[i] * step

    def round_factors(self) -> None:
        """The nearest powers of two; towards 1 where a limit holds (never beyond what was allowed)."""
        for i, factors in enumerate(self.factors):
            logs = np.log2(factors)
            # Truncated, a factor stays within its limits; a little is added first, as a power of two may have come out
            # just below itself.
            exponents = np.rint(logs) if self.pairs[i].clip is None else np.trunc(logs + np.sign(logs) * STILL)
            self.move(i, np.exp2(exponents) / factors)


def alive(makes: np.ndarray, reads: np.ndarray) -> np.ndarray:
    """Channels whose weights are not as good as 0 in either layer.

    Args:
        makes: float64[channels], the largest weight that makes each channel.
        reads: float64[channels], the largest weight that reads it.

    Example:
        >>> alive(np.array([4.0, 1.0, 1e-20]), np.array([1.0, 4.0, 2.0])).tolist()
        [True, True, False]
    """
    product = makes * reads
    return product > DEAD * product.max(initial=0.0)


def _share(ranges: np.ndarray) -> float:
    return float(ranges.mean() / ranges.max()) if ranges.max() > 0 else 1.0


def _note(limits: Limits | None) -> str:
    if limits is None:
        return ""
    held = int(np.sum(limits[0] == limits[1]))
    return f"clipped ReLU: {held} of {limits[0].size} channels may reach the clip and stay"


def _scaled(seen: dict[str, Extremes], plan: Equalization) -> dict[str, Extremes]:
    """Extremes after the factors."""
    factors = {step.pair.first.name: step.factors for step in plan.steps if step.moves}
    return {k: Extremes(e.low * factors[k], e.high * factors[k]) if k in factors else e for k, e in seen.items()}


def _apply(steps: list[Step]) -> None:
    """New weights are computed first, and stored when all are there."""
    layers = {id(p.layer): p for step in steps for p in (step.pair.first, step.pair.second)}
    of_kernel = {key: np.ones(()) for key in layers}
    of_output: dict[int, np.ndarray] = {}
    for step in steps:
        first, second = step.pair.first, step.pair.second
        of_output[id(first.layer)] = step.factors
        if first.layer.norm is None:  # a live batch norm takes the factors itself
            of_kernel[id(first.layer)] = of_kernel[id(first.layer)] * step.factors[numbering(first)[0]]
        reads = step.factors[step.pair.channels][numbering(second)[1]]
        # Collected, since a layer in a chain is the second of one pair and the first of the next: its kernel is written
        # once.
        of_kernel[id(second.layer)] = of_kernel[id(second.layer)] / reads
    stored = []
    for key, place in layers.items():
        stored += _kernel_changes(place, of_kernel[key])
        if key in of_output:
            stored += _output_changes(place, of_output[key])
    for variable, value in stored:
        variable.assign(value)
    for place in layers.values():
        # A range that data chose was that of other weights; calibration may set the next one.
        place.layer.reach_by_data = False
        place.layer.forget_learned()


def _kernel_changes(place: Place, factors: np.ndarray) -> list[tuple[Any, np.ndarray]]:
    """The kernel times its factors; what was chosen for the old one no longer fits."""
    layer = place.layer
    kernel = getattr(layer.layer, layer.kernel_name)
    changes = [(kernel, (kernel.numpy().astype(np.float64) * factors).astype(np.float32))]
    return changes + [(v, np.zeros(v.shape, np.float32)) for v in (layer.reach, layer.rounding) if v is not None]


def _output_changes(place: Place, factors: np.ndarray) -> list[tuple[Any, np.ndarray]]:
    layer = place.layer
    bias = getattr(layer.layer, layer.bias_name, None) if layer.bias_name else None
    # A live norm divides by the deviation of its batch, so that factors of the kernel would cancel: they go behind it.
    made = [bias] if layer.norm is None else [layer.norm.gamma, layer.norm.beta]
    scaled = [v for v in (*made, layer.shift, layer.mean, layer.deviation) if v is not None]
    return [(v, (v.numpy().astype(np.float64) * factors).astype(np.float32)) for v in scaled]


def forget_ranges(quantizers: list[FakeQuant]) -> None:
    """Ranges that were those of other numbers count as unseen, so that calibration is asked for again."""
    known = [q for q in {id(q): q for q in quantizers}.values() if np.any(q.count.numpy())]
    for layer in known:
        layer.forget_range()
    if known:
        warn(
            f"equalize: the ranges of {first_of(q.name for q in known)} were "
            "those of the old channels; calibrate again, with kquant.calibrate or kquant.data_free_ranges.",
            ForgottenRanges,
        )

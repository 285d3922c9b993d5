"""`kquant.scan_sparsity`: what pruning each layer alone costs, and from it a sparsity for each layer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kquant.analysis.sqnr import decibel, noises_of
from kquant.calibration.data import gather
from kquant.core.origin import patterns_of
from kquant.core.progress import tqdm
from kquant.core.renamed import renamed
from kquant.core.result import Result
from kquant.core.table import Table
from kquant.graph.given_model import check_finite
from kquant.graph.keras_private import every_layer
from kquant.layers.transform import apply
from kquant.masking.kernel_sites import check_patterns, sites
from kquant.masking.mask import Mask, fixed
from kquant.masking.patterns import choose, structure_of
from kquant.masking.pruning import Target, settings_of, targets_of
from kquant.masking.wrapping import check_model, wrapped
from kquant.ops.position import found_or_whole
from kquant.recipe import recipe as recipes
from kquant.recipe.pruning_section import Pruning, structure_name
from kquant.recipe.recipe import Recipe
from kquant.shrink.by_score import finite
from kquant.views.quantized_model import is_quantized


@dataclass(frozen=True)
class LayerScan:
    """One layer alone.

    Attributes:
        layer: its name.
        weights: number of its weights in kernels.
        values: at each sparsity of the scan: what `evaluate` gave, or the SQNR of the model's outputs in dB.
        damage: at each: loss against the dense model, or noise over signal.
        chosen: the proposed sparsity.
    """

    layer: str
    weights: int
    values: tuple[float, ...]
    damage: tuple[float, ...]
    chosen: float


@dataclass(frozen=True, repr=False)
class SparsityScan(Result):
    """All layers; `rules` goes to `kquant.prune` or into a recipe.

    Attributes:
        sparsities: that were tried.
        target: share of zeros that was asked for.
        dense: what `evaluate` gives without pruning; None where data were given.
        layers: in the order of the model.
        structure: of the masks, see `kquant.prune`.
    """

    sparsities: tuple[float, ...]
    target: float
    dense: float | None
    layers: tuple[LayerScan, ...]
    structure: str = "unstructured"

    def __repr__(self) -> str:
        return f"SparsityScan({100 * self.target:g} % of {len(self.layers)} layers, {self.structure}: {self.unit})"

    @property
    def rules(self) -> list[dict[str, Any]]:
        """The proposal, one rule for each layer."""
        return [{"layer": row.layer, "pruning": {"sparsity": row.chosen}} for row in self.layers]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        rows = [{"layer": r.layer, "weights": r.weights, "values": r.values, "chosen": r.chosen} for r in self.layers]
        head = {"sparsities": self.sparsities, "target": self.target, "dense": self.dense, "structure": self.structure}
        return {**head, "layers": rows}

    def to_json(self) -> str:
        """The same as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def to_recipe(self, base: str | Path | dict[str, Any] | Recipe = "prune50-int8") -> Recipe:
        """The proposal inside a recipe, for `kquant.prune`, `kquant.compress` and the command line.

        Args:
            base: what else the recipe says; of its `[pruning]` sparsity, structure and scope are replaced.

        Example:
            >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, name="a"), keras.layers.Dense(4)])
            >>> scan = kquant.scan_sparsity(model, np.ones((4, 8), "float32"), sparsity=0.4, verbose=False)
            >>> round(kquant.sparsity(kquant.prune(model, scan.to_recipe())).total, 2)
            0.4
        """
        chosen = recipes.load(base)
        said = {"sparsity": self.target, "structure": self.structure, "scope": "layer"}
        section = (chosen.section(Pruning) or Pruning()).model_dump()
        rest = chosen.model_dump(by_alias=True, exclude={"pruning", "rules", "title"})
        rules = [*(rule.model_dump(by_alias=True) for rule in chosen.rules), *self.rules]
        return recipes.load({**rest, "name": f"{chosen.name}-scanned", "pruning": {**section, **said}, "rules": rules})

    @property
    def unit(self) -> str:
        """What the values are."""
        return "SQNR of the outputs in dB" if self.dense is None else f"evaluate, {self.dense:.4g} of the dense model"

    @property
    def table(self) -> Table:
        """A line for each layer."""
        columns = ("layer", "weights", *(f"{100 * s:g} %" for s in self.sparsities), "chosen")
        rows = tuple(
            (row.layer, f"{row.weights:,}", *(f"{v:.4g}" for v in row.values), f"{100 * row.chosen:.1f} %")
            for row in self.layers
        )
        return Table("Layers", columns, rows, right=columns[1:])

    def __str__(self) -> str:
        return f"each layer alone: {self.unit}\n{self.table}"


@renamed
def scan_sparsity(
    model: keras.Model,
    data: Any = None,
    *,
    evaluate: Callable[[keras.Model], float] | None = None,
    sparsities: Sequence[float] = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95),
    sparsity: float = 0.5,
    structure: str | tuple[int, int] = "unstructured",
    depthwise: bool = False,
    protect: str | Sequence[str] = (),
    limit: int | None = 256,
    verbose: bool = True,
) -> SparsityScan:
    """Prune each layer alone, without training, and propose a sparsity for each that makes the target in total.

    Reads: `model` stays as it was.

    From the dense model on, the step that costs least for each weight it zeros is taken next, until the target is
    reached; layers with little to lose end sparser.

    Args:
        model: a built float Keras model. The zeros of a pruned one stay, and count.
        data: samples, see `kquant.calibrate`; the outputs are compared with those of the dense model.
        evaluate: `(keras model) -> float`, higher is better, instead of data.
        sparsities: to try, in (0, 1).
        sparsity: share of zeros of all kernels scanned that the proposal is to make, in (0, 1).
        structure: "unstructured" or blocks, see `kquant.prune`.
        depthwise: scan depthwise kernels too.
        protect: patterns of names of layers to leave dense.
        limit: use at most this many samples of the data; None: all.
        verbose: show a progress bar.

    Returns:
        The table and the proposal: `kquant.prune(model, 0.5, rules=scan.rules)`.

    Raises:
        ValueError: neither or both of data and evaluate, a target that the sparsities cannot make, a structure that
            fixes the sparsity, a quantized model.

    Example:
        >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(32, name="a"), keras.layers.Dense(4)])
        >>> x = np.random.default_rng(0).normal(size=(64, 16)).astype("float32")
        >>> scan = kquant.scan_sparsity(model, x, sparsity=0.6, verbose=False)
        >>> round(kquant.sparsity(kquant.prune(model, 0.6, rules=scan.rules)).total, 2)
        0.6

    Source: Li et al., arXiv:1608.08710, section 3.2 (sensitivity of each layer alone).
    """
    levels = tuple(sorted({float(s) for s in sparsities}))
    structure = str(structure_name(structure))
    _check_float(model)
    _check(data, evaluate, levels, sparsity, structure)
    # one model for the whole scan: masks are set and taken back in it
    copy, protect = wrapped(model), patterns_of(protect)
    settings = settings_of(sparsity, {"structure": structure, "depthwise": depthwise}, protect=protect)
    check_patterns("scan_sparsity", protect, sites(copy))
    by_layer = _by_layer([_trial(each) for each in targets_of(copy, settings)])
    measure, dense = _measure(copy, data, evaluate, limit)
    values: dict[str, list[float]] = {name: [] for name in by_layer}
    with tqdm(desc="scan", unit="model", total=len(by_layer) * len(levels), disable=not verbose) as bar:
        for name, trials in by_layer.items():
            for level in levels:
                _set(trials, level, structure)
                values[name].append(measure())
                bar.update()
            # dense again, as each layer is judged alone
            _set(trials, 0.0, "unstructured")
    return replace(_result(by_layer, values, levels, sparsity, dense), structure=structure)


def _check(data: Any, evaluate: Any, levels: Sequence[float], target: float, structure: str) -> None:
    if (data is None) == (evaluate is None):
        raise ValueError("scan_sparsity: give data or evaluate, one of the two.")
    if not levels or levels[0] <= 0.0 or levels[-1] >= 1.0 or not 0.0 < target <= levels[-1]:
        raise ValueError(
            "scan_sparsity: expected sparsities in (0, 1), and a sparsity in (0, 1) that is not above the highest. "
            f"Received: sparsities {list(levels)}, sparsity {target}."
        )
    if structure_of(structure).of:
        raise ValueError(f"scan_sparsity: structure '{structure}' fixes the sparsity of every layer; nothing to scan.")


def _check_float(model: Any) -> None:
    check_model(model, "scan_sparsity")
    check_finite(model)
    if is_quantized(every_layer(model)):
        raise ValueError(
            f"{model.name}: scan_sparsity: expected a float model. Scan before kquant.quantize, or what "
            "kquant.strip(model) gives; kquant.prune(model, ..., rules=scan.rules) takes the quantized model too."
        )


@dataclass(frozen=True, eq=False)
class Trial:
    """A kernel with a mask for the scan, behind those that it has."""

    target: Target
    mask: Mask
    scores: tf.Tensor


def _trial(target: Target) -> Trial:
    """Weights under the masks of a pruned model go first."""
    site, mask = target.site, fixed(np.ones(target.site.shape, bool))
    # under a mask that is there already a weight scores 0, so that its zero is the first to be taken again
    kept = [t for t in site.transforms if isinstance(t, Mask)]
    site.transform_by(mask)
    return Trial(target, mask, tf.abs(apply(kept, site.raw)))


def _by_layer(trials: Sequence[Trial]) -> dict[str, list[Trial]]:
    by_layer: dict[str, list[Trial]] = {}
    for each in trials:
        by_layer.setdefault(each.target.site.holder.name, []).append(each)
    return by_layer


def _set(trials: Sequence[Trial], level: float, structure: str) -> None:
    """The masks of one layer at a sparsity."""
    for each in trials:
        each.mask.mask.assign(choose(each.scores, level, structure_of(structure), each.target.axes, "mean"))


def _measure(
    model: keras.Model, data: Any, evaluate: Callable[[keras.Model], float] | None, limit: int | None
) -> tuple[Callable[[], float], float | None]:
    """A function that judges the model as it is now; and what `evaluate` says of the dense one."""
    if evaluate is not None:
        # the masks are all ones still
        return lambda: finite(evaluate(model)), finite(evaluate(model))
    inputs = [tf.constant(x) for x in gather(model, data, limit)]
    # traced once: masks are variables, which the graph reads anew at every call
    call = tf.function(lambda: model(tf.nest.pack_sequence_as(model.input, inputs), training=False), autograph=False)
    dense, counted = [np.asarray(y) for y in keras.tree.flatten(call())], found_or_whole(model)

    def noise() -> float:
        outputs = keras.tree.flatten(call())
        return float(np.mean([noise.ratio for noise in noises_of(counted, dense, outputs)]))

    return noise, None


def _result(
    by_layer: dict[str, list[Trial]],
    values: dict[str, list[float]],
    levels: tuple[float, ...],
    target: float,
    dense: float | None,
) -> SparsityScan:
    sizes = {name: sum(math.prod(t.target.site.shape) for t in trials) for name, trials in by_layer.items()}
    damage = {name: row if dense is None else [dense - v for v in row] for name, row in values.items()}
    chosen = propose(damage, sizes, levels, target)
    rows = tuple(
        LayerScan(
            name,
            sizes[name],
            tuple(values[name] if dense is not None else (decibel(v) for v in values[name])),
            tuple(damage[name]),
            chosen[name],
        )
        for name in by_layer
    )
    return SparsityScan(levels, target, dense, rows)


def propose(
    damage: dict[str, list[float]], sizes: dict[str, int], levels: Sequence[float], target: float
) -> dict[str, float]:
    """A sparsity for each layer, with the least damage for the zeros.

    Args:
        damage: of each layer at each level.
        sizes: weights of each layer.
        levels: sparsities, ascending.
        target: share of zeros in total.

    Returns:
        Layer -> sparsity; together exactly the target but for rounding.

    Example:
        >>> propose({"a": [0.0, 0.1], "b": [0.5, 2.0]}, {"a": 100, "b": 100}, [0.5, 0.8], 0.4)
        {'a': 0.8, 'b': 0.0}
    """
    chosen = dict.fromkeys(sizes, 0.0)
    place = dict.fromkeys(sizes, -1)
    # of all weights, so that a large layer with little to lose makes up for small ones
    missing = target * sum(sizes.values())
    # half a weight: less is rounding
    while missing > 0.5:
        best: tuple[float, str, int] = (math.inf, "", 0)
        for name, row in damage.items():
            # a layer that happens to be better pruned costs nothing; it is not paid for being chosen
            now = max(0.0, row[place[name]]) if place[name] >= 0 else 0.0
            for level in range(place[name] + 1, len(levels)):  # a cheap level may lie behind a dear one
                cost = (max(0.0, row[level]) - now) / (sizes[name] * (levels[level] - chosen[name]))
                best = min(best, (cost, name, level))
        name, level = best[1], best[2]
        # the last step goes as far as the target only
        step = min(levels[level] - chosen[name], missing / sizes[name])
        missing -= step * sizes[name]
        chosen[name], place[name] = round(chosen[name] + step, 6), level
    return chosen

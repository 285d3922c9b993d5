"""`kquant.scan_sparsity`: what pruning each layer alone costs, and from it a sparsity for each layer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from kquant.analysis.sqnr import decibel, noises_of
from kquant.calibration.data import gather
from kquant.core.callers import score_given
from kquant.core.checks import check_score
from kquant.core.origin import patterns_of
from kquant.core.progress import tqdm
from kquant.core.renamed import renamed
from kquant.core.result import Result
from kquant.core.table import Table
from kquant.files.destination import check_folder
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
from kquant.search.search_state import rounded, search_state
from kquant.views.quantized_model import is_quantized

LEVELS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)


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


@dataclass(frozen=True)
class Measured:
    """What pruning a layer alone gave, at each sparsity: `evaluate`'s value, or noise over signal of the outputs."""

    layer: str
    values: list[float]


class ScanElsewhere(Protocol):
    """Measures layers in other processes."""

    def measured(
        self, model: keras.Model, inputs: list[np.ndarray] | None, wanted: Wanted, layers: Sequence[str]
    ) -> Iterator[Measured]:
        """A row for each layer, in any order; `inputs` are the samples, where the outputs judge."""
        ...


@dataclass(frozen=True)
class Wanted:
    """Arguments of `scan_sparsity`: the sparsities ascending, the structure by its name."""

    levels: tuple[float, ...]
    sparsity: float
    structure: str
    depthwise: bool
    protect: tuple[str, ...]
    limit: int | None
    folder: str | Path | None

    def check(self, data: Any, evaluate: Any) -> None:
        """Refuse what can be refused before anything runs."""
        _check(data, evaluate, self.levels, self.sparsity, self.structure)
        check_folder(self.folder, "scan_sparsity", "search")


@renamed
def scan_sparsity(
    model: keras.Model,
    data: Any = None,
    *,
    evaluate: Callable[[keras.Model], float] | None = None,
    sparsities: Sequence[float] = LEVELS,
    sparsity: float = 0.5,
    structure: str | tuple[int, int] = "unstructured",
    depthwise: bool = False,
    protect: str | Sequence[str] = (),
    limit: int | None = 256,
    folder: str | Path | None = None,
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
        folder: keep finished layers there, in scan.json; the same call, with data in the same order, or an `evaluate`
            that says the same of the dense model again, goes on where it was stopped. Another `sparsity` is proposed of
            the same rows.
        verbose: show a progress bar.

    Returns:
        The table and the proposal: `kquant.prune(model, 0.5, rules=scan.rules)`.

    Raises:
        ValueError: neither or both of data and evaluate, a target that the sparsities cannot make, a structure that
            fixes the sparsity, a quantized model, or a folder of another search.

    Example:
        >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(32, name="a"), keras.layers.Dense(4)])
        >>> x = np.random.default_rng(0).normal(size=(64, 16)).astype("float32")
        >>> scan = kquant.scan_sparsity(model, x, sparsity=0.6, verbose=False)
        >>> round(kquant.sparsity(kquant.prune(model, 0.6, rules=scan.rules)).total, 2)
        0.6

    Source: Li et al., arXiv:1608.08710, section 3.2 (sensitivity of each layer alone).
    """
    wanted = wanted_of(sparsities, sparsity, structure, depthwise, protect, limit, folder)
    return scanned(model, data, evaluate, wanted, verbose=verbose)


def wanted_of(
    sparsities: Sequence[float],
    sparsity: float,
    structure: str | tuple[int, int],
    depthwise: bool,
    protect: str | Sequence[str],
    limit: int | None,
    folder: str | Path | None,
) -> Wanted:
    """What a caller gave, in one form; see `scan_sparsity`."""
    levels, patterns = tuple(sorted({float(s) for s in sparsities})), tuple(patterns_of(protect))
    return Wanted(levels, sparsity, str(structure_name(structure)), depthwise, patterns, limit, folder)


def scanned(
    model: keras.Model,
    data: Any,
    evaluate: Callable[[keras.Model], float] | None,
    wanted: Wanted,
    elsewhere: ScanElsewhere | None = None,
    *,
    verbose: bool,
) -> SparsityScan:
    """See `scan_sparsity`.

    Args:
        model: see there.
        data: see there.
        evaluate: see there.
        wanted: see there.
        elsewhere: who measures the layers; None: this process.
        verbose: see there.
    """
    _check_float(model)
    wanted.check(data, evaluate)
    scan = Scan(model, None if data is None else gather(model, data, wanted.limit), evaluate, wanted)
    dense = None if evaluate is None else scan.judged()  # the masks are all ones still
    # what the rows depend on; the sparsity of the proposal they do not
    options: dict[str, Any] = {"sparsities": list(wanted.levels), "protect": list(wanted.protect)}
    options |= {"structure": wanted.structure, "depthwise": wanted.depthwise, "limit": wanted.limit}
    options |= {"dense": None if dense is None else rounded(dense)}
    # all samples, as they are gathered anyhow
    kept = search_state(wanted.folder, "scan.json", "scan_sparsity", model, scan.inputs, None, evaluate, **options)
    rows = [row for row in kept.rows("layers", Measured) if row.layer in scan.by_layer]
    left = [name for name in scan.by_layer if name not in {row.layer for row in rows}]
    done = map(scan.measured, left) if elsewhere is None else elsewhere.measured(model, scan.inputs, wanted, left)
    total = len(scan.by_layer)
    for row in tqdm(done, desc="scan", unit="layer", total=total, initial=len(rows), disable=not verbose):
        rows.append(row)
        kept.store(layers=rows)
    values = {row.layer: row.values for row in rows}
    in_order = {name: values[name] for name in scan.by_layer}
    return replace(_result(scan.by_layer, in_order, wanted.levels, wanted.sparsity, dense), structure=wanted.structure)


def _check(data: Any, evaluate: Any, levels: Sequence[float], target: float, structure: str) -> None:
    if (data is None) == (evaluate is None):
        raise ValueError("scan_sparsity: give data or evaluate, one of the two.")
    if evaluate is not None:
        check_score("scan_sparsity", evaluate)
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


class Scan:
    """One model for a whole scan: masks are set and taken back in it.

    Args:
        model: the float model, which stays as it was.
        inputs: the samples, one array for each input, where the outputs judge.
        evaluate: see `scan_sparsity`.
        wanted: likewise.
    """

    def __init__(
        self,
        model: keras.Model,
        inputs: list[np.ndarray] | None,
        evaluate: Callable[[keras.Model], float] | None,
        wanted: Wanted,
    ) -> None:
        self.inputs, self.evaluate, self.wanted = inputs, evaluate, wanted
        self.copy = wrapped(model)
        more = {"structure": wanted.structure, "depthwise": wanted.depthwise}
        settings = settings_of(wanted.sparsity, more, protect=wanted.protect)
        check_patterns("scan_sparsity", wanted.protect, sites(self.copy))
        self.by_layer = _by_layer([_trial(each) for each in targets_of(self.copy, settings)])
        self._noise = None if inputs is None else _noise_of(self.copy, inputs)

    def measured(self, layer: str) -> Measured:
        """The row of a layer, which is dense again behind it, as each is judged alone."""
        trials, values = self.by_layer[layer], list[float]()
        for level in self.wanted.levels:
            _set(trials, level, self.wanted.structure)
            values.append(self.judged(f"layer '{layer}' at sparsity {level:g}"))
        _set(trials, 0.0, "unstructured")
        return Measured(layer, values)

    def judged(self, which: str = "the dense model") -> float:
        """The model as it is now; `which` it is, an error says."""
        if self._noise is not None:
            return self._noise()
        return 0.0 if self.evaluate is None else score_given("scan_sparsity", which, self.evaluate(self.copy))


def _noise_of(model: keras.Model, inputs: list[np.ndarray]) -> Callable[[], float]:
    """A function that compares what the model computes with what it computed when this was called."""
    tensors = [tf.constant(x) for x in inputs]
    # traced once: masks are variables, which the graph reads anew at every call
    call = tf.function(lambda: model(tf.nest.pack_sequence_as(model.input, tensors), training=False), autograph=False)
    dense, counted = [np.asarray(y) for y in keras.tree.flatten(call())], found_or_whole(model)

    def noise() -> float:
        outputs = keras.tree.flatten(call())
        return float(np.mean([noise.ratio for noise in noises_of(counted, dense, outputs)]))

    return noise


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

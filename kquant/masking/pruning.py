"""`kquant.prune`: masks in every kernel of a model, float or quantized.

    float model       Dense, LSTM, ...     -> Transformed(layer, {path: [Mask]}); all other layers stay as they are
    quantized model   Compressed, ...      -> the same with a Mask

Masks act in every call. A training forward pass is one step of the schedule; no callback is needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kquant.core.messages import warn
from kquant.core.origin import patterns_of
from kquant.core.renamed import renamed
from kquant.graph.keras_private import every_layer
from kquant.masking.code_length import price_of, refuse_unpriced
from kquant.masking.codebook import Codebook
from kquant.masking.kernel_sites import Site, check_patterns, check_rules, note_of, note_of_unknown, sites
from kquant.masking.mask import Criterion, Gradient, Mask
from kquant.masking.method import Method
from kquant.masking.patterns import Pooling, choose, structure_of
from kquant.masking.schedules import SparsitySchedule, schedule_of
from kquant.masking.wrapping import as_loaded, to_transform
from kquant.recipe import recipe as recipes
from kquant.recipe.pruning_section import Pruning, structure_name
from kquant.views.float_model import warn_lost_steps
from kquant.views.quantized_model import forget_graphs

FLOOR = 0.2  # with a global threshold a layer keeps at least this part of what it would keep at equal sparsities


@renamed
def prune(
    model: keras.Model,
    recipe: Any = None,
    *,
    structure: str | tuple[int, int] | None = None,
    pooling: Pooling | None = None,
    scope: str | None = None,
    criterion: Criterion | None = None,
    gradient: Gradient | None = None,
    depthwise: bool | None = None,
    entropy: float | None = None,
    target_bytes: int | None = None,
    rules: Sequence[Mapping[str, Any]] = (),
    protect: str | Sequence[str] = (),
) -> keras.Model:
    """Mask the smallest weights of a model, and keep them zero while it trains.

    Copies: `model` stays as it was.

        w' = mask * w          zeros = round(sparsity * n), of the smallest |w|

    Args:
        model: a built float Keras 3 model of any kind, pruned or clustered or not, or a quantized one.
        recipe: a share of zeros in [0, 1), from this call on; a `kquant.SparsitySchedule` or tfmot's
            schedule object; or a recipe with a `[pruning]` section (name, TOML file, data). None: 0.5, or what the
            structure prescribes.
        structure: "unstructured"; blocks such as "4x1" or (4, 1) (input by output channels); or "2:4": 2 of 4
            neighbours along the input channels stay, the sparsity follows from it.
        pooling: of a block's magnitudes, "mean" or "max".
        scope: "layer": every kernel gets the same sparsity. "global": one threshold for all magnitudes, taken now, so
            that the model as a whole gets it; each layer keeps some weights.
        criterion: "magnitude", or "movement": scores that train (arXiv:2005.07683).
        gradient: what reaches masked weights: "straight-through" lets them come back, "masked" holds them.
        depthwise: prune depthwise kernels too; they are few weights and sensitive, so by default they stay dense.
        entropy: what a KiB of the kernels' codes costs while the model trains, added to its loss; weights are drawn to
            codes that are frequent, so that Huffman codes get short. 0 by default; see docs/short_codes.md.
        target_bytes: where that ends, in bytes of these kernels' codes alone, by the histogram of each; the file is
            larger (tables, biases, scales, operators). For a file of so many bytes train the quantized model with
            `kquant.callbacks.FlashBudget`. None: nowhere.
        rules: `{"layer": "head*", "pruning": {"sparsity": 0.8}}`; as in a recipe the last that matches a layer wins.
        protect: patterns of names of layers that stay dense.

    Returns:
        A model with weights of its own: Functional, with `Transformed` layers, or the quantized model with masks.
        Layers that do not train are left as they are, with a warning.

    Raises:
        ValueError: no kernel to prune, a setting without sense, a rule or a name that matches no layer, or a model
            that cannot be taken apart.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="head")])
        >>> pruned = kquant.prune(model, 0.75)
        >>> float(np.mean(pruned.get_layer("head").weights_as_used() == 0))
        0.75

    Source: Zhu and Gupta, arXiv:1710.01878; N:M: Mishra et al., arXiv:2104.08378.
    """
    given = {"structure": structure, "pooling": pooling, "scope": scope, "criterion": criterion}
    given |= {"gradient": gradient, "depthwise": depthwise, "entropy": entropy, "target_bytes": target_bytes}
    protect = patterns_of(protect)
    settings = settings_of(recipe, {k: v for k, v in given.items() if v is not None}, rules, protect)
    new = to_transform(model, "prune")
    check_patterns("prune", protect, sites(new))
    check_rules("prune", [rule for rule in settings.rules if rule.table(Pruning)], sites(new))
    put_masks(new, settings)
    new = as_loaded(new)
    warn_lost_steps(model, "prune")
    return new


@dataclass(frozen=True, eq=False)
class Settings:
    """What holds for the model, and for layers by rule.

    Attributes:
        section: of the whole model.
        schedule: a schedule object instead of the section's.
        rules: of the recipe and of the call, in order; what is protected has one of sparsity 0.
    """

    section: Pruning
    schedule: SparsitySchedule | None = None
    rules: tuple[recipes.LayerRule, ...] = ()

    def of(self, names: Sequence[tuple[str, str]], position: str | None) -> Pruning:
        """The section of one layer."""
        section = self.section
        for rule in self.rules:
            if rule.table(Pruning) and any(rule.matches(name, kind, position) for name, kind in names):
                # One over the other, so that a later rule may change a key and leave those of an earlier one.
                section = Pruning(**{**section.model_dump(), **rule.table(Pruning)})
        return section

    def course(self, section: Pruning) -> SparsitySchedule:
        """The schedule of one layer."""
        pattern = structure_of(section.structure)
        own = self.schedule or _schedule(section)
        # A schedule object holds as it is; where a rule wants another sparsity, its course is taken there.
        if section.sparsity != self.section.sparsity or self.schedule is None:
            own = own.to(section.sparsity)
        if pattern.sparsity is None or own.final in (0.0, pattern.sparsity):
            return own
        raise ValueError(
            f"prune: structure '{section.structure}' has a sparsity of {pattern.sparsity:g}, and the schedule asks for "
            f"{own.final:g}. Give that one, or an unstructured mask."
        )


def settings_of(
    given: Any, changes: Mapping[str, Any], rules: Sequence[Mapping[str, Any]] = (), protect: Sequence[str] = ()
) -> Settings:
    """What `prune` was asked for.

    Args:
        given: recipe, schedule or number.
        changes: arguments that replace keys of the section.
        rules: see `prune`.
        protect: see `prune`.

    Raises:
        ValueError: a recipe without a `[pruning]` section, or a setting without sense.
    """
    # Protected is what has sparsity 0; last, so that no rule of the caller's wins over it.
    own = [*rules, *({"layer": pattern, "pruning": {"sparsity": 0.0}} for pattern in protect)]
    if isinstance(given, str | Path | dict | recipes.Recipe):
        recipe = recipes.load(given)
        section = recipe.section(Pruning)
        if section is None:
            raise ValueError(f"prune: recipe '{recipe.name}' has no [pruning] section. 'prune50-int8' has one.")
        # Through a recipe of its own: changes and rules of a call are checked as those of a file are, and say so alike.
        checked = recipes.load({"name": "prune", "pruning": {**section.model_dump(), **changes}, "rules": own})
        return Settings(_section(checked), None, (*recipe.rules, *checked.rules))
    pattern = structure_of(str(structure_name(changes.get("structure", "unstructured"))))
    schedule = schedule_of((pattern.sparsity or 0.5) if given is None else given)
    checked = recipes.load({"name": "prune", "pruning": {"sparsity": schedule.final, **changes}, "rules": own})
    return Settings(_section(checked), schedule, checked.rules)


def _section(recipe: recipes.Recipe) -> Pruning:
    return recipe.section(Pruning) or Pruning()


def _schedule(section: Pruning) -> SparsitySchedule:
    if section.schedule == "constant":
        return SparsitySchedule(section.sparsity, begin=section.begin, frequency=section.frequency)
    return SparsitySchedule(
        section.sparsity,
        initial=section.initial,
        begin=section.begin,
        end=-1 if section.end is None else section.end,
        power=section.power,
        frequency=section.frequency,
    )


@dataclass(frozen=True, eq=False)
class Target:
    """One kernel that is to be masked."""

    site: Site
    section: Pruning
    schedule: SparsitySchedule

    @property
    def axes(self) -> tuple[int, int]:
        """Input and output channels."""
        kernel = self.site.geometry
        return -2 if kernel.input_axis is None else kernel.input_axis, kernel.output_axis


def has_masks(model: keras.Model) -> bool:
    """True where a kernel of the model is masked."""
    return any(isinstance(layer, Mask) for layer in every_layer(model))


def put_masks(model: keras.Model, settings: Settings) -> None:
    """Masks in the wrapped layers of a model, in place of those they have.

    Args:
        model: with `Transformed` layers, or quantized.
        settings: what is wanted.

    Raises:
        ValueError: no kernel takes a mask.
    """
    targets = targets_of(model, settings)
    finals = _global(targets) if settings.section.scope == "global" else [t.schedule.final for t in targets]
    shapes = [target.site.shape for target in targets]
    refuse_unpriced("prune", ((target.section.entropy, target.section.target_bytes) for target in targets))
    for target, final in zip(targets, finals, strict=True):
        section = target.section
        schedule = target.schedule if final == target.schedule.final else target.schedule.to(final)
        price = price_of(section.entropy, section.target_bytes, shapes)
        how = (section.pooling, section.criterion, section.gradient)
        mask = Mask(schedule.get_config(), section.structure, target.axes, *how, **asdict(price))
        target.site.replace_by(mask)
    forget_graphs(model)


def targets_of(model: keras.Model, settings: Settings) -> list[Target]:
    """The kernels to prune, in the order of the model; warns of those that cannot be.

    Raises:
        ValueError: there is none.
    """
    targets, frozen, refused = [], [], []
    for site in sites(model):
        section = settings.of(site.names, site.position)
        schedule = settings.course(section)
        if schedule.final == 0.0 or (site.geometry.depthwise and not section.depthwise):
            continue
        if not site.trains:
            frozen.append(site)
        elif structure_of(section.structure).of and site.geometry.input_axis is None:
            refused.append(site.label)
        else:
            _check_zero(site)
            targets.append(Target(site, section, schedule))
    notes = [note for note in (note_of(frozen), note_of_unknown(model)) if note]
    if refused:
        notes.append(f"left dense: {', '.join(refused)}: they sum over no input channels, as an N:M pattern needs.")
    if not targets:
        why = "depthwise kernels need depthwise=True; layers that are protected or have a sparsity of 0 stay dense."
        raise ValueError(f"{model.name}: prune: no layer has a kernel to prune: {' '.join(notes) or why}")
    for note in notes:
        warn(f"prune: {note}")
    return targets


def _check_zero(site: Site) -> None:
    """Refuse a codebook behind the mask that would make something else of its zeros."""
    if any(isinstance(t, Codebook) and not t.preserve_sparsity for t in site.transforms):
        raise ValueError(
            f"{site.label}: prune: its codebook without a zero would undo the mask. Cluster with "
            "preserve_sparsity=True; to give the shared values up, start from kquant.strip(model)."
        )


def _global(targets: Sequence[Target]) -> list[float]:
    """Sparsity of each kernel where all share one threshold.

    Each keeps `FLOOR` of what it would keep at equal sparsities; the rest go to the highest scores of all.
    """
    whole = sum(float(t.schedule.final) * math.prod(t.site.shape) for t in targets)
    total = sum(math.prod(t.site.shape) for t in targets)
    fixed = [t.site.holder.name for t in targets if structure_of(t.section.structure).of]
    if fixed:
        raise ValueError(f"prune: scope 'global' chooses sparsities, and an N:M structure fixes that of {fixed[0]}.")
    scores = []
    for t in targets:
        values = tf.abs(t.site.raw)
        # A layer of small weights may lie below the common threshold altogether, and nothing would come through it.
        floor = choose(values, 1.0 - FLOOR * (1.0 - t.schedule.final), structure_of("unstructured"), t.axes, "mean")
        # At infinity they are above any threshold; `_kept` counts them in.
        scores.append(np.where(np.asarray(floor), np.inf, np.asarray(values)).ravel())
    return [1.0 - kept / s.size for kept, s in zip(_kept(scores, round(total - whole)), scores, strict=True)]


def _kept(scores: Sequence[np.ndarray], count: int) -> list[int]:
    """How many scores of each kernel are among the highest of all.

    Scores that equal the last one that stays (zeros of a sparse model, values of a clustered one) are many: each kernel
    keeps its share of them, and what rounding leaves over goes to the first kernels. So the count is exact.

    Args:
        scores: float[n] of each kernel; those at infinity stay in any case.
        count: how many stay.
    """
    every = np.concatenate(scores)
    count = max(count, int(np.count_nonzero(np.isinf(every))))
    # The `count`-th highest: `partition` puts that one in its place and sorts nothing else.
    least = np.partition(every, every.size - count)[every.size - count]
    above = [int(np.count_nonzero(s > least)) for s in scores]
    ends = np.cumsum([np.count_nonzero(s == least) for s in scores])
    shares = np.diff(-(-ends * (count - sum(above)) // ends[-1]), prepend=0)  # of ends rounded up: they sum exactly
    return [n + int(share) for n, share in zip(above, shares, strict=True)]


METHOD = Method(Pruning, "prune", prune, lambda model, recipe: put_masks(model, settings_of(recipe, {})), has_masks)

"""What the steps of a recipe do to a quantized model: tried on a copy, or done."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import keras
import numpy as np

from kquant.analysis.passes import Passes, chunks
from kquant.analysis.sqnr import Noise, mean_db, noises_of
from kquant.analysis.units import units
from kquant.analysis.weights import weight_report
from kquant.calibration.data import gather
from kquant.calibration.ranges import calibrate
from kquant.core.messages import first_of
from kquant.core.renamed import renamed
from kquant.core.result import Result
from kquant.correct.equalization import ForgottenRanges
from kquant.correct.steps import apply_steps, check_steps
from kquant.graph.copies import copy_of
from kquant.graph.given_model import check_keras
from kquant.layers.nodes import encodings_of
from kquant.ops.position import found_or_whole
from kquant.recipe.recipe import Step
from kquant.views.quantized_model import read


@dataclass(frozen=True)
class LayerState:
    """One layer at one time.

    Attributes:
        low, high: range of its weights; None where it has none.
        spread: largest over smallest `max|w|` of its channels.
        weights_db: SQNR of the weights on their grid.
        sqnr_db: of its output against the float model, end to end; None before ranges are set.
    """

    low: float | None
    high: float | None
    spread: float | None
    weights_db: float | None
    sqnr_db: float | None


@dataclass(frozen=True)
class LayerChange:
    """One layer before and after."""

    name: str
    before: LayerState
    after: LayerState


@dataclass(frozen=True, repr=False)
class DryRun(Result):
    """What `kquant.dry_run` found.

    Attributes:
        model: its name.
        steps: what was run.
        samples: how many the outputs were compared on.
        before_db, after_db: SQNR of the outputs against the float function of the given model; None before ranges are
            set.
        layers: in the order of the model.
        notes: what was done beside the steps, so that there is something to compare; what is to be done after them.
        on_copy: the given model stayed as it was.
    """

    model: str
    steps: tuple[str, ...]
    samples: int
    before_db: float | None
    after_db: float | None
    layers: tuple[LayerChange, ...]
    notes: tuple[str, ...] = ()
    on_copy: bool = True

    def __repr__(self) -> str:
        before, after = ("no ranges" if db is None else f"{db:.4g} dB" for db in (self.before_db, self.after_db))
        return f"DryRun({self.model!r}, {first_of(self.steps)}, {self.samples} samples: SQNR {before} -> {after})"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


@renamed
def dry_run(
    qmodel: keras.Model,
    steps: Sequence[str | dict[str, Any] | Step],
    data: Any,
    *,
    limit: int | None = 256,
    verbose: bool = True,
) -> DryRun:
    """Run steps on a copy of a quantized model, and tell what they change.

    Reads: `qmodel` stays as it was.

    Where a step makes the model forget ranges that it had (equalization does), the copy is calibrated again, on the
    samples that are compared; `notes` say so.

    Args:
        qmodel: what `kquant.quantize` returned.
        steps: as in a recipe: names, or dicts of a name and its options.
        data: for the steps and for the comparison, see `kquant.calibrate`.
        limit: compare at most this many samples; None: all.
        verbose: show progress bars.

    Returns:
        Weights and SQNR of every layer, and SQNR of the outputs, before and after.

    Raises:
        ValueError: not a quantized model, an unknown step or option, or what a step refuses.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="head")])
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> tried = kquant.dry_run(kquant.quantize(model), ["calibrate"], x, verbose=False)
        >>> tried.before_db is None and tried.after_db > 30.0
        True
    """
    check_keras(qmodel, "dry_run")
    return _tried(qmodel, copy_of(qmodel), steps, data, limit, verbose)


def run_steps(
    qmodel: keras.Model,
    steps: Sequence[str | dict[str, Any] | Step],
    data: Any,
    *,
    limit: int | None = 256,
    verbose: bool = True,
) -> DryRun:
    """Run steps on a quantized model itself, and tell what they have changed; `dry_run` explains the arguments.

    Ranges that a step made the model forget stay forgotten: `after_db` is None then, and `notes` name them.

    Returns:
        What `dry_run` would have said, `on_copy` False.

    Raises:
        ValueError: see `dry_run`.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="head")])
        >>> q = kquant.quantize(model)
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> run_steps(q, ["calibrate"], x, verbose=False).on_copy
        False
    """
    return _tried(qmodel, qmodel, steps, data, limit, verbose)


def _tried(
    qmodel: keras.Model, changed: keras.Model, steps: Any, data: Any, limit: int | None, verbose: bool
) -> DryRun:
    """Run steps on `changed`, which is the model or a copy of it, between two looks at all layers."""
    chosen = [Step.model_validate(step) for step in steps]
    check_steps(chosen)
    x = gather(qmodel, data, limit)
    had_ranges = _has_ranges(qmodel)
    # first: where the model itself is changed nobody could look at it later
    before, real, outputs = _states(qmodel, x, verbose)
    counted = found_or_whole(qmodel)
    before_db = _db(had_ranges, counted, real, outputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ForgottenRanges)  # `notes` tell
        apply_steps(changed, chosen, data, verbose=verbose)
    forgotten = _without_range(changed) if had_ranges else []
    # a model of the caller's is left as the steps leave it; a copy is made comparable
    notes = _calibrated_again(changed, forgotten, x, verbose) if changed is not qmodel else _told(forgotten)
    after, _, outputs_after = _states(changed, x, verbose)
    return DryRun(
        model=qmodel.name,
        steps=tuple(step.name for step in chosen),
        samples=len(x[0]),
        before_db=before_db,
        after_db=_db(_has_ranges(changed), counted, real, outputs_after),
        layers=tuple(LayerChange(name, state, after[name]) for name, state in before.items()),
        notes=notes,
        on_copy=changed is not qmodel,
    )


def _told(forgotten: list[str]) -> tuple[str, ...]:
    """What to do where ranges are gone."""
    if not forgotten:
        return ()
    return (f"The steps forgot the ranges of {first_of(forgotten)}. Calibrate after these steps.",)


def _calibrated_again(tried: keras.Model, forgotten: list[str], x: list[np.ndarray], verbose: bool) -> tuple[str, ...]:
    """The copy gets the ranges that the steps made it forget; says so."""
    if not forgotten:
        return ()
    calibrate(tried, keras.tree.pack_sequence_as(read(tried).inputs, x), verbose=verbose)
    return (
        f"The steps forgot the ranges of {first_of(forgotten)}; the copy was calibrated again on these {len(x[0])} "
        "samples. Calibrate the model itself after these steps.",
    )


Outputs = list[list[np.ndarray]]


def _states(qmodel: keras.Model, x: list[np.ndarray], verbose: bool) -> tuple[dict[str, LayerState], Outputs, Outputs]:
    """Every layer, and the outputs of the model in float and in integer arithmetic."""
    graph = read(qmodel)
    parts = units(graph)
    passes = Passes(graph, parts, None, [], keep=True)
    with warnings.catch_warnings():
        if not _has_ranges(qmodel):  # tensors without a range stay float, and say so
            warnings.simplefilter("ignore")
        passes.walk(chunks(graph, x), verbose)
    states = {}
    for unit in parts:
        weights = None if unit.weighted is None else weight_report(unit.weighted)
        noise = passes.noises[id(unit)].db if _has_ranges(qmodel) else None
        low, high, spread, sqnr = (getattr(weights, key, None) for key in ("low", "high", "spread", "sqnr_db"))
        states[unit.name] = LayerState(low, high, spread, sqnr, noise)
    return states, passes.outputs[passes.NONE].arrays, passes.outputs[passes.ALL].arrays


def _db(has_ranges: bool, counted: tuple[bool, ...], real: Outputs, quantized: Outputs) -> float | None:
    """SQNR of all chunks of the outputs; the float ones are those of the model as given."""
    if not has_ranges:
        return None
    totals = [Noise()] * len(real[0])
    for ours, theirs in zip(real, quantized, strict=True):
        totals = [total + each for total, each in zip(totals, noises_of(counted, ours, theirs), strict=True)]
    return mean_db(totals)


def _has_ranges(qmodel: keras.Model) -> bool:
    return not _without_range(qmodel)


def _without_range(qmodel: keras.Model) -> list[str]:
    return [q.name for q in encodings_of(qmodel) if q.has_range and not np.any(q.count.numpy())]

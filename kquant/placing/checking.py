"""`kquant.check`: whether every layer can be integer on a target, and where it runs there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import keras

from kquant import targets
from kquant.detecting.in_file import why_of
from kquant.detecting.spec import Detection
from kquant.graph.given_model import check_keras
from kquant.graph.graph import Graph
from kquant.placing.changes import Trial, changed
from kquant.placing.laying import Laid, lay, placement
from kquant.placing.parting import between
from kquant.prepare.forecast import CheckReport, forecast
from kquant.prepare.placement import Change, Cut, Placement
from kquant.recipe import recipe as recipes
from kquant.recipe.keys_apart import takes_recipe
from kquant.targets.accelerator import Accelerator
from kquant.tflite.box_choice import CODE
from kquant.transcribing.best_path import steps_in
from kquant.transcribing.spec import Ctc
from kquant.views.float_model import read

PLAIN = "int8"  # the recipe of `kquant.quantize` where nobody names one
MOST_TRIALS = 16  # of changes, each of which writes the model again


@takes_recipe
def check(
    model: keras.Model,
    target: str = targets.DEFAULT,
    *,
    recipe: str | Path | dict[str, Any] | recipes.Recipe | None = None,
    input_shape: Any = None,
    detection: Detection | None = None,
    ctc: Ctc | None = None,
) -> CheckReport:
    """Tell for every layer whether it can be integer on the target, and where it runs, before training or calibration.

    Reads: `model` stays as it was.

    Args:
        model: any built Keras 3 model.
        target: see `kquant.quantize`; the same by default.
        recipe: see `kquant.quantize`; the report then tells the bits of every layer's weights, which of them are packed
            two to a byte, and what that costs in time; layers that it has simulated only, which `kquant.export` would
            refuse, are refused here.
        input_shape: static shape(s) for models with open dimensions, batch axis included.
        detection: of a detector, what its outputs mean: refused here, before training, where boxes, scores and anchors
            do not fit; the report's `boxes` tells whether `kquant.export(detection=...)` takes it.
        ctc: of a network trained with CTC, what its output means: refused likewise where steps, classes, blank and
            alphabet do not fit; the report's `labels` tells what is read.

    Returns:
        The report. Batch norms and constant factors are "folded" where a neighbour takes them in, as recipes do by
        default (`fold = true`); `report.folds` says into which, or why not. On a target with an accelerator
        `report.placement` says what runs there, into how many parts the graph falls, which layers part it, and what
        joins it again: changes that were tried on a copy.

    Raises:
        ValueError: not a Keras 3 model, or one whose `call` cannot be followed; a recipe, a detection or a ctc that
            does not fit it.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="gelu")])
        >>> [(row.layer != "", row.status) for row in kquant.check(model).layers]
        [(True, 'decomposed')]
        >>> four = {"name": "four", "weights": {"bits": 4}}
        >>> [row.weights for row in kquant.check(model, "litert", recipe=four).layers]
        [('4 bits, packed',)]
        >>> found = kquant.check(model, "cmsis-nn").placement
        >>> found.on_accelerator, found.operators
        (1, 4)
    """
    check_keras(model, "check")
    boxes = "" if detection is None else _boxes(model, detection, target, input_shape)
    labels = "" if ctc is None else steps_in(model, ctc, _made(model, input_shape))
    report = replace(forecast(model, target, recipe=recipe, input_shape=input_shape), boxes=boxes, labels=labels)
    beside = targets.load(target).accelerator
    if beside is None or not report.ok:
        return report
    chosen = recipes.load(PLAIN if recipe is None else recipe)
    return replace(report, placement=_placed(model, chosen, targets.load(target), beside, input_shape))


def _boxes(model: keras.Model, detection: Detection, target: str, input_shape: Any) -> str:
    """Whether the file can choose boxes itself."""
    why = why_of("check", model, detection, target, input_shape)
    if why:
        return f"boxes are chosen beside the file, in integers: {why}"
    return (
        f"boxes are chosen beside the file, in integers; or by the file with kquant.export(detection=...), whose last "
        f"operator is {CODE} then, in float32 by its nature"
    )


def _made(model: keras.Model, input_shape: Any) -> list[Any] | None:
    """Shapes of outputs: of open ones what `input_shape` makes of them; None: those that the model tells."""
    return None if input_shape is None else [t.shape for t in read(model, input_shape).output_tensors]


def _placed(
    model: keras.Model, recipe: recipes.Recipe, target: targets.Target, beside: Accelerator, input_shape: Any
) -> Placement:
    """Where the model runs as it is, and what joins its parts, one change upon the other."""
    laid = lay(model, recipe, target, beside, input_shape)
    first = so_far = placement(laid, beside)
    graph, trials, told = read(model, input_shape), MOST_TRIALS, dict[tuple[str, ...], Cut]()
    while (cut := next((c for c in _cuts(laid, beside, graph) if c.layers not in told), None)) is not None:
        told[cut.layers] = cut
        # on top of what joined the graph so far: one cut may hide behind another
        for trial in changed(graph, recipe, cut.layers):
            trials -= 1
            if trials < 0:
                break
            after = _laid(trial, target, beside)
            then = None if after is None else placement(after, beside)
            if after is not None and then is not None and _joins(so_far, then):
                done = Change(
                    cut.layers, trial.what, trial.same_function, then.parts, then.on_accelerator, then.operators
                )
                told[cut.layers] = replace(cut, change=done)
                laid, so_far, graph, recipe = after, then, read(trial.model, None), trial.recipe
                break
    # told of the given model: the changes are proposals
    return replace(first, cut_by=tuple(told.values()))


def _cuts(laid: Laid, beside: Accelerator, graph: Graph) -> list[Cut]:
    """The layers that part what the accelerator takes; those of one class and reason together."""
    taken = laid.taken(unknown=True)
    if beside.cuts == "nothing":
        return []
    numbers = between(laid.steps, taken)
    if beside.cuts == "rest":  # the first one that it leaves, where it would take something behind
        left = next((n for n, took in enumerate(taken) if not took), len(taken))
        numbers = [left] if any(taken[left:]) else []
    kinds = {node.name: type(node.op).__name__ for node in graph.nodes}
    reasons: dict[str, list[str]] = {}
    for n in numbers:
        reasons.setdefault(laid.layers[n], []).append(laid.takes[n][1])
    groups: dict[tuple[str, str], list[str]] = {}
    for name, said in reasons.items():
        groups.setdefault((kinds.get(name, ""), "; ".join(dict.fromkeys(said))), []).append(name)
    return [Cut(tuple(names), kind, reason) for (kind, reason), names in groups.items()]


def _laid(trial: Trial, target: targets.Target, beside: Accelerator) -> Laid | None:
    """A changed model's file; None where it has no integer form on the target."""
    try:
        return lay(trial.model, trial.recipe, target, beside, None)
    except ValueError:
        return None


def _joins(before: Placement, after: Placement) -> bool:
    """Fewer operators are left to the processor, and there are fewer parts; or more is before the first cut."""
    left = [p.operators - p.on_accelerator - p.unknown for p in (before, after)]
    return left[1] < left[0] and (after.parts < before.parts or before.cuts == "rest")

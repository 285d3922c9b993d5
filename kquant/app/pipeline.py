"""The whole flow in one call: prune, cluster, quantize, each with training behind it where the caller trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Unpack

import keras

from kquant import targets
from kquant.core.callers import telling
from kquant.core.checks import check_count, check_score, whole_budget
from kquant.core.messages import first_of, warn
from kquant.core.renamed import renamed
from kquant.core.result import Result
from kquant.correct.byte_search import coded_form
from kquant.correct.steps import STEPS, apply_steps, check_steps, limited, parse_steps
from kquant.detecting.in_file import why_of
from kquant.detecting.spec import Detection
from kquant.exporting.asked_storing import AUTO, storing_of
from kquant.exporting.export_file import ExportReport, export
from kquant.exporting.file_options import FileOptions, check_file_options
from kquant.exporting.model_card import ModelCard
from kquant.files.atomic import Outputs
from kquant.files.destination import destination
from kquant.graph.given_model import check_keras
from kquant.graph.keras_private import every_layer
from kquant.layers.kernel import holders
from kquant.masking.mask import Mask
from kquant.masking.method import methods
from kquant.prepare.quantization import quantize
from kquant.recipe.keys_apart import takes_recipe
from kquant.recipe.recipe import Recipe, Step, load, recipe_to_toml
from kquant.search.byte_ladder import ByteLadder, Changes, Wanted, climb
from kquant.search.ladder import score_of
from kquant.search.random_streams import own_streams
from kquant.search.search_state import rounded, search_state
from kquant.tflite.edges import check_io
from kquant.views.quantized_model import is_quantized

Stage = str  # "prune", "cluster", ...: a method that the recipe has a section for; and "quantize"
Train = Callable[[keras.Model, Stage], Any]


@dataclass(frozen=True, eq=False, repr=False)
class CompressResult(Result):
    """What `kquant.compress` made.

    Attributes:
        model: the quantized Keras model, ready to train further.
        report: of the exported file.
        ladder: what was tried under a byte budget; None without one.
        card: the figures that are asked for first; with accuracies where the command `kquant compress` is given labels.
        export_options: form of the file: `kquant.export(result.model, path, **result.export_options)` writes it again.
    """

    model: keras.Model
    report: ExportReport
    card: ModelCard
    ladder: ByteLadder | None = None
    export_options: FileOptions = field(default_factory=FileOptions)

    def __repr__(self) -> str:
        return f"CompressResult({self.model.name!r}: {self.report!r})"


@renamed
@takes_recipe
def compress(
    model: keras.Model,
    data: Any,
    recipe: str | Path | dict[str, Any] | Recipe = "int8",
    *,
    path: str | Path,
    target: str = targets.DEFAULT,
    limit: int | None = None,
    input_shape: Any = None,
    flash_bytes: int | str | None = None,
    evaluate: Callable[[keras.Model], float] | None = None,
    folder: str | Path | None = None,
    train: Train | None = None,
    verbose: bool = True,
    detection: Detection | None = None,
    **form: Unpack[FileOptions],
) -> CompressResult:
    """Prune and cluster where the recipe says so, quantize, run its steps (calibrate, corrections), export and verify.

    Copies: `model` stays as it was.

    Args:
        model: a built Keras 3 model.
        data: representative samples, see `kquant.calibrate`.
        recipe: see `kquant.quantize`. A model that is pruned or clustered already keeps its masks or codebooks,
            whatever the recipe says of them.
        path: of the `.tflite` file.
        target: see `kquant.quantize`.
        limit: calibrate and correct with this many samples only, the first ones.
        input_shape: static shape(s) for models with open dimensions.
        flash_bytes: budget of the file, a number or like "64KB". Exact steps come first, then codes that TFLM decodes,
            then 4 bits and shorter codes (`kquant.shorten_codes`) and distillation on the samples; where `train` is
            given, training behind these, of zeros and of shared values. The best of those that hold it is the result,
            `result.ladder` tells of all. See docs/short_codes.md.
        evaluate: `(keras model) -> float`, higher is better, for `flash_bytes`; without it outputs are compared with
            the float model's.
        folder: for what `flash_bytes` has finished; a run that was stopped goes on from there, with an `evaluate` that
            says the same of the float model again. What `train` does is not known to it: give another folder for
            another training.
        train: `train(model, stage)` compiles and fits the model it is given; called after each stage that the recipe
            has, "prune", "cluster" (float models) and "quantize" (its steps are done). It may pass any of them over.
        verbose: show progress bars.
        detection: of a detector, whose file is to choose its boxes itself; see `kquant.export`.
        **form: `io`, `streaming`, `states`, `compression`, `decode_budget`, `strip_names` and `shrink` of
            `kquant.export`.

    Returns:
        The quantized model and the export report.

    Raises:
        ValueError: see `quantize`, `calibrate` and `export`; a budget that nothing holds, with the smallest file and
            the layers that stand in the way; a score that is no number, with its rung. What `evaluate` and `train`
            raise ends the search; rungs that are finished stay in `folder`.
        TypeError: an argument that neither this nor `kquant.export` has.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> result = kquant.compress(model, np.ones((64, 4), "float32"), path="dense.tflite", verbose=False)
        >>> result.report.types["FLOAT32"] if "FLOAT32" in result.report.types else 0
        0
    """
    check_keras(model, "compress")
    if limit is not None:
        check_count("compress", "limit", limit)
    check_file_options("compress", form)
    destination(path, "compress", "model.tflite")  # before hours of work
    _check_stored(flash_bytes, form)
    making = _Making(target, limit, input_shape)
    if detection is not None:
        _check_boxes(model, detection, making, flash_bytes)
    ladder = None
    if flash_bytes is None:
        _refuse_alone(evaluate=evaluate, folder=folder)
        qmodel = prepare(model, data, recipe, train=train, verbose=verbose, **vars(making))
    else:
        flash_bytes = whole_budget("compress", "flash_bytes", flash_bytes)
        _check_free(form)
        if evaluate is not None:
            check_score("compress", evaluate)
        asked = _Asked(flash_bytes, evaluate, None if folder is None else Path(folder), train, verbose)
        qmodel, ladder = _under_budget(model, data, load(recipe), making, asked, form)
        form = _form_of(ladder, form)
    report = _written(qmodel, path, flash_bytes, data=data, detection=detection, **form)
    return CompressResult(qmodel, report, report.card, ladder, form)


@dataclass(frozen=True)
class _Making:
    """How a float model becomes a quantized one; see `compress`."""

    target: str
    limit: int | None
    input_shape: Any


@dataclass(frozen=True)
class _Asked:
    """What a search under a byte budget is asked for; see `compress`."""

    flash_bytes: int
    evaluate: Callable[[keras.Model], float] | None
    folder: Path | None
    train: Train | None
    verbose: bool


def _check_boxes(model: keras.Model, detection: Detection, making: _Making, flash_bytes: int | str | None) -> None:
    """Refuse a head that the file cannot choose boxes of, before anything is quantized."""
    if flash_bytes is not None:
        raise ValueError(
            "compress: flash_bytes counts files that end in the model's outputs; leave detection out, and give it to "
            "kquant.export of the result's model."
        )
    why = why_of("compress", model, detection, making.target, making.input_shape)
    if why:
        raise ValueError(f"compress: this file cannot choose its boxes itself: {why}")


def _refuse_alone(**given: Any) -> None:
    """Options of a byte budget without one."""
    names = [name for name, value in given.items() if value is not None]
    if names:
        said = f"{names[0]} is" if len(names) == 1 else f"{' and '.join(names)} are"
        left = "leave it out" if len(names) == 1 else "leave them out"
        raise ValueError(f"compress: {said} for a byte budget; give flash_bytes=, or {left}.")


def _check_stored(flash_bytes: int | str | None, form: FileOptions) -> None:
    """Refuse what `export` would, hours later."""
    if flash_bytes is None:
        storing_of(form.get("compression"), form.get("decode_budget"))
        check_io("compress", form.get("io", "model"))
    else:
        coded_form("compress", form.get("io", "model"), form.get("decode_budget"))


def _check_free(form: FileOptions) -> None:
    """Refuse what a byte budget chooses itself."""
    free = {"compression": (None, AUTO), "shrink": (True,), "streaming": (False, 0), "states": ("io",)}
    for name, values in free.items():
        if name in form and form[name] not in values:
            raise ValueError(
                f"compress: flash_bytes chooses steps and codes itself, of a file over whole inputs; leave "
                f"{name}={form[name]!r} out, or flash_bytes."
            )


def _form_of(ladder: ByteLadder, form: FileOptions) -> FileOptions:
    """The file of the best rung, as the ladder measured it."""
    kept: Any = {name: value for name, value in form.items() if name in ("io", "strip_names")}
    if ladder.best.stored:
        kept |= {"compression": AUTO, "decode_budget": form.get("decode_budget")}
    return kept


def _written(qmodel: keras.Model, path: str | Path, flash_bytes: int | None, **how: Any) -> ExportReport:
    """The report of a file that has taken its place, where it holds the budget."""
    if flash_bytes is None:
        return export(qmodel, path, **how)
    place = destination(path, "compress", "model.tflite").given
    with Outputs([place], "compress") as new:
        report = export(qmodel, new.place(place), **how)
        # rungs of a folder may be another version's, whose files were others
        if report.file_bytes > flash_bytes:
            raise ValueError(
                f"compress: the file has {report.file_bytes:,} bytes, more than flash_bytes={flash_bytes:,} and than "
                f"its rung had; {place} stays as it was. Where a folder= kept the rungs, give another, in "
                "which all are made again."
            )
    return replace(report, path=str(place))


def _under_budget(
    model: keras.Model,
    data: Any,
    recipe: Recipe,
    making: _Making,
    asked: _Asked,
    form: FileOptions,
) -> tuple[keras.Model, ByteLadder]:
    """The best model under a byte budget."""
    edges: dict[str, Any] = {n: v for n, v in form.items() if n in ("io", "strip_names", "decode_budget")}
    trains = asked.train is not None
    named = {"target": making.target, "flash_bytes": asked.flash_bytes, "trains": trains, **edges}
    if edges.get("io", "model") != "model" or edges.get("decode_budget") is not None:
        named["counted"] = "with io and decode_budget"  # of these, folders of earlier versions have other files
    named |= {"recipe_text": recipe_to_toml(recipe), "limit": making.limit}  # another recipe may have the name
    with own_streams() as callers:
        train, evaluate = telling(callers(asked.train)), telling(callers(asked.evaluate))
        judged: dict[str, Any] = {"evaluate": evaluate, "train": train, "limit": making.limit, "folder": asked.folder}
        if evaluate is not None:  # scores of another function are not to be compared with its
            judged["float_score"] = score_of(evaluate, model, "the float model", "compress")
            named["float_score"] = rounded(judged["float_score"])

        def of_recipe(stage_model: keras.Model, stage: Stage) -> None:
            if train is not None and stage != "quantize":  # the ladder trains what is quantized where it is time
                train(stage_model, stage)

        def make(stage_model: keras.Model, changes: Changes) -> keras.Model:
            told = {name: changed for name, changed in changes.items() if name != "steps"}
            tables = {name: getattr(recipe, name).model_copy(update=changed) for name, changed in told.items()}
            own = {step.name for step in recipe.steps}
            more = [step for step in changes.get("steps", ()) if step.name not in own]
            changed = recipe.model_copy(update={**tables, "steps": (*recipe.steps, *more)})
            return prepare(stage_model, data, changed, train=of_recipe, verbose=False, **vars(making))

        kept = search_state(asked.folder, "rungs.json", "compress", model, data, recipe, asked.evaluate, **named)
        # a recipe that trains masks would do so for each grid again
        one_scale = recipe.weights.per_axis and not methods(recipe)
        # AdaRound would choose the codes of a recipe that chooses them anew
        chosen = any(step.name == "shorten-codes" for step in recipe.steps)
        four_bits = recipe.weights.kind == "uniform" and recipe.weights.bits > 4 and not (chosen or methods(recipe))
        wanted = Wanted(model, data, make, asked.flash_bytes, one_scale, four_bits, **edges, **judged)
        return climb(wanted, kept, asked.verbose)


def prepare(
    model: keras.Model,
    data: Any,
    recipe: str | Path | dict[str, Any] | Recipe = "int8",
    *,
    target: str = targets.DEFAULT,
    limit: int | None = None,
    input_shape: Any = None,
    train: Train | None = None,
    verbose: bool = True,
) -> keras.Model:
    """Prune, cluster, quantize and run the recipe's steps: `compress`, which explains the arguments, up to the export.

    Returns:
        The quantized model.

    Raises:
        ValueError: see `quantize` and `calibrate`.
    """
    chosen = load(recipe)
    check_steps(chosen.steps)
    fresh = [method for method in methods(chosen) if not method.acts(model)]
    if train is None and fresh:
        _warn_untrained([method.section.key for method in fresh])
    train = train or (lambda *_: None)
    for method in fresh:  # a model that is pruned already would get a second set of masks
        model = method.verb(model, chosen)
        train(model, method.name)
    qmodel = quantize(model, chosen, target=target, input_shape=input_shape)
    apply_steps(qmodel, [limited(step, limit) for step in chosen.steps], data, verbose=verbose)
    # last, behind calibration and corrections: training starts from their ranges
    train(qmodel, "quantize")
    _warn_unfinished(qmodel)
    return qmodel


def _warn_untrained(names: list[str]) -> None:
    """Say what masks and shared values cost that no training has made up for, and what they save by themselves."""
    warn(
        f"compress: the recipe asks for {' and '.join(names)}, and nothing trains: accuracy is lost that a few epochs "
        "win back. Give train=, or train the model that `kquant.prune` or `kquant.cluster` returns and compress that. "
        'Zeros and shared values take fewer bytes in a code only: compression="auto" for TFLM, a deflated download '
        "elsewhere."
    )


def _warn_unfinished(qmodel: keras.Model) -> None:
    """Name layers whose masks have not come to the end of their schedule: the file has fewer zeros than was asked."""
    left = []
    for holder in holders(qmodel):
        masks = [t for kernel in holder.kernels() for t in kernel.transforms if isinstance(t, Mask)]
        if any(t.schedule is not None and not t.schedule.is_done(int(t.steps.numpy())) for t in masks):
            left.append(holder.name)
    if left:
        warn(
            f"compress: the masks of {first_of(left)} are still on their ramp, so the file has fewer zeros than the "
            "recipe asks for. Train longer (`train=`), end the ramp earlier, or use a constant schedule."
        )


def to_correct(
    model: keras.Model, steps: str | None = None, recipe: str | None = None, target: str | None = None
) -> tuple[keras.Model, tuple[Step, ...]]:
    """A quantized model and the steps to run on it, as the command `kquant correct` is asked.

    Args:
        model: quantized, which is taken as it is; or float, which is quantized.
        steps: see `kquant.correct.parse_steps`; by default those of the recipe.
        recipe: for a float model; "int8" by default.
        target: likewise; `kquant.targets.DEFAULT` by default.

    Raises:
        ValueError: a recipe or target for a quantized model, no steps for one, or unknown steps.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> [step.name for step in to_correct(model, "equalize,calibrate")[1]]
        ['equalize', 'calibrate']
    """
    if is_quantized(every_layer(model)):
        if recipe is not None or target is not None:
            raise ValueError(f"{model.name}: is quantized already, for its own recipe and target; leave both out.")
        if steps is None:
            raise ValueError(f"{model.name}: is quantized already; say which steps to run: {', '.join(STEPS)}.")
        return model, parse_steps(steps)
    chosen = load(recipe or "int8")
    picked = chosen.steps if steps is None else parse_steps(steps)
    return quantize(model, chosen, target=target or targets.DEFAULT), picked

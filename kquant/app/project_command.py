"""`kquant export`: a model and samples -> a project for a device."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from kquant.app.options import (
    CtcOrNone,
    Data,
    HeadOrNone,
    Json,
    Limit,
    MaxDrop,
    Mean,
    Scale,
    Shape,
    Std,
    answers_in,
    check_max_drop,
    exit_where_lost,
    refusing,
    say,
    told,
    writing,
)
from kquant.projects.kinds import kind_and_target

Classes = Annotated[Path | None, typer.Option("--labels", help="Class numbers (.npy) of the samples in --test")]
RunsOn = Annotated[
    str | None, typer.Option("--target", help="Where it runs: a kind of project, or a target; tflm by default")
]
Accelerator = Annotated[
    str | None, typer.Option("--accelerator", help="For Vela, on targets of Ethos-U: ethos-u55-256...")
]
KINDS = "tflm (CMake), arduino, esp-idf, zephyr, android, ios"


@refusing
@writing
def export(
    model: Annotated[Path, typer.Argument(help="A model saved by Keras, quantized or not", metavar="MODEL.keras")],
    data: Data,
    folder: Annotated[Path, typer.Option("--folder", help="Folder for the project: new, or an earlier one")],
    runs_on: RunsOn = None,
    kind: Annotated[str | None, typer.Option("--kind", help=f"Project, where a target has several: {KINDS}")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Of the model there; the file's by default")] = None,
    classes: Annotated[Path | None, typer.Option("--classes", help="Names of classes (.txt), a line each")] = None,
    test: Annotated[Path | None, typer.Option("--test", help="Samples that judge, like --data; with --labels")] = None,
    labels: Classes = None,
    max_drop: MaxDrop = None,
    detection: HeadOrNone = None,
    ctc: CtcOrNone = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="For a float model; int8 by default")] = None,
    *,
    form: dict[str, Any],
    accelerator: Accelerator = None,
    golden: Annotated[int, typer.Option("--golden", min=1, help="Vectors that the self-test runs")] = 4,
    debug: Annotated[bool, typer.Option("--debug", help="Add a model whose self-test names the first layer")] = False,
    scale: Scale = 1.0,  # type: ignore[assignment]
    mean: Mean = None,
    std: Std = None,
    limit: Limit = None,
    input_shape: Shape = None,
    as_json: Json = False,
) -> None:
    """Write a project for a microcontroller or a phone: the model, conversions, golden vectors and its own test."""
    kind, target = kind_and_target(kind, runs_on)
    _together(test, labels, max_drop)

    from kquant.app import command_files
    from kquant.projects.project import bundle, earlier
    from kquant.tflite.raw_values import normalization_of

    earlier(folder)  # what stands in the way is told before the work
    names = command_files.load_names(classes) if classes else []
    keras_model = command_files.load_model(model)
    takes = command_files.inputs_of(keras_model, input_shape)
    moved = normalization_of("export", takes[0], None, mean, std)
    arrays = _as_taken(command_files.load_data(data, takes, scale=scale, limit=limit), moved, len(takes))
    judges = _judges(test, labels, takes, scale, moved)
    chosen = {"recipe": recipe, "target": target, "input_shape": input_shape}
    qmodel = _quantized(model, keras_model, arrays, runs_on, {**chosen, "verbose": not as_json and sys.stderr.isatty()})
    raw = {"scale": None if scale == 1.0 else scale, "mean": mean, "std": std}
    about: dict[str, Any] = {"kind": kind, "name": name or model.stem, "golden": golden, "labels": names}
    about |= {"debug": debug, "accelerator": accelerator, **answers_in(detection, ctc)}
    made = bundle(qmodel, folder, data=arrays, test=judges, **about, **raw, **form)
    how = {"recipe": recipe, "target": target} if qmodel is not keras_model else {}
    look = told("analyze", model, {"data": test, "labels": labels, "scale": raw["scale"], **how})
    # `analyze` takes samples and models as they are: by other numbers it would name other causes
    _tell(made, look if mean is std is input_shape is None else made.card.look, max_drop, as_json)


def _tell(made: Any, look: str, max_drop: float | None, as_json: bool) -> None:
    """What was written, and what tells where accuracy was lost."""
    say(replace(made, card=replace(made.card, look=look)), as_json)
    exit_where_lost(replace(made.card, look=look), max_drop)


def _together(test: Path | None, labels: Path | None, max_drop: float | None) -> None:
    check_max_drop(max_drop, labels)
    if (test is None) != (labels is None):
        raise typer.BadParameter("--test and --labels go together: samples, and the class of each")


def _judges(test: Path | None, labels: Path | None, takes: Any, scale: float, moved: Any) -> Any:
    from kquant.app import command_files

    if test is None or labels is None:
        return None
    judged = _as_taken(command_files.load_data(test, takes, scale=scale), moved, len(takes))
    return judged, command_files.load_labels(labels)


def _as_taken(arrays: Any, moved: Any, count: int) -> Any:
    """Samples as the model takes them: what a device makes of raw values happens here as well."""
    if moved is None:
        return arrays
    return [moved.applied(arrays[0]), *arrays[1:]] if count > 1 else moved.applied(arrays)


def _quantized(path: Path, model: Any, arrays: Any, said: str | None, chosen: dict[str, Any]) -> Any:
    """The model as it is where it is quantized, and what was asked of it fits; a quantized one of a float model."""
    from kquant import targets
    from kquant.app.pipeline import prepare
    from kquant.graph.keras_private import every_layer
    from kquant.layers.provenance import provenance_of
    from kquant.views.quantized_model import is_quantized

    if not is_quantized(every_layer(model)):
        return prepare(model, arrays, **{**chosen, "recipe": chosen["recipe"] or "int8"})
    own = provenance_of(model.layers).target
    for option, given in (("--recipe", chosen["recipe"]), ("--input-shape", chosen["input_shape"])):
        if given is not None:
            raise ValueError(f"{path}: is quantized already; leave {option} out.")
    if said in targets.names() and said != own:
        raise ValueError(f"{path}: is quantized already, for target '{own}'; leave --target {said} out.")
    return model

"""`kquant compress`: a model and samples -> all of its files, its figures, and its report."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from kquant import targets
from kquant.app.options import (
    FORM,
    ChoosesOrNone,
    Data,
    Json,
    Limit,
    MaxDrop,
    Model,
    Scale,
    Shape,
    Target,
    check_max_drop,
    exit_where_lost,
    refusing,
    say,
    size,
    told,
    writing,
)

Test = Annotated[
    Path | None, typer.Option("--test", help="Samples to measure accuracy on, like --data; those by default")
]
Labels = Annotated[
    Path | None, typer.Option("--labels", help="Class numbers (.npy, or .npz with y) of the samples in --test")
]
Page = Annotated[Path | None, typer.Option("--report", help="Write a page with plots and what to change to this .html")]
Details = Annotated[bool, typer.Option("--details", help="Print the bytes of the weights in every form, too")]
Budget = Annotated[
    int | None,
    typer.Option("--flash-bytes", parser=size, help="What the file may take, like 40KB", metavar="SIZE"),
]
Folder = Annotated[Path, typer.Option("--folder", help="Folder for the results, and for --flash-bytes to go on from")]
RUNGS = "rungs"  # beside the results, whose names cannot meet those of rungs there


@refusing
@writing
def compress(
    model: Model,
    data: Data,
    folder: Folder,
    recipe: Annotated[str, typer.Option("--recipe", help="Name (see `kquant recipes`) or a .toml file")] = "int8",
    target: Target = targets.DEFAULT,
    test: Test = None,
    labels: Labels = None,
    max_drop: MaxDrop = None,
    page: Page = None,
    details: Details = False,
    flash_bytes: Budget = None,
    detection: ChoosesOrNone = None,
    *,
    form: dict[str, Any],
    scale: Scale = 1.0,  # type: ignore[assignment]
    limit: Limit = None,
    input_shape: Shape = None,
    as_json: Json = False,
) -> None:
    """Quantize, calibrate, export and verify a model: .tflite, quantized .keras, C array and reports."""
    _check(test, labels, page, form, detection, max_drop)
    from kquant.app import command_files
    from kquant.app.pipeline import compress as pipeline
    from kquant.app.result_files import CompressFiles
    from kquant.files.atomic import Outputs
    from kquant.report.html_file import check_html

    bars = not as_json and sys.stderr.isatty()
    # all files of one run, or those of the run before: a stopped command leaves no mixture
    results = CompressFiles(folder, model.stem)
    kept = nullcontext() if flash_bytes is None else command_files.output_folder(folder / RUNGS, model)
    with command_files.output_folder(folder, model), kept as rungs, Outputs(results.paths, "compress") as new:
        if page is not None:  # it may lie in the folder that is made here
            check_html(page)
        keras_model = command_files.load_model(model)
        arrays, held_out, answers = _loaded(keras_model, (data, test or data, labels), input_shape, scale, limit)
        given = {"path": new.place(results.lite), "input_shape": input_shape, "verbose": bars}
        given |= _budget(flash_bytes, rungs, held_out, answers) | _chosen(detection)
        made = pipeline(keras_model, arrays, recipe, target=target, **given, **form)
        look = {"data": test or data, "labels": labels, "scale": None if scale == 1.0 else scale}
        made = _scored(made, keras_model, held_out, answers, bars, told("analyze", results.model, look))
        result = results.write(made, new)
    if page is not None:
        _write(page, result, held_out, answers, arrays, bars)
    if as_json:
        say(result, as_json)
    else:
        _tell(result, details, {folder: ", ".join(path.name for path in results.paths), page: "the report with plots"})
        typer.echo(_again(result, results.model, {"data": data, "scale": look["scale"]}), nl=False)
    exit_where_lost(result.card, max_drop)


def _loaded(model: Any, places: tuple[Any, ...], input_shape: Any, scale: float, limit: int | None) -> Any:
    """Samples, those that judge, and their classes where there are labels."""
    from kquant.app import command_files

    # open dimensions are told by --input-shape, which images are resized to as well
    inputs = command_files.inputs_of(model, input_shape)
    *samples, labels = places
    answers = None if labels is None else command_files.load_labels(labels, limit=limit)
    return (*(command_files.load_data(place, inputs, scale=scale, limit=limit) for place in samples), answers)


def _check(
    test: Path | None,
    labels: Path | None,
    page: Path | None,
    form: dict[str, Any],
    detection: Path | None,
    max_drop: float | None,
) -> None:
    """Refuse options that want others."""
    check_max_drop(max_drop, labels)
    if test is not None and labels is None and page is None:
        raise typer.BadParameter("--test needs --labels: without classes nobody can tell what is right")
    if form["streaming"] and labels is not None:
        raise typer.BadParameter("--labels judge whole clips, and a stream has none: leave them, or --streaming, out")
    if detection is not None and labels is not None:
        raise typer.BadParameter("--labels are classes, and with --detection the file gives boxes: leave either out")


def _chosen(detection: Path | None) -> dict[str, Any]:
    from kquant.detecting.detection_file import read_detection

    return {"detection": None if detection is None else read_detection(detection)}


def _budget(flash_bytes: int | None, folder: Path | None, data: Any, labels: Any) -> dict[str, Any]:
    """Arguments of a byte budget: files are judged by accuracy where there are labels."""
    from kquant.analysis.metrics import top1_of

    if flash_bytes is None or labels is None:
        return {"flash_bytes": flash_bytes, "folder": folder}
    return {"flash_bytes": flash_bytes, "folder": folder, "evaluate": top1_of(data, labels)}


def _tell(result: Any, details: bool, written: dict[Path | None, str]) -> None:
    """The figures that are asked for first, the tables, and what lies where now."""
    typer.echo(f"{result.card}\n")
    say(result, as_json=False, details=details)
    typer.echo("\n" + "\n".join(f"{place}: {what}" for place, what in written.items() if place is not None))


def _again(result: Any, model: Path, data: dict[str, Any]) -> str:
    """How a project gets the file that a byte budget chose, where the model alone does not say its form."""
    if result.ladder is None or "compression" not in result.export_options:
        return ""
    form = {name: value for name, value in result.export_options.items() if value != FORM[name][1]}
    return f"a project with this very file: {told('export', model, {**data, 'folder': 'project/', **form})}\n"


def _scored(made: Any, model: Any, data: Any, labels: Any, bars: bool, look: str) -> Any:
    """The result with accuracies on its card, where there are labels, and what tells where they were lost."""
    from kquant.exporting.scoring import scored

    if labels is None:
        return made
    report = made.report
    card = scored(made.card, (model, made.model), report.path, report.target, data, labels, verbose=bars)
    return replace(made, card=replace(card, look=look))


def _write(path: Path, result: Any, data: Any, labels: Any, calibration: Any, bars: bool) -> None:
    """The page of a result, with what each layer loses and what was tried."""
    from kquant.analysis.diagnosis import analyze
    from kquant.analysis.metrics import top1
    from kquant.report.html_file import html
    from kquant.search.answers import why

    metric = None if labels is None else top1(labels)
    analysis = analyze(result.model, data, metric, verbose=bars)
    html([result, analysis, why(result.model, data, metric, calibration=calibration, verbose=bars)], path)

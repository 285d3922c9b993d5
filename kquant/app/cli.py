"""The command `kquant`: parse, call, print.

Exit codes: 0 done; 1 refused, or findings that need work; 2 wrong usage; 3 written, and more accuracy lost than
`--max-drop` allows; 130 stopped by Ctrl-C. TensorFlow loads inside the commands, so that `kquant --help` answers at
once.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from kquant import __version__, targets
from kquant.app import (
    collector,
    compress_command,
    detect_command,
    migrate_command,
    project_command,
    split_command,
    telling,
    transcribe_command,
    view_command,
)
from kquant.app.options import (
    LOST,
    Data,
    Json,
    Limit,
    Lite,
    Model,
    Runtime,
    Scale,
    Target,
    refusing,
    say,
    told,
)
from kquant.app.remedies_typed import typed
from kquant.core.renamed import new_options
from kquant.files.destination import check_folder
from kquant.files.named_files import check_results


class Commands(TyperGroup):
    """Commands that take the old words of their options, too."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command, and what stands behind it by the new words."""
        # here, since typer is about to parse what stands behind the command
        name, command, rest = super().resolve_command(ctx, args)
        return name, command, new_options(name or "", rest)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Compress Keras 3 models: full-integer TFLite files for phones and microcontrollers.",
)


Labels = Annotated[
    Path | None, typer.Option("--labels", help="Class numbers (.npy) of the samples: tell the accuracy too")
]
FEW = 64  # samples that a file is compared on
CALIBRATION = "CALIBRATION.npz"  # in commands that are told: samples of the user's that the model is not judged by


def _bars(as_json: bool) -> bool:
    """Progress bars are for people who watch."""
    return not as_json and sys.stderr.isatty()


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version")] = False) -> None:
    if version:
        typer.echo(f"kquant {__version__}")
        raise typer.Exit


GoesOn = Annotated[Path | None, typer.Option("--folder", help="For what was measured, to go on from there")]


@app.command()
@refusing
def analyze(
    model: Annotated[Path, typer.Argument(help="A model saved by Keras, quantized or not", metavar="MODEL.keras")],
    data: Data,
    labels: Annotated[Path | None, typer.Option("--labels", help="Class numbers (.npy): measure accuracy")] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="For a float model; int8 by default")] = None,
    target: Target = targets.DEFAULT,
    path: Annotated[Path | None, typer.Option("--path", help="Write a report with plots to this .html file")] = None,
    apply: Annotated[
        Path | None, typer.Option("--apply", help="Write the recipe with the remedy that gains most to this .toml file")
    ] = None,
    folder: GoesOn = None,
    scale: Scale = 1.0,  # type: ignore[assignment]
    limit: Limit = 256,
    as_json: Json = False,
) -> None:
    """Tell where a quantized model loses accuracy, and what to try; a float model is quantized first."""
    # before TensorFlow loads, as everything that can be refused by its name
    if apply is not None:
        check_results([apply], model, (".toml",))
    check_folder(folder, "analyze", "analysis")

    from kquant import report
    from kquant.analysis.diagnosis import analyze as run_analyze
    from kquant.analysis.metrics import top1
    from kquant.analysis.remedies import with_remedy
    from kquant.app import command_files

    if path is not None:
        report.check_html(path)
    keras_model = command_files.load_model(model)
    arrays = command_files.load_data(data, command_files.inputs_of(keras_model), scale=scale, limit=limit)
    # spread over the file as the samples are, so that each keeps its label
    metric = None if labels is None else top1(command_files.load_labels(labels, limit=limit))
    own = {"recipe": recipe, "target": target}
    keras_model, own = _quantized(keras_model, model, arrays, own, _bars(as_json))
    analysis = run_analyze(keras_model, arrays, metric, limit=limit, folder=folder, verbose=_bars(as_json))
    if path is not None:
        report.html(analysis, path)
    say(analysis, as_json)
    if path is not None and not as_json:
        typer.echo(f"\n{path}: the report with plots")
    if not as_json:
        given = {"data": data, "labels": labels, "scale": None if scale == 1.0 else scale}
        _say_remedy(analysis, model, {**given, **own}, apply)
    if apply is not None:  # last: where no remedy gained anything, the report says so
        _write_recipe(apply, with_remedy(keras_model, analysis, metric is None), as_json)


def _quantized(given: Any, path: Path, data: Any, own: dict[str, Any], verbose: bool) -> tuple[Any, dict[str, Any]]:
    """A quantized model as it is, and a float one quantized by these options; and those that were needed."""
    from kquant.app.pipeline import prepare
    from kquant.graph.keras_private import every_layer
    from kquant.views.quantized_model import is_quantized

    if not is_quantized(every_layer(given)):
        return prepare(given, data, own["recipe"] or "int8", target=own["target"], verbose=verbose), own
    if own["recipe"] is not None:
        raise ValueError(f"{path}: is quantized already; leave --recipe out.")
    return given, {}


def _say_remedy(analysis: Any, model: Path, options: dict[str, Any], apply: Path | None) -> None:
    """Commands that bring the remedy which gains most, as they are typed."""
    from kquant.analysis.remedies import splits_best
    from kquant.analysis.results import SPLIT

    source, stripping = model, []
    if "target" not in options:  # quantized: its float function is in it still
        source = Path(f"{model.stem}-float.keras")
        stripping = [_stripping(model, source)]
    split = splits_best(analysis, options.get("labels") is None)
    if split:
        lines = [*stripping, *_splitting(source, options, analysis.target)]
        typer.echo("\nWith what gains most, where the application divides the columns:\n" + "\n".join(lines))
    if not any(f.gain is not None and f.remedy and f.remedy != SPLIT for f in analysis.findings):
        return
    written = apply or Path("better.toml")
    lines = [told("analyze", model, {**options, "apply": written})] if apply is None else []
    lines += stripping
    # labelled samples are those that it is judged by: a model calibrated on them would be told better than it is
    read: dict[str, Any] = {name: options.get(name) for name in ("data", "scale")}
    if options.get("labels") is not None:
        read = {"data": CALIBRATION, "test": read["data"], "labels": options["labels"], "scale": read["scale"]}
    how = {**read, "recipe": written, "target": analysis.target, "folder": "better/"}
    lines.append(told("compress", source, how))
    head = "With what gains most where the application stays as it is" if split else "With what gains most"
    typer.echo(f"\n{head}:\n" + "\n".join(lines))


def _splitting(source: Path, options: dict[str, Any], target: str) -> list[str]:
    """Commands that take the scaling of columns out of a float model, and compress what is left."""
    labels, scale, test = options.get("labels"), options.get("scale"), options["data"]
    given = [test] if labels is None else [Path(CALIBRATION), test]  # the first tells the widths
    read = [word for path in given for word in ("--data", str(path))]
    scaled = [] if scale is None else ["--scale", str(scale)]
    first = shlex.join(["kquant", "split", str(source), *read, "--folder", "split/", *scaled])
    behind = [f"split/{path.stem}.npz" for path in given]
    how: dict[str, Any] = {"data": behind[0], "recipe": options.get("recipe"), "target": target, "folder": "better/"}
    if labels is not None:
        how |= {"test": behind[1], "labels": labels}
    return [first, told("compress", Path("split") / source.name, how)]


def _stripping(model: Path, source: Path) -> str:
    """How the float model is taken out of a quantized one, as it is typed."""
    load = f"keras.models.load_model({str(model)!r})"
    return shlex.join(["python", "-c", f"import keras, kquant; kquant.strip({load}).save({str(source)!r})"])


def _write_recipe(path: Path, recipe: Any, as_json: bool) -> None:
    from kquant.files.atomic import write_atomically
    from kquant.recipe.recipe import recipe_to_toml

    write_atomically(path, recipe_to_toml(recipe).encode(), "analyze")
    if not as_json:
        typer.echo(f"\n{path}: a recipe for kquant compress --recipe")


@app.command()
@refusing
def correct(
    model: Annotated[Path, typer.Argument(help="A model saved by Keras, quantized or not", metavar="MODEL.keras")],
    data: Data,
    steps: Annotated[
        str | None,
        typer.Option("--steps", help="In order, like 'equalize,calibrate,adaround:iterations=2000'", metavar="STEPS"),
    ] = None,
    path: Annotated[
        list[Path] | None,
        typer.Option("--path", help="File for the result, .keras or .tflite; give it twice for both", metavar="FILE"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what the steps would change; write nothing")] = False,
    recipe: Annotated[str | None, typer.Option("--recipe", help="For a float model; int8 by default")] = None,
    target: Annotated[
        str | None, typer.Option("--target", help=f"For a float model; {targets.DEFAULT} by default")
    ] = None,
    scale: Scale = 1.0,  # type: ignore[assignment]
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Run post-training corrections on a model, and tell what each layer gains; a float model is quantized first."""
    # one of the two: a run whose result goes nowhere is a dry run, and should say so
    if dry_run == bool(path):
        raise typer.BadParameter("give --path FILE.keras or FILE.tflite, or --dry-run")
    check_results(path or (), model)

    from kquant.analysis.try_steps import dry_run as try_steps
    from kquant.analysis.try_steps import run_steps
    from kquant.app import command_files
    from kquant.app.pipeline import to_correct

    keras_model = command_files.load_model(model)
    qmodel, chosen = to_correct(keras_model, steps, recipe, target)
    arrays = command_files.load_data(data, command_files.inputs_of(qmodel), scale=scale, limit=limit)
    changes = (try_steps if dry_run else run_steps)(qmodel, chosen, arrays, verbose=_bars(as_json))
    command_files.save_results(qmodel, path or (), arrays)
    say(changes, as_json)
    if path and not as_json:
        typer.echo("\nwritten: " + ", ".join(map(str, path)))


@app.command()
@refusing
def scan(
    model: Annotated[Path, typer.Argument(help="A float model saved by Keras", metavar="MODEL.keras")],
    data: Data,
    sparsity: Annotated[float, typer.Option("--sparsity", min=0.0, max=1.0, help="Share of zeros in total")] = 0.5,
    structure: Annotated[str, typer.Option("--structure", help="unstructured, or blocks like 4x1")] = "unstructured",
    labels: Annotated[Path | None, typer.Option("--labels", help="Class numbers (.npy): judge by accuracy")] = None,
    path: Annotated[
        Path | None, typer.Option("--path", help="Write the proposal as a recipe to this .toml file")
    ] = None,
    recipe: Annotated[str, typer.Option("--recipe", help="What else that recipe says")] = "prune50-int8",
    folder: GoesOn = None,
    scale: Scale = 1.0,  # type: ignore[assignment]
    limit: Limit = 256,
    as_json: Json = False,
) -> None:
    """Prune each layer alone, without training, and propose a sparsity for each: a recipe to train with."""
    if path is not None:
        check_results([path], model, (".toml",))

    from kquant.analysis.metrics import top1_of
    from kquant.app import command_files
    from kquant.files.atomic import write_atomically
    from kquant.recipe import recipe as recipes
    from kquant.search.sparsity_scan import scan_sparsity

    base, keras_model = recipes.load(recipe), command_files.load_model(model)
    arrays = command_files.load_data(data, command_files.inputs_of(keras_model), scale=scale, limit=limit)
    judge: dict[str, Any] = {"data": arrays}
    if labels is not None:
        judge = {"evaluate": top1_of(arrays, command_files.load_labels(labels, limit=limit))}
    options = {"sparsity": sparsity, "structure": structure, "limit": limit, "folder": folder}
    proposal = scan_sparsity(keras_model, **judge, **options, verbose=_bars(as_json))
    if path is not None:
        write_atomically(path, recipes.recipe_to_toml(proposal.to_recipe(base)).encode(), "scan")
    say(proposal, as_json)
    if path is not None and not as_json:
        typer.echo(f"\n{path}: a recipe for kquant.prune; train with its masks, then kquant compress --recipe")


@app.command()
@refusing
def autotune(
    model: Model,
    data: Data,
    labels: Annotated[Path, typer.Option("--labels", help="Class numbers (.npy) of the samples (--test)")],
    folder: Annotated[
        Path, typer.Option("--folder", help="Folder for the results, and for going on where it was stopped")
    ],
    test: Annotated[
        Path | None,
        typer.Option("--test", help="Samples that --labels are of, to judge by; by default those of --data"),
    ] = None,
    max_drop: Annotated[
        float, typer.Option("--max-drop", min=0.0, max=1.0, help="Accuracy that may be lost, 0.01 is a point")
    ] = 0.01,
    recipe: Annotated[str, typer.Option("--recipe", help="The first one to try")] = "int8",
    target: Target = targets.DEFAULT,
    scale: Scale = 1.0,  # type: ignore[assignment]
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Try dearer recipes until the accuracy on the samples holds: .tflite, quantized .keras and reports."""
    from kquant.analysis.metrics import top1_of
    from kquant.app import command_files
    from kquant.app.result_files import AutotuneFiles
    from kquant.files.atomic import Outputs
    from kquant.search.ladder import autotune as run_autotune

    results = AutotuneFiles(folder, model.stem)
    with command_files.output_folder(folder, model) as kept:
        new = Outputs(results.paths, "autotune")  # refuses before the search what could not be written after it
        keras_model = command_files.load_model(model)
        takes = command_files.inputs_of(keras_model)
        arrays = command_files.load_data(data, takes, scale=scale, limit=limit)
        judged = arrays if test is None else command_files.load_data(test, takes, scale=scale, limit=limit)
        tuned = run_autotune(
            keras_model,
            arrays,
            top1_of(judged, command_files.load_labels(labels, limit=limit)),
            max_drop=max_drop,
            target=target,
            recipe=recipe,
            folder=kept,
            verbose=_bars(as_json),
        )
        with new:
            results.write(tuned, arrays, new)
    say(tuned, as_json)
    raise typer.Exit(0 if tuned.ok else LOST)


@app.command()
@refusing
def verify(
    model: Annotated[Path, typer.Argument(help="The quantized model", metavar="QUANTIZED.keras")],
    file: Lite,
    data: Data,
    runtime: Annotated[
        str | None, typer.Option("--runtime", help="litert (XNNPACK), litert-reference, tflm; by default the target's")
    ] = None,
    agreement: Annotated[float, typer.Option("--agreement", help="dB to reach on one that rounds otherwise")] = 20.0,
    labels: Labels = None,
    scale: Scale = 1.0,  # type: ignore[assignment]
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Compare a .tflite file with the quantized model that it was exported from: on 64 samples, with labels all."""
    from kquant import report
    from kquant.app import answers_right, command_files
    from kquant.exporting.verification import verify as run_verify
    from kquant.runtime.running import predict as run_predict

    limit = FEW if limit is None and labels is None else limit  # codes differ in a few or not at all; shares want all
    qmodel = command_files.load_model(model)
    arrays = command_files.load_data(data, command_files.inputs_of(qmodel), scale=scale, limit=limit)
    judge = None if labels is None else command_files.load_labels(labels, limit=limit)
    compared = run_verify(qmodel, file, arrays, runtime, limit=limit, agreement=agreement)
    if judge is None:
        say(compared, as_json)
    else:
        by_file = run_predict(file, arrays, compared.runtime, verbose=False)
        # a parameter of Keras has the type of its default
        by_model = qmodel.predict(arrays, verbose=0)  # pyright: ignore[reportArgumentType]
        answers = {"model": by_model, "file": by_file}
        shares = answers_right.accuracies(judge, answers)
        if as_json:
            typer.echo(answers_right.with_accuracies(report.to_json(compared), shares))
        else:
            say(compared, as_json)
            answers_right.say_accuracies(shares, len(judge), compared.runtime)
    raise typer.Exit(0 if compared.ok else 1)


@app.command()
@refusing
def predict(
    file: Lite,
    data: Data,
    runtime: Runtime = "litert",
    path: Annotated[Path | None, typer.Option("--path", help="Write the outputs to this .npz file")] = None,
    labels: Labels = None,
    scale: Scale = 1.0,  # type: ignore[assignment]
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Run a .tflite file on samples; real numbers in, real numbers out."""
    from kquant import report
    from kquant.app import answers_right, command_files
    from kquant.runtime.running import predict as run_predict
    from kquant.tflite.reader import inspect as run_inspect

    if path is not None:
        command_files.check_arrays_file(path)
    described = run_inspect(file)
    arrays = command_files.load_data(data, command_files.inputs_of(described), scale=scale, limit=limit)
    judge = None if labels is None else command_files.load_labels(labels, limit=limit)
    numbers = run_predict(file, arrays, runtime, verbose=_bars(as_json))
    shares = {} if judge is None else answers_right.accuracies(judge, {"file": numbers})
    outputs = command_files.named_outputs(described, numbers)
    if path is not None:
        command_files.save_arrays(path, outputs)
    if as_json:
        typer.echo(answers_right.with_accuracies(report.arrays_to_json(outputs), shares))
        return
    typer.echo(report.render_arrays(outputs), nl=False)  # which ends its last line itself
    if judge is not None:
        answers_right.say_accuracies(shares, len(judge), runtime)


@app.command()
@refusing
def demo(
    folder: Annotated[Path, typer.Option("--folder", help="Folder for the .tflite files")] = Path("demo-output"),
    as_json: Json = False,
) -> None:
    """The main job on scikit-learn's handwritten digits: train, quantize, run everywhere, one table."""
    from kquant.app import demo as digits

    result = digits.run(folder, verbose=not as_json)
    typer.echo(digits.to_json(result) if as_json else digits.render(result), nl=as_json)


app.command()(compress_command.compress)
app.command("export")(project_command.export)
app.command()(detect_command.detect)
app.command()(transcribe_command.transcribe)
app.command()(view_command.view)
app.command()(migrate_command.migrate)
app.command()(split_command.split)
app.command()(telling.check)
app.command()(telling.size)
app.command()(telling.inspect)
app.command("bytes")(telling.weight_bytes)
app.command()(telling.recipes)


def _stop(number: int, _frame: Any) -> None:
    """End like after Ctrl-C: what was begun beside the results is cleared on the way out."""
    # 128 + number, as a shell reports it; SystemExit lets every `finally` on the way clean up
    sys.stderr.write(f"kquant: stopped by {signal.Signals(number).name}; results of earlier runs are as they were.\n")
    raise SystemExit(128 + number)


TOLD: set[str] = set()
FIGURE = re.compile(r"(?<![\w.])[-+]?\d[\d,.]*(?:e[-+]?\d+)?(?!\w)")  # and no digit of a layer's name


def _once(message: Warning | str, *_args: Any, **_kwargs: Any) -> str:
    """The line of a warning; none where it was told before, as searches call a verb once for each rung."""
    line = f"warning: {typed(str(message))}\n"
    # each rung of a search has other figures of the same tensors
    said = FIGURE.sub("#", line)
    new = said not in TOLD
    TOLD.add(said)
    return line if new else ""


def main() -> None:
    """Entry point of the command: kquant's own words only.

    TensorFlow's C++ writes start-up lines to file descriptor 2. Python keeps the real standard error for messages and
    progress bars; TF_CPP_MIN_LOG_LEVEL=0 shows everything.
    """
    collector.wait()
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "0":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _stop)
    warnings.filterwarnings("default", "kquant ", DeprecationWarning)  # of `new_options`: who types them should know
    # without file and line of kquant's own code, which are nothing to whoever types commands
    warnings.formatwarning = _once
    app()


if __name__ == "__main__":
    main()

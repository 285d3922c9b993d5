"""Options and arguments that several commands take, how a command refuses, and how it prints.

Checks import what they ask when they run: NumPy and the recipes would be half of what `kquant --help` waits for.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import shlex
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import typer

from kquant import targets
from kquant.app.remedies_typed import typed
from kquant.core.checks import bytes_of, is_within
from kquant.core.messages import check_known
from kquant.files.named_files import check_data, check_labels_file, check_lite_file, check_model_file


class Io(StrEnum):
    """Types of a file's inputs and outputs."""

    model = "model"
    int8 = "int8"
    uint8 = "uint8"
    int16 = "int16"
    float32 = "float32"


class StateKeeper(StrEnum):
    """Where a streaming file keeps older frames."""

    io = "io"
    variables = "variables"


def fraction(text: str) -> float:
    """`0.5` or `1/255`."""
    try:
        # 1/255 has no exact decimal, and is what everybody means
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        raise typer.BadParameter(f"expected a number or a fraction like 1/255. Received: {text}") from None


def shape(text: str) -> tuple[int | None, ...]:
    """`96,96,3` -> (None, 96, 96, 3)."""
    try:
        return (None, *(int(part) for part in text.replace("x", ",").split(",")))
    except ValueError:
        raise typer.BadParameter(f"expected sizes like 96,96,3. Received: {text}") from None


def size(text: str) -> int:
    """`256KB` -> 262144, as the memories of devices are counted; `1.5MB`, or bytes without a unit.

    Example:
        >>> size("256KB"), size("1.5 MiB"), size("4096")
        (262144, 1572864, 4096)
    """
    amount = bytes_of(text)
    if amount is None:
        raise typer.BadParameter(f"expected a size like 256KB or 1MB, or whole bytes. Received: {text}")
    return amount


def numbers(text: str) -> list[float]:
    """`0.5` or `0.485,0.456,0.406`, one for each channel.

    Example:
        >>> numbers("1/2"), numbers("0.5, 2")
        ([0.5], [0.5, 2.0])
    """
    return [fraction(part) for part in text.split(",")]


LOST = 3  # exit code: files are written, and more accuracy is lost than --max-drop allows
Model = Annotated[Path, typer.Argument(help="A model saved by Keras", metavar="MODEL.keras")]
Lite = Annotated[Path, typer.Argument(help="A TFLite file", metavar="FILE.tflite")]
Data = Annotated[
    Path,
    typer.Option("--data", help="Samples: .npz (array x, or one for each input), .npy, or a folder of images"),
]
Scale = Annotated[
    float, typer.Option("--scale", parser=fraction, help="Factor for every value of the data, like 1/255 for images")
]
Mean = Annotated[
    Any, typer.Option("--mean", parser=numbers, help="Taken from the first input, behind --scale", metavar="M,M,...")
]
Std = Annotated[Any, typer.Option("--std", parser=numbers, help="What it is divided by then", metavar="S,S,...")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Use this many samples, evenly spread")]
Target = Annotated[str, typer.Option("--target", help="Where to run it: litert, tflm, gpu... (docs/targets.md)")]
TargetOrNone = Annotated[str | None, typer.Option("--target", help=f"For a float model; {targets.DEFAULT} by default")]
Runtime = Annotated[str, typer.Option("--runtime", help="litert (XNNPACK), litert-reference or tflm")]
RuntimeOrNone = Annotated[
    str | None,
    typer.Option("--runtime", help="For a TFLite file: litert (XNNPACK; by default), litert-reference or tflm"),
]
HEAD = typer.Option("--detection", help="What the outputs of a detector mean (.toml, docs/detection.md)")
Head = Annotated[Path, HEAD]
HeadOrNone = Annotated[Path | None, HEAD]
CtcOrNone = Annotated[
    Path | None, typer.Option("--ctc", help="What the scores of a network trained with CTC mean (.toml)")
]
ChoosesOrNone = Annotated[
    Path | None, typer.Option("--detection", help="Let a detector's file choose boxes itself, in float (.toml)")
]
Shape = Annotated[
    Any, typer.Option("--input-shape", parser=shape, help="For open dimensions, like 96,96,3", metavar="H,W,C")
]
Flash = Annotated[
    int | None, typer.Option("--flash", parser=size, help="Tell whether it fits, like 256KB", metavar="SIZE")
]
Arena = Annotated[
    int | None, typer.Option("--arena", parser=size, help="Tell whether it fits, like 64KB", metavar="SIZE")
]
Edges = Annotated[Io, typer.Option("--io", help="Type of the file's inputs and outputs")]
States = Annotated[StateKeeper, typer.Option("--states", help="Where a stream keeps older frames")]
Streaming = Annotated[int, typer.Option("--streaming", min=0, help="Results in time that a call gives")]
Compression = Annotated[
    str | None,
    typer.Option("--compression", help="Codes that tflm decodes: auto, lut (tables), prune (bit masks) or huffman"),
]
DecodeBudget = Annotated[
    int | None,
    typer.Option("--decode-budget", parser=size, help="How much arena that may take, like 8KB", metavar="SIZE"),
]
StripNames = Annotated[bool, typer.Option("--strip-names", help="Leave out names, which kernels do not read")]
Shrink = Annotated[bool, typer.Option("--shrink/--no-shrink", help="Leave out channels that no output code depends on")]
MaxDrop = Annotated[
    float | None,
    typer.Option("--max-drop", min=0.0, max=1.0, help="Accuracy that may be lost, 0.01 is a point; exit code 3 beyond"),
]
Code = Annotated[
    Path | None, typer.Option("--code", help="Python file of yours with the model's own layers; it is run")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else, on standard output")]

# What a file is to be like, on every command that writes one: arguments of `kquant.export`, and what they are without
# a word.
FORM: dict[str, tuple[Any, Any]] = {
    "io": (Edges, Io.model),
    "streaming": (Streaming, 0),
    "states": (States, StateKeeper.io),
    "compression": (Compression, None),
    "decode_budget": (DecodeBudget, None),
    "strip_names": (StripNames, False),
    "shrink": (Shrink, True),
}


def writing(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the options of `FORM` in the place of its parameter `form`, which gets them by name."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        given = {name: kwargs.pop(name) for name in FORM}
        command(*args, form={name: getattr(value, "value", value) for name, value in given.items()}, **kwargs)

    own = inspect.signature(command, eval_str=True)  # the names in it are those of the command's module
    shown: list[inspect.Parameter] = []
    for name, one in own.parameters.items():
        options = FORM if name == "form" else {name: (one.annotation, one.default)}
        by_word = inspect.Parameter.KEYWORD_ONLY
        shown += [inspect.Parameter(word, by_word, default=d, annotation=kind) for word, (kind, d) in options.items()]
    _show(run, shown)
    return run


def _recipe(value: str) -> None:
    from kquant.calibration import observers
    from kquant.correct.steps import check_step
    from kquant.recipe import recipe as recipes

    chosen = recipes.load(value)
    tables = [table for rule in chosen.rules for table in (rule.activations, rule.weights)]
    named = [table["observer"] for table in tables if "observer" in table]
    # `recipe` stands below those who know the names of observers and steps, and takes any
    for name in (chosen.activations.observer, chosen.weights.observer, *named):
        observers.find(name)
    for step in chosen.steps:
        check_step(step.name)


def _kind(value: str) -> None:
    from kquant.projects.kinds import kind_of

    kind_of(value)


def _detection(value: Path) -> None:
    from kquant.detecting.detection_file import read_detection

    read_detection(value)


def _ctc(value: Path) -> None:
    from kquant.transcribing.ctc_file import read_ctc

    read_ctc(value)


def _steps(value: str) -> None:
    from kquant.correct.steps import check_step, split_steps

    for name, _ in split_steps(value):
        check_step(name)


def _runtime(value: str) -> None:
    from kquant.runtime.interpreters import RUNTIMES

    check_known(f"runtime '{value}' does not exist", value, RUNTIMES)


# What is looked at before TensorFlow loads, by the name of the argument: a wrong one is told at once.
CHECKS: dict[str, Callable[[Any], Any]] = {
    "model": check_model_file,
    "file": check_lite_file,
    "data": check_data,
    "labels": check_labels_file,
    "recipe": _recipe,
    "target": targets.load,
    "runtime": _runtime,
    "steps": _steps,
    "kind": _kind,
    "detection": _detection,
    "ctc": _ctc,
}


def answers_in(detection: Path | None, ctc: Path | None) -> dict[str, Any]:
    """What the files say that outputs mean, as arguments of verbs."""
    from kquant.detecting.detection_file import read_detection
    from kquant.transcribing.ctc_file import read_ctc

    given = {"detection": (read_detection, detection), "ctc": (read_ctc, ctc)}
    return {name: None if path is None else read(path) for name, (read, path) in given.items()}


def told(command: str, model: Path, options: Mapping[str, Any]) -> str:
    """A command as it is typed.

    Args:
        command: its name.
        model: that it takes.
        options: by the names of their arguments; those that are None or False are left out.

    Example:
        >>> told("export", Path("my net.keras"), {"data": "x.npz", "strip_names": True, "io": None})
        "kquant export 'my net.keras' --data x.npz --strip-names"
    """
    given = {
        f"--{name.replace('_', '-')}": value
        for name, value in options.items()
        if value is not None and value is not False
    }
    words = [word for name, value in given.items() for word in ([name] if value is True else [name, str(value)])]
    return shlex.join(["kquant", command, str(model), *words])


def check_max_drop(max_drop: float | None, labels: Path | None) -> None:
    """That somebody can tell what was lost.

    Raises:
        typer.BadParameter: without labels.
    """
    if max_drop is not None and labels is None:
        raise typer.BadParameter("--max-drop needs --labels: without classes nobody can tell what is lost")


def exit_where_lost(card: Any, max_drop: float | None) -> None:
    """End with `LOST` where a file has lost more accuracy than was allowed.

    Args:
        card: of the file, which is written.
        max_drop: None: all may be lost.

    Raises:
        typer.Exit: it has.
    """
    if max_drop is not None and card.drop is not None and not is_within(card.drop, max_drop):
        lost = f"{100 * card.drop:.2f} points of accuracy are lost, and --max-drop {max_drop:g} allows"
        typer.echo(f"kquant: {lost} {100 * max_drop:g}. The files are written; run: {card.look}", err=True)
        raise typer.Exit(LOST)


def check_runtime_of(model: Path, runtime: str | None) -> None:
    """That a runtime was named for a file only.

    Raises:
        ValueError: for a Keras model.
    """
    if runtime is not None and model.suffix != ".tflite":
        raise ValueError(
            f"--runtime {runtime}: runs TFLite files, and {model} is a Keras model, which runs itself. Export it "
            "first, or leave --runtime out."
        )


def refusing(command: Callable[..., None]) -> Callable[..., None]:
    """What kquant refuses: its own message on standard error, exit code 1, no traceback.

    Each command that loads a model gets the option `--code`, for layers that kquant and Keras do not know.
    """

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        code = kwargs.pop("code") if loads else None
        try:
            for name, check in CHECKS.items():
                if kwargs.get(name) is not None:
                    check(kwargs[name])
            with _knowing(code):
                command(*args, **kwargs)
        except (ValueError, OSError, ImportError) as error:
            typer.echo(f"kquant: {typed(str(error), kwargs)}", err=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as stop:
            typer.echo(f"\nkquant: stopped by Ctrl-C; no file is half written{_goes_on(kwargs)}.", err=True)
            raise typer.Exit(130) from stop

    own = inspect.signature(command, eval_str=True)  # the names in it are those of the command's module
    loads = "model" in own.parameters
    shown = list(own.parameters.values())
    if loads:
        shown.append(inspect.Parameter("code", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Code))
    _show(run, shown)
    return run


def _show(run: Any, parameters: list[inspect.Parameter]) -> None:
    """Let typer see these parameters: it reads both."""
    run.__signature__ = inspect.Signature(parameters)
    run.__annotations__ = {one.name: one.annotation for one in parameters}


@contextlib.contextmanager
def _knowing(code: Path | None) -> Iterator[None]:
    """While a command runs: what a file of Python defines has its names in files of models."""
    if code is None:
        yield
        return
    from kquant.app.code_files import definitions

    own = definitions(code, "--code")
    import keras

    with keras.saving.custom_object_scope(own):
        yield


def _goes_on(given: Mapping[str, Any]) -> str:
    """What a stopped command has kept, for behind a sentence."""
    if given.get("folder") is None:
        return ""
    # a compress without a budget may find rungs of an earlier one in its folder, and does not go on from them
    place = "rungs/rungs.json" if given.get("flash_bytes") is not None else "rungs.json"
    kept = Path(given["folder"]) / place
    return f", and the same command goes on from {kept}" if kept.is_file() else ""


def say(result: Any, as_json: bool, *, details: bool = True) -> None:
    """Print a result: as tables, with or without those that are looked up, or as JSON and nothing else."""
    from kquant import report

    if as_json:
        typer.echo(report.to_json(result))
    else:
        report.show(result, details=details)


def say_rows(who: str, rows: Any, table: Any, path: Path | None, as_json: bool) -> None:
    """Print what was found of samples as a table, or as the JSON that goes to `path` as well."""
    import json

    from kquant import report
    from kquant.files.atomic import write_atomically

    text = json.dumps(rows, indent=1)
    if path is not None:
        write_atomically(path, f"{text}\n".encode(), who)
    typer.echo(text if as_json else report.render_table(table), nl=as_json)

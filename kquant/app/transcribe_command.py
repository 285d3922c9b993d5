"""`kquant transcribe`: the labels that a network trained with CTC reads, as a device reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kquant.app.options import (
    CtcOrNone,
    Data,
    Json,
    Limit,
    RuntimeOrNone,
    Scale,
    answers_in,
    check_runtime_of,
    refusing,
    say_rows,
)
from kquant.files.named_files import check_labels_file, check_results

COLUMNS = ("sample", "text", "labels", "steps")


@refusing
def transcribe(
    model: Annotated[Path, typer.Argument(help="A TFLite file, or a model saved by Keras", metavar="MODEL")],
    data: Data,
    ctc: CtcOrNone = None,
    lengths: Annotated[Path | None, typer.Option("--lengths", help="Steps that count of each sample (.npy)")] = None,
    runtime: RuntimeOrNone = None,
    path: Annotated[Path | None, typer.Option("--path", help="Write the labels to this .json file")] = None,
    scale: Scale = 1.0,  # type: ignore[assignment]
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Read labels from scores of steps: the best class of each, without repeats and blanks, as C does it."""
    if path is not None:
        check_results([path], model, (".json",))
    if lengths is not None:
        check_labels_file(lengths)
    check_runtime_of(model, runtime)

    from kquant import report
    from kquant.app import command_files
    from kquant.transcribing.best_path import transcribe as run_transcribe

    subject, takes = command_files.subject_of(model)
    arrays = command_files.load_data(data, takes, scale=scale, limit=limit)
    counts = None if lengths is None else command_files.load_labels(lengths, limit=limit)
    said = run_transcribe(subject, arrays, answers_in(None, ctc)["ctc"], lengths=counts, runtime=runtime or "litert")
    rows = [{"text": one.text, "labels": one.labels.tolist(), "steps": one.steps.tolist()} for one in said]
    cells = tuple((str(n), *(str(value) for value in row.values())) for n, row in enumerate(rows))
    title = f"{sum(map(len, said))} labels in {len(rows)} samples, and the steps at which they begin"
    say_rows("transcribe", rows, report.Table(title, COLUMNS, cells), path, as_json)

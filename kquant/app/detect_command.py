"""`kquant detect`: the boxes that a detector finds, chosen as a device chooses them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kquant.app.options import Data, Head, Json, Limit, RuntimeOrNone, Scale, check_runtime_of, refusing, say_rows
from kquant.files.named_files import check_results

COLUMNS = ("sample", "class", "score", "top", "left", "bottom", "right")


@refusing
def detect(
    model: Annotated[Path, typer.Argument(help="A TFLite file, or a model saved by Keras", metavar="MODEL")],
    data: Data,
    detection: Head,
    classes: Annotated[Path | None, typer.Option("--classes", help="Names of classes (.txt), a line each")] = None,
    runtime: RuntimeOrNone = None,
    path: Annotated[Path | None, typer.Option("--path", help="Write the boxes to this .json file")] = None,
    scale: Scale = 1.0,  # type: ignore[assignment]
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Find boxes in samples: raw outputs are decoded and chosen, in integers of a file, as C does it on a device."""
    if path is not None:
        check_results([path], model, (".json",))
    check_runtime_of(model, runtime)

    from kquant import report
    from kquant.app import command_files
    from kquant.detecting.detection_file import read_detection
    from kquant.detecting.outputs import detect as run_detect
    from kquant.detecting.outputs import roles_in
    from kquant.tflite.file_about import check_labels

    names = command_files.load_names(classes) if classes else []
    subject, takes = command_files.subject_of(model)
    head = read_detection(detection)
    roles = roles_in(subject, head)
    check_labels(names, (1, roles.rows, roles.scores.many), 0, f"--classes {classes}")
    arrays = command_files.load_data(data, takes, scale=scale, limit=limit)
    rows = [_rows(each, names) for each in run_detect(subject, arrays, head, runtime=runtime or "litert")]
    cells = [(str(n), *map(_cell, row.values())) for n, sample in enumerate(rows) for row in sample]
    title = f"{len(cells)} boxes in {len(rows)} samples, corners in parts of the image"
    say_rows("detect", rows, report.Table(title, COLUMNS, tuple(cells)), path, as_json)


def _rows(boxes: Any, names: list[str]) -> list[dict[str, Any]]:
    """Of one sample."""
    of = zip(boxes.classes.tolist(), boxes.scores.tolist(), boxes.boxes.tolist(), strict=True)
    return [
        {
            "class": names[label] if names else label,
            "score": score,
            **dict(zip(COLUMNS[3:], box, strict=True)),
        }
        for label, score, box in of
    ]


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)

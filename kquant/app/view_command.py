"""`kquant view`: the figures of a file on its graph, in Model Explorer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kquant.app.options import Json, Limit, Lite, Scale, refusing, say


@refusing
def view(
    file: Lite,
    model: Annotated[
        Path | None, typer.Option("--model", help="The quantized model it was exported from: tell errors, too")
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Samples for the errors, see kquant export")] = None,
    folder: Annotated[Path | None, typer.Option("--folder", help="For the node data; the file's by default")] = None,
    start: Annotated[
        bool | None, typer.Option("--start/--no-start", help="Open Model Explorer; by default where it is installed")
    ] = None,
    scale: Scale = 1.0,  # type: ignore[assignment]
    limit: Limit = 256,
    as_json: Json = False,
) -> None:
    """Write bytes, multiplications, arena and error of each operator for Model Explorer, and open the file in it."""
    if (model is None) != (data is None):
        raise typer.BadParameter("errors are told of a model and samples: give --model and --data, or neither")

    from kquant.report import node_data

    if start and node_data.find_explorer() is None:
        raise ImportError(f"--start {node_data.NEEDED}")
    analysis = None
    if model is not None and data is not None:
        from kquant.analysis.diagnosis import analyze
        from kquant.app import command_files

        qmodel = command_files.load_model(model)
        arrays = command_files.load_data(data, command_files.inputs_of(qmodel), scale=scale, limit=limit)
        analysis = analyze(qmodel, arrays, limit=limit, sensitivity=False, remedies=False, verbose=False)
    made = node_data.view(file, analysis=analysis, folder=folder)
    say(made, as_json)
    if node_data.find_explorer() is None:
        if not as_json:
            typer.echo(f"\nTo see them on the graph: kquant view {node_data.NEEDED}")
    elif start or start is None:
        node_data.show(made)

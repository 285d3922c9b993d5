"""`kquant split`: what scales inputs leaves the model, for the application to do; and samples for what is left."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kquant.app.options import Json, Limit, Model, Scale, refusing
from kquant.files.named_files import check_data

if TYPE_CHECKING:
    from kquant.prepare.split_inputs import SplitModel


@refusing
def split(
    model: Model,
    folder: Annotated[Path, typer.Option("--folder", help="Folder for both models, and for the samples")],
    files: Annotated[
        list[Path] | None,
        typer.Option("--data", help="Samples to bring over as well, see kquant compress; more than once for more"),
    ] = None,
    scale: Scale = 1.0,  # type: ignore[assignment]
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Split a model behind the layers that scale its inputs: preprocessing.keras, MODEL.keras, and samples for that."""
    import json

    import keras
    import numpy as np

    from kquant.app import command_files
    from kquant.files.atomic import Outputs
    from kquant.prepare.split_inputs import split_preprocessing

    before, after = folder / "preprocessing.keras", folder / f"{model.stem}.keras"
    arrays = {source: folder / f"{source.stem}.npz" for source in files or ()}
    for source in arrays:
        check_data(source)
    _refuse_twice({before: "what scales inputs"}, {model: after, **arrays})
    with command_files.output_folder(folder, model):
        new = Outputs([before, after, *arrays.values()], "split")
        given = command_files.load_model(model)
        takes = command_files.inputs_of(given)
        shown = command_files.load_data(next(iter(arrays)), takes, scale=scale, limit=limit) if arrays else None
        parts = split_preprocessing(given, shown)
        names = [each.name for each in command_files.inputs_of(parts.model)]
        with new:
            command_files.save_model(parts.preprocessing, before, new)
            command_files.save_model(parts.model, after, new)
            for source, path in arrays.items():
                samples = command_files.load_data(source, takes, scale=scale, limit=limit)
                scaled = keras.tree.flatten(parts.preprocessing.predict(samples, verbose=0))
                held = {name: np.asarray(x) for name, x in zip(names, scaled, strict=True)}
                new.write(path, command_files.arrays_file(held))
    if as_json:
        made = {"preprocessing": before, "model": after, "data": list(arrays.values()), "moved": parts.moved}
        made["widths"] = [None if each is None else each.tolist() for each in parts.widths]
        typer.echo(json.dumps(made, default=str))
        return
    _tell(parts, before, after, arrays)


def _tell(parts: SplitModel, before: Path, after: Path, arrays: dict[Path, Path]) -> None:
    by = ", ".join(parts.moved) or "a division of each column by its width in the samples"
    typer.echo(f"{before}: {by}, which the application computes in float")
    first = parts.widths[0] if parts.widths else None
    if first is not None and len(parts.widths) == 1:  # as --mean and --std have it: (x - mean) / std
        numbers = ",".join(f"{width:.9g}" for width in first)
        typer.echo(f"kquant export takes raw samples with --mean {','.join('0' for _ in first)} --std {numbers}")
    typer.echo(f"{after}: the rest, for kquant compress")
    for source, path in arrays.items():
        typer.echo(f"{path}: {source} behind {before.name}")
    if arrays:
        typer.echo("Samples to test with go the same way: give --data again in this call; the first tells the widths.")


def _refuse_twice(taken: dict[Path, object], made: dict[Path, Path]) -> None:
    """Results go by the names of what they are made of, of which two may be alike.

    Raises:
        ValueError: two of them would be one file.
    """
    for source, path in made.items():
        if path in taken:
            raise ValueError(f"split: {source} and {taken[path]} would both be written to {path}; rename {source}.")
        taken[path] = source

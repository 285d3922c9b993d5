"""Commands that tell of a model, a file or the recipes, and write nothing."""

from __future__ import annotations

from typing import Annotated

import typer

from kquant import targets
from kquant.app.options import (
    Arena,
    Compression,
    CtcOrNone,
    Edges,
    Flash,
    HeadOrNone,
    Io,
    Json,
    Lite,
    Model,
    Shape,
    Target,
    answers_in,
    refusing,
    say,
)


@refusing
def check(
    model: Model,
    target: Target = targets.DEFAULT,
    recipe: Annotated[str | None, typer.Option("--recipe", help="Tell the bits of every layer's weights, too")] = None,
    input_shape: Shape = None,
    detection: HeadOrNone = None,
    ctc: CtcOrNone = None,
    as_json: Json = False,
) -> None:
    """Tell for every layer whether it can be integer on a target, and where it runs there, before any training."""
    from kquant.app import command_files
    from kquant.placing.checking import check as run_check

    about = {"recipe": recipe, "input_shape": input_shape, **answers_in(detection, ctc)}
    found = run_check(command_files.load_model(model), target, **about)
    say(found, as_json)
    raise typer.Exit(0 if found.ok else 1)


@refusing
def size(
    model: Model,
    target: Target = targets.DEFAULT,
    recipe: Annotated[str, typer.Option("--recipe", help="Name (see `kquant recipes`) or a .toml file")] = "int8",
    flash: Flash = None,
    arena: Arena = None,
    io: Edges = Io.model,
    compression: Compression = None,
    input_shape: Shape = None,
    as_json: Json = False,
) -> None:
    """Tell what a model will take, before it is trained: flash, arena, multiplications, what would not run."""
    from kquant.app import command_files
    from kquant.sizing.estimation import estimate

    estimated = estimate(
        command_files.load_model(model),
        recipe,
        target=target,
        input_shape=input_shape,
        io=io.value,
        compression=compression,
        flash_bytes=flash,
        arena_bytes=arena,
    )
    say(estimated, as_json)
    raise typer.Exit(0 if estimated.ok else 1)


@refusing
def inspect(file: Lite, as_json: Json = False) -> None:
    """Show operators, types and encodings of any .tflite file, and what in it is not integer."""
    from kquant.tflite.reader import inspect as run_inspect

    described = run_inspect(file)
    say(described, as_json)
    raise typer.Exit(0 if described.is_integer else 1)


@refusing
def weight_bytes(file: Lite, as_json: Json = False) -> None:
    """Count the bytes of the weights, in every form, and tell what every byte of the file is."""
    from kquant.tflite.weight_bytes import layer_bytes

    say(layer_bytes(file), as_json)


@refusing
def recipes(as_json: Json = False) -> None:
    """List the recipes that ship with kquant."""
    import json

    from kquant.recipe import recipe

    shipped = {name: recipe.load(name) for name in recipe.names()}
    if as_json:
        typer.echo(json.dumps({name: r.model_dump(mode="json") for name, r in shipped.items()}, indent=2))
    else:
        width = max(map(len, shipped))
        typer.echo("\n".join(f"{name:{width}}  {r.title}" for name, r in shipped.items()))

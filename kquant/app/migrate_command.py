"""`kquant migrate`: a model of Keras 2, or one that tfmot wrapped -> a Keras 3 model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from kquant import targets
from kquant.app.code_files import definitions
from kquant.app.options import Json, Limit, Scale, Target, refusing, say
from kquant.files.named_files import check_results


@refusing
def migrate(
    old: Annotated[Path, typer.Argument(help="A .h5 or .keras file of Keras 2, or a SavedModel folder", metavar="OLD")],
    path: Annotated[Path, typer.Option("--path", help="File for the Keras 3 model, .keras")],
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Samples (.npz, .npy), for tensors of which tfmot learned no range"),
    ] = None,
    target: Target = targets.DEFAULT,
    python: Annotated[
        Path | None,
        typer.Option("--python", help="Interpreter of an environment that has tf_keras; this one by default"),
    ] = None,
    code: Annotated[
        Path | None,
        typer.Option("--code", help="Python file of yours with the old custom layers, for tf_keras; it is run"),
    ] = None,
    new_code: Annotated[
        Path | None,
        typer.Option("--new-code", help="Python file of yours with the same layers for Keras 3; it is run"),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option("--compare/--no-compare", help="Run the old model too; without, a .h5 file needs no tf_keras"),
    ] = True,
    scale: Scale = 1.0,  # type: ignore[assignment]
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Bring a model of Keras 2 or tfmot over, with its weights, learned ranges, masks and shared values."""
    check_results([path], old, (".keras",))
    given = {} if new_code is None else definitions(new_code, "migrate: --new-code")

    from kquant.app import command_files
    from kquant.files.atomic import Outputs
    from kquant.migrate.migration import migrate as run_migrate

    def samples(model: Any) -> Any:
        return command_files.load_data(data or "", command_files.inputs_of(model), scale=scale, limit=limit)

    settings = {"target": target, "python": python, "compare": compare, "code": code, "custom_objects": given}
    verbose = not as_json and sys.stderr.isatty()
    made = run_migrate(old, None if data is None else samples, **settings, verbose=verbose)
    with Outputs([path], "--path") as new:
        command_files.save_model(made.model, path, new)
    say(made, as_json)
    if not as_json:
        typer.echo(
            f"\n{path}: the model; keras.models.load_model reads it"
            + (" after import kquant" * made.has_layers_of_kquant)
            + (f", with custom_objects= of what {new_code} defines" if given else "")
        )

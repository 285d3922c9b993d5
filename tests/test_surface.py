"""One word for one thing, in every public signature and every command."""

from __future__ import annotations

import inspect

import typer

import kquant
from kquant import targets
from kquant.app import cli

FUNCTIONS = {name: getattr(kquant, name) for name in kquant.__all__ if inspect.isfunction(getattr(kquant, name))}
COMMANDS = typer.main.get_command(cli.app).commands


def test_every_verb_and_command_has_the_same_target() -> None:
    parameters = {name: inspect.signature(f).parameters for name, f in FUNCTIONS.items()}
    found = {name: p["target"].default for name, p in parameters.items() if "target" in p and name != "scan_sparsity"}
    options = {name: {p.name: p.default for p in command.params} for name, command in COMMANDS.items()}
    found |= {f"kquant {name}": p["target"] for name, p in options.items() if "target" in p and name != "correct"}
    assert len(found) > 7 and set(found.values()) == {targets.DEFAULT}, found

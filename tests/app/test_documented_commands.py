"""Every `kquant` command that a page, a notebook or a docstring shows is one: its options exist, none is missing."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from kquant.app.cli import app
from kquant.core.renamed import new_options

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^ *```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL)
SHELLS = {"", "sh", "bash", "shell", "console", "yaml", "text"}
COMMANDS: Any = typer.main.get_command(app)
USAGE: Any = typer.BadParameter.__bases__  # wrong usage, in whichever click typer brings


def shown(page: Path) -> list[str]:
    """The commands in a page's blocks, those of several lines joined."""
    blocks = [found["text"] for found in BLOCK.finditer(page.read_text()) if found["language"] in SHELLS]
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    found = [re.sub(r"^\s*(- )?(run: )?(\$ )?", "", line) for line in lines]
    return [line for line in found if line.startswith("kquant ")]


def words(line: str) -> list[str]:
    """What a shell hands over, without what it does itself."""
    given = shlex.split(line, comments=True)[1:]
    ends = [n for n, word in enumerate(given) if word in ("|", "&&", ">", "2>", ";")]
    return given[: ends[0]] if ends else given


def fault(line: str) -> str | None:
    """What is wrong with a command before it opens a file."""
    name, *rest = words(line)
    with typer.Context(COMMANDS) as group:
        command = COMMANDS.get_command(group, name)
    if command is None:
        return f"no command {name}"
    if "--help" in rest or "..." in rest:
        return None
    with typer.Context(command, info_name=name) as context:
        try:
            values, left, _ = command.make_parser(context).parse_args(new_options(name, rest))
        except USAGE as error:
            return str(error)
    missing = [p.name for p in command.params if p.required and values.get(p.name or "") is None]
    return f"without {missing}" if missing else f"too much: {left}" if left else None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_shown_command_is_one(page: Path) -> None:
    wrong = {line: said for line in shown(page) if (said := fault(line)) is not None}
    assert wrong == {}


def test_there_are_commands_and_a_wrong_one_is_told() -> None:
    assert sum(len(shown(page)) for page in PAGES) > 35
    assert fault("kquant compress net.keras --data x.npz") == "without ['folder']"
    assert "No such option" in str(fault("kquant verify a.keras b.tflite --data x.npz --colour red"))
    assert fault("kquant compres net.keras") == "no command compres"

"""`tools.toml` as data."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Way:
    """One way in which a tool makes a file.

    Attributes:
        title: in tables.
        kind: "ptq", from unlabelled samples; "train", from labelled ones, under seeds.
        group: ways that are compared with each other.
        needs: "matrix": for models of Dense layers alone; empty: for all.
    """

    title: str
    kind: str
    group: str
    needs: str = ""


@dataclass(frozen=True)
class Tool:
    """A tool, its script and where it is installed from; without `requires` it is in this Python."""

    name: str
    title: str
    script: Path
    module: str
    ways: dict[str, Way]
    requires: tuple[str, ...] = ()


@cache
def tools() -> dict[str, Tool]:
    """All of them, in the order of the tables."""
    entries = tomllib.loads((HERE / "tools.toml").read_text())
    return {name: _tool(name, entry) for name, entry in entries.items()}


def _tool(name: str, entry: dict) -> Tool:
    ways = {key: Way(**way) for key, way in entry["ways"].items()}
    script = HERE / "scripts" / entry["script"]
    return Tool(name, entry["title"], script, entry["module"], ways, tuple(entry.get("requires", ())))

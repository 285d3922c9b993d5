"""results/peers.json: one row for each task, tool, way and seed, written as soon as it is there."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

PATH = Path(__file__).parents[1] / "results" / "peers.json"
ROOT = PATH.parents[2]
QUIET = 2.5  # load average up to which a time is one: what is measured makes 1 to 2 of it


def read(path: Path = PATH) -> dict[str, Any]:
    """All rows."""
    return json.loads(path.read_text()) if path.is_file() else {"machine": {}, "versions": {}, "tasks": {}}


def write(rows: dict[str, Any], path: Path = PATH) -> None:
    """Beside, then moved: a run that is stopped leaves the last whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
    beside.replace(path)


def is_quiet(row: dict[str, Any]) -> bool:
    """Whether a row's times were taken on a machine with nothing else to do; nothing else in it depends on that."""
    return row.get("load", 0.0) <= QUIET


def tree() -> str:
    """The package's source, as git names it: a row of kquant's belongs to it."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD:kquant"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"

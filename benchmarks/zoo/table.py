"""The rows on disk, and the tables of docs/zoo.md made of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from benchmarks.zoo import ZOO
from kquant.files.atomic import write_atomically

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "zoo.json", ROOT / "docs" / "zoo.md"
WAYS = (("int8", "litert"), ("int8", "tflm"), ("int16x8", "litert"), ("int16x8", "tflm"))
START, END = "<!-- written by python -m benchmarks.zoo -->", "<!-- end -->"
HEAD = ("", "operators", "bytes", "codes equal", "judged", "dB", "converter, dB", "reloads", "trains", "s", "MB")


def load(path: Path = RESULTS) -> dict[str, Any]:
    """key -> row; empty where nothing was measured."""
    return json.loads(path.read_text()) if path.is_file() else {}


def store(rows: dict[str, Any], path: Path = RESULTS) -> None:
    """Written whole, sorted, so that two runs differ only where figures do."""
    write_atomically(path, (json.dumps(rows, indent=1, sort_keys=True) + "\n").encode(), "benchmarks.zoo")


def tables(rows: dict[str, Any]) -> str:
    """A Markdown table for each recipe and target."""
    return "\n\n".join(f"### {recipe}, target {target}\n\n{_table(rows, recipe, target)}" for recipe, target in WAYS)


def _table(rows: dict[str, Any], recipe: str, target: str) -> str:
    lines = [HEAD, ("---",) * len(HEAD)]
    for name in ZOO:
        row, peer = rows.get(f"{name}/{recipe}/{target}"), rows.get(f"{name}/{recipe}/converter", {})
        if row is None:
            continue
        refused = "refused" in row
        cells = (f"refused: {row['refused']}", *[""] * (len(HEAD) - 2)) if refused else _cells(row, peer)
        lines.append((name, *cells))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cells(row: dict[str, Any], peer: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{row['operators']}" if row["integer"] else f"{row['operators']}, some float",
        f"{row['bytes']:,}",
        f"{100 * row['equal']:.2f} %",
        f"{row['judged']}",
        _decibels(row["db"]),
        _decibels(peer["db"]) if "db" in peer else "no integer file" if "why" in peer else "",
        "to the bit" if row["reloads"] else "NO",
        "yes" if row["trains"] else "NO",
        f"{row['seconds']:.0f}",
        f"{row['peak_mb']:.0f}",
    )


def _decibels(values: list[float]) -> str:
    return ", ".join("inf" if math.isinf(v) else f"{v:.1f}" for v in values)


def write_page(text: str, start: str = START) -> None:
    """Between a mark of the page and the next end; the text around them is written by hand."""
    before, rest = PAGE.read_text().split(start)
    after = rest.split(END, 1)[1]
    write_atomically(PAGE, f"{before}{start}\n\n{text}\n\n{END}{after}".encode(), "benchmarks.zoo")

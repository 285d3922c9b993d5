"""The rows on disk, and the tables of docs/zoo.md made of them."""

from __future__ import annotations

from typing import Any

from benchmarks.zoo import table
from benchmarks.zoo.trained import TASKS
from benchmarks.zoo.trained.measure import FLOAT, WAYS
from benchmarks.zoo.trained.task import Task

RESULTS = table.ROOT / "benchmarks" / "results" / "zoo_trained.json"
START = "<!-- written by python -m benchmarks.zoo.trained -->"


def load() -> dict[str, Any]:
    """key -> row; empty where nothing was measured."""
    return table.load(RESULTS)


def store(rows: dict[str, Any]) -> None:
    """All of them."""
    table.store(rows, RESULTS)


def write_page(rows: dict[str, Any]) -> None:
    """The tables between the page's marks."""
    table.write_page(tables(rows), START)


def tables(rows: dict[str, Any]) -> str:
    """A Markdown table for each model that was measured."""
    measured = [task for task in TASKS.values() if f"{task.name}/{FLOAT}" in rows]
    return "\n\n".join(f"### {task.title}\n\n{_table(rows, task)}" for task in measured)


def _table(rows: dict[str, Any], task: Task) -> str:
    # in one order, whether a row was measured just now or read, as the file has them sorted
    wanted = dict(sorted(rows[f"{task.name}/{FLOAT}"]["figures"].items()))
    head = ("", *wanted, "lost", "bytes", "codes equal", "s")
    lines = [head, ("---",) * len(head)]
    for way in (FLOAT, *WAYS):
        row = rows.get(f"{task.name}/{way}")
        if row is None:
            continue
        figures = [f"{100 * row['figures'][key]:.2f} %" for key in wanted]
        if way == FLOAT:
            lines.append((way, *figures, "", f"{4 * row['weights']:,}", "", ""))
            continue
        lost = ", ".join(f"{loss(task, value, row['figures'][key]):.2f}" for key, value in wanted.items())
        name = way if row["integer"] else f"{way}, some float"
        lines.append(
            (name, *figures, f"{lost} %", f"{row['bytes']:,}", f"{100 * row['equal']:.2f} %", f"{row['seconds']:.0f}")
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def loss(task: Task, wanted: float, found: float) -> float:
    """Percent of the figure that is gone; of an error, of what it leaves right."""
    if task.lower_is_better:
        wanted, found = 1 - wanted, 1 - found
    return 100 * (wanted - found) / wanted

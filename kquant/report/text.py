"""Pages on a terminal (`show`), as plain text (`render`) and as JSON (`to_json`)."""

from __future__ import annotations

import io
import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, cast

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from kquant.report.tables import Table, page

WIDTH = 120
ROWS_SHOWN, VALUES_SHOWN = 10, 10
GAP = 3  # characters between two columns
FOLDED = 16  # words are folded to no less
# A figure with its unit, or a range of two.
NUMBER = re.compile(r"(-|equal|[-+]?[\d.,]+(e[-+]?\d+)?( ?%| dB)?( \.\. [-+]?[\d.,]+(e[-+]?\d+)?)?)?")


def show(report: Any, console: Console | None = None, *, details: bool = True) -> None:
    """Print a report on a terminal: headline, findings, figures, tables.

    Args:
        report: `Analysis`, `DryRun`, `ExportReport`, `VerifyReport`, `CheckReport`, `Estimate`, `FileModel` or
            `CompressResult`.
        console: where to; standard output by default.
        details: also what is looked up rather than read, such as bytes of weights in every form.

    Raises:
        TypeError: not a report.
    """
    # into a pipe rich would fold at 80 characters
    console = console or Console(width=None if sys.stdout.isatty() else WIDTH)
    content = page(report)
    hidden = () if details else content.background
    colour = "green" if content.ok else "red"
    # names of layers may hold brackets, which rich takes for its markup, and numbers, which it would colour
    console.print(f"[bold {colour}]{escape(content.headline)}[/]", highlight=False)
    for finding in content.findings:
        said, *lines = finding.split("\n")
        console.print(f"[yellow]![/] {escape(said)}", highlight=False)
        for line in lines:  # to be pasted, and so never folded
            console.print(escape(line), highlight=False, soft_wrap=True)
    for fact in content.facts:
        if fact not in hidden:
            console.print(escape(fact), highlight=False)
    for table in content.tables:
        if table.rows and table not in hidden:
            console.print()
            _print_table(table, console)


def _print_table(table: Table, console: Console) -> None:
    """A table, or several below each other where it is too wide for the console."""
    for part in fitting(table, console.width):
        console.print(table_of(part))


def fitting(table: Table, width: int) -> list[Table]:
    """The table in parts that fit into a width without breaking a number; each part begins with the first column.

    Args:
        table: of any width.
        width: characters in a line.

    Example:
        >>> wide = Table("t", ("layer", "a", "b"), (("conv", "1,234,567", "7,654,321"),), ("a", "b"))
        >>> [part.columns for part in fitting(wide, 20)]
        [('layer', 'a'), ('layer', 'b')]
    """
    needs = [_least(table, i) for i in range(len(table.columns))]
    parts, room = [[0]], width - needs[0]
    for i in range(1, len(table.columns)):
        # a part has one column beside the first at least, too wide as it may be
        if needs[i] + GAP > room and len(parts[-1]) > 1:
            parts.append([0])
            room = width - needs[0]
        parts[-1].append(i)
        room -= needs[i] + GAP
    if len(parts) == 1:
        return [table]
    return [
        Table(
            table.title if number == 0 else "",
            tuple(table.columns[i] for i in part),
            tuple(tuple(row[i] for i in part) for row in table.rows),
            tuple(c for c in table.right if c in {table.columns[i] for i in part}),
        )
        for number, part in enumerate(parts)
    ]


def _least(table: Table, place: int) -> int:
    """The narrowest a column may get: numbers stay whole, words may be folded."""
    cells = [row[place] for row in table.rows]
    # of a table without rows the heads alone tell
    longest = max((len(cell) for cell in cells), default=0)
    if _whole(table, place):
        return max(longest, len(table.columns[place]))
    words = max((len(word) for word in table.columns[place].split()), default=0)
    return max(words, min(longest, FOLDED))


def _whole(table: Table, place: int) -> bool:
    """True for a column of numbers."""
    return table.columns[place] in table.right or all(NUMBER.fullmatch(row[place]) for row in table.rows)


def table_of(table: Table) -> RichTable:
    """A rich table; numbers to the right and whole, words folded where a line is too short."""
    rich = RichTable(
        title=escape(table.title) or None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    for place, column in enumerate(table.columns):
        justify, whole = "right" if column in table.right else "left", _whole(table, place)
        rich.add_column(escape(column), justify=justify, overflow="fold", no_wrap=whole)
    for row in table.rows:
        rich.add_row(*map(escape, row))
    return rich


def render(report: Any, width: int = WIDTH) -> str:
    """The report as plain text.

    Args:
        report: see `show`.
        width: characters in a line.

    Returns:
        Lines without trailing blanks, ending in a newline.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")], name="tiny")
        >>> print(kquant.report.render(kquant.check(model, "tflm")))
        tiny on tflm: every layer can be integer
        <BLANKLINE>
        Layers
        layer   class   status    operators
        ─────────────────────────────────────────
        head    Dense   integer   FULLY_CONNECTED
        <BLANKLINE>
    """
    text = io.StringIO()
    show(report, _onto(text, width))
    return _plain(text.getvalue())


def render_table(table: Table, width: int = WIDTH) -> str:
    """One table as plain text."""
    text = io.StringIO()
    _print_table(table, _onto(text, width))
    return _plain(text.getvalue())


def _onto(text: io.StringIO, width: int) -> Console:
    return Console(file=text, width=width, no_color=True, color_system=None, force_terminal=False)


def _plain(text: str) -> str:
    lines = [line.rstrip() for line in text.splitlines()]
    return "\n".join(lines).strip("\n") + "\n"


def render_arrays(arrays: dict[str, np.ndarray]) -> str:
    """Outputs by name as a table: the first samples, their first values, and which value is the largest."""
    rows: list[tuple[str, ...]] = []
    for name, array in arrays.items():
        flat = array.reshape(len(array), -1)
        for sample, values in enumerate(flat[:ROWS_SHOWN]):
            more = " ..." if values.size > VALUES_SHOWN else ""
            text = " ".join(f"{v:.4g}" for v in values[:VALUES_SHOWN]) + more
            rows.append((name, str(sample), str(int(values.argmax())), text))
    counts = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
    return render_table(Table(f"Outputs: {counts}", ("output", "sample", "largest at", "values"), tuple(rows)))


def arrays_to_json(arrays: dict[str, np.ndarray]) -> str:
    """Outputs by name as JSON lists, one row for each sample."""
    return json.dumps(_finite({name: array.tolist() for name, array in arrays.items()}))


def to_json(report: Any) -> str:
    """The report's `to_dict()` as strict JSON: infinite figures (the SQNR of equal outputs) become null."""
    # a CompressResult holds a model, which is no data, and the report of its file
    if hasattr(report, "to_dict"):
        return json.dumps(_finite(report.to_dict()), indent=2)
    ladder = {} if report.ladder is None else {"ladder": report.ladder.to_dict()}
    card = {"card": asdict(report.card)}
    plain = card | ladder | report.report.to_dict() | card  # first, and its accuracies instead of the export's none
    return json.dumps(_finite(plain), indent=2)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in cast(dict[Any, Any], value).items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in cast(Sequence[Any], value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""What an HTML report is made of: plain data, laid out by `report.html.jinja`.

    result  ->  sections(result)  ->  Sheet  ->  one file

A plot is shapes on a square of 1 x 1 that is stretched to the width of the page, and words beside it: those keep their
size on a phone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

from kquant.core.table import Table
from kquant.exporting.export_file import ExportReport
from kquant.report.page import page

# Where a section stands on a page that several results make: first what was asked, then where to look, then all of it.
PLACES = ("sizes", "answers", "layers", "ranges", "choices", "bytes", "operators", "memory", "details")


@dataclass(frozen=True)
class Cell:
    """Of a table.

    Attributes:
        text: what it says.
        share: length of a bar behind it, 0 to 1; None: no bar.
        mark: a line across the bar, 0 to 1.
        bad: it is what has to be seen.
    """

    text: str
    share: float | None = None
    mark: float | None = None
    bad: bool = False


@dataclass(frozen=True)
class Grid:
    """A table; the first cell of a row is its head. Columns in `right` hold numbers."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    right: tuple[str, ...] = ()


@dataclass(frozen=True)
class Label:
    """Words at a place of an axis, 0 to 1."""

    text: str
    at: float


@dataclass(frozen=True)
class Shape:
    """A path (SVG's `d`) on a square of 1000 x 1000, its origin at the top left; `kind` is a class of the CSS."""

    path: str
    kind: str
    title: str = ""


@dataclass(frozen=True)
class Plot:
    """A picture.

    Attributes:
        title: above it.
        alt: what it shows, for who does not see it.
        shapes: the marks, those behind first.
        xs, ys: labels of the axes.
        x_title, y_title: what they are.
        legend: kind and meaning of marks.
        wide: it takes the width of the page.
    """

    title: str
    alt: str
    shapes: tuple[Shape, ...]
    xs: tuple[Label, ...] = ()
    ys: tuple[Label, ...] = ()
    x_title: str = ""
    y_title: str = ""
    legend: tuple[tuple[str, str], ...] = ()
    wide: bool = False


@dataclass(frozen=True)
class Note:
    """A cause, and the lines to change.

    Attributes:
        title: in a few words.
        text: what says so.
        gain: what the lines gained when they were tried.
        lines: ready to be pasted; empty where nothing is to be changed.
        is_dear: they cost accuracy, so they are no advice.
    """

    title: str
    text: str
    gain: str = ""
    lines: str = ""
    is_dear: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page, at its place of `PLACES`."""

    place: str
    title: str
    text: str = ""
    notes: tuple[Note, ...] = ()
    plots: tuple[Plot, ...] = ()
    grids: tuple[Grid, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Nothing to show."""
        return not (self.notes or self.plots or any(grid.rows for grid in self.grids))


@dataclass(frozen=True)
class Sheet:
    """The whole page.

    Attributes:
        name: of what it is about.
        verdict: the result in one sentence.
        ok: False where something has to be done.
        findings, facts: as `Page` has them.
        card: the figures that are asked for first, what and how much.
        sections: in their order.
    """

    name: str
    verdict: str
    ok: bool
    findings: tuple[str, ...]
    facts: tuple[str, ...]
    card: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]


@singledispatch
def sections(result: Any) -> Iterable[Section]:
    """The sections of a result; by default the tables of its page."""
    for table in page(result).tables:
        yield Section("details", table.title, grids=(grid_of(table),))


@singledispatch
def card(result: Any) -> Iterable[tuple[str, str]]:
    """What is asked for first."""
    return ()


@singledispatch
def parts(result: Any) -> tuple[Any, ...]:
    """The results that a result is made of, itself first."""
    inner = getattr(result, "report", None)  # CompressResult: the pipeline stands above this module
    ladder = getattr(result, "ladder", None)
    tried = () if ladder is None else (ladder,)
    return (result.card, *tried, *parts(inner)) if isinstance(inner, ExportReport) else (result,)


def grid_of(table: Table, caption: str = "") -> Grid:
    """A table of a terminal."""
    rows = tuple(tuple(Cell(text) for text in row) for row in table.rows)
    return Grid(caption or table.title, table.columns, rows, table.right)


def with_bars(grid: Grid, column: str, shares: Iterable[float | None]) -> Grid:
    """Bars behind the cells of a column."""
    place = grid.columns.index(column)
    rows = [list(row) for row in grid.rows]
    for row, share in zip(rows, shares, strict=True):
        row[place] = Cell(row[place].text, share, bad=row[place].bad)
    return Grid(grid.caption, grid.columns, tuple(map(tuple, rows)), grid.right)

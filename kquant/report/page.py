"""What a page is made of, and which function makes the page of a report."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import singledispatch
from typing import Any

from kquant.core.result import Result
from kquant.core.table import Table
from kquant.exporting.export_file import ExportReport

__all__ = ["Page", "Table", "page"]


@dataclass(frozen=True)
class Page:
    """What a report says.

    Attributes:
        headline: the result in one line.
        ok: False where something has to be done.
        findings: what has to be known, most important first.
        facts: figures, one line each.
        tables: the details.
        background: facts and tables of these that are looked up rather than read: `show(..., details=False)` leaves
            them out.
    """

    headline: str
    ok: bool
    findings: tuple[str, ...]
    facts: tuple[str, ...]
    tables: tuple[Table, ...]
    background: tuple[str | Table, ...] = ()


@singledispatch
def page(report: Any) -> Page:
    """The page of any report of kquant.

    Raises:
        TypeError: not a report.
    """
    inner = getattr(report, "report", None)  # CompressResult: the pipeline stands above this module
    if isinstance(inner, ExportReport):
        ladder = getattr(report, "ladder", None)
        # its card, whose accuracies the export may lack
        made = page(replace(inner, card=report.card))
        return made if ladder is None else with_ladder(made, ladder)
    if isinstance(report, Result):
        return _plain(report)
    raise TypeError(
        "report: expected an Analysis, Answers, BundleReport, Candidates, ChannelGroups, CheckReport, CompressResult, "
        "DryRun, Estimate, ExportReport, FileBytes, FileModel, Migrated, Mixed, Observations, Sparsity, SparsityScan, "
        f"Tuned or VerifyReport. Received: {type(report).__name__}."
    )


def with_ladder(made: Page, ladder: Any) -> Page:
    """The page of a file that a byte budget chose, with what was tried."""
    own = page(ladder)
    told = {"findings": (*own.findings, *made.findings), "facts": (own.headline, *made.facts)}
    return replace(made, **told, tables=(*own.tables, *made.tables))


def _plain(report: Any) -> Page:
    """Of a result without a page of its own: what it says of itself, and its figures."""
    numbers = [(f.name, getattr(report, f.name)) for f in fields(report)]
    rows = tuple((name, f"{value:,}") for name, value in numbers if isinstance(value, int | float))
    table = Table("Figures", ("", "figure"), rows, ("figure",))
    return Page(repr(report), True, (), (), (table,) if rows else ())

"""What a page is made of, and which function makes the page of a report."""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from typing import Any

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
    """

    headline: str
    ok: bool
    findings: tuple[str, ...]
    facts: tuple[str, ...]
    tables: tuple[Table, ...]


@singledispatch
def page(report: Any) -> Page:
    """The page of any report of kquant.

    Raises:
        TypeError: not a report.
    """
    inner = getattr(report, "report", None)  # CompressResult: the pipeline stands above this module
    if isinstance(inner, ExportReport):
        return page(inner)
    raise TypeError(
        "report: expected an Analysis, BundleReport, ChannelGroups, CheckReport, CompressResult, DryRun, Estimate, "
        "ExportReport, FileBytes, FileModel, Sparsity, SparsityScan or VerifyReport. Received: "
        f"{type(report).__name__}."
    )

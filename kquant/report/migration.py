"""The page of `kquant.migrate`."""

from __future__ import annotations

from collections.abc import Iterator

from kquant.migrate.result import NOT_ASKED, Distance, Migrated
from kquant.report.page import Page, page
from kquant.report.tables import Table


@page.register
def _migrated(report: Migrated) -> Page:
    return Page(
        headline=f"{report.path}: {report.kind}, {report.parameters:,} parameters, as a Keras 3 model",
        ok=report.distance is not None or report.untried == NOT_ASKED,
        findings=(f"outputs were not compared: {report.untried}",) if report.distance is None else (),
        facts=tuple(_facts(report)),
        tables=_tables(report),
    )


def _facts(report: Migrated) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items() if version)
    if versions:
        yield f"read by {versions}"
    if report.distance is not None:
        yield from _distance(report.distance)
    if report.tensors or report.kernels:
        yield f"learned ranges: {report.tensors} tensors, {report.kernels} kernels"
    if report.masks or report.books:
        yield f"kept while it trains: zeros of {report.masks} kernels, shared values of {report.books}"


def _distance(d: Distance) -> Iterator[str]:
    on = "" if d.integer_error is None else " with floats on tfmot's grids"
    yield f"outputs on {d.samples} made-up samples, up to {d.reach:.4g}: {d.float_error:.3g} from the old model's{on}"
    if d.integer_error is not None and d.step is not None:
        yield f"in integer arithmetic {d.integer_error:.3g}, {d.integer_error / d.step:.2f} steps of the output's grid"


def _tables(report: Migrated) -> tuple[Table, ...]:
    return (report.table,) if report.differences else ()

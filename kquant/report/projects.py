"""The page of `kquant.bundle`."""

from __future__ import annotations

from kquant.projects.kinds import kind_of
from kquant.projects.project import BundleReport
from kquant.report.cards import card_table
from kquant.report.page import Page, page
from kquant.report.tables import Table


@page.register
def _bundle(report: BundleReport) -> Page:
    # a program on a phone gives no arena
    arena = {} if report.arena is None else {"arena to reserve": f"{report.arena.bytes:,}"}
    rows = tuple((code, str(count)) for code, count in sorted(report.operators.items()))
    return Page(
        headline=f"{report.folder}: {report.name}, {report.kind}, {len(report.files)} files",
        ok=all(v.ok for v in report.export.verification) and not report.card.loss,
        findings=(report.card.loss,) if report.card.loss else (),
        facts=(
            *_memory(report),
            *([] if report.compiled is None else [f"NPU: {report.compiled}"]),
            f"{report.macs:,} multiply-accumulates for one sample",
            f"{report.golden} golden vectors of {kind_of(report.kind).runs_on}; model SHA-256 {report.sha256[:16]}...",
        ),
        tables=(
            card_table(report.card, arena),
            Table("Operators", ("operator", "count"), rows, ("count",)),
            *_stays(report),
        ),
    )


def _stays(report: BundleReport) -> tuple[Table, ...]:
    """What the compiler of an NPU leaves to the processor."""
    if report.compiled is None or not report.compiled.stays:
        return ()
    rows = tuple((one.layer, one.code, one.reason) for one in report.compiled.stays)
    return (Table("On the processor", ("layer", "operator", "why"), rows),)


def _memory(report: BundleReport) -> tuple[str, ...]:
    arena = report.arena
    if arena is None:
        return (f"file {report.flash_bytes:,} bytes",)
    how = "by trial on this 64-bit host" if arena.tried else "told from the compiler's plan, not tried"
    peak = f"; most tensors are alive at {arena.peak_layer}" if arena.peak_layer else ""
    return (
        f"flash {report.flash_bytes:,} bytes (the array; code of kernels comes on top)",
        f"arena {arena.bytes:,} bytes: {arena.smallest_bytes:,} {how}, and a margin of {arena.margin_bytes:,}",
        f"of it activations {arena.activation_bytes:,}, scratch of kernels {arena.scratch_bytes:,}, persistent "
        f"{arena.persistent_bytes:,}{peak}",
    )

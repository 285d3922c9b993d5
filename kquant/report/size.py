"""What a model will take, as a page: `kquant.estimate`."""

from __future__ import annotations

from collections.abc import Iterable

from kquant.report.page import Page, Table, page
from kquant.sizing.estimates import Estimate


@page.register
def _estimate(report: Estimate) -> Page:
    where = f"{report.model} on {report.target} with recipe '{report.recipe}'"
    said = f"flash {_bytes(report.flash_bytes)}, arena {_arena(report)}, {report.macs:,} MACs"
    if report.refused:
        said = f"{len(report.refused)} of its layers would not run"
    elif report.over:
        said += ": too large"
    elif report.flash_limit or report.arena_limit:
        said += ": fits"
    return Page(
        headline=f"{where}: {said}",
        ok=report.ok,
        findings=(
            *(f"{row.layer} ({row.kind}), {row.status}: {row.remedy}" for row in report.refused),
            *_over(report),
        ),
        facts=() if report.refused else tuple(_facts(report)),
        tables=(_layers(report), _operators(report)),
    )


def _over(report: Estimate) -> Iterable[str]:
    limits = {"flash": report.flash_limit, "arena": report.arena_limit}
    for name, too_many in report.over.items():
        yield f"{name}: {too_many:,} bytes more than the {limits[name]:,} that there are"


def _facts(report: Estimate) -> Iterable[str]:
    yield f"flash: the file, of it stored tensors {report.stored_bytes:,} bytes; the runtime's own code comes on top"
    if report.arena_bytes is None:
        yield "arena: unknown, as TensorFlow Lite Micro does not run this file"
    else:
        how = "a forecast; pip install 'kquant[micro]' tries" if report.arena_is_forecast else "the smallest for TFLM"
        yield (
            f"arena: {report.arena_bytes:,} bytes are {how}, on this 64-bit host with reference kernels; kernels made "
            f"for a device (CMSIS-NN, ESP-NN) ask for more, so a program reserves {report.reserve_bytes:,}"
        )
    if report.channels_left_out:
        yield f"{report.channels_left_out:,} channels that no output depends on are left out"
    yield f"tensors together {report.activation_bytes:,} bytes, where that is most: while {report.peak_layer} runs"


def _layers(report: Estimate) -> Table:
    columns = ("layer", "operators", "MACs", "stored", "alive")
    rows = tuple(
        (row.layer, _counted(row.operators), f"{row.macs:,}", f"{row.flash_bytes:,}", f"{row.alive_bytes:,}")
        for row in report.layers
    )
    return Table("Layers: bytes stored for each, and alive while it runs", columns, rows, columns[2:])


def _operators(report: Estimate) -> Table:
    rows = sorted(report.operators.items(), key=lambda item: (-item[1], item[0]))
    return Table("Operators", ("operator", "count"), tuple((code, str(n)) for code, n in rows), ("count",))


def _counted(operators: dict[str, int]) -> str:
    return ", ".join(code if n == 1 else f"{n} {code}" for code, n in operators.items())


def _arena(report: Estimate) -> str:
    """What to reserve, which a budget is held against."""
    return "unknown" if report.reserve_bytes is None else f"to reserve {report.reserve_bytes:,} bytes"


def _bytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count:,} bytes"

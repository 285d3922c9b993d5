"""Sections of what lies in a file: bytes, zeros and codes of its weights, operators by type, memory over time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kquant.exporting.export_file import ExportReport
from kquant.exporting.model_card import ModelCard
from kquant.exporting.verification import VerifyReport
from kquant.projects.exported import FILE
from kquant.projects.project import BundleReport
from kquant.report.drawing import Scale, box, gridlines, level, short
from kquant.report.sheet import Cell, Grid, Label, Plot, Section, card, grid_of, parts, sections, with_bars
from kquant.report.tables import page
from kquant.report.weights import weights_table
from kquant.tflite.file_model import FLOATS, FileModel, FileOperator
from kquant.tflite.memory_plan import Lifetime, MemoryPlan, memory_plan
from kquant.tflite.reader import inspect
from kquant.tflite.weight_bytes import FileBytes

FLOAT_BYTES = 4
SHOWN_ALIVE = 8


@parts.register
def _parts(report: ExportReport) -> tuple[Any, ...]:
    return (*_judged(report), report, *_file_at(Path(report.path), report.file_bytes))


@parts.register
def _parts_of_bundle(report: BundleReport) -> tuple[Any, ...]:
    return (*_judged(report), report, report.export, *_file_at(Path(report.folder) / FILE, report.export.file_bytes))


def _judged(report: ExportReport | BundleReport) -> tuple[ModelCard, ...]:
    """The card of a file whose accuracy is known; without, the report tells the same."""
    return (report.card,) if report.card.accuracies else ()


def _file_at(path: Path, size: int) -> tuple[FileModel, ...]:
    """The file that a report tells of, where it still lies there."""
    try:
        return (inspect(path),) if path.is_file() and path.stat().st_size == size else ()
    except ValueError:  # another one of that size
        return ()


@card.register
def _card(report: ExportReport) -> Iterable[tuple[str, str]]:
    yield "file", f"{report.file_bytes:,} bytes"
    yield "weights", f"{report.weight_bytes:,} bytes"
    if report.arena_bytes is not None:
        yield "arena", f"{report.arena_bytes:,} bytes"
    yield "MACs", f"{report.macs:,}"


@card.register
def _bundle_card(report: BundleReport) -> Iterable[tuple[str, str]]:
    yield "flash", f"{report.flash_bytes:,} bytes"
    if report.arena is not None:
        yield "arena, with margin", f"{report.arena.bytes:,} bytes"
    yield "MACs", f"{report.macs:,}"


@sections.register
def _export(report: ExportReport) -> Iterator[Section]:
    yield Section("sizes", "Size before and after", grids=(_sizes(report),))
    yield from sections(report.weights)
    if report.verification:
        yield Section("operators", "The file against the model", AGREEMENT, grids=(_agreements(report.verification),))
    # the first two tables of the page are those above, the operators are told by type where the file is there
    for table in page(report).tables[2:]:
        yield Section("details", table.title, grids=(grid_of(table),))


@sections.register
def _verify(report: VerifyReport) -> Iterator[Section]:
    yield Section("operators", "The file against the model", AGREEMENT, grids=(_agreements((report,)),))


AGREEMENT = (
    "The file was run on each runtime and compared with the model, code for code. A runtime that rounds otherwise than "
    "the one whose arithmetic the model follows has some codes a step apart."
)


def _agreements(reports: Sequence[VerifyReport]) -> Grid:
    [table] = [t for r in reports[:1] for t in page(r).tables]
    rows = tuple(row for r in reports for row in page(r).tables[0].rows)
    equal = [a.equal for r in reports for a in r.agreements]
    grid = Grid(table.title, table.columns, tuple(tuple(map(Cell, row)) for row in rows), table.right)
    return with_bars(grid, "equal codes", equal)


def float_bytes(report: FileBytes) -> int:
    """What the same weights take in float32."""
    return FLOAT_BYTES * sum(math.prod(layer.shape) for layer in report.layers)


def _sizes(report: ExportReport) -> Grid:
    weights = report.weights
    raw, stored = weights.totals["raw_bytes"], weights.totals["stored_bytes"]
    sizes = {
        "kernels in float32": float_bytes(weights),
        "kernels in this file": stored,
        "weights in this file: kernels, biases, axes": report.weight_bytes,
        "the file": report.file_bytes,
        "the file, deflated (a download)": weights.deflated_file_bytes,
        "arena (TFLM on this host)": report.arena_bytes,
    }
    if stored != raw:
        sizes["the same kernels as plain codes"] = raw
    known = {name: size for name, size in sizes.items() if size}  # of weights that stay float nothing is counted
    top = max(known.values(), default=0) or 1
    rows = tuple((Cell(name), Cell(f"{size:,}", size / top)) for name, size in known.items())
    return Grid("Bytes, before and after", ("", "bytes"), rows, ("bytes",))


@sections.register
def _weights(report: FileBytes) -> Iterator[Section]:
    table = weights_table(report, len(report.layers))
    grid = with_bars(grid_of(table), "zeros", [layer.sparsity for layer in report.layers])
    top = max((layer.raw_bytes for layer in report.layers), default=0) or 1
    grid = with_bars(grid, "stored", [layer.stored_bytes / top for layer in report.layers])
    said = (
        f"{100 * report.sparsity:.1f} % of all codes stand for zero. Zeros and shared codes save bytes where the file "
        "is deflated, or where its weights are stored in a form that a runtime decodes; a dash: no such form."
    )
    yield Section("bytes", "Zeros, codes and bytes of the weights", said, grids=(grid,))


@sections.register
def _file(file: FileModel) -> Iterator[Section]:
    yield Section("operators", "Operators by type", _all_integer(file), grids=(_operators(file),))
    yield from _memory(file)
    for table in page(file).tables:
        if table.title not in ("Operators",):
            yield Section("details", table.title, grids=(grid_of(table),))


def _all_integer(file: FileModel) -> str:
    if file.is_integer:
        return "Every operator computes in integers."
    return "Operators in red compute in float: slow without an FPU, and refused by NPUs."


def types_of(file: FileModel, op: FileOperator) -> str:
    """What an operator computes with and what it gives: `INT8`, or `INT8 to FLOAT32`."""
    written = {file.tensors[i].type for i in op.outputs if i >= 0}
    read = {file.tensors[i].type for i in op.inputs if i >= 0 and not file.tensors[i].size_bytes}
    read = read or written
    ends = ["/".join(sorted(types)) for types in (read, written)]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def _operators(file: FileModel) -> Grid:
    counts = Counter((op.code, types_of(file, op)) for op in file.operators)
    top = max(counts.values(), default=1)
    rows = tuple(
        (
            Cell(code),
            Cell(f"{types}, not integer" if (bad := _is_float(types)) else types, bad=bad),
            Cell(f"{count:,}", count / top, bad=bad),
        )
        for (code, types), count in sorted(
            counts.items(), key=lambda item: (not _is_float(item[0][1]), -item[1], item[0])
        )
    )
    return Grid("Operators by type", ("operator", "type", "count"), rows, ("count",))


def _is_float(types: str) -> bool:
    return any(name in types for name in FLOATS)


def _memory(file: FileModel) -> Iterator[Section]:
    plan = memory_plan(file)
    if not plan.tensors or plan.size_bytes == 0:
        return
    at = plan.spans[plan.peak][0]
    alive = sorted((t for t in plan.tensors if t.is_alive(at)), key=lambda t: -t.bytes)
    op = file.operators[plan.peak]
    said = (
        f"{plan.size_bytes:,} bytes, as TensorFlow Lite Micro plans them: each tensor from the operator that writes it "
        f"to the last that reads it. Full at operator {plan.peak + 1}, {op.code}: a smaller output there, or fewer "
        "tensors that wait, is what makes the arena smaller. What kernels keep beside tensors is not in it."
    )
    yield Section("memory", "Memory over time", said, plots=(_timeline(file, plan, at),), grids=(_alive(file, alive),))


def _timeline(file: FileModel, plan: MemoryPlan, at: int) -> Plot:
    steps = max(last for _, last in plan.spans) + 1
    up = Scale(0.0, float(plan.size_bytes))
    ys = tuple(Label(short(v.at * plan.size_bytes), v.at) for v in up.labels(5))
    shapes = [
        *gridlines(ys),
        box(at / steps, (at + 1) / steps, 0.0, 1.0, "now"),
        *(_block(file, t, steps, up, at) for t in plan.tensors),
        level(1.0, "limit", f"{plan.size_bytes:,} bytes"),
    ]
    every = max(1, -(-steps // 8))
    xs = tuple(Label(str(i + 1), (i + 0.5) / steps) for i in range(0, steps, every))
    alt = f"Where {len(plan.tensors)} tensors lie in {plan.size_bytes:,} bytes while {steps} operators run."
    legend = (("block", "a tensor"), ("block full", "alive where most is needed"), ("now", "that operator"))
    title = "Bytes of the arena's tensors, by the operator that runs"
    return Plot(title, alt, tuple(shapes), xs, ys, "operator, in order", "bytes", legend, wide=True)


def _block(file: FileModel, t: Lifetime, steps: int, up: Scale, at: int) -> Any:
    kind = "block full" if t.is_alive(at) else "block"
    title = f"{file.tensors[t.index].name}: {t.bytes:,} bytes at {t.offset:,}, operators {t.first + 1} to {t.last + 1}"
    return box(t.first / steps, (t.last + 1) / steps, up.at(t.offset), up.at(t.end), kind, title)


def _alive(file: FileModel, alive: Sequence[Lifetime]) -> Grid:
    top = alive[0].bytes if alive else 1
    rows = tuple(
        (
            Cell(file.tensors[t.index].name),
            Cell("x".join(map(str, file.tensors[t.index].shape))),
            Cell(f"{t.first + 1} to {t.last + 1}"),
            Cell(f"{t.bytes:,}", t.bytes / top),
        )
        for t in alive[:SHOWN_ALIVE]
    )
    return Grid("Alive where most is needed", ("tensor", "shape", "operators", "bytes"), rows, ("bytes",))

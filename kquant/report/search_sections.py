"""Sections of searches, and of what is told before a model is made: curves of what was measured, bars of costs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from kquant.analysis.try_steps import DryRun
from kquant.masking.zeros import Sparsity
from kquant.prepare.forecast import CheckReport
from kquant.report.analysis_sections import error
from kquant.report.drawing import Scale, dots, gridlines, level, line
from kquant.report.placement import placement_table
from kquant.report.search import UNITS
from kquant.report.sheet import Cell, Grid, Plot, Section, Shape, card, grid_of, sections, with_bars
from kquant.report.tables import page
from kquant.search.bit_widths import Mixed, Point
from kquant.search.ladder import Tuned
from kquant.search.sparsity_scan import SparsityScan
from kquant.shrink.channel_pruning import ChannelGroups
from kquant.sizing.estimates import Estimate

Places = Sequence[tuple[float, float]]


def curve(
    title: str, alt: str, best: Places, others: Places, chosen: Places, words: tuple[str, str], taken: str = "taken"
) -> Plot:
    """Points, and the line through those that no other one beats.

    Args:
        title: above the plot.
        alt: for who does not see it.
        best: (cost, worth) of those on the curve.
        others: of the rest.
        chosen: of what was taken.
        words: what cost and worth are.
        taken: what the legend calls the chosen one.
    """
    every = [*best, *others, *chosen]
    across = _around([x for x, _ in every])
    up = _around([y for _, y in every])
    ys = up.labels()

    def placed(points: Places) -> list[tuple[float, float]]:
        return [(across.at(x), up.at(y)) for x, y in points]

    shapes = [*gridlines(ys), dots(placed(others), "rest")]
    shapes += [line(placed(best), "line")] if len(best) > 1 else []
    shapes += [dots(placed(best), "line"), dots(placed(chosen), "taken")]
    legend = [("line", "no other one is better in both"), ("taken", taken)]
    legend += [("rest", "others")] if others else []
    return Plot(title, alt, tuple(shapes), across.labels(4), ys, *words, tuple(legend), wide=True)


def _around(values: Sequence[float]) -> Scale:
    known = [v for v in values if math.isfinite(v)] or [0.0]
    room = 0.06 * (max(known) - min(known)) or 0.1 * abs(known[0]) or 1.0
    return Scale(min(known) - room, max(known) + room)


def unbeaten(points: Places) -> list[tuple[float, float]]:
    """Of (cost, worth) those that no other one beats in both, by their cost.

    Example:
        >>> unbeaten([(2.0, 1.0), (1.0, 1.0), (3.0, 5.0)])
        [(1.0, 1.0), (3.0, 5.0)]
    """
    kept: list[tuple[float, float]] = []
    for cost, worth in sorted(points, key=lambda p: (p[0], -p[1])):
        if not kept or worth > kept[-1][1]:
            kept.append((cost, worth))
    return kept


@card.register
def _mixed_card(m: Mixed) -> Iterable[tuple[str, str]]:
    yield "file", f"{m.chosen.flash_bytes:,} bytes"
    if m.chosen.arena_bytes is not None:
        yield "arena", f"{m.chosen.arena_bytes:,} bytes"
    yield "SQNR of the outputs", f"{m.chosen.sqnr_db:.1f} dB"
    yield "layers with fewer bits", str(len(m.made))


@sections.register
def _mixed(m: Mixed) -> Iterator[Section]:
    unit, limit = m.budget

    def placed(points: Iterable[Point]) -> list[tuple[float, float]]:
        return [(float(getattr(p, unit)), p.sqnr_db) for p in points]

    best = placed(m.pareto)
    others = [p for p in placed(m.points) if p not in best]
    alt = f"{len(m.points)} measured models, {UNITS[unit]} against SQNR; the budget is {limit:,}."
    words = (UNITS[unit], "SQNR, dB")
    plot = curve("Pareto curve: SQNR by " + UNITS[unit], alt, best, others, placed([m.chosen]), words)
    points, made = page(m).tables
    yield Section("choices", "What could be had", plots=(plot,), grids=(grid_of(points),))
    yield Section("choices", "Where bits were taken away", grids=(grid_of(made),))


@card.register
def _tuned_card(t: Tuned) -> Iterable[tuple[str, str]]:
    yield "score, float", f"{t.float_score:.4f}"
    yield "score, simulated", f"{t.best.score:.4f}"
    yield "drop allowed", f"{t.max_drop:g}"
    yield "file", f"{t.best.file_bytes:,} bytes"


@sections.register
def _tuned(t: Tuned) -> Iterator[Section]:
    done = [rung for rung in t.rungs if not rung.failed]
    points = [(float(r.file_bytes), r.score) for r in done]
    best = unbeaten(points)
    others = [p for p in points if p not in best]
    alt = f"{len(done)} recipes, bytes of the file against the score; {t.float_score:.4f} in float."
    taken = [(float(t.best.file_bytes), t.best.score)]
    plot = curve("Pareto curve: score by bytes of the file", alt, best, others, taken, ("bytes of the file", "score"))
    grid = with_bars(grid_of(page(t).tables[0]), "seconds", _of_largest([r.seconds for r in t.rungs]))
    yield Section("choices", "What was tried", plots=(plot,) if len(done) > 1 else (), grids=(grid,))


def _of_largest(values: Sequence[float]) -> list[float]:
    top = max((v for v in values if math.isfinite(v)), default=0.0) or 1.0
    return [min(1.0, max(0.0, v / top)) if math.isfinite(v) else 0.0 for v in values]


@sections.register
def _scan(s: SparsityScan) -> Iterator[Section]:
    values = [v for row in s.layers for v in row.values]
    up, across = _around(values), Scale(0.0, 1.0)
    ys = up.labels()
    shapes: list[Shape] = []
    worst = min(s.layers, key=lambda row: row.values[-1], default=None)
    for row in s.layers:
        places = [(across.at(x), up.at(y)) for x, y in zip(s.sparsities, row.values, strict=True)]
        shapes.append(line(places, "line bad" if row is worst else "line thin", row.layer))
    if s.dense is not None:
        shapes.append(level(up.at(s.dense), "limit", "without pruning"))
    alt = f"{s.unit} by the share of zeros, a line for each of {len(s.layers)} layers."
    legend = (("line thin", "a layer"), ("line bad", f"{worst.layer if worst else '-'}: the most sensitive"))
    xs = tuple(label for label in across.labels(6))
    shown = (*gridlines(ys), *shapes)
    plot = Plot("Each layer pruned alone", alt, shown, xs, ys, "share of zeros", s.unit, legend, wide=True)
    grid = with_bars(grid_of(s.table), "chosen", [row.chosen for row in s.layers])
    yield Section("choices", "Sparsity by layer", plots=(plot,) if s.layers else (), grids=(grid,))


@sections.register
def _sparsity(s: Sparsity) -> Iterator[Section]:
    shares = [*(k.sparsity for k in s.kernels), s.total]
    yield Section("bytes", "Zeros by kernel", grids=(with_bars(grid_of(s.table), "sparsity", shares),))


@sections.register
def _channels(report: ChannelGroups) -> Iterator[Section]:
    shares = [g.removable / g.width if g.width else 0.0 for g in report.groups]
    yield Section("choices", "Groups of channels", grids=(with_bars(grid_of(report.table), "may leave", shares),))


@card.register
def _estimate_card(e: Estimate) -> Iterable[tuple[str, str]]:
    if e.flash_bytes is not None:
        yield "flash", f"{e.flash_bytes:,} bytes"
    if e.arena_bytes is not None:
        yield "arena", f"{e.arena_bytes:,} bytes"
    yield "MACs", f"{e.macs:,}"


@sections.register
def _estimate(e: Estimate) -> Iterator[Section]:
    layers, operators = page(e).tables
    grid = grid_of(layers)
    columns = {
        "MACs": [float(row.macs) for row in e.layers],
        "stored": [float(row.flash_bytes) for row in e.layers],
        "alive": [float(row.alive_bytes) for row in e.layers],
    }
    for column, values in columns.items():
        grid = with_bars(grid, column, _of_largest(values))
    yield Section("layers", "What each layer takes", grids=(grid,))
    yield Section("operators", "Operators", grids=(grid_of(operators),))


@sections.register
def _check(report: CheckReport) -> Iterator[Section]:
    grid = grid_of(page(report).tables[0])
    bad = [row.status in ("no kernel", "refused") for row in report.layers]
    place = grid.columns.index("status")
    rows = tuple(
        tuple(Cell(cell.text, bad=wrong and i == place) for i, cell in enumerate(row))
        for row, wrong in zip(grid.rows, bad, strict=True)
    )
    yield Section("operators", "What becomes of each layer", grids=(Grid(grid.caption, grid.columns, rows),))
    if report.placement is not None:
        yield Section("layers", "Where each layer runs", grids=(grid_of(placement_table(report.placement)),))


@sections.register
def _dry_run(d: DryRun) -> Iterator[Section]:
    befores = [error(c.before.sqnr_db) for c in d.layers]
    afters = [error(c.after.sqnr_db) for c in d.layers]
    top = max((e for e in (*befores, *afters) if e is not None and math.isfinite(e)), default=0.0) or 1.0

    def cell(e: float | None) -> Cell:
        return Cell("-") if e is None else Cell(f"{100 * e:.2g} %", min(1.0, e / top))

    rows = tuple((Cell(c.name), cell(b), cell(a)) for c, b, a in zip(d.layers, befores, afters, strict=True))
    columns = ("layer", "error before", "error after")
    errors = Grid("Error of the outputs, of their signal", columns, rows, columns[1:])
    yield Section("layers", "Before and after", grids=(errors,))
    yield Section("details", "Weights and outputs", grids=(grid_of(page(d).tables[0]),))

"""Sections of `kquant.analyze`: what was lost, why, at which layer, and how ranges meet their grids."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from kquant.analysis.results import SPLIT, Analysis, Finding, LayerReport, TensorReport, WeightReport
from kquant.core.messages import first_of
from kquant.report.cards import share_of
from kquant.report.drawing import Scale, box, dots, gridlines, line, stairs, upright
from kquant.report.pages import NOTHING, decibels, figure, gained, how, is_share, is_sqnr, share
from kquant.report.sheet import Cell, Grid, Label, Note, Plot, Section, Shape, card, grid_of, sections, with_bars
from kquant.report.tables import page

AS_GOOD_AS_EQUAL_DB = 100.0  # float32 rounds so
SENSITIVE_PERCENT = 20.0  # of the loss, from where `analysis.findings` calls a layer sensitive
EVIDENCE = 3  # layers that a note tells of
WORST = 6  # histograms of each kind


@card.register
def _card(a: Analysis) -> Iterable[tuple[str, str]]:
    if is_sqnr(a):
        yield "SQNR of the outputs", f"{figure(a.value)} dB"
    else:
        yield f"{a.metric}, float", measured(a, a.float_value)
        yield f"{a.metric}, simulated", measured(a, a.value)
        yield "SQNR of the outputs", f"{figure(a.sqnr_db)} dB"
    yield "MACs", f"{a.macs:,}"
    yield "samples analyzed", f"{a.samples:,}"


def measured(a: Analysis, value: float) -> str:
    """A value of the metric; a share of right answers with what other samples of that number would give."""
    return share_of(value, a.samples) if is_share(a.metric, value) else figure(value)


@sections.register
def _analysis(a: Analysis) -> Iterator[Section]:
    yield Section("sizes", "By what is quantized", _uncertainty(a), grids=(_stages(a),))
    notes = tuple(_notes(a.findings, is_sqnr(a))) or (Note("No finding", NOTHING),)
    yield Section("answers", "Why is it not more accurate?", notes=notes)
    plots = (_along(a.layers), *_sensitivity_plot(a, a.layers))  # all of them: numbers are those of the table
    quiet = "" if len(plots) > 1 or not any(r.sensitivity for r in a.layers) else f" {QUIET}"
    _, sensitivities, weights, tensors = page(a).tables
    yield Section("layers", "Layer by layer", f"{ALONG}{quiet}", plots=plots, grids=(_layers(a),))
    if sensitivities.rows:
        grid = with_bars(grid_of(sensitivities), "loss gone", _losses(a))
        yield Section("layers", "Sensitivity", grids=(grid,))
    yield Section("ranges", "Weights and their grids", WEIGHTS, plots=_of_weights(a), grids=(grid_of(weights),))
    yield Section("ranges", "Activations and their grids", ACTIVATIONS, plots=_of_tensors(a), grids=(grid_of(tensors),))


ALONG = (
    "The error of each layer's output, as a share of its signal: the bar with all the noise that comes before the "
    "layer, the line across it that of the layer alone. Numbers along the plots are those of the table."
)
QUIET = "No layer loses anything where it alone is quantized, so there is no plot of sensitivities."
WEIGHTS = (
    "How often each weight occurs, over the end of its own channel's grid: what lies beyond -1 and 1, in red, is "
    "clipped. The layers with the most noise."
)
ACTIVATIONS = (
    "How often each value occurs in the float model, against the ends of its grid: what lies outside, in red, is "
    "clipped. The tensors with the most noise that calibration can move."
)


def _uncertainty(a: Analysis) -> str:
    said = (
        "Weights and activations quantized alone and together, in floats on their grids; last in the file's integers."
    )
    return said if is_sqnr(a) else f"{said} One sample of {a.samples:,} is {100 / a.samples:.2g} points."


def _stages(a: Analysis) -> Grid:
    stages = {
        "float": a.float_value,
        "weights quantized": a.weights_only,
        "activations quantized": a.activations_only,
        "both, on the grids": a.simulated,
        "integer arithmetic": a.value,
    }
    if is_sqnr(a):
        del stages["float"]
    top = max((v for v in stages.values() if math.isfinite(v)), default=0.0)
    rows = tuple((Cell(name), Cell(measured(a, value), _part(value, top))) for name, value in stages.items())
    return Grid(f"{a.metric} with parts quantized", ("", a.metric), rows, (a.metric,))


def _part(value: float, top: float) -> float:
    if not math.isfinite(value):
        return 1.0 if value > 0 else 0.0
    return min(1.0, max(0.0, value / top)) if top > 0.0 else 0.0


def _notes(findings: Sequence[Finding], in_db: bool) -> Iterator[Note]:
    """What has the same cause and the same remedy is told once, with the layers that it is so of."""
    alike: dict[tuple[str, str], list[Finding]] = {}
    for f in findings:
        alike.setdefault((f.cause, f.remedy), []).append(f)
    for same in alike.values():
        yield _note(same, in_db)


def _note(same: Sequence[Finding], in_db: bool) -> Note:
    f, gain = same[0], ""
    if f.remedy:
        done = "with the model split" if f.remedy == SPLIT else how(f.remedy)
        gain = "To try:" if f.gain is None else f"{gained(f.gain, in_db)}, {done}:"
    said = ". ".join(one.evidence for one in same[:EVIDENCE])
    more = f". And {len(same) - EVIDENCE} more" if len(same) > EVIDENCE else ""
    more += ". Nothing that was tried gains on these samples" if f.tried and not f.remedy else ""
    return Note(f"{first_of((one.layer for one in same), EVIDENCE)}: {f.cause}", f"{said}{more}.", gain, f.remedy)


def error(sqnr_db: float | None) -> float | None:
    """Root of the noise over the signal's power."""
    return None if sqnr_db is None else 10.0 ** (-sqnr_db / 20.0)


def _layers(a: Analysis) -> Grid:
    errors = [error(r.sqnr_db) or 0.0 for r in a.layers]
    top = max((e for e in errors if math.isfinite(e)), default=0.0) or 1.0
    rows = tuple(_layer(n, r, top) for n, r in enumerate(a.layers, 1))
    columns = ("layer", "#", "error", "SQNR, dB", "alone, dB", "MACs", "weights, bytes", "live bytes", "class")
    return Grid("Layers in order: error of the output, and cost", columns, rows, columns[1:-1])


def _layer(number: int, r: LayerReport, top: float) -> tuple[Cell, ...]:
    whole, own = error(r.sqnr_db) or 0.0, error(r.local_sqnr_db)
    bar = Cell(_percent(whole), min(1.0, whole / top), None if own is None else min(1.0, own / top))
    counts = (r.macs, r.weight_bytes, r.live_bytes)
    texts = (decibels(r.sqnr_db), decibels(r.local_sqnr_db), *(f"{n:,}" for n in counts))
    return (Cell(r.name), Cell(str(number)), bar, *map(Cell, texts), Cell(r.kind))


def _percent(value: float) -> str:
    return f"{100 * value:.2g} %" if value < 1.0 else f"{100 * value:.0f} %"


def _losses(a: Analysis) -> list[float]:
    shares = [share(a, r) for r in a.layers if r.sensitivity is not None]
    top = max((abs(s) for s in shares), default=0.0) or 1.0
    return [max(0.0, s) / top for s in shares]


def _along(rows: Sequence[LayerReport]) -> Plot:
    """SQNR of every output, end to end and of the layer alone."""
    kinds = {"line": _shown(r.sqnr_db for r in rows), "other": _shown(r.local_sqnr_db for r in rows)}
    every = [v for values in kinds.values() for v in values.values()]
    scale = Scale(min(0.0, *every, 0.0), max(every, default=1.0) * 1.05)
    shapes = [*gridlines(ys := scale.labels())]
    for kind, values in kinds.items():
        places = [(_place(i, len(rows)), scale.at(v)) for i, v in values.items()]
        shapes += [line(places, kind), dots(places, kind)] if kind == "line" and places else [dots(places, kind)]
    worst = min(rows, key=lambda r: r.sqnr_db, default=None)
    alt = (
        "SQNR of each layer's output."
        if worst is None
        else (f"SQNR of each layer's output; the lowest, {decibels(worst.sqnr_db)} dB, at {worst.name}.")
    )
    legend = (("line", "with all noise before it"), ("other", "of the layer alone"))
    return Plot("SQNR of the outputs, dB", alt, tuple(shapes), _numbers(len(rows)), ys, "layer", "dB", legend)


def _shown(values: Iterable[float | None]) -> dict[int, float]:
    """Place -> value of those that were measured and are not as good as equal."""
    return {i: v for i, v in enumerate(values) if v is not None and abs(v) < AS_GOOD_AS_EQUAL_DB}


def _place(i: int, count: int) -> float:
    return (i + 0.5) / count


def _numbers(count: int) -> tuple[Label, ...]:
    step = max(1, -(-count // 8))
    return tuple(Label(str(i + 1), _place(i, count)) for i in range(0, count, step))


def _sensitivity_plot(a: Analysis, rows: Sequence[LayerReport]) -> Iterator[Plot]:
    """What is lost with one layer alone quantized, a bar for each."""
    lost = [_lost(a, r) for r in rows]
    if not any(r.sensitivity for r in rows) or not any(lost):
        return
    scale = Scale(1.05 * min(0.0, *lost), 1.05 * max(1e-3, *lost))
    ground, half = scale.at(0.0), 0.36 / len(rows)
    shapes = list(gridlines(ys := scale.labels()))
    for i, (row, value) in enumerate(zip(rows, lost, strict=True)):
        low, high = sorted((ground, scale.at(value)))
        kind = "area bad" if value > 0.0 and 100.0 * share(a, row) >= SENSITIVE_PERCENT else "area"
        x = _place(i, len(rows))
        shapes.append(box(x - half, x + half, low, high, kind, f"{row.name}: {value:.3g}"))
    worst = max(zip(lost, rows, strict=True), key=lambda pair: pair[0])
    unit = "% of the noise with all" if is_sqnr(a) else "points"
    title = f"Sensitivity: noise with only this layer quantized, {unit}"
    if not is_sqnr(a):
        title = f"Sensitivity: {a.metric} lost with only this layer quantized, {unit}"
    alt = f"{title}, by layer; the most, {worst[0]:.3g}, at {worst[1].name}."
    legend = [("area", "a layer")]
    if any(shape.kind == "area bad" for shape in shapes):
        legend.append(("area bad", "a fifth of the loss is gone without it: worth more bits"))
    yield Plot(title, alt, tuple(shapes), _numbers(len(rows)), ys, "layer", unit, tuple(legend))


def _lost(a: Analysis, row: LayerReport) -> float:
    """With only this layer quantized: percent of the noise that all of them make, or points of the metric."""
    if row.sensitivity is None:
        return 0.0
    if not is_sqnr(a):
        return 100.0 * (a.float_value - row.sensitivity.only)
    return 100.0 * 10.0 ** ((a.simulated - row.sensitivity.only) / 10.0)


def _of_weights(a: Analysis) -> tuple[Plot, ...]:
    measured = [(r.name, r.weights) for r in a.layers if r.weights is not None and r.weights.counts]
    worst = sorted(measured, key=lambda pair: pair[1].sqnr_db)[:WORST]
    return tuple(_weights(name, w) for name, w in worst)


def _weights(name: str, w: WeightReport) -> Plot:
    said = f"{decibels(w.sqnr_db)} dB, {w.clipped:.2%} clipped, {w.bits} bits"
    return histogram(name, said, w.counts, w.edges, (-1.0, 1.0), "weight over the end of its grid")


def _of_tensors(a: Analysis) -> tuple[Plot, ...]:
    # of what a kernel prescribes there is nothing to choose
    moving = [t for t in a.tensors if not t.is_fixed and math.isfinite(t.sqnr_db)]
    return tuple(_tensor(t) for t in sorted(moving, key=lambda t: t.sqnr_db)[:WORST])


def _tensor(t: TensorReport) -> Plot:
    said = f"{decibels(t.sqnr_db)} dB, {t.clipped:.2%} clipped, {t.bits} bits"
    return histogram(t.unit, said, t.counts, t.edges, (t.low, t.high), "value")


def histogram(
    name: str, said: str, counts: Sequence[int], edges: Sequence[float], limits: tuple[float, float], x_title: str
) -> Plot:
    """Counts on an axis of logarithms, and the ends of the grid; what lies beyond them in the colour of faults.

    Args:
        name: of the tensor.
        said: its figures.
        counts: of the bins.
        edges: of the bins, one more.
        limits: ends of the grid.
        x_title: what the values are.
    """
    low, high = limits
    left, right = min(edges[0], low), max(edges[-1], high)
    room = 0.03 * ((right - left) or 1.0)
    across = Scale(left - room, right + room)
    up = Scale(0.5, 2.0 * max(1, *counts), log=True)  # a bin with a single value stands above the ground
    # a bin that straddles an end counts as inside
    slack = 1e-6 * ((right - left) or 1.0)
    outside = [edges[i + 1] <= low + slack or edges[i] >= high - slack for i in range(len(counts))]
    places = [across.at(e) for e in edges]
    heights = [up.at(n) if n else 0.0 for n in counts]
    inside = [0.0 if out else h for h, out in zip(heights, outside, strict=True)]
    beyond = [h if out else 0.0 for h, out in zip(heights, outside, strict=True)]
    shapes: tuple[Shape, ...] = (
        box(across.at(low), across.at(high), 0.0, 1.0, "grid"),
        stairs(inside, places, "area"),
        stairs(beyond, places, "area bad"),
        upright(across.at(low), "limit", f"lowest code: {low:.4g}"),
        upright(across.at(high), "limit", f"highest code: {high:.4g}"),
    )
    alt = f"Histogram of {name}: {said}; the grid reaches from {low:.4g} to {high:.4g}."
    legend = (("area", "on the grid"), ("limit", "ends of the grid"))
    if any(beyond):
        legend = (*legend, ("area bad", "clipped"))
    ys = up.labels(4)
    return Plot(f"{name}: {said}", alt, shapes, across.labels(4), ys, x_title, "count", legend)

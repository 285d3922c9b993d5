"""Pages of `kquant.analyze` and `kquant.dry_run`."""

from __future__ import annotations

import math
from collections.abc import Iterable

from kquant.analysis.by_chance import WHOLE
from kquant.analysis.findings import share_of_loss
from kquant.analysis.results import Analysis, Finding, Gain, LayerReport
from kquant.analysis.try_steps import DryRun
from kquant.report.tables import Page, Table, page


@page.register
def _analysis(a: Analysis) -> Page:
    return Page(
        headline=headline(a),
        ok=not a.findings,
        findings=tuple(_finding(f, is_sqnr(a)) for f in a.findings),
        facts=tuple(facts(a)),
        tables=(_layers(a), _sensitivities(a), _weights(a), _tensors(a)),
    )


NOTHING = "Nothing stands out: no cause that kquant knows shows in these samples."


def headline(a: Analysis) -> str:
    """The result in one line."""
    shown = [f"{100 * v:.1f} %" if is_share(a.metric, v) else figure(v) for v in (a.float_value, a.value)]
    value = f"{a.metric} {shown[0]} in float, {shown[1]} quantized"
    if is_sqnr(a):
        value = f"SQNR of the outputs {figure(a.value)} dB"
    return f"{a.model}, recipe {a.recipe} on {a.target}, {a.samples} samples: {value}"


def is_sqnr(a: Analysis) -> bool:
    """True where the metric is SQNR, which is infinite in float."""
    # both: a caller's metric may be called so, and may be infinite
    return math.isinf(a.float_value) and a.metric == "SQNR in dB"


def is_share(metric: str, value: float) -> bool:
    """True of an accuracy, which is shown in percent."""
    return metric == "accuracy" and 0.0 <= value <= 1.0


def facts(a: Analysis) -> Iterable[str]:
    """Figures of the whole model."""
    if not a.findings:
        yield NOTHING
    if not is_sqnr(a):
        yield f"SQNR of the outputs {figure(a.sqnr_db)} dB"
    yield (
        f"{a.metric}: weights only quantized {figure(a.weights_only)}, activations only {figure(a.activations_only)}, "
        f"both {figure(a.simulated)} (floats on the grids), {figure(a.value)} (integer arithmetic)"
    )
    if lost := chance_of_loss(a):
        yield lost
    cost = f"{a.macs:,} MACs, weights {a.weight_bytes:,} bytes"
    yield f"{cost}, activations alive together at most {a.peak_bytes:,} bytes"


def chance_of_loss(a: Analysis) -> str:
    """What to think of a loss that may be chance; empty where it is none, or sure."""
    if a.is_sure or not a.value < a.float_value:
        return ""
    lost = (a.float_value - a.value) * a.samples
    counted = f"{lost:.0f} of {a.samples:,} samples" if abs(lost - round(lost)) < WHOLE else figure(lost / a.samples)
    judged = "SQNR tells what is worth a try" if a.findings else "By SQNR nothing needs to be done"
    return (
        f"{a.metric}: {counted} lost, which is within chance: models that are as good differ so much in "
        f"{100 * a.by_chance:.0f} of 100 draws of as many samples. {judged}"
    )


def _finding(f: Finding, in_db: bool) -> str:
    """The cause; behind it the remedy in a box of its own, ready to be pasted into a recipe."""
    said = f"{f.layer}: {f.cause}. {f.evidence}."
    if not f.remedy:
        return f"{said} Nothing that was tried gains on these samples." if f.tried else said
    return f"{said} {'Try' if f.gain is None else gained(f.gain, in_db)}:\n{f.remedy}"


def how(lines: str) -> str:
    """What to do with lines that a page shows, in words for in front of them.

    Args:
        lines: of a recipe (TOML), or of Python.

    Example:
        >>> how("kquant.split_preprocessing(model)")
        'by this call'
    """
    if "kquant." in lines:
        return "by this call"
    return "with these lines in the recipe (alone in better.toml they are int8 with them: --recipe better.toml)"


def gained(gain: Gain, in_db: bool) -> str:
    """What a remedy gained, in dB and in points of the metric."""
    decibel = f"{gain.sqnr_db:+.1f} dB SQNR"
    return f"Tried: {decibel}" if in_db else f"Tried: {100 * gain.value:+.2f} points, {decibel}"


def _layers(a: Analysis) -> Table:
    columns = ("layer", "class", "SQNR", "own SQNR", "MACs", "weights, bytes", "inputs and output, bytes")
    rows = tuple(
        (r.name, r.kind, decibels(r.sqnr_db), decibels(r.local_sqnr_db), *(f"{n:,}" for n in _cost(r)))
        for r in a.layers
    )
    return Table("Layers: SQNR of the output in dB, end to end and of the layer alone", columns, rows, columns[2:])


def _cost(row: LayerReport) -> tuple[int, int, int]:
    return row.macs, row.weight_bytes, row.live_bytes


def _sensitivities(a: Analysis) -> Table:
    columns = ("layer", "only it", "its weights", "its output", "all but it", "loss gone")
    rows = tuple(
        (
            r.name,
            figure(s.only),
            figure(s.only_weights),
            figure(s.only_activations),
            figure(s.all_but),
            f"{round(100 * share(a, r))}%",
        )
        for r in a.layers
        if (s := r.sensitivity) is not None
    )
    title = f"Sensitivity: {a.metric}, with these quantized; loss gone with it in float (these do not add up; "
    title += "below 0 its noise makes up for that of others)"
    return Table(title, columns, rows, columns[1:])


def share(a: Analysis, row: LayerReport) -> float:
    """Share of the loss that is gone with this layer in float; 0 where what was lost may be chance."""
    return share_of_loss(a.float_value, a.simulated, row, is_sqnr(a)) if a.is_sure else 0.0


def _weights(a: Analysis) -> Table:
    columns = ("layer", "bits", "scales", "lowest", "highest", "spread", "clipped", "SQNR")
    rows = tuple(
        (
            r.name,
            str(w.bits),
            "per channel" if w.per_axis else "one",
            figure(w.low),
            figure(w.high),
            f"{w.spread:.1f}",
            f"{w.clipped:.2%}",
            decibels(w.sqnr_db),
        )
        for r in a.layers
        if (w := r.weights) is not None
    )
    title = "Weights: spread is the largest over the smallest max|w| of the channels"
    return Table(title, columns, rows, (columns[1], *columns[3:]))


def _tensors(a: Analysis) -> Table:
    columns = ("layer", "bits", "grid", "seen", "clipped", "used", "rounding", "clipping", "SQNR")
    rows = tuple(
        (
            t.unit,
            str(t.bits),
            f"{t.low:.4g} .. {t.high:.4g}",
            f"{t.seen_low:.4g} .. {t.seen_high:.4g}",
            f"{t.clipped:.3%}",
            f"{t.used:.0%}",
            f"{t.rounding:.1e}",
            f"{t.clipping:.1e}",
            decibels(t.sqnr_db),
        )
        for t in a.tensors
    )
    title = "Activations: mean squared errors of rounding and clipping; used is the share of the grid without tails"
    return Table(title, columns, rows, (columns[1], *columns[4:]))


@page.register
def _dry_run(d: DryRun) -> Page:
    # a table knows its columns by name, so equal heads end in different numbers of blanks
    columns = ("layer", "weights before", "after", "spread before", "after ", "SQNR before", "after  ")
    rows = tuple(
        (
            c.name,
            _range(c.before.low, c.before.high),
            _range(c.after.low, c.after.high),
            figure(c.before.spread),
            figure(c.after.spread),
            decibels(c.before.sqnr_db),
            decibels(c.after.sqnr_db),
        )
        for c in d.layers
    )
    before = "no ranges" if d.before_db is None else f"{figure(d.before_db)} dB"
    after = "no ranges" if d.after_db is None else f"{figure(d.after_db)} dB"
    done = ", ".join(d.steps) + " on a copy" * d.on_copy
    # ranges that are gone are worse than any: the model cannot be exported
    worse = d.before_db is not None and (d.after_db is None or d.after_db < d.before_db)
    return Page(
        headline=f"{d.model}, {done}, {d.samples} samples: SQNR {before} -> {after}",
        ok=not worse,
        findings=("The outputs are further from the float model than before.",) if worse else (),
        facts=d.notes,
        tables=(Table("Layers: SQNR of the output in dB, end to end", columns, rows, columns[3:]),),
    )


def _range(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{low:.4g} .. {high:.4g}"


def figure(value: float | None) -> str:
    """Four digits; `-` for what was not measured, `equal` for an infinite SQNR."""
    if value is None:
        return "-"
    # -inf is the SQNR of a tensor that is 0 in float, and anything but equal
    return "equal" if math.isinf(value) and value > 0 else f"{value:.4g}"


def part_or_figure(metric: str, value: float) -> str:
    """A value of a metric: of accuracy, a share of right answers, in percent.

    Example:
        >>> part_or_figure("accuracy", 0.8359), part_or_figure("mine", 0.8359)
        ('83.6 %', '0.8359')
    """
    return f"{100 * value:.1f} %" if metric == "accuracy" and 0.0 <= value <= 1.0 else figure(value)


def decibels(value: float | None) -> str:
    """One digit behind the point."""
    return figure(value) if value is None or math.isinf(value) else f"{value:.1f}"

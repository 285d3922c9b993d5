"""The page of `kquant.why`: what was tried to make a file smaller and faster, and at which cost."""

from __future__ import annotations

import math
from collections.abc import Iterator

from kquant.analysis.findings import LOSS, LOSS_DB
from kquant.report.page import Page, Table, page
from kquant.report.pages import decibels, figure, how, is_share, part_or_figure
from kquant.report.search_sections import curve, unbeaten
from kquant.report.sheet import Note, Section, grid_of, sections
from kquant.search.answers import Answer, Answers, Trial

COLUMNS = ("change", "file, bytes", "arena, bytes", "MACs", "SQNR, dB")


@page.register
def _answers(a: Answers) -> Page:
    best = [(answer.question, answer.trials[0]) for answer in a.answers if answer.trials]
    said = "; ".join(f"{question}: {_saved(question, trial, a)}" for question, trial in best)
    return Page(
        headline=f"{a.model}, recipe {a.recipe} on {a.target}: {said or 'nothing that was tried makes it smaller'}",
        ok=True,
        findings=(),
        facts=tuple(f"not {answer.question}: {answer.because}" for answer in a.answers),
        tables=(_trials(a),),
    )


def price(trial: Trial, start: Trial, metric: str) -> str:
    """What a change costs, in words; empty where that is less than an analysis calls a loss.

    Args:
        trial: the change.
        start: the model as it is.
        metric: what `value` is; "" where only the SQNR was measured.
    """
    if trial.value is not None and start.value is not None:
        lost = start.value - trial.value
        much = f"{100 * lost:.1f} points of {metric}" if is_share(metric, start.value) else f"{figure(lost)} {metric}"
        return f"at {much}" if lost > LOSS else ""
    lost = min(start.sqnr_db, LOSS_DB) - trial.sqnr_db
    return f"at {start.sqnr_db - trial.sqnr_db:.1f} dB" if lost > 0.0 else ""


def _saved(question: str, trial: Trial, a: Answers) -> str:
    start, cost = a.start, price(trial, a.start, a.metric)
    before, after, unit = start.file_bytes, trial.file_bytes, "bytes"
    if question == "faster":
        before, after, unit = start.macs, trial.macs, "MACs"
    said = f"{before - after:,} {unit} less ({100 * (before - after) / max(1, before):.0f} %)"
    return f"{said}, {cost}" if cost else said


def _trials(a: Answers) -> Table:
    metric = (a.metric,) if a.metric else ()
    rows = tuple(_row(trial, a.metric) for trial in _every(a))
    columns = (*COLUMNS, *metric)
    return Table("What was tried, measured before any training", columns, rows, columns[1:])


def _every(a: Answers) -> list[Trial]:
    """The model as it is, and each trial once."""
    by_lines = {trial.lines: trial for answer in a.answers for trial in answer.trials}
    return [a.start, *by_lines.values()]


def _row(trial: Trial, metric: str) -> tuple[str, ...]:
    arena = "-" if trial.arena_bytes is None else f"{trial.arena_bytes:,}"
    value = () if trial.value is None else (part_or_figure(metric, trial.value),)
    change = " ".join(trial.lines.split()) or "as it is"
    return (change, f"{trial.file_bytes:,}", arena, f"{trial.macs:,}", decibels(trial.sqnr_db), *value)


@sections.register
def _sections(a: Answers) -> Iterator[Section]:
    for answer in a.answers:
        notes = tuple(_note(answer, trial, a) for trial in answer.trials) or (
            Note("Nothing that was tried helps", "See what was tried in the table below."),
        )
        if answer.in_vain and answer.trials:
            lines = "\n\n".join(answer.in_vain)
            notes = (*notes, Note("Tried in vain", "No model comes of these here, or it takes as much:", "", lines))
        yield Section("answers", f"Why is it not {answer.question}?", answer.because, notes=notes)
    trials = [t for t in _every(a) if math.isfinite(t.sqnr_db) or a.metric]
    points = [(float(t.file_bytes), t.sqnr_db if t.value is None else t.value) for t in trials]
    best, start = unbeaten(points), points[:1]
    others = [p for p in points if p not in best]
    unit = a.metric or "SQNR, dB"
    alt = f"{len(points)} models that were tried: bytes of the file against {unit}."
    plot = curve(
        f"Pareto curve: {unit} by bytes of the file", alt, best, others, start, ("bytes of the file", unit), "as it is"
    )
    yield Section("choices", "What could be had", CHOICES, plots=(plot,), grids=(grid_of(_trials(a)),))


CHOICES = (
    "Each point is a model that was made and measured on the same samples, before any training; the large one is the "
    "model as it is. Training moves points up."
)


def _note(answer: Answer, trial: Trial, a: Answers) -> Note:
    costs = f"SQNR of the outputs {decibels(trial.sqnr_db)} dB instead of {decibels(a.start.sqnr_db)} dB"
    if trial.value is not None and a.start.value is not None:
        values = [part_or_figure(a.metric, value) for value in (trial.value, a.start.value)]
        costs = f"{a.metric} {values[0]} instead of {values[1]}; {costs}"
    arena = ""
    if trial.arena_bytes is not None and a.start.arena_bytes is not None and trial.arena_bytes != a.start.arena_bytes:
        arena = f"arena {trial.arena_bytes:,} bytes instead of {a.start.arena_bytes:,}; "
    said = f"Tried, without training: {arena}{costs}."
    cost = price(trial, a.start, a.metric)
    wanted = "To have it, where that may be lost or training wins it back" if cost else "To have it"
    return Note(
        _saved(answer.question, trial, a), said, f"{wanted}, {how(trial.lines)}:", trial.lines, is_dear=bool(cost)
    )

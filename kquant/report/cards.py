"""The page of a `ModelCard`: the figures that are asked for first, and accuracy before and after."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kquant.exporting.model_card import ModelCard, margin
from kquant.report.page import Page, Table, page
from kquant.report.sheet import Cell, Grid, Section, card, sections


@page.register
def _page(c: ModelCard) -> Page:
    rows = tuple((what, much) for what, much in _figures(c))
    found = (c.loss,) if c.loss else ()
    return Page(repr(c), not found, found, (), (Table("Model card", ("", "figure"), rows, ("figure",)),))


def card_table(c: ModelCard, arena: dict[str, str] | None = None) -> Table:
    """The card in one row.

    Args:
        c: the card.
        arena: what to say of it, by its heading; None: the smallest that TFLM runs the file in on this host.
    """
    smallest = "not measured" if c.arena_bytes is None else f"{c.arena_bytes:,}"
    figures = {
        "MACs": f"{c.macs:,}",
        "weights": f"{c.weight_bytes:,}",
        "flash": f"{c.flash_bytes:,}",
        **({"arena": smallest} if arena is None else arena),
    }
    numbers = tuple(figures)
    if c.accuracies:
        float_one, of_file = c.accuracies["float"], c.accuracies["file"]
        figures["accuracy, float / file"] = f"{100 * float_one:.1f} % / {100 * of_file:.1f} %"
        figures["samples"] = f"{c.samples:,} on {c.runtime}"
    return Table("Model card", tuple(figures), (tuple(figures.values()),), numbers)


@card.register
def _figures(c: ModelCard) -> Iterable[tuple[str, str]]:
    for name, value in c.accuracies.items():
        yield f"accuracy, {name}", share_of(value, c.samples)
    if c.accuracies:
        yield "samples of the accuracy", f"{c.samples:,}"
    yield "file", f"{c.flash_bytes:,} bytes"
    yield "weights", f"{c.weight_bytes:,} bytes"
    if c.arena_bytes is not None:
        yield "arena", f"{c.arena_bytes:,} bytes"
    yield "MACs", f"{c.macs:,}"


def share_of(value: float, samples: int) -> str:
    """A share of right answers, and what other samples of that number would make of it.

    Args:
        value: 0 to 1.
        samples: that it was counted on.

    Example:
        >>> share_of(0.875, 64)
        '87.5 % ± 8.1'
    """
    return f"{100 * value:.1f} % ± {100 * margin(value, samples):.1f}"


@sections.register
def _sections(c: ModelCard) -> Iterator[Section]:
    rows = tuple((Cell(name), Cell(share_of(value, c.samples), value)) for name, value in c.accuracies.items())
    said = f"Of {c.samples:,} samples; the file on {c.runtime}."
    yield Section(
        "sizes",
        "Accuracy before and after",
        said,
        grids=(Grid("Share of right answers", ("", "accuracy"), rows, ("accuracy",)),),
    )

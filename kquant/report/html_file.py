"""Any result, or several of one model, as one HTML file that needs no other: no script, no network, light or dark."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, cast

import jinja2
import markupsafe

from kquant import __version__
from kquant.analysis.results import Analysis
from kquant.core.renamed import renamed
from kquant.exporting.export_file import ExportReport
from kquant.exporting.model_card import ModelCard
from kquant.files.atomic import write_atomically
from kquant.files.destination import destination, path_of

# they register their sections
from kquant.report import analysis_sections, answers, file_sections, observations, search_sections  # noqa: F401  # pyright: ignore[reportUnusedImport]
from kquant.report.sheet import PLACES, Sheet, card, parts, sections
from kquant.report.tables import page
from kquant.report.verdict import name_of, verdict_of

TEMPLATE, STYLE = "report.html.jinja", "report.css"
CARD = ("float", "simulated", "file", "flash", "arena", "MACs", "weights")
# What stands for a mark in a legend: lines and dots in the middle, areas as boxes.
KEYS = {
    **dict.fromkeys(("line", "limit"), "M0 500H1000"),
    **dict.fromkeys(("other", "rest", "taken"), "M500 500h0"),
}


@renamed
def html(result: Any, path: str | Path) -> Path:
    """Write a result as one HTML file: verdict, figures, plots and tables, light or dark as the reader's system is.

    An export's page tells of the file too, where that still lies at its path: operators by type, memory over time.

    Args:
        result: what a public function of kquant returned, or a list of results of one model, which make one page:
            `[report, analysis]` of `kquant.export` and `kquant.analyze`, say.
        path: of the file; an old one is replaced when the new one is complete.

    Returns:
        The path.

    Raises:
        TypeError: not a result.
        ValueError: no result, not an .html file, or it cannot be written.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="head")])
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> q = kquant.calibrate(kquant.quantize(model), x, verbose=False)
        >>> results = [kquant.export(q, "head.tflite"), kquant.analyze(q, x, verbose=False)]
        >>> kquant.report.html(results, "report.html").name
        'report.html'
    """
    content = render_html(result)
    target = check_html(path)
    write_atomically(target, content.encode(), "report.html")
    return target


def check_html(path: str | Path) -> Path:
    """Refuse a report that could not be written, before the work is done.

    Raises:
        ValueError: no such folder, or another kind of file.
    """
    target = path_of(path, "report.html", "report.html")
    if target.suffix != ".html":
        raise ValueError(f"report.html: {target}: expected a name that ends in .html.")
    # asked before an analysis, which takes minutes, and needed only behind it
    destination(target, "report.html", "report.html")
    return target


def render_html(result: Any) -> str:
    """The file's text."""
    return _rendered(result, whole=True)


def fragment(result: Any) -> str:
    """The same as a part of another page: what notebooks show."""
    return _rendered(result, whole=False)


def _rendered(result: Any, whole: bool) -> str:
    style = markupsafe.Markup(_read(STYLE))  # of this package
    text = _template().render(sheet=sheet_of(result), style=style, version=__version__, KEYS=KEYS, whole=whole)
    return "\n".join(line for line in text.splitlines() if line.strip()) + "\n"


def sheet_of(result: Any) -> Sheet:
    """All that a page says.

    Args:
        result: one, or several of one model.

    Raises:
        TypeError: not a result.
        ValueError: an empty list.
    """
    given = list(cast(Sequence[Any], result)) if isinstance(result, list | tuple) else [result]
    if not given:
        raise ValueError("report.html: expected a result, or a list of results. Received: an empty list.")
    results = [part for one in given for part in parts(one)]
    pages = [page(one) for one in results]
    every = [section for one in results for section in sections(one) if not section.is_empty]
    # an export and its file both have ports
    shown = [s for i, s in enumerate(every) if s.title not in {earlier.title for earlier in every[:i]}]
    figures: dict[str, str] = {}
    for one in sorted(results, key=lambda one: not isinstance(one, ModelCard)):  # it has the file's own figures
        for what, much in card(one):
            figures.setdefault(what, much)
    # a page of an export is about the file: what an analysis finds beside is what could be better
    analyses = [p for one, p in zip(results, pages, strict=True) if isinstance(one, Analysis)]
    files = (ExportReport, ModelCard) if any(isinstance(one, ExportReport) for one in results) else (object,)
    judged = [p for one, p in zip(results, pages, strict=True) if isinstance(one, files)]
    return Sheet(
        name=name_of(results),
        verdict=verdict_of(results),
        ok=all(p.ok for p in judged),
        # an analysis tells its own at length, with the lines to change
        findings=tuple(dict.fromkeys(f for p in pages if p not in analyses for f in p.findings)),
        facts=tuple(dict.fromkeys(fact for p in pages for fact in p.facts)),
        card=tuple(sorted(figures.items(), key=_place)),
        sections=tuple(sorted(shown, key=lambda section: PLACES.index(section.place))),
    )


def _place(item: tuple[str, str]) -> int:
    """Where a figure stands on the card."""
    return next((i for i, word in enumerate(CARD) if word in item[0]), len(CARD))


@cache
def _template() -> jinja2.Template:
    # names of layers are the user's, and go into the page as text
    environment: Any = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["soft"] = _soft
    return environment.from_string(_read(TEMPLATE))


def _soft(text: str) -> markupsafe.Markup:
    """A name that may be broken behind `_` and `/` where a line is too short for it."""
    return markupsafe.Markup(re.sub(r"([_/])(?=\w)", r"\1<wbr>", str(markupsafe.escape(text))))


def _read(name: str) -> str:
    return resources.files(__package__ or "kquant.report").joinpath(name).read_text(encoding="utf-8")

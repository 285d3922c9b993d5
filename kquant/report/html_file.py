"""An analysis as one HTML file that needs no other: tables, findings and plots. Needs the extra `report`."""

from __future__ import annotations

import importlib.util
from importlib import resources
from pathlib import Path
from typing import Any

from kquant.analysis.results import Analysis
from kquant.files.atomic import write_atomically
from kquant.files.destination import destination
from kquant.report.pages import facts, headline
from kquant.report.tables import page

TEMPLATE = "analysis.html.jinja"


def html(analysis: Analysis, path: str | Path) -> Path:
    """Write an analysis as one HTML file, light or dark as the reader's system is.

    Args:
        analysis: what `kquant.analyze` returned.
        path: of the file; an old one is replaced when the new one is complete.

    Returns:
        The path.

    Raises:
        ImportError: the extra is not installed: `pip install 'kquant[report]'`.
        TypeError: not an analysis.
        ValueError: not an .html file, or it cannot be written.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="head")])
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> q = kquant.calibrate(kquant.quantize(model), x, verbose=False)
        >>> kquant.report.html(kquant.analyze(q, x, verbose=False), "report.html").name
        'report.html'
    """
    given: Any = analysis  # whatever the annotation says
    if not isinstance(given, Analysis):
        raise TypeError(f"report.html: expected what kquant.analyze returned. Received: {type(given).__name__}.")
    target = check_html(path)
    write_atomically(target, render_html(analysis).encode(), "report.html")
    return target


def check_html(path: str | Path) -> Path:
    """Refuse a report that could not be written, before the work is done.

    Raises:
        ImportError: the extra is not installed; gives the command that installs it.
        ValueError: no such folder, or another kind of file.
    """
    target = Path(path)
    if target.suffix != ".html":
        raise ValueError(f"report.html: {target}: expected a name that ends in .html.")
    # asked before an analysis, which takes minutes, and needed only behind it
    destination(target, "report.html", "report.html")
    check_extra("the HTML report", "jinja2", "matplotlib")
    return target


def check_extra(what: str, *modules: str) -> None:
    """Refuse where the extra `report` is not installed.

    Raises:
        ImportError: gives the command that installs it.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"{what} needs {' and '.join(missing)}: pip install 'kquant[report]'")


def render_html(analysis: Analysis) -> str:
    """The file's text."""
    import jinja2

    from kquant.report import plots

    source = resources.files(__package__ or "kquant.report").joinpath(TEMPLATE).read_text(encoding="utf-8")
    # names of layers are the user's, and go into the page as text
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    return template.render(
        analysis=analysis,
        headline=headline(analysis),
        facts=list(facts(analysis)),
        # a model without weights has no table of them, rather than an empty one
        tables=[table for table in page(analysis).tables if table.rows],
        plots=[
            ("Along the network", ALONG, plots.along_network(analysis)),
            ("Weights", WEIGHTS, plots.weight_ranges(analysis)),
            ("Noisiest activations", ACTIVATIONS, plots.histograms(analysis)),
        ],
    )


ALONG = (
    "Layers in order, the first on top. Left: how far each output is from the float model, with all noise before it "
    "and with the layer's own alone. Middle: the outputs of the model with only this layer quantized; left is worse. "
    "Right: how much of the loss is gone with this layer in float; bars in red are worth more bits. Layers that leave "
    "the outputs equal have no dot."
)
WEIGHTS = (
    "Left: the ranges of a layer's channels; box: the middle half, line: the median, whiskers: all but dead ones. A "
    "wide box hurts where one scale serves all channels. Right: the weights on their grid against the float ones."
)
ACTIVATIONS = "Float values (blue, logarithmic counts) against the grid of their codes (green); what is outside clips."

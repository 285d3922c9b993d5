"""Plots of an analysis as SVG that takes the colours of the page around it. Needs the extra `report`."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, cast

import matplotlib

from kquant.analysis.results import Analysis, LayerReport, TensorReport
from kquant.core.spec import SMALLEST_CHANNEL
from kquant.report.pages import figure, share

INK = "#010203"  # becomes the page's text colour
FAINT = "#040506"  # becomes its line colour
BLUE, ORANGE, GREEN, RED = "#3b7dd8", "#e08a1e", "#2f9e6e", "#d1495b"
ROW_INCHES = 0.24
LONGEST_NAME = 34
WORST_TENSORS = 9
AS_GOOD_AS_EQUAL_DB = 100.0  # float32 rounds so
# Text stays text, in the page's font; ids are hashed with a constant, so that the same analysis makes the same file.
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "kquant",
    "font.family": "sans-serif",
    "font.size": 8.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
}


def _in_style(draw: Callable[[Analysis], str]) -> Callable[[Analysis], str]:
    """`draw` as `STYLE` says, whatever style the user has set."""

    @wraps(draw)
    def drawn(a: Analysis) -> str:
        # matplotlib lists the keys of a style one by one, and no dict of str is such a dict
        with matplotlib.rc_context(cast(Any, STYLE)):  # pyright: ignore[reportUnknownMemberType]
            return draw(a)

    return drawn


@_in_style
def along_network(a: Analysis) -> str:
    """For every layer in order: SQNR of its output, and where it was measured, its sensitivity."""
    # layers that only move codes leave their output equal: there is nothing to show of them
    rows = [r for r in a.layers if not (math.isinf(r.sqnr_db) and r.weights is None)]
    wanted = 3 if any(r.sensitivity for r in rows) else 1
    fig, axes = _figure(len(rows), wanted, [r.name for r in rows])
    places = list(range(len(rows)))
    _dots(axes[0], [r.sqnr_db for r in rows], places, BLUE, "end to end", "o-")
    _dots(axes[0], [r.local_sqnr_db for r in rows], places, ORANGE, "layer alone", "D")
    axes[0].set_xlabel("SQNR of the output, dB")
    if wanted == 3:
        _sensitivity(axes[1], a, rows)
        _losses(axes[2], a, rows)
    for ax in axes[:2]:
        if ax.get_legend_handles_labels()[0]:
            place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 3, "frameon": False}
            ax.legend(**place, columnspacing=1.0, handletextpad=0.4)
    return _svg(fig)


def _sensitivity(ax: Any, a: Analysis, rows: Sequence[LayerReport]) -> None:
    """The metric with only one layer quantized: both, its weights, its output."""
    places = list(range(len(rows)))
    measured = [r.sensitivity for r in rows]
    # None where a layer was not measured, or has only one of both: no dot
    _dots(ax, [s and s.only_weights for s in measured], places, GREEN, "its weights", "s")
    _dots(ax, [s and s.only_activations for s in measured], places, ORANGE, "its output", "D")
    _dots(ax, [s and s.only for s in measured], places, BLUE, "layer", "o")
    if not math.isinf(a.float_value):
        ax.axvline(a.float_value, color=INK, linewidth=0.8, linestyle=":")
    ax.locator_params(axis="x", nbins=5)
    ax.set_xlabel(f"{a.metric}, only this layer quantized")


def _losses(ax: Any, a: Analysis, rows: Sequence[LayerReport]) -> None:
    """What is won with all but one layer quantized."""
    shares = [100.0 * share(a, r) for r in rows]
    # red from where `analysis.findings` calls a layer sensitive
    ax.barh(range(len(rows)), shares, color=[RED if s >= 20.0 else BLUE for s in shares], height=0.62)
    ax.axvline(0.0, color=FAINT, linewidth=0.8)
    ax.set_xlabel("of the loss, gone with this layer in float, %")


def _dots(ax: Any, values: Sequence[float | None], places: Sequence[int], colour: str, label: str, style: str) -> None:
    """Points of the values that were measured and are not as good as equal."""
    kept = [(v, p) for v, p in zip(values, places, strict=True) if v is not None and abs(v) < AS_GOOD_AS_EQUAL_DB]
    if kept:
        xs, ys = zip(*kept, strict=True)
        ax.plot(xs, ys, style, color=colour, label=label, markersize=4.2, linewidth=0.9, alpha=0.9)


@_in_style
def weight_ranges(a: Analysis) -> str:
    """Boxes of `max|w|` over the channels of each layer, relative to the largest channel."""
    rows = [r for r in a.layers if r.weights is not None and any(r.weights.channels)]
    if not rows:
        return ""
    fig, axes = _figure(len(rows), 2, [r.name for r in rows])
    for place, row in enumerate(rows):
        # of the layer's own largest, as layers differ by orders of magnitude; an axis of logarithms has no place for 0
        top = max(row.weights.channels) if row.weights else 1.0
        shown = [c / top for c in (row.weights.channels if row.weights else ()) if c > top * SMALLEST_CHANNEL]
        axes[0].boxplot(
            [shown],
            positions=[place],
            orientation="horizontal",
            widths=0.6,
            # whiskers to the extremes, no dots; names of layers at the ticks, which matplotlib would put numbers at
            whis=(0, 100),
            boxprops={"color": BLUE},
            medianprops={"color": ORANGE},
            whiskerprops={"color": BLUE},
            capprops={"color": BLUE},
            manage_ticks=False,
        )
    axes[0].set_xscale("log")
    axes[0].set_xlabel("max|w| of the channels, of the largest one")
    decibels = [row.weights.sqnr_db if row.weights else math.inf for row in rows]
    shown = [v if math.isfinite(v) else 0.0 for v in decibels]
    axes[1].barh(range(len(rows)), shown, color=BLUE, height=0.62)
    axes[1].set_xlabel("SQNR of the weights, dB")
    return _svg(fig)


@_in_style
def histograms(a: Analysis) -> str:
    """Values of the noisiest tensors against their grid."""
    # of what a kernel prescribes there is nothing to choose
    moving = [t for t in a.tensors if not t.is_fixed and math.isfinite(t.sqnr_db)]
    worst = sorted(moving, key=lambda t: t.sqnr_db)[:WORST_TENSORS]
    if not worst:
        return ""
    lines = -(-len(worst) // 3)
    fig, axes = _subplots(lines, 3, figsize=(10.5, 1.95 * lines))
    for ax, tensor in zip(axes.flat, worst, strict=False):
        _histogram(ax, tensor)
    # rows of three: the last one may have panels to spare
    for ax in list(axes.flat)[len(worst) :]:
        ax.set_visible(False)
    return _svg(fig)


def _histogram(ax: Any, t: TensorReport) -> None:
    # a bin with a single value stands above the ground, where the axis of logarithms begins
    ax.stairs(t.counts, t.edges, fill=True, color=BLUE, linewidth=0, baseline=0.5)
    ax.axvspan(t.low, t.high, color=GREEN, alpha=0.13, linewidth=0)
    for end in (t.low, t.high):
        ax.axvline(end, color=GREEN, linewidth=1.0)
    ax.set_yscale("log")
    ax.set_ylim(bottom=0.5)
    ax.grid(axis="y", visible=False)
    ax.set_title(f"{_short(t.unit)}: {figure(t.sqnr_db)} dB, clipped {t.clipped:.2%}", fontsize=8.5, color=INK)


def _figure(rows: int, columns: int, names: Sequence[str]) -> tuple[Any, list[Any]]:
    """Panels side by side, one line for each layer, the first one on top; names at the left panel only."""
    fig, axes = _subplots(1, columns, sharey=True, figsize=(10.5, 1.0 + ROW_INCHES * rows))
    row = list(axes.flat)
    row[0].set_yticks(range(rows), [_short(name) for name in names])
    # from large to small: the first layer on top, half a line of room at both ends
    row[0].set_ylim(rows - 0.4, -0.6)
    return fig, row


def _subplots(lines: int, columns: int, **options: Any) -> tuple[Any, Any]:
    """Axes on a figure of their own; nothing is drawn on a screen."""
    # without pyplot, which wants a screen and keeps every figure
    from matplotlib.figure import Figure

    fig = Figure(figsize=options.pop("figsize"), layout="constrained")
    return fig, fig.subplots(lines, columns, squeeze=False, **options)


def _short(name: str) -> str:
    """Long names keep their ends, where they differ."""
    return name if len(name) <= LONGEST_NAME else f"{name[:10]}...{name[-(LONGEST_NAME - 13) :]}"


def _svg(fig: Any) -> str:
    """Inline SVG without links and namespaces, which HTML does not need."""
    content = io.StringIO()
    # no date, so that the same analysis makes the same file
    fig.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    text = content.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    # without a size of its own the picture takes the width of the page, in the proportions of its viewBox
    text = re.sub(r'(<svg[^>]*?)\swidth="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', r"\1", text, count=1)
    return text.replace(INK, "currentColor").replace(FAINT, "var(--line)")

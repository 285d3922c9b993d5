"""The figures of docs/concepts.md, drawn with kquant's own arithmetic: `make docs`, or `python docs/figures/draw.py`.

Text and lines are of a grey that is legible on white and on black, since a picture does not take the page's colours.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import tensorflow as tf

from kquant.arithmetic.grid import Grid
from kquant.arithmetic.requantize import requantize
from kquant.core.spec import Encoding, QuantSpec, encode_range

matplotlib.use("svg")

from matplotlib import pyplot  # noqa: E402  after the choice of what draws

HERE = Path(__file__).parent
GREY, BLUE, ORANGE, GREEN = "#808890", "#3b7dd8", "#e08a1e", "#2f9e6e"
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "kquant",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GREY),
}
DRAWN: dict[str, Callable[[], Any]] = {}


def figure(draw: Callable[[], Any]) -> Callable[[], Any]:
    """Enrol a function that draws the figure of its name."""
    DRAWN[draw.__name__] = draw
    return draw


def encoding(low: float, high: float, spec: QuantSpec) -> Encoding:
    """That of a range."""
    scale, zero_point = (np.asarray(v).reshape(1) for v in encode_range(low, high, spec))
    return Encoding(scale.astype(np.float32), zero_point.astype(np.int64), spec)


@figure
def grids() -> Any:
    """Codes of 4 bits over a range from -1 to 3: asymmetric, symmetric, narrow."""
    specs = {
        "asymmetric": QuantSpec(4),
        "symmetric": QuantSpec(4, symmetric=True),
        "symmetric, narrow": QuantSpec(4, symmetric=True, narrow=True),
    }
    drawn, axes = pyplot.subplots(figsize=(7, 2.6))
    for row, (name, spec) in enumerate(specs.items()):
        found = encoding(-1.0, 3.0, spec)
        reals = found.dequantize(np.arange(spec.low, spec.high + 1))
        axes.hlines(-row, -1.0, 3.0, color=GREY, linewidth=6, alpha=0.3)
        axes.plot(reals, np.full(len(reals), -row), "|", color=BLUE, markersize=14, markeredgewidth=1.6)
        axes.plot(0.0, -row, "o", color=ORANGE, markersize=6)
        said = f"{name}: step {found.scale[0]:.3f}, zero is code {found.zero_point[0]}"
        axes.text(-3.6, -row + 0.28, said, fontsize=9)
    axes.set(xlabel="real number", yticks=[], ylim=(-2.5, 0.9), xlim=(-3.7, 3.7))
    axes.spines["left"].set_visible(False)
    return drawn


@figure
def per_axis() -> Any:
    """Three channels of weights whose ranges differ tenfold: one scale for all, or one for each."""
    rng = np.random.default_rng(0)
    spread = np.array([1.0, 0.3, 0.1])
    weights = rng.normal(size=(400, 3)) * spread
    spec = QuantSpec(4, symmetric=True, narrow=True)
    reach = np.abs(weights)
    errors = []
    for scales in (np.full(3, reach.max()), reach.max(axis=0)):
        found = Encoding(np.float32(scales / spec.high), np.zeros(3, np.int64), spec, axis=1)
        noise = np.mean((weights - found.dequantize(found.quantize(weights))) ** 2, axis=0)
        errors.append(10 * np.log10(np.mean(weights**2, axis=0) / noise))
    drawn, axes = pyplot.subplots(figsize=(7, 2.6))
    places = np.arange(3)
    for shift, values, color, name in ((-0.2, errors[0], ORANGE, "one scale"), (0.2, errors[1], BLUE, "one a channel")):
        bars = axes.bar(places + shift, values, 0.38, color=color, label=name)
        axes.bar_label(bars, fmt="%.0f dB", fontsize=9)
    axes.set(ylabel="signal over error, dB", xticks=places, xticklabels=[f"spread {s:g}" for s in spread])
    axes.margins(y=0.35)
    axes.legend(loc="upper center", ncols=2)
    return drawn


@figure
def clipping() -> Any:
    """Error of 4-bit codes of long-tailed values, by where the range ends: cut off, rounded, both."""
    values = np.random.default_rng(0).laplace(size=20_000).astype(np.float32)
    limits = np.linspace(0.5, np.abs(values).max(), 80)
    spec = QuantSpec(4, symmetric=True, narrow=True)
    cut, rounded = [], []
    for limit in limits:
        found = encoding(-limit, limit, spec)
        apart = values - found.dequantize(found.quantize(values))
        outside = np.abs(values) > limit
        cut.append(np.sum(apart[outside] ** 2) / values.size)
        rounded.append(np.sum(apart[~outside] ** 2) / values.size)
    both = np.add(cut, rounded)
    drawn, axes = pyplot.subplots(figsize=(7, 3))
    for name, error, color in (("clipping", cut, ORANGE), ("rounding", rounded, BLUE), ("both", both, GREEN)):
        axes.semilogy(limits, error, color=color, label=name)
    best = limits[both.argmin()]
    axes.axvline(best, color=GREY, linestyle=":", linewidth=1)
    axes.text(best + 0.15, both.max() / 2, f"least error: {best:.1f}, of values up to {limits[-1]:.1f}", fontsize=9)
    axes.set(xlabel="end of the range", ylabel="mean squared error", ylim=(both.min() / 30, both.max() * 2))
    axes.legend(loc="lower right", ncols=3)
    return drawn


@figure
def rounding() -> Any:
    """The code of every sum from -12 to 12, four sums to a code, as two runtimes round them."""
    sums = np.arange(-12, 13)
    out = Grid(tf.constant(1.0), tf.constant(0.0))
    drawn, axes = pyplot.subplots(figsize=(7, 3))
    for name, shift, color in (("double", 0.06, BLUE), ("single", -0.06, ORANGE)):
        codes = requantize(tf.constant(sums, tf.int32), tf.constant(0.25), out, name).numpy()
        axes.plot(sums, codes + shift, "o", color=color, markersize=4, label=f'"{name}"')
        for at, code in zip(sums[sums % 4 == 2], codes[sums % 4 == 2], strict=True):
            axes.plot(at, code + shift, "o", markersize=9, markerfacecolor="none", color=color)
    axes.plot(sums, sums / 4, color=GREY, linewidth=0.8, label="exact")
    axes.set(xlabel="integer sum, a quarter of a step each", ylabel="code")
    axes.legend(loc="upper left", ncols=3)
    return drawn


def main() -> None:
    """Draw all."""
    for name, draw in DRAWN.items():
        with matplotlib.rc_context(STYLE):
            drawn = draw()
            drawn.tight_layout()
            drawn.savefig(HERE / f"{name}.svg", transparent=True, metadata={"Date": None})
            pyplot.close(drawn)


if __name__ == "__main__":
    main()

"""Numbers -> shapes on a square that a page stretches: axes, lines, dots, steps, boxes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kquant.report.sheet import Label, Shape

SIDE = 1000  # of the square


@dataclass(frozen=True)
class Scale:
    """Where a value lies between two ends, 0 to 1; `log` for axes of powers of ten."""

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """0 at the low end, 1 at the high one; what lies beyond is put at the end."""
        low, high, v = (math.log10(n) if self.log else n for n in (self.low, self.high, max(value, self.low)))
        return 0.5 if high == low else min(1.0, max(0.0, (v - low) / (high - low)))

    def labels(self, most: int = 5) -> tuple[Label, ...]:
        """Round numbers along it."""
        if self.log:
            powers = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            step = -(-len(powers) // most) or 1
            return tuple(Label(short(10.0**p), self.at(10.0**p)) for p in list(powers)[::step])
        return tuple(Label(short(v), self.at(v)) for v in rounds(self.low, self.high, most))


def rounds(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between two, both included.

    Example:
        >>> rounds(0.0, 9.0, 5), rounds(-1.0, 1.0, 3)
        ([0.0, 2.0, 4.0, 6.0, 8.0], [-1.0, 0.0, 1.0])
    """
    span = high - low
    if not (math.isfinite(span) and span > 0.0):
        return [low]
    rough = span / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 2.5, 5, 10, 20) if math.floor(span / (power * k) + 1e-9) < most)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) + 0.0 for n in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A number for an axis.

    Example:
        >>> short(0.25), short(1500.0), short(96000.0), short(2.5e6), short(-0.0)
        ('0.25', '1,500', '96k', '2.5M', '0')
    """
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.4g}{unit}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value + 0.0:.3g}"


def point(x: float, y: float) -> str:
    """Coordinates of a place, both 0 to 1, y upwards."""
    return f"{SIDE * x:.1f} {SIDE * (1.0 - y):.1f}"


def line(places: Sequence[tuple[float, float]], kind: str, title: str = "") -> Shape:
    """A line through places."""
    return Shape("M" + "L".join(point(x, y) for x, y in places), kind, title)


def dots(places: Iterable[tuple[float, float]], kind: str) -> Shape:
    """Round dots: lines without length, whose ends are round whatever the stretch."""
    return Shape("".join(f"M{point(x, y)}h0" for x, y in places), f"dot {kind}")


def upright(x: float, kind: str, title: str = "") -> Shape:
    """A line from the bottom to the top."""
    return line(((x, 0.0), (x, 1.0)), kind, title)


def level(y: float, kind: str, title: str = "") -> Shape:
    """A line from the left to the right."""
    return line(((0.0, y), (1.0, y)), kind, title)


def box(left: float, right: float, bottom: float, top: float, kind: str, title: str = "") -> Shape:
    """A rectangle."""
    corner = point(left, top)
    return Shape(f"M{corner}h{SIDE * (right - left):.1f}v{SIDE * (top - bottom):.1f}H{corner.split()[0]}z", kind, title)


def stairs(heights: Sequence[float], edges: Sequence[float], kind: str) -> Shape:
    """The area below steps; runs of nothing are left out."""
    path = ""
    for i, height in enumerate(heights):
        if height > 0.0:
            starts = i == 0 or heights[i - 1] <= 0.0
            path += f"M{point(edges[i], 0.0)}" if starts else ""
            path += f"V{SIDE * (1.0 - height):.1f}H{SIDE * edges[i + 1]:.1f}"
            ends = i + 1 == len(heights) or heights[i + 1] <= 0.0
            path += f"V{SIDE}z" if ends else ""
    return Shape(path, kind)


def gridlines(labels: Iterable[Label]) -> tuple[Shape, ...]:
    """Faint lines at the labels of the upright axis."""
    return tuple(level(label.at, "faint") for label in labels)

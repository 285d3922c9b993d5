"""Ranges of the options of corrections: recipes are checked by them before any work, calls as they begin."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Span:
    """Finite numbers that an option may be.

    Attributes:
        said: in an error, behind "must be".
        low: the least.
        high: the largest.
        open_low: the least is left out.
        open_high: the largest is left out.
    """

    said: str
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: Any) -> bool:
        """False for what is no number, too, and for True, which is one to Python."""
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
            return False
        number = float(value)
        above = number > self.low if self.open_low else number >= self.low
        return above and (number < self.high if self.open_high else number <= self.high)


ABOVE_0 = Span("a finite number above 0", low=0.0, open_low=True)
SPANS = {
    "beta": ABOVE_0,
    "codes": ABOVE_0,
    "damping": ABOVE_0,
    "learning_rate": ABOVE_0,
    "regularisation": Span("a finite number of 0 or more", low=0.0),
    "sigmas": ABOVE_0,
    "sqnr_db": Span("finite"),
    "strength": ABOVE_0,
    "warm_start": Span("in 0..1, 1 left out", low=0.0, high=1.0, open_high=True),
}


def check_option(where: str, name: str, value: Any) -> None:
    """Refuse what is out of an option's range; None and options without one pass.

    Args:
        where: what the message starts with.
        name: of the option; one name means the same in every correction.
        value: a number, or a tuple of them.

    Raises:
        ValueError: it is none of the numbers that the option takes.

    Example:
        >>> check_option("gptq: ", "damping", float("inf"))
        Traceback (most recent call last):
        ValueError: gptq: damping must be a finite number above 0. Received: inf.
    """
    span = SPANS.get(name)
    values = value if isinstance(value, tuple) else (value,)
    if span is not None and value is not None and not all(each in span for each in values):
        raise ValueError(f"{where}{name} must be {span.said}. Received: {value!r}.")

"""Floating-point formats of few bits, as data: `float_formats.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

# weights that share one power of two in the formats of OCP MX: section 5.1 of its specification
MX_BLOCK = 32


@dataclass(frozen=True)
class FloatFormat:
    """How a code is read.

    Attributes:
        bits: of a code, its sign included.
        fraction: bits behind the point.
        bias: of the exponent.
        largest: finite number.
        source: what says so.

    Example:
        >>> FLOAT_FORMATS["e2m1"].smallest_exponent, FLOAT_FORMATS["e4m3"].largest_exponent
        (0, 8)
    """

    bits: int
    fraction: int
    bias: int
    largest: float
    source: str

    @property
    def smallest_exponent(self) -> int:
        """Of normal numbers, and of the step between subnormal ones."""
        return 1 - self.bias

    @property
    def largest_exponent(self) -> int:
        """Of the largest number."""
        exponent = 0
        while 2.0 ** (exponent + 1) <= self.largest:
            exponent += 1
        return exponent


def _read() -> Mapping[str, FloatFormat]:
    text = (resources.files("kquant.core") / "float_formats.toml").read_text(encoding="utf-8")
    return {name: FloatFormat(**row) for name, row in tomllib.loads(text).items()}


FLOAT_FORMATS = _read()

"""Floating-point formats of few bits, as data: `float_formats.toml`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from kquant.core.fact_tables import shipped

# weights that share one power of two in the formats of OCP MX: section 5.1 of its specification
MX_BLOCK = 32


class FloatFormat(BaseModel):
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

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

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


FLOAT_FORMATS = shipped("float_formats.toml", FloatFormat)

"""What is wanted of a tensor, as plain data: recipes are read before TensorFlow has loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from kquant.core.float_formats import FLOAT_FORMATS, FloatFormat

# power-of-two: a uniform grid whose scale is one; log, codebook: see layers.nonuniform (weights only); the others are
# the formats of `float_formats.toml`
FloatKind = Literal["e4m3", "e5m2", "e3m2", "e2m3", "e2m1"]
Kind = Literal["uniform", "power-of-two", "log", "codebook", FloatKind]


@dataclass(frozen=True)
class QuantSpec:
    """What is wanted of one tensor.

    Attributes:
        bits: width of a code, 2 to 16.
        symmetric: zero point fixed at 0.
        narrow: leave out the lowest code, so that the grid is symmetric around 0.
        per_axis: one scale for each output channel (weights only).
        signed: False for codes from 0 to 2^b - 1 (activations only).
        kind: how the values of the grid are spaced.
        block: so many weights of a channel share a scale: a power of two under floating-point kinds (OCP MX), a
            float16 under uniform ones (LiteRT); 0: as `per_axis` says. Of activations of floating-point kinds, so many
            values along the last axis.
        smallest: the scale is no smaller, because a kernel that reads the codes could not take it (activations only).

    Example:
        >>> QuantSpec(bits=8, symmetric=True, narrow=True).low
        -127
    """

    bits: int = 8
    symmetric: bool = False
    narrow: bool = False
    per_axis: bool = False
    signed: bool = True
    kind: Kind = "uniform"
    smallest: float = 0.0
    block: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise ValueError(f"QuantSpec: bits must lie in 2..16. Received: bits={self.bits}.")
        if self.kind not in get_args(Kind):
            raise ValueError(f"QuantSpec: kind must be one of {', '.join(get_args(Kind))}. Received: {self.kind!r}.")
        if self.floating is not None and self.bits != self.floating.bits:
            raise ValueError(
                f"QuantSpec: kind '{self.kind}' has {self.floating.bits} bits. Received: bits={self.bits}; give bits = "
                f"{self.floating.bits}."
            )
        if self.block and not self.narrow and (self.floating is None or not self.symmetric):
            raise ValueError(
                f"QuantSpec: a tensor of activations of kind '{self.kind}' has one scale, as kernels read it; block is "
                f"for activations of the kinds {', '.join(FLOAT_FORMATS)}, and for weights (narrow). Received: "
                f"block={self.block}; leave it out, or take one of these kinds."
            )
        if self.block < 0 or (self.block and self.kind not in ("uniform", *FLOAT_FORMATS)):
            raise ValueError(
                f"QuantSpec: block is for grids of the kinds uniform, {', '.join(FLOAT_FORMATS)}, and 0 or more (32 in "
                f"OCP MX). Received: block={self.block}, kind={self.kind!r}."
            )
        if self.narrow and not self.symmetric:
            raise ValueError("QuantSpec: narrow needs symmetric=True, because only a grid around 0 leaves a code out.")

    @property
    def low(self) -> int:
        """The lowest code."""
        return -(2 ** (self.bits - 1)) + int(self.narrow) if self.signed else 0

    @property
    def high(self) -> int:
        """The highest code."""
        return 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1

    @property
    def has_codes(self) -> bool:
        """True where values are integers times a scale of their channel, which is what integer kernels multiply."""
        return self.kind in ("uniform", "power-of-two") and not self.block

    @property
    def in_blocks(self) -> bool:
        """True where values are integers times a scale of their block: `layers.blocks`."""
        return self.kind == "uniform" and self.block > 0

    @property
    def floating(self) -> FloatFormat | None:
        """The floating-point format of its values; None where they are no such."""
        return FLOAT_FORMATS.get(self.kind)

    @property
    def container(self) -> str:
        """The type that stores a code in a file: int8 up to 8 bits, int16 above."""
        return "int8" if self.bits <= 8 else "int16"

    def to_config(self) -> dict[str, Any]:
        """As plain data, for a layer's config."""
        return asdict(self)

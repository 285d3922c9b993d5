"""`Table`: what results print of themselves, and what reports lay out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Rows under a title; every cell is text. Columns in `right` hold numbers.

    Example:
        >>> print(Table("Layers", ("layer", "weights"), (("head", "32"), ("a", "1,024")), right=("weights",)))
        layer  weights
        head        32
        a        1,024
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = (self.columns, *self.rows)
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]

        def padded(line: tuple[str, ...]) -> str:
            # numbers to the right: tens below tens, so that lengths compare
            cells = zip(line, widths, self.columns, strict=True)
            return "  ".join(cell.rjust(n) if name in self.right else cell.ljust(n) for cell, n, name in cells).rstrip()

        return "\n".join(map(padded, lines))

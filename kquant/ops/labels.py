"""Axes by letters, as `einsum` writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_lowercase, ascii_uppercase

import numpy as np

Shape = Sequence[int | None]


@dataclass(frozen=True)
class Equation:
    """Two operands and their product, axis by axis.

    Attributes:
        first, second: labels of the operands' axes.
        result: labels of the product's.
        size: label -> length; None for the samples.

    Example:
        >>> e = Equation("nqh", "nkh", "nqk", {"n": None, "q": 2, "k": 3, "h": 4})
        >>> e.batch, e.contracted, e.free(0), e.free(1)
        ('n', 'h', 'q', 'k')
    """

    first: str
    second: str
    result: str
    size: dict[str, int | None]

    @property
    def batch(self) -> str:
        """What both operands and the result have."""
        return "".join(n for n in self.result if n in self.first and n in self.second)

    @property
    def contracted(self) -> str:
        """What both operands have and the result has not."""
        return "".join(n for n in self.first if n in self.second and n not in self.result)

    def free(self, operand: int) -> str:
        """What one operand and the result have."""
        own, other = (self.first, self.second) if operand == 0 else (self.second, self.first)
        return "".join(n for n in own if n not in other and n in self.result)

    def lonely(self, operand: int) -> str:
        """What only one operand has: it is summed before anything else."""
        own, other = (self.first, self.second) if operand == 0 else (self.second, self.first)
        return "".join(n for n in own if n not in other and n not in self.result)

    def without(self, operand: int, labels: str) -> Equation:
        """The equation after these axes of one operand were summed."""
        kept = ["".join(n for n in own if n not in labels) for own in (self.first, self.second)]
        kept[1 - operand] = (self.first, self.second)[1 - operand]
        return Equation(kept[0], kept[1], self.result, self.size)

    def sizes(self, labels: str) -> tuple[int, ...]:
        """Lengths of these axes."""
        return tuple(int(self.size[n] or 0) for n in labels)

    def count(self, labels: str) -> int:
        """Elements along these axes together."""
        return int(np.prod(self.sizes(labels), dtype=np.int64))


def parse(subscripts: str, shapes: Sequence[Shape], name: str) -> tuple[list[str], str, dict[str, int | None]]:
    """Labels of the operands and of the result, ellipses written out, and the length of each axis.

    Raises:
        ValueError: a label twice in one operand, or axes that broadcast.

    Example:
        >>> parse("...x,xy->...y", [(None, 5, 3), (3, 4)], "e")[:2]
        (['ABx', 'xy'], 'ABy')
    """
    inputs, _, result = subscripts.replace(" ", "").partition("->")
    operands = inputs.split(",")
    # Letters for the axes behind ellipses, of those that the equation does not use.
    spare = [letter for letter in ascii_uppercase + ascii_lowercase if letter not in subscripts]
    hidden = [len(s) - len(o.replace("...", "")) if "..." in o else 0 for o, s in zip(operands, shapes, strict=True)]
    pool = "".join(spare[: max(hidden)])
    # Ellipses broadcast from the right, as shapes do.
    operands = [o.replace("...", pool[len(pool) - n :]) for o, n in zip(operands, hidden, strict=True)]
    if "->" in subscripts:
        result = result.replace("...", pool)
    else:
        every = "".join(operands)
        # Without an arrow: the ellipsis, then every label that occurs once, by the alphabet.
        result = pool + "".join(sorted(n for n in set(every) if every.count(n) == 1 and n not in pool))
    size: dict[str, int | None] = {}
    for labels, shape in zip(operands, shapes, strict=True):
        if len(set(labels)) != len(labels) or len(labels) != len(shape):
            raise ValueError(
                f"{name}: einsum '{subscripts}' names an axis twice in one operand, or not all of them. Received: "
                f"shapes {[tuple(s) for s in shapes]}. Take diagonals outside the model."
            )
        for label, length in zip(labels, shape, strict=True):
            if size.setdefault(label, length) != length:
                raise ValueError(
                    f"{name}: einsum '{subscripts}' broadcasts axis '{label}', {size[label]} against {length}. Repeat "
                    "the shorter operand first."
                )
    return operands, result, size

"""What one unit of a kernel's integers is worth: over the output's scale, it is the multiplier that the kernel holds.

    with weights        s_in s_w
    products            s_1 s_2
    squared difference  max(s_1, s_2)^2
    PRELU               s_1, of what its slopes multiply
    everything else     max(s_1, s_2, ...)

`operators.toml` says which it is (`unit`).

Kernels bound the quotient: they check it and end the process, or shift their 32-bit integers to the left by its
exponent, beyond their end.
"""

from __future__ import annotations

from collections.abc import Sequence

from kquant.core.operators import facts


def unit_of(code: str, scales: Sequence[float], weights: float | None = None) -> float:
    """What one unit is worth.

    Args:
        code: the operator by its schema name.
        scales: of the tensors that it reads, without weights.
        weights: largest scale of its weights.

    Example:
        >>> unit_of("ADD", [0.5, 0.25]), unit_of("MUL", [0.5, 0.25]), unit_of("CONV_2D", [0.5], 0.125)
        (0.5, 0.125, 0.0625)
    """
    # what an operator's table says is of its kernel without weights
    if weights is not None:
        return scales[0] * weights
    match facts(code).unit:
        case "product":
            return scales[0] * scales[1]
        case "square":
            return max(scales) ** 2
        case "first":
            return scales[0]
    return max(scales)

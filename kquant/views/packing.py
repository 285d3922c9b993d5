"""Which weights of up to 4 bits are stored two to a byte, and how wide those are that are not.

the target has no int4 kernel               `unpacked_bits`, or the same codes in 8 bits each
prefer = "latency", and its kernel is slow  8 bits
else                                        packed
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kquant.core.spec import PACKED_BITS
from kquant.ops.rule import Rule
from kquant.recipe.recipe import Settings
from kquant.targets import Target
from kquant.views.widths import TYPES

# Unpacks the weights of layers that compute in float.
UNPACKS = "DEQUANTIZE"


@dataclass(frozen=True)
class Packing:
    """What becomes of one layer's weights.

    Attributes:
        bits: of their codes.
        packed: two of them in a byte.
        slowdown: how many times the latency of 8 bits packed weights cost here; None where they cost no time, or are
            not to be had.
        avoided: they are not packed because of that.
    """

    bits: int
    packed: bool
    slowdown: float | None = None
    avoided: bool = False


def packing(op: Any, settings: Settings, rule: Rule, target: Target, bits: int, dequantized: bool) -> Packing:
    """Decide for one layer.

    Args:
        op: the layer; its kernel says how many weights an output sums.
        settings: what the recipe says of it.
        rule: its rule.
        target: what there are kernels for, and which of them are slow on its first runtime.
        bits: of its activations.
        dequantized: a file makes its weights float before use.
    """
    wanted = settings.weights
    if wanted.bits > PACKED_BITS:
        return Packing(wanted.bits, packed=False)
    if not packs(rule, target, bits, dequantized):
        return Packing(wanted.unpacked_bits or wanted.bits, packed=False)
    # in a weight-only file DEQUANTIZE alone reads the codes, and the layer computes with the floats that it wrote
    readers = (UNPACKS,) if dequantized else rule.operators
    depth, type = _depth(op, rule), TYPES[bits]
    slowdowns = [target.ops[code].slowdown(target.runtimes[0], depth, type) for code in readers]
    slowdown = max((times for times in slowdowns if times is not None), default=None)
    if settings.prefer == "latency" and slowdown is not None:
        # a code takes a byte now in any case, so that 4 bits in it would cost accuracy and save nothing
        wide = wanted.unpacked_bits or 8
        return Packing(wide if wide > PACKED_BITS else 8, packed=False, slowdown=slowdown, avoided=True)
    return Packing(wanted.bits, packed=True, slowdown=slowdown)


def times(slowdowns: Iterable[float | None]) -> str:
    """The span of some slowdowns in words.

    Example:
        >>> times([4.0, 2.2]), times([2.2])
        ('2.2 to 4 times', '2.2 times')
    """
    numbers = [times for times in slowdowns if times is not None]
    low, high = min(numbers), max(numbers)
    return f"{low:g} times" if low == high else f"{low:g} to {high:g} times"


def packs(rule: Rule, target: Target, bits: int, dequantized: bool) -> bool:
    """True where the target takes 4-bit weights of this layer two to a byte; see `packing`."""
    type = "int8" if dequantized else TYPES[bits]
    return all(code in target.ops and target.ops[code].packs(type) for code in rule.operators)


def _depth(op: Any, rule: Rule) -> int:
    """Weights that one output sums."""
    # an LSTM: 1 is a multiple of no depth, so it is not counted among those with a fast kernel
    if rule.weights is None:
        return 1
    shape = getattr(op, rule.weights.kernel).shape
    kept = {axis % len(shape) for axis in rule.weights.channel_axes}
    return int(np.prod([n for axis, n in enumerate(shape) if axis not in kept], dtype=np.int64))

"""Which weights of few bits are stored several to a byte, and how wide those are that are not.

the target has no kernel for packed ones      `unpacked_bits`, or the same codes in 8 bits each
prefer = "latency", and its kernels are slow  8 bits
in blocks                                     packed, where an operator reads such blocks: `block_type`
else                                          packed, in the narrowest type that holds them and that it takes
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from kquant.core.packed import MOST_BITS, bits_of, types_for
from kquant.core.spec import FLOAT, QuantSpec
from kquant.layers.transform import kernel_at
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
        packed: the type of `kquant.core.packed` in which they are stored; "" where each takes a byte.
        slowdown: how many times the latency of 8 bits packed weights cost here, of the narrowest type; None where they
            cost no time, or are not to be had.
        avoided: that type, where they are stored in another one because of that.
    """

    bits: int
    packed: str = ""
    slowdown: float | None = None
    avoided: str = ""


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
    if wanted.block:  # each with a scale of its own, which an operator with float activations alone reads
        if bits != FLOAT or dequantized or rule.weights is None:
            return Packing(wanted.bits)
        shape = tuple(kernel_at(op, rule.weights.kernel).shape)
        return Packing(wanted.bits, block_type(wanted.spec(), rule, shape, target))
    if wanted.bits > MOST_BITS:
        return Packing(wanted.bits)
    able = packed_types(rule, target, wanted.bits, bits, dequantized)
    if not able:
        return Packing(wanted.unpacked_bits or wanted.bits)
    # in a weight-only file DEQUANTIZE alone reads the codes, and the layer computes with the floats that it wrote
    readers = [target.ops[code] for code in ((UNPACKS,) if dequantized else rule.operators)]
    depth, type, runtime = _depth(op, rule), TYPES[bits], target.runtimes[0]
    costs: dict[str, float | None] = {}
    for name in able:
        times = (row.slowdown(name, runtime, depth, type) for row in readers)
        costs[name] = max((n for n in times if n is not None), default=None)
    narrowest = able[0]
    if settings.prefer == "bytes" or costs[narrowest] is None:
        return Packing(wanted.bits, narrowest, costs[narrowest])
    # all bits that the type holds: fewer would cost accuracy and save nothing
    for name in (name for name in able if costs[name] is None):
        return Packing(bits_of(name), name, costs[narrowest], avoided=narrowest)
    wide = wanted.unpacked_bits or 8
    return Packing(wide if wide > MOST_BITS else 8, slowdown=costs[narrowest], avoided=narrowest)


def times(slowdowns: Iterable[float | None]) -> str:
    """The span of some slowdowns in words.

    Example:
        >>> times([4.0, 2.2]), times([2.2])
        ('2.2 to 4 times', '2.2 times')
    """
    numbers = [times for times in slowdowns if times is not None]
    low, high = min(numbers), max(numbers)
    return f"{low:g} times" if low == high else f"{low:g} to {high:g} times"


def packed_types(rule: Rule, target: Target, wanted: int, bits: int, dequantized: bool) -> tuple[str, ...]:
    """The packed types in which the target takes weights of this layer, the narrowest first.

    Args:
        rule: of the layer.
        target: what there are kernels for.
        wanted: bits of the weights' codes.
        bits: of its activations.
        dequantized: a file makes its weights float before use.
    """
    type = "int8" if dequantized else TYPES[bits]
    rows = [target.ops.get(code) for code in rule.operators]
    return tuple(name for name in types_for(wanted) if all(row is not None and row.packs(name, type) for row in rows))


def divided(op: Any, settings: Settings, rule: Rule) -> Settings:
    """What the recipe says of a layer, without blocks where it has a factor for each channel: a block would be one."""
    held, wanted = rule.weights, settings.weights
    if held is None or not wanted.block or not wanted.spec().in_blocks:
        return settings
    shape = kernel_at(op, held.kernel).shape
    if prod(shape) != prod(shape[axis] for axis in held.channel_axes):
        return settings
    whole = wanted.model_copy(update={"block": 0})
    return Settings(
        settings.activations, whole, settings.skip, settings.stays_float, settings.training, settings.prefer
    )


def block_type(spec: QuantSpec, rule: Rule, shape: Sequence[int], target: Target, channels: int | None = None) -> str:
    """The packed type in which a file keeps codes in blocks; "" where no operator of the target reads them.

    Args:
        spec: of the weights.
        rule: of a layer with float activations.
        shape: of its kernel.
        target: that the file is for.
        channels: how many rows the blocks divide; None: as the rule says.
    """
    weights = rule.weights
    row = None if weights is None else target.ops.get(weights.block_reader)
    if weights is None or row is None or not spec.in_blocks:
        return ""
    rows = prod(shape[axis] for axis in weights.block_axes or weights.channel_axes) if channels is None else channels
    # a row is a whole number of blocks, or a block would begin in one row and end in the next
    if prod(shape) // rows % spec.block or spec.block % row.block_multiple or rows < row.block_channels:
        return ""
    return next((name for name in types_for(spec.bits) if name in row.blocks), "")


def _depth(op: Any, rule: Rule) -> int:
    """Weights that one output sums."""
    # an LSTM: 1 is a multiple of no depth, so it is not counted among those with a fast kernel
    if rule.weights is None:
        return 1
    shape = getattr(op, rule.weights.kernel).shape
    kept = {axis % len(shape) for axis in rule.weights.channel_axes}
    return int(np.prod([n for axis, n in enumerate(shape) if axis not in kept], dtype=np.int64))

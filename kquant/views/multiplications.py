"""How often a layer multiplies with each of its weights: one count for the costs of float and of quantized models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from kquant.ops.rule import Rule


def macs_of(rule: Rule | None, kernel: Sequence[int], x: Sequence[Any], y: Sequence[Any]) -> int:
    """Multiply-accumulates of one sample: `positions_of` times the size of the kernel, where a layer sums products.

    Args:
        rule: of the Keras layer.
        kernel: shape of the kernel.
        x: shape of the layer's input without the samples; an axis of unknown length counts once.
        y: shape of its output likewise.
    """
    if rule is not None and rule.weights is not None and not rule.weights.sums:
        return 0  # rows that are looked up, slopes that multiply: nothing is accumulated
    return positions_of(rule, kernel, x, y) * size_of(kernel)


def positions_of(rule: Rule | None, kernel: Sequence[int], x: Sequence[Any], y: Sequence[Any]) -> int:
    """How often every weight is multiplied with for one sample: see `macs_of`.

    A transposed convolution spreads every position of its input; the others gather for one of their output, which
    holds a number for each output channel.
    """
    if rule is not None and "TRANSPOSE_CONV" in rule.operators:
        return size_of(x[:-1])
    if rule is None or rule.weights is None:  # an LSTM: both of its matrices, once for each step
        return size_of(y[:-1])
    return size_of(y) // size_of([kernel[axis] for axis in rule.weights.channel_axes])


def size_of(shape: Sequence[Any]) -> int:
    """Values of a tensor of this shape; an axis of unknown length counts once."""
    return math.prod(int(n or 1) for n in shape)

"""Input columns of unlike scale, which one grid holds badly; and the model as it is where the application scales them.

    x, f(x)  ->  x / widths, f(widths * (x / widths)): the same outputs, and columns that go together

After folding, nothing of a Normalization is left in a quantized model. So what `kquant.split_preprocessing` gains is
tried with the widths of these data, which the first layer's weights take up, as it does itself where it is given data
and nothing in the model scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np

from kquant.calibration.lost_signal import FEW_CODES, UNLIKE, codes_of, widths_of
from kquant.graph.graph import Graph
from kquant.layers.nodes import FakeQuant
from kquant.prepare.divided_columns import column_widths, of_divided


@dataclass(frozen=True)
class Columns:
    """One input whose columns (its last axis) have very unlike widths.

    Attributes:
        name: of the input.
        bits: of its grid.
        narrow, wide: which columns have the least and the largest width of those that vary.
        narrow_ends, wide_ends: the smallest and the largest value of both.
        codes: that the narrow one gets.
    """

    name: str
    bits: int
    narrow: int
    wide: int
    narrow_ends: tuple[float, float]
    wide_ends: tuple[float, float]
    codes: float


def unlike_columns(graph: Graph, x: Sequence[np.ndarray]) -> tuple[Columns, ...]:
    """The inputs whose narrowest column gets hardly any codes, while others get many.

    Args:
        graph: of a calibrated model.
        x: samples, one array for each input.
    """
    rows = []
    given = {id(t): (t.name, values) for t, values in zip(graph.input_tensors, x, strict=True)}
    for node in graph.nodes:
        name, values = given.get(id(node.args[0]), ("", None)) if isinstance(node.op, FakeQuant) else ("", None)
        if values is None or values.ndim < 2 or not node.op.has_range:
            continue
        codes, narrow, wide = codes_of(values, float(node.op.grid()[0]), values.ndim - 1)
        widths = widths_of(values, values.ndim - 1)
        if codes < FEW_CODES and widths[wide] >= UNLIKE * widths[narrow]:
            first, last = ((float(c.min()), float(c.max())) for c in (values[..., narrow], values[..., wide]))
            rows.append(Columns(name, node.op.spec.bits, narrow, wide, first, last, codes))
    return tuple(rows)


def scaled_alike(model: keras.Model, x: Sequence[np.ndarray]) -> tuple[keras.Model, list[np.ndarray]]:
    """The model for columns that the application divides by their widths, and the samples divided.

    Args:
        model: a float model.
        x: samples, one array for each of its inputs.

    Returns:
        A model that gives for the second the same outputs as `model` for `x`.
    """
    widths = column_widths(model, x)
    divided = [v if w is None else (v / w).astype(v.dtype) for v, w in zip(x, widths, strict=True)]
    return of_divided(model, widths), divided

"""Input columns of unlike scale, which one grid holds badly; and the model as it is where the application scales them.

    x, f(x)  ->  x / widths, f(widths * (x / widths)): the same outputs, and columns that go together

After folding, nothing of a Normalization is left in a quantized model. So what `kquant.split_preprocessing` gains is
tried with the widths of these data, which the first layer's weights take up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kquant.calibration.lost_signal import FEW_CODES, UNLIKE, codes_of, widths_of
from kquant.graph.graph import Graph
from kquant.layers.nodes import FakeQuant


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
    flat, scaled, data = keras.tree.flatten(model.input), [], []
    entrances: list[Any] = [keras.Input(t.shape[1:], dtype=t.dtype, name=t.name) for t in flat]
    for entrance, values in zip(entrances, x, strict=True):
        is_scaled = keras.backend.is_float_dtype(entrance.dtype) and values.ndim >= 2
        widths = widths_of(values, values.ndim - 1) if is_scaled else np.ones(1)
        widths = np.where(widths > 0.0, widths, 1.0).astype(np.float32)
        scaled.append(keras.layers.Rescaling(widths.tolist())(entrance) if is_scaled else entrance)
        data.append((values / widths).astype(values.dtype) if is_scaled else values)
    inputs: Any = keras.tree.pack_sequence_as(model.input, entrances)
    outputs = model(keras.tree.pack_sequence_as(model.input, scaled))
    return keras.Model(inputs, outputs, name=model.name), data

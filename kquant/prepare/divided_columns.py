"""Columns of inputs divided by their widths: the application divides, and the first layer's weights take the widths up.

x, f(x)  ->  x / widths, f(widths * (x / widths)): the same outputs, and columns that go together
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from kquant.calibration.lost_signal import widths_of


def column_widths(model: keras.Model, x: Sequence[np.ndarray]) -> list[np.ndarray | None]:
    """What each column (the last axis) of each input is divided by; None for inputs that have none to divide.

    Args:
        model: a float model.
        x: samples, one array for each of its inputs.
    """
    widths_of_each: list[np.ndarray | None] = []
    for entrance, values in zip(keras.tree.flatten(model.input), x, strict=True):
        if not keras.backend.is_float_dtype(entrance.dtype) or values.ndim < 2:
            widths_of_each.append(None)
            continue
        widths = widths_of(values, values.ndim - 1)
        widths_of_each.append(np.where(widths > 0.0, widths, 1.0).astype(np.float32))
    return widths_of_each


def of_divided(model: keras.Model, widths: Sequence[np.ndarray | None]) -> keras.Model:
    """The model for columns that are divided already: it multiplies them first, which folding puts into its weights.

    Args:
        model: a float model.
        widths: see `column_widths`.
    """
    entrances = _entrances(model)
    scaled = [
        t if each is None else keras.layers.Rescaling(each.tolist())(t)
        for t, each in zip(entrances, widths, strict=True)
    ]
    outputs = model(keras.tree.pack_sequence_as(model.input, scaled))
    return keras.Model(keras.tree.pack_sequence_as(model.input, entrances), outputs, name=model.name)


def division(model: keras.Model, widths: Sequence[np.ndarray | None], name: str) -> keras.Model:
    """The model that divides.

    Args:
        model: a float model, whose inputs it has.
        widths: see `column_widths`.
        name: of the new model.
    """
    entrances = _entrances(model)
    outputs = [
        keras.layers.Identity()(t) if each is None else keras.layers.Rescaling((1.0 / each).tolist())(t)
        for t, each in zip(entrances, widths, strict=True)
    ]
    pair = (keras.tree.pack_sequence_as(model.input, tensors) for tensors in (entrances, outputs))
    return keras.Model(*pair, name=name)


def _entrances(model: keras.Model) -> list[Any]:
    return [keras.Input(t.shape[1:], dtype=t.dtype, name=t.name) for t in keras.tree.flatten(model.input)]

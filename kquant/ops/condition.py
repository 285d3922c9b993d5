"""Which tensors are conditions: 0 where something does not hold, else 1."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kquant import ops as rules
from kquant.graph.keras_private import made_of
from kquant.graph.step_mask import StepMask
from kquant.ops.affine import Affine
from kquant.ops.function import COMPARISONS, Function
from kquant.ops.lengths import Above

layers = keras.layers


def is_condition(x: Any) -> bool:
    """True for tensors of 0 and 1: comparisons, and what keeps or moves the numbers of such tensors."""
    layer, inputs = made_of(x)
    if "bool" in str(x.dtype) or isinstance(layer, StepMask | Above):
        return True
    if isinstance(layer, Function):
        return layer.function in COMPARISONS
    if isinstance(layer, Affine) and not (np.all(layer.scale.numpy() == -1.0) and np.all(layer.offset.numpy() == 1.0)):
        return False
    rule = rules.find(layer) if layer is not None else None
    kept = isinstance(layer, Affine | layers.Minimum | layers.Maximum | layers.Multiply | layers.Concatenate)
    return (kept or (rule is not None and rule.output == "same")) and all(is_condition(t) for t in inputs)

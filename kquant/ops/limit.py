"""Bounds: `keras.ops.clip`, and maximum and minimum, of two tensors or with a constant."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np

from kquant import ops as rules
from kquant.core.program import Program
from kquant.graph.keras_private import maker
from kquant.graph.stored import refuse_infinite
from kquant.ops.affine import affine
from kquant.ops.constant import as_array, stored
from kquant.ops.merge import same_rank
from kquant.ops.passive import TRAINING_ONLY
from kquant.ops.rule import Call, Make, Rule, computed, example

layers = keras.layers


@keras.saving.register_keras_serializable(package="kquant")
class Clip(keras.layers.Layer):
    """`min(max(x, low), high)`; None leaves a side open.

    Example:
        >>> Clip(low=0.0)(np.array([[-1.0, 2.0]])).numpy().tolist()
        [[0.0, 2.0]]
    """

    def __init__(self, low: float | None = None, high: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.low, self.high = low, high

    def call(self, x: Any) -> Any:
        """Bound the values."""
        x = x if self.low is None else keras.ops.maximum(x, self.low)
        return x if self.high is None else keras.ops.minimum(x, self.high)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """As the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        return {**super().get_config(), "low": self.low, "high": self.high}


def bounded(make: Make, x: Any, low: float | None, high: float | None, name: str) -> Any:
    """`x` within bounds: as a ReLU where it is one, or where its shift folds, so that it fuses."""
    low, high = None if low == -math.inf else low, None if high == math.inf else high
    refuse_infinite(name, *(bound for bound in (low, high) if bound is not None))
    if low is None and high is None:
        return x
    # A ReLU fuses into the operator before it, where a bound of its own is an operator more.
    if low == 0 and (high is None or high > 0):
        return make("relu", lambda: layers.ReLU(high, name=name))(x)
    if _is_weighted(x) and (low is None or high is None or low < high):
        return _shifted(make, x, low, high, name)
    return make("clip", lambda: Clip(low, high, name=name))(x)


def _is_weighted(x: Any) -> bool:
    """True behind a layer that a scale and an offset fold into, layers that act in training only between or not."""
    op = maker(x)
    # At inference those are not there.
    while isinstance(op, TRAINING_ONLY) and isinstance(x := op.input, keras.KerasTensor):
        op = maker(x)
    rule = rules.find_weighted(op)
    return rule is not None and rule.fuses and rule.weights is not None and rule.weights.sums


def _shifted(make: Make, x: Any, low: float | None, high: float | None, name: str) -> Any:
    """`low + ReLU(x - low)`, or `high - ReLU(high - x)`: the layer before computes on the bounded range from the start.

    MAXIMUM and MINIMUM keep the encoding of what they read, so that a wide layer would leave few codes to the rest.
    """
    # Turned upside down where only the upper bound is there, as a ReLU is open above.
    sign, start = (1.0, low) if low is not None else (-1.0, high or 0.0)
    most = None if low is None or high is None else high - low
    channels = x.shape[-1]
    x = make("down", lambda: affine(sign, -sign * start, channels=channels, name=f"{name}_down"))(x)
    x = make("relu", lambda: layers.ReLU(most, name=name))(x)
    return make("up", lambda: affine(sign, start, channels=channels, name=f"{name}_up"))(x)


def _number(value: Any, op: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, keras.KerasTensor) or as_array(value).size != 1:
        raise ValueError(
            f"{op.name} ({type(op).__name__}): a bound must be one number. Received: {value}. Use Maximum or Minimum "
            "with a second input of the model for bounds that vary."
        )
    return float(as_array(value).reshape(()))


def _expand_clip(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    return bounded(make, x, _number(op.x_min, op), _number(op.x_max, op), op.name)


def _of_two(cls: type, side: str) -> Any:
    """Two tensors, or one with a constant on either side."""

    def expand(op: Any, make: Make, a: Any, b: Any) -> Any:
        if isinstance(a, keras.KerasTensor) and isinstance(b, keras.KerasTensor):
            same_rank(op, a, b)
            return make("pair", lambda: cls(name=op.name))([a, b])
        x, constant = (a, b) if isinstance(a, keras.KerasTensor) else (b, a)
        if as_array(constant).size != 1:
            return make("pair", lambda: cls(name=op.name))([x, stored(make, constant, x, op.name)])
        limits: dict[str, Any] = {"low": None, "high": None, side: _number(constant, op)}
        return bounded(make, x, limits["low"], limits["high"], op.name)

    return expand


def _lower(program: Program, call: Call) -> None:
    """MAXIMUM, then MINIMUM, with the bound's code in the encoding of the input."""
    bounds = [(c, v) for c, v in (("MAXIMUM", call.op.low), ("MINIMUM", call.op.high)) if v is not None]
    x, y = call.inputs[0], call.output
    for i, (code, value) in enumerate(bounds):
        last = i == len(bounds) - 1
        # Both bounds have the encoding of the input, so each is one MAXIMUM or MINIMUM of codes.
        made = y if last else program.value(f"{y.name}/{code.lower()}", y.shape, y.encoding)
        name = f"{y.name}/{code.lower()}_of"
        if y.encoding is None:
            bound = program.constant(name, np.array([value], np.float32))
        else:
            bound = program.codes(name, y.encoding.quantize(np.array([value], np.float32)), y.encoding)
        x = program.emit(code, [x, bound], made)


RULES = (
    Rule(
        operations=("Clip",),
        expand=_expand_clip,
        examples=(
            computed(lambda x: keras.ops.clip(x, -0.5, 1.25), (5, 4)),
            computed(lambda x: keras.ops.clip(x, 0.0, 1.25), (5, 4)),
            computed(lambda x: keras.ops.clip(layers.Dense(6)(x), -0.5, 0.25), (5, 4)),
        ),
    ),
    Rule(
        operations=("Maximum",),
        expand=_of_two(layers.Maximum, "low"),
        examples=(computed(keras.ops.maximum, (5, 4), (5, 4)), computed(lambda x: keras.ops.maximum(x, 0.3), (5, 4))),
    ),
    Rule(
        operations=("Minimum",),
        expand=_of_two(layers.Minimum, "high"),
        examples=(
            computed(keras.ops.minimum, (5, 4), (5, 4)),
            computed(lambda x: keras.ops.minimum(0.3, x), (5, 4)),
            computed(lambda x: layers.Dense(3)(keras.ops.minimum(layers.Dense(6)(x), 0.25)), (9,)),
        ),
    ),
    Rule(
        layers=(Clip,),
        when=lambda op: op.low is not None or op.high is not None,
        operators=("MAXIMUM", "MINIMUM"),
        output="follows",
        lower=_lower,
        examples=(example(lambda: Clip(-0.25, 0.75), shape=(6, 3)),),
    ),
)

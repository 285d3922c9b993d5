"""Division: by a constant, times its reciprocal; by a tensor, times a table of the tensor's reciprocals.

    x / c             x * (1 / c)                   exp(x) / sum(exp(x))   SOFTMAX, also with the maximum taken off
    x / y             x * table(1 / y)              x % c, x // c          one table of x
    x / sqrt(y)       x * table(1 / sqrt(y))        x / rsqrt(y)           x * table(sqrt(y))

A reciprocal in 8 bits is as good as its divisor's range is narrow: near 0 one code of y stands for reciprocals far
apart. So a root below the division goes into the same table, where its range halves (in decibels), and a softmax
written by hand becomes the kernel, which has no quotient to round. The int8 kernels DIV of both runtimes are wrong.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kquant.graph.keras_private import made_of
from kquant.ops.activation import name_of
from kquant.ops.affine import Affine, is_per_channel
from kquant.ops.constant import as_array, known, stored
from kquant.ops.function import Function, function
from kquant.ops.merge import binary, same_rank
from kquant.ops.reduce import Extreme, Mean
from kquant.ops.rule import Make, Rule, computed

layers = keras.layers
K: Any = keras.ops  # has no types, and what a checker infers of it (None, too) is not so
# What divides by these is what multiplies by those.
INVERSES = {"sqrt": "rsqrt", "rsqrt": "sqrt"}


def _divided(op: Any, make: Make, a: Any, b: Any) -> Any:
    """`a / b`."""
    # A constant tensor of the graph divides like a number.
    if (numbers := known(b)) is not None:
        b = numbers
    if not isinstance(b, keras.KerasTensor):
        return _by_constant(op, make, a, b)
    if (x := _softmax_input(a, b)) is not None:
        return make("softmax", lambda: layers.Softmax(_axis(b), name=op.name))(x)
    if isinstance(a, keras.KerasTensor):
        same_rank(op, a, b)
    return _times(op, make, a, _reciprocal(op, make, b))


def _by_constant(op: Any, make: Make, a: Any, b: Any) -> Any:
    """Times its reciprocal."""
    if not np.all(as_array(b)):
        raise ValueError(f"{op.name} ({type(op).__name__}): its divisor holds a 0. Replace it by what is meant there.")
    if not is_per_channel(b, a):
        trains = isinstance(b, keras.Variable) and b.trainable
        # The reciprocal is taken once, here: MUL has a kernel, DIV has none that is right.
        other = stored(make, 1.0 / as_array(b).astype(np.float64), a, op.name, trains=trains)
        return make("pair", lambda: layers.Multiply(name=op.name))([a, other])
    return binary(layers.Multiply, lambda c, first: (1.0 / c, 0.0))(op, make, a, b)


def _reciprocal(op: Any, make: Make, y: Any, kind: str = "reciprocal") -> Any:
    """A table of `1 / y`; of what a root was taken of, where `y` is one."""
    layer, inputs = made_of(y)
    if kind == "reciprocal" and isinstance(layer, Function) and layer.function in INVERSES:
        # x / sqrt(y) is x rsqrt(y): one table instead of two, of a narrower range.
        y, kind = inputs[0], INVERSES[layer.function]
    return function(make, kind, y, f"{op.name}_{kind}", key="reciprocal")


def _times(op: Any, make: Make, a: Any, r: Any) -> Any:
    """`a * r`, a factor of 1 left out."""
    if not isinstance(a, keras.KerasTensor) and np.all(as_array(a) == 1.0) and is_per_channel(as_array(a), r):
        return r
    return binary(layers.Multiply, lambda c, first: (c, 0.0))(op, make, a, r)


def _no_nan(op: Any, make: Make, a: Any, b: Any) -> Any:
    """`divide_no_nan`: 0 where the divisor is 0, and so is its code."""
    if not isinstance(b, keras.KerasTensor):
        numbers = as_array(b).astype(np.float64)
        inverse = np.divide(1.0, numbers, out=np.zeros_like(numbers), where=numbers != 0)
        return binary(layers.Multiply, lambda c, first: (c, 0.0))(op, make, a, inverse.astype(np.float32))
    if isinstance(a, keras.KerasTensor):
        same_rank(op, a, b)
    return _times(op, make, a, _reciprocal(op, make, b, "reciprocal_no_nan"))


def _axis(total: Any) -> Any:
    """The axes that a sum went over."""
    axes = made_of(made_of(total)[1][0])[0].axis
    return axes[0] if len(axes) == 1 else tuple(axes)


def _softmax_input(a: Any, b: Any) -> Any:
    """`x` where this is `exp(x) / sum(exp(x), keepdims=True)`; the maximum that was taken off for safety put back."""
    if not isinstance(a, keras.KerasTensor):
        return None
    power, below = made_of(a)
    scaling, sums = made_of(b)
    mean, summed = made_of(sums[0]) if isinstance(scaling, Affine) and sums else (None, [])
    if not _is_exp(power) or type(mean) is not Mean or not mean.keepdims:
        return None
    other, read = made_of(summed[0])
    if summed[0] is not a and not (_is_exp(other) and read[0] is below[0]):  # exp(x) may be written twice
        return None
    # `sum_of` writes a sum as a mean times n; that n is how it is known again.
    count = float(np.prod([a.shape[axis] for axis in mean.axis]))
    if not (np.all(scaling.scale.numpy() == np.float32(count)) and not np.any(scaling.offset.numpy())):
        return None
    # exp(x - max(x)): SOFTMAX takes the maximum off by itself.
    away, pair = made_of(below[0])
    largest, read = made_of(pair[1]) if isinstance(away, layers.Subtract) else (None, [])
    same = isinstance(largest, Extreme) and largest.largest and largest.axis == mean.axis and read[0] is pair[0]
    return pair[0] if same else below[0]


def _is_exp(layer: Any) -> bool:
    named = isinstance(layer, layers.Activation) and name_of(layer.activation) == "exponential"
    return named or type(layer).__name__ == "Exp"


def _by_number(kind: str) -> Any:
    """`x // c` and `x % c`: one table."""

    def expand(op: Any, make: Make, a: Any, b: Any) -> Any:
        tensors = [isinstance(v, keras.KerasTensor) for v in (a, b)]
        if tensors != [True, False] or np.size(as_array(b)) != 1 or not np.all(as_array(b)):
            raise ValueError(
                f"{op.name} ({type(op).__name__}): a quotient cut to whole numbers jumps where one step of 8 bits "
                "moves it, so only a tensor and one number other than 0 (x // 4.0, x % 4.0) go, as a table. Divide "
                "without cutting (x / y), or do it in the application."
            )
        return function(make, kind, a, op.name, float(np.reshape(as_array(b), ())))

    return expand


def _softmax(x: Any) -> Any:
    powers = K.exp(x - K.max(x, axis=-1, keepdims=True))
    return powers / K.sum(powers, axis=-1, keepdims=True)


def _softmax_over_rows(x: Any) -> Any:
    return K.divide(K.exp(x), K.sum(K.exp(x), axis=1, keepdims=True))


RULES = (
    Rule(
        operations=("Divide", "TrueDivide"),
        expand=_divided,
        examples=(
            computed(lambda x: x / 3.0, (5, 4)),
            computed(lambda x: x / np.array([1.0, -2.0, 0.5], np.float32), (4, 3)),
            computed(lambda x, y: x / (K.square(y) + 0.5), (5, 4), (5, 4)),
            computed(lambda x: K.true_divide(x, K.sqrt(K.sum(x * x, axis=-1, keepdims=True) + 1e-6)), (5, 4)),
            computed(lambda x: K.divide(2.0, K.add(K.exp(-x), 1.0)), (5, 4)),
            computed(_softmax, (5, 4)),
            computed(_softmax_over_rows, (5, 4)),
        ),
    ),
    Rule(
        operations=("DivideNoNan",),
        expand=_no_nan,
        examples=(computed(lambda x: K.divide_no_nan(x, K.relu(x)), (5, 4)),),
    ),
    Rule(
        operations=("FloorDivide",),
        expand=_by_number("floor_divide"),
        examples=(computed(lambda x: x // 0.5, (5, 4)),),
    ),
    Rule(
        operations=("Mod",),
        expand=_by_number("mod"),
        examples=(computed(lambda x: x % 0.75, (5, 4)),),
    ),
    Rule(
        operations=("Fmod",),
        expand=_by_number("fmod"),
        examples=(computed(lambda x: K.fmod(x, 0.75), (5, 4)),),
    ),
)

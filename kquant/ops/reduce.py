"""Reductions: REDUCE_MAX and REDUCE_MIN keep their codes; sums, variances and norms are means and factors.

    sum    n * mean        var   mean((x - mean(x))^2)      norm 1, 2, inf   sum |x|, sqrt(sum x^2), max |x|
    std    sqrt(var)       logsumexp   m + log(sum(exp(x - m))), m = max(x)

SUM itself is left alone: LiteRT's reference kernel reads int8 codes as unsigned ones.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kquant.core.program import Program
from kquant.graph.graph import Node
from kquant.ops.affine import affine
from kquant.ops.function import function
from kquant.ops.index import refuse_batch
from kquant.ops.rule import Call, Make, Rule, computed, example

layers = keras.layers
K: Any = keras.ops  # has no types, and what a checker infers of it (None, too) is not so


@keras.saving.register_keras_serializable(package="kquant")
class Mean(keras.layers.Layer):
    """The mean over axes (counted with the batch, which is 0 and never among them).

    Example:
        >>> Mean([1])(np.float32([[1.0, 3.0]])).numpy().tolist()
        [2.0]
    """

    def __init__(self, axis: Any, keepdims: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.axis, self.keepdims = [int(a) for a in axis], bool(keepdims)

    def call(self, x: Any) -> Any:
        """Reduce."""
        return K.mean(x, axis=tuple(self.axis), keepdims=self.keepdims)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Without the axes, or with length 1 there."""
        kept = [1 if a in self.axis else n for a, n in enumerate(input_shape)]
        return tuple(n for a, n in enumerate(kept) if self.keepdims or a not in self.axis)

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        return {**super().get_config(), "axis": self.axis, "keepdims": self.keepdims}


@keras.saving.register_keras_serializable(package="kquant")
class Extreme(Mean):
    """The largest (or smallest) value over axes.

    Example:
        >>> Extreme([1], largest=False)(np.float32([[1.0, 3.0]])).numpy().tolist()
        [1.0]
    """

    def __init__(self, axis: Any, keepdims: bool = False, largest: bool = True, **kwargs: Any) -> None:
        super().__init__(axis, keepdims, **kwargs)
        self.largest = bool(largest)

    def call(self, x: Any) -> Any:
        """Reduce."""
        return (K.max if self.largest else K.min)(x, axis=tuple(self.axis), keepdims=self.keepdims)

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        return {**super().get_config(), "largest": self.largest}


def reduced_axes(op: Any, rank: int) -> list[int]:
    """The axes that an operation reduces, counted from the front.

    Raises:
        ValueError: the batch is among them.
    """
    axes = range(rank) if op.axis is None else np.atleast_1d(op.axis)
    reduced = sorted({int(a) % rank for a in axes})
    refuse_batch(op, reduced)
    return reduced


def mean_of(make: Make, x: Any, axes: list[int], keepdims: bool, name: str, key: str = "mean") -> Any:
    """The mean over axes."""
    return make(key, lambda: Mean(axes, keepdims, name=name))(x)


def sum_of(make: Make, x: Any, axes: list[int], keepdims: bool, name: str, key: str = "sum") -> Any:
    """The mean times n: on the grid of the sum, the factor moves no code."""
    count = int(np.prod([x.shape[a] for a in axes], dtype=np.int64))
    y = mean_of(make, x, axes, keepdims, f"{name}_mean", f"{key}_mean")
    if len(y.shape) < 2:  # one number for each sample: give it an axis to be scaled along
        y = make(f"{key}_row", lambda: layers.Reshape((1,), name=f"{name}_row"))(y)
        y = make(key, lambda: affine(count, 0.0, channels=1, name=name))(y)
        return make(f"{key}_number", lambda: layers.Reshape((), name=f"{name}_number"))(y)
    return make(key, lambda: affine(count, 0.0, channels=y.shape[-1], name=name))(y)


def squared(make: Make, x: Any, name: str, key: str = "square") -> Any:
    """`x * x`."""
    return make(key, lambda: layers.Multiply(name=name))([x, x])


def variance(make: Make, x: Any, axes: list[int], keepdims: bool, name: str) -> Any:
    """`mean((x - mean(x))^2)`."""
    # Centred before it is squared: mean(x^2) - mean(x)^2 would be the small difference of two rounded numbers.
    centre = mean_of(make, x, axes, True, f"{name}_mean", "centre")
    away = make("away", lambda: layers.Subtract(name=f"{name}_away"))([x, centre])
    return mean_of(make, squared(make, away, f"{name}_square"), axes, keepdims, name, "variance")


def _extreme(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    if getattr(op, "initial", None) is not None:
        raise ValueError(
            f"{op.name} ({type(op).__name__}): initial={op.initial}; take the reduction without it and bound the "
            "result with keras.ops.maximum or minimum."
        )
    largest = type(op).__name__ in ("Max", "Amax")
    axes = reduced_axes(op, len(x.shape))
    return make("extreme", lambda: Extreme(axes, op.keepdims, largest, name=op.name))(x)


def _sum(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    return sum_of(make, x, reduced_axes(op, len(x.shape)), op.keepdims, op.name)


def _var(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    axes, deviation = reduced_axes(op, len(x.shape)), type(op).__name__ == "Std"
    y = variance(make, x, axes, op.keepdims, f"{op.name}_var" if deviation else op.name)
    return function(make, "sqrt", y, op.name) if deviation else y


def _norm(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    axes = reduced_axes(op, len(x.shape))
    order = op.ord
    # 2 over two axes is the largest singular value, no sum of squares.
    if order in (None, 2, "fro") and (len(axes) == 1 or order != 2):
        total = sum_of(make, squared(make, x, f"{op.name}_square"), axes, op.keepdims, f"{op.name}_sum")
        return function(make, "sqrt", total, op.name)
    size = function(make, "abs", x, f"{op.name}_abs", key="abs")
    if order == 1 and len(axes) == 1:
        return sum_of(make, size, axes, op.keepdims, op.name)
    if order in (float("inf"), float("-inf")) and len(axes) == 1:
        return make("extreme", lambda: Extreme(axes, op.keepdims, order > 0, name=op.name))(size)
    raise ValueError(
        f"{op.name} (Norm): ord={order} over axes {axes} has no integer form; vector norms 1, 2 and inf and the "
        "Frobenius norm have one."
    )


def _logsumexp(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    axes = reduced_axes(op, len(x.shape))
    largest = make("largest", lambda: Extreme(axes, True, name=f"{op.name}_max"))(x)
    # exp of numbers up to 0 lies in 0 to 1; that of x itself spans far more than 256 codes can tell apart.
    below = make("below", lambda: layers.Subtract(name=f"{op.name}_below"))([x, largest])
    powers = make("exp", lambda: layers.Activation("exponential", name=f"{op.name}_exp"))(below)
    total = sum_of(make, powers, axes, True, f"{op.name}_sum")
    logarithm = function(make, "log", total, f"{op.name}_log")
    y = make("add", lambda: layers.Add(name=f"{op.name}_add"))([logarithm, largest])
    if op.keepdims:
        return y
    shape = [n for a, n in enumerate(y.shape) if a and a not in axes]
    return make("shape", lambda: layers.Reshape(shape, name=op.name))(y)


def _ptp(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    axes = reduced_axes(op, len(x.shape))
    high = make("high", lambda: Extreme(axes, op.keepdims, name=f"{op.name}_max"))(x)
    low = make("low", lambda: Extreme(axes, op.keepdims, largest=False, name=f"{op.name}_min"))(x)
    return make("spread", lambda: layers.Subtract(name=op.name))([high, low])


def _mean(node: Node) -> tuple[str, dict[str, Any]]:
    return "MEAN", {"axes": node.op.axis, "keepdims": node.op.keepdims}


def _lower(program: Program, call: Call) -> None:
    axes = program.constant("axes", np.array(call.op.axis, np.int32))
    code = ("REDUCE_MAX" if call.op.largest else "REDUCE_MIN") if isinstance(call.op, Extreme) else "MEAN"
    program.emit(code, [call.inputs[0], axes], call.output, keepDims=call.op.keepdims)


def _extreme_rule(largest: bool) -> Rule:
    return Rule(
        layers=(Extreme,),
        when=lambda op: op.largest is largest,
        operators=("REDUCE_MAX" if largest else "REDUCE_MIN",),
        output="same",
        lower=_lower,
        examples=(
            example(lambda: Extreme([1, 2], largest=largest), shape=(6, 5, 4)),
            example(lambda: Extreme([3], keepdims=True, largest=largest), shape=(6, 5, 4)),
        ),
    )


def _rule(name: str, expand: Any, *examples: Any) -> Rule:
    return Rule(operations=tuple(name.split()), expand=expand, examples=tuple(computed(f, (6, 5, 4)) for f in examples))


RULES = (
    Rule(
        layers=(Mean,),
        operators=("MEAN",),
        arithmetic=_mean,
        lower=_lower,
        examples=(example(lambda: Mean([2], keepdims=True), shape=(6, 5, 4)),),
    ),
    _extreme_rule(True),
    _extreme_rule(False),
    _rule(
        "Max Amax Min Amin",
        _extreme,
        lambda x: K.max(x, axis=(1, 3)),
        lambda x: K.amin(x, axis=-1, keepdims=True),
        lambda x: K.amax(x, axis=2),
        lambda x: K.min(x, axis=1),
    ),
    _rule("Sum", _sum, lambda x: K.sum(x, axis=1), lambda x: K.sum(x, axis=(1, 2, 3))),
    _rule("Var Std", _var, lambda x: K.var(x, axis=-1, keepdims=True), lambda x: K.std(x, axis=(1, 2))),
    _rule(
        "Norm",
        _norm,
        lambda x: K.norm(x, axis=-1),
        lambda x: K.norm(x, ord=1, axis=1),
        lambda x: K.norm(x, ord=np.inf, axis=2, keepdims=True),
        lambda x: K.norm(x, axis=(1, 2)),
    ),
    _rule("Logsumexp", _logsumexp, lambda x: K.logsumexp(x, axis=-1), lambda x: K.logsumexp(x, axis=1, keepdims=True)),
    _rule("Ptp", _ptp, lambda x: K.max(x, axis=-1) - K.min(x, axis=-1)),
)

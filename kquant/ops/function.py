"""Functions of one value that are not finite everywhere: roots, logarithms, reciprocals, powers; and thresholds.

Each is a table of 256 codes. What lies outside a function's domain takes its value at the domain's edge, and where that
is infinite the end of the calibrated range: `log` of code 0 is the smallest logarithm that calibration saw. In
calibration itself such values stay NaN or infinite, so that they are refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kquant.core.program import Program
from kquant.core.spec import FLOAT
from kquant.layers.modes import is_observing
from kquant.ops.constant import as_array
from kquant.ops.rule import Call, Make, Rule, computed, example
from kquant.ops.table import lower_table

K: Any = keras.ops  # has no types, and what a checker infers of it (None, too) is not so


@dataclass(frozen=True)
class Domain:
    """Where a function is finite: `low..high`, the edges themselves only where `closed`.

    Attributes:
        low, high: its edges.
        closed: the function is finite on the edges.
        below, above: what it is beyond open edges.
        hole: 0 is left out; there the function is `above`.
    """

    low: float = -math.inf
    high: float = math.inf
    closed: bool = True
    below: float = -math.inf
    above: float = math.inf
    hole: bool = False


EVERYWHERE = Domain()
POSITIVE = Domain(0.0, closed=False)
# Where each function is finite; those without a domain here are finite everywhere.
DOMAINS: dict[str, Domain] = {
    "sqrt": Domain(0.0),
    "rsqrt": Domain(0.0, closed=False, below=math.inf),
    "log": POSITIVE,
    "log2": POSITIVE,
    "log10": POSITIVE,
    "log1p": Domain(-1.0, closed=False),
    "reciprocal": Domain(hole=True),
    "arcsin": Domain(-1.0, 1.0),
    "arccos": Domain(-1.0, 1.0),
    "arctanh": Domain(-1.0, 1.0, closed=False),
    "arccosh": Domain(1.0),
    "erfinv": Domain(-1.0, 1.0, closed=False),
}
# Finite everywhere, beside the comparisons: a size, 1 / x with 0 at 0, and what is left of a division by a number.
PLAIN = ("abs", "reciprocal_no_nan", "mod", "fmod", "floor_divide")
OPERATIONS = {name.capitalize(): name for name in DOMAINS}
COMPARISONS: dict[str, Callable[[Any, float], Any]] = {
    "greater": lambda x, c: x > c,
    "greater_equal": lambda x, c: x >= c,
    "less": lambda x, c: x < c,
    "less_equal": lambda x, c: x <= c,
    "equal": lambda x, c: K.equal(x, c),
    "not_equal": lambda x, c: K.not_equal(x, c),
}


def _power_domain(exponent: float) -> Domain:
    whole = float(exponent).is_integer()
    if exponent >= 0:
        return EVERYWHERE if whole else Domain(0.0)
    return Domain(hole=True) if whole else Domain(0.0, closed=False, below=math.inf)


@keras.saving.register_keras_serializable(package="kquant")
class Function(keras.layers.Layer):
    """A function of `keras.ops` of one value, defined everywhere.

    Args:
        function: a key of `DOMAINS`, one of `PLAIN`, "power", or a key of `COMPARISONS` (1 where it holds, else 0).
        number: the exponent of "power", what a comparison compares with, the divisor of the others.

    Example:
        >>> Function("log")(np.float32([[1.0, 0.0]])).numpy().tolist()
        [[0.0, -inf]]
        >>> Function("sqrt")(np.float32([[4.0, -1.0]])).numpy().tolist()
        [[2.0, 0.0]]
    """

    def __init__(self, function: str, number: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.function, self.number = function, float(number)
        self.domain = _power_domain(self.number) if function == "power" else DOMAINS.get(function, EVERYWHERE)

    def call(self, x: Any, training: bool = False) -> Any:
        """Apply the function; in training, what lies outside the domain takes the batch's nearest value inside."""
        # Calibration wants to see NaN and infinity, so that it can refuse them by name.
        if self.domain is EVERYWHERE or is_observing():
            return self._raw(x)
        inside, beyond = self._inside(x)
        # Before the function and behind it: the gradient of a `where` alone is NaN wherever the branch not taken is.
        safe = K.where(inside, x, self._nearest(x, inside))
        y = self._raw(safe)
        return y if training or beyond is None else K.where(inside, y, beyond)

    def _raw(self, x: Any) -> Any:
        if self.function == "power":
            return K.power(x, self.number)
        if self.function in COMPARISONS:
            return K.cast(COMPARISONS[self.function](x, self.number), x.dtype)
        if self.function == "reciprocal_no_nan":
            return K.divide_no_nan(K.ones_like(x), x)
        if self.function in ("mod", "fmod", "floor_divide"):
            return getattr(K, self.function)(x, self.number)
        return getattr(K, self.function)(x)

    def _inside(self, x: Any) -> tuple[Any, Any]:
        """Whether values lie in the domain, and what the function is where they do not (None: as on the edge)."""
        d = self.domain
        if d.hole:
            return K.not_equal(x, 0.0), K.full_like(x, d.above)
        if d.closed:
            return K.logical_and(x >= d.low, x <= d.high), None
        return K.logical_and(x > d.low, x < d.high), K.where(x <= d.low, d.below, d.above)

    def _nearest(self, x: Any, inside: Any) -> Any:
        """A value inside the domain for those outside; constant, so that no gradient comes from it."""
        d = self.domain
        if d.closed and not d.hole:
            return K.stop_gradient(K.clip(x, d.low, d.high))
        # An open edge has no value to take: the batch's own nearest one stands in, by size where 0 is left out.
        far = np.float32(np.finfo(np.float32).max)
        smallest = K.min(K.where(inside, K.abs(x) if d.hole else x, far))
        largest = K.max(K.where(inside, K.abs(x) if d.hole else x, -far))
        # For a batch without any value inside: some number of the domain, near its lower edge where it is unbounded.
        middle = 1.0 if d.hole else 0.5 * (max(d.low, -1.0) + min(d.high, d.low + 2.0))
        edge = K.where(x <= d.low, smallest, largest) if not d.hole else K.broadcast_to(smallest, K.shape(x))
        return K.stop_gradient(K.where(K.any(inside), edge, middle))

    def compute_output_shape(self, input_shape: Any) -> Any:
        """As the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        return {**super().get_config(), "function": self.function, "number": self.number}


def function(make: Make, kind: str, x: Any, name: str, number: float = 0.0, key: str = "function") -> Any:
    """Apply a function to `x`."""
    return make(key, lambda: Function(kind, number, name=name))(x)


def _expand(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    return function(make, OPERATIONS[type(op).__name__], x, op.name)


def power(op: Any, make: Make, x: Any, exponent: Any) -> Any:
    """A constant power: a product for 2, a table for the others."""
    if isinstance(exponent, keras.KerasTensor) or not isinstance(x, keras.KerasTensor) or np.size(exponent) != 1:
        raise ValueError(
            f"{op.name} ({type(op).__name__}): only constant powers, one number each, have an integer form. Write "
            "a**x as keras.ops.exp(log(a) * x)."
        )
    number = float(as_array(exponent).reshape(()))
    if number == 1.0:
        return x
    # MUL is one operator where a table takes three, and has a kernel in 16 bits.
    if number == 2.0:
        return make("pair", lambda: keras.layers.Multiply(name=op.name))([x, x])
    return function(make, "power", x, op.name, number)


def _model(kind: str) -> Any:
    """A table behind what brings its input into the domain."""
    return lambda x: Function(kind)(K.tanh(x) if DOMAINS[kind].high == 1.0 else K.square(x) + DOMAINS[kind].low + 1.05)


# Functions with a float operator; its own domain is that of the function.
FLOAT_OPERATORS = {"sqrt": "SQRT", "rsqrt": "RSQRT", "log": "LOG"}


def _lower_float(program: Program, call: Call) -> None:
    """The builtin operator of the function, where there is one."""
    code = FLOAT_OPERATORS.get(call.op.function)
    if code is None:
        raise ValueError(
            f"{call.op.name} ({call.op.function}): there is no float operator for it; leave it integer, or write it "
            f"with functions that have one ({', '.join(FLOAT_OPERATORS)}, exp, sin, cos)."
        )
    program.emit(code, call.inputs, call.output)


def _lower_abs(program: Program, call: Call) -> None:
    program.emit("ABS", call.inputs, call.output)


RULES = (
    Rule(
        layers=(Function,),
        when=lambda op: op.function == "abs",
        operators=("ABS",),
        arithmetic=lambda node: ("ABS", {}),
        lower=_lower_abs,
        examples=(example(lambda: Function("abs"), shape=(6, 5)),),
    ),
    Rule(
        operations=("Abs", "Absolute", "Fabs"),
        expand=lambda op, make, x, **_: function(make, "abs", x, op.name),
        examples=(computed(K.abs, (4, 5)), computed(lambda x: keras.layers.Dense(3)(K.absolute(x)), (2, 6))),
    ),
    Rule(
        layers=(Function,),
        operators=("CAST", "ADD", "GATHER"),
        widths=(8, FLOAT),
        lower=lower_table,
        lower_float=_lower_float,
        examples=(
            *(computed(_model(kind), (6, 5)) for kind in DOMAINS if DOMAINS[kind].low > -math.inf),
            computed(lambda x: Function("reciprocal")(K.square(x) + 0.5), (6, 5)),
            computed(lambda x: Function("sqrt")(K.relu(x)), (6, 5)),
            computed(lambda x: Function("log")(K.sigmoid(x)), (6, 5)),
            example(lambda: Function("mod", 0.7), shape=(20,)),
            *(example(lambda kind=kind: Function(kind, 0.25), shape=(20,)) for kind in ("greater", "less_equal")),
        ),
    ),
    Rule(
        operations=tuple(OPERATIONS),
        expand=_expand,
        examples=(
            computed(lambda x: K.sqrt(K.abs(x)), (6, 5)),
            computed(lambda x: x * K.rsqrt(K.mean(K.square(x), axis=-1, keepdims=True) + 1e-3), (6, 5)),
            computed(lambda x: K.log1p(K.relu(x)), (6, 5)),
        ),
    ),
    Rule(
        operations=("Power",),
        expand=power,
        examples=(
            computed(lambda x: x**2, (5, 4)),
            computed(lambda x: x**3, (5, 4)),
            computed(lambda x: (K.square(x) + 0.1) ** -0.5, (5, 4)),
            computed(lambda x: K.power(K.relu(x), 1.5), (5, 4)),
        ),
    ),
)

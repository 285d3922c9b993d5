"""Conditions and choices. A condition is a tensor of 0 and 1; `where` is arithmetic with it, exact for those two.

x > c, x > y          a table of x, or of x - y
and, or, not          the smaller, the larger, 1 - c
where(c, a, b)        c a + (1 - c) b
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kquant.graph.keras_private import Multiply, made_of
from kquant.graph.step_mask import StepMask
from kquant.ops.affine import affine
from kquant.ops.condition import is_condition
from kquant.ops.constant import MINUS_INFINITY, as_array
from kquant.ops.function import function
from kquant.ops.index import along, part
from kquant.ops.lengths import Above, is_length
from kquant.ops.masks import masked_by, read_mask
from kquant.ops.rule import Make, Rule, computed

layers = keras.layers
K = keras.ops
COMPARISONS = {
    "Greater": "greater",
    "GreaterEqual": "greater_equal",
    "Less": "less",
    "LessEqual": "less_equal",
    "Equal": "equal",
    "NotEqual": "not_equal",
}
MIRRORED = {"greater": "less", "less": "greater", "greater_equal": "less_equal", "less_equal": "greater_equal"}


def _is_tensor(value: Any) -> bool:
    return isinstance(value, keras.KerasTensor)


def _condition(op: Any, make: Make, c: Any, key: str) -> Any:
    """`c` as Keras reads it, 1 where it is not 0. What an application feeds as a condition is taken to be one."""
    if not _is_tensor(c) or isinstance(made_of(c)[0], layers.InputLayer) or is_condition(c):
        return c
    return function(make, "not_equal", c, f"{op.name}_{key}", key=key)


def _compare(op: Any, make: Make, a: Any, b: Any) -> Any:
    kind = COMPARISONS[type(op).__name__]
    if _is_tensor(a) and _is_tensor(b):
        # a > b is a - b > 0: one difference with a range of its own, then a table.
        away = make("away", lambda: layers.Subtract(name=f"{op.name}_away"))([a, b])
        return function(make, kind, away, op.name)
    if not _is_tensor(a):
        # c > x is x < c; equality is the same from either side.
        a, b, kind = b, a, MIRRORED.get(kind, kind)
    value = np.asarray(keras.ops.convert_to_numpy(b), np.float64)
    if value.size == 1:
        number = float(value.reshape(()))
        if "int" in str(a.dtype) and kind in ("equal", "not_equal") and not is_condition(a):
            return _told_apart(op, make, a, number, kind)
        return function(make, kind, a, op.name, number)
    if kind not in ("equal", "not_equal") and is_length(a) and value.size == value.shape[-1]:
        return _before_end(op, make, a, value.reshape(-1), kind)
    away = make("away", lambda: affine(1.0, -_row(op, value, a), channels=a.shape[-1], name=f"{op.name}_away"))(a)
    return function(make, kind, away, op.name)


def _told_apart(op: Any, make: Make, x: Any, number: float, kind: str) -> Any:
    """Which whole numbers of an input are one number: compared as they are, so that the input stays int32."""
    equal = kind == "equal"
    real = make("real", lambda: StepMask(number, False, name=f"{op.name}_other" if equal else op.name))(x)
    if not equal:
        return real
    return make("same", lambda: affine(-1.0, 1.0, channels=real.shape[-1], name=op.name))(real)


def _before_end(op: Any, make: Make, n: Any, values: np.ndarray, kind: str) -> Any:
    """Which of some numbers a length reaches: of whole numbers `n >= v` is `n > v - 1`, and `n < v` its opposite."""
    least = np.floor(values) if kind in ("greater", "less_equal") else np.ceil(values) - 1
    opposite = kind in ("less", "less_equal")
    above = make("above", lambda: Above(least.tolist(), name=f"{op.name}_above" if opposite else op.name))(n)
    if not opposite:
        return above
    return make("below", lambda: affine(-1.0, 1.0, channels=values.size, name=op.name))(above)


def _row(op: Any, value: np.ndarray, x: Any) -> np.ndarray:
    if value.size != x.shape[-1] or value.shape[-1] != value.size:
        raise ValueError(
            f"{op.name} ({type(op).__name__}): it compares with a constant of shape {value.shape}; one number, or one "
            f"for each of the {x.shape[-1]} channels, has an integer form. A sample's length is an input of shape "
            '(1,) and dtype="int32", compared as n > np.arange(steps).'
        )
    return value.reshape(-1)


def _not(op: Any, make: Make, c: Any) -> Any:
    c = _condition(op, make, c, "condition")
    return make("not", lambda: affine(-1.0, 1.0, channels=c.shape[-1], name=op.name))(c)


def _both(cls: type) -> Any:
    def expand(op: Any, make: Make, a: Any, b: Any) -> Any:
        if not (_is_tensor(a) and _is_tensor(b)):
            raise ValueError(f"{op.name} ({type(op).__name__}): one side is a constant; write it without that side.")
        pair = [_condition(op, make, c, f"condition{i}") for i, c in enumerate((a, b))]
        return make("pair", lambda: cls(name=op.name))(pair)

    return expand


def _where(op: Any, make: Make, condition: Any, a: Any = None, b: Any = None) -> Any:
    if a is None or b is None:
        raise ValueError(f"{op.name} (Where): positions of true values have no static shape; give both choices.")
    if (hidden := _hidden(op, make, condition, a, b)) is not None:
        return hidden
    condition = _condition(op, make, condition, "condition")
    chosen = [_part(op, make, c, v, key) for c, v, key in _weighted(op, make, condition, a, b)]
    chosen = [y for y in chosen if y is not None]
    return chosen[0] if len(chosen) == 1 else make("sum", lambda: layers.Add(name=op.name))(chosen)


def _hidden(op: Any, make: Make, condition: Any, a: Any, b: Any) -> Any:
    """Logits whose place a very low number takes, as in front of a softmax; None where that is not so."""
    if _is_tensor(a) == _is_tensor(b):
        return None
    x, low = (a, b) if _is_tensor(a) else (b, a)
    if np.size(low) != 1 or not float(as_array(low).reshape(())) <= MINUS_INFINITY:
        return None
    if x is b:  # hidden where the condition holds
        condition = _not(op, make, condition) if _is_tensor(condition) else np.logical_not(condition)
    if len(condition.shape) > len(x.shape):
        return None
    return masked_by(make, x, read_mask(condition, op, make, len(x.shape), "condition"), op.name)


def _weighted(op: Any, make: Make, condition: Any, a: Any, b: Any) -> list[tuple[Any, Any, str]]:
    """`(condition, value, key)` of both choices."""
    if _is_tensor(condition):
        # Nothing is added where the condition does not hold, so its complement is not needed.
        if not _is_tensor(b) and not np.any(np.asarray(b)):
            return [(condition, a, "then")]
        other = make("other", lambda: affine(-1.0, 1.0, channels=condition.shape[-1], name=f"{op.name}_not"))
        return [(condition, a, "then"), (other(condition), b, "else")]
    fixed = np.asarray(keras.ops.convert_to_numpy(condition)).astype(np.float32)
    return [(fixed, a, "then"), (1.0 - fixed, b, "else")]


def _part(op: Any, make: Make, condition: Any, value: Any, key: str) -> Any:
    """`condition * value`, or None where it is all 0."""
    if _is_tensor(condition) and _is_tensor(value):
        return make(key, lambda: layers.Multiply(name=f"{op.name}_{key}"))([condition, value])
    if not _is_tensor(condition) and not _is_tensor(value):
        if not np.any(condition * np.asarray(value, np.float32)):  # 0 where the other one is not
            return None
        raise ValueError(f"{op.name} (Where): condition and choice are both constants; compute them outside the model.")
    fixed = np.asarray(value if _is_tensor(condition) else condition, np.float32)
    if not np.any(fixed):
        return None
    if not np.all(np.isfinite(fixed)):
        raise ValueError(
            f"{op.name} (Where): it puts {float(fixed.reshape(-1)[0])} into a tensor, which has no code; use a finite "
            "number, like -100.0 before a softmax."
        )
    # The operation and not the layer, so that its own rule decides what becomes of the constant (folded, or stored).
    tensor = condition if _is_tensor(condition) else value
    return make(key, lambda: Multiply(name=f"{op.name}_{key}"))(tensor, fixed)


def _glu(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    """The first half times the sigmoid of the second."""
    axis, half = along(op, op.axis, len(x.shape)), x.shape[along(op, op.axis, len(x.shape))] // 2
    a, b = (part(make, x, {axis: range(i * half, (i + 1) * half)}, f"{op.name}_half{i}", f"half{i}") for i in (0, 1))
    gate = make("gate", lambda: layers.Activation("sigmoid", name=f"{op.name}_gate"))(b)
    return make("product", lambda: layers.Multiply(name=op.name))([a, gate])


def _rule(names: str, expand: Any, *examples: Any) -> Rule:
    shapes = {1: ((6, 4),), 2: ((6, 4), (6, 4))}
    built = tuple(computed(f, *shapes[f.__code__.co_argcount]) for f in examples)
    return Rule(operations=tuple(names.split()), expand=expand, examples=built)


RULES = (
    _rule(
        " ".join(COMPARISONS),
        _compare,
        lambda x: K.cast(x > 0.2, "float32"),
        lambda x: K.where(0.5 >= x, x, -x),
        lambda x: K.where(x < np.array([0.1, 0.2, -0.3, 1.0], np.float32), x, 0.0),
    ),
    _rule("LogicalNot", _not, lambda x: K.where(K.logical_not(x > 0.0), x, 1.0)),
    _rule("LogicalAnd", _both(layers.Minimum), lambda x: K.where(K.logical_and(x > -1.0, x < 1.0), x, 0.5)),
    _rule("LogicalOr", _both(layers.Maximum), lambda x: K.where(K.logical_or(x < -1.0, x > 1.0), x, 0.0)),
    _rule("Glu", _glu, lambda x: K.glu(x), lambda x: K.glu(x, axis=1)),
    _rule(
        "Where",
        _where,
        lambda x, y: K.where(x > 0.0, x, y),
        lambda x, y: K.where(x > y, 0.0, y),
        lambda x, y: K.where(np.array([True, False, False, True]), x, y),
        lambda x, y: K.softmax(K.where(y > 0.0, x, -1e9)),
        lambda x, y: K.softmax(K.where(y > 0.0, -1e30, x)),
    ),
)

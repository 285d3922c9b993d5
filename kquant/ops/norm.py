"""Normalizations of rows: layer, RMS, group and unit normalization, from operators that every target has.

    x - MEAN(x) = c,  BATCH_MATMUL(c, c') = sum of squares,  table 1 / sqrt(sum / n + epsilon) = r,  c * r,  Affine

The sum of squares of a row is one int32 accumulator, rounded once to 8 bits; squares in int8 would lose every row whose
variance is some 30 times smaller than the largest (measured: 27 against 20 dB for such rows of 64 values).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kquant.core.program import Program
from kquant.core.spec import FLOAT
from kquant.ops.affine import affine
from kquant.ops.constant import as_array
from kquant.ops.matmul import permuted, product, reshaped
from kquant.ops.rule import Call, Make, Rule, computed, example, rebuild
from kquant.ops.table import lower_table

layers = keras.layers

# Squares of codes are at most 2^14 after centring; more of them than this may leave int32.
LARGEST_ROW = 2**17
CONSTANTS = ("factor", "epsilon")


@keras.saving.register_keras_serializable(package="kquant")
class RowMean(keras.layers.Layer):
    """The mean over the last axis, which stays with length 1."""

    def call(self, x: Any) -> Any:
        """Average."""
        return keras.ops.mean(x, axis=-1, keepdims=True)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """1 on the last axis."""
        return (*input_shape[:-1], 1)


@keras.saving.register_keras_serializable(package="kquant")
class InverseRoot(keras.layers.Layer):
    """`1 / sqrt(factor * x + epsilon)` of sums of squares; below 0, where codes may reach, as at 0.

    Example:
        >>> InverseRoot(0.5, 1.0)(np.float32([[6.0]])).numpy().tolist()
        [[0.5]]
    """

    def __init__(self, factor: float, epsilon: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor, self.epsilon = float(factor), float(epsilon)

    def call(self, x: Any) -> Any:
        """Apply the function."""
        positive: Any = keras.ops.maximum(x, 0.0)
        return keras.ops.rsqrt(positive * self.factor + self.epsilon)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """As the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        return {**super().get_config(), "factor": self.factor, "epsilon": self.epsilon}


def normalized(make: Make, x: Any, name: str, factor: float, epsilon: float, centre: str = "both") -> Any:
    """`c / sqrt(factor * sum(c^2) + epsilon)` over the last axis.

    Args:
        make: of the rule.
        name: of the layer.
        x: [samples, rows, values].
        factor: 1 / values for a variance, 1 for a norm.
        epsilon: added below the root.
        centre: "both": c is x without its row's mean; "none": c is x; "root": only below the root.
    """
    rows, values = x.shape[1:]
    c = x
    if centre != "none":
        mean = make("mean", lambda: RowMean(name=f"{name}_mean"))(x)
        c = make("centred", lambda: layers.Subtract(name=f"{name}_centred"))([x, mean])
    # [samples, rows, 1, values] times its own transpose: one sum for each row.
    row = reshaped(make, c, (rows, 1, values), name, "row")
    squares = product(make, row, row, f"{name}_squares", adj_y=True, key="squares")
    squares = reshaped(make, squares, (rows, 1), name, "column")
    root = make("root", lambda: InverseRoot(factor, epsilon, name=f"{name}_root"))(squares)
    # Keras' rms_scaling takes the variance below the root and x, not centred, above it.
    return make("scaled", lambda: layers.Multiply(name=f"{name}_scaled"))([x if centre == "root" else c, root])


def over_axes(make: Make, x: Any, axes: Any, name: str, compute: Callable[[Any], Any]) -> Any:
    """`compute` on [samples, rows, values], the values being those along `axes`, brought back to the shape of `x`.

    Raises:
        ValueError: an axis is that of the samples, or the rows are too long for int32 sums of squares.
    """
    rank = len(x.shape)
    axes = sorted({int(a) % rank for a in np.atleast_1d(axes)})
    if 0 in axes:
        raise ValueError(
            f"{name}: it normalizes over the batch axis (axes {axes}); the device computes one sample at a time. "
            "Normalize over the other axes."
        )
    # What is normalized together goes to the end and becomes one axis, all else in front one axis of rows.
    order = [a for a in range(rank) if a not in axes] + axes
    x = permuted(make, x, order, name, "order")
    shape, split = x.shape[1:], rank - len(axes) - 1
    rows, values = (int(np.prod(part, dtype=np.int64)) for part in (shape[:split], shape[split:]))
    if values > LARGEST_ROW:
        raise ValueError(
            f"{name}: it normalizes {values} values together; more than {LARGEST_ROW} may leave the 32 bits of the sum "
            "of their squares. Normalize fewer axes, or more groups, or pool before it."
        )
    y = compute(reshaped(make, x, (rows, values), name, "rows"))
    y = reshaped(make, y, shape, name, "shape")
    return permuted(make, y, [order.index(a) for a in range(rank)], name, "back")


def _scaled(make: Make, x: Any, gamma: Any, beta: Any, name: str) -> Any:
    """Gamma and beta of the last axis, where there are any; a layer behind may take them over."""
    if gamma is None and beta is None:
        return x
    for value in (gamma, beta):
        if isinstance(value, keras.KerasTensor):
            raise ValueError(f"{name}: its gamma and beta must be variables or constants. Received: a tensor {value}.")
    pairs = (("scale", gamma), ("offset", beta))
    trains = tuple(key for key, v in pairs if isinstance(v, keras.Variable) and v.trainable)
    scale, offset = (start if v is None else as_array(v) for v, start in ((gamma, 1.0), (beta, 0.0)))
    return make("affine", lambda: affine(scale, offset, channels=x.shape[-1], name=name, trains=trains))(x)


def _layer_norm(make: Make, x: Any, name: str, axes: Any, epsilon: Any, gamma: Any, beta: Any, centre: str) -> Any:
    epsilon = keras.config.epsilon() if epsilon is None else epsilon

    def compute(rows: Any) -> Any:
        y = normalized(make, rows, name, 1.0 / rows.shape[-1], epsilon, centre)
        return _scaled(make, y, gamma, beta, name)

    return over_axes(make, x, axes, name, compute)


def _layer(op: Any, make: Make, x: Any, **_: Any) -> Any:
    centre = "root" if op.rms_scaling else "both"
    return _layer_norm(make, x, op.name, op.axis, op.epsilon, op.gamma, op.beta, centre)


def _operation(op: Any, make: Make, x: Any, gamma: Any = None, beta: Any = None) -> Any:
    centre = "root" if op.rms_scaling else "both"
    return _layer_norm(make, x, op.name, op.axis, op.epsilon, gamma, None if op.rms_scaling else beta, centre)


def _rms(op: Any, make: Make, x: Any, scale: Any = None, **_: Any) -> Any:
    """The layer keeps its scale, the operation is called with one."""
    scale = op.scale if isinstance(op, keras.layers.Layer) else scale
    shape = np.shape(as_array(scale)) if scale is not None else ()
    if len(np.atleast_1d(op.axis)) > 1 and len(shape) > 1:
        raise ValueError(f"{op.name} ({type(op).__name__}): a scale of shape {shape}; give one for the last axis.")
    last = [int(a) % len(x.shape) for a in np.atleast_1d(op.axis)] == [len(x.shape) - 1]
    y = _layer_norm(make, x, op.name, op.axis, op.epsilon, scale if last else None, None, "none")
    # Keras broadcasts the scale along the last axis, whatever axis is normalized.
    return y if last else _scaled(make, y, scale, None, f"{op.name}_scale")


def _group(op: Any, make: Make, x: Any, **_: Any) -> Any:
    """Channels last, split into groups, each normalized with all its positions."""
    rank, axis = len(x.shape), op.axis % len(x.shape)
    to_last = [a for a in range(rank) if a != axis] + [axis]
    x = permuted(make, x, to_last, op.name, "to_last")
    shape, groups = x.shape[1:], op.groups
    # [samples, positions, groups, channels of each]: positions and channels are normalized together, for every group.
    split = (int(np.prod(shape[:-1], dtype=np.int64)), groups, shape[-1] // groups)
    x = reshaped(make, x, split, op.name, "groups")
    y = _layer_norm(make, x, f"{op.name}_group", (1, 3), op.epsilon, None, None, "both")
    y = reshaped(make, y, shape, op.name, "channels")
    y = _scaled(make, y, op.gamma if op.scale else None, op.beta if op.center else None, op.name)
    return permuted(make, y, [to_last.index(a) for a in range(rank)], op.name, "from_last")


def _unit(op: Any, make: Make, x: Any, **_: Any) -> Any:
    """The layer, and `keras.ops.normalize`."""
    if getattr(op, "order", 2) != 2:
        raise ValueError(
            f"{op.name} ({type(op).__name__}): order={op.order}; only the Euclidean norm (order=2) is integer. "
            "Divide by a constant instead, or normalize outside the model."
        )
    # Keras bounds the norm by 1e-12 or 1e-7; a square of 1e-12 below the root changes no norm above 1e-3 by 1e-6.
    axes = op.axis if op.axis is not None else list(range(len(x.shape)))
    return over_axes(make, x, axes, op.name, lambda rows: normalized(make, rows, op.name, 1.0, 1e-12, "none"))


def _spectral(op: Any, make: Make, x: Any, **_: Any) -> Any:
    """At inference the wrapped layer, whose kernel the last training step has normalized."""
    return make("layer", lambda: rebuild(op.layer, name=op.name))(x)


def _lower_mean(program: Program, call: Call) -> None:
    axes = program.constant("axes", np.array([len(call.inputs[0].shape) - 1], np.int32))
    program.emit("MEAN", [call.inputs[0], axes], call.output, keepDims=True)


def _lower_root(program: Program, call: Call) -> None:
    """Float sums of squares are never below 0."""
    y, plain = call.output, {"fusedActivationFunction": "NONE"}
    numbers = {key: np.array([getattr(call.op, key)], np.float32) for key in CONSTANTS}
    factor, epsilon = (program.constant(f"{y.name}/{key}", number) for key, number in numbers.items())
    part = program.emit("MUL", [call.inputs[0], factor], program.value(f"{y.name}/part", y.shape, None), **plain)
    total = program.emit("ADD", [part, epsilon], program.value(f"{y.name}/sum", y.shape, None), **plain)
    program.emit("RSQRT", [total], y)


def _squares() -> keras.Model:
    x = keras.Input((6, 4), name="x")
    y = layers.Multiply()([x, x])
    return keras.Model(x, InverseRoot(0.25, 0.1)(y), name="example")


RULES = (
    Rule(
        layers=(layers.LayerNormalization,),
        expand=_layer,
        examples=(
            example(lambda: layers.LayerNormalization(), shape=(6, 16)),
            example(lambda: layers.LayerNormalization(center=False), shape=(12,)),
            example(
                lambda: layers.LayerNormalization(axis=(1, 2), scale=False),  # pyright: ignore[reportArgumentType]
                shape=(5, 4, 3),
            ),
            example(lambda: layers.LayerNormalization(axis=1, epsilon=1e-6), shape=(8, 4, 3)),
            example(lambda: layers.LayerNormalization(), lambda: layers.Dense(4), shape=(2, 3, 8)),
            example(lambda: layers.LayerNormalization(rms_scaling=True), shape=(6, 16)),
        ),
    ),
    Rule(
        operations=("LayerNorm",),
        needs=("ops.layer_normalization",),
        expand=_operation,
        examples=(
            computed(lambda x: keras.ops.layer_normalization(x, epsilon=1e-3), (5, 8)),
            computed(lambda x: keras.ops.layer_normalization(x, np.full(8, 2.0, "float32"), epsilon=0.1), (3, 2, 8)),
        ),
    ),
    Rule(
        layers=(layers.RMSNormalization,),
        operations=("RMSNorm",),
        expand=_rms,
        examples=(
            example(lambda: layers.RMSNormalization(), shape=(6, 16)),
            example(lambda: layers.RMSNormalization(epsilon=0.01), shape=(9,)),
            computed(lambda x: keras.ops.rms_normalization(x, epsilon=1e-3), (2, 5, 8)),
        ),
    ),
    Rule(
        layers=(layers.GroupNormalization,),
        expand=_group,
        examples=(
            example(lambda: layers.GroupNormalization(2), shape=(5, 4, 6)),
            example(lambda: layers.GroupNormalization(1, scale=False), shape=(5, 4)),
            example(lambda: layers.GroupNormalization(-1, center=False), shape=(5, 4, 3)),
            example(lambda: layers.GroupNormalization(2, axis=1), shape=(4, 5, 3)),
        ),
    ),
    Rule(
        layers=(layers.UnitNormalization,),
        operations=("Normalize",),
        expand=_unit,
        examples=(
            example(lambda: layers.UnitNormalization(), shape=(6, 8)),
            example(lambda: layers.UnitNormalization(axis=1), shape=(8, 3)),
            computed(lambda x: keras.ops.normalize(x, axis=-1), (2, 3, 8)),
        ),
    ),
    Rule(
        layers=(layers.SpectralNormalization,),
        expand=_spectral,
        examples=(
            example(lambda: layers.SpectralNormalization(layers.Conv2D(4, 3)), shape=(6, 5, 3)),
            example(lambda: layers.SpectralNormalization(layers.Dense(4, activation="relu")), shape=(7,)),
        ),
    ),
    Rule(
        layers=(RowMean,),
        operators=("MEAN",),
        arithmetic=lambda node: ("MEAN", {"axes": [-1], "keepdims": True}),
        lower=_lower_mean,
        examples=(example(RowMean, shape=(6, 5)), example(RowMean, shape=(3, 4, 70))),
    ),
    Rule(
        layers=(InverseRoot,),
        operators=("CAST", "ADD", "GATHER"),
        widths=(8, FLOAT),
        lower=lower_table,
        lower_float=_lower_root,
        examples=(_squares,),
    ),
)

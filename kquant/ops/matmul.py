"""Matrix products: of two tensors BATCH_MATMUL, with a constant or a variable FULLY_CONNECTED where it is a kernel.

Every product is a contraction of labelled axes, as `einsum` writes them: transposed and reshaped to matrices,
multiplied, and brought back. The first axis of every tensor numbers the samples and must stay the first.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kquant.core.program import Program
from kquant.graph.stored import stored_layer
from kquant.ops.labels import Equation
from kquant.ops.rule import Call, Make, Rule, computed

layers = keras.layers


@keras.saving.register_keras_serializable(package="kquant")
class BatchMatmul(keras.layers.Layer):
    """`x @ y` of two tensors of one rank, either of them transposed first.

    Example:
        >>> x = np.ones((1, 2, 3), "float32")
        >>> BatchMatmul(adj_y=True)([x, x]).numpy().tolist()
        [[[3.0, 3.0], [3.0, 3.0]]]
    """

    def __init__(self, adj_x: bool = False, adj_y: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.adj_x, self.adj_y = adj_x, adj_y

    def call(self, inputs: Any) -> Any:
        """Multiply the matrices."""
        x, y = inputs
        x = keras.ops.swapaxes(x, -1, -2) if self.adj_x else x
        return keras.ops.matmul(x, keras.ops.swapaxes(y, -1, -2) if self.adj_y else y)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Rows of the first, columns of the second, broadcast batches."""
        x, y = (tuple(shape) for shape in input_shape)
        # Both have one rank; where either is 1 long, it broadcasts.
        batch = tuple(b if a == 1 else a for a, b in zip(x[1:-2], y[1:-2], strict=True))
        return (x[0], *batch, x[-1] if self.adj_x else x[-2], y[-2] if self.adj_y else y[-1])

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        return {**super().get_config(), "adj_x": self.adj_x, "adj_y": self.adj_y}


def product(
    make: Make, x: Any, y: Any, name: str, *, adj_x: bool = False, adj_y: bool = False, key: str = "product"
) -> Any:
    """`x @ y` of two tensors of the same rank."""
    return make(key, lambda: BatchMatmul(adj_x, adj_y, name=name))([x, y])


def permuted(make: Make, x: Any, order: list[int], name: str, key: str) -> Any:
    """`x` with its axes in this order (0, the samples, first); nothing where they are."""
    if order == list(range(len(order))):
        return x
    return make(key, lambda: layers.Permute(order[1:], name=f"{name}_{key}"))(x)


def reshaped(make: Make, x: Any, shape: tuple[int | None, ...], name: str, key: str) -> Any:
    """`x` with this shape, batch axis left out; nothing where it has it."""
    if tuple(x.shape[1:]) == tuple(shape):
        return x
    return make(key, lambda: layers.Reshape(shape, name=f"{name}_{key}"))(x)


def dense(
    make: Make, x: Any, kernel: np.ndarray, name: str, *, bias: Any = None, trains: bool = False, key: str = "dense"
) -> Any:
    """`x @ kernel + bias` over the last axis, as a Dense layer."""

    def build() -> keras.layers.Layer:
        layer: Any = layers.Dense(kernel.shape[1], use_bias=bias is not None, name=name)
        layer.build((None, kernel.shape[0]))
        layer.kernel.assign(kernel)
        if bias is not None:
            layer.bias.assign(bias)
        layer.trainable = trains
        return layer

    return make(key, build)(x)


def summed(make: Make, x: Any, axes: list[int], name: str, key: str = "sum") -> Any:
    """The sum over some axes, which leave: a Dense of ones over them, exact in int32 and rounded once."""
    kept = [a for a in range(len(x.shape)) if a not in axes]
    shape = tuple(x.shape[a] for a in kept[1:])
    # To the end and into one axis: what is summed is then what a Dense contracts.
    x = permuted(make, x, kept + axes, name, f"{key}_order")
    count = int(np.prod(x.shape[len(kept) :]))
    x = reshaped(make, x, (*shape, count), name, f"{key}_flat")
    x = dense(make, x, np.ones((count, 1), np.float32), f"{name}_{key}", key=key)
    return reshaped(make, x, shape, name, f"{key}_shape")


def contraction(make: Make, name: str, x: Any, y: Any, equation: Equation) -> Any:
    """Two tensors with labelled axes: one product of matrices for each index that both and the result have."""
    e = equation
    # Summed before the product, which would otherwise be computed for each of these positions.
    for i, lonely in enumerate((e.lonely(0), e.lonely(1))):
        t, labels = ((x, e.first), (y, e.second))[i]
        if lonely:
            t = summed(make, t, [labels.index(n) for n in lonely], name, f"sum{i}")
            x, y = (t, y) if i == 0 else (x, t)
            e = e.without(i, lonely)
    # An outer product has no sum: MUL broadcasts, and rounds once.
    if not e.contracted:
        x, y = _spread(make, name, x, e.first, e, "left"), _spread(make, name, y, e.second, e, "right")
        return make("outer", lambda: layers.Multiply(name=name))([x, y])
    x, adj_x = _matrix(make, name, x, e, 0)
    y, adj_y = _matrix(make, name, y, e, 1)
    z = product(make, x, y, name, adj_x=adj_x, adj_y=adj_y)
    return arranged(make, name, z, e.batch + e.free(0) + e.free(1), e)


def kernel_contraction(
    make: Make, name: str, x: Any, value: np.ndarray, equation: Equation, *, bias: Any = None, trains: bool = False
) -> Any:
    """A tensor and the numbers of a kernel: a Dense over the contracted axes, or a product with a stored tensor.

    Args:
        make: of the rule.
        name: of the layer.
        x: the tensor, with the labels `equation.first`.
        value: float[...], with the labels `equation.second`, no sample axis among them.
        equation: what is computed.
        bias: float[sizes of the kernel's free axes], in the kernel's order, or None; only where `is_dense`.
        trains: whether the kernel does.
    """
    e = equation
    # Numbers are summed here and now, exactly.
    value = np.sum(value, axis=tuple(e.second.index(n) for n in e.lonely(1)))
    e = e.without(1, e.lonely(1))
    if not is_dense(e):
        # An axis that both have and that stays needs a matrix for each of its positions: the kernel as a tensor, with
        # an axis of 1 for the samples in front.
        y = make("stored", lambda: stored_layer(value, f"{name}_stored", trains))(x)
        return contraction(make, name, x, y, Equation(e.first, e.first[0] + e.second, e.result, e.size))
    if lonely := e.lonely(0):
        x = summed(make, x, [e.first.index(n) for n in lonely], name, "sum0")
        e = e.without(0, lonely)
    # [samples, kept axes, contracted ones as one] times [contracted, own]; both list the contracted axes in one order.
    own, width = e.free(1), e.count(e.contracted)
    x = permuted(make, x, [e.first.index(n) for n in e.free(0) + e.contracted], name, "order")
    x = reshaped(make, x, (*e.sizes(e.free(0)[1:]), width), name, "flat")
    kernel = np.transpose(value, [e.second.index(n) for n in e.contracted + own]).reshape(width, -1)
    z = dense(make, x, kernel, name, bias=None if bias is None else np.reshape(bias, -1), trains=trains)
    return arranged(make, name, z, e.free(0) + own, e)


def is_dense(equation: Equation) -> bool:
    """True where a kernel is one matrix for every position of the tensor."""
    return not equation.batch and bool(equation.contracted)


def arranged(make: Make, name: str, z: Any, labels: str, e: Equation) -> Any:
    """A product whose axes are these, some of them still as one, with the axes of the result."""
    z = reshaped(make, z, e.sizes(labels[1:]), name, "split")
    return permuted(make, z, [labels.index(n) for n in e.result], name, "arranged")


def _spread(make: Make, name: str, x: Any, labels: str, e: Equation, key: str) -> Any:
    """`x` in the order of the result, with a 1 where it lacks an axis."""
    kept = [n for n in e.result if n in labels]
    x = permuted(make, x, [labels.index(n) for n in kept], name, f"{key}_order")
    return reshaped(make, x, tuple(e.size[n] if n in labels else 1 for n in e.result[1:]), name, f"{key}_spread")


def _matrix(make: Make, name: str, x: Any, e: Equation, operand: int) -> tuple[Any, bool]:
    """`x` as [samples, matrices, rows, columns], and whether that is transposed, as it costs less."""
    labels, key = ((e.first, "left"), (e.second, "right"))[operand]
    outer, inner, batch = e.free(operand), e.contracted, e.batch
    rows, columns = (outer, inner) if operand == 0 else (inner, outer)
    # If a tensor lies the other way round, BATCH_MATMUL takes it as it is (adj), where a TRANSPOSE would be an
    # operator.
    transposed = labels == batch + columns + rows
    if transposed:
        rows, columns = columns, rows
    x = permuted(make, x, [labels.index(n) for n in batch + rows + columns], name, f"{key}_order")
    # All axes of the batch as one, for the rank that targets take; the samples stay apart.
    many = (e.count(batch[1:]),) if len(batch) > 1 else ()
    return reshaped(make, x, (*many, e.count(rows), e.count(columns)), name, f"{key}_matrix"), transposed


def _lower(program: Program, call: Call) -> None:
    program.emit("BATCH_MATMUL", call.inputs, call.output, adjX=call.op.adj_x, adjY=call.op.adj_y)


def _pair(adj_x: bool = False, adj_y: bool = False) -> Any:
    return lambda x, y: BatchMatmul(adj_x, adj_y)([x, y])


RULES = (
    Rule(
        layers=(BatchMatmul,),
        operators=("BATCH_MATMUL",),
        arithmetic=lambda node: ("BATCH_MATMUL", {"adj_x": node.op.adj_x, "adj_y": node.op.adj_y}),
        lower=_lower,
        examples=(
            computed(_pair(), (4, 6), (6, 5)),
            computed(_pair(adj_y=True), (2, 4, 6), (2, 5, 6)),
            computed(_pair(adj_x=True), (3, 1, 6, 4), (3, 2, 6, 5)),
            computed(_pair(adj_x=True, adj_y=True), (300, 2), (3, 300)),
        ),
    ),
)

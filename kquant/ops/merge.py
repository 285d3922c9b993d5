"""Operations on several tensors, and arithmetic with constants between layers."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kquant.core.graph import Node
from kquant.core.program import Program
from kquant.ops.affine import affine
from kquant.ops.rule import Call, Make, Rule

layers = keras.layers


def _chain(cls: type) -> Any:
    """More than two inputs: one after the other."""

    def expand(op: Any, make: Make, inputs: Any, **_: Any) -> Any:
        x = inputs[0]
        for i, other in enumerate(inputs[1:], 1):
            name = op.name if i == len(inputs) - 1 else f"{op.name}_{i}"
            x = make(f"pair{i}", lambda name=name: cls(name=name))([x, other])
        return x

    return expand


def _average(op: Any, make: Make, inputs: Any, **_: Any) -> Any:
    """The sum, then its n-th part; the factor folds into a layer that follows."""
    total = inputs[0]
    for i, other in enumerate(inputs[1:], 1):
        total = make(f"sum{i}", lambda i=i: layers.Add(name=f"{op.name}_sum{i}"))([total, other])
    return make("part", lambda: affine(1 / len(inputs), 0.0, channels=total.shape[-1], name=op.name))(total)


def _binary(cls: type, with_constant: Any) -> Any:
    """`a + b` of two tensors, or of a tensor and a constant."""

    def expand(op: Any, make: Make, a: Any, b: Any) -> Any:
        tensors = [isinstance(v, keras.KerasTensor) for v in (a, b)]
        if all(tensors):
            return make("pair", lambda: cls(name=op.name))([a, b])
        x, constant = (a, b) if tensors[0] else (b, a)
        scale, offset = with_constant(_constant(constant, x, op), tensors[0])
        return make("affine", lambda: affine(scale, offset, channels=x.shape[-1], name=op.name))(x)

    return expand


def _constant(value: Any, x: Any, op: Any) -> np.ndarray:
    array = np.asarray(keras.ops.convert_to_numpy(value), np.float64)
    if array.size not in (1, x.shape[-1]) or (array.ndim and array.size > 1 and array.shape[-1] != array.size):
        raise ValueError(
            f"{op.name} ({type(op).__name__}): a constant must be one number or one for each of the {x.shape[-1]} "
            f"channels. Received: shape {array.shape}. Put other constants into a layer with weights."
        )
    return array.reshape(-1)


def _divide(constant: np.ndarray, tensor_first: bool) -> tuple[Any, Any]:
    if not tensor_first:
        raise ValueError("constant / tensor has no integer kernel; multiply by a precomputed reciprocal instead.")
    return 1.0 / constant, 0.0


def _negative(op: Any, make: Make, x: Any) -> Any:
    return make("affine", lambda: affine(-1.0, 0.0, channels=x.shape[-1], name=op.name))(x)


def _concatenate(op: Any, make: Make, xs: Any, **_: Any) -> Any:
    return make("concat", lambda: layers.Concatenate(op.axis, name=op.name))(xs)


def _square(op: Any, make: Make, x: Any) -> Any:
    return make("pair", lambda: layers.Multiply(name=op.name))([x, x])


def _lower(code: str) -> Any:
    def lower(program: Program, call: Call) -> None:
        options = {} if code in ("MAXIMUM", "MINIMUM") else {"fusedActivationFunction": call.activation}
        program.emit(code, call.inputs, call.output, **options)

    return lower


def _lower_concat(program: Program, call: Call) -> None:
    axis = call.op.axis % len(call.output.shape)
    program.emit("CONCATENATION", call.inputs, call.output, axis=axis, fusedActivationFunction="NONE")


def _ranks(node: Node) -> str | None:
    shapes = [t.shape for t in node.inputs]
    if len({len(s) for s in shapes}) > 1:
        return f"inputs of different rank {shapes}; put a Reshape before it"
    if any(len(s) > 4 for s in shapes):
        return f"inputs of rank above 4 {shapes}"
    return None


def _batch_axis(node: Node) -> str | None:
    if node.op.axis % len(node.outputs[0].shape) == 0:
        return "concatenation over the batch axis; the device computes one sample at a time"
    return None


def pair(make: Any, shapes: tuple[Any, Any] = ((6, 5, 4), (6, 5, 4))) -> Any:
    """A model of two inputs of these shapes."""

    def build() -> keras.Model:
        a, b = (keras.Input(s, name=n) for s, n in zip(shapes, "ab", strict=True))
        return keras.Model([a, b], make()([a, b]), name="example")

    return build


def _three(make: Any) -> Any:
    def build() -> keras.Model:
        inputs = [keras.Input((6, 4), name=n) for n in "abc"]
        return keras.Model(inputs, make()(inputs), name="example")

    return build


def _with_ops(function: Any, shape: tuple[int, ...]) -> Any:
    def build() -> keras.Model:
        x = keras.Input(shape, name="x")
        return keras.Model(x, function(x), name="example")

    return build


def _elementwise(cls: type, code: str, *examples: Any) -> tuple[Rule, ...]:
    """ADD, SUB and MUL: own output, a ReLU may fuse."""
    return (
        Rule(layers=(cls,), when=lambda op: _count(op) > 2, expand=_chain(cls), examples=(_three(cls),) if cls is not layers.Subtract else ()),
        Rule(
            layers=(cls,),
            operators=(code,),
            fuses=True,
            arithmetic=lambda node: (code, {}),
            lower=_lower(code),
            refuse=_ranks,
            examples=(pair(cls), *examples),
        ),
    )


def _count(op: Any) -> int:
    shapes = getattr(op, "_build_shapes_dict", None) or {}
    shape = next(iter(shapes.values()), ())
    return len(shape) if shape and isinstance(shape[0], list | tuple) else 2


def _same_grid(cls: type, code: str) -> tuple[Rule, ...]:
    return (
        Rule(layers=(cls,), when=lambda op: _count(op) > 2, expand=_chain(cls)),
        Rule(layers=(cls,), operators=(code,), output="shared", lower=_lower(code), refuse=_ranks, examples=(pair(cls),)),
    )


RULES = (
    *_elementwise(layers.Add, "ADD", pair(layers.Add, ((6, 5, 4), (1, 1, 4)))),
    *_elementwise(layers.Subtract, "SUB"),
    *_elementwise(layers.Multiply, "MUL", pair(layers.Multiply, ((6, 5, 4), (1, 1, 4)))),
    *_same_grid(layers.Maximum, "MAXIMUM"),
    *_same_grid(layers.Minimum, "MINIMUM"),
    Rule(layers=(layers.Average,), expand=_average, examples=(pair(layers.Average), _three(layers.Average))),
    Rule(
        layers=(layers.Concatenate,),
        operators=("CONCATENATION",),
        output="shared",
        lower=_lower_concat,
        refuse=_batch_axis,
        examples=(pair(layers.Concatenate), _three(lambda: layers.Concatenate(axis=1))),
    ),
    Rule(
        operations=("Add",),
        expand=_binary(layers.Add, lambda c, first: (1.0, c)),
        examples=(_with_ops(lambda x: x + 1.5, (5, 4)), _with_ops(lambda x: x + x, (5, 4))),
    ),
    Rule(
        operations=("Subtract",),
        expand=_binary(layers.Subtract, lambda c, first: (1.0, -c) if first else (-1.0, c)),
        examples=(_with_ops(lambda x: 1.0 - x, (5, 4)),),
    ),
    Rule(
        operations=("Multiply",),
        expand=_binary(layers.Multiply, lambda c, first: (c, 0.0)),
        examples=(_with_ops(lambda x: x * np.array([1.0, 2.0, -3.0], "float32"), (5, 3)),),
    ),
    Rule(operations=("Divide", "TrueDivide"), expand=_binary(layers.Multiply, _divide), examples=(_with_ops(lambda x: x / 3.0, (5, 4)),)),
    Rule(operations=("Maximum",), expand=_binary(layers.Maximum, None)),
    Rule(operations=("Minimum",), expand=_binary(layers.Minimum, None)),
    Rule(operations=("Negative",), expand=_negative, examples=(_with_ops(lambda x: -x, (5, 4)),)),
    Rule(operations=("Square",), expand=_square, examples=(_with_ops(keras.ops.square, (5, 4)),)),
    Rule(operations=("Concatenate",), expand=_concatenate),
)

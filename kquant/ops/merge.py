"""Operations on several tensors, and arithmetic with constants between layers."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kquant.core.program import Program
from kquant.graph.graph import Node
from kquant.ops.affine import affine, is_per_channel, per_channel
from kquant.ops.constant import as_array, known, repeated, stored
from kquant.ops.masks import some, with_low_numbers
from kquant.ops.rule import Call, Make, Rule, computed
from kquant.ops.samples import why_mixed

layers = keras.layers


def _chain(cls: type) -> Any:
    """More than two inputs: one after the other."""

    def expand(op: Any, make: Make, inputs: Any, **_: Any) -> Any:
        x = inputs[0]
        for i, other in enumerate(inputs[1:], 1):
            # The last of the chain is what the model calls by this name.
            name = op.name if i == len(inputs) - 1 else f"{op.name}_{i}"
            x = make(f"pair{i}", lambda name=name: cls(name=name))([x, other])
        return x

    return expand


def _aligned(cls: type) -> Any:
    """Inputs of fewer axes get axes of 1 behind the samples, as Keras' merging layers do."""

    def expand(op: Any, make: Make, inputs: Any, **_: Any) -> Any:
        rank = max(len(t.shape) for t in inputs)
        for i, t in enumerate(inputs):
            shape = (1,) * (rank - len(t.shape)) + tuple(t.shape[1:])
            if len(t.shape) < rank:
                t = make(f"input{i}", lambda i=i, shape=shape: layers.Reshape(shape, name=f"{op.name}_input{i}"))(t)
            inputs = [*inputs[:i], t, *inputs[i + 1 :]]
        return make("aligned", lambda: cls(name=op.name))(inputs)

    return expand


def _average(op: Any, make: Make, inputs: Any, **_: Any) -> Any:
    """The sum, then its n-th part; the factor folds into a layer that follows."""
    total = inputs[0]
    for i, other in enumerate(inputs[1:], 1):
        total = make(f"sum{i}", lambda i=i: layers.Add(name=f"{op.name}_sum{i}"))([total, other])
    return make("part", lambda: affine(1 / len(inputs), 0.0, channels=total.shape[-1], name=op.name))(total)


def binary(cls: type, with_constant: Any) -> Any:
    """An `expand` for `a + b` of two tensors, or of a tensor and a constant."""

    def expand(op: Any, make: Make, a: Any, b: Any) -> Any:
        # Numbers first, then numbers beside a tensor, then two tensors: each step saves an operator over the next.
        if (made := _of_constants(cls, op, make, a, b)) is not None:
            return made
        a, b = _constants_apart(a, b)
        tensors = [isinstance(v, keras.KerasTensor) for v in (a, b)]
        if all(tensors):
            same_rank(op, a, b)
            return make("pair", lambda: cls(name=op.name))([a, b])
        # Which of the two is the constant tells where it stands: c - x is not x - c.
        x, constant = (a, b) if tensors[0] else (b, a)
        if not is_per_channel(constant, x):
            other = stored(make, constant, x, op.name)
            return make("pair", lambda: cls(name=op.name))([x, other] if tensors[0] else [other, x])
        scale, offset = with_constant(per_channel(constant, x, op.name), tensors[0])
        # The other one of scale and offset is a 1 or a 0 that the user's model has not, so it must not train.
        free = isinstance(constant, keras.Variable) and constant.trainable
        trains = (("scale",) if cls is layers.Multiply else ("offset",)) if free else ()
        return make("affine", lambda: affine(scale, offset, channels=x.shape[-1], name=op.name, trains=trains))(x)

    return expand


def _constants_apart(a: Any, b: Any) -> tuple[Any, Any]:
    """A tensor that is one number for each channel goes as these numbers: they fold."""
    for x, other, turned in ((a, b, False), (b, a, True)):
        numbers = known(other)
        if isinstance(x, keras.KerasTensor) and numbers is not None and is_per_channel(numbers, x):
            return (numbers, x) if turned else (x, numbers)
    return a, b


def _of_constants(cls: type, op: Any, make: Make, a: Any, b: Any) -> Any:
    """Two constants, one of them a tensor of the graph (`token + ops.zeros_like(x)`): what they make, as a tensor.

    None where it takes an operator: one is no constant, or a variable that trains would not be the result as it is.
    """
    tensors = [v for v in (a, b) if isinstance(v, keras.KerasTensor)]
    values: list[Any] = [known(v) if isinstance(v, keras.KerasTensor) else as_array(v) for v in (a, b)]
    if any(v is None for v in values):
        return None
    shape = np.broadcast_shapes(*((1, *t.shape[1:]) for t in tensors), *(v.shape for v in values))
    if shape[0] != 1 or len(shape) != len(tensors[0].shape):
        return None
    function = {layers.Add: np.add, layers.Subtract: np.subtract, layers.Multiply: np.multiply}[cls]
    made = np.broadcast_to(function(*values), shape)[0]
    # A variable goes on training only if the result is that variable, perhaps in another shape.
    free = next((v for v in (a, b) if isinstance(v, keras.Variable) and v.trainable), None)
    if free is not None and not np.array_equal(np.ravel(made), np.ravel(as_array(free))):
        return None
    return repeated(make, made, tensors[0], op.name, trains=free is not None)


def same_rank(op: Any, a: Any, b: Any) -> None:
    """Refuse operations that would pair the samples of one tensor with another axis of the other."""
    if len(a.shape) != len(b.shape):
        raise ValueError(
            f"{op.name} ({type(op).__name__}): inputs of different rank {tuple(a.shape)}, {tuple(b.shape)}, so the "
            "samples of one meet another axis of the other. Put a Reshape before it that gives both one rank."
        )


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
    return None


def _batch_axis(node: Node) -> str | None:
    if node.op.axis % len(node.outputs[0].shape) == 0:
        return why_mixed("Concatenate")
    return None


def merged(make: Any, *shapes: tuple[int, ...]) -> Any:
    """A model that merges inputs of these shapes with the layer that `make` makes."""
    return computed(lambda *inputs: make()(list(inputs)), *shapes)


def _low_number_added(x: Any, real: Any) -> Any:
    seen: Any = keras.ops.cast(some(real), "float32")
    hidden = 1.0 - seen
    return keras.ops.softmax(x + hidden * -1e9)


SAME = ((6, 5, 4), (6, 5, 4))
THREE = ((6, 4), (6, 4), (6, 4))


def _elementwise(cls: type, code: str, expand: Any = None) -> tuple[Rule, ...]:
    """ADD, SUB and MUL: own output, a ReLU may fuse."""
    return (
        Rule(
            layers=(cls,),
            expand=expand,
            operators=(code,),
            fuses=True,
            arithmetic=lambda node: (code, {}),
            lower=_lower(code),
            refuse=_ranks,
            examples=(merged(cls, *SAME), merged(cls, (6, 5, 4), (1, 1, 4)), merged(cls, (6, 5, 1), (6, 5, 4))),
        ),
    )


def _same_grid(cls: type, code: str) -> tuple[Rule, ...]:
    return (
        Rule(
            layers=(cls,),
            operators=(code,),
            output="shared",
            lower=_lower(code),
            refuse=_ranks,
            examples=(merged(cls, *SAME), merged(cls, (6, 5, 4), (1, 1, 4))),
        ),
    )


def _many(*classes: type) -> tuple[Rule, ...]:
    """More than two inputs of these layers."""
    return tuple(
        Rule(layers=(cls,), when=lambda op: _count(op) > 2, expand=_chain(cls), examples=(merged(cls, *THREE),))
        for cls in classes
    )


def _of_ranks(*classes: type) -> tuple[Rule, ...]:
    """Inputs of different ranks."""
    return tuple(
        Rule(
            layers=(cls,),
            when=lambda op: len({len(shape) for shape in _input_shapes(op)}) > 1,
            expand=_aligned(cls),
            examples=(merged(cls, (6, 4), (4,)),),
        )
        for cls in classes
    )


def _input_shapes(op: Any) -> list[Any]:
    # A rule is chosen by the layer alone, before its call is looked at: only what it was built for tells its inputs.
    shape = (op.get_build_config() or {}).get("input_shape", ())
    return list(shape) if shape and isinstance(shape[0], list | tuple) else []


def _count(op: Any) -> int:
    return len(_input_shapes(op)) or 2


RULES = (
    *_of_ranks(layers.Add, layers.Subtract, layers.Multiply, layers.Maximum, layers.Minimum, layers.Average),
    *_many(layers.Add, layers.Multiply, layers.Maximum, layers.Minimum),
    *_elementwise(layers.Add, "ADD", with_low_numbers),
    *_elementwise(layers.Subtract, "SUB", with_low_numbers),
    *_elementwise(layers.Multiply, "MUL"),
    *_same_grid(layers.Maximum, "MAXIMUM"),
    *_same_grid(layers.Minimum, "MINIMUM"),
    Rule(
        layers=(layers.Average,),
        expand=_average,
        examples=(merged(layers.Average, *SAME), merged(layers.Average, *THREE)),
    ),
    Rule(
        layers=(layers.Concatenate,),
        operators=("CONCATENATION",),
        output="shared",
        lower=_lower_concat,
        refuse=_batch_axis,
        examples=(merged(layers.Concatenate, *SAME), merged(lambda: layers.Concatenate(axis=1), *THREE)),
    ),
    Rule(
        operations=("Add",),
        expand=binary(layers.Add, lambda c, first: (1.0, c)),
        examples=(
            computed(lambda x: x + 1.5, (5, 4)),
            computed(lambda x: x + x, (5, 4)),
            computed(_low_number_added, (5, 4), (4,)),
        ),
    ),
    Rule(
        operations=("Subtract",),
        expand=binary(layers.Subtract, lambda c, first: (1.0, -c) if first else (-1.0, c)),
        examples=(computed(lambda x: 1.0 - x, (5, 4)),),
    ),
    Rule(
        operations=("Multiply",),
        expand=binary(layers.Multiply, lambda c, first: (c, 0.0)),
        examples=(computed(lambda x: x * np.array([1.0, 2.0, -3.0], "float32"), (5, 3)),),
    ),
    Rule(operations=("Negative",), expand=_negative, examples=(computed(lambda x: -x, (5, 4)),)),
    Rule(operations=("Square",), expand=_square, examples=(computed(keras.ops.square, (5, 4)),)),
    Rule(
        operations=("Concatenate",),
        expand=_concatenate,
        examples=(computed(lambda a, b: keras.ops.concatenate([a, b], axis=1), (2, 3), (4, 3)),),
    ),
)

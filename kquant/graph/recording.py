"""What `call` did on symbolic tensors, and what in it stands for the number of samples.

A `call` that asks how many samples there are (`ops.shape(x)[0]`) and makes something of that size gets no answer on
tensors of an open batch. It is recorded on 7 samples and again on 11, and what differs tells what was meant:

    7 and 11 as a size                    the batch axis, which is open again
    a constant of 7 and of 11 equal rows  one row for every sample: a `Stored` tensor of the graph
    anything else that differs            computed with the number of samples, which a file for one sample cannot have
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import KerasTensor as Tensor
from keras import tree

# Two primes: a size that only happens to be the number of samples once is hardly ever so twice.
FEW, MORE = 7, 11
# Operators of a variable that stands to the left of a tensor -> their function in `keras.ops`.
BINARY = {
    "__add__": "add",
    "__sub__": "subtract",
    "__mul__": "multiply",
    "__truediv__": "true_divide",
    "__floordiv__": "floor_divide",
    "__mod__": "mod",
    "__pow__": "power",
    "__matmul__": "matmul",
    "__gt__": "greater",
    "__ge__": "greater_equal",
    "__lt__": "less",
    "__le__": "less_equal",
}


@dataclass(eq=False)
class Recording:
    """One run of `call`.

    Attributes:
        outputs: what it returned.
        nodes: the calls that Keras recorded, in order.
        back: id(tensor that it was run on) -> the graph's tensor.
        kept: the tensors that it was run on, so that their ids stay theirs.
        stored: placeholders in `nodes` and `outputs`, the constants they stand for (without batch axis), whether these
            are repeated for every sample, and the variable they are, if any.
    """

    outputs: Any
    nodes: list[Any]
    back: dict[int, Tensor]
    kept: list[Tensor] = field(default_factory=list)
    stored: list[tuple[Tensor, np.ndarray, bool, keras.Variable | None]] = field(default_factory=list)

    def store(self, value: Any, repeated: bool, variable: keras.Variable | None) -> Tensor:
        """A tensor in place of a constant with a leading 1."""
        array = np.asarray(keras.ops.convert_to_numpy(value))
        tensor = Tensor((None, *array.shape[1:]), "float32")
        self.stored.append((tensor, array[0], repeated, variable))
        return tensor


@contextlib.contextmanager
def symbolic_on_either_side() -> Iterator[None]:
    """Inside, `variable * x` and `array * x` of a symbolic x are recorded, as `x * variable` is anyway.

    Variables and NumPy arrays on the left would take x for numbers; on real tensors both ways are the same.
    """
    # On the class, since that is where Python looks an operator up.
    cls, before = keras.Variable, {name: getattr(keras.Variable, name) for name in BINARY}

    def symbolic(name: str) -> Any:
        def apply(self: Any, other: Any) -> Any:
            operation = getattr(keras.ops, BINARY[name])
            return operation(self, other) if isinstance(other, Tensor) else before[name](self, other)

        return apply

    # What the class only inherits is deleted again afterwards, not pinned to what it was.
    own = {name for name in BINARY if name in vars(cls)}
    for name in BINARY:
        setattr(cls, name, symbolic(name))
    kind: Any = Tensor  # its class does not say that it may have one
    kind.__array_ufunc__ = None  # NumPy then leaves the operation to the tensor
    try:
        yield
    finally:
        del kind.__array_ufunc__
        for name, method in before.items():
            if name in own:
                setattr(cls, name, method)
            else:
                delattr(cls, name)


def is_array(value: Any) -> bool:
    """True for numbers with a shape that are no variable and no tensor of a graph."""
    return not isinstance(value, Tensor | keras.Variable) and (
        isinstance(value, np.ndarray) or keras.ops.is_tensor(value)
    )


def open_batch(where: str, few: Recording, more: Recording) -> Recording:
    """The recording on `FEW` samples, made one on any number by comparison with that on `MORE`.

    Raises:
        ValueError: what `call` computes depends on how many samples there are.
    """
    kinds = [[type(n.operation).__name__ for n in each.nodes] for each in (few, more)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"{where}: its `call` takes other steps for more samples (it loops over the batch, or an `if` asks for its "
            "size), and a file for one sample has one sequence. Let every step work on all samples alike, with axis 0 "
            "left open."
        )
    for a, b in zip(few.nodes, more.nodes, strict=True):
        # An operation keeps some arguments as attributes of its own (the shape of a Reshape): those are opened too.
        opened = _Opened(f"{where}: in its `call`, {type(a.operation).__name__}", few)
        a.arguments.args = opened.of(a.arguments.args, b.arguments.args)
        a.arguments.kwargs = opened.of(a.arguments.kwargs, b.arguments.kwargs)
        if not isinstance(a.operation, keras.layers.Layer):
            for name, value in list(vars(a.operation).items()):
                if not name.startswith("_") and name != "name":
                    setattr(a.operation, name, opened.of(value, vars(b.operation).get(name)))
    few.outputs = _Opened(f"{where}: what its `call` returns", few).of(few.outputs, more.outputs)
    return few


@dataclass(frozen=True)
class _Opened:
    """Two values from the two recordings -> one that holds for any number of samples."""

    where: str
    recording: Recording

    def of(self, a: Any, b: Any) -> Any:
        # Tensors are told apart by the calls that made them, which stand in one order in both. Truth values before
        # numbers: True is an int.
        if isinstance(a, Tensor | keras.Variable | keras.Operation) or isinstance(a, str | bool | type(None)):
            return a
        if isinstance(a, slice):
            return slice(*(self.of(getattr(a, k), getattr(b, k)) for k in ("start", "stop", "step")))
        if isinstance(a, dict):
            return {k: self.of(v, b[k]) for k, v in a.items()}
        if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
            parts = [self.of(x, y) for x, y in zip(a, b, strict=True)]
            # A named tuple takes its fields one by one.
            return type(a)(*parts) if hasattr(a, "_fields") else type(a)(parts)
        if isinstance(a, int | float | np.generic):
            return self.number(a, b)
        return self.array(a, b) if is_array(a) else a

    def number(self, a: Any, b: Any) -> Any:
        """A number: the same, or the number of samples."""
        if a == b:
            return a
        # None is an open axis for Keras, as in the shape of an `Input`.
        if (a, b) == (FEW, MORE):
            return None
        times = a / FEW
        if float(times).is_integer() and b == times * MORE:
            raise ValueError(
                f"{self.where} takes a size of {int(times)} times the number of samples: it merges the batch with "
                "other axes, so that several samples stand in one row. The device computes one sample at a time: keep "
                "axis 0 to itself, and let the layers behind work on one axis more (Dense, softmax, matmul and "
                "MultiHeadAttention do; a convolution does in a TimeDistributed)."
            )
        return self.refuse(a, b)

    def refuse(self, a: Any, b: Any) -> Any:
        """A number that follows the number of samples."""
        raise ValueError(
            f"{self.where} computes with the number of samples ({a} for {FEW} samples, {b} for {MORE}), and the file "
            "takes one sample at a time. Leave the number out of it: take a mean where the sum is divided by it, and "
            "do in the loss or outside the model what concerns the batch."
        )

    def array(self, a: Any, b: Any) -> Any:
        """A constant: the same, or a row for every sample."""
        if not np.ndim(a):
            return a if a == b else self.refuse(a, b)
        first, second = (np.asarray(keras.ops.convert_to_numpy(v)) for v in (a, b))
        # Only floats know NaN: of texts `equal_nan` raises.
        if np.array_equal(first, second, equal_nan=first.dtype.kind == "f"):
            return a
        rows = first.ndim and second.ndim and (len(first), len(second)) == (FEW, MORE)
        if rows and first.shape[1:] == second.shape[1:] and np.all(first == first[:1]) and np.all(second == first[:1]):
            return self.recording.store(first[:1], True, None)
        raise ValueError(
            f"{self.where} meets numbers that differ from sample to sample, or with their number ({first.shape} for "
            f"{FEW} samples, {second.shape} for {MORE}: positions in the batch, as `ops.arange(ops.shape(x)[0])` makes "
            "them?). The device computes one sample at a time: give every sample the same numbers, or make them an "
            "input of the model."
        )


def keep_training(recording: Recording, variables: Iterable[keras.Variable]) -> None:
    """Put variables back where `call` met only their values: a broadcast class token, the rows of a table.

    Args:
        recording: its constants that are such values become variables, or get one.
        variables: those that train.
    """
    used = _used(recording)
    free = sorted(variables, key=lambda v: id(v) in used)  # the one that nothing else stands for comes first
    if not free:
        return
    recording.stored = [(t, x, many, v or _found(x, free)) for t, x, many, v in recording.stored]

    def visit(value: Any) -> Any:
        if not is_array(value):
            return value
        variable = _found(np.asarray(keras.ops.convert_to_numpy(value)), free)
        if variable is None or tuple(variable.shape) == tuple(value.shape):
            return value if variable is None else variable
        return keras.Variable(value, dtype="float32", name=variable.name)

    for node in recording.nodes:
        if any(is_array(v) for v in tree.flatten((node.arguments.args, node.arguments.kwargs))):
            arguments: Any = tree.map_structure(visit, (node.arguments.args, node.arguments.kwargs))
            node.arguments.args, node.arguments.kwargs = arguments


def lost(recording: Recording, variables: Iterable[keras.Variable]) -> list[str]:
    """Names of the variables whose values only, or not even those, are in the recording."""
    used = _used(recording)
    names = {
        v.name
        for t in recording.nodes
        for v in tree.flatten((t.arguments.args, t.arguments.kwargs))
        if isinstance(v, keras.Variable)
    }
    return [v.name for v in variables if id(v) not in used and v.name not in names]


def _used(recording: Recording) -> set[int]:
    """Ids of the variables that met a tensor as what they are."""
    met = {id(v) for _, _, _, v in recording.stored}
    for node in recording.nodes:
        met |= {id(v) for v in tree.flatten((node.arguments.args, node.arguments.kwargs))}
        if isinstance(node.operation, keras.layers.Layer):
            met |= {id(v) for v in node.operation.variables}
    return met


def _found(array: np.ndarray, free: list[keras.Variable]) -> keras.Variable | None:
    """The variable whose values, or first rows, these are."""
    # Integers are positions or sizes, even where a table of weights holds the same numbers.
    if array.dtype.kind != "f" or not array.size:
        return None
    for v in free:
        own = v.numpy()
        # So many of its first rows as make up the array: `table[:n]`, as positions are looked up.
        rows = own[: array.size // max(own[:1].size, 1)] if own.ndim else own
        if (
            rows.size == array.size
            # Zeros are the first rows of many a variable.
            and (np.any(array) or own.size == array.size)
            and np.array_equal(rows.reshape(-1), array.reshape(-1))
        ):
            return v
    return None

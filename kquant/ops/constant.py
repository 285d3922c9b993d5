"""Constants that meet a tensor element by element: positional embeddings, scales of rows, masks of attention.

A constant over the last axis alone is an `Affine`; one that varies along other axes is stored in the file as int8, with
an encoding of its own, and read by ADD, SUB, MUL, MAXIMUM or MINIMUM like any tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from kquant.core.program import Program
from kquant.graph.keras_private import maker
from kquant.graph.stored import Stored, stored_layer
from kquant.ops.rule import Call, Make, Rule, computed, example

layers = keras.layers

# How far the lowest code must lie below the smallest logit, so that a masked one gets exp(-8) < 1/512 at most.
MASKED_BELOW = 8.0
# What counts as minus infinity: in what is added to logits, in what takes their place, in padding before a maximum, in
# the data of a mask. -10000 is the nearest to 0 that published models write for it (BERT's attention); float16's -3e4,
# -1e9 and infinity lie below. Behind a softmax all of them are 0 in any float.
MINUS_INFINITY = -1e4
# What a masked logit becomes: on every grid, that is the lowest code.
LOWEST, LOWEST_HALF = -1e38, -3e4


@keras.saving.register_keras_serializable(package="kquant")
class Below(keras.layers.Layer):
    """`x - amount`, only to stretch the range of what shares its encoding; it is never written."""

    def __init__(self, amount: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.amount = float(amount)

    def call(self, x: Any) -> Any:
        """Subtract."""
        return x - self.amount

    def compute_output_shape(self, input_shape: Any) -> Any:
        """As the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        return {**super().get_config(), "amount": self.amount}


@keras.saving.register_keras_serializable(package="kquant")
class Stretched(keras.layers.Layer):
    """The first of two tensors, in an encoding that holds both."""

    def call(self, inputs: Any) -> Any:
        """The first."""
        return inputs[0]

    def compute_output_shape(self, input_shape: Any) -> Any:
        """As the first."""
        return input_shape[0]


@keras.saving.register_keras_serializable(package="kquant")
class Masked(keras.layers.Layer):
    """Logits with the lowest number where a constant mask is False: the lowest code in the file.

    Args:
        shape: of the mask, without batch axis; it broadcasts against the logits.

    Example:
        >>> layer = masked_layer(np.tri(2, dtype=bool), "causal")
        >>> (layer(np.zeros((1, 2, 2), "float32")).numpy() < -1e8).tolist()
        [[[False, True], [False, False]]]
    """

    def __init__(self, shape: Sequence[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shape = tuple(int(n) for n in shape)
        # A weight, since the mask is saved with the model; the config holds its shape only.
        self.allowed = self.add_weight(
            name="allowed", shape=self.shape, initializer="ones", trainable=False, dtype="int8", autocast=False
        )
        self.built = True

    def call(self, x: Any) -> Any:
        """Replace the logits of masked positions."""
        allowed: Any = keras.ops.expand_dims(keras.ops.convert_to_tensor(self.allowed), 0)
        return keras.ops.where(allowed > 0, x, keras.ops.cast(lowest_of(x.dtype), x.dtype))

    def compute_output_spec(self, x: Any) -> Any:
        """As the logits; the mask must not be larger."""
        return keras.KerasTensor(x.shape, x.dtype)

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        return {**super().get_config(), "shape": list(self.shape)}


def masked_layer(allowed: np.ndarray, name: str) -> Masked:
    """A `Masked` for bool[...], without batch axis."""
    layer = Masked(allowed.shape, name=name)
    layer.allowed.assign(np.asarray(allowed, np.int8))
    return layer


def as_array(value: Any) -> np.ndarray:
    """The numbers of a constant of any kind, or of a variable."""
    return value.numpy() if isinstance(value, keras.Variable) else np.asarray(keras.ops.convert_to_numpy(value))


def without_batch(value: Any, rank: int, name: str) -> np.ndarray:
    """A constant as it broadcasts against a tensor of this rank, its batch axis left out.

    Raises:
        ValueError: it has more axes than the tensor, or a value for each sample.
    """
    array = as_array(value)
    if array.ndim > rank or (array.ndim == rank and array.shape[0] != 1):
        raise ValueError(
            f"{name}: its constant varies along the batch axis, or has more axes than the tensor. Received: shape "
            f"{array.shape} for a tensor of rank {rank}, batch included. Give it a leading axis of 1."
        )
    shape = array.shape[1:] if array.ndim == rank else array.shape
    return array.reshape((1,) * (rank - 1 - len(shape)) + shape)


def stored(make: Make, value: Any, x: Any, name: str, key: str = "stored", *, trains: bool = False) -> Any:
    """A constant or variable as a tensor that broadcasts against `x`; a trainable variable stays one."""
    trains = trains or (isinstance(value, keras.Variable) and value.trainable)
    array = without_batch(value, len(x.shape), name)
    return make(key, lambda: stored_layer(array, f"{name}_{key}", trains))(x)


def known(t: Any) -> np.ndarray | None:
    """The numbers of a tensor of the graph that is a constant of the model, with a leading 1; else None.

    Axes along which they repeat are 1 long, so that what they meet broadcasts them.
    """
    layer = maker(t) if isinstance(t, keras.KerasTensor) else None
    if not isinstance(layer, Stored) or layer.trains:
        return None
    value = layer.value.numpy()
    # An axis that repeats its first row is left 1 long, if that makes the same tensor again.
    for axis in range(value.ndim):
        first = np.take(value, [0], axis)
        value = first if value.shape[axis] > 1 and np.array_equal(np.broadcast_to(first, value.shape), value) else value
    return value[None]


def repeated(make: Make, value: np.ndarray, x: Any, name: str, *, trains: bool = False) -> Any:
    """Numbers without batch axis as a tensor of the graph that has them for every sample of `x`."""
    return make("repeated", lambda: stored_layer(value, name, trains, repeated=True))(x)


def _filled(op: Any, make: Make, x: Any, *fill: Any, **named: Any) -> Any:
    """`zeros_like`, `ones_like`, `full_like`: the shape of a tensor, and numbers that do not depend on it."""
    number: Any = {"ZerosLike": 0.0, "OnesLike": 1.0}.get(type(op).__name__)
    if number is None:
        number = [*fill, *named.values()][0]
    if isinstance(number, keras.KerasTensor):
        raise ValueError(
            f"{op.name} (FullLike): the model computes what it fills with. Write it as fill_value + "
            "ops.zeros_like(x), which broadcasts."
        )
    return repeated(make, np.broadcast_to(as_array(number), (1, *x.shape[1:]))[0], x, op.name)


def stretched(make: Make, x: Any, name: str, below: float) -> Any:
    """The same logits on a grid whose lowest code is at least `below` under each of them."""
    lower = make("below", lambda: Below(below, name=f"{name}_below"))(x)
    return make("stretched", lambda: Stretched(name=f"{name}_stretched"))([x, lower])


def masked(make: Make, x: Any, allowed: np.ndarray, name: str) -> Any:
    """Logits of a stretched grid with the lowest code where `allowed` (without batch axis) is False."""
    extra = len(x.shape) - 1 - np.ndim(allowed)  # kernels of one rank only: LiteRT's reference MINIMUM needs it
    allowed = np.reshape(allowed, (1,) * extra + np.shape(allowed) if extra >= 0 else np.shape(allowed)[-extra:])
    return make("masked", lambda: masked_layer(np.asarray(allowed, bool), f"{name}_masked"))(x)


def lowest_of(dtype: Any) -> float:
    """What a masked logit becomes in floats of this type."""
    return LOWEST_HALF if keras.backend.standardize_dtype(dtype) == "float16" else LOWEST  # float16 ends at 65504


def _lower_stored(program: Program, call: Call) -> None:
    """The output becomes a constant of the file; no operator computes it."""
    # The 1 of the samples, as every tensor of the file has it.
    value = call.op.value.numpy()[None]
    call.output.data = call.output.grid.quantize(value).astype(call.output.dtype)


def _lower_below(program: Program, call: Call) -> None:
    """Nobody reads it: a constant that is not written."""
    call.output.data = np.zeros(call.output.shape, call.output.dtype)


def _lower_stretched(program: Program, call: Call) -> None:
    """A RESHAPE to the same shape, which tidying removes."""
    program.reshape(call.inputs[0], call.output.shape, call.output)


def _lower_masked(program: Program, call: Call) -> None:
    """MINIMUM with the highest code where the mask allows a logit, with the lowest where not."""
    encoding = call.output.grid
    spec = encoding.spec
    allowed = call.op.allowed.numpy()[None] > 0
    mask = program.codes(f"{call.output.name}/mask", np.where(allowed, spec.high, spec.low), encoding)
    program.emit("MINIMUM", [call.inputs[0], mask], call.output)


def _lower_masked_float(program: Program, call: Call) -> None:
    """MINIMUM with the largest number where the mask allows a logit, with a very small one where not."""
    allowed = call.op.allowed.numpy()[None] > 0
    mask = np.where(allowed, np.finfo(np.float32).max, LOWEST).astype(np.float32)
    program.emit("MINIMUM", [call.inputs[0], program.constant(f"{call.output.name}/mask", mask)], call.output)


def _lower_stored_float(program: Program, call: Call) -> None:
    """A float constant."""
    call.output.data = call.op.value.numpy()[None].astype(np.float32)


def _rows(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).normal(size=shape).astype(np.float32)


class _Positions(keras.layers.Layer):
    """A positional embedding, and a scale for each row, as custom layers have them."""

    def build(self, shape: Any) -> None:
        self.table = self.add_weight(name="table", shape=tuple(shape[1:]))
        self.rows = self.add_weight(name="rows", shape=(shape[1], 1), initializer="ones")

    def call(self, x: Any) -> Any:
        return (x + self.table) * self.rows


def _causal(make_layer: Any) -> Any:
    def build() -> keras.Model:
        x = keras.Input((4, 4), name="x")
        y = Masked((4, 4), name="masked")
        y.allowed.assign(np.tri(4))
        lower = Below(MASKED_BELOW)(x)
        return keras.Model(x, make_layer()(y(Stretched()([x, lower]))), name="example")

    return build


RULES = (
    Rule(
        layers=(Stored,),
        operators=(),
        observer="minmax",
        lower=_lower_stored,
        lower_float=_lower_stored_float,
        examples=(
            computed(lambda x: x + _rows(5, 4), (5, 4)),
            computed(lambda x: keras.ops.subtract(_rows(1, 5, 1, 4), x), (5, 3, 4)),
            computed(lambda x: x * _rows(6, 1, 1), (6, 5, 4)),
            computed(lambda x: x / _rows(5, 1), (5, 4)),
            computed(lambda x: keras.ops.maximum(x, _rows(5, 4)), (5, 4)),
            computed(lambda x: keras.ops.minimum(_rows(3, 1), x), (2, 3, 4)),
            example(_Positions, lambda: layers.Dense(3), shape=(6, 5)),
            example(_Positions, layers.ReLU, shape=(7, 4)),
        ),
    ),
    Rule(
        operations=("ZerosLike", "OnesLike", "FullLike"),
        expand=_filled,
        examples=(
            computed(lambda x: keras.ops.concatenate([keras.ops.zeros_like(x[:, :1]), x], axis=1), (3, 4)),
            computed(lambda x: x * keras.ops.full_like(x, 2.0) + keras.ops.ones_like(x) * _rows(4), (3, 4)),
        ),
    ),
    Rule(layers=(Below,), operators=(), lower=_lower_below, examples=(_causal(layers.Softmax),)),
    Rule(
        layers=(Stretched,),
        operators=("RESHAPE",),
        output="shared",
        lower=_lower_stretched,
        examples=(_causal(lambda: layers.Flatten()),),
    ),
    Rule(
        layers=(Masked,),
        operators=("MINIMUM",),
        output="follows",
        lower=_lower_masked,
        lower_float=_lower_masked_float,
        examples=(_causal(lambda: layers.Softmax()),),
    ),
)

"""`y = scale * x + offset` over the last axis: batch norms, Rescaling, Normalization and arithmetic with constants.

Written as a 1x1 DEPTHWISE_CONV_2D: one operator with one rounding, an int32 offset and a scale of its own for each
channel, where a MUL and an ADD would round twice. `kquant.fold` merges most of them into their neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from kquant.core.program import Program
from kquant.graph.stored import refuse_infinite
from kquant.ops.constant import as_array, stored
from kquant.ops.rows import affine_rows
from kquant.ops.rule import Call, Make, Rule, Weights, example

layers = keras.layers
# Mean and standard deviation of a tensor's channels, float64[channels] each.
Moments = tuple[np.ndarray, np.ndarray]


@dataclass
class Norm:
    """A batch norm as its parameters, float64[channels] each; `trains` says which of "scale" and "center" do."""

    gamma: np.ndarray
    beta: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    epsilon: float
    momentum: float
    trains: tuple[str, ...]

    def then(self, scale: np.ndarray, offset: np.ndarray) -> Norm:
        """With `scale * y + offset` behind it."""
        return replace(self, gamma=self.gamma * scale, beta=self.beta * scale + offset)


@keras.saving.register_keras_serializable(package="kquant")
class Affine(keras.layers.Layer):
    """`y = scale * x + offset`, both float32[channels].

    Args:
        trains: which of the two train, of "scale" and "offset"; a constant of the model must stay one.

    Attributes:
        moments: of its output, where a batch norm knew them: the mean is its beta, the deviation its |gamma|.
        norm: the batch norm that it was, where that one trains.

    Example:
        >>> layer = affine([2.0, 0.5], 1.0, channels=2, name="a")
        >>> layer(np.ones((1, 2), "float32")).numpy().tolist()
        [[3.0, 1.5]]
    """

    def __init__(self, trains: Sequence[str] = ("scale", "offset"), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.trains = tuple(trains)
        self.moments: Moments | None = None
        self.norm: Norm | None = None

    def build(self, input_shape: Any) -> None:
        """Make the two vectors."""
        for name, start in (("scale", "ones"), ("offset", "zeros")):
            shape, trains = (input_shape[-1],), name in self.trains
            setattr(self, name, self.add_weight(name=name, shape=shape, initializer=start, trainable=trains))

    def call(self, x: Any) -> Any:
        """Scale and shift the channels."""
        return x * keras.ops.convert_to_tensor(self.scale) + keras.ops.convert_to_tensor(self.offset)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """As the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        return {**super().get_config(), "trains": list(self.trains)}


def affine(
    scale: Any, offset: Any, *, channels: int, name: str, trains: Sequence[str] = (), dtype: Any = None
) -> Affine:
    """A built `Affine` layer; scalars stand for all channels, `trains` names what is not a constant.

    Raises:
        ValueError: the tensor has no channel axis of known length.
    """
    if channels is None:
        raise ValueError(
            f"{name}: it scales a tensor whose last axis is open, or which has no axis besides the batch. Give the "
            "model's input a static shape, like keras.Input((1,)) instead of keras.Input(())."
        )
    refuse_infinite(name, scale, offset)
    layer = Affine(trains, name=name, dtype=dtype)
    layer.build((None, channels))
    layer.scale.assign(np.broadcast_to(np.asarray(scale, np.float32).reshape(-1), (channels,)))
    layer.offset.assign(np.broadcast_to(np.asarray(offset, np.float32).reshape(-1), (channels,)))
    return layer


def batch_norm_as_affine(op: Any) -> tuple[np.ndarray, np.ndarray]:
    """`(scale, offset)` of an inference batch norm: `gamma / sqrt(var + eps)`, `beta - mean * scale` (float64)."""
    variance = op.moving_variance.numpy().astype(np.float64)
    gamma = op.gamma.numpy().astype(np.float64) if op.scale else np.ones_like(variance)
    beta = op.beta.numpy().astype(np.float64) if op.center else np.zeros_like(variance)
    # In float64: float32 would round scale and offset before they are folded into weights.
    scale = gamma / np.sqrt(variance + op.epsilon)
    return scale, beta - op.moving_mean.numpy().astype(np.float64) * scale


def batch_norm_moments(op: Any) -> Moments:
    """`(beta, |gamma|)`: what a batch norm makes of data that are distributed as those it was trained on."""
    channels = op.moving_variance.shape
    beta = op.beta.numpy().astype(np.float64) if op.center else np.zeros(channels)
    gamma = op.gamma.numpy().astype(np.float64) if op.scale else np.ones(channels)
    return beta, np.abs(gamma)


def _norm(op: Any) -> Norm:
    mean, variance = (v.numpy().astype(np.float64) for v in (op.moving_mean, op.moving_variance))
    gamma = op.gamma.numpy().astype(np.float64) if op.scale else np.ones_like(mean)
    beta = op.beta.numpy().astype(np.float64) if op.center else np.zeros_like(mean)
    trains = tuple(name for name, does in (("scale", op.scale), ("center", op.center)) if does)
    return Norm(gamma, beta, mean, variance, op.epsilon, op.momentum, trains)


def _batch_norm(op: Any, make: Make, x: Any, **_: Any) -> Any:
    channels = x.shape[op.axis]

    def build() -> Any:
        scale, offset = batch_norm_as_affine(op)
        trains = ("scale", "offset") if op.trainable else ()
        layer = affine(scale, offset, channels=channels, name=op.name, trains=trains, dtype=op.dtype_policy.name)
        layer.moments = batch_norm_moments(op)
        layer.norm = _norm(op) if op.trainable else None
        return layer

    axis, rank = op.axis % len(x.shape), len(x.shape)
    # Channels anywhere else go to the end and back: `Affine` runs over the last axis.
    if axis == rank - 1:
        return make("affine", build)(x)
    to_last = [a for a in range(1, rank) if a != axis] + [axis]
    x = make("to_last", lambda: layers.Permute(to_last, name=f"{op.name}_to_last"))(x)
    x = make("affine", build)(x)
    back = [to_last.index(a) + 1 for a in range(1, rank)]
    return make("back", lambda: layers.Permute(back, name=f"{op.name}_back"))(x)


def is_per_channel(value: Any, x: Any) -> bool:
    """True for one number, or one for each channel (last axis) of `x`."""
    shape = tuple(getattr(value, "shape", np.shape(value)))
    size = int(np.prod(shape, dtype=np.int64))
    # [channels], or that with axes of 1 in front; [channels, 1] is a number for each row.
    return size == 1 or (len(shape) <= len(x.shape) and size == x.shape[-1] == shape[-1])


def per_channel(value: Any, x: Any, name: str) -> np.ndarray:
    """A constant as float64[1] or float64[channels of x].

    Raises:
        ValueError: it varies along another axis than the last.
    """
    array = np.asarray(keras.ops.convert_to_numpy(value), np.float64)
    if not is_per_channel(array, x):
        raise ValueError(
            f"{name}: its constant must be one number, or one for each of the {x.shape[-1]} channels (last axis). "
            f"Received: shape {array.shape} for a tensor {tuple(x.shape)}. Bring the axis to the end with Permute, or "
            "feed the constant as an input of the model."
        )
    return array.reshape(-1)


def scaled(make: Make, x: Any, scale: np.ndarray, offset: np.ndarray, name: str) -> Any:
    """`scale * x + offset`: one `Affine` where both run over the channels, else what varies along other axes stored."""
    if is_per_channel(scale, x) and is_per_channel(offset, x):
        return make("affine", lambda: affine(scale, offset, channels=x.shape[-1], name=name))(x)
    x = make("scaled", lambda: layers.Multiply(name=f"{name}_scaled"))([x, stored(make, scale, x, name, "scale")])
    if not np.any(offset):
        return x
    return make("shifted", lambda: layers.Add(name=name))([x, stored(make, offset, x, name, "offset")])


def _rescaling(op: Any, make: Make, x: Any, **_: Any) -> Any:
    scale, offset = (as_array(v).astype(np.float64) for v in (op.scale, op.offset))
    return scaled(make, x, scale, offset, op.name)


def _normalization(op: Any, make: Make, x: Any, **_: Any) -> Any:
    mean, variance = (as_array(v).astype(np.float64) for v in (op.mean, op.variance))
    # As Keras bounds it, where a channel was constant in the data it was adapted to.
    deviation = np.maximum(np.sqrt(variance), keras.config.epsilon())
    scale, offset = (deviation, mean) if op.invert else (1.0 / deviation, -mean / deviation)
    return scaled(make, x, scale, offset, op.name)


def _lower(program: Program, call: Call) -> None:
    """A 1x1 depthwise convolution over the input seen as `[1, 1, positions, channels]`."""
    weights, x = call.constants, call.inputs[0]
    kernel = weights.kernel_ref(program, weights.codes.reshape(1, 1, 1, -1), axis=3)
    # Positions as one row of an image: 4-D tensors need no RESHAPE, and no other rank has a kernel.
    shape = x.shape if len(x.shape) == 4 else (1, 1, x.size // x.shape[-1], x.shape[-1])
    made = call.output if shape == x.shape else program.value(f"{call.output.name}/2d", shape, call.output.encoding)
    program.emit(
        "DEPTHWISE_CONV_2D",
        [program.reshape(x, shape), kernel, weights.bias_ref(program)],
        made,
        padding="VALID",
        fusedActivationFunction=call.activation,
        depthMultiplier=1,
        strideH=1,
        strideW=1,
        dilationHFactor=1,
        dilationWFactor=1,
    )
    if made is not call.output:
        program.reshape(made, call.output.shape, call.output)


def _no_input_batch_norm() -> Any:
    layer: Any = layers.BatchNormalization()
    layer.build((None, 6, 6, 5))
    rng = np.random.default_rng(3)
    layer.moving_mean.assign(rng.normal(size=5))
    layer.moving_variance.assign(rng.uniform(0.5, 2.0, size=5))
    return layer


def _adapted() -> Any:
    return layers.Normalization(mean=[1.0, -2.0, 0.5], variance=[1.0, 4.0, 0.25])


def _adapted_rows() -> Any:
    """Along another axis than the last one, where the oldest Keras takes no `mean=`."""
    layer = layers.Normalization(axis=1)
    rows = np.array([[1.0, 1.0], [-2.0, 2.0], [0.5, 0.45]], np.float32)[..., None]  # mean and deviation of each
    layer.adapt(np.stack([np.repeat(rows[:, 0] + sign * rows[:, 1], 7, axis=1) for sign in (-1, 1)]))
    return layer


RULES = (
    Rule(
        layers=(layers.BatchNormalization,),
        expand=_batch_norm,
        examples=(
            example(_no_input_batch_norm, shape=(6, 6, 5)),
            example(lambda: layers.BatchNormalization(axis=1, scale=False), shape=(6, 5, 4)),
            example(lambda: layers.BatchNormalization(center=False), shape=(9,)),
        ),
    ),
    Rule(
        layers=(layers.Rescaling,),
        expand=_rescaling,
        examples=(
            example(lambda: layers.Rescaling(1 / 127.5, offset=-1.0), shape=(6, 6, 3)),
            example(
                lambda: layers.Rescaling([0.5, 2.0, -1.0], offset=[0.0, 1.0, 2.0]),  # pyright: ignore[reportArgumentType]
                shape=(6, 3),
            ),
            example(
                lambda: layers.Rescaling(2.0, offset=np.arange(6.0).reshape(6, 1)),  # pyright: ignore[reportArgumentType]
                shape=(6, 3),
            ),
        ),
    ),
    Rule(
        layers=(layers.Normalization,),
        expand=_normalization,
        examples=(
            example(_adapted, shape=(7, 3)),
            example(
                lambda: layers.Normalization(axis=None, mean=0.3, variance=2.0, invert=True),  # pyright: ignore[reportArgumentType]
                shape=(5, 4),
            ),
            example(_adapted_rows, shape=(3, 7)),
        ),
    ),
    Rule(
        layers=(Affine,),
        operators=("DEPTHWISE_CONV_2D",),
        weights=Weights(kernel="scale", bias="offset", channel_axes=(0,), input_axis=0, rows=affine_rows),
        fuses=True,
        lower=_lower,
        examples=(
            example(Affine, shape=(5, 6, 3)),
            example(Affine, layers.ReLU, shape=(2, 3, 4, 5, 2)),
        ),
    ),
)

"""Activations with a kernel: fused ReLUs, fixed-output LOGISTIC / TANH / SOFTMAX, LEAKY_RELU, PRELU, HARD_SWISH."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kquant.core.program import Program
from kquant.graph.keras_private import maker
from kquant.layers.training_only import ReLUBehind
from kquant.ops.rule import Call, Make, Rule, Weights, computed, example

layers = keras.layers

OPERATIONS = {
    "Relu": "relu",
    "Relu6": "relu6",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Silu": "silu",
    "HardSigmoid": "hard_sigmoid",
    "HardSilu": "hard_silu",
    "Softmax": "softmax",
    "LeakyRelu": "leaky_relu",
}

# What TensorFlow has under the same name and computes alike; KerasTensors cannot pass it, so it is not to be followed.
TENSORFLOW = "relu relu6 leaky_relu elu selu silu gelu sigmoid softmax softplus softsign".split()


class Applied(keras.layers.Layer):
    """`function(x)`, for a function or layer given as `activation`; it has no rule, so it is unfolded."""

    def __init__(self, function: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.function = function

    def call(self, x: Any) -> Any:
        """Apply the function."""
        return self.function(x)


@cache
def _functions() -> dict[int, str]:
    """`id(function)` -> the name it has in `keras.activations`."""
    # By the name that a function has itself: `swish` is another one of `silu`. `get` and its like are none to apply.
    known = {name: f for name, f in vars(keras.activations).items() if inspect.isfunction(f) and f.__name__ == name}
    named = {id(f): name for name, f in known.items() if name not in ("get", "serialize", "deserialize")}
    named |= {id(getattr(tf.nn, name)): name for name in TENSORFLOW}
    return named | {id(tf.sigmoid): "sigmoid", id(tf.tanh): "tanh", id(tf.nn.tanh): "tanh", id(tf.identity): "linear"}


def name_of(function: Any) -> str | None:
    """The name of a built-in activation function ("linear" for None); None for any other, whatever it is called.

    Example:
        >>> name_of(keras.activations.tanh), name_of(lambda x: x)
        ('tanh', None)
    """
    return "linear" if function is None else _functions().get(id(function))


def activate(function: Any, make: Make, x: Any, layer: str | None = None) -> Any:
    """Apply an activation, a function or the name of one, to `x` with layers that have rules."""
    name = function if isinstance(function, str) else name_of(function)
    label = layer or f"{maker(x).name}_{name or 'activation'}"
    if name is None:
        return make("applied", lambda: Applied(function, name=label))(x)
    if name == "linear":
        return x
    if name in ("relu", "relu6"):
        return make("relu", lambda: layers.ReLU(6.0 if name == "relu6" else None, name=label))(x)
    if name == "leaky_relu":
        return make("leaky", lambda: layers.LeakyReLU(0.2, name=label))(x)
    if name in ("silu", "swish"):
        gate = make("gate", lambda: layers.Activation("sigmoid", name=f"{label}_gate"))(x)
        return make("product", lambda: layers.Multiply(name=label))([x, gate])
    if name == "hard_sigmoid":
        from kquant.ops.affine import affine  # affine.py imports no activation, but its rules fuse this one's ReLU

        # relu6(x + 3) / 6 is x / 6 + 1/2, clipped at 0 and 1: the slope folds into the layer before, the clip into its
        # range.
        slope = make("slope", lambda: affine(1 / 6, 0.5, channels=x.shape[-1], name=f"{label}_slope"))(x)
        return make("clip", lambda: layers.ReLU(1.0, name=label))(slope)
    return make("activation", lambda: layers.Activation(name, name=label))(x)


def _expand_activation(op: Any, make: Make, x: Any, **_: Any) -> Any:
    return activate(op.activation, make, x, layer=op.name)


def _expand_relu(op: Any, make: Make, x: Any, **_: Any) -> Any:
    """`keras.activations.relu` with settings, which is an operation of its own."""
    return make("relu", lambda: layers.ReLU(op.max_value, op.negative_slope, op.threshold, name=op.name))(x)


def _expand_operation(op: Any, make: Make, x: Any, *args: Any, **_: Any) -> Any:
    """An operation of `keras.ops`; its settings are attributes of the operation."""
    name = OPERATIONS[type(op).__name__]
    if name == "leaky_relu":
        return make("leaky", lambda: layers.LeakyReLU(op.negative_slope, name=op.name))(x)
    if name == "softmax":
        return make("softmax", lambda: layers.Softmax(op.axis, name=op.name))(x)
    return activate(name, make, x, layer=op.name)


def named(*names: str) -> Any:
    """Condition: an `Activation` layer of one of these functions."""
    return lambda op: name_of(op.activation) in names


def _relu_is_plain(op: Any) -> bool:
    return not op.negative_slope and not op.threshold


def _relu_form(op: Any) -> str:
    """RELU6 where the clip is 6; another clip is held by RELU and a MINIMUM where the range goes beyond it."""
    return "RELU6" if op.max_value == 6 else "RELU"


def _lower_relu(program: Program, call: Call) -> None:
    """Always RELU: TFLM's RELU6 clips codes without rescaling them. The range, or a MINIMUM, holds the maximum."""
    program.emit("RELU", call.inputs, call.output)


def _lower_relu_float(program: Program, call: Call) -> None:
    """RELU or RELU6; another maximum holds by a MINIMUM, as no range does."""
    maximum, y = call.op.max_value, call.output
    if maximum in (None, 6):
        program.emit("RELU" if maximum is None else "RELU6", call.inputs, y)
        return
    before = program.emit("RELU", call.inputs, program.value(f"{y.name}/unclipped", y.shape, None))
    program.emit("MINIMUM", [before, program.constant(f"{y.name}/limit", np.array([maximum], np.float32))], y)


def _slope(op: Any) -> float:
    return float(op.negative_slope)


def _lower_leaky(program: Program, call: Call) -> None:
    program.emit("LEAKY_RELU", call.inputs, call.output, alpha=_slope(call.op))


def _lower_prelu(program: Program, call: Call) -> None:
    """One scale for all of alpha; shared axes keep their length of 1."""
    weights = call.constants
    program.emit("PRELU", [call.inputs[0], weights.kernel_ref(program, weights.codes, axis=0)], call.output)


def _widen_prelu(op: Any, make: Make, x: Any) -> Any:
    """`relu(x) - alpha relu(-x)`; slopes that several values share, but not all of a channel, have no such form."""
    from kquant.ops.affine import affine  # see `activate`

    alpha, whole, channels = op.alpha.numpy(), int(np.prod(x.shape[1:])), x.shape[-1]
    if alpha.size not in (channels, whole) or alpha.shape[-1] != channels:
        return None
    trains = ("scale",) if op.trainable else ()

    def scaled(y: Any, by: Any, part: str, trains: tuple[str, ...] = ()) -> Any:
        named = f"{op.name}_{part}"
        return make(part, lambda: affine(by, 0.0, channels=y.shape[-1], name=named, trains=trains))(y)

    above = make("above", lambda: layers.ReLU(name=f"{op.name}_above"))(x)
    below = scaled(x, -1.0, "negated")
    below = make("below", lambda: layers.ReLU(name=f"{op.name}_below"))(below)
    if alpha.size == channels:
        below = scaled(below, -alpha, "slopes", trains)
    else:  # a slope for each value: all of them become channels
        flat = make("flat", lambda: layers.Reshape((whole,), name=f"{op.name}_flat"))(below)
        below = scaled(flat, -alpha, "slopes", trains)
        below = make("back", lambda: layers.Reshape(x.shape[1:], name=f"{op.name}_back"))(below)
    return make("sum", lambda: layers.Add(name=op.name))([above, below])


def _lower_plain(code: str) -> Any:
    def lower(program: Program, call: Call) -> None:
        program.emit(code, call.inputs, call.output)

    return lower


def _kernel(code: str, **attributes: Any) -> Any:
    return lambda node: (code, attributes)


def _activation(name: str) -> Any:
    return example(lambda: layers.Activation(name), shape=(6, 5))


RULES = (
    Rule(
        layers=(layers.Activation,),
        when=named("linear", "relu", "relu6", "leaky_relu", "silu", "hard_sigmoid"),
        expand=_expand_activation,
        examples=(_activation("silu"), _activation("hard_sigmoid"), _activation("relu6")),
    ),
    Rule(
        operations=tuple(OPERATIONS),
        expand=_expand_operation,
        examples=tuple(computed(getattr(keras.ops, name), (6, 5)) for name in OPERATIONS.values()),
    ),
    Rule(
        operations=("ReLU",),
        expand=_expand_relu,
        examples=(computed(lambda x: keras.activations.relu(x, 0.1, 2.0), (6, 5)),),
    ),
    Rule(
        layers=(layers.ReLU, ReLUBehind),
        when=_relu_is_plain,
        operators=("RELU",),
        relu=_relu_form,
        arithmetic=lambda node: ("RELU", {"maximum": node.op.max_value}),
        lower=_lower_relu,
        lower_float=_lower_relu_float,
        examples=(
            example(lambda: layers.ReLU(), shape=(5, 4, 3)),
            example(lambda: layers.ReLU(6.0), shape=(40,)),
            example(lambda: layers.ReLU(1.5), shape=(12, 3)),
        ),
    ),
    Rule(
        layers=(layers.ReLU,),
        when=lambda op: op.negative_slope and not op.threshold and op.max_value is None,
        expand=lambda op, make, x: make("leaky", lambda: layers.LeakyReLU(_slope(op), name=op.name))(x),
        examples=(example(lambda: layers.ReLU(negative_slope=0.2), shape=(20,)),),
    ),
    Rule(
        layers=(layers.LeakyReLU,),
        operators=("LEAKY_RELU",),
        arithmetic=lambda node: ("LEAKY_RELU", {"alpha": _slope(node.op)}),
        lower=_lower_leaky,
        examples=(
            example(lambda: layers.LeakyReLU(0.3), shape=(6, 6, 4)),
            example(lambda: layers.Activation("leaky_relu"), shape=(20,)),
        ),
    ),
    Rule(
        layers=(layers.PReLU,),
        operators=("PRELU",),
        weights=Weights(kernel="alpha", bias=None, channel_axes=(), input_axis=None, sums=False, per_axis=False),
        lower=_lower_prelu,
        widen=_widen_prelu,
        examples=(
            example(lambda: layers.PReLU(shared_axes=[1, 2]), shape=(6, 6, 4)),
            example(lambda: layers.PReLU(), shape=(5, 4, 3)),
            example(lambda: layers.Dense(6), lambda: layers.PReLU(), shape=(9,)),
        ),
    ),
    Rule(
        layers=(layers.Activation,),
        when=named("sigmoid"),
        operators=("LOGISTIC",),
        output="fixed",
        fixed=(1 / 256, -128),
        arithmetic=_kernel("LOGISTIC"),
        lower=_lower_plain("LOGISTIC"),
        examples=(_activation("sigmoid"),),
    ),
    Rule(
        layers=(layers.Activation,),
        when=named("tanh"),
        operators=("TANH",),
        output="fixed",
        fixed=(1 / 128, 0),
        arithmetic=_kernel("TANH"),
        lower=_lower_plain("TANH"),
        examples=(_activation("tanh"),),
    ),
    Rule(
        layers=(layers.Activation,),
        when=named("hard_silu"),
        operators=("HARD_SWISH",),
        arithmetic=_kernel("HARD_SWISH"),
        lower=_lower_plain("HARD_SWISH"),
        examples=(_activation("hard_silu"),),
    ),
)

"""Convolutions: CONV_2D, DEPTHWISE_CONV_2D, TRANSPOSE_CONV. 1-D ones run as 2-D over a height of 1."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kquant.core.program import Program, Ref
from kquant.graph.graph import Node
from kquant.ops.activation import activate
from kquant.ops.dense import has_activation, split_activation
from kquant.ops.rows import conv_rows, depthwise_rows
from kquant.ops.rule import CONV, Call, Geometry, Make, Rule, Weights, copy_weights, example, rebuild

layers = keras.layers


def as_2d(program: Program, x: Ref, rank: int) -> Ref:
    """`[1, length, channels]` as `[1, 1, length, channels]`."""
    return x if rank == 2 else program.reshape(x, (x.shape[0], 1, *x.shape[1:]))


def output_2d(program: Program, output: Ref, rank: int) -> Ref:
    """The 4-D tensor that stands for a 1-D layer's output, until `finish_2d` gives it its own shape."""
    if rank == 2:
        return output
    return program.value(f"{output.name}/2d", (output.shape[0], 1, *output.shape[1:]), output.encoding)


def finish_2d(program: Program, made: Ref, output: Ref) -> None:
    """Reshape back where a 1-D layer was written as a 2-D one."""
    if made is not output:
        program.reshape(made, output.shape, output)


def window(values: tuple[int, ...], field: str) -> dict[str, int]:
    """Strides, dilations or sizes as schema fields (`field` like "stride{}"); 1-D ones move along the width."""
    height, width = (1, *values) if len(values) == 1 else values
    return {field.format("H"): height, field.format("W"): width}


def _lower_conv(program: Program, call: Call) -> None:
    op, weights, rank = call.op, call.constants, call.op.rank
    codes = weights.codes if rank == 2 else weights.codes[None]
    # Keras [h, w, in, out] -> TFLite [out, h, w, in].
    kernel = weights.kernel_ref(program, np.ascontiguousarray(codes.transpose(3, 0, 1, 2)), axis=0)
    made = output_2d(program, call.output, rank)
    program.emit(
        "CONV_2D",
        [as_2d(program, call.inputs[0], rank), kernel, weights.bias_ref(program)],
        made,
        padding=op.padding.upper(),
        fusedActivationFunction=call.activation,
        **window(op.strides, "stride{}"),
        **window(op.dilation_rate, "dilation{}Factor"),
    )
    finish_2d(program, made, call.output)


def _lower_depthwise(program: Program, call: Call) -> None:
    op, weights, rank = call.op, call.constants, call.op.rank
    codes = weights.codes if rank == 2 else weights.codes[None]
    height, width, inputs, multiplier = codes.shape
    # Keras [h, w, in, multiplier] -> TFLite [1, h, w, in * multiplier]: the multiples of a channel are neighbours in
    # both.
    kernel = weights.kernel_ref(program, codes.reshape(1, height, width, inputs * multiplier), axis=3)
    made = output_2d(program, call.output, rank)
    program.emit(
        "DEPTHWISE_CONV_2D",
        [as_2d(program, call.inputs[0], rank), kernel, weights.bias_ref(program)],
        made,
        padding=op.padding.upper(),
        fusedActivationFunction=call.activation,
        depthMultiplier=multiplier,
        **window(op.strides, "stride{}"),
        **window(op.dilation_rate, "dilation{}Factor"),
    )
    finish_2d(program, made, call.output)


def _lower_transpose(program: Program, call: Call) -> None:
    """The output's shape is an operand, and so is Keras' output_padding: what the kernels make of a longer one is the
    same sum, since both take the padding off from `(n - 1) * stride + size - length` on.
    """
    op, weights = call.op, call.constants
    # Keras [h, w, out, in] -> TFLite [out, h, w, in].
    kernel = weights.kernel_ref(program, np.ascontiguousarray(weights.codes.transpose(2, 0, 1, 3)), axis=0)
    shape = program.constant("shape", np.array(call.output.shape, np.int32))
    program.emit(
        "TRANSPOSE_CONV",
        [shape, kernel, call.inputs[0], weights.bias_ref(program)],
        call.output,
        padding=op.padding.upper(),
        fusedActivationFunction=call.activation,
        **window(op.strides, "stride{}"),
    )


def _causal(op: Any, make: Make, x: Any) -> Any:
    """Padding on the left, then a valid convolution."""
    # TFLite pads as SAME or not at all: zeros in front are an operator of their own, which rounds nothing.
    reach = op.dilation_rate[0] * (op.kernel_size[0] - 1)
    edges: Any = (reach, 0)  # Keras' type is that of the default, one number
    x = make("pad", lambda: layers.ZeroPadding1D(edges, name=f"{op.name}_pad"))(x)
    return make("valid", lambda: rebuild(op, padding="valid"))(x)


def _separable(op: Any, make: Make, x: Any) -> Any:
    """Depthwise, then pointwise with the bias and the activation."""
    rank = op.rank
    depthwise_class, conv_class = (
        (layers.DepthwiseConv1D, layers.Conv1D) if rank == 1 else (layers.DepthwiseConv2D, layers.Conv2D)
    )
    shared = {"data_format": op.data_format, "dtype": op.dtype_policy}

    def depthwise() -> Any:
        strides, dilation = (op.strides[0], op.dilation_rate[0]) if rank == 1 else (op.strides, op.dilation_rate)
        new = depthwise_class(
            op.kernel_size if rank == 2 else op.kernel_size[0],
            strides=strides,
            padding=op.padding,
            depth_multiplier=op.depth_multiplier,
            dilation_rate=dilation,
            use_bias=False,
            name=f"{op.name}_depthwise",
            **shared,
        )
        return _with_kernel(new, x.shape, op.depthwise_kernel, op)

    def pointwise() -> Any:
        new = conv_class(op.filters, 1, use_bias=op.use_bias, name=op.name, **shared)
        return _with_kernel(new, (*x.shape[:-1], x.shape[-1] * op.depth_multiplier), op.pointwise_kernel, op)

    # Between the two stands a tensor of the file with a range of its own, which Keras never gives out.
    y = make("pointwise", pointwise)(make("depthwise", depthwise)(x))
    return activate(op.activation, make, y)


def _with_kernel(new: Any, shape: Any, kernel: Any, old: Any) -> Any:
    new.build(shape)
    copy_weights(old, new)  # the bias
    new.kernel.assign(kernel)
    return new


def _unsupported(node: Node) -> str | None:
    op = node.op
    if op.data_format == "channels_first":
        return "data_format='channels_first'; the kernels want channels last, so rebuild the model with channels_last"
    if getattr(op, "lora_enabled", False):
        return "LoRA is on; merge it into the kernel first"
    if isinstance(op, layers.Conv2DTranspose) and max(np.atleast_1d(op.dilation_rate)) > 1:
        return "a dilated transposed convolution has no kernel; use UpSampling2D and a dilated Conv2D"
    return None


def _conv2d(filters: int, size: Any, **kwargs: Any) -> Any:
    return lambda: layers.Conv2D(filters, size, **kwargs)


_CONV = Rule(
    layers=(layers.Conv1D, layers.Conv2D),
    operators=("CONV_2D",),
    weights=Weights(channel_axes=(-1,), input_axis=-2, rows=conv_rows, width="filters"),
    fuses=True,
    lower=_lower_conv,
    refuse=_unsupported,
    examples=(
        example(_conv2d(8, 3, padding="same"), shape=(9, 8, 3)),
        example(_conv2d(6, (3, 2), strides=2, activation="relu"), shape=(10, 9, 4)),
        example(_conv2d(4, 3, dilation_rate=2, padding="same"), shape=(10, 10, 2)),
        example(_conv2d(6, 3, groups=2), shape=(7, 7, 4)),
        example(_conv2d(6, 3, groups=3, dilation_rate=2, use_bias=False, activation="relu6"), shape=(9, 9, 6)),
        example(_conv2d(4, 1, strides=(2, 3), padding="same"), shape=(9, 8, 5)),
        example(lambda: layers.Conv1D(5, 3, strides=2, padding="same"), shape=(16, 4)),
        example(lambda: layers.Conv1D(6, 3, groups=2, activation="tanh"), shape=(16, 4)),
    ),
)

RULES = (
    Rule(
        layers=(layers.Conv1D, layers.Conv2D, layers.DepthwiseConv1D, layers.DepthwiseConv2D, layers.Conv2DTranspose),
        when=has_activation,
        expand=split_activation,
        examples=(
            example(_conv2d(4, 3, activation="elu"), shape=(6, 6, 3)),
            example(lambda: layers.Conv2DTranspose(3, 3, activation="leaky_relu"), shape=(4, 4, 2)),
        ),
    ),
    Rule(
        layers=(layers.Conv1D,),
        when=lambda op: op.padding == "causal",
        expand=_causal,
        examples=(
            example(lambda: layers.Conv1D(5, 3, dilation_rate=2, padding="causal"), shape=(16, 4)),
            example(lambda: layers.Conv1D(4, 4, strides=2, groups=2, padding="causal"), shape=(15, 4)),
        ),
    ),
    Rule(
        layers=(layers.SeparableConv1D, layers.SeparableConv2D),
        kernels=lambda _: {"depthwise_kernel": Geometry(None, -1, depthwise=True), "pointwise_kernel": CONV},
        expand=_separable,
        examples=(
            example(lambda: layers.SeparableConv2D(6, 3, activation="relu", padding="same"), shape=(8, 8, 4)),
            example(lambda: layers.SeparableConv1D(6, 3, strides=2, depth_multiplier=2), shape=(12, 4)),
        ),
    ),
    _CONV,
    Rule(
        layers=(layers.DepthwiseConv1D, layers.DepthwiseConv2D),
        operators=("DEPTHWISE_CONV_2D",),
        weights=Weights(channel_axes=(-2, -1), input_axis=-2, rows=depthwise_rows),
        fuses=True,
        lower=_lower_depthwise,
        refuse=_unsupported,
        examples=(
            example(lambda: layers.DepthwiseConv2D(3, padding="same"), shape=(8, 8, 6)),
            example(lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, strides=2), shape=(9, 9, 3)),
            example(lambda: layers.DepthwiseConv2D((2, 3), depth_multiplier=3, dilation_rate=2), shape=(9, 9, 2)),
            example(lambda: layers.DepthwiseConv1D(5, padding="same", activation="relu"), shape=(20, 6)),
        ),
    ),
    Rule(
        layers=(layers.Conv2DTranspose,),
        operators=("TRANSPOSE_CONV",),
        weights=Weights(channel_axes=(-2,), input_axis=-1, width="filters"),
        fuses=True,
        lower=_lower_transpose,
        refuse=_unsupported,
        examples=(
            example(lambda: layers.Conv2DTranspose(4, 3, strides=2, padding="same"), shape=(5, 6, 3)),
            example(lambda: layers.Conv2DTranspose(3, 2, strides=2), shape=(5, 5, 4)),
            example(lambda: layers.Conv2DTranspose(3, 3, strides=2, padding="same", output_padding=0), shape=(4, 5, 2)),
            example(lambda: layers.Conv2DTranspose(2, (3, 2), strides=3, output_padding=(1, 2)), shape=(3, 4, 3)),
        ),
    ),
)

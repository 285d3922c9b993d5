"""Three dimensions, and transposed convolutions in one, by 2-D kernels with the same integer sums.

No runtime has an int8 CONV_3D. A 3-D convolution makes each slice of its output by one CONV_2D over the depth slices
that it reaches, laid side by side as channels: the sum is the int32 sum of the 3-D kernel, rounded once.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kquant.ops.border import padded, padded_for_pool, refuse_channels_first
from kquant.ops.index import picked, reshaped
from kquant.ops.reduce import Extreme, Mean
from kquant.ops.rule import CONV, Geometry, Make, Rule, example

layers = keras.layers

TRANSPOSED = Geometry(-1, -2)  # [..., output, input] in Keras


def _as_channels(make: Make, x: Any, name: str) -> Any:
    """`[depth, height, width, channels]` as `[height, width, depth * channels]`."""
    _, depth, height, width, channels = x.shape
    x = make("to_last", lambda: layers.Permute((2, 3, 1, 4), name=f"{name}_to_last"))(x)
    return reshaped(make, x, (height, width, depth * channels), f"{name}_wide", "wide")


def _as_depth(make: Make, x: Any, depth: int, name: str) -> Any:
    """`[height, width, depth * channels]` as `[depth, height, width, channels]`."""
    _, height, width, channels = x.shape
    x = reshaped(make, x, (height, width, depth, channels // depth), f"{name}_deep", "deep")
    return make("to_first", lambda: layers.Permute((3, 1, 2, 4), name=name))(x)


def _same_padding(length: int, size: int, stride: int) -> tuple[int, int]:
    """What SAME adds before and after."""
    # The odd one goes behind, as TensorFlow pads.
    total = max((-(-length // stride) - 1) * stride + size - length, 0)
    return total // 2, total - total // 2


def _settings(op: Any) -> dict[str, Any]:
    """What a 2-D layer of one slice has in common with the 3-D one."""
    return {
        "strides": op.strides[1:],
        "padding": op.padding,
        "use_bias": op.use_bias,
        "activation": op.activation,
        "dtype": op.dtype_policy,
    }


def _with_kernel(new: Any, channels: int, kernel: np.ndarray, old: Any) -> Any:
    new.build((None, None, None, channels))
    new.kernel.assign(kernel)
    if new.use_bias:
        new.bias.assign(old.bias)
    new.trainable = old.trainable
    return new


def _rows(make: Make, wide: Any, depths: list[int], channels: int, name: str, key: str) -> Any:
    """The channels of these depth slices."""
    # In `_as_channels` the channels of depth d are d * channels and the ones behind.
    rows = [d * channels + c for d in depths for c in range(channels)]
    return picked(make, wide, rows, 3, name, key)


def _conv(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    refuse_channels_first(op)
    if op.groups != 1:
        raise ValueError(f"{op.name} (Conv3D): groups={op.groups}; use one Conv3D for each group and Concatenate.")
    size, stride, step = op.kernel_size[0], op.strides[0], op.dilation_rate[0]
    reach = (size - 1) * step + 1
    if op.padding == "same":
        # Along the depth by hand; height and width by the 2-D layer itself.
        widths = [_same_padding(x.shape[1], reach, stride), (0, 0), (0, 0), (0, 0)]
        x = padded(make, x, widths, f"{op.name}_pad", key="depth_")
    depth, channels = x.shape[1], x.shape[4]
    wide = _as_channels(make, x, op.name)

    def build() -> Any:
        settings = {**_settings(op), "dilation_rate": op.dilation_rate[1:], "name": f"{op.name}_slice"}
        # [d, h, w, in, out] -> [h, w, d * in, out], in the order of `_rows`: depth outside, channels inside.
        kernel = np.asarray(op.kernel).transpose(1, 2, 0, 3, 4)
        kernel = kernel.reshape(*kernel.shape[:2], size * channels, op.filters)
        return _with_kernel(layers.Conv2D(op.filters, op.kernel_size[1:], **settings), size * channels, kernel, op)

    slices = []
    for d in range((depth - reach) // stride + 1):
        depths = [d * stride + k * step for k in range(size)]
        # One layer for all slices: their weights are the same.
        slices.append(make("slice", build)(_rows(make, wide, depths, channels, f"{op.name}_in{d}", f"in{d}")))
    return _joined(make, slices, op.name)


def _joined(make: Make, slices: list[Any], name: str) -> Any:
    wide = slices[0]
    if len(slices) > 1:
        wide = make("join", lambda: layers.Concatenate(axis=3, name=f"{name}_slices"))(slices)
    return _as_depth(make, wide, len(slices), name)


def _transposed(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    """Output slice d adds what input slice i sends through tap k, for all `i * stride + k - before = d`.

    Slices with the same remainder by the stride share their taps, and so one Conv2DTranspose.
    """
    refuse_channels_first(op)
    size, stride, depth, channels = op.kernel_size[0], op.strides[0], x.shape[1], x.shape[4]
    if max(np.atleast_1d(op.dilation_rate)) > 1 or size < stride:
        raise ValueError(
            f"{op.name} (Conv3DTranspose): dilation and a kernel shorter than its stride have no integer form; use "
            "UpSampling3D and a Conv3D."
        )
    # `before` is what SAME takes off in front: half of what a convolution from `count` to `depth` slices pads, cut off.
    count = op.compute_output_shape(x.shape)[1]
    before = max((depth - 1) * stride + size - count, 0) // 2 if op.padding == "same" else 0
    reached = {d: _sources(d + before, stride, size) for d in range(count)}
    low = min(min(i) for i in reached.values())
    high = max(max(i) for i in reached.values())
    # Sources beyond the ends are zeros, so that every output slice has as many as its phase has taps.
    front, back = max(-low, 0), max(high - depth + 1, 0)
    x = padded(make, x, [(front, back), (0, 0), (0, 0), (0, 0)], f"{op.name}_pad", key="depth_")
    wide, slices = _as_channels(make, x, op.name), []
    for d, sources in reached.items():
        rows = _rows(make, wide, [i + front for i in sources], channels, f"{op.name}_in{d}", f"in{d}")
        taps = [d + before - i * stride for i in sources]
        # The smallest tap names the phase: it is the remainder by the stride, which tells all others.
        slices.append(make(f"phase{taps[-1]}", lambda taps=taps: _phase(op, taps, channels))(rows))
    return _joined(make, slices, op.name)


def _sources(position: int, stride: int, size: int) -> list[int]:
    """Input slices that reach a position, tap by tap in falling order."""
    last = position // stride
    taps = len(range(position % stride, size, stride))
    return list(range(last - taps + 1, last + 1))


def _phase(op: Any, taps: list[int], channels: int) -> Any:
    """The 2-D layer of the output slices that use these taps."""
    # [d, h, w, out, in]: the taps side by side along the input channels, as the slices that they meet.
    kernel = np.concatenate([np.asarray(op.kernel)[k] for k in taps], axis=-1)
    name = f"{op.name}_phase{taps[-1]}"
    settings = {**_settings(op), "output_padding": op.output_padding and op.output_padding[1:]}
    new = layers.Conv2DTranspose(op.filters, op.kernel_size[1:], name=name, **settings)
    return _with_kernel(new, len(taps) * channels, kernel, op)


def _transposed_1d(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    """Over a height of 1."""
    refuse_channels_first(op)
    if max(np.atleast_1d(op.dilation_rate)) > 1:
        raise ValueError(
            f"{op.name} (Conv1DTranspose): dilation has no counterpart in TRANSPOSE_CONV; use UpSampling1D and a "
            "dilated Conv1D."
        )
    x = make("to_2d", lambda: layers.Reshape((1, *x.shape[1:]), name=f"{op.name}_2d"))(x)

    def build() -> Any:
        settings = {**_settings(op), "strides": (1, op.strides[0]), "name": op.name}
        settings["output_padding"] = op.output_padding and (0, *op.output_padding)
        new = layers.Conv2DTranspose(op.filters, (1, op.kernel_size[0]), **settings)
        return _with_kernel(new, x.shape[-1], np.asarray(op.kernel)[None], op)

    y = make("conv", build)(x)
    return make("to_1d", lambda: layers.Reshape(y.shape[2:], name=f"{op.name}_1d"))(y)


def _pool(cls: type) -> Any:
    """Over height and width with the depth among the channels, then over the depth."""

    def expand(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
        refuse_channels_first(op)
        x = padded_for_pool(make, x) if cls is layers.MaxPooling2D else x
        (deep, *flat), (step, *stride) = op.pool_size, op.strides
        depth, channels = x.shape[1], x.shape[4]
        y = _as_channels(make, x, op.name)
        if flat != [1, 1] or stride != [1, 1]:
            y = make("pool_flat", lambda: cls(flat, strides=stride, padding=op.padding, name=f"{op.name}_flat"))(y)
        height, width = y.shape[1:3]
        if deep > 1 or step > 1:
            # Each place of the image is a line of depths: a pool of height 1 moves along it.
            y = reshaped(make, y, (height * width, depth, channels), f"{op.name}_lines", "lines")
            settings = {"strides": (1, step), "padding": op.padding, "name": f"{op.name}_along"}
            y = make("pool_deep", lambda: cls((1, deep), **settings))(y)
            depth = y.shape[2]
            y = reshaped(make, y, (height, width, depth * channels), f"{op.name}_back", "back")
        return _as_depth(make, y, depth, op.name)

    return expand


def _global(cls: Any) -> Any:
    def expand(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
        refuse_channels_first(op)
        return make("all", lambda: cls([1, 2, 3], op.keepdims, name=op.name))(x)

    return expand


def _conv3d(filters: int, size: Any, **kwargs: Any) -> Any:
    return lambda: layers.Conv3D(filters, size, **kwargs)


def _conv3d_t(filters: int, size: Any, **kwargs: Any) -> Any:
    return lambda: layers.Conv3DTranspose(filters, size, **kwargs)


RULES = (
    Rule(
        layers=(layers.Conv3D,),
        kernels=lambda _: {"kernel": CONV},
        expand=_conv,
        examples=(
            example(_conv3d(4, 3, padding="same", activation="relu"), shape=(4, 5, 6, 2)),
            example(_conv3d(3, (2, 3, 1), strides=(2, 1, 2), use_bias=False), shape=(5, 4, 6, 2)),
            example(_conv3d(3, 2, dilation_rate=2), shape=(5, 4, 6, 2)),
        ),
    ),
    Rule(
        layers=(layers.Conv3DTranspose,),
        kernels=lambda _: {"kernel": TRANSPOSED},
        expand=_transposed,
        examples=(
            example(_conv3d_t(3, 3, strides=2, padding="same"), shape=(2, 3, 4, 2)),
            example(_conv3d_t(2, (3, 2, 2), strides=(2, 1, 2), activation="relu"), shape=(2, 3, 3, 2)),
            example(_conv3d_t(2, 3, strides=2, padding="same", output_padding=(0, 1, 0)), shape=(2, 3, 3, 2)),
            example(_conv3d_t(2, 2, strides=2, output_padding=1), shape=(2, 2, 3, 2)),
        ),
    ),
    Rule(
        layers=(layers.Conv1DTranspose,),
        kernels=lambda _: {"kernel": TRANSPOSED},
        expand=_transposed_1d,
        examples=(
            example(lambda: layers.Conv1DTranspose(4, 3, strides=2, padding="same"), shape=(6, 3)),
            example(lambda: layers.Conv1DTranspose(3, 4, activation="tanh"), shape=(6, 3)),
            example(lambda: layers.Conv1DTranspose(3, 3, strides=3, padding="same", output_padding=1), shape=(5, 3)),
        ),
    ),
    Rule(
        layers=(layers.MaxPooling3D,),
        expand=_pool(layers.MaxPooling2D),
        examples=(example(lambda: layers.MaxPooling3D((2, 3, 2), strides=2, padding="same"), shape=(5, 6, 4, 2)),),
    ),
    Rule(
        layers=(layers.AveragePooling3D,),
        expand=_pool(layers.AveragePooling2D),
        examples=(
            example(lambda: layers.AveragePooling3D(2), shape=(4, 6, 4, 2)),
            example(lambda: layers.AveragePooling3D((3, 2, 1), strides=1, padding="same"), shape=(4, 3, 4, 2)),
        ),
    ),
    Rule(
        layers=(layers.GlobalAveragePooling3D,),
        expand=_global(Mean),
        examples=(example(lambda: layers.GlobalAveragePooling3D(), shape=(3, 4, 2, 5)),),
    ),
    Rule(
        layers=(layers.GlobalMaxPooling3D,),
        expand=_global(Extreme),
        examples=(example(lambda: layers.GlobalMaxPooling3D(keepdims=True), shape=(3, 4, 2, 5)),),
    ),
)

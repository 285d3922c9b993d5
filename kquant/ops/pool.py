"""Pooling and means. 1-D pools run as 2-D over a height of 1, global maxima as one window over everything."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kquant.core.checks import present
from kquant.core.program import Program
from kquant.graph.graph import Node
from kquant.ops.border import padded_for_pool
from kquant.ops.conv import window
from kquant.ops.function import function
from kquant.ops.real_steps import KEPT, padded
from kquant.ops.reduce import Mean
from kquant.ops.rule import Call, Make, Rule, computed, example
from kquant.ops.samples import why_mixed

layers = keras.layers


def _channels_last(op: Any) -> None:
    """Rules that reshape around a pool would otherwise pool over the wrong axis in silence."""
    if op.data_format == "channels_first":
        raise ValueError(
            f"{op.name} ({type(op).__name__}): data_format='channels_first'; rebuild the model with channels_last."
        )


def _pool_1d(cls: type) -> Any:
    """Reshape, pool in 2-D, reshape back."""

    def expand(op: Any, make: Make, x: Any) -> Any:
        _channels_last(op)
        x = padded_for_pool(make, x) if cls is layers.MaxPooling2D else x
        length, channels = x.shape[1:]
        x = make("to_2d", lambda: layers.Reshape((1, length, channels), name=f"{op.name}_2d"))(x)
        size, stride = (1, op.pool_size[0]), (1, op.strides[0])
        y = make("pool", lambda: cls(size, strides=stride, padding=op.padding, name=op.name))(x)
        return make("to_1d", lambda: layers.Reshape(y.shape[2:], name=f"{op.name}_1d"))(y)

    return expand


def _global_max(op: Any, make: Make, x: Any) -> Any:
    _channels_last(op)
    x = padded_for_pool(make, x)
    shape = x.shape
    if len(shape) == 3:
        x = make("to_2d", lambda: layers.Reshape((1, *shape[1:]), name=f"{op.name}_2d"))(x)
    y = make("pool", lambda: layers.MaxPooling2D(x.shape[1:3], name=op.name))(x)
    # The pool leaves two axes of 1, where a 1-D layer has one.
    kept = (1,) * (len(shape) - 2) if op.keepdims else ()
    return make("shape", lambda: layers.Reshape((*kept, shape[-1]), name=f"{op.name}_shape"))(y)


def _max_pool(op: Any, make: Make, x: Any) -> Any:
    """Over what minus infinity surrounds, where it does."""
    if (around := padded_for_pool(make, x)) is x:
        return None
    return make("pool", lambda: layers.MaxPooling2D(op.pool_size, op.strides, op.padding, name=op.name))(around)


def _global_average(op: Any, make: Make, x: Any) -> Any:
    """One window over everything is a mean: its kernel rescales, where a pool must keep its input's coarse grid."""
    if tuple(x.shape[1:3]) != tuple(op.pool_size) or op.data_format != "channels_last":
        return None
    if tuple(op.compute_output_spec(x).shape[1:3]) != (1, 1):  # padded, it moves on (InceptionV3 on small images)
        return None
    return make("mean", lambda: layers.GlobalAveragePooling2D(keepdims=True, name=op.name))(x)


def _masked_mean(op: Any, make: Make, x: Any, mask: Any = None, **_: Any) -> Any:
    """The mean of the real steps: that of all with 0 at the others, over the share of real ones; None without a mask.

    mean(m x) / mean(m) = sum(m x) / sum(m), which is what Keras computes; of no step at all it is 0, and NaN there.
    The share n / T is a mean of flags.
    """
    real = padded(op, make, mask) if isinstance(op, layers.GlobalAveragePooling1D) else None
    if real is None:
        return None
    _channels_last(op)
    kept = real.pick(x, KEPT)
    y = make("mean", lambda: layers.GlobalAveragePooling1D(keepdims=op.keepdims, name=op.name))(kept)
    # Of the mask itself, whose 0 and 1 are exact codes.
    share = make("share", lambda: Mean([1], keepdims=True, name=f"{op.name}_share"))(keras.tree.flatten(mask)[0])
    share = make("rank", lambda: layers.Reshape((1, 1), name=f"{op.name}_rank"))(share) if op.keepdims else share
    whole = function(make, "reciprocal_no_nan", share, f"{op.name}_whole", key="whole")
    return make("scaled", lambda: layers.Multiply(name=f"{op.name}_scaled"))([y, whole])


def _lower_pool(code: str) -> Any:
    def lower(program: Program, call: Call) -> None:
        op = call.op
        program.emit(
            code,
            call.inputs,
            call.output,
            padding=op.padding.upper(),
            fusedActivationFunction=call.activation,
            **window(op.strides, "stride{}"),
            filterHeight=op.pool_size[0],
            filterWidth=op.pool_size[1],
        )

    return lower


def _average(node: Node) -> tuple[str, dict[str, Any]]:
    op = node.op
    return "AVERAGE_POOL_2D", {"pool_size": list(op.pool_size), "strides": list(op.strides), "padding": op.padding}


def mean_axes(node: Node) -> tuple[list[int], bool]:
    """Axes (batch is 0) and keepdims of a global pooling layer or of `keras.ops.mean`."""
    rank = len(node.inputs[0].shape)
    if isinstance(node.op, keras.layers.Layer):
        return list(range(1, rank - 1)), node.op.keepdims
    axes = node.op.axis
    # Without an axis the batch is among them, which `_over_batch` refuses.
    axes = list(range(rank)) if axes is None else [axes] if isinstance(axes, int) else list(axes)
    return sorted(a % rank for a in axes), node.op.keepdims


def _mean(node: Node) -> tuple[str, dict[str, Any]]:
    axes, keepdims = mean_axes(node)
    return "MEAN", {"axes": axes, "keepdims": bool(keepdims)}


def _lower_mean(program: Program, call: Call) -> None:
    axes, keepdims = mean_axes(present(call.node, f"{call.op.name}: a mean of no call."))
    where = program.constant("axes", np.array(axes, np.int32))
    program.emit("MEAN", [call.inputs[0], where], call.output, keepDims=bool(keepdims))


def _over_batch(node: Node) -> str | None:
    axes, _ = mean_axes(node)
    return why_mixed("Mean", everything=node.op.axis is None) if 0 in axes else None


def _channels_first(node: Node) -> str | None:
    if getattr(node.op, "data_format", "channels_last") == "channels_first":
        return "data_format='channels_first'; rebuild the model with channels_last"
    return None


def _mean_refuse(node: Node) -> str | None:
    return _channels_first(node) or _over_batch(node)


class _ChannelMean(keras.layers.Layer):
    """`keras.ops.mean` inside a custom layer, to be unfolded."""

    def call(self, x: Any) -> Any:
        return keras.ops.mean(x, axis=(1, 2), keepdims=True)


RULES = (
    Rule(
        layers=(layers.MaxPooling1D,),
        expand=_pool_1d(layers.MaxPooling2D),
        examples=(
            example(lambda: layers.MaxPooling1D(2), shape=(12, 4)),
            example(lambda: layers.MaxPooling1D(3, strides=2, padding="same"), shape=(11, 4)),
        ),
    ),
    Rule(
        layers=(layers.AveragePooling1D,),
        expand=_pool_1d(layers.AveragePooling2D),
        examples=(example(lambda: layers.AveragePooling1D(3, padding="same"), shape=(12, 4)),),
    ),
    Rule(
        layers=(layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D),
        expand=_global_max,
        examples=(
            example(lambda: layers.GlobalMaxPooling2D(), shape=(6, 5, 4)),
            example(lambda: layers.GlobalMaxPooling1D(keepdims=True), shape=(9, 4)),
        ),
    ),
    Rule(
        layers=(layers.MaxPooling2D,),
        expand=_max_pool,
        operators=("MAX_POOL_2D",),
        output="same",
        lower=_lower_pool("MAX_POOL_2D"),
        refuse=_channels_first,
        examples=(example(lambda: layers.MaxPooling2D(3, strides=2, padding="same"), shape=(9, 8, 4)),),
    ),
    Rule(
        layers=(layers.AveragePooling2D,),
        expand=_global_average,
        operators=("AVERAGE_POOL_2D",),
        output="follows",
        arithmetic=_average,
        lower=_lower_pool("AVERAGE_POOL_2D"),
        refuse=_channels_first,
        examples=(
            example(lambda: layers.AveragePooling2D(2), shape=(8, 8, 4)),
            example(lambda: layers.AveragePooling2D((6, 5)), shape=(6, 5, 4)),
            example(lambda: layers.AveragePooling2D(3, strides=1, padding="same"), shape=(3, 3, 4)),
            example(lambda: layers.AveragePooling2D(3, strides=2, padding="same"), shape=(9, 8, 4)),
        ),
    ),
    Rule(
        layers=(layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D),
        operations=("Mean",),
        expand=_masked_mean,
        masks=True,
        operators=("MEAN",),
        arithmetic=_mean,
        lower=_lower_mean,
        refuse=_mean_refuse,
        examples=(
            example(lambda: layers.GlobalAveragePooling2D(), shape=(6, 5, 4)),
            example(lambda: layers.GlobalAveragePooling2D(keepdims=True), shape=(7, 7, 3)),
            example(lambda: layers.GlobalAveragePooling1D(), shape=(9, 4)),
            computed(lambda x: layers.GlobalAveragePooling1D()(layers.Masking()(keras.ops.relu(x - 0.5))), (9, 2)),
            example(lambda: _ChannelMean(), shape=(4, 4, 3)),
            computed(lambda x: keras.ops.mean(x, axis=-1), (4, 3, 5)),
            computed(lambda x: keras.ops.mean(x, axis=(1, 2, 3), keepdims=True), (4, 3, 5)),
            computed(lambda x: keras.ops.mean(x, axis=2), (4, 3, 5)),
        ),
    ),
)

"""Integer sums of convolutions by oneDNN's kernels for bytes, two to four times as fast as those for floats.

They are operations of TensorFlow in graphs, with weights that are constants there: those of `predict` and `evaluate`.

    bytes = steps - lowest                              uint8, lowest <= 0: the step of the lowest code
    sums  = conv(bytes, w) + bias + lowest sum(w)       int32

What lies beyond the border of an image counts as byte 0, so that kernels which reach there need `lowest = 0`, as behind
a ReLU. The kernels add the bias in float32, as layers do in `q(x)`. They are used where no sum of products can reach
2**24, on processors on which they give the integers that they should (`are_exact`): without instructions for such
products oneDNN sums them in 16 bits.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from kquant.core.beforehand import in_constants
from kquant.graph.tensorflow_private import is_traced_for_xla
from kquant.layers.carried import carried, carry

EXACT = 2**24  # float32 counts up to here
# Kernel and channels of what `are_exact` asks: each is another kernel of oneDNN's.
TRIED = (((3, 3, 16, 16), False), ((1, 1, 32, 16), False), ((3, 3, 1, 8), False), ((3, 3, 16, 1), True))


class Held(NamedTuple):
    """Steps as bytes: their difference to the lowest one, uint8[...], and that one."""

    values: tf.Tensor
    lowest: float

    def steps(self) -> tf.Tensor:
        """float32[...]."""
        values = tf.cast(self.values, tf.float32)
        return values + self.lowest if self.lowest else values


def lowest_step(low: int, zero_point: tf.Tensor) -> float | None:
    """The lowest step of an 8-bit grid, where a graph holds it as a constant; else None."""
    if not in_constants() or tf.executing_eagerly() or tf.is_symbolic_tensor(zero_point):
        return None
    return float(low) - float(zero_point)


def steps_of_bytes(values: tf.Tensor, lowest: float) -> tf.Tensor:
    """float32[...]: steps, which carry their bytes. Where everybody takes those, a graph leaves the steps out."""
    held = Held(values, lowest)
    return carry(held.steps(), "bytes", held)


def byte_sums(
    layer: keras.layers.Layer, steps: tf.Tensor, zero_point: tf.Tensor, codes: tf.Tensor, bias: tf.Tensor | None
) -> tf.Tensor | None:
    """The sums of a convolution; None where its own `call` has to make them.

    Args:
        layer: any.
        steps: float[...], those of its input, of codes of 8 bits at most.
        zero_point: of the input.
        codes: of the kernel, float32.
        bias: whole numbers, float32[channels], or None.

    Returns:
        int32[...].
    """
    lowest = lowest_step(-128, zero_point)
    constant = lowest is not None and not any(map(tf.is_symbolic_tensor, (codes, bias)))
    if not constant or is_traced_for_xla() or not _is_plain(layer):
        return None
    held = carried(steps, "bytes")
    lowest = lowest if held is None else held.lowest
    whole = codes.numpy().astype(np.int64)
    if lowest and layer.padding != "valid" and whole.shape[:2] != (1, 1):
        return None
    axes = (0, 1) if isinstance(layer, keras.layers.DepthwiseConv2D) else (0, 1, 2)
    added = (0.0 if bias is None else bias.numpy().astype(np.float64)) + lowest * whole.sum(axis=axes).reshape(-1)
    if 255 * np.abs(whole).sum(axis=axes).max() >= EXACT or (lowest and np.abs(added).max() >= EXACT):
        return None
    if not are_exact():
        return None
    values = tf.cast(steps - lowest if lowest else steps, tf.uint8) if held is None else held.values
    return _summed(values, whole, added, layer.strides[0], layer.padding, axes == (0, 1))


def _is_plain(layer: Any) -> bool:
    """True of convolutions that the kernels compute, by Keras' own `call`."""
    # one that inherits from them may call them otherwise
    if type(layer) is keras.layers.Conv2D:
        known = layer.groups == 1
    else:
        known = type(layer) is keras.layers.DepthwiseConv2D and layer.depth_multiplier == 1
    return (
        known
        and layer.activation in (None, keras.activations.linear)
        and layer.data_format == "channels_last"
        and tuple(layer.dilation_rate) == (1, 1)
        and layer.strides[0] == layer.strides[1]
    )


def _summed(
    values: tf.Tensor, codes: np.ndarray, added: np.ndarray, stride: int, padding: str, depthwise: bool
) -> tf.Tensor:
    """int32[...]: sums of bytes, uint8[...], in the graph that is being traced."""
    kernel = tf.raw_ops.QuantizedDepthwiseConv2DWithBias if depthwise else tf.raw_ops.QuantizedConv2DWithBias
    # A constant of the graph, as the kernels ask for it; of these 8 bits TensorFlow would make one number by number.
    held = tf.make_tensor_proto(codes.astype(np.int8))
    held.dtype = tf.qint8.as_datatype_enum
    # A byte and a code are as many units as they say, and so is the bias: it is taken to be in those of real numbers.
    ends = {"min_input": 0.0, "max_input": 255.0, "min_filter": -127.0, "max_filter": 127.0}
    sums, *_ = kernel(
        input=tf.bitcast(values, tf.quint8),
        filter=tf.constant(held),
        bias=tf.constant(added, tf.float32),
        strides=[1, stride, stride, 1],
        padding=padding.upper(),
        out_type=tf.qint32,
        **ends,
    )
    return tf.bitcast(sums, tf.int32)


@lru_cache(maxsize=1)
def are_exact() -> bool:
    """True where TensorFlow has the kernels, and their sums are the integers that float32 gives, of the largest bytes.

    Asked once a process, of the processor alone: other devices have none.
    """
    if tf.config.list_logical_devices("GPU"):
        return False
    cases = [_case(shape, depthwise) for shape, depthwise in TRIED]

    def summed(given: list[tf.Tensor]) -> list[tf.Tensor]:
        return [_summed(x, *case[1:]) for x, case in zip(given, cases, strict=True)]

    try:
        with tf.init_scope():
            # in a graph: eager operations are not given to oneDNN
            made = tf.function(summed, autograph=False)([tf.constant(values) for values, *_ in cases])
            return all(np.array_equal(s, _in_floats(*case)) for s, case in zip(made, cases, strict=True))
    except tf.errors.OpError:  # TensorFlow without oneDNN, or with its operations off
        return False


def _case(shape: tuple[int, ...], depthwise: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, str, bool]:
    """What `_summed` takes: bytes and codes of which many are the largest ones, and some random."""
    rng = np.random.default_rng(0)
    values = np.full((1, 5, 5, shape[2]), 255, np.uint8)
    values[:, 3:] = rng.integers(0, 256, values[:, 3:].shape)
    codes = rng.integers(-127, 128, shape)
    codes[:, :2] = 127
    added = rng.integers(-(2**20), 2**20, shape[2] if depthwise else shape[3]).astype(np.float64)
    return values, codes, added, 1, "same", depthwise


def _in_floats(
    values: np.ndarray, codes: np.ndarray, added: np.ndarray, stride: int, padding: str, depthwise: bool
) -> tf.Tensor:
    """float32[...]: `_summed` by TensorFlow's kernels for floats."""
    convolve: Any = tf.nn.depthwise_conv2d if depthwise else tf.nn.conv2d
    sums = convolve(np.float32(values), np.float32(codes), [1, stride, stride, 1], padding.upper())
    return sums + tf.constant(added, tf.float32)

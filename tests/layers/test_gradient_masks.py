"""What of a gradient passes a grid: TensorFlow's fused kernel says so, whatever kernel computes it here."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import kquant
from kquant.core.spec import QuantSpec
from kquant.layers.range_numbers import encoded
from kquant.layers.straight_through import rounded_through

SPECS = [QuantSpec(8), QuantSpec(4), QuantSpec(2), QuantSpec(8, True), QuantSpec(8, True, True), QuantSpec(16, True)]


def at_the_ends(low: Any, high: Any) -> np.ndarray:
    """Values up to four floats beyond and within each end, and what has no place on a grid."""
    ends = np.float32([low, high])
    near = [ends + np.float32(k) * np.spacing(np.abs(ends)) for k in range(-4, 5)]
    return np.concatenate([*near, np.float32([0.0, np.nan, np.inf, -np.inf])])


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.bits} bits, {spec.low} to {spec.high}")
@pytest.mark.parametrize("jit", [None, True], ids=["graph", "XLA"])
def test_gradients_are_those_of_the_fused_kernel_to_the_bit(spec: QuantSpec, jit: bool | None) -> None:
    rng, limits = np.random.default_rng(0), {"num_bits": spec.bits, "narrow_range": spec.narrow}

    @tf.function(jit_compile=jit)
    def both(y: tf.Tensor, upstream: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> tuple[tf.Tensor, ...]:
        numbers = encoded(low, high, spec)
        with tf.GradientTape() as tape:
            tape.watch(y)
            values = rounded_through(y, numbers, spec)
        made = tape.gradient(values, y, upstream)
        ends = tf.quantization.fake_quant_with_min_max_vars_gradient(upstream, y, *numbers[2:4], **limits)
        return made, ends[0], values, tf.quantization.fake_quant_with_min_max_vars(y, *numbers[2:4], **limits)

    passing = set()
    for trial in range(100):
        low, high = np.float32(rng.uniform(0, 1, 2) * 10.0 ** rng.uniform(-3, 3, 2) * (-1, 1))
        low, high = low * (trial % 3 > 0), high * (trial % 7 > 0)
        y = at_the_ends(*encoded(tf.constant([low]), tf.constant([high]), spec)[2:4])
        upstream = rng.normal(size=y.size).astype(np.float32)
        made, wanted, values, rounded = both(y, upstream, tf.constant([low]), tf.constant([high]))
        np.testing.assert_array_equal(made, wanted)
        np.testing.assert_array_equal(values, rounded)
        passing |= set(np.sign(np.abs(made.numpy())).tolist())
    assert passing == {0.0, 1.0}


def graph_of(q: keras.Model, x: Any) -> list[tf.Operation]:
    """Operations that a training step runs, forward and back to the input, but those in functions that are called."""

    @tf.function
    def gradients(x: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.cast(q(x, training=True), tf.float32) ** 2)
        return tape.gradient(loss, [x, *(v.value for v in q.trainable_variables)])

    waiting = [t.op for t in gradients.get_concrete_function(x).graph.outputs]
    reached: dict[str, tf.Operation] = {}
    while waiting:
        operation = waiting.pop()
        if operation.name not in reached:
            reached[operation.name] = operation
            waiting += [t.op for t in operation.inputs]
    return list(reached.values())


def test_a_graph_looks_for_what_is_clipped_in_one_pass() -> None:
    parts = [keras.layers.Dense(4, activation="relu"), keras.layers.Dense(3)]
    x = np.float32(np.random.default_rng(0).normal(size=(100, 6)))
    q = kquant.calibrate(kquant.quantize(keras.Sequential([keras.Input((6,)), *parts])), x, verbose=False)
    kinds = [operation.type for operation in graph_of(q, tf.constant(x))]
    assert "FakeQuantWithMinMaxVarsGradient" not in kinds
    assert kinds.count("QuantizeAndDequantizeV4Grad") == 3  # of the input, and of the outputs of both layers


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_a_mixed_policy_takes_the_gradient_of_a_depthwise_input_in_float32(policy: str) -> None:
    x = np.float32(np.random.default_rng(0).normal(size=(100, 6, 6, 3)))
    depthwise = keras.layers.DepthwiseConv2D(3, depth_multiplier=2, dtype=policy, name="depthwise")
    q = kquant.calibrate(kquant.quantize(keras.Sequential([keras.Input(x.shape[1:]), depthwise])), x, verbose=False)
    half = tf.as_dtype(depthwise.compute_dtype)
    sums = {op.type.rpartition("Native")[2]: op.outputs[0].dtype for op in graph_of(q, tf.constant(x)) if is_sum(op)}
    assert sums["BackpropFilter"] == half and sums["BackpropInput"] == tf.float32
    layer, given = q.get_layer("depthwise"), tf.cast(x, half)  # what a layer before would hand on
    kernel = layer.weights_on_grid()
    with tf.GradientTape(persistent=True) as tape:
        single = tf.cast(given, tf.float32)
        tape.watch([given, single])
        made = layer.ready(tf.constant([0.1, 0.0]), training=True)(given)[0]
        wanted = tf.nn.depthwise_conv2d(single, kernel, [1, 1, 1, 1], "VALID")
        plain = tf.nn.depthwise_conv2d(given, tf.cast(kernel, half), [1, 1, 1, 1], "VALID")
    assert made.dtype == half
    np.testing.assert_array_equal(to_float(made), to_float(plain + tf.cast(layer.bias_as_used(), half)))
    upstream = tf.cast(np.random.default_rng(1).normal(size=made.shape), half)
    slope = tape.gradient(wanted, single, tf.cast(upstream, tf.float32))
    np.testing.assert_array_equal(to_float(tape.gradient(made, given, upstream)), to_float(tf.cast(slope, half)))


def is_sum(operation: tf.Operation) -> bool:
    return operation.type.startswith("DepthwiseConv2d")


def to_float(values: tf.Tensor) -> tf.Tensor:
    """Of any 16-bit type, which NumPy does not compare."""
    return tf.cast(values, tf.float32)

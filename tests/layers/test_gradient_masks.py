"""What of a gradient passes a grid: TensorFlow's fused kernel says so, whatever kernel computes it here."""

from __future__ import annotations

import contextlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import kquant
from kquant.core.spec import QuantSpec
from kquant.layers.carried import retyped
from kquant.layers.modes import only
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
    assert "ReluGrad" not in kinds  # in the mask of the grid behind it


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("rectifier", [tf.nn.relu, tf.nn.relu6])
def test_past_a_rectifier_the_gradient_is_that_of_both_masks_to_the_bit(rectifier: Any, kind: str) -> None:
    spec = QuantSpec(8)

    @tf.function
    def both(x: tf.Tensor, upstream: tf.Tensor, high: tf.Tensor) -> tuple[tf.Tensor, ...]:
        numbers = encoded(tf.constant([0.0]), high, spec)
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            made = rectifier(x)
            y = tf.cast(made, tf.float32)
            values = rounded_through(y, numbers, spec)
            beside = made * tf.cast(values, made.dtype)  # whoever reads the rectifier's output too has its own mask
            plain = made * tf.cast(rounded_through(tf.identity(y), numbers, spec), made.dtype)
        found = [tape.gradient(v, x, tf.cast(upstream, v.dtype)) for v in (values, beside, plain)]
        ends = tf.quantization.fake_quant_with_min_max_vars_gradient(upstream, y, *numbers[2:4])
        return *found, tape.gradient(made, x, tf.cast(ends[0], made.dtype))

    rng, dtype = np.random.default_rng(0), tf.as_dtype(kind)
    for high in (0.5, 5.99, 6.0, 6.02, 7.0):
        grid = encoded(tf.constant([0.0]), tf.constant([high]), spec)
        near = np.concatenate([at_the_ends(-1e-6, grid.high), at_the_ends(-1.0, 6.0), at_the_ends(0.0, 1e-30)])
        real = np.concatenate([near[np.isfinite(near)], rng.normal(size=100, scale=4), [6.0 - 1e-12]])
        x = tf.cast(real, dtype)  # of 64 bits what float32 rounds to 6 has a gradient
        upstream = tf.constant(rng.normal(size=len(real)), tf.float32)
        made, beside, plain, wanted = (tf.cast(v, tf.float64) for v in both(x, upstream, tf.constant([high])))
        np.testing.assert_array_equal(made, wanted)
        np.testing.assert_array_equal(beside, plain)
        assert {0.0, 1.0} == set(np.sign(np.abs(made.numpy())).tolist())


def test_what_infers_keeps_the_gradient_of_a_rectifier_in_a_graph() -> None:
    parts = [keras.layers.Dense(4), keras.layers.ReLU(name="r"), keras.layers.Dense(3)]
    x = tf.constant(np.random.default_rng(0).normal(size=(100, 6)), tf.float32)
    q = kquant.calibrate(kquant.quantize(keras.Sequential([keras.Input((6,)), *parts])), x, verbose=False)
    both = keras.Model(q.inputs, [q.get_layer("r").output, q.output])

    def slope(x: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            made, y = both(x, training=False)
        return tape.gradient(y, made)

    for names in (None, [layer.name for layer in q.layers]):
        with contextlib.nullcontext() if names is None else only(names):
            found, wanted = tf.function(slope)(x), slope(x)
        assert found is not None and np.any(wanted != 0.0)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_two_steps_in_a_graph_and_eagerly_leave_the_same_model() -> None:
    rng = np.random.default_rng(0)
    x, y = np.float32(rng.normal(size=(64, 6, 6, 3))), np.float32(rng.normal(size=(64, 3)))
    parts = [keras.layers.Conv2D(4, 3, activation="relu"), keras.layers.Conv2D(4, 3), keras.layers.ReLU(6.0)]
    given = [keras.Input((6, 6, 3)), *parts, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)]
    q = kquant.calibrate(kquant.quantize(keras.Sequential(given)), x, verbose=False)
    start, left = q.get_weights(), []
    for eagerly in (True, False):
        q.set_weights(start)
        q.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=eagerly)
        q.fit(x, y, batch_size=32, epochs=1, shuffle=False, verbose=0)
        left.append(q.get_weights())
    for eager, traced in zip(*left, strict=True):
        np.testing.assert_allclose(eager, traced, rtol=1e-5, atol=1e-6)  # sums of convolutions in another order
    assert any(np.any(a != b) for a, b in zip(left[0], start, strict=True))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_a_mixed_policy_takes_the_gradient_of_a_depthwise_input_in_float32(policy: str) -> None:
    x = np.float32(np.random.default_rng(0).normal(size=(100, 6, 6, 3)))
    depthwise = keras.layers.DepthwiseConv2D(3, depth_multiplier=2, dtype=policy, name="depthwise")
    q = kquant.calibrate(kquant.quantize(keras.Sequential([keras.Input(x.shape[1:]), depthwise])), x, verbose=False)
    half = tf.as_dtype(depthwise.compute_dtype)
    sums = {op.type.rpartition("Native")[2]: op.outputs[0].dtype for op in graph_of(q, tf.constant(x)) if is_sum(op)}
    assert sums["BackpropFilter"] == half and sums["BackpropInput"] == tf.float32
    layer, given = q.get_layer("depthwise"), tf.cast(x, half)  # what a layer before would hand on
    kernel, bias = layer.weights_on_grid(), layer.layer.bias.value
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

    def beside_another(values: tf.Tensor, upstream: tf.Tensor) -> list[tf.Tensor]:
        """Gradients for what an encoding hands on to this layer and another one, and for what it was in float32."""
        with tf.GradientTape() as tape:
            tape.watch(values)
            held = retyped(values, half.name)
            again = layer.ready(tf.constant([0.1, 0.0]), training=True)(held)[0]
            total = tf.reduce_sum(again * upstream) + 2 * tf.reduce_sum(held)
        return tape.gradient(total, [held, values])

    # In a graph what was rounded to 16 bits for this layer has the gradient of what it was; eagerly it has its own.
    of_rounded, of_single = tf.function(beside_another)(single, upstream)
    np.testing.assert_array_equal(to_float(of_rounded), np.full(x.shape, 2.0))
    np.testing.assert_array_equal(of_single, slope + 2.0)
    of_rounded, of_single = beside_another(single, upstream)
    np.testing.assert_array_equal(to_float(of_rounded), to_float(tf.cast(slope, half) + 2))
    np.testing.assert_array_equal(of_single, to_float(of_rounded))
    added = tape.gradient(made, bias, upstream)  # summed in float32, where 16 bits lose all but the first of many
    np.testing.assert_allclose(added, np.float64(to_float(upstream)).sum(axis=(0, 1, 2)), rtol=1e-5, atol=1e-4)


def is_sum(operation: tf.Operation) -> bool:
    return operation.type.startswith("DepthwiseConv2d")


def to_float(values: tf.Tensor) -> tf.Tensor:
    """Of any 16-bit type, which NumPy does not compare."""
    return tf.cast(values, tf.float32)

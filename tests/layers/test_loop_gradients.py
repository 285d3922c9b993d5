"""Gradients of a loop whose ranges learn, against its steps one after the other in float64 by the formulas of LSQ+."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import kquant
from kquant.graph.keras_private import every_layer, recorded_calls
from kquant.layers.compressed import Compressed
from kquant.layers.loop import Loop
from kquant.layers.nodes import FakeQuant

STEPS, SAMPLES, UNITS = 5, 8, 4
RNG = np.random.default_rng(0)
X = np.float32(RNG.normal(size=(64, STEPS, 3)))
UPSTREAM = np.float32(RNG.normal(size=(SAMPLES, 1, UNITS)))


@pytest.fixture(scope="module")
def given() -> tuple[Loop, list[Any], list[Any]]:
    """A loop whose ranges clip at both ends, and what it is called with."""
    keras.utils.set_random_seed(1)
    rows = [keras.Input((STEPS, 3)), keras.layers.GRU(UNITS), keras.layers.Dense(2)]
    recipe = {"name": "learned", "training": {"ranges": "learned"}}
    q = kquant.calibrate(kquant.quantize(keras.Sequential(rows), recipe), X, verbose=False)
    found: list[Any] = [layer for layer in every_layer(q) if isinstance(layer, Loop)]
    [loop] = found
    for layer in every_layer(loop.step):
        if isinstance(layer, FakeQuant) and layer.has_range:
            layer.set_range(0, 0.5 * float(layer.low[0]), 0.7 * float(layer.high[0]), exact=True)
    [call] = [call for call in recorded_calls(q) if call.operation is loop]
    arguments: Any = call.arguments
    tensors = keras.tree.flatten((arguments.args, arguments.kwargs))
    made = keras.Model(q.inputs[0], [t for t in tensors if isinstance(t, keras.KerasTensor)])(X[:SAMPLES])
    xs = len(loop.ports[0])
    return loop, made[:xs], made[xs:]


def by_formulas(y: tf.Tensor, low: tf.Variable, high: tf.Variable, spec: Any) -> tf.Tensor:
    """Gradients of both ends, moved outwards by one."""
    steps = spec.high - spec.low

    @tf.custom_gradient
    def quantized(y: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> Any:
        scale = (high - low) / steps
        zero = tf.round(spec.low - low / scale)
        values = (tf.clip_by_value(tf.round(y / scale) + zero, float(spec.low), float(spec.high)) - zero) * scale
        below, above = y < (spec.low - zero) * scale, y > (spec.high - zero) * scale

        def gradient(upstream: tf.Tensor) -> Any:
            inside = tf.where(below | above, tf.zeros_like(upstream), upstream)
            error = tf.reduce_sum(inside * (values - y)) / (scale * steps)
            under, over = (tf.reduce_sum(tf.where(part, upstream, 0.0)) for part in (below, above))
            return inside, error - under, error + over

        return values, gradient

    return quantized(y, low, high)


def unrolled(loop: Any, xs: list[Any], ends: dict[Any, Any], kernels: dict[Any, Any]) -> tf.Tensor:
    """The last state, float64."""
    ports = loop.ports
    states = [tf.zeros((SAMPLES, 1, t.shape[-1]), tf.float64) for t in ports[2]]
    for t in range(STEPS):
        values = {id(p): tf.cast(x, tf.float64)[:, t : t + 1] for p, x in zip(ports[0], xs, strict=True)}
        values |= {id(p): state for p, state in zip(ports[2], states, strict=True)}
        for node in loop.nodes:
            args = keras.tree.map_structure(lambda v, known=values: known.get(id(v), v), list(node.args))
            if isinstance(node.op, FakeQuant):
                learns = node.op in ends and not node.kwargs.get("peek")
                made = [by_formulas(args[0], *ends[node.op], node.op.spec) if learns else args[0]]
            elif isinstance(node.op, Compressed):
                kernel, grid = kernels[node.op], tf.cast(node.op.weights_on_grid(), tf.float64)
                made = [args[0] @ (kernel + tf.stop_gradient(grid - kernel))]
                if node.op.layer.bias is not None:
                    made = [made[0] + tf.cast(node.op.layer.bias, tf.float64)]
            else:
                made = keras.tree.flatten(node.op.call(*args))
            values.update({id(t): y for t, y in zip(node.outputs, made, strict=False)})
        states = [values[id(end)] for end in loop.ends[0]]
    return states[loop.results[0].state]


@pytest.mark.parametrize("traced", [False, True])
def test_gradients_are_those_of_the_steps_in_float64(given: Any, traced: bool) -> None:
    loop, xs, encodings = given
    ops = list(dict.fromkeys(node.op for node in loop.nodes))
    learning = [op for op in ops if isinstance(op, FakeQuant) and op.has_range]
    weighted = [op for op in ops if isinstance(op, Compressed)]
    held = [v.value for v in (*(op.stretch for op in learning), *(op.layer.kernel for op in weighted))]

    def run() -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(loop(xs, encodings, training=True)[0] * UPSTREAM)
        return tape.gradient(loss, held)

    made: Any = (tf.function(run, autograph=False) if traced else run)()
    low, high = (
        {op: tf.Variable(float(getattr(op, n)[0]), dtype="float64") for op in learning} for n in ("low", "high")
    )
    kernels: dict[Any, Any] = {op: tf.Variable(tf.cast(op.layer.kernel, tf.float64)) for op in weighted}
    with tf.GradientTape() as tape:
        last: Any = unrolled(loop, xs, {op: (low[op], high[op]) for op in learning}, kernels)
        loss = tf.reduce_sum(last * tf.cast(UPSTREAM, tf.float64))
    by_ends: Any = tape.gradient(loss, [list(low.values()), list(high.values()), list(kernels.values())])
    nodes = [node for node in loop.nodes if isinstance(node.op, FakeQuant)]
    sizes = {node.op: STEPS * int(np.prod(node.args[0].shape[1:])) for node in nodes}
    for n, op in enumerate(learning):
        # LSQ, section 2.2, for each sample; `stretch` is relative to the width
        unit = float(high[op] - low[op]) / np.sqrt(sizes[op] * (op.spec.high - op.spec.low))
        wanted = unit * np.array([by_ends[0][n], by_ends[1][n]])
        np.testing.assert_allclose(made[n], wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max(), err_msg=op.name)
    for ours, theirs in zip(made[len(learning) :], by_ends[2], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)

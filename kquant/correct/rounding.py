"""The optimization inside AdaRound: which weights of a matrix to round up, compiled as one loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from kquant.core.checks import static_length
from kquant.correct.reconstruction import CHUNK_BYTES, Matrix

ZETA, GAMMA = 1.1, -0.1  # the sigmoid is stretched to these and cut to 0..1
SMALLEST_NOISE = 1e-12
ADAM = (0.9, 0.999, 1e-8)
LOOK = 50  # steps from one look at what is settled to the next
UNSETTLED = 1e-3  # of all weights may be between 0 and 1 still, when a descent ends before its last step
# A depthwise kernel has few unknowns in a channel, and each costs a pass over rows: fewer of them in a step.
DEPTHWISE_SHARE = 4


@dataclass(frozen=True)
class Examples:
    """Rows of one call of a layer.

    Attributes:
        rows: float32[n, groups, k], inputs in the quantized model, in random order; an array or a tensor.
        outputs: float32[n, channels], what the float model makes of them, with the fused activation.
        activation: what the operator fuses, or None.
    """

    rows: Any
    outputs: np.ndarray
    activation: Callable[[Any], Any] | None


@dataclass(frozen=True)
class Settings:
    """How the rounding of one layer is optimized; see `kquant.adaround`."""

    iterations: int
    learning_rate: float
    row_batch: int
    warm_start: float
    beta: tuple[float, ...]
    regularisation: float


def rectified_sigmoid(alpha: tf.Tensor) -> tf.Tensor:
    """`h(a) = clip(sigmoid(a) (zeta - gamma) + gamma, 0, 1)`. Source: Nagel et al., arXiv:2004.10568, (23)."""
    return tf.clip_by_value(tf.sigmoid(alpha) * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)


def inverse(h: np.ndarray) -> np.ndarray:
    """The `alpha` with `rectified_sigmoid(alpha) = h`, for h in 0..1."""
    return -np.log((ZETA - GAMMA) / (h - GAMMA) - 1.0)


def products(rows: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """float32[n, groups * m] of float32[n, groups, k] and float32[groups, k, m]."""
    groups, k, m = weights.shape.as_list()
    if groups == 1:
        return tf.matmul(tf.reshape(rows, (-1, k)), weights[0])
    # A depthwise kernel: one column for each group, so a sum of products, not many matrices of one column.
    if m == 1:
        return tf.reduce_sum(rows * weights[:, :, 0], axis=-1)
    return tf.reshape(tf.einsum("ngk,gkm->ngm", rows, weights), (-1, int(groups or 1) * int(m or 1)))


def applied(activation: Callable[[Any], Any] | None, y: tf.Tensor) -> tf.Tensor:
    """What the operator fuses, in float32 whatever policy the layer has."""
    return tf.cast(y if activation is None else activation(y), tf.float32)


def round_matrix(
    matrix: Matrix,
    bias: np.ndarray,
    examples: Sequence[Examples],
    settings: Settings,
    compiled: dict[Any, Callable[..., tf.Tensor]] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Codes that reproduce the outputs, and the h that they were made of.

    Args:
        matrix: the kernel.
        bias: float32[channels].
        examples: of each call of the layer.
        settings: of the descent.
        compiled: descents of other layers, which serve again where shapes and activations are the same; it grows.

    Returns:
        float32[groups, k, m], codes; and h, likewise.
    """
    steps = matrix.weights / matrix.scale
    floor = np.floor(steps)
    # h begins at the fraction itself, so that the first weights are the float ones.
    alpha = tf.constant(inverse((steps - floor).astype(np.float32)))
    # Not `tf.constant`, which takes the room of two copies.
    tables = [(tf.convert_to_tensor(e.rows), tf.convert_to_tensor(e.outputs)) for e in examples]
    below, scale, shift = (tf.constant(np.float32(v)) for v in (floor, matrix.scale, bias))
    problem = _Problem(below, scale, shift, _noise(matrix, [rows for rows, _ in tables]))
    activations, codes = [e.activation for e in examples], (matrix.low, matrix.high)

    def run(alpha: tf.Tensor, problem: _Problem, tables: Any) -> tf.Tensor:
        def loss(a: tf.Tensor, i: tf.Tensor) -> tf.Tensor:
            return _loss(a, i, problem, tables, activations, codes, settings)

        return _descend(alpha, loss, settings)

    known = {} if compiled is None else compiled
    key = floor.shape, codes, settings, tuple((e.rows.shape, _kind(e.activation)) for e in examples)
    if key not in known:
        known[key] = _compiled(run, alpha, problem, tables)
    h = rectified_sigmoid(known[key](alpha, problem, tables)).numpy()
    # The penalty has brought nearly all to 0 or 1; the rest go to the nearer.
    return np.clip(floor + (h >= 0.5), matrix.low, matrix.high), h


def _kind(activation: Callable[[Any], Any] | None) -> Any:
    """Equal for activations that compute the same, as far as their settings tell."""
    if isinstance(activation, keras.layers.Layer) and not activation.weights:
        return type(activation), repr({key: v for key, v in activation.get_config().items() if key != "name"})
    return activation  # itself: a function is like no other


def _compiled(run: Callable[..., tf.Tensor], *given: Any) -> Callable[..., tf.Tensor]:
    """`run` by XLA, for tensors like those given."""
    # Of one trace for each layer TensorFlow would say that it traces too often; a concrete function is made on purpose.
    return tf.function(run, autograph=False, jit_compile=True).get_concrete_function(*given)


class _Problem(NamedTuple):
    """Tensors of one layer: floor and scale like the matrix, bias and noise for each channel."""

    floor: tf.Tensor
    scale: tf.Tensor
    bias: tf.Tensor
    noise: tf.Tensor


def _noise(matrix: Matrix, tables: Sequence[tf.Tensor]) -> tf.Tensor:
    """What rounding to nearest does to each channel, mean square before the activation: float32[channels]."""
    wrong = tf.constant(np.float32(matrix.nearest() * matrix.scale - matrix.weights))
    errors = [_mean_square(rows, wrong) for rows in tables]
    return tf.maximum(tf.reduce_mean(tf.stack(errors), axis=0), SMALLEST_NOISE)


def _mean_square(rows: tf.Tensor, wrong: tf.Tensor) -> tf.Tensor:
    """Of the products of all rows, some at a time: those of a depthwise kernel are as large as the rows."""
    count = static_length(rows, 0)
    many = max(1, CHUNK_BYTES // (4 * static_length(rows, 1) * static_length(rows, 2)))
    parts = [rows[start : start + many] for start in range(0, count, many)]
    sums = [tf.reduce_mean(products(part, wrong) ** 2, axis=0) * (len(part) / count) for part in parts]
    return sums[0] if len(sums) == 1 else tf.add_n(sums)


def _loss(
    a: tf.Tensor,
    i: tf.Tensor,
    problem: _Problem,
    tables: Sequence[tuple[tf.Tensor, tf.Tensor]],
    activations: Sequence[Any],
    codes: tuple[int, int],
    settings: Settings,
) -> tf.Tensor:
    """`sum over channels of err_c / noise_c + regularisation * mean_k penalty_kc` on a fresh batch of rows."""
    h = rectified_sigmoid(a)
    # Clipped as the codes will be: beyond the grid up or down is no choice, and gets no gradient.
    soft = tf.clip_by_value(problem.floor + h, float(codes[0]), float(codes[1])) * problem.scale
    total = tf.zeros(())
    for (rows, outputs), activation in zip(tables, activations, strict=True):
        count, depthwise = static_length(rows, 0), int(a.shape[0] or 1) > 1 and a.shape[2] == 1
        wanted = max(1, settings.row_batch // (DEPTHWISE_SHARE if depthwise else 1))
        many = min(wanted, count)
        # The rows lie in random order: one batch after the other, and where they end from a little further on.
        start = tf.math.floormod(i * many, count - many + 1)
        y = products(tf.slice(rows, [start, 0, 0], [many, *rows.shape[1:]]), soft) + problem.bias
        y = applied(activation, y)
        target = tf.slice(outputs, [start, 0], [many, outputs.shape[1]])
        # In units of what rounding to nearest costs the channel: 1 for all alike, whatever the scale of its outputs.
        total += tf.reduce_sum(tf.reduce_mean((y - target) ** 2, axis=0) / problem.noise)
    return total / len(tables) + settings.regularisation / int(a.shape[1] or 1) * _penalty(h, i, settings)


def _descend(alpha: tf.Tensor, loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], settings: Settings) -> tf.Tensor:
    """Adam, until the last step or until all is settled. Source: Kingma and Ba, arXiv:1412.6980, algorithm 1."""
    first, second, small = ADAM

    def step(i: tf.Tensor, a: tf.Tensor, m: tf.Tensor, v: tf.Tensor) -> tuple[tf.Tensor, ...]:
        with tf.GradientTape() as tape:
            tape.watch(a)
            value = loss(a, i)
        g = tf.convert_to_tensor(tape.gradient(value, a))
        t = tf.cast(i + 1, tf.float32)
        m, v = first * m + (1 - first) * g, second * v + (1 - second) * g * g
        # The bias of both averages in one factor (section 2 there).
        rate = settings.learning_rate * tf.sqrt(1.0 - tf.pow(second, t)) / (1.0 - tf.pow(first, t))
        return i + 1, a - rate * m / (tf.sqrt(v) + small), m, v

    def going_on(i: tf.Tensor, a: tf.Tensor, *_: tf.Tensor) -> tf.Tensor:
        h = rectified_sigmoid(a)
        between = tf.reduce_mean(tf.cast(tf.logical_and(h > 0.0, h < 1.0), tf.float32))
        return tf.logical_and(i < settings.iterations, between > UNSETTLED)

    def steps(i: tf.Tensor, *state: tf.Tensor) -> tuple[tf.Tensor, ...]:
        end = tf.minimum(i + LOOK, settings.iterations)
        return tf.while_loop(lambda i, *_: i < end, step, (i, *state))

    zeros = tf.zeros_like(alpha)
    return tf.while_loop(going_on, steps, (tf.constant(0), alpha, zeros, zeros))[1]


def _penalty(h: tf.Tensor, i: tf.Tensor, settings: Settings) -> tf.Tensor:
    """`sum 1 - |2h - 1|^beta`, beta falling along a cosine; nothing during the warm start. Nagel et al., (24)."""
    warm = settings.warm_start * settings.iterations
    gone = tf.clip_by_value((tf.cast(i, tf.float32) - warm) / max(settings.iterations - warm, 1.0), 0.0, 1.0)
    high, low = settings.beta
    beta = low + 0.5 * (high - low) * (1.0 + tf.cos(np.pi * gone))
    away = tf.maximum(tf.abs(2.0 * h - 1.0), 1e-6)  # the power's gradient at 0
    return tf.where(tf.cast(i, tf.float32) < warm, 0.0, tf.reduce_sum(1.0 - away**beta))

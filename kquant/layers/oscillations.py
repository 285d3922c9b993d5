"""Weights that jump between two codes: pulled to the middle of their step, or frozen where they settle on average.

    dampening   loss = weight * sum (s q(w / s) - clip(w, s lowest, s highest))^2      the left term without gradient
    freezing    o_t = code changed, against the direction of its last change
                f_t = m o_t + (1 - m) f_(t-1)          a_t = m code_t + (1 - m) a_(t-1)
                f_t > threshold: the code is round(a_t) from now on

Weights that share the values of a codebook are not frozen: the code of one would leave that of its value. A weight of
0, such as a mask makes, has code 0: what was counted of it is forgotten, and it is frozen no more.

Source: Nagel et al., "Overcoming Oscillations in Quantization-Aware Training", arXiv:2203.11086, sections 2.3, 4.1, 4.2
and algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from kquant.core.messages import warn

STATE = ("previous", "direction", "frequency", "average", "frozen")


@keras.saving.register_keras_serializable(package="kquant")
class Freezing(keras.layers.Layer):
    """The codes of a kernel over training, and which of them are frozen.

    Args:
        threshold: frequency above which a weight is frozen.
        momentum: of the frequency and of the mean code.
    """

    def __init__(self, threshold: float, momentum: float, **kwargs: Any) -> None:
        kwargs["dtype"] = "float32"
        super().__init__(autocast=False, **{k: v for k, v in kwargs.items() if k != "autocast"})
        self.threshold, self.momentum = float(threshold), float(momentum)

    def build(self, shape: Sequence[int]) -> None:
        """Nothing is frozen at first; a step count of 0 says that no codes were seen."""
        for name in STATE:
            setattr(self, name, self._state(name, tuple(shape)))
        self.seen = self._state("seen", ())
        self.built = True

    def _state(self, name: str, shape: tuple[int, ...]) -> Any:
        kind = {"trainable": False, "aggregation": "only_first_replica", "autocast": False}
        return self.add_weight(name=name, shape=shape, initializer="zeros", **kind)

    def advance(self, codes: tf.Tensor, active: tf.Tensor, zeros: tf.Tensor | None = None) -> None:
        """One training step.

        Args:
            codes: float32 like the kernel, what rounding gives now.
            active: bool[]; nothing is counted while False.
            zeros: bool like the kernel, weights that are 0; None: there are none.
        """
        previous, direction, frequency, average, frozen = (tf.convert_to_tensor(getattr(self, name)) for name in STATE)
        first = tf.convert_to_tensor(self.seen) < 0.5
        # A frozen weight keeps the code that it got, so that it does not count as jumping.
        codes = tf.where(frozen > 0.5, previous, codes)
        # Of the direction only its sign is kept, and through steps without a change: a jump back is one, however late.
        change = tf.where(first, tf.zeros_like(codes), tf.sign(codes - previous))
        jumped = tf.cast(change * direction < 0.0, tf.float32)
        rate = tf.constant(self.momentum)
        frequency = rate * jumped + (1.0 - rate) * frequency
        average = tf.where(first, codes, rate * codes + (1.0 - rate) * average)
        freezes = tf.logical_and(frequency > self.threshold, frozen < 0.5)
        new = {
            # What `call` holds the weight at from now on: its code on average, not the one that it happens to have.
            "previous": tf.where(freezes, tf.round(average), codes),
            "direction": tf.where(change != 0.0, change, direction),
            "frequency": frequency,
            "average": average,
            "frozen": tf.where(freezes, tf.ones_like(frozen), frozen),
        }
        for name, value in new.items():
            variable = getattr(self, name)
            value = value if zeros is None else tf.where(zeros, tf.zeros_like(value), value)
            # A choice of values, not of code: `active` is known when the graph runs.
            variable.assign(tf.where(active, value, tf.convert_to_tensor(variable)))
        self.seen.assign(tf.where(active, 1.0, self.seen))

    def call(self, codes: tf.Tensor, zeros: tf.Tensor | None = None) -> tf.Tensor:
        """The codes with those that are frozen, which have no gradient; but not of weights that are 0 by now."""
        frozen = tf.convert_to_tensor(self.frozen) > 0.5
        frozen = frozen if zeros is None else tf.logical_and(frozen, tf.logical_not(zeros))
        return tf.where(frozen, tf.convert_to_tensor(self.previous), codes)

    def forget(self) -> None:
        """Other weights: nothing was seen of them."""
        for variable in self.variables:
            variable.assign(tf.zeros_like(variable))

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        return {**super().get_config(), "threshold": self.threshold, "momentum": self.momentum}


def warn_unfrozen(layers: Iterable[keras.layers.Layer], verb: str) -> None:
    """Name layers where `freeze` is asked for and a codebook shares values: a value's weights stay together.

    Args:
        layers: of a quantized model, at any depth.
        verb: that was called, for the message.
    """
    names = [layer.name for layer in layers if getattr(layer, "unfrozen", False)]
    if names:
        warn(
            f"{verb}: the weights of {', '.join(names)} share values, so oscillations.freeze freezes none of them: a "
            "code held for one weight would leave the others of its value. oscillations.dampen acts on them."
        )


def dampening(
    weights: tf.Tensor, quantized: tf.Tensor, scale: tf.Tensor, lowest: tf.Tensor, highest: tf.Tensor
) -> tf.Tensor:
    """Sum of squared distances of the weights to the middle of their steps; clipped ones have none: float32[].

    Args:
        weights: float32[...], that train.
        quantized: like them, on the grid.
        scale: broadcasts against them.
        lowest: code.
        highest: code.

    Example:
        >>> w, q, s = tf.constant([0.4, 1.0, 9.0]), tf.constant([0.0, 1.0, 7.0]), tf.constant([1.0])
        >>> round(float(dampening(w, q, s, tf.constant(-7.0), tf.constant(7.0))), 3)
        0.16
    """
    scale = tf.stop_gradient(scale)
    inside = tf.clip_by_value(weights, scale * lowest, scale * highest)
    return tf.reduce_sum(tf.square(tf.stop_gradient(quantized) - inside))


def risen(steps: tf.Tensor, over: int | None) -> tf.Tensor:
    """0 to 1 by half a cosine over so many steps; 1 without them: float32[]."""
    if over is None:
        return tf.constant(1.0)
    return 0.5 - 0.5 * tf.cos(math.pi * tf.minimum(steps / float(over), 1.0))

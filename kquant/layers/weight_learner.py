"""`WeightLearner`: what a layer keeps where its weights train otherwise than straight through on their own range."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kquant.core.one_node import aside
from kquant.core.spec import SMALLEST_RANGE, QuantSpec
from kquant.layers import drawn_grids, learned_ranges
from kquant.layers.code_rate import AS_COUNTED, KIBIBYTE, interpolated
from kquant.layers.oscillations import Freezing, dampening, risen
from kquant.recipe.training_section import Training

# What a weight may lie beyond the end of a range that learns, in steps, and still have a gradient of its own.
MARGIN = 1e-3


@keras.saving.register_keras_serializable(package="kquant")
class WeightLearner(keras.layers.Layer):
    """Learned ranges, progressive and drawn grids, and oscillations of one kernel.

    Args:
        learning: of the recipe, as `Training.for_weights` gives it.
        spec: `QuantSpec` of the kernel, as its config.
    """

    def __init__(self, learning: dict[str, Any], spec: dict[str, Any], **kwargs: Any) -> None:
        kwargs["dtype"] = "float32"
        super().__init__(autocast=False, **{k: v for k, v in kwargs.items() if k != "autocast"})
        self.learning, self.spec = Training(**learning), QuantSpec(**spec)
        self.scaled = 1.0
        told = self.learning.oscillations
        self.freezing = None if told.freeze is None else Freezing(told.freeze, told.momentum, name="freezing")

    def build(self, kernel_shape: Sequence[int], scale_shape: Sequence[int]) -> None:
        """Make the variables.

        Args:
            kernel_shape: of the weights.
            scale_shape: of their scales, which broadcast against them.
        """
        count = math.prod(kernel_shape) / math.prod(scale_shape)
        self.scaled = learned_ranges.gradient_scale(count, self.spec.high)
        common = {"initializer": "zeros", "autocast": False}
        self.steps = self.add_weight(
            name="steps", shape=(), trainable=False, aggregation="only_first_replica", **common
        )
        self.stretch = None
        if self.learning.learns_weights:
            self.stretch = self.add_weight(name="stretch", shape=tuple(scale_shape), aggregation="mean", **common)
            own = {"trainable": False, "aggregation": "only_first_replica", **common}
            self.waking = self.add_weight(name="waking", shape=(2, *scale_shape), **own)
        if self.freezing is not None:
            self.freezing.build(tuple(kernel_shape))
        self.price = self.least_bits = self.rise = None
        if self.learning.entropy:
            held = {"trainable": False, "autocast": False, "aggregation": "only_first_replica", "shape": ()}
            first = keras.initializers.Constant(self.learning.entropy)
            self.price = self.add_weight(name="price", initializer=first, **held)
            self.least_bits = self.add_weight(name="least_bits", initializer="zeros", **held)
            self.rise = self.add_weight(name="rise", initializer=keras.initializers.Constant(AS_COUNTED), **held)
        self.built = True

    def load_own_variables(self, store: Any) -> None:
        """Keras', which numbers variables; files of before there was a `rise`, the last of them, have one less."""
        known = {key: store[key] for key in list(store.keys())}  # a group of HDF5 is no mapping
        if self.rise is not None:
            held = 0 if self.freezing is None else len(self.freezing.variables)  # a layer of its own in the file
            known.setdefault(str(len(self.variables) - held - 1), np.float32(AS_COUNTED))
        super().load_own_variables(known)

    def forget(self) -> None:
        """Other weights, or another range: what was learned of the old ones goes; trained steps start anew."""
        self.steps.assign(0.0)
        if self.stretch is not None:
            self.stretch.assign(tf.zeros_like(self.stretch))
            self.waking.assign(tf.zeros_like(self.waking))
        if self.freezing is not None:
            self.freezing.forget()

    def move(self, reach: Any, widest: Callable[[], tf.Tensor]) -> None:
        """Begin a training step: what the optimizer made of the last one becomes part of the range.

        The first step starts the range of weights that have none at their largest. Where all were 0 then, it stays that
        of the weights until they have left zero for good (`learned_ranges.woken`).

        Args:
            reach: the variable that holds the range, 0 where it is that of the weights.
            widest: gives the largest weight, like it; asked where there is a range that is 0.
        """
        self.steps.assign_add(1.0)
        if self.stretch is None:
            return
        change = tf.convert_to_tensor(self.stretch) * self.learning.range_rate
        if self.learning.freeze_ranges_after is not None:
            # Adam's averages move `stretch` on after the last gradient; that is dropped below with the rest.
            change = tf.where(self.frozen(), tf.zeros_like(change), change)
        change = tf.raw_ops.ClipByValue(
            t=change,
            clip_value_min=-learned_ranges.LARGEST_CHANGE,
            clip_value_max=learned_ranges.LARGEST_CHANGE,
        )
        now, before = tf.convert_to_tensor(reach), tf.convert_to_tensor(self.waking)

        def started() -> tuple[tf.Tensor, tf.Tensor]:
            # The steps are whole numbers in float32, this one counted.
            after = _started(now, before, tf.convert_to_tensor(self.steps) < 1.5, widest())
            return tuple(tf.ensure_shape(new, old.shape) for new, old in zip(after, (now, before), strict=True))

        # A range that is there needs no look at the weights.
        start, waking = tf.cond(tf.reduce_min(now) <= 0.0, started, lambda: (now, tf.zeros_like(before)))
        # A range that is 0 follows the weights: whoever reads it takes the largest. Times 1 + change it is 0 still.
        reach.assign(start * (1.0 + change))
        self.waking.assign(waking)
        self.stretch.assign(tf.zeros_like(change))

    def frozen(self) -> tf.Tensor:
        """bool[]: ranges stay from now on."""
        after = self.learning.freeze_ranges_after
        return tf.constant(False) if after is None else tf.convert_to_tensor(self.steps) > float(after)

    def quantized(self, weights: tf.Tensor, scale: tf.Tensor, shared: bool = False) -> tf.Tensor:
        """The weights on the grid of this training step, with gradients for them and, where it learns, the range.

        Args:
            weights: float32[...].
            scale: of the final grid, broadcasts against them.
            shared: see `settled`.
        """
        if self.stretch is not None and self.learning.progressive is None and self.freezing is None:
            ends = float(self.spec.low), float(self.spec.high)
            return _on_learned_range(weights, tf.convert_to_tensor(self.stretch), scale, self._factor(), *ends)
        lowest, highest, scale = self._grid(scale)
        scale = self._stretched(scale)
        # Beyond a range that learns the gradient goes to the range alone (LSQ, equation 5), but for float32's last
        # places. On its own range the largest weight lies at the end, and has to train.
        codes = _round_through(weights / scale, lowest, highest, MARGIN if self.stretch is not None else 0.51)
        return self.settled(codes, weights, shared) * scale

    def follow(self, codes: tf.Tensor, weights: tf.Tensor, shared: bool = False) -> None:
        """One step of what freezes weights.

        Args:
            codes: of the final grid, rounded.
            weights: that they are the codes of.
            shared: see `settled`; nothing is counted then.
        """
        if self.freezing is not None and not shared:
            self.freezing.advance(tf.stop_gradient(codes), self._width() <= self.spec.bits, weights == 0.0)

    def settled(self, codes: tf.Tensor, weights: tf.Tensor, shared: bool = False) -> tf.Tensor:
        """The codes with those that are frozen; a weight that is 0, as a mask makes it, keeps code 0.

        Args:
            codes: of the weights, rounded.
            weights: float32[...].
            shared: a codebook gives them common values: a code held for one weight would leave that of its value.
        """
        return codes if self.freezing is None or shared else self.freezing.call(codes, weights == 0.0)

    def loss(self, weights: tf.Tensor, quantized: tf.Tensor, scale: tf.Tensor) -> tf.Tensor | None:
        """Of oscillations, float32[]; None where none are dampened."""
        told = self.learning.oscillations
        if told.dampen == 0.0:
            return None
        lowest, highest, scale = self._grid(scale)
        pulled = dampening(weights, quantized, scale, lowest, highest)
        return told.dampen * risen(tf.convert_to_tensor(self.steps), told.dampen_steps) * pulled

    def charge(self, weights: tf.Tensor, scale: tf.Tensor) -> tf.Tensor | None:
        """Of the bytes that the codes take in Huffman codes, float32[]; None where they cost nothing.

        Args:
            weights: float32[...] as they are rounded.
            scale: of the final grid, broadcasts against them.
        """
        if self.price is None:
            return None
        least = tf.convert_to_tensor(self.least_bits) * tf.cast(tf.size(weights), tf.float32)
        return tf.convert_to_tensor(self.price) * tf.nn.relu(self.bits(weights, scale) - least) / KIBIBYTE

    def bits(self, weights: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
        """Of all codes, as `kquant.layers.code_rate` counts them: float32[]; with gradients for weights and range."""
        lowest, highest, scale = self._grid(scale)
        steps = tf.clip_by_value(weights / self._stretched(scale), lowest, highest) - float(self.spec.low)
        return tf.reduce_sum(interpolated(steps, self.spec.high - self.spec.low + 1, self.rise))

    def _stretched(self, scale: tf.Tensor) -> tf.Tensor:
        """The scale, with a gradient for what the next step makes of the range."""
        if self.stretch is None:
            return scale
        # Times 1: the gradient of the scale reaches `stretch`, whose step `move` takes into the range.
        return scale * _through(tf.convert_to_tensor(self.stretch), self._factor())

    def _factor(self) -> tf.Tensor:
        """float32[]: what the gradient of a range is multiplied by."""
        if self.learning.freeze_ranges_after is None:
            return tf.constant(self.scaled)
        return tf.where(self.frozen(), 0.0, self.scaled)

    def _width(self) -> tf.Tensor:
        """int32[]: bits of this training step."""
        progress, robust = self.learning.progressive, self.learning.robust
        if robust is not None:
            return drawn_grids.kernel_grid(robust, tf.convert_to_tensor(self.steps))[0]
        if progress is None:
            return tf.constant(self.spec.bits)
        passed = tf.maximum(tf.convert_to_tensor(self.steps) - 1.0, 0.0)
        return learned_ranges.bits_now(passed, progress.start, self.spec.bits, progress.steps)

    def _grid(self, scale: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Lowest and highest code, and the scale that covers the same range with them."""
        low, high = tf.constant(float(self.spec.low)), tf.constant(float(self.spec.high))
        if self.learning.progressive is None and self.learning.robust is None:
            return low, high, scale
        scale = self._merged(scale)
        # Symmetric and narrow, as all grids of weights: the highest code is 2^(bits - 1) - 1.
        wide = tf.pow(2.0, tf.cast(self._width() - 1, tf.float32)) - 1.0
        final = tf.equal(self._width(), self.spec.bits)
        return tf.where(final, low, -wide), tf.where(final, high, wide), tf.where(final, scale, scale * high / wide)

    def _merged(self, scale: tf.Tensor) -> tf.Tensor:
        """The scales, or in steps that draw so the widest of them for all channels."""
        if self.learning.robust is None or not self.learning.robust.per_tensor:
            return scale
        merges = drawn_grids.kernel_grid(self.learning.robust, tf.convert_to_tensor(self.steps))[1]
        return tf.where(merges, tf.reduce_max(scale), scale)

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        return {**super().get_config(), "learning": self.learning.for_weights(), "spec": self.spec.to_config()}


@tf.custom_gradient
def _through(stretch: tf.Tensor, scaled: tf.Tensor) -> Any:
    """1 forward; backward the gradient of `1 + stretch`, scaled as LSQ does."""
    return tf.ones_like(stretch), lambda upstream: (upstream * scaled, None)


@tf.custom_gradient
def _round_through(x: tf.Tensor, low: tf.Tensor, high: tf.Tensor, margin: float | tf.Tensor) -> Any:
    """`clip(round(x))` forward; backward the gradient passes where nothing is clipped by more than the margin."""

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
        inside = tf.logical_and(x > low - margin, x < high + margin)
        return tf.where(inside, upstream, tf.zeros_like(upstream)), None, None, None

    return tf.clip_by_value(tf.round(x), low, high), gradient


@aside
def _started(now: tf.Tensor, before: tf.Tensor, first: tf.Tensor, widest: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Ranges of which some are 0, before the change, and `waking`, after a step."""
    waking = tf.where(now > 0.0, tf.zeros_like(before), learned_ranges.woken(before, widest))
    follows = tf.where(first, widest <= SMALLEST_RANGE, (before[0] == 0.0) | (waking[0] > 0.0))
    start = tf.where(follows, tf.zeros_like(now), tf.cast(widest, now.dtype))
    return tf.where(now > 0.0, now, start), tf.where(follows, waking, tf.zeros_like(waking))


@tf.custom_gradient
def _on_learned_range(
    weights: tf.Tensor, stretch: tf.Tensor, scale: tf.Tensor, factor: tf.Tensor, low: float, high: float
) -> Any:
    """`scale clip(round(w / scale))` with the gradients of LSQ: one sum over what a scale covers.

    Args:
        weights: float32[...].
        stretch: like the scale.
        scale: broadcasts against the weights.
        factor: float32[], what the gradient of the range is multiplied by.
        low: the lowest code.
        high: the highest.
    """
    steps = weights / scale
    codes = tf.raw_ops.ClipByValue(t=tf.round(steps), clip_value_min=low, clip_value_max=high)

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
        inside = tf.logical_and(steps > low - MARGIN, steps < high + MARGIN)
        passed = upstream * tf.cast(inside, upstream.dtype)
        axes = [axis for axis, n in enumerate(scale.shape.as_list()) if n == 1]
        lost = tf.reduce_sum(upstream * codes - passed * steps, axis=axes, keepdims=True)
        return passed, factor * scale * lost, None, None, None, None

    return codes * scale, gradient

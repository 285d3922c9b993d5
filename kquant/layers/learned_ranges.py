"""Ranges that learn by gradient: LSQ, LSQ+, PACT.

The range in force is always what the variables `low` and `high` (of weights: `reach`) hold, so that every reader sees
one number. What an optimizer steps on is `stretch`: it is 0 in every forward pass, and what a step made of it moves the
range, relative to its width, at the start of the next training step:

    low  <- min(low - width * rate * stretch[0], 0)       high <- max(high + width * rate * stretch[1], 0)

So `rate` multiplies the learning rate, whatever the optimizer, and no weight decay pulls at a range. With `s` the step,
`x` the real value and a grid of `N` steps:

    inside   dx' / dhigh = (round(x / s) - x / s) / N = -dx' / dlow
    above    dx' / dhigh = 1, dx' / dlow = 0              below    the other way round

Sources: Esser et al., "Learned Step Size Quantization", arXiv:1902.08153, equations 3 to 5 and section 2.2; Bhalgat et
al., "LSQ+", arXiv:2004.09576, section 3; Choi et al., "PACT", arXiv:1805.06085, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import tensorflow as tf

from kquant.core.spec import SMALLEST_RANGE, QuantSpec, encode_range

# A step changes no end by more of the width than this.
LARGEST_CHANGE = 0.25
# A range that began without width is first looked at after so many steps, and stays once it grew by less from one look
# to the next.
FIRST_LOOK, GROWTH = 64, 1.5


@tf.custom_gradient
def pending(stretch: tf.Tensor) -> Any:
    """0 forward, so that a pass computes with the range in force; the gradient is that of a range moved by it."""
    return tf.zeros_like(stretch), lambda upstream: upstream


@tf.custom_gradient
def replaced(x: tf.Tensor, value: tf.Tensor) -> Any:
    """`value` forward, the gradient to `x`."""
    return tf.identity(value), lambda upstream: (upstream, None)


def moved_ends(low: tf.Tensor, high: tf.Tensor, change: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Both ends after a step, which always hold 0 and at least half the old width.

    Args:
        low: float32[], at most 0.
        high: float32[], at least 0.
        change: float32[2], by how much of the width each end moves outwards.

    Example:
        >>> low, high = moved_ends(tf.constant(-1.0), tf.constant(1.0), tf.constant([0.1, -0.05]))
        >>> round(float(low), 3), round(float(high), 3)
        (-1.2, 0.9)
    """
    low, high = tf.minimum(low, 0.0), tf.maximum(high, 0.0)
    change = (high - low) * tf.clip_by_value(change, -LARGEST_CHANGE, LARGEST_CHANGE)
    return tf.minimum(low - change[0], 0.0), tf.maximum(high + change[1], 0.0)


def is_dead(low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    """True where a range, 0 included, has no width, as that of a tensor that was always 0: bool like the ends."""
    return tf.maximum(high, 0.0) - tf.minimum(low, 0.0) <= SMALLEST_RANGE


def woken(waking: tf.Tensor, width: tf.Tensor, calls: int = 1) -> tf.Tensor:
    """One training step of ranges that began without width, and follow the data until they have left zero for good.

    What is 0 at first (the last batch norm of a residual block with gamma 0) grows by the learning rate in each step; a
    change relative to the first width that it has would not keep up. So a range follows for 64 steps with some width at
    least; after 64, 128, 256, ... of them it is looked at, and stays once it has grown by less than half since the look
    before. One that is 0 again starts anew.

    Args:
        waking: float32[2, ...], steps since the range has width (0: none, or it stays), and its width at the last look.
        width: float32[...], of the data of this step.
        calls: of this function in a step.

    Returns:
        `waking` after the step.

    Example:
        >>> state = tf.zeros((2,))
        >>> grown = [float(min(step, 150)) for step in range(1, 300)]
        >>> for step, width in enumerate(grown, 1):
        ...     state = woken(state, tf.constant(width))
        ...     if float(state[0]) == 0.0:
        ...         break
        >>> step
        256
    """
    steps, before = tf.unstack(waking, num=2)
    steps = tf.where(width > SMALLEST_RANGE, steps + 1.0, 0.0)
    before = tf.where(steps > 1.0, before, 0.0)
    # A layer called at several sites counts several times in a step; it is looked at in the last of these.
    number = tf.cast(steps, tf.int32) // calls
    # n & (n - 1) takes the lowest bit of n away: 0 is left of a power of two only.
    power_of_two = tf.bitwise.bitwise_and(number, number - 1) == 0
    looks = (number >= FIRST_LOOK) & power_of_two & (number * calls == tf.cast(steps, tf.int32))
    stays = looks & (before > 0.0) & (width < GROWTH * before)
    state = tf.stack([steps, tf.where(looks, width, before)])
    return tf.where(stays, tf.zeros_like(state), state)


def bits_now(steps: tf.Tensor, start: int, final: int, over: int) -> tf.Tensor:
    """Width of the grid at a training step, int32[]: from `start` down to `final` in equal times.

    Example:
        >>> [int(bits_now(tf.constant(t), 8, 4, 100)) for t in (0.0, 24.0, 25.0, 99.0, 100.0)]
        [8, 8, 7, 5, 4]
    """
    if start <= final:
        return tf.constant(final)
    passed = tf.cast(tf.floor(steps * float(start - final) / float(over)), tf.int32)
    return tf.maximum(start - passed, final)


def gradient_scale(count: float, highest: float) -> float:
    """`1 / sqrt(count * highest)` (LSQ, section 2.2): ranges and weights then move alike in proportion.

    Args:
        count: number of values of one sample, or weights of one scale.
        highest: of the codes, or number of steps of an asymmetric grid.
    """
    return 1.0 / math.sqrt(max(count, 1.0) * highest)


def encode_through(low: tf.Tensor, high: tf.Tensor, spec: QuantSpec) -> tuple[tf.Tensor, tf.Tensor]:
    """`encode_range` to the bit, with gradients that pass the rounding of the zero point straight through.

    They are taken at the low end of the grid, `(lowest code - zero point) * scale`, to which rounding has moved `low`:
    only so does a value that is clipped at an end pull at that end with gradient 1 and at the other with 0. Taken at
    `low` itself the other end would get `(real - rounded zero point) / N`.

    Args:
        low: float32[], at most 0.
        high: float32[], at least 0.
        spec: the grid.
    """
    scale, zero_point = encode_range(low, high, spec)
    if spec.symmetric:
        return replaced(tf.maximum(-low, high) / float(spec.high), scale), zero_point
    through = replaced((high - low) / float(spec.high - spec.low), scale)
    nudged = replaced(low, (float(spec.low) - zero_point) * scale)
    return through, replaced(float(spec.low) - nudged / through, zero_point)


def encode_at(
    low: tf.Tensor, high: tf.Tensor, spec: QuantSpec, start: int, bits: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Scale, zero point, lowest and highest code of the same range on a grid of `bits`, `spec.bits` to `start`."""
    # A grid is Python's numbers, the width a tensor: each width that may come is encoded, a few numbers each, and one
    # taken.
    specs = [replace(spec, bits=n) for n in range(spec.bits, max(start, spec.bits) + 1)]
    rows = [tf.stack([*encode_through(low, high, s), float(s.low), float(s.high)]) for s in specs]
    return tuple(tf.unstack(tf.gather(tf.stack(rows), bits - spec.bits)))


def fused(
    y: tf.Tensor, stretch: tf.Tensor, grid: Sequence[tf.Tensor], pull: tf.Tensor, spec: QuantSpec, *, inside: bool
) -> tf.Tensor:
    """`quantized` on a grid that is known when the graph is made, by TensorFlow's kernels.

    Its gradients are the same, taken at the ends (see above), in three passes over the tensor: the kernel's own, which
    tells what is clipped at either end, a difference and a product.

    Args:
        y: float32[...].
        stretch: float32[2], what the optimizer steps on.
        grid: scale, zero point, lowest and highest real number, float32[] each.
        pull: float32[2], how far a stretch of 1 moves each end outwards, with what gradients are multiplied by.
        spec: of the grid.
        inside: values between the ends have a gradient to them (PACT: clipped ones alone).
    """

    @tf.custom_gradient
    def made(
        y: tf.Tensor, stretch: tf.Tensor, scale: tf.Tensor, low: tf.Tensor, high: tf.Tensor, pull: tf.Tensor
    ) -> Any:
        values = by_kernel(y, low, high, spec)

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
            passed, *sums = sums_of(upstream, y, values, (low, high), spec, inside)
            return passed, pull * of_ends(sums, scale, spec), None, None, None, None

        return values, gradient

    scale, _, low, high = grid
    return made(y, stretch, scale, low, high, pull)


def sums_for(stretch: tf.Tensor, scale: tf.Tensor, pull: tf.Tensor, spec: QuantSpec) -> tf.Tensor:
    """float32[3]: zeros for `fused_by_sums`, whose gradients make those of a range.

    Args:
        stretch: see `fused`.
        scale: float32[], of the grid.
        pull: see `fused`.
        spec: likewise.
    """

    @tf.custom_gradient
    def zeros(_: tf.Tensor) -> Any:
        return tf.zeros((3,)), lambda upstream: pull * of_ends(tf.unstack(upstream), scale, spec)

    return zeros(stretch)


def fused_by_sums(
    y: tf.Tensor, sums: Sequence[tf.Tensor], ends: tuple[tf.Tensor, tf.Tensor], spec: QuantSpec, *, inside: bool
) -> tf.Tensor:
    """`fused` for the steps of a loop: it sums as few numbers as there are, and what they mean is computed once.

    Args:
        y: float32[...].
        sums: float32[] each, those of `sums_for`.
        ends: lowest and highest real number of the grid, float32[] each.
        spec: see `fused`.
        inside: likewise.
    """

    @tf.custom_gradient
    def made(_: tf.Tensor, *__: tf.Tensor) -> Any:
        # Rounded again in the gradient: to keep what was rounded at every step takes longer, and memory.
        return by_kernel(y, *ends, spec), lambda upstream: sums_of(
            upstream, y, by_kernel(y, *ends, spec) if inside else y, ends, spec, inside
        )

    return made(y, *sums)


def by_kernel(y: tf.Tensor, low: tf.Tensor, high: tf.Tensor, spec: QuantSpec) -> tf.Tensor:
    """Values on the grid from `low` to `high`, by TensorFlow's fused kernel."""
    return tf.quantization.fake_quant_with_min_max_vars(y, low, high, num_bits=spec.bits, narrow_range=spec.narrow)


def sums_of(
    upstream: tf.Tensor,
    y: tf.Tensor,
    values: tf.Tensor,
    ends: tuple[tf.Tensor, tf.Tensor],
    spec: QuantSpec,
    inside: bool,
) -> tuple[tf.Tensor, ...]:
    """What passes, and three sums, float32[] each: of what is clipped below and above, and of errors in between."""
    passed, below, above = tf.raw_ops.FakeQuantWithMinMaxVarsGradient(
        gradients=upstream, inputs=y, min=ends[0], max=ends[1], num_bits=spec.bits, narrow_range=spec.narrow
    )
    # An infinite value, clipped, has no part in it.
    within = tf.reduce_sum(tf.math.multiply_no_nan(values - y, passed)) if inside else tf.zeros(())
    return passed, below, above, within


def of_ends(sums: Sequence[tf.Tensor], scale: tf.Tensor, spec: QuantSpec) -> tf.Tensor:
    """float32[2]: how the loss changes with each end moved outwards, of the sums of `_sums`."""
    below, above, within = sums
    steps = float(spec.high if spec.symmetric else spec.high - spec.low)
    if spec.symmetric:  # both ends are the same number of scales, or nearly, from 0
        ends = [(below * spec.low + above * spec.high) / steps] * 2
    else:
        ends = [-below, above]
    within = within / (scale * steps)
    return tf.stack([end + within for end in ends])


@tf.custom_gradient
def quantized(
    y: tf.Tensor,
    scale: tf.Tensor,
    zero_point: tf.Tensor,
    lowest: tf.Tensor,
    highest: tf.Tensor,
    scaled: tf.Tensor,
    inside_counts: tf.Tensor,
) -> Any:
    """`scale * (clip(round(y / scale) + zero_point, lowest, highest) - zero_point)` with gradients for the grid.

    Args:
        y: float32[...].
        scale: float32[].
        zero_point: float32[].
        lowest: float32[], the lowest code.
        highest: float32[], the highest code.
        scaled: float32[], what the gradients of the grid are multiplied by.
        inside_counts: 1 where values between the ends have a gradient to the scale, 0 for clipped ones alone (PACT).
    """
    steps, low, high = y / scale, lowest - zero_point, highest - zero_point
    # The ends are whole, so that to clip first and round then gives the same; one pass, as `tf.clip_by_value` is not.
    held = tf.raw_ops.ClipByValue(t=steps, clip_value_min=low, clip_value_max=high)
    clipped = tf.round(held)

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
        # By the value, not by its code: one that rounds to the last code from outside is clipped. Products with a mask,
        # since a choice between two tensors takes twice as long.
        passed = upstream * tf.cast(tf.equal(held, steps), upstream.dtype)
        lost = upstream - passed
        # LSQ, equation 3: round(x / s) - x / s inside, the last step itself where x is clipped. LSQ+, section 3: the
        # zero point moves what is clipped by a step, and nothing else.
        inside = inside_counts * tf.reduce_sum(passed * (clipped - held))
        return (
            passed,
            scaled * (inside + tf.reduce_sum(lost * clipped)),
            -scaled * scale * tf.reduce_sum(lost),
            None,
            None,
            None,
            None,
        )

    return clipped * scale, gradient


@tf.custom_gradient
def straight_through(y: tf.Tensor, quantized: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> Any:
    """`quantized` forward; backward the gradient passes where `y` lies in the range and stops where it was clipped."""

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
        inside = tf.logical_and(y >= low, y <= high)
        return tf.where(inside, upstream, tf.zeros_like(upstream)), None, None, None

    return quantized, gradient

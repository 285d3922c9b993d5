"""Signal to quantization noise, summed up over batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf


@dataclass(frozen=True)
class Noise:
    """Sums of squares: of a float tensor, and of what quantization changes in it. Two batches add up."""

    signal: float = 0.0
    noise: float = 0.0

    def __add__(self, other: Noise) -> Noise:
        return Noise(self.signal + other.signal, self.noise + other.noise)

    @property
    def ratio(self) -> float:
        """Noise over signal; 0 where nothing changed."""
        if self.noise == 0.0:
            return 0.0
        return self.noise / self.signal if self.signal else math.inf

    @property
    def db(self) -> float:
        """`10 log10(signal / noise)`; inf where nothing changed."""
        return decibel(self.ratio)


def decibel(ratio: float) -> float:
    """`-10 log10(ratio)` of a ratio of noise to signal; inf where it is 0.

    Example:
        >>> decibel(0.001)
        30.0
    """
    return math.inf if ratio == 0.0 else -10.0 * math.log10(ratio) if ratio < math.inf else -math.inf


def noise_of(real: Any, changed: Any) -> Noise:
    """Of one batch, in float64.

    Args:
        real: float[...], of the float model.
        changed: float[...], of the quantized one.

    Example:
        >>> round(noise_of(np.float32([3.0, 4.0]), np.float32([3.0, 4.5])).db, 6)
        20.0
    """
    # sums of a million squares lose the small ones in float32, and noise is small
    real, changed = (tf.cast(y, tf.float64) for y in (real, changed))
    return Noise(float(tf.reduce_sum(tf.square(real))), float(tf.reduce_sum(tf.square(changed - real))))


def noise_of_positions(real: Any, changed: Any) -> Noise:
    """Of one batch of what an argmax gave: each has the power 1, right or wrong, so that 20 dB are 1 wrong of 100.

    Example:
        >>> noise_of_positions(np.float32([3, 1, 0, 2]), np.float32([3, 9, 0, 2]))
        Noise(signal=4.0, noise=1.0)
    """
    wrong = tf.math.count_nonzero(tf.not_equal(real, changed))
    return Noise(float(tf.size(real)), float(wrong))


def noises_of(counted: Sequence[bool], real: Iterable[Any], changed: Iterable[Any]) -> list[Noise]:
    """Of one batch, for each output of a model.

    Args:
        counted: for each output whether its values are right or wrong (`found_or_whole` of `ops/position.py`).
        real: the outputs of the float model.
        changed: those of the quantized one.
    """
    outputs = zip(counted, real, changed, strict=True)
    return [(noise_of_positions if is_counted else noise_of)(a, b) for is_counted, a, b in outputs]


def mean_db(outputs: Iterable[Noise]) -> float:
    """SQNR of several outputs together: of the mean of their ratios of noise to signal."""
    # ratios and not decibels: an output without noise has infinitely many of those
    ratios = [output.ratio for output in outputs]
    return decibel(sum(ratios) / len(ratios))

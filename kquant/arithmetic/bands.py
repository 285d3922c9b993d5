"""Powers of a spectrum in bands, and a table of a function of them: from int16 codes to int8, in integers alone.

    P = re^2 + im^2                                 int32, of int16 codes: no overflow from -32767 on
    hi, lo: P = 2^16 hi + lo                        two int16, by QUANTIZE, and what it left
    F_g = step_g * M(W hi / step_g) + M(W lo)       int32, M rounds and clips as FULLY_CONNECTED: three steps g
    q_e = clip(round(F / 2^e), 0, 255)              by QUANTIZE, for each e of `LEVELS`
    out = table[sum of q_e]                         by GATHER

One int16 has no room for the 90 dB of powers that int16 amplitudes span, since a power takes twice the digits. The sum
of clipped levels counts it like a floating-point number would: what is below 2^31 lies within 1/16 of its neighbours,
which is 0.26 dB, and the table has 1,786 entries. W is a matrix of int8 codes; without one each bin is a band.

Magnitudes in place of powers are read from such a table first, 128 for one step of re: three digits of 8 bits each,
as GATHER of TFLM takes no wider ones. They stand for P then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from kquant.arithmetic.fixed_point import quantize_multiplier, scaled
from kquant.arithmetic.grid import Grid, check_runtime, round_half_away
from kquant.arithmetic.requantize import requantized_steps

# (e, which F): each level goes on where the one before is full, at 255 * 2^e, with 16 of its own steps or more.
LEVELS = ((0, 0), (4, 0), (7, 0), (11, 1), (15, 1), (19, 2), (23, 2))
FULL = 255
ENTRIES = FULL * len(LEVELS) + 1
HIGH = 2**16  # of hi
STEPS = (256, HIGH)  # of the two coarser F
# Kernels of int16 shift a sum by 7 bits to the left at most (MultiplyByQuantizedMultiplier of an int64 value in
# tflite/kernels/internal/common.cc): a rescale below 2^7, and half of it to be safe.
MOST_RESCALE = 64.0
ROOT_STEPS = 128  # of a magnitude, for one step of re: 23 bits in all
LARGEST_FINE = 2**20  # what a fine F is bounded to, so that QUANTIZE, which doubles it, stays within 32 bits


class Weights(NamedTuple):
    """A matrix of bands as the device multiplies it.

    Attributes:
        codes: int8[bins, bands], 0 to 127.
        scale: float32 of one step.
        unit: what one step of F is worth, a power of two, in squares of the steps of re and im; no band can give more
            than `2^31` of it.
        fine: step of the finest F, in units.
    """

    codes: np.ndarray
    scale: np.float32
    unit: float
    fine: int

    @property
    def steps(self) -> tuple[int, ...]:
        """`step_g`, in units."""
        return (self.fine, *STEPS)


def weights_of(matrix: np.ndarray) -> Weights:
    """Codes of a matrix of bands, one scale for all.

    Args:
        matrix: float[bins, bands], no number below 0 and one above.

    Example:
        >>> w = weights_of(np.float64([[0.5, 0.0], [1.0, 2.54]]))
        >>> w.codes.tolist(), w.unit, w.fine
        ([[25, 0], [50, 127]], 4.0, 8)
    """
    scale = np.float32(matrix.max() / 127.0)
    codes = np.rint(matrix / np.float64(scale)).astype(np.int8)
    total = float(codes.astype(np.float64).sum(axis=0).max()) * float(scale)
    unit = 2.0 ** max(0.0, np.ceil(np.log2(total)))
    # At least 2: a full hi is 65534 units then, more than what lo may take off again.
    fine = 2.0 ** max(1.0, np.ceil(np.log2(HIGH * float(scale) / (MOST_RESCALE * unit))))
    return Weights(codes, scale, float(unit), int(fine))


def mel_matrix(
    sampling_rate: float, fft_length: int, num_mel_bins: int, min_freq: float, max_freq: float
) -> np.ndarray:
    """Triangles on the mel scale of the Hidden Markov Model Toolkit, `mel(f) = 1127 ln(1 + f / 700)`.

    Edges at equal distances of mel between the two frequencies; triangle m rises from edge m to 1 at edge m + 1 and
    falls to 0 at edge m + 2, straight over mel. The bin of 0 Hz is in none (`linear_to_mel_weight_matrix` of Keras'
    MelSpectrogram).

    Returns:
        float64[fft_length // 2 + 1, num_mel_bins].
    """

    def mel(hertz: Any) -> Any:
        return 1127.0 * np.log1p(hertz / 700.0)

    bins = mel(np.linspace(0.0, sampling_rate / 2.0, fft_length // 2 + 1))[:, None]
    edges = np.linspace(mel(min_freq), mel(max_freq), num_mel_bins + 2)
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle))
    triangles[0] = 0.0
    return np.maximum(triangles, 0.0)


@lru_cache(maxsize=16)
def bins_in_bands(
    sampling_rate: float, fft_length: int, num_mel_bins: int, min_freq: float, max_freq: float
) -> tuple[int, np.ndarray]:
    """The first bin that any band takes, and the rows of `mel_matrix` from there to the last one."""
    matrix = mel_matrix(sampling_rate, fft_length, num_mel_bins, min_freq, max_freq)
    taken = np.flatnonzero(matrix.max(axis=1) > 0.0)
    return int(taken[0]), matrix[taken[0] : taken[-1] + 1]


@lru_cache(maxsize=1)
def middles() -> np.ndarray:
    """float64[`ENTRIES`]: which F each sum of levels stands for, the geometric mean of all that give it."""
    # every whole number of the first levels; of the others more than any level can tell apart
    upper = np.exp(np.linspace(np.log(2.0**15), np.log(2.0**31), 400_000))
    values = np.concatenate([np.arange(1.0, 2.0**15), np.rint(upper)])
    sums = sum(np.minimum(np.floor(values / 2.0**e + 0.5), FULL) for e, _ in LEVELS)
    at = np.asarray(sums, np.int64)
    counts = np.bincount(at, minlength=ENTRIES)
    logs = np.bincount(at, np.log(values), minlength=ENTRIES) / np.maximum(counts, 1)
    seen = np.flatnonzero(counts)
    # a sum that two levels step over together lies between its neighbours
    logs = np.interp(np.arange(ENTRIES), seen, logs[seen])
    # less than half a step is nothing: clips are padded with silence, and that is the floor of the function
    return np.concatenate([[0.0], np.exp(logs[1:])])


@lru_cache(maxsize=1)
def root_digits() -> tuple[tuple[int, np.ndarray], ...]:
    """What a digit of a magnitude is worth, and int8[`ENTRIES`]: it, for each sum of levels of a power.

    Example:
        >>> round(float(middles()[10]), 6)
        9.0
        >>> int(sum(worth * int(digits[10]) for worth, digits in root_digits())) == 3 * ROOT_STEPS
        True
    """
    left, digits = np.rint(ROOT_STEPS * np.sqrt(middles())).astype(np.int64), []
    for worth in (1, 2**8, 2**16):
        digit = (left + 128) % 256 - 128
        digits.append((worth, digit.astype(np.int8)))
        left = (left - digit) // 256
    return tuple(digits)


def _of_magnitudes(how: Mapping[str, Any]) -> bool:
    return how.get("exponent", 2.0) == 1.0  # models saved before there was a choice tell of none


def function_of(power: tf.Tensor, how: Mapping[str, Any]) -> tf.Tensor:
    """What is told of a power, by TensorFlow in the type of `power`.

    Args:
        power: of a band, in squares of the signal; or its magnitude, where "exponent" is 1.
        how: "function": "power"; "magnitude", its root; "log", the logarithm of that; "db", `10 log10(power)` less
            "reference". "floor": the least power that is taken.
    """
    kind = how["function"]
    if kind == "power":
        return power
    held = tf.maximum(power, tf.constant(how["floor"], power.dtype))
    if kind == "magnitude":
        return tf.sqrt(held)
    if kind == "log":
        return 0.5 * tf.math.log(held)
    return 10.0 / np.log(10.0) * tf.math.log(held) - tf.constant(how["reference"], power.dtype)


def band_table(how: Mapping[str, Any], unit: float, scale: tf.Tensor, out: Grid) -> tf.Tensor:
    """int32[`ENTRIES`]: the code of each sum of levels, halves away from zero.

    Args:
        how: as for `function_of`.
        unit: of the weights, 1 without.
        scale: of re and im.
        out: the grid of the codes.
    """
    step = tf.cast(scale, tf.float64)
    powers = tf.constant(middles() * unit) * (step / ROOT_STEPS if _of_magnitudes(how) else tf.square(step))
    steps = round_half_away(function_of(powers, how) / tf.cast(out.scale, tf.float64))
    codes = steps + tf.cast(out.zero_point, tf.float64)
    return tf.cast(tf.clip_by_value(codes, np.float64(out.low), np.float64(out.high)), tf.int32)


def weights_for(how: Mapping[str, Any]) -> Weights | None:
    """The weights that "mel" of `how` describes; None without bands."""
    return None if how["mel"] is None else weights_of(bins_in_bands(**how["mel"])[1])


def bands(sources: Sequence[tf.Tensor], grids: Sequence[Grid], out: Grid, runtime: str, **how: Any) -> tf.Tensor:
    """Codes of a function of the powers in bands, as a file computes them by the operators of the docstring.

    QUANTIZE rounds twice on both runtimes; FULLY_CONNECTED of int16 rounds a real product on LiteRT, and on TFLM one
    with a multiplier of 15 bits.

    Args:
        sources: one int32 tensor of int16 codes, [..., 2 n]: the real parts of n bins, then the imaginary ones.
        grids: its grid.
        out: the grid of the output, int8.
        runtime: "litert" or "tflm".
        how: as for `function_of`; "mel", the arguments of `bins_in_bands` or None; "exponent", 2 to sum powers over
            bands, 1 magnitudes; "top", how far below the largest value of a sample the others may lie, or None.

    Returns:
        int32[..., bands].
    """
    check_runtime(runtime)
    weights = weights_for(how)
    real, imaginary = tf.split(tf.maximum(tf.cast(sources[0], tf.int64), -32767), 2, axis=-1)
    powers = real * real + imaginary * imaginary
    if _of_magnitudes(how):
        roots = sum(worth * digits.astype(np.int64) for worth, digits in root_digits())
        powers = tf.gather(tf.constant(roots), _levels([powers] * 3))
    at = _levels([powers] * 3 if weights is None else _sums(powers, weights, runtime))
    unit = 1.0 if weights is None else weights.unit
    codes = tf.gather(band_table(how, unit, grids[0].scale, out), at)
    if how["top"] is None:
        return codes
    below = tf.cast(round_half_away(tf.cast(how["top"], tf.float64) / tf.cast(out.scale, tf.float64)), tf.int32)
    largest = tf.reduce_max(codes, axis=list(range(1, codes.shape.rank or 1)), keepdims=True)
    return tf.maximum(codes, largest - below)


def _levels(sums: list[tf.Tensor]) -> tf.Tensor:
    """The sum of levels of the three F: int64."""
    sums = [tf.minimum(sums[0], LARGEST_FINE), *sums[1:]]
    return tf.add_n([_divided(sums[which], 2.0**e, 0, FULL) for e, which in LEVELS])


def _divided(values: tf.Tensor, by: float, low: int, high: int) -> tf.Tensor:
    """QUANTIZE of int32, from a scale of 1 to one of `by`: int64."""
    quotient = scaled(values, quantize_multiplier(tf.constant(1.0 / by, tf.float64)))
    return tf.cast(tf.clip_by_value(quotient, np.float64(low), np.float64(high)), tf.int64)


def _sums(powers: tf.Tensor, weights: Weights, runtime: str) -> list[tf.Tensor]:
    """The three F: int64[..., bands]."""
    high = _divided(powers, HIGH, -(2**15), 2**15 - 1)
    low = tf.clip_by_value(powers - HIGH * high, -(2**15), 2**15 - 1)
    rounding = "real" if runtime == "litert" else "reduced"

    def dense(x: tf.Tensor, scale: float, step: float) -> tf.Tensor:
        acc = tf.linalg.matmul(tf.cast(x, tf.float64), weights.codes.astype(np.float64))
        grid = Grid(tf.constant(step, tf.float32), tf.constant(0.0), -(2**15), 2**15 - 1)
        one = tf.constant(scale * float(weights.scale), tf.float64)
        return tf.cast(requantized_steps(acc, one, grid, rounding), tf.int64)

    rest = dense(low, 1.0, weights.unit)
    return [step * dense(high, float(HIGH), step * weights.unit) + rest for step in weights.steps]

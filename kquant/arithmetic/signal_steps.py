"""TensorFlow Lite Micro's signal operators on tensors, number for number: what its library for microphones computes.

    frames of int16  ->  `windowed` -> `auto_scaled` -> `real_transform` -> `energies` -> `banded` -> `rooted`
                     ->  `subtracted` (a noise estimate from frame to frame) -> `gained` -> `logarithms`  ->  int16

Each function is one operator, over any number of frames; int64 tensors stand for its uint32 and uint64.
(signal/src of tflite-micro 90b983c: window.cc, fft_auto_scale.cc, energy.cc, filter_bank*.cc, pcan_argc_fixed.cc, and
log.cc.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from kquant.arithmetic.grid import INT16_MAX, INT16_MIN, Grid, check_runtime
from kquant.arithmetic.requantize import quantize
from kquant.arithmetic.signal_fft import real_transform
from kquant.arithmetic.signal_tables import (
    BAND_BITS,
    GAIN_BITS,
    SMOOTHING_BITS,
    SNR_BITS,
    SUBTRACTION_BITS,
    WINDOW_BITS,
    BandWeights,
    band_weights,
    gain_codes,
    hann_codes,
    share_codes,
)

WORD = 2**32
GAIN_OUT_BITS = 6  # behind the point of what SignalPCAN gives
LOG_BITS, LOG_SEGMENTS = 16, 128
LN_2 = 45426  # in 16 bits
LARGEST = 2**15 - 1


def _word(values: tf.Tensor) -> tf.Tensor:
    """As a uint32 holds it."""
    return tf.bitwise.bitwise_and(values, tf.constant(WORD - 1, tf.int64))


def _shifted(values: tf.Tensor, bits: tf.Tensor | int) -> tf.Tensor:
    """To the right; `bits` are a number, or one for each value."""
    return tf.bitwise.right_shift(values, tf.cast(bits, values.dtype) + tf.zeros_like(values))


def _digits(values: tf.Tensor) -> tf.Tensor:
    """int64: how many binary digits a number below 2^48 has; 0 has none."""
    exact = tf.cast(tf.maximum(values, 1), tf.float64)
    digits = tf.cast(tf.floor(tf.math.log(exact) / np.log(2.0)), tf.int64) + 1
    # a logarithm of a power of two may end up on either side of a whole number
    one = tf.ones_like(digits)
    digits += tf.cast(values >= tf.bitwise.left_shift(one, digits), tf.int64)
    digits -= tf.cast(values < tf.bitwise.left_shift(one, tf.maximum(digits - 1, 0)), tf.int64)
    return tf.where(values > 0, digits, tf.zeros_like(digits))


def windowed(frames: tf.Tensor, window: np.ndarray) -> tf.Tensor:
    """SignalWindow: int32[..., length] of int16, times a window of 12 bits, cut off below."""
    products = tf.bitwise.right_shift(frames * window.astype(np.int32), WINDOW_BITS)
    return tf.clip_by_value(products, -LARGEST - 1, LARGEST)


def auto_scaled(frames: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """SignalFftAutoScale: int32[..., length] shifted to the left as far as its largest number allows, and how far."""
    largest = tf.cast(tf.reduce_max(tf.abs(frames), axis=-1, keepdims=True), tf.int64)
    # of silence, whose number of digits the kernel takes to be 32
    bits = tf.where(largest > 0, tf.maximum(15 - _digits(largest), 0), tf.zeros_like(largest))
    return tf.bitwise.left_shift(frames, tf.cast(bits, tf.int32) + tf.zeros_like(frames)), bits


def energies(real: tf.Tensor, imaginary: tf.Tensor) -> tf.Tensor:
    """SignalEnergy: int64[..., bins]."""
    a, b = tf.cast(real, tf.int64), tf.cast(imaginary, tf.int64)
    return a * a + b * b


def banded(powers: Any, weights: BandWeights) -> tf.Tensor:
    """SignalFilterBank: int64[..., bands], the weighted sums."""
    bins = powers[..., weights.start : weights.end]
    pieces = np.repeat(np.arange(weights.width.size), weights.width)
    matrix = np.zeros((bins.shape[-1], weights.width.size + 1))
    matrix[np.arange(pieces.size), pieces] = weights.weights
    matrix[np.arange(pieces.size), pieces + 1] += weights.unweights
    # at most 2^31 * 2^12 for each bin: floats of 64 bits hold the sums of 2^10 bins exactly, all of 2,048 samples
    sums = tf.linalg.matmul(tf.cast(bins, tf.float64), matrix[:, 1:-1])
    return tf.cast(sums, tf.int64)


def rooted(sums: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    """SignalFilterBankSquareRoot: int64[..., bands], rounded roots without the scale of the frame."""
    root = tf.cast(tf.floor(tf.sqrt(tf.cast(sums, tf.float64))), tf.int64)
    root -= tf.cast(root * root > sums, tf.int64)
    root += tf.cast((root + 1) * (root + 1) <= sums, tf.int64)
    # the kernel of 32 bits keeps its result in 16
    up = (sums - root * root > root) & ((root != 2**16 - 1) | (sums >= WORD))
    return _shifted(root + tf.cast(up, tf.int64), bits)


def subtracted(frames: Any, how: dict[str, Any]) -> tuple[tf.Tensor, tf.Tensor]:
    """SignalFilterBankSpectralSubtraction from frame to frame, the estimate 0 before the first.

    Args:
        frames: int64[samples, frames, bands].
        how: "smoothing", the shares of a frame in the estimate, of even and of odd bands; "least", of a signal that
            is left of it in any case; "clamped", the estimate never exceeds the signal.

    Returns:
        What is left, and the estimate behind each frame, which has 10 bits more.
    """
    bands = int(frames.shape[-1])
    shares = np.array([share_codes(how["smoothing"][i % 2]) for i in range(bands)], np.int64)
    fresh, kept = tf.constant(shares[:, 0]), tf.constant(shares[:, 1])
    least = share_codes(how["least"])[0]

    def step(state: tuple[tf.Tensor, tf.Tensor], signal: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        scaled = _word(signal * 2**SMOOTHING_BITS)
        estimate = _word(_shifted(scaled * fresh + state[1] * kept, SUBTRACTION_BITS))
        bounded = tf.minimum(estimate, scaled)
        floor = _word(_shifted(signal * least, SUBTRACTION_BITS))
        left = tf.maximum(_shifted(scaled - bounded, SMOOTHING_BITS), floor)
        return left, bounded if how["clamped"] else estimate

    by_frame = tf.transpose(frames, (1, 0, 2))
    nothing = tf.zeros_like(by_frame[0])
    left, estimates = tf.scan(step, by_frame, (nothing, nothing))
    return tf.transpose(left, (1, 0, 2)), tf.transpose(estimates, (1, 0, 2))


def gained(signal: tf.Tensor, estimates: tf.Tensor, table: np.ndarray, shift: int) -> tf.Tensor:
    """SignalPCAN: int64[..., bands], the signal times a gain of its noise estimate, small values squared."""
    rows = tf.constant(table.astype(np.int64))
    digits = _digits(estimates)
    at = tf.maximum(4 * digits - 6, 0)
    inside = _shifted(tf.bitwise.left_shift(estimates, tf.maximum(11 - digits, 0)), tf.maximum(digits - 11, 0))
    part = tf.bitwise.bitwise_and(inside, tf.constant(1023, tf.int64))
    value, slope, curve = (tf.gather(rows, tf.minimum(at + i, table.size - 1)) for i in range(3))
    rise = (_shifted(curve * part, 5) + slope * 32) * part
    gain = _shifted(rise + 2**14, 15) + value
    gain = tf.where(estimates <= 2, tf.gather(rows, tf.minimum(estimates, 2)), gain)
    ratio = _word(_shifted(signal * gain, shift))
    squares = _shifted(_word(ratio * ratio), 2 + 2 * SNR_BITS - GAIN_OUT_BITS)
    beyond = _shifted(ratio, SNR_BITS - GAIN_OUT_BITS) - 2**GAIN_OUT_BITS
    return tf.where(ratio < 2 << SNR_BITS, squares, beyond)


def _log_table() -> np.ndarray:
    """int64[segments + 1]: `log2(1 + x) - x` in 16 bits."""
    x = np.arange(LOG_SEGMENTS + 1) / LOG_SEGMENTS
    return np.rint((np.log2(1.0 + x) - x) * 2**LOG_BITS).astype(np.int64)


def logarithms(values: tf.Tensor, correction: int, scale: int) -> tf.Tensor:
    """SignalFilterBankLog: int64[..., bands], `scale * ln(value * 2^correction)`; of 1 and less 0."""
    x = _word(values * 2**correction)
    whole = _digits(x) - 1
    above = x - tf.bitwise.left_shift(tf.ones_like(x), tf.maximum(whole, 0))
    part = tf.bitwise.left_shift(above, tf.maximum(LOG_BITS - whole, 0))
    part = _shifted(part, tf.maximum(whole - LOG_BITS, 0))
    segment = _shifted(part, LOG_BITS - 7)
    table = tf.constant(_log_table())
    begin, end = (tf.gather(table, tf.clip_by_value(segment + i, 0, LOG_SEGMENTS)) for i in (0, 1))
    base_2 = whole * 2**LOG_BITS + part + begin
    base_2 += _shifted((end - begin) * (part - segment * 512), LOG_BITS)
    base_e = _shifted(base_2 * LN_2 + 2 ** (LOG_BITS - 1), LOG_BITS)
    scaled = _shifted(_word(base_e * scale + 2 ** (LOG_BITS - 1)), LOG_BITS)
    return tf.where(x > 1, tf.minimum(scaled, LARGEST), tf.zeros_like(scaled))


class Shifts(NamedTuple):
    """Binary digits that the length of a transform decides.

    Attributes:
        correction: what a root has fewer than its band, as the transform divides by its length.
        noise: of a noise estimate, behind the point.
        ratio: between the product of signal and gain, and their ratio.
    """

    correction: int
    noise: int
    ratio: int


def shifts(fft_length: int) -> Shifts:
    """Those of one length, a power of two.

    Example:
        >>> shifts(512)
        Shifts(correction=3, noise=7, ratio=6)
    """
    correction = fft_length.bit_length() - 1 - BAND_BITS // 2
    return Shifts(correction, SMOOTHING_BITS - correction, GAIN_BITS - correction - SNR_BITS)


def bands_of(how: dict[str, Any]) -> BandWeights:
    """The bands of a front end."""
    return band_weights(how["rate"], how["fft"], how["bands"], how["low"], how["high"])


def features(samples: tf.Tensor, how: dict[str, Any]) -> tf.Tensor:
    """All of it, from clips to the logarithms of their bands.

    Args:
        samples: [clips, samples], whole numbers of int16 of any type.
        how: "rate" in Hz; "length" and "stride" of the frames and "fft" of their transforms, in samples; "bands", "low"
            and "high" in Hz; "noise", see `subtracted`, and "gain", its strength and offset, or None; "scale" of the
            logarithms; "before", how many samples of silence stand in front, none by default.

    Returns:
        int32[clips, frames, bands] of int16.
    """
    samples = tf.pad(samples, [(0, 0), (how.get("before", 0), 0)])
    count = (int(samples.shape[-1] or 0) - how["length"]) // how["stride"] + 1
    at = np.arange(count)[:, None] * how["stride"] + np.arange(how["length"])
    frames = tf.gather(tf.cast(samples, tf.int32), at, axis=1)
    scaled, bits = auto_scaled(windowed(frames, hann_codes(how["length"])))
    padded = tf.pad(scaled, [(0, 0), (0, 0), (0, how["fft"] - how["length"])])
    signal = rooted(banded(energies(*real_transform(padded)), bands_of(how)), bits)
    by = shifts(how["fft"])
    if how["noise"] is not None:
        signal, estimates = subtracted(signal, how["noise"])
        if how["gain"] is not None:
            signal = gained(signal, estimates, gain_codes(how["gain"][0], how["gain"][1], by.noise), by.ratio)
    return tf.cast(logarithms(signal, by.correction, how["scale"]), tf.int32)


def micro_frontend(
    sources: Sequence[tf.Tensor], grids: Sequence[Grid], out: Grid, runtime: str, unit: float, **how: Any
) -> tf.Tensor:
    """Codes of `features`, as a file computes them: QUANTIZE stands in front of them and behind.

    Args:
        sources: one int32 tensor of int16 codes, [clips, samples].
        grids: its grid.
        out: the grid of the output.
        runtime: "litert" or "tflm"; the operators are TFLM's.
        unit: what one step of a sample is worth.
        how: as for `features`.

    Returns:
        int32[clips, frames, bands].
    """
    check_runtime(runtime)
    sound, told = (Grid(tf.constant(step), tf.constant(0.0), INT16_MIN, INT16_MAX) for step in (unit, 1 / how["scale"]))
    return quantize([features(quantize(sources, grids, sound), how)], [told], out)

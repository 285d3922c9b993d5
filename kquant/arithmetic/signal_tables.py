"""Constants that TensorFlow Lite Micro's signal operators read: a window, bands on the mel scale, a table of gains.

The numbers are those of its `audio_preprocessor` (examples/micro_speech of 90b983c): the formulas of
`python/tflite_micro/signal`, in the float32 in which they are computed there.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

BAND_BITS = 12  # of the weights of bands: 4096 is one
WINDOW_BITS = 12
SMOOTHING_BITS, SUBTRACTION_BITS = 10, 14  # of a noise estimate, and of the shares that make it
GAIN_BITS, SNR_BITS = 21, 12  # of a gain, and of the signal over noise that it makes
FUNCTION_BITS = 32  # a table of gains has a parabola for each of so many octaves


class BandWeights(NamedTuple):
    """Triangles that overlap by half: between two peaks one band falls and the next one rises.

    Attributes:
        start, end: of the bins that are read.
        weights, unweights: int16[bins], 4096 where a bin counts in full: for the band whose peak lies below it, which
            falls there, and for the band whose peak lies above it. TFLM's kernel calls them so.
        at, first, width: int16[bands + 1], of each piece between two peaks: its first bin, its first weight, how many.
    """

    start: int
    end: int
    weights: np.ndarray
    unweights: np.ndarray
    at: np.ndarray
    first: np.ndarray
    width: np.ndarray


def hann_codes(length: int) -> np.ndarray:
    """int16[length]: a Hann window whose samples lie in the middle of their steps, 4096 is one.

    Example:
        >>> hann_codes(4).tolist()
        [600, 3496, 3496, 600]
    """
    phase = (np.arange(length) + 0.5) * (2.0 * np.pi / length)
    return np.round((0.5 - 0.5 * np.cos(phase)) * 2**WINDOW_BITS).astype(np.int16)


def _mel(hertz: object) -> np.ndarray:
    """float32, `1127 ln(1 + f / 700)`."""
    ratio = np.asarray(hertz, np.float32) / np.float32(700.0)
    return np.float32(1127.0) * np.log1p(ratio.astype(np.float64)).astype(np.float32)


@lru_cache(maxsize=16)
def band_weights(rate: int, fft_length: int, bands: int, low: float, high: float) -> BandWeights:
    """The bands of SignalFilterBank.

    Args:
        rate: of samples, Hz.
        fft_length: of the transform.
        bands: how many.
        low: where the first begins, Hz.
        high: where the last ends, Hz.

    Returns:
        Weights of the pieces one behind the other. `width` is 0 for a piece without a bin.
    """
    peaks = _mel(low) + (_mel(high) - _mel(low)) / np.float32(bands + 1) * np.arange(1, bands + 2, dtype=np.float32)
    hertz = (rate / 2) / (fft_length // 2)
    start = round(1 + low / hertz)
    mel = _mel(np.arange(fft_length) * hertz)  # further than there are bins: a band may want one that is not there
    edges = np.maximum(np.searchsorted(mel, peaks, side="right"), start)
    begins = np.concatenate([[start], edges[:-1]])
    below = np.concatenate([[_mel(low)], peaks[:-1]]).astype(np.float32)
    pieces = [
        (peak - mel[begin:end]) / (peak - bottom)
        for begin, end, bottom, peak in zip(begins, edges, below, peaks, strict=True)
    ]
    share, one = np.concatenate(pieces), np.float32(2**BAND_BITS)
    weights, unweights = (np.trunc(part * one).astype(np.int16) for part in (share, np.float32(1) - share))
    width = (edges - begins).astype(np.int16)
    first = (begins - start).astype(np.int16)
    return BandWeights(start, int(edges[-1]), weights, unweights, begins.astype(np.int16), first, width)


def share_codes(share: float) -> tuple[int, int]:
    """A share and what is left of one, in 14 bits.

    Example:
        >>> share_codes(0.025)
        (409, 15975)
    """
    code = int(share * 2**SUBTRACTION_BITS)
    return code, 2**SUBTRACTION_BITS - code


def gain_codes(strength: float, offset: float, input_bits: int) -> np.ndarray:
    """int16[125]: `2^21 (x + offset)^-strength` of a noise estimate x, for SignalPCAN.

    Two values for 0 and 1, then four numbers for each octave: the gain at its begin, and a parabola through its middle
    and its end.

    Args:
        strength: of the gain (Wang et al., "Trainable frontend for robust and far-field keyword spotting",
            arXiv:1607.05666, equation 2).
        offset: of the same; the gain of 0 has to be below 2^15, see `has_room`.
        input_bits: behind the point of a noise estimate.
    """
    power, beyond = np.float32(-strength), np.float32(offset)

    def gain(x: int) -> int:
        value = np.float32(np.float32(x) / np.float32(2**input_bits)) + beyond
        # powf is rounded from more digits than a float32 has
        scaled = np.float32(2**GAIN_BITS) * np.float32(np.float64(value) ** np.float64(power))
        return 32767 if scaled > 32767 else int(np.float32(scaled + np.float32(0.5)))

    table = [gain(0), gain(1)]
    for octave in range(2, FUNCTION_BITS + 1):
        begin = 2 ** (octave - 1)
        end = 2 * begin - 1 if octave == FUNCTION_BITS else 2 * begin
        here = gain(begin)
        middle, last = gain(begin + begin // 2) - here, gain(end) - here
        table += [here, 4 * middle - last, 2 * last - 4 * middle, 0]
    return np.array(table[:-1], np.int64).astype(np.int16)  # of the last octave nobody reads a fourth


def has_room(strength: float, offset: float) -> bool:
    """True where int16 holds all gains: where one is beyond it, the parabolas would bend around its end.

    Example:
        >>> has_room(0.95, 80.0), has_room(0.95, 70.0)
        (True, False)
    """
    return bool(offset > 0.0 and 2.0**GAIN_BITS * offset**-strength < 2**15)

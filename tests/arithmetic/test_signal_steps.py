"""TFLM's signal operators one by one, against its interpreter; their constants against its published preprocessor."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import tensorflow as tf

import kquant  # noqa: F401  before the modules below, which Keras' registration imports
from kquant.arithmetic import signal_steps as steps
from kquant.arithmetic.signal_fft import real_transform
from kquant.arithmetic.signal_tables import SMOOTHING_BITS, WINDOW_BITS, band_weights, gain_codes, hann_codes
from kquant.core.program import Operator, Program, Ref
from kquant.runtime.interpreters import tflm_interpreter
from kquant.runtime.running import available
from kquant.targets import load
from kquant.tflite.flatbuffer import to_bytes

pytestmark = pytest.mark.skipif("tflm" not in available(), reason="the operators are TensorFlow Lite Micro's own")
RNG = np.random.default_rng(0)
NOISE = {"smoothing": (0.025, 0.06), "least": 0.05, "clamped": False}


class Kernel:
    """One operator in a file of its own, on TFLM."""

    def __init__(self, code: str, given: list, made: list[tuple[tuple[int, ...], str]], **options: object) -> None:
        program = Program("one")
        refs = [program.constant("c", x) if isinstance(x, np.ndarray) else program.value("x", *x) for x in given]
        program.inputs = [ref for ref in refs if ref.data is None]
        program.outputs = [Ref(f"y{i}", shape, dtype) for i, (shape, dtype) in enumerate(made)]
        program.operators.append(Operator(code, list(refs), program.outputs, options))
        self.count = len(made)
        self.interpreter = tflm_interpreter(to_bytes(program, load("tflm"), {}))

    def __call__(self, *arrays: np.ndarray) -> list[np.ndarray]:
        for i, array in enumerate(arrays):
            self.interpreter.set_input(array, i)
        self.interpreter.invoke()
        return [np.array(self.interpreter.get_output(i)) for i in range(self.count)]


def frames(length: int, count: int = 24) -> np.ndarray:
    """Noise and tones from full scale down to one step, extremes and silence: int16[count, length]."""
    loud = 32767.0 * 2.0 ** -np.linspace(0, 15.5, count)[:, None]
    t = np.arange(length)
    tones = np.sin(RNG.uniform(0.01, 3.1, (count, 1)) * t + RNG.uniform(0, 6, (count, 1)))
    x = np.where(np.arange(count)[:, None] % 2, RNG.uniform(-1, 1, (count, length)), tones) * loud
    x[0], x[1], x[2], x[3] = 0, -32768, 32767, np.where(t % 2, -32768, 32767)
    return np.rint(x).astype(np.int16)


def numbers(low: float, high: float, count: int, extra: tuple[int, ...] = ()) -> np.ndarray:
    """Whole numbers, as many of each size, and powers of two with their neighbours."""
    powers = [2**k + d for k in range(64) for d in (-1, 0, 1) if low <= 2**k + d <= high]
    some = np.exp(RNG.uniform(np.log(max(low, 1)), np.log(high), count)).astype(np.uint64)
    return np.concatenate([np.array([*powers, *extra], np.uint64), some])[:count]


def int32(x: np.ndarray) -> tf.Tensor:
    return tf.constant(x.astype(np.int32))


def int64(x: np.ndarray) -> tf.Tensor:
    return tf.constant(x.astype(np.int64))


PUBLISHED = ["ca6ab5bacdf6a239", "51de3f82c719ef21", "d123bd6ff6fd1a68", "c84d83b8b98ba1e1"]


def test_the_constants_are_those_of_the_published_preprocessor() -> None:
    # of examples/micro_speech/models/audio_preprocessor_int8.tflite (90b983c): its window, its 236 weights at the bins
    # that they belong to, its table of gains
    bands = band_weights(16000, 512, 40, 125.0, 7500.0)
    assert (bands.start, bands.end) == (5, 241)
    parts = (hann_codes(480), bands.weights, bands.unweights, gain_codes(0.95, 80.0, SMOOTHING_BITS - 3))
    assert [hashlib.sha256(part.astype("<i2").tobytes()).hexdigest()[:16] for part in parts] == PUBLISHED


@pytest.mark.parametrize("length", [64, 128, 256, 512, 1024, 2048])
def test_transform(length: int) -> None:
    kernel = Kernel("SignalRfft", [((length,), None, "int16")], [((length + 2,), "int16")], fft_length=length, T=7)
    x = frames(length)
    real, imaginary = real_transform(int32(x))
    wanted = np.stack([kernel(row)[0] for row in x]).reshape(len(x), -1, 2)
    np.testing.assert_array_equal(np.stack([real, imaginary], -1), wanted)


def test_window_and_scale() -> None:
    window = hann_codes(480)
    x = frames(480)
    given = ((480,), None, "int16")
    kernel = Kernel("SignalWindow", [given, window], [((480,), "int16")], shift=WINDOW_BITS)
    np.testing.assert_array_equal(steps.windowed(int32(x), window), np.stack([kernel(row)[0] for row in x]))
    kernel = Kernel("SignalFftAutoScale", [given], [((480,), "int16"), ((), "int32")])
    scaled, bits = steps.auto_scaled(int32(x))
    made = [kernel(row) for row in x]
    np.testing.assert_array_equal(scaled, np.stack([m[0] for m in made]))
    np.testing.assert_array_equal(np.ravel(bits), np.ravel([m[1] for m in made]))


def test_between_two_peaks_weights_fall_and_unweights_rise() -> None:
    bands = band_weights(16000, 512, 4, 125.0, 7500.0)
    for first, width in zip(bands.first, bands.width, strict=True):
        piece = slice(first, first + width)
        assert np.all(np.diff(bands.weights[piece]) < 0) and np.all(np.diff(bands.unweights[piece]) > 0)


@pytest.mark.parametrize(("length", "count", "ends"), [(512, 40, (125.0, 7500.0)), (2048, 1, (0.0, 7992.0))])
def test_powers_and_bands(length: int, count: int, ends: tuple[float, float]) -> None:
    bands, bins = band_weights(16000, length, count, *ends), length // 2 + 1
    spectra = RNG.integers(-32768, 32768, (12, bins, 2)).astype(np.int16)
    spectra[0], spectra[1] = -32768, 32767
    span = {"start_index": bands.start, "end_index": bands.end}
    kernel = Kernel("SignalEnergy", [((2 * bins,), None, "int16")], [((bins,), "uint32")], **span)
    powers = np.asarray(steps.energies(int32(spectra[..., 0]), int32(spectra[..., 1])))
    taken = slice(bands.start, bands.end)
    np.testing.assert_array_equal(powers[:, taken], np.stack([kernel(x.ravel())[0] for x in spectra])[:, taken])
    given = [((bins,), None, "uint32"), bands.weights, bands.unweights, bands.at, bands.first, bands.width]
    kernel = Kernel("SignalFilterBank", given, [((count,), "uint64")], num_channels=count)
    wanted = np.stack([kernel(row.astype(np.uint32))[0] for row in powers])
    np.testing.assert_array_equal(steps.banded(int64(powers), bands), wanted.astype(np.int64))


@pytest.mark.parametrize("bits", [0, 3, 15])
def test_root(bits: int) -> None:
    squares = tuple(s * s + d for s in (3, 255, 65535, 65536, 5_000_000) for d in (-1, 0, s, s + 1))
    x = numbers(0, 2.0**50, 400, squares)
    given = [((400,), None, "uint64"), ((), None, "int32")]
    kernel = Kernel("SignalFilterBankSquareRoot", given, [((400,), "uint32")])
    wanted = kernel(x, np.array(bits, np.int32))[0]
    np.testing.assert_array_equal(steps.rooted(int64(x), tf.constant([bits], tf.int64)), wanted)


@pytest.mark.parametrize("clamped", [False, True])
def test_noise_from_frame_to_frame(clamped: bool) -> None:
    how = {**NOISE, "clamped": clamped}
    x = numbers(0, 2.0**24, 40 * 60).reshape(60, 40)
    RNG.shuffle(x)
    (even, rest), (odd, rest_odd) = (steps.share_codes(share) for share in how["smoothing"])
    kernel = Kernel(
        "SignalFilterBankSpectralSubtraction",
        [((40,), None, "uint32")],
        [((40,), "uint32"), ((40,), "uint32")],
        alternate_one_minus_smoothing=rest_odd,
        alternate_smoothing=odd,
        clamping=clamped,
        min_signal_remaining=steps.share_codes(how["least"])[0],
        num_channels=40,
        one_minus_smoothing=rest,
        smoothing=even,
        smoothing_bits=SMOOTHING_BITS,
        spectral_subtraction_bits=steps.SUBTRACTION_BITS,
    )
    made = [kernel(row.astype(np.uint32)) for row in x]
    got = steps.subtracted(int64(x)[None], how)
    for ours, theirs in zip(got, zip(*made, strict=True), strict=True):
        np.testing.assert_array_equal(ours[0], np.stack(theirs))


@pytest.mark.parametrize(("strength", "offset", "shift"), [(0.95, 80.0, 6), (0.8, 250.0, 9)])
def test_gain(strength: float, offset: float, shift: int) -> None:
    table = gain_codes(strength, offset, 7)
    signal, noise = (numbers(0, 2.0**32 - 1, 600) for _ in range(2))
    RNG.shuffle(signal)
    kernel = Kernel(
        "SignalPCAN", [((600,), None, "uint32"), ((600,), None, "uint32"), table], [((600,), "uint32")], snr_shift=shift
    )
    wanted = kernel(signal.astype(np.uint32), noise.astype(np.uint32))[0]
    np.testing.assert_array_equal(steps.gained(int64(signal), int64(noise), table, shift), wanted.astype(np.int64))


@pytest.mark.parametrize(("correction", "scale"), [(0, 64), (3, 64), (5, 1024)])
def test_logarithm(correction: int, scale: int) -> None:
    x = np.concatenate([np.arange(300, dtype=np.uint64), numbers(0, 2.0**32 - 1, 1700)])
    options = {"input_correction_bits": correction, "output_scale": scale}
    kernel = Kernel("SignalFilterBankLog", [((2000,), None, "uint32")], [((2000,), "int16")], **options)
    np.testing.assert_array_equal(steps.logarithms(int64(x), correction, scale), kernel(x.astype(np.uint32))[0])

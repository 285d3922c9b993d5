"""Sound in, classes out: spectrograms in the file, against Keras' own layers and against the interpreters."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import contract
import keras
import numpy as np
import pytest

import kquant
from kquant.arithmetic.bands import FULL, LEVELS, mel_matrix, middles, weights_of
from kquant.layers.nodes import Compressed, FakeQuant
from kquant.ops.spectrum import Bands, window_of
from kquant.runtime.running import available
from kquant.targets import load, names

layers = keras.layers
LENGTH = 2000
MEL = {"fft_length": 256, "sequence_stride": 128, "sampling_rate": 8000, "num_mel_bins": 20}


def sounds(clips: int = 104, seed: int = 0, decades: float = 3.0) -> np.ndarray:
    """Chirps in noise, so many decades between loud and quiet, silence, a constant, and clipped noise; of 16 bits."""
    rng = np.random.default_rng(seed)
    t = np.arange(LENGTH) / 8000
    start, rise = rng.uniform(100, 2000, (2, clips, 1))
    chirps = np.sin(2 * np.pi * (start * t + rise * t * t)) + 0.01 * rng.normal(size=(clips, LENGTH))
    chirps *= 10.0 ** (-decades * rng.random((clips, 1))) * 0.9
    chirps[0], chirps[1], chirps[2] = 0.0, 1.0, np.sign(rng.normal(size=LENGTH))
    return np.float32(np.clip(np.rint(chirps * 32768), -32768, 32767) / 32768)


def speaker(**changes: object) -> keras.Model:
    """A classifier of waveforms; its second output is the spectrogram."""
    inputs = keras.Input((LENGTH,), name="sound")
    mel = layers.MelSpectrogram(**{**MEL, **changes}, name="mel")(inputs)
    x = layers.Reshape((*mel.shape[1:], 1), name="image")(mel)
    x = layers.Conv2D(4, 3, strides=2, activation="relu", name="conv")(x)
    return keras.Model(inputs, [layers.Dense(4, name="words")(layers.Flatten(name="flat")(x)), mel])


def ready(model: keras.Model, target: str, recipe: object = "int8", scale: float = 1.0) -> keras.Model:
    return kquant.calibrate(kquant.quantize(model, recipe, target=target), sounds() * scale, verbose=False)


def one_by_one(model: keras.Model, x: np.ndarray) -> list[np.ndarray]:
    """Keras takes the loudest value of the whole batch for `top_db`; a device has one clip."""
    rows = [keras.tree.flatten(model(x[i : i + 1])) for i in range(len(x))]
    return [np.concatenate([np.asarray(row[n]) for row in rows]) for n in range(len(rows[0]))]


@pytest.mark.parametrize("settings", [(8000, 256, 40, 20.0, 4000.0), (16000, 512, 80, 60.0, 7600.0)])
def test_the_bands_are_those_of_keras(settings) -> None:
    rate, length, count, low, high = settings
    layer = layers.MelSpectrogram(fft_length=length)
    wanted = np.asarray(layer.linear_to_mel_weight_matrix(count, length // 2 + 1, rate, low, high))
    np.testing.assert_allclose(mel_matrix(*settings), wanted, atol=2e-5)


def test_levels_tell_powers_of_nine_digits_apart() -> None:
    every = middles()
    assert every[0] == 0.0 and np.allclose(every[1:8], np.arange(1, 8))
    assert np.all(np.diff(every) > 0) and every[-1] > 2.1e9
    assert (np.diff(every)[FULL:] / every[FULL:-1]).max() < 1 / 16  # 0.26 dB
    assert every.size == FULL * len(LEVELS) + 1


def test_the_finest_sum_never_falls_below_what_its_levels_hold() -> None:
    for shape in ((128, 40), (1025, 128), (3, 1)):
        weights = weights_of(np.random.default_rng(0).random(shape))
        assert weights.fine * 32767 - 32769 >= FULL * 2 ** LEVELS[2][0]
        assert 65536 * float(weights.scale) / (weights.fine * weights.unit) < 128  # TFLM shifts no further


@pytest.mark.filterwarnings("ignore:calibrate. the range differs")  # a random network behind random sounds
@pytest.mark.parametrize(("target", "exponent"), [("litert", 2), ("tflm", 2), ("litert", 1), ("tflm", 1)])
def test_waveform_to_class_code_for_code(target: str, exponent: int, tmp_path: Path) -> None:
    q = ready(speaker(mag_exp=float(exponent)), target)
    report = kquant.export(q, tmp_path / "m.tflite", data=sounds(8))
    assert not contract.floats((tmp_path / "m.tflite").read_bytes())
    assert [str(kquant.inspect(tmp_path / "m.tflite").inputs[0].type)] == ["INT16"]
    x = sounds(48, seed=1)
    wanted = q.predict(x, verbose=0)
    for runtime in set(load(target).runtimes) & set(available()) - {"litert"}:
        for a, b in zip(wanted, kquant.predict(tmp_path / "m.tflite", x, runtime), strict=True):
            np.testing.assert_array_equal(a, b)
    assert report.operators["GATHER"] == (1 if exponent == 2 else 4)


@pytest.mark.filterwarnings("ignore:calibrate. the range differs")  # a random network behind random sounds
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"window": "hamming", "sequence_length": 200, "fft_length": 300},
        {"top_db": 30.0, "ref_power": 2.0},
        {"mag_exp": 1.0},
    ],
)
def test_decibels_are_those_of_keras(changes) -> None:
    model = speaker(**changes)
    q = ready(model, "tflm")
    x = sounds(32, decades=1.0)[3:]
    _, wanted = one_by_one(model, x)
    got = q.predict(x, verbose=0)[1]
    step = float(q.get_layer("mel_quant").grid()[0])
    # half a step of the output, half a level, half a code of a triangle times a bin 15 dB louder, and 8-bit waves
    error = np.abs(got - wanted)
    near = wanted > wanted.max(axis=(1, 2), keepdims=True) - 15.0
    edge = 10.0 * np.log10(1.0 + 0.5 / 127.0 * 10.0**1.5)
    assert error[near].max() < 0.5 * step + 0.13 + edge + 0.05
    assert error[near].mean() < 0.25 * step + 0.05


def test_silence_is_as_quiet_as_the_grid() -> None:
    got = ready(speaker(), "tflm").predict(np.zeros((1, LENGTH), np.float32), verbose=0)[1]
    assert np.abs(got + 100.0).max() < 0.5  # `min_power`


@pytest.mark.parametrize(("scale", "step"), [(1.0, 2.0**-15), (0.01, 2.0**-15), (32768.0, 1.0)])
def test_the_input_is_16_bit_sound(scale: float, step: float, tmp_path: Path) -> None:
    q = ready(speaker(), "tflm", scale=scale)
    kquant.export(q, tmp_path / "m.tflite", check_runtimes=False)
    sound = kquant.inspect(tmp_path / "m.tflite").inputs[0]
    assert (sound.type, sound.scale, sound.zero_point) == ("INT16", (step,), (0,))


def test_waves_keep_8_bits_and_their_ranges() -> None:
    model = speaker()
    q = ready(model, "tflm", {"name": "small", "weights": {"bits": 4}, "training": {"ranges": "learned"}})
    bits = {layer.layer.name: layer.spec.bits for layer in q.layers if isinstance(layer, Compressed)}
    assert bits == {"mel_waves": 8, "conv": 4, "words": 4}
    front = [layer for layer in q.layers if isinstance(layer, FakeQuant) and layer.spec.bits == 16]
    assert [layer.name for layer in front] == ["sound_quant", "mel_waves_quant"]
    before = [layer.high.numpy().copy() for layer in front]
    waves = q.get_layer("mel_waves").kernels()[0].raw.numpy().copy()
    head = q.get_layer("words").kernels()[0].raw.numpy().copy()
    q.compile("adam", [keras.losses.SparseCategoricalCrossentropy(from_logits=True), None])
    q.fit(0.5 * sounds(), np.arange(104) % 4, epochs=1, verbose=0)
    assert np.array_equal(waves, q.get_layer("mel_waves").kernels()[0].raw.numpy())
    assert not np.array_equal(head, q.get_layer("words").kernels()[0].raw.numpy())
    for layer, high in zip(front, before, strict=True):
        assert np.array_equal(layer.high.numpy(), high)


def test_a_trained_and_saved_one_is_the_same(tmp_path: Path) -> None:
    q = ready(speaker(), "tflm", "int16x8")
    q.save(tmp_path / "q.keras")
    again = keras.saving.load_model(tmp_path / "q.keras")
    for a, b in zip(q.predict(sounds(), verbose=0), again.predict(sounds(), verbose=0), strict=True):
        np.testing.assert_array_equal(a, b)
    assert contract.file_of(q) == contract.file_of(again)


def test_cepstra_are_a_dense_layer_behind(tmp_path: Path) -> None:
    """MFCC: the cosine transform of the decibels, one frame after the other."""
    inputs = keras.Input((LENGTH,), name="sound")
    mel = layers.Permute((2, 1), name="frames")(layers.MelSpectrogram(**MEL, name="mel")(inputs))
    dct = layers.Dense(10, use_bias=False, name="dct")
    outputs = dct(mel)
    angles = np.outer(np.arange(20) + 0.5, np.arange(10)) * np.pi / 20
    dct.kernel.assign(np.cos(angles) * np.sqrt(2 / 20))
    model = keras.Model(inputs, outputs)
    q = ready(model, "tflm")
    kquant.export(q, tmp_path / "m.tflite", check_runtimes=False)
    x = sounds(16, seed=2, decades=1.0)
    (wanted,) = one_by_one(model, x)
    np.testing.assert_array_equal(q.predict(x, verbose=0), kquant.predict(tmp_path / "m.tflite", x, "tflm"))
    error = q.predict(x, verbose=0)[3:] - wanted[3:]
    assert np.sqrt(np.mean(error**2)) < 0.02 * np.abs(wanted[3:]).max()


REFUSED = {
    "mag_exp=3": ({"mag_exp": 3.0}, "mag_exp=3.0.*Set mag_exp=1 or"),
    "too many bands": ({"num_mel_bins": 120}, r"\d+ of its 120 bands .*fewer num_mel_bins"),
    "no rate": ({"sampling_rate": -1}, "sampling_rate=-1. Set the samples per second"),
    "above half the rate": ({"max_freq": 5000.0}, "5000.0 Hz do not lie between.*8000"),
    "longer than the clip": ({"fft_length": 4096, "sequence_length": 256}, "2000 samples are fewer than the 2049"),
    "nothing below the loudest": ({"top_db": 0.0}, "top_db=0.0"),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_refused_by_name_before_training(case: str) -> None:
    changes, said = REFUSED[case]
    inputs = keras.Input((LENGTH,), name="sound")
    model = keras.Model(inputs, layers.MelSpectrogram(**{**MEL, **changes}, name="mel")(inputs))
    with pytest.raises(ValueError, match=rf"mel \(MelSpectrogram\): .*{said}"):
        kquant.quantize(model)


def test_a_float_front_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mel \(Bands\).*stay float.*int8"):
        kquant.quantize(speaker(), "float16")


@pytest.mark.parametrize(("mode", "shape", "said"), [("angle", (160, 1), "an angle"), ("log", (160, 2), "one channel")])
def test_spectrograms_that_are_refused(mode, shape, said) -> None:
    inputs = keras.Input(shape)
    layer = layers.STFTSpectrogram(mode=mode, frame_length=32, name="stft")
    with pytest.raises(ValueError, match=rf"stft \(STFTSpectrogram\): .*{said}"):
        kquant.quantize(keras.Model(inputs, layer(inputs)))


def test_kernels_of_a_spectrogram_train() -> None:
    inputs = keras.Input((LENGTH, 1), name="sound")
    y = layers.STFTSpectrogram(frame_length=64, frame_step=32, fft_length=64, name="stft")(inputs)
    model = keras.Model(inputs, layers.Dense(2, name="head")(layers.GlobalAveragePooling1D()(y)))
    q = kquant.calibrate(kquant.quantize(model, target="tflm"), sounds()[..., None], verbose=False)
    assert isinstance(q.get_layer("stft"), Bands)
    before = q.get_layer("stft_waves").kernels()[0].raw.numpy().copy()
    q.compile("adam", "mse")
    q.fit(sounds()[..., None], np.zeros((104, 2)), epochs=1, verbose=0)
    assert not np.array_equal(before, q.get_layer("stft_waves").kernels()[0].raw.numpy())


@pytest.mark.parametrize("target", ["litert", "tflm"])
def test_a_spectrogram_streams(target: str, tmp_path: Path) -> None:
    """`export` compares every code of the stream with those of the file over whole clips."""
    inputs, x = keras.Input((LENGTH, 1), name="sound"), sounds()[..., None]
    y = layers.STFTSpectrogram(frame_length=64, frame_step=32, fft_length=64, name="stft")(inputs)
    y = layers.Conv1D(4, 3, padding="causal", name="conv")(y)
    q = kquant.calibrate(kquant.quantize(keras.Model(inputs, y), target=target), x, verbose=False)
    report = kquant.export(q, tmp_path / "m.tflite", streaming=True, data=x[:8])
    assert (report.streaming.hop, report.streaming.states[0].shape[-2:]) == (32, (32, 1))
    assert report.streaming.states[0].zero_point == 0


@pytest.mark.parametrize("scale", [1.0, 32768.0])
def test_16_bit_sound_is_whole_in_a_mixed_policy(scale: float) -> None:
    """A float of 16 bits has 11 for a sample of 16, and no power of whole numbers."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        q = ready(speaker(), "litert", scale=scale)
        x = sounds(48, seed=1) * np.float32(scale)
        simulated, measured = q.predict(x, verbose=0)[1], kquant.predict(contract.file_of(q), x, "litert-reference")[1]
    finally:
        keras.config.set_dtype_policy("float32")
    step = float(q.get_layer("mel_quant").grid()[0])
    assert np.abs(np.float32(simulated) - measured).max() < 0.25 * step  # what the output's own 11 bits leave out


def test_a_stripped_one_is_the_float_model() -> None:
    model = speaker()
    plain = kquant.strip(ready(model, "litert"))
    for a, b in zip(one_by_one(model, sounds(8)), one_by_one(plain, sounds(8)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-2)


def test_sound_beyond_its_range_is_told() -> None:
    """Clips that an augmentation made louder: 1.2 of what 16 bits hold."""
    with pytest.warns(UserWarning, match=r"input 'sound' goes from -1\.2.* to 1\..*np.clip.*divide them by 1\.2"):
        q = ready(speaker(), "tflm", scale=1.2)
    assert float(q.get_layer("sound_quant").grid()[0]) == 2.0**-14
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="calibrate: the sound")
        for scale in (1.0, 32768.0):
            ready(speaker(), "tflm", scale=scale)


@pytest.mark.parametrize("edges", ["int8", "uint8"])
def test_eight_bits_of_sound_are_told(edges: Any, tmp_path: Path) -> None:
    q = ready(speaker(), "litert")
    with pytest.warns(UserWarning, match=rf"export: io='{edges}' gives the sound at 'sound' 8 bits, 48 dB"):
        kquant.export(q, tmp_path / "m.tflite", io=edges, check_runtimes=False)


def listener(**changes: object) -> keras.Model:
    """Words for each frame, and for the clip so far."""
    inputs = keras.Input((LENGTH,), name="sound")
    mel = kquant.CausalMelSpectrogram(**{**MEL, **changes}, name="mel")(inputs)
    x = layers.Conv1D(4, 3, padding="causal", activation="relu", name="conv")(mel)
    words = layers.Dense(4, name="words")(x)
    return keras.Model(inputs, [words, layers.Dense(3, name="clip")(layers.GlobalAveragePooling1D(name="mean")(x))])


@pytest.mark.parametrize(
    "changes", [{}, {"sequence_length": 200, "fft_length": 300}, {"window": "hamming"}, {"mag_exp": 1.0}]
)
def test_frames_of_a_causal_one_are_those_of_keras_behind_silence(changes) -> None:
    settings = {**MEL, **changes}
    length, fft, stride = settings.get("sequence_length", settings["fft_length"]), settings["fft_length"], 128
    x = sounds(16)
    # Keras lays the middle of frame j at sample 128 j; here frame i ends with sample 128 (i + 1)
    late = 2 * stride + (length + 1) // 2 - stride
    quiet = np.pad(x, [(0, 0), (late, fft)])
    wanted = layers.MelSpectrogram(**settings, top_db=1e9)(quiet).numpy().transpose(0, 2, 1)
    made = kquant.CausalMelSpectrogram(**settings)(x).numpy()
    assert made.shape == (16, LENGTH // stride, 20)
    np.testing.assert_allclose(made, wanted[:, 2 : 2 + made.shape[1]], atol=1e-3)


@pytest.mark.parametrize("target", ["litert", "tflm"])
@pytest.mark.parametrize(("changes", "frames"), [({"sequence_length": 200}, 1), ({"sequence_stride": 300}, 3)])
def test_a_causal_one_streams_code_for_code(target: str, changes, frames: int, tmp_path: Path) -> None:
    q = kquant.calibrate(kquant.quantize(listener(**changes), target=target), sounds(), verbose=False)
    report = kquant.export(q, tmp_path / "m.tflite", streaming=frames, data=sounds(8))
    words = report.streaming.outputs[0]
    assert report.streaming.hop == frames * changes.get("sequence_stride", 128)
    assert (words.delay, words.clean, words.warm_up) == (0, 0, 0)
    x = sounds(6, seed=1)
    wanted = q.predict(x, verbose=0)[0]
    stream = kquant.stream(tmp_path / "m.tflite", "tflm" if target == "tflm" else "litert-reference")
    for clip, codes in zip(x, wanted, strict=True):
        made = stream.run(clip)[0]
        np.testing.assert_array_equal(made, codes[: len(made)])


ODD = [
    {"sequence_length": 201},
    {"fft_length": 255},
    {"fft_length": 255, "sequence_length": 200, "window": "hamming"},
    {"fft_length": 301, "sequence_length": 201, "window": np.blackman(201).tolist()},
    {"sequence_length": 200, "window": None},
]


@pytest.mark.parametrize("window", ["hann", "hamming", None, "numbers"])
@pytest.mark.parametrize(("fft", "length"), [(64, 64), (64, 63), (63, 63), (63, 50), (64, 21), (8, 1), (9, 2)])
def test_windows_are_those_of_keras(fft: int, length: int, window: Any) -> None:
    """A pulse at each place of a frame: bin 0 is what the window gives it."""
    given = np.random.default_rng(0).uniform(0.1, 1.0, length).tolist() if window == "numbers" else window
    layer = layers.MelSpectrogram(fft_length=fft, sequence_length=length, window=given)
    real, _ = keras.ops.stft(np.eye(fft, dtype=np.float32), length, fft, fft, given, center=False)
    np.testing.assert_allclose(window_of(layer), np.asarray(real)[:, 0, 0], atol=1e-6)


@pytest.mark.parametrize("changes", ODD)
@pytest.mark.parametrize("kind", [layers.MelSpectrogram, kquant.CausalMelSpectrogram])
def test_a_stripped_one_of_an_odd_window_is_the_float_model(kind: Any, changes) -> None:
    inputs, x = keras.Input((LENGTH,)), sounds(8, decades=1.0)[2:]
    model = keras.Model(inputs, kind(**{**MEL, "min_freq": 300.0, **changes})(inputs))
    plain = kquant.strip(ready(model, "litert"))
    for a, b in zip(one_by_one(model, x), one_by_one(plain, x), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-3)


@pytest.mark.filterwarnings("ignore:calibrate. the range differs")  # powers of quiet clips, then of loud ones
@pytest.mark.parametrize("changes", [{"mode": "psd"}, {"fft_length": 65, "periodic": True, "window": "blackman"}])
def test_a_stripped_spectrogram_of_odd_frames_is_the_float_model(changes) -> None:
    inputs, x = keras.Input((LENGTH, 1)), sounds(8, decades=1.0)[2:, :, None]
    settings = {"frame_length": 51, "frame_step": 25, "fft_length": 63, "mode": "log", **changes}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`fft_length` is recommended")
        model = keras.Model(inputs, layers.STFTSpectrogram(**settings)(inputs))
        plain = kquant.strip(kquant.calibrate(kquant.quantize(model), sounds()[..., None], verbose=False))
    np.testing.assert_allclose(model(x), plain(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("changes", [{}, *ODD])
def test_frames_of_a_causal_one_know_nothing_of_later_samples(changes) -> None:
    layer, x = kquant.CausalMelSpectrogram(**{**MEL, **changes}), sounds(4)
    other = np.concatenate([x[:, : 6 * 128], sounds(4, seed=1)[:, 6 * 128 :]], axis=1)
    a, b = np.asarray(layer(x)), np.asarray(layer(other))
    np.testing.assert_array_equal(a[:, :6], b[:, :6])
    assert np.abs(a[:, 6] - b[:, 6]).max() > 1.0


def test_a_window_of_an_array_is_saved(tmp_path: Path) -> None:
    inputs, x = keras.Input((LENGTH,)), sounds(4)
    model = keras.Model(inputs, kquant.CausalMelSpectrogram(**MEL, window=np.hanning(256))(inputs))
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(model(x), again(x))
    kquant.quantize(again)


def test_a_saved_array_that_is_a_window_no_more_is_told(tmp_path: Path) -> None:
    """Keras' own layer reads a dictionary where it saved an array."""
    inputs = keras.Input((LENGTH,))
    model = keras.Model(inputs, layers.MelSpectrogram(**MEL, window=np.hanning(256), name="mel")(inputs))
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    with pytest.raises(ValueError, match=r"mel: its window is no row of numbers.*TrackedDict.*window.tolist\(\)"):
        kquant.quantize(again)
    again.get_layer("mel").window = np.hanning(256).tolist()
    kquant.quantize(again)


def test_top_db_is_refused_by_name() -> None:
    told = layers.MelSpectrogram(**MEL, name="mel").get_config()
    with pytest.raises(ValueError, match=r"mel: top_db=80.0 counts.*Leave top_db out"):
        kquant.CausalMelSpectrogram(**told)
    del told["top_db"]
    assert kquant.CausalMelSpectrogram(**told).get_config() == told
    with pytest.raises(TypeError, match="positional"):  # the tenth of Keras' layer is `top_db`
        kquant.CausalMelSpectrogram(256, 128, None, "hann", 8000, 20, 20.0, None, True, 80.0)  # pyright: ignore


@pytest.mark.parametrize(
    ("shape", "said", "remedy"),
    [
        ((100,), r"clips of 100 samples hold no frame of 256 each 128. Take longer clips, or", None),
        ((LENGTH, 1), r"Received: .*2000, 1\). One channel: .*Reshape\(\(2000,\)\)", layers.Reshape((LENGTH,))),
        ((LENGTH, 2), r"Received: .*2000, 2\). .*Permute\(\(2, 1\)\)", layers.Permute((2, 1))),
    ],
)
def test_clips_without_a_frame_are_refused_by_name(shape, said: str, remedy: Any) -> None:
    layer = kquant.CausalMelSpectrogram(**MEL, name="mel")
    for given in (keras.Input(shape), np.zeros((2, *shape), np.float32)):
        with pytest.raises(ValueError, match=rf"mel \(CausalMelSpectrogram\): .*{said}"):
            layer(given)
        if remedy is not None:
            assert layer(remedy(given)).shape[-2:] == (15, 20)
    if remedy is None:
        shorter = kquant.CausalMelSpectrogram(**{**MEL, "sequence_length": 100})
        assert shorter(np.zeros((1, 100), np.float32)).shape == (1, 1, 20)


def test_samples_that_are_features_are_refused_in_a_stream(tmp_path: Path) -> None:
    def model(remedy: bool) -> keras.Model:
        x = inputs = keras.Input((LENGTH,), name="sound")
        x = layers.Reshape((LENGTH, 1))(x) if remedy else x
        x = layers.Rescaling(1 / 32768, name="scaled")(x)
        x = layers.Reshape((LENGTH,))(x) if remedy else x
        return keras.Model(inputs, kquant.CausalMelSpectrogram(**MEL, name="mel")(x))

    with pytest.raises(ValueError, match=r"export: scaled \(.*samples of a clip for features.*Reshape\(\(2000, 1\)\)"):
        kquant.export(ready(model(False), "litert", scale=32768.0), tmp_path / "m.tflite", streaming=True)
    q = ready(model(True), "litert", scale=32768.0)
    assert kquant.export(q, tmp_path / "m.tflite", streaming=True, data=32768 * sounds(4)).streaming.hop == 128


@pytest.mark.filterwarnings("ignore:quantize. MediaTek")  # what it takes one scale for is no matter here
def test_every_target_but_ethos_u_has_spectrograms() -> None:
    """What docs/front_ends.md, docs/features.md and CHANGELOG.md say."""
    inputs = keras.Input((512,), name="sound")
    told = {"fft_length": 64, "sequence_stride": 64, "sampling_rate": 8000, "num_mel_bins": 4, "min_freq": 300.0}
    model = keras.Model(inputs, kquant.CausalMelSpectrogram(**told, name="mel")(inputs))
    refused: dict[str, str] = {}
    for target in names():
        try:
            kquant.quantize(model, target=target)
        except ValueError as error:
            refused[target] = str(error)
    assert list(refused) == ["ethos-u"] and "no int8 kernel GATHER" in refused["ethos-u"]


def test_a_causal_one_is_saved_and_stripped(tmp_path: Path) -> None:
    model = listener(min_power=1e-8, ref_power=2.0)
    q = kquant.calibrate(kquant.quantize(model), sounds(), verbose=False)
    q.save(tmp_path / "q.keras")
    model.save(tmp_path / "m.keras")
    x = sounds(8)
    for a, b in zip(
        q.predict(x, verbose=0), keras.saving.load_model(tmp_path / "q.keras").predict(x, verbose=0), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    again, plain = keras.saving.load_model(tmp_path / "m.keras"), kquant.strip(q)
    assert "top_db" not in again.get_layer("mel").get_config()
    for a, b, c in zip(model(x), again(x), plain(x), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, c, rtol=1e-3, atol=2e-2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_mel_bins": 120}, r"\d+ of its 120 bands .*fewer num_mel_bins"),
        ({"mag_exp": 0.5}, "mag_exp=0.5; .*Set mag_exp=1 or"),
        ({"max_freq": 5000.0}, "5000.0 Hz do not lie between.*8000"),
        ({"fft_length": 4096, "sequence_stride": 2048}, "2000 samples hold no frame of 4096.*Take longer clips, or"),
    ],
)
def test_causal_ones_are_refused_by_name(changes, said: str) -> None:
    with pytest.raises(ValueError, match=rf"mel \(CausalMelSpectrogram\): .*{said}"):
        kquant.quantize(listener(**changes))


def test_the_causal_one_is_the_way_out_of_mirrored_ends(tmp_path: Path) -> None:
    inputs = keras.Input((LENGTH,), name="sound")
    mel = layers.MelSpectrogram(**MEL, name="mel")(inputs)
    q = kquant.calibrate(kquant.quantize(keras.Model(inputs, mel)), sounds(), verbose=False)
    with pytest.raises(
        ValueError, match=r"export: mel_ends \(STRIDED_SLICE.*mirrors the ends.*kquant.CausalMelSpectrogram"
    ):
        kquant.export(q, tmp_path / "m.tflite", streaming=True)

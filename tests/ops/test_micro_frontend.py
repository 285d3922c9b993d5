"""Sound to classes by TFLM's own operators: against its published preprocessor, and codes from waveform to class."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import kquant
from kquant.runtime.running import available

layers = keras.layers
LENGTH, RATE = 3200, 8000
SMALL = {"sampling_rate": RATE, "sequence_length": 240, "sequence_stride": 160, "num_mel_bins": 20, "max_freq": 3800.0}
QUIET = {"verbose": False}
on_tflm = pytest.mark.skipif("tflm" not in available(), reason="the operators are TensorFlow Lite Micro's own")


def sounds(clips: int = 104, seed: int = 0) -> np.ndarray:
    """Chirps, noise and vowels in syllables, over five decades; silence, a constant, clipped noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(LENGTH) / RATE
    start, rise, pitch, formant, beat = rng.uniform(
        [[100], [100], [80], [300], [2]], [[2000], [2000], [250], [2500], [6]], (5, clips)
    )[..., None]
    chirps = np.sin(2 * np.pi * (start * t + rise * t * t))
    harmonics = np.arange(1, 16)[:, None, None] * pitch
    shape = np.exp(-(((harmonics - formant) / 400) ** 2)) + 0.3 * np.exp(-(((harmonics - 600) / 200) ** 2))
    vowels = (shape * np.sin(2 * np.pi * harmonics * t)).sum(0) * np.maximum(np.sin(2 * np.pi * beat * t), 0)
    kinds = np.stack([chirps, vowels, rng.normal(size=(clips, LENGTH))])
    x = kinds[np.arange(clips) % 3, np.arange(clips)]
    x = x / np.abs(x).max(axis=1, keepdims=True) * 10.0 ** -(5 * rng.random((clips, 1)))
    x[0], x[1], x[2] = 0.0, 1.0, np.sign(rng.normal(size=LENGTH))
    return np.float32(np.clip(np.rint(x * 32768), -32768, 32767) / 32768)


def speaker(**changes: object) -> keras.Model:
    """A classifier of waveforms; its second output are the features."""
    inputs = keras.Input((LENGTH,), name="sound")
    front = kquant.MicroFrontend(**{**SMALL, **changes}, name="front")(inputs)
    x = layers.Reshape((*front.shape[1:], 1), name="image")(front)
    x = layers.Conv2D(4, 3, strides=2, activation="relu", name="conv")(x)
    return keras.Model(inputs, [layers.Dense(4, name="words")(layers.Flatten(name="flat")(x)), front])


def ready(model: keras.Model, recipe: object = "int8", scale: float = 1.0) -> keras.Model:
    return kquant.calibrate(kquant.quantize(model, recipe, target="tflm"), sounds() * scale, verbose=False)


def melody() -> np.ndarray:
    """int16[16000], of whole numbers alone: square waves in noise, from clipped to silent."""
    n = np.arange(16000)
    noise = (n * n * 7919 + n * 104729) % 65521 - 32760
    x = np.where((n * (3 + n // 1600)) // 29 % 2, 9000, -9000) + noise // 8
    x >>= np.array([0, 0, 3, 6, 9, 12, 15, 2, 1, 0])[n // 1600]
    x[14400:] = np.clip(x[14400:] * 6, -32768, 32767)
    return x.astype(np.int16)


@pytest.mark.parametrize("full_scale", [1.0, 32768.0])
def test_features_are_those_of_the_published_preprocessor(full_scale: float) -> None:
    # what examples/micro_speech/models/audio_preprocessor_int8.tflite of tflite-micro 90b983c gives for these samples,
    # window by window, on TFLM
    front = kquant.MicroFrontend(full_scale=full_scale)
    logs = np.rint(np.asarray(front(np.float32(melody()[None] * (full_scale / 32768))))[0] * 64).astype(int)
    codes = np.clip((logs * 256 + 333) // 666 - 128, -128, 127).astype(np.int8)  # as audio_preprocessor.py scales them
    assert hashlib.sha256(codes.tobytes()).hexdigest()[:16] == "41442d512a9a28e1"
    assert len(np.unique(codes)) == 145


@on_tflm
@pytest.mark.parametrize("recipe", ["int8", "int16x8"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"pcan": False, "fft_length": 512}, {"noise_reduction": False, "pcan": False, "sequence_length": 100}],
)
def test_waveform_to_class_code_for_code(changes: dict, recipe: str, tmp_path: Path) -> None:
    q = ready(speaker(**changes), recipe)
    report = kquant.export(q, tmp_path / "m.tflite", data=sounds(8))
    assert report.operators["WHILE"] == 1 and "FLOAT32" not in report.types
    x = sounds(48, seed=1)
    for a, b in zip(q.predict(x, verbose=0), kquant.predict(tmp_path / "m.tflite", x, "tflm"), strict=True):
        np.testing.assert_array_equal(a, b)
        assert len(np.unique(a)) > 50


@on_tflm
@pytest.mark.filterwarnings("ignore:calibrate. the sound of input")  # of the clips beyond full scale
@pytest.mark.parametrize(
    ("full_scale", "loud", "step"), [(1.0, 1.0, 2.0**-15), (1.0, 1.9, 2.0**-14), (32768.0, 1.0, 1.0)]
)
def test_the_input_is_16_bit_sound(full_scale: float, loud: float, step: float, tmp_path: Path) -> None:
    q = ready(speaker(full_scale=full_scale), scale=loud * full_scale)
    kquant.export(q, tmp_path / "m.tflite", check_runtimes=False)
    sound = kquant.inspect(tmp_path / "m.tflite").inputs[0]
    assert (sound.type, sound.scale, sound.zero_point) == ("INT16", (step,), (0,))
    x = sounds(12, seed=1) * np.float32(loud * full_scale)
    for a, b in zip(q.predict(x, verbose=0), kquant.predict(tmp_path / "m.tflite", x, "tflm"), strict=True):
        np.testing.assert_array_equal(a, b)


@on_tflm
def test_noise_of_one_clip_is_not_that_of_the_next(tmp_path: Path) -> None:
    q = ready(speaker())
    kquant.export(q, tmp_path / "m.tflite", check_runtimes=False)
    x = sounds(6, seed=1)[3:]
    alone = [kquant.predict(tmp_path / "m.tflite", x[i : i + 1], "tflm")[1] for i in range(3)]
    np.testing.assert_array_equal(np.concatenate(alone), kquant.predict(tmp_path / "m.tflite", x, "tflm")[1])


def streamed(**changes: object) -> keras.Model:
    """Words for each frame and for the clip so far."""
    inputs = keras.Input((LENGTH,), name="sound")
    front = kquant.MicroFrontend(**{**SMALL, **changes}, name="front")(inputs)
    x = layers.Conv1D(4, 3, padding="causal", activation="relu", name="conv")(front)
    whole = layers.GlobalAveragePooling1D(name="mean")(x)
    return keras.Model(inputs, [layers.Dense(4, name="words")(x), layers.Dense(3, name="clip")(whole)])


@on_tflm
@pytest.mark.parametrize("states", ["io", "variables"])
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("changes", [{"padding": "causal"}, {"noise_reduction": False, "pcan": False}])
def test_a_stream_of_samples_gives_the_codes_of_the_clip(
    changes: dict, frames: int, states: str, tmp_path: Path
) -> None:
    q = ready(streamed(**changes))
    report = kquant.export(q, tmp_path / "s.tflite", streaming=frames, states=states, data=sounds(8))
    assert report.streaming.hop == 160 * frames and report.operators.get("WHILE", 0) == (frames > 1)
    (words, *_), (note, *_) = report.streaming.outputs, report.streaming.notes
    x, causal = sounds(6, seed=1)[3:], "padding" in changes
    wanted = q.predict(x, verbose=0)
    stream = kquant.stream(tmp_path / "s.tflite", "tflm")
    assert (words.warm_up == 0) == causal and ("Reset()" in " ".join(report.streaming.notes)) == causal, note
    for i in range(len(x)):
        made = stream.run(x[i])  # which begins with a reset
        found = made[0][words.delay + words.clean :]
        assert len(found) > 12
        np.testing.assert_array_equal(found, wanted[0][i][words.clean :][: len(found)])
    if frames == 1 and causal:
        assert len(made[0]) == 20
        np.testing.assert_array_equal(made[1][-1], wanted[1][-1])


@on_tflm
def test_a_stream_that_would_estimate_the_noise_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"front \(WHILE\) cannot be streamed: its estimate of the.*padding='causal'"):
        kquant.export(ready(streamed()), tmp_path / "s.tflite", streaming=True)


def test_silence_in_front_of_a_clip_is_that_of_samples() -> None:
    x = sounds(8)
    plain, causal = (kquant.MicroFrontend(**SMALL, padding=padding) for padding in ("valid", "causal"))
    np.testing.assert_array_equal(causal(x), plain(np.pad(x, ((0, 0), (80, 0)))))
    assert causal(x).shape == causal.compute_output_spec(keras.KerasTensor(x.shape)).shape == (8, 20, 20)
    # frames shorter than a stride get no silence
    apart = [kquant.MicroFrontend(sequence_length=240, sequence_stride=400, padding=p) for p in ("valid", "causal")]
    sound = np.float32(np.random.default_rng(3).uniform(-0.5, 0.5, (1, 1900)))
    np.testing.assert_array_equal(apart[1](sound), apart[0](sound))
    assert apart[1](sound).shape[1] == 5 == (1900 - 240) // 400 + 1 != 1900 // 400


@pytest.mark.filterwarnings("error:calibrate. front")
@pytest.mark.parametrize(
    ("scale", "divisor", "said", "fits"),
    [
        (32768.0, 1.0, r"is 3\d+, and full_scale=1 cuts them off.*Make the layer with full_scale=32768\.0", 32768.0),
        (1.0, 1.0, r"is 1, and full_scale=32768 rounds them to 1 steps.*Make the layer with full_scale=1\.0", 1.0),
        (9.0, 1.0, r"is 9, and full_scale=1 cuts.*Divide the samples by 9, and .*full_scale=1\.0", 1.0),
        (9.0, 1.0, r"is 9, and full_scale=32768 rounds them to 9 .*Divide the samples by 9", 1.0),
        (32768.0, 1 / 32768, r"is 1, and full_scale=32768 rounds .*Make the layer with full_scale=1\.0", 1.0),
    ],
)
@pytest.mark.filterwarnings("ignore:calibrate. the (sound of input|range differs)")
def test_samples_of_another_scale_are_told_with_the_value_that_fits(
    scale: float, divisor: float, said: str, fits: float
) -> None:
    def calibrated(full_scale: float, divide: float) -> None:
        inputs = keras.Input((LENGTH,), name="sound")
        x = inputs if divisor == 1.0 else layers.Rescaling(divisor)(inputs)
        rows = kquant.MicroFrontend(**SMALL, full_scale=full_scale, name="front")(layers.Reshape((LENGTH,))(x))
        q = kquant.quantize(keras.Model(inputs, rows), target="tflm")
        kquant.calibrate(q, sounds(64) * scale / divide, **QUIET)

    with pytest.warns(UserWarning, match=r"calibrate: front \(MicroFrontend\): the loudest of its samples " + said):
        calibrated(1.0 if "full_scale=1 " in said else 32768.0, 1.0)
    calibrated(fits, scale if "Divide" in said else 1.0)


def test_a_trained_and_saved_one_is_the_same(tmp_path: Path) -> None:
    model = speaker()
    q = ready(model)
    before = q.get_layer("words").kernels()[0].raw.numpy().copy()
    wanted = model(sounds(8))[1]
    q.compile("adam", [keras.losses.SparseCategoricalCrossentropy(from_logits=True), None])
    q.fit(sounds(), np.arange(104) % 4, epochs=1, verbose=0)
    assert not np.array_equal(before, q.get_layer("words").kernels()[0].raw.numpy())
    grid = float(q.get_layer("front_quant").grid()[0])
    assert np.abs(q(sounds(8), training=True)[1] - wanted).max() <= grid  # the same integers, on the grid of 8 bits
    q.save(tmp_path / "q.keras")
    again = keras.saving.load_model(tmp_path / "q.keras")
    for a, b in zip(q.predict(sounds(8), verbose=0), again.predict(sounds(8), verbose=0), strict=True):
        np.testing.assert_array_equal(a, b)
    plain = kquant.strip(q)
    np.testing.assert_array_equal(plain(sounds(8))[1], wanted)


@on_tflm
def test_other_targets_and_runtimes_are_told_of_the_other_front_end(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"front \(MicroFrontend\).* SignalWindow, .*MelSpectrogram .* on target 'litert'"
    ):
        kquant.quantize(speaker(), target="litert")
    one = {"name": "r", "rules": [{"layer": "front", "float": True}]}
    said = r"front \(MicroFrontend\): it is to stay float, .* a static recipe"
    for recipe, words in (("float16", "recipe 'float16': its activations are floats"), (one, said)):
        with pytest.raises(ValueError, match=words):
            kquant.quantize(speaker(), recipe, target="tflm")
        # no recipe helps there
        with pytest.raises(ValueError, match=r"it is to stay float.* SignalWindow.*target 'tflm' and .*MelSpectrogram"):
            kquant.quantize(speaker(), recipe, target="litert")
    kquant.export(ready(speaker()), tmp_path / "m.tflite", check_runtimes=False)
    with pytest.raises(ValueError, match=r"TensorFlow Lite Micro alone has \(.*SignalWindow\). Give runtime='tflm'"):
        kquant.predict(tmp_path / "m.tflite", sounds(8), "litert")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sequence_length": 30},
            "front .*frames of 30 samples; SignalRfft transforms 64 to 2048. Set .* from 33 to 2048",
        ),
        ({"sequence_length": 2400}, "frames of 2400 samples"),
        ({"fft_length": 300}, "fft_length=300; SignalRfft takes powers of two from 64 to 2048"),
        ({"fft_length": 128}, "no fewer than the 240 samples of a frame"),
        ({"fft_length": 4096}, "fft_length=4096"),
        ({"fft_length": 0}, "fft_length=0; SignalRfft"),
        ({"sequence_stride": 0}, "sequence_stride=0"),
        ({"full_scale": 255.0}, "full_scale=255.0. Set 1.0"),
        ({"padding": "same"}, "padding='same'. Set 'valid', or 'causal'"),
        (
            {"max_freq": 4100.0},
            "bands from 125.0 to 4100.0 Hz do not lie between 0 and half the sampling rate of 8000 Hz",
        ),
        ({"sampling_rate": 0}, "sampling_rate=0. Set the samples per second"),
        ({"max_freq": 4000.0}, "SignalFilterBank does not take. Set max_freq to 3969 or less"),
        ({"num_mel_bins": 0}, "num_mel_bins=0"),
        ({"num_mel_bins": 160}, r"of its 160 bands \(the first is \d\) hold no bin of 256 samples at 8000 Hz"),
        ({"smoothing": (0.1,)}, "smoothing=.*expected two shares"),
        ({"min_signal": 1.5}, "min_signal=1.5"),
        ({"noise_reduction": False}, "pcan=True weighs by the estimate of the noise"),
        ({"pcan_offset": 10.0}, "a gain beyond the 16 bits of SignalPCAN's table"),
    ],
)
def test_what_the_operators_do_not_take_is_refused_by_name(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=r"front \(MicroFrontend\): .*" + message.removeprefix("front .*")):
        kquant.MicroFrontend(**{**SMALL, **changes}, name="front")


@pytest.mark.parametrize(
    ("shape", "message"),
    [((None,), "of a fixed length"), ((LENGTH, 1), "expected a waveform"), ((200,), "hold no frame of 240.*=200")],
)
def test_clips_without_a_frame_are_refused(shape: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=r"front \(MicroFrontend\): .*" + message):
        kquant.MicroFrontend(**SMALL, name="front")(keras.Input(shape))


def test_the_remedy_of_the_highest_band_works() -> None:
    kquant.MicroFrontend(**{**SMALL, "max_freq": 3969.0})


@pytest.mark.parametrize("rate", ["8k", 8000.5, True, None])
def test_a_rate_that_is_no_whole_number_is_told(rate: Any) -> None:
    with pytest.raises(ValueError, match=r"front \(MicroFrontend\): sampling_rate=.*8 kHz are 8000"):
        kquant.MicroFrontend(rate, name="front")

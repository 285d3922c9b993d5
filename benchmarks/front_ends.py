"""Words from 16-bit sound: the spectrogram inside the file against float features, on LiteRT and on TFLM.

python -m benchmarks.front_ends                 synthetic words: ten sweeps of three formants, seeded
KQUANT_SPEECH=free-spoken-digit-dataset/recordings python -m benchmarks.front_ends

A small network is trained on float log-mel features, then put behind the MelSpectrogram layer and quantized as one
model, from the waveform on. The same network is taught on what `kquant.MicroFrontend` gives, by TFLM's own operators,
and put behind it. Of the recordings those with numbers 0 to 4 judge (the data set's own split), each at
several places of the window. Every code of every runtime is compared with the simulation.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import wave
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import kquant
from kquant.files.atomic import write_atomically
from kquant.runtime.arenas import arena_bytes
from kquant.runtime.running import available
from kquant.targets import load

RESULTS = Path(__file__).parent / "results" / "front_ends.json"
RATE, LENGTH, CLASSES = 8000, 8192, 10
MEL = {"fft_length": 256, "sequence_stride": 160, "sampling_rate": RATE, "num_mel_bins": 40}
MICRO = {"sampling_rate": RATE, "sequence_length": 240, "sequence_stride": 160, "num_mel_bins": 40, "max_freq": 3800.0}
LEVELS = {"mel": 1 / 30, "micro": 1 / 4}  # what brings the features of a front end to about 1
TAUGHT = 2700  # words, at most
PLACES = 5  # of each word that judges, in the window
layers = keras.layers
Words = tuple[list[np.ndarray], np.ndarray, np.ndarray]


def recordings(folder: Path) -> Words:
    """Sound of every file `word_speaker_number.wav`, int16; the words; which of them judge."""
    sounds, words, judges = [], [], []
    for path in sorted(folder.glob("*.wav")):
        word, _, number = path.stem.split("_")
        with wave.open(str(path)) as file:
            if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (RATE, 1, 2):
                raise SystemExit(f"{path}: expected {RATE} Hz, one channel, 16 bits.")
            sounds.append(np.frombuffer(file.readframes(file.getnframes()), "<i2"))
        words.append(int(word))
        judges.append(int(number) < 5)
    if not sounds:
        raise SystemExit(f"{folder}: no .wav files; KQUANT_SPEECH names the recordings of the spoken digits.")
    return sounds, np.array(words), np.array(judges)


def synthetic(each: int = 150, seed: int = 0) -> Words:
    """Words of three sweeping formants over a pitch, with breath; 10 kinds of sweeps."""
    rng, sounds = np.random.default_rng(seed), []
    ends = np.random.default_rng(7).uniform([250, 800, 1900], [900, 1900, 3300], (CLASSES, 2, 3))
    words = np.repeat(np.arange(CLASSES), each)
    for word in words:
        t = np.linspace(0, 1, int(rng.integers(2000, 5500)))
        spread = rng.normal(1, 0.12, 3)
        phases = 2 * np.pi * np.cumsum((ends[word, 0] + np.outer(t, ends[word, 1] - ends[word, 0])) * spread, 0) / RATE
        voice = np.sign(np.sin(2 * np.pi * rng.uniform(90, 220) * np.arange(t.size) / RATE)) * 0.5 + 0.5
        sound = (np.sin(phases) * [1.0, 0.5, 0.3]).sum(1) * voice * np.sin(np.pi * t)
        sound += rng.normal(size=t.size) * rng.uniform(0.1, 0.6)
        sounds.append(np.int16(np.clip(sound * 10.0 ** rng.uniform(2.5, 4.0), -32768, 32767)))
    return sounds, words, np.tile(np.arange(each) < each // 5, CLASSES)


def placed(sounds: list[np.ndarray], places: np.ndarray) -> np.ndarray:
    """float32[n, LENGTH] in -1 .. 1: each sound at a share of the room that the window leaves."""
    clips = np.zeros((len(sounds), LENGTH), np.float32)
    for clip, sound, place in zip(clips, sounds, places, strict=True):
        sound = sound[:LENGTH]
        begin = int(place * (LENGTH - sound.size))
        clip[begin : begin + sound.size] = sound / np.float32(32768)
    return clips


def features(clips: np.ndarray) -> np.ndarray:
    """Float decibels, one clip at a time: Keras takes the loudest value of a batch for all of it."""
    mel = layers.MelSpectrogram(**MEL)
    return tf.map_fn(lambda clip: mel(clip[None])[0], tf.constant(clips)).numpy()


def micro_features(clips: np.ndarray) -> np.ndarray:
    """Logarithms of bands, [clips, bands, frames]: whole numbers over 64, in float as in the file."""
    front = kquant.MicroFrontend(**MICRO)
    parts = [np.asarray(front(clips[i : i + 64])) for i in range(0, len(clips), 64)]
    return np.concatenate(parts).transpose(0, 2, 1)


def head(shape: tuple[int, ...], level: float) -> keras.Model:
    """Three convolutions over [bands, frames]."""
    x = inputs = keras.Input(shape, name="decibels")
    x = layers.Rescaling(level, name="level")(layers.Reshape((*shape, 1), name="image")(x))
    x = layers.Conv2D(16, 5, strides=2, padding="same", activation="relu", name="stem")(x)
    for n in range(2):
        x = layers.Conv2D(32, 3, strides=2, activation="relu", name=f"conv{n}")(x)
    x = layers.Dropout(0.4, name="drop")(layers.Flatten(name="flat")(x))
    return keras.Model(inputs, layers.Dense(CLASSES, name="words")(x), name="head")


def trained(x: np.ndarray, y: np.ndarray, epochs: int, front: str) -> keras.Model:
    """The head, on the features of a front end."""
    keras.utils.set_random_seed(0)
    model = head(x.shape[1:], LEVELS[front])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(2e-3), loss)
    model.fit(x, y, batch_size=32, epochs=epochs, verbose=0)
    return model


def joined(model: keras.Model, front: str) -> keras.Model:
    """From the waveform to the word."""
    x = sound = keras.Input((LENGTH,), name="sound")
    if front == "mel":
        x = layers.MelSpectrogram(**MEL, name="mel")(x)
    else:
        x = layers.Permute((2, 1), name="turned")(kquant.MicroFrontend(**MICRO, name="micro")(x))
    return keras.Model(sound, model(x), name="speech")


def share(logits: np.ndarray, words: np.ndarray) -> float:
    """Percent of the words that are right."""
    return round(100 * float(np.mean(logits.argmax(-1) == words)), 2)


def measure(model: keras.Model, target: str, few: np.ndarray, x: np.ndarray, words: np.ndarray, folder: Path) -> Any:
    """A target's row: the file, and on each runtime what is right and which codes are the model's."""
    q = kquant.calibrate(kquant.quantize(model, target=target), few, verbose=False)
    path = folder / f"{target}.tflite"
    kquant.export(q, path, data=few[:32])
    wanted = q.predict(x, batch_size=64, verbose=0)
    row: dict[str, Any] = {"bytes": path.stat().st_size, "simulated": share(wanted, words)}
    for runtime in [name for name in load(target).runtimes if name in available()]:
        started = time.process_time()
        got = kquant.predict(path, x, runtime)
        equal = 100 * float(np.mean(got == wanted))
        row[runtime] = {"right": share(got, words), "equal codes": round(equal, 4)}
        print(f"  {target} {runtime}: {row[runtime]} ({time.process_time() - started:.0f} s)", flush=True)
        if runtime != "litert" and equal < 100.0:  # XNNPACK rounds in float32
            raise SystemExit(f"{runtime}: codes differ from the simulation.")
    if target == "tflm" and "tflm" in available():
        row["arena"] = arena_bytes(path.read_bytes())
    return row


def run(words: Words, epochs: int, most: int | None, fronts: list[str]) -> dict[str, Any]:
    """All figures of a data set; those of the micro front end under its name."""
    sounds, names, judges = words
    rng = np.random.default_rng(1)
    taught = rng.permutation(np.flatnonzero(~judges))[:TAUGHT]
    learning = placed([sounds[i] for i in taught], rng.random(len(taught)))
    asked = [s for s, j in zip(sounds, judges, strict=True) if j]
    x = np.concatenate([placed(asked, np.full(len(asked), place)) for place in np.linspace(0, 1, PLACES)])[:most]
    y = np.tile(names[judges], PLACES)[:most]
    few = learning[rng.permutation(len(learning))[:200]]
    rows: dict[str, Any] = {"words": len(x)}
    with tempfile.TemporaryDirectory() as folder:
        if "mel" in fronts:
            model, told = trained(features(learning), names[taught], epochs, "mel"), features(x)
            rows["float features"] = share(model.predict(told, verbose=0), y)
            alone = kquant.calibrate(kquant.quantize(model), features(few), verbose=False)
            rows["int8 behind float features"] = share(alone.predict(told, verbose=0), y)
            print(rows, flush=True)
            for target in ("litert", "tflm"):
                rows[target] = measure(joined(model, "mel"), target, few, x, y, Path(folder))
        if "micro" in fronts:
            model = trained(micro_features(learning), names[taught], epochs, "micro")
            right = share(model.predict(micro_features(x), verbose=0), y)
            print(f"micro: {right} behind features in float", flush=True)
            row = measure(joined(model, "micro"), "tflm", few, x, y, Path(folder))
            rows["micro"] = {"float behind the same features": right, **row}
    return rows


def main() -> None:
    """Measure what there is, print it and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--most", type=int, default=None, help="clips that judge, at most")
    parser.add_argument("--fronts", nargs="+", choices=list(LEVELS), default=list(LEVELS))
    args = parser.parse_args()
    named = os.environ.get("KQUANT_SPEECH")
    kind = "spoken digits" if named else "synthetic words"
    rows = run(recordings(Path(named)) if named else synthetic(), args.epochs, args.most, args.fronts)
    print(json.dumps(rows, indent=1))
    if args.most is None:
        kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
        write_atomically(RESULTS, f"{json.dumps({**kept, kind: {**kept.get(kind, {}), **rows}}, indent=1)}\n".encode())


if __name__ == "__main__":
    main()

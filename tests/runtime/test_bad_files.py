"""Files that are none, or damaged: an answer or a refusal, whatever the interpreter does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from one_layer import X, calibrated, content

import kquant
from kquant.runtime.running import probe


def damaged() -> dict[str, tuple[bytes, str]]:
    good, rng = content(), np.random.default_rng(0)
    noise = rng.integers(0, 256, 4096, dtype=np.uint8).tobytes()
    return {
        "empty": (b"", "is not a TFLite file: bytes 4 to 8 must read TFL3. Received: b'' in 0 bytes"),
        "another format": (
            b"PK\x03\x04" + bytes(100),
            r"is not a TFLite file.*Received: b'\\x00\\x00\\x00\\x00' in 104 bytes",
        ),
        "truncated to the header": (good[:12], "is damaged: .*Export it again"),
        "truncated in the middle": (good[: len(good) // 2], "is damaged|cannot run this file"),
        "random bytes": (noise[:4] + b"TFL3" + noise, "is damaged"),
        "zeros": (bytes(4) + b"TFL3" + bytes(1000), "is damaged"),
    }


@pytest.mark.parametrize("kind", ["empty", "another format", "truncated to the header", "random bytes", "zeros"])
def test_damaged_file_is_refused(kind: str, tmp_path: Path) -> None:
    data, message = damaged()[kind]
    path = tmp_path / "bad.tflite"
    path.write_bytes(data)
    for failing in (lambda: kquant.inspect(path), lambda: kquant.predict(path, X)):
        with pytest.raises(ValueError, match=f"bad.tflite {message}"):
            failing()
    with pytest.raises(ValueError, match=f"the file {message}"):
        kquant.inspect(data)


@pytest.mark.parametrize("runtime", ["litert", "litert-reference", "tflm"])
def test_damage_never_ends_the_process(runtime: str) -> None:
    """Truncated at many places, and with bytes flipped: an answer or a ValueError, whatever the interpreter does."""
    if runtime == "tflm":
        pytest.importorskip("tflite_micro", reason="the micro extra is not installed")
    good, rng = bytearray(content()), np.random.default_rng(1)
    cases = [bytes(good[:n]) for n in rng.integers(8, len(good), 6)]
    for _ in range(10):
        flipped = bytearray(good)
        for position in rng.integers(8, len(good), 12):
            flipped[position] = int(rng.integers(0, 256))
        cases.append(bytes(flipped))
    refused = 0
    for data in cases:
        try:
            kquant.predict(data, X[:1], runtime)
        except ValueError:
            refused += 1
    assert refused >= 6


def test_damage_never_surprises_inspect() -> None:
    good, rng = bytearray(content()), np.random.default_rng(2)
    for _ in range(300):
        flipped = bytearray(good)
        for position in rng.integers(8, len(good), int(rng.integers(1, 30))):
            flipped[position] = int(rng.integers(0, 256))
        try:
            kquant.inspect(bytes(flipped[: int(rng.integers(8, len(good) + 1))]))
        except ValueError as error:
            assert "damaged" in str(error)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    for failing in (
        kquant.inspect,
        lambda path: kquant.predict(path, X),
        lambda path: kquant.verify(calibrated(), path, X),
    ):
        with pytest.raises(ValueError, match="gone.tflite: no such file"):
            failing(tmp_path / "gone.tflite")


@pytest.mark.parametrize("given", [None, 5, [1]])
def test_what_is_no_file_is_refused(given: Any) -> None:
    for failing in (
        kquant.inspect,
        lambda path: kquant.predict(path, X),
        lambda path: kquant.verify(calibrated(), path, X),
    ):
        with pytest.raises(ValueError, match=r"^file: expected the path of a .tflite file, or its bytes. Received: "):
            failing(given)


def test_a_file_with_tables_names_the_runtime(tmp_path: Path) -> None:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((32,), name="x"), layers.Dense(64, name="head")])
    q = kquant.quantize(kquant.cluster(model, 4), target="tflm")
    kquant.calibrate(q, np.float32(np.random.default_rng(0).normal(size=(64, 32))), verbose=False)
    kquant.export(q, tmp_path / "t.tflite", compression="lut", check_runtimes=False)
    with pytest.raises(ValueError, match="look-up tables, which 'litert' cannot decode. Give runtime='tflm'"):
        kquant.predict(tmp_path / "t.tflite", np.zeros((1, 32), np.float32))


def test_a_runtimes_last_words_have_no_marks() -> None:
    with pytest.raises(ValueError, match="cannot run this file") as caught:
        probe(content(), "litert", [np.zeros((1, 7), np.int8)])  # it takes six
    assert "^" not in str(caught.value)


def test_a_file_is_read_without_keras() -> None:
    """TensorFlow takes seconds and half a gigabyte, of which a reader of files needs nothing."""
    code = "import sys, kquant; kquant.inspect; print('keras' in sys.modules, 'tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]

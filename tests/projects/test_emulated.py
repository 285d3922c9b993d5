"""The emulated board of a project: each self-test is linked and starts; the stand-in of TFLM has no room for any."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from small_project import X, quantized
from stand_in_tflm import stands_for_tflm

import kquant
from kquant.runtime.running import available

layers = keras.layers
EMULATOR = ("cmake", "arm-none-eabi-g++", "qemu-system-arm")
LIBRARY = "gen/cortex_m_generic_cortex-m55_default_gcc/lib/libtensorflow-microlite.a"
pytestmark = [
    pytest.mark.skipif("tflm" not in available(), reason="runs on TFLM: pip install 'kquant[micro]' (Linux only)"),
    pytest.mark.skipif(None in map(shutil.which, EMULATOR), reason=f"needs {', '.join(EMULATOR)}"),
    pytest.mark.filterwarnings("ignore:calibrate. .* carry hardly any signal"),
]


def of(x: Any, outputs: Any, data: np.ndarray) -> keras.Model:
    model = keras.Model(x, outputs, name="net")
    return kquant.calibrate(kquant.quantize(model, target="tflm"), data, verbose=False)


def project(what: str, folder: Path) -> None:
    """Write one whose self-test asks for more than the model."""
    if what == "ctc":
        data = np.random.default_rng(0).normal(size=(64, 12, 4)).astype(np.float32)
        x = keras.Input((12, 4), name="frames")
        q = of(x, layers.Dense(5, name="letters")(x), data)
        kquant.bundle(q, folder, data=data, golden=1, ctc=kquant.Ctc("letters"))
    elif what == "detection":
        x = keras.Input((8, 8, 2), name="image")
        y = layers.Conv2D(4, 3, strides=2, activation="relu")(x)
        boxes = layers.Reshape((9, 4), name="boxes")(layers.Conv2D(4, 1)(y))
        scores = layers.Activation("sigmoid", name="scores")(layers.Reshape((9, 3))(layers.Conv2D(3, 1)(y)))
        q = of(x, {"boxes": boxes, "scores": scores}, X)
        kquant.bundle(q, folder, data=X, golden=1, detection=kquant.Detection(form="corners"))
    else:
        kquant.bundle(quantized(), folder, data=X, golden=1, debug=what == "debug")


def library(checkout: Path) -> Path:
    """An empty one where TFLM's makefile writes it, and headers."""
    made = stands_for_tflm(checkout) / LIBRARY
    made.parent.mkdir(parents=True)
    subprocess.run(["arm-none-eabi-ar", "rcs", str(made)], check=True)
    return made


def configured(folder: Path, build: Path, *more: str) -> str:
    """What CMake refuses, "" where it does not."""
    command = ["cmake", "-S", str(folder / "emulated"), "-B", str(build), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return " ".join(done.stderr.split()) if done.returncode else ""


@pytest.mark.parametrize("what", ["plain", "ctc", "detection", "debug"])
def test_the_emulated_board_starts_and_tells_a_failure(what: str, tmp_path: Path) -> None:
    project(what, tmp_path / "net")
    library(tmp_path / "tflm")
    build = tmp_path / "build"
    given = (f"-DTFLM={tmp_path / 'tflm'}", "-DCMAKE_COMPILE_WARNING_AS_ERROR=ON")
    assert configured(tmp_path / "net", build, *given) == ""
    done = subprocess.run(["cmake", "--build", str(build)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    test = ["ctest", "--test-dir", str(build), "--output-on-failure"]
    said = subprocess.run(test, capture_output=True, text=True, check=False)
    tests = ["net_emulated", *(["net_debug_emulated"] if what == "debug" else [])]
    assert said.returncode and said.stdout.count("FAIL: ") == len(tests), said.stdout
    assert all(f"{name} (Failed)" in said.stdout for name in tests)


def test_a_checkout_that_was_left_out_or_wrong_is_given_later(tmp_path: Path) -> None:
    """In the same folder: CMake keeps what it was told, and only that."""
    project("plain", net := tmp_path / "net")
    right, wrong, build = tmp_path / "tflm", tmp_path / "wrong", tmp_path / "build"
    made = library(right)
    assert "run: make -f tensorflow" in configured(net, build), "no checkout was given"
    assert str(wrong / LIBRARY) in configured(net, build, f"-DTFLM={wrong}")
    assert configured(net, build, f"-DTFLM={right}") == ""
    moved = made.rename(tmp_path / "other.a")
    assert str(made) in configured(net, build), "the checkout is remembered"
    assert configured(net, build, f"-DTFLM_LIBRARY={moved}") == "" == configured(net, build)

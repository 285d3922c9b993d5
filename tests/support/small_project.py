"""A small model, its project, and what compiles the sources of one."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import kquant

layers = keras.layers


WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")


X = np.random.default_rng(0).uniform(-1, 1, (64, 8, 8, 2)).astype("float32")


def quantized(name: str = "net", target: str = "tflm", recipe: str = "int8", layer: str = "score") -> keras.Model:
    x = keras.Input((8, 8, 2), name="image")
    y = layers.Conv2D(4, 3, activation="relu", name="conv")(x)
    y = layers.Dense(3, activation="softmax", name=layer)(layers.Flatten()(y))
    return kquant.calibrate(kquant.quantize(keras.Model(x, y, name=name), recipe, target=target), X, verbose=False)


def compiled(folder: Path, *sources: str | Path, program: Path, flags: tuple[str, ...] = ()) -> str:
    """Compile and link as C11 and C++17 with every warning an error, run, and return what was printed."""
    objects = []
    for source in map(Path, sources):
        path = source if source.is_absolute() else folder / source
        one = program.parent / f"{path.stem}.o"
        compiler = ("gcc", "-std=c11") if path.suffix == ".c" else ("g++", "-std=c++17")
        command = [*compiler, *WARNINGS, f"-I{folder}", *flags, "-c", str(path), "-o", str(one)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        objects.append(str(one))
    subprocess.run(["g++", *objects, "-o", str(program), "-lm"], check=True)
    return subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout


@pytest.fixture(name="q", scope="module")
def small_model() -> keras.Model:
    """A convolution and a Dense layer, quantized for TFLM."""
    return quantized()


@pytest.fixture(name="made", scope="module")
def small_bundle(q: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> kquant.BundleReport:
    """Its project, with labels and a normalization."""
    folder = tmp_path_factory.mktemp("bundle") / "firmware"
    more: dict[str, Any] = {"labels": ["left", 'the "right"', "é"], "scale": 1 / 255, "mean": [0.5, 0.25], "std": 0.5}
    return kquant.bundle(q, folder, data=X, golden=3, **more)

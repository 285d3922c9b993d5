"""Of how many models a tool makes a file that computes with integers alone: every layer kquant has an example of.

One small model with random weights for each example of each rule. A tool passes where its file has no float operator
and LiteRT runs it; what it computes there is not asked.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

import kquant
from benchmarks.peers.environments import python_of
from benchmarks.peers.tools import HERE, tools
from kquant.tflite.file_model import float_operators
from kquant.tflite.reader import read_model

COVERING = ("kquant", "converter", "litert-quantizer")
SAMPLES = 8
RESTARTS = 50  # of a tool whose process ends


def examples() -> dict[str, Callable[[], keras.Model]]:
    """name -> how the model is built, with random weights; those of the tests."""
    sys.path.insert(0, str(HERE.parents[1] / "tests" / "support"))
    import contract

    return {name: lambda build=build: contract.randomise(build()) for name, build in contract.EXAMPLES.items()}


def prepared(folder: Path) -> list[str]:
    """A folder for each example that one call takes batch by batch; their names."""
    names = []
    for name, build in tqdm(examples().items(), desc="layers", unit="model"):
        home = folder / name
        if not (home / "whole").is_file():
            model = build()
            if any(type(layer).__module__.startswith("kquant.") for layer in model.layers):
                continue  # a layer that kquant expands others into, which no user has
            home.mkdir(parents=True, exist_ok=True)
            model.save(home / "float.keras")
            _write_samples(model, home)
            _write_float(model, home)
            (home / "whole").touch()
        names.append(name)
    (folder / "about.json").write_text(json.dumps({"zoo": "", "legacy": "", "epochs": 0, "rate": 0.0}))
    return names


def _write_samples(model: keras.Model, home: Path) -> None:
    rng = np.random.default_rng(1)
    arrays = {}
    for n, t in enumerate(model.inputs):
        shape = (SAMPLES, *t.shape[1:])
        whole = "int" in t.dtype
        arrays[f"{n:02d}"] = rng.integers(0, 10, shape, t.dtype) if whole else np.float32(rng.normal(0.2, 1.5, shape))
    np.savez(home / "calibration.npz", **arrays)


def _write_float(model: keras.Model, home: Path) -> None:
    """TensorFlow's float file with a signature; where there is none, LiteRT Quantizer has nothing to read."""
    specs = [tf.TensorSpec((1, *t.shape[1:]), t.dtype, name=f"x_{n}") for n, t in enumerate(model.inputs)]
    module = tf.Module()
    module.model = model
    module.serve = tf.function(
        lambda *x: model(keras.tree.pack_sequence_as(model.input, list(x)), training=False), input_signature=specs
    )
    try:
        tf.saved_model.save(module, str(home / "saved"), signatures={"serve": module.serve})
        content = tf.lite.TFLiteConverter.from_saved_model(str(home / "saved"), signature_keys=["serve"]).convert()
    except Exception as error:  # noqa: BLE001  whatever the converter raises
        (home / "no_float.txt").write_text(str(error)[:300])
        return
    (home / "float.tflite").write_bytes(content)


def measure(folder: Path) -> dict[str, Any]:
    """tool -> {"integer": n, "float": n, "none": n}, and the names of those that are not integer."""
    names = prepared(folder / "layers")
    found: dict[str, Any] = {"models": len(names)}
    for tool in COVERING:
        out = folder / "covered" / tool
        out.mkdir(parents=True, exist_ok=True)
        python = python_of(tools()[tool], folder / "environments")
        command = [str(python), str(tools()[tool].script), str(folder / "layers"), str(out), "cover", "0"]
        for _ in range(RESTARTS):
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                break
        verdicts = {name: _verdict(out / f"{name}.tflite") for name in tqdm(names, desc=tool, unit="file")}
        left = sorted(name for name, verdict in verdicts.items() if verdict != "integer")
        found[tool] = {**Counter(verdicts.values()), "not integer": left}
    return found


def _verdict(path: Path) -> str:
    """ "integer", "float" where an operator touches floats, "none" where there is no file that LiteRT runs."""
    if not path.is_file():
        return "none"
    content = path.read_bytes()
    file = read_model(content)
    try:
        kquant.predict(content, [np.zeros((1, *t.shape[1:]), np.float32) for t in file.inputs])
    except ValueError:
        return "none"
    return "float" if float_operators(file) else "integer"

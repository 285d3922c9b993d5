"""The models that every tool gets: folders of a Keras file, TensorFlow's float file, samples. Weights are random."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from benchmarks.applications import CLASSES, FAMILIES, settle
from benchmarks.peers.tools import HERE
from benchmarks.zoo import ZOO
from benchmarks.zoo.samples import samples

SAMPLES = 8
ABOUT = {"zoo": "", "legacy": "", "epochs": 0, "rate": 0.0}  # what `scripts/common.py` reads of any task


def layers() -> dict[str, Callable[[], keras.Model]]:
    """The first example of each rule of kquant, with random weights: those of the tests."""
    sys.path.insert(0, str(HERE.parents[1] / "tests" / "support"))
    import contract

    return {
        name: lambda build=build: contract.randomise(build())
        for name, build in contract.EXAMPLES.items()
        if name.endswith("-1")
    }


def applications() -> dict[str, Callable[[], keras.Model]]:
    """A family of `keras.applications` each, as in `benchmarks.applications`."""
    return {name: lambda arguments=arguments: _application(*arguments) for name, arguments in FAMILIES.items()}


def _application(constructor: str, side: int, arguments: dict[str, Any]) -> keras.Model:
    build = getattr(keras.applications, constructor)
    return build(weights=None, input_shape=(side, side, 3), classes=CLASSES, **arguments)


def architectures() -> dict[str, Callable[[], keras.Model]]:
    """Detectors, segmenters, speech and transformers of the zoo."""
    return dict(ZOO)


SETS = {"applications": applications, "architectures": architectures, "layers": layers}


def prepared(of: str, folder: Path) -> list[str]:
    """A folder for each model of a set; their names.

    Args:
        of: a key of `SETS`.
        folder: of the set; folders that are whole stay.
    """
    names = []
    for name, build in tqdm(SETS[of]().items(), desc=of, unit="model"):
        home = folder / name
        if not (home / "whole").is_file():
            keras.backend.clear_session()
            keras.utils.set_random_seed(0)
            model = build()
            if any(type(layer).__module__.startswith("kquant.") for layer in model.layers):
                continue  # a layer that kquant expands others into, which no user has
            home.mkdir(parents=True, exist_ok=True)
            model.save(home / "float.keras")
            if not _is_read_back(home / "float.keras"):
                shutil.rmtree(home)
                continue
            _write(model, home, of)
            (home / "whole").touch()
        names.append(name)
    (folder / "about.json").write_text(json.dumps(ABOUT))
    return names


def _is_read_back(path: Path) -> bool:
    """False for what Keras writes and does not read: of 3.15.1 a model with an adaptive pooling of `keras.ops`."""
    try:
        keras.models.load_model(path)
    except TypeError:
        return False
    return True


def _write(model: keras.Model, home: Path, of: str) -> None:
    arrays = _numbers(model) if of == "layers" else samples(model, SAMPLES)
    if of != "layers":
        settle(model, arrays if len(arrays) > 1 else arrays[0])
    if of == "applications":  # Keras 2 has them, too
        constructor, side, arguments = FAMILIES[home.name]
        more = {"weights": None, "input_shape": [side, side, 3], "classes": CLASSES, **arguments}
        (home / "application.json").write_text(json.dumps({"constructor": constructor, "arguments": more}))
    model.save(home / "float.keras")  # settled
    np.savez(home / "calibration.npz", **{f"{n:02d}": array for n, array in enumerate(arrays)})
    _write_float(model, home)


def _numbers(model: keras.Model) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    shapes = [((SAMPLES, *t.shape[1:]), t.dtype) for t in model.inputs]
    return [
        rng.integers(0, 10, shape, dtype) if "int" in dtype else np.float32(rng.normal(0.2, 1.5, shape))
        for shape, dtype in shapes
    ]


def _write_float(model: keras.Model, home: Path) -> None:
    """TensorFlow's float file with a signature; where there is none, LiteRT Quantizer has nothing to read."""
    specs = [tf.TensorSpec((1, *t.shape[1:]), t.dtype, name=f"x_{n}") for n, t in enumerate(model.inputs)]
    saved = str(home / "saved")

    def serve(*x: tf.Tensor) -> Any:
        return model(keras.tree.pack_sequence_as(model.input, list(x)), training=False)

    try:
        archive = keras.export.ExportArchive()  # a tf.Module's file keeps the variables of Keras 3 as variables
        archive.track(model)
        archive.add_endpoint("serve", serve, input_signature=specs)
        archive.write_out(saved, verbose=False)
        content = tf.lite.TFLiteConverter.from_saved_model(saved).convert()
    except Exception as error:  # noqa: BLE001  whatever the converter raises
        (home / "no_float.txt").write_text(str(error)[:300])
        return
    (home / "float.tflite").write_bytes(content)

"""The models and data that every tool gets, as folders of plain files.

Digits ship with scikit-learn, so anybody has them; MLPerf Tiny's models and CIFAR-10 come from `KQUANT_ASSETS`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from benchmarks import assets
from benchmarks.peers.tools import HERE

DIGITS = ("digits_cnn", "digits_mobile", "digits_dense")
SEED, EPOCHS, RATE = 0, 40, 2e-3  # of the float models of the digits
TRAINED = {"image_classification": 4_000}  # images that tools which train may see
LEGACY = {
    "image_classification": "pretrainedResnet.h5",
    "keyword_spotting": "kws_ref_model",
    "visual_wake_words": "vww_96.h5",
    "anomaly_detection": "ad01.h5",
    "streaming_wakeword": "str_ww_ref_model.h5",
}


@dataclass(frozen=True)
class About:
    """What `about.json` says of a task.

    Attributes:
        zoo: function of scripts/zoo.py that builds the model, or empty.
        legacy: Keras 2's file of it, or empty.
        matrix: it is of Dense layers alone.
        trains: there are labelled samples to train with.
        calibrates: number of samples that calibrate.
        judged: number of samples that judge.
        trained: number of samples that train; 0 where none do.
    """

    name: str
    zoo: str
    legacy: str
    epochs: int
    rate: float
    matrix: bool
    trains: bool
    calibrates: int
    judged: int
    trained: int = 0


def available() -> tuple[str, ...]:
    """Names of the tasks that can be made here."""
    return (*DIGITS, *(assets.TASKS if (assets.FOLDER / "load.py").is_file() else ()))


def prepared(name: str, folder: Path) -> tuple[Path, About]:
    """The folder of a task, written where it is not."""
    home = folder / name
    told = home / "about.json"
    if not told.is_file():
        home.mkdir(parents=True, exist_ok=True)
        about = _digits(name, home) if name in DIGITS else _mlperf(name, home)
        model = keras.models.load_model(home / "float.keras")
        np.save(home / "float.npy", model.predict(np.load(home / "x.npy"), verbose=0))
        held = {f"{layer.name}|{n}": w for layer in model.layers for n, w in enumerate(layer.get_weights())}
        np.savez(home / "weights.npz", **held)
        _float_file(home, about)
        told.write_text(json.dumps(about.__dict__, indent=1))  # last: it says that the folder is whole
    return home, About(**json.loads(told.read_text()))


def _float_file(home: Path, about: About) -> None:
    """TensorFlow's float conversion: what LiteRT Quantizer reads."""
    (home / "about.json").write_text(json.dumps(about.__dict__))
    subprocess.run(
        [sys.executable, str(HERE / "scripts" / "converter.py"), str(home), str(home), "float", "0"],
        check=True,
        capture_output=True,
    )
    (home / "about.json").unlink()
    (home / "model.tflite").rename(home / "float.tflite")
    (home / "report.json").unlink()
    shutil.rmtree(home / "saved")


def _save(home: Path, **arrays: np.ndarray) -> None:
    for name, array in arrays.items():
        np.save(home / f"{name}.npy", array)


def _digits(name: str, home: Path) -> About:
    """Trained here, under a seed; a third of the images judges."""
    from benchmarks.peers.scripts import zoo
    from kquant.app.demo import CALIBRATION_SAMPLES, load_digits

    digits = load_digits()
    flat = name == "digits_dense"
    x_train, x = ((a.reshape(len(a), -1) if flat else a) for a in (digits.x_train, digits.x_test))
    keras.utils.set_random_seed(SEED)
    model = getattr(zoo, name)(keras)
    model.compile(keras.optimizers.Adam(RATE), "sparse_categorical_crossentropy")
    model.fit(x_train, digits.y_train, batch_size=32, epochs=EPOCHS, verbose=0)
    model.save(home / "float.keras")
    calibration = x_train[:CALIBRATION_SAMPLES]
    _save(home, calibration=calibration, x=x, y=digits.y_test, train_x=x_train, train_y=digits.y_train)
    return About(name, name, "", 10, 2e-4, flat, True, len(calibration), len(x), len(x_train))


def _mlperf(name: str, home: Path) -> About:
    task = assets.task(name)
    task.model.save(home / "float.keras")
    _save(home, calibration=task.calibration, x=task.x, **({} if task.y is None else {"y": task.y}))
    if trains := name in TRAINED:
        x, y = (array[: TRAINED[name]] for array in assets.loader().cifar10_train([0]))
        _save(home, train_x=x.astype("float32"), train_y=y.reshape(-1))
    matrix = all(not hasattr(layer, "kernel_size") for layer in task.model.layers)
    legacy = str(assets.FOLDER / "mlperf_tiny" / name / LEGACY[name])
    return About(name, "", legacy, 2, 1e-4, matrix, trains, len(task.calibration), len(task.x), TRAINED.get(name, 0))


def loaded(home: Path, name: str) -> Any:
    """An array of a task; None where it has none."""
    path = home / f"{name}.npy"
    return np.load(path) if path.is_file() else None

"""The main job on a real data set that ships with scikit-learn: 1,797 handwritten digits of 8x8 pixels.

Train a small CNN with batch norms, quantize it after training (PTQ) and in training (QAT), export both, run the files
on every interpreter, print one table. Accuracies are of test images that neither training nor calibration has seen.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kquant.calibration.ranges import calibrate
from kquant.exporting.export_file import ExportReport, export
from kquant.files.atomic import Outputs, write_atomically
from kquant.prepare.quantization import quantize
from kquant.projects.c_array import c_array
from kquant.report import Table, render_table
from kquant.runtime.arenas import arena_bytes
from kquant.runtime.running import RUNTIMES, available, predict
from kquant.tflite.reader import inspect

SEED = 1
TEST_SHARE = 0.3
CALIBRATION_SAMPLES = 200
EPOCHS, QAT_EPOCHS = 40, 10
RATE, QAT_RATE = 2e-3, 2e-4
TARGET = "tflm"
QUIET: Any = 0  # Keras' type of `verbose` is that of its default, "auto"


@dataclass(frozen=True)
class Digits:
    """float32[n, 8, 8, 1] in [0, 1] and int64[n]; the two parts share no image."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


@dataclass(frozen=True)
class Row:
    """One model: accuracies (0 to 1) of the test images, None where there is nothing to measure, and sizes."""

    name: str
    float_accuracy: float | None
    simulated_accuracy: float | None
    accuracy: dict[str, float | None]
    file_bytes: int
    arena_bytes: int | None
    operators: dict[str, int]


@dataclass(frozen=True)
class DemoResult:
    """The table, and what was written."""

    rows: tuple[Row, ...]
    train_samples: int
    calibration_samples: int
    test_samples: int
    seconds: float
    files: tuple[str, ...]


def run(folder: str | Path = "demo-output", *, verbose: bool = True) -> DemoResult:
    """Train, quantize, export, run.

    Args:
        folder: for the `.tflite` files and the C array.
        verbose: say what is going on.

    Returns:
        Rows "float", "PTQ int8" and "QAT int8".

    Raises:
        ValueError: the `demo` extra is missing.
    """
    start = time.perf_counter()
    digits = load_digits()
    out = Path(folder)
    names = ("digits_float.tflite", "digits_model.cc", "digits_model.h", "digits_ptq.tflite", "digits_qat.tflite")
    out.mkdir(parents=True, exist_ok=True)
    with Outputs([out / name for name in names], "demo") as new:
        rows = _rows(digits, out, new, verbose)
    return DemoResult(
        rows=rows,
        train_samples=len(digits.x_train),
        calibration_samples=CALIBRATION_SAMPLES,
        test_samples=len(digits.x_test),
        seconds=time.perf_counter() - start,
        files=tuple(str(out / name) for name in names),
    )


def _rows(digits: Digits, out: Path, new: Outputs, verbose: bool) -> tuple[Row, ...]:
    """Train, quantize, run; the files are made on the way."""
    calibration = digits.x_train[:CALIBRATION_SAMPLES]

    _say(verbose, f"Training a float CNN on {len(digits.x_train):,} digits, {EPOCHS} epochs ...")
    model = trained(digits)
    rows = [_float_row(model, digits, new.place(out / "digits_float.tflite"))]

    _say(verbose, f"PTQ int8: calibrating with {CALIBRATION_SAMPLES} digits ...")
    ptq = calibrate(quantize(model, "int8", target=TARGET), calibration, verbose=False)
    rows.append(_integer_row("PTQ int8", ptq, digits, new.place(out / "digits_ptq.tflite")))

    _say(verbose, f"QAT int8: {QAT_EPOCHS} more epochs with quantization in place ...")
    # from calibrated ranges: moving ones would need epochs to find them
    qat = calibrate(quantize(model, "int8", target=TARGET), calibration, verbose=False)
    _fit(qat, digits, QAT_EPOCHS, QAT_RATE)
    rows.append(_integer_row("QAT int8", qat, digits, new.place(out / "digits_qat.tflite")))

    for name, text in c_array(new.place(out / "digits_qat.tflite").read_bytes(), "digits").items():
        new.write(out / name, text)
    return tuple(rows)


def load_digits() -> Digits:
    """The data set, split by class: the test images are held out from everything but the table.

    Raises:
        ValueError: the `demo` extra is missing.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise ValueError("the demo needs an extra: pip install 'kquant[demo]'")
    from sklearn import datasets, model_selection  # optional extra

    bunch: Any = datasets.load_digits()  # a bunch, as `return_X_y` is not asked for
    images = (bunch.images[..., None] / 16.0).astype(np.float32)  # ink runs from 0 to 16
    # by class, so that each digit has its share of both parts
    parts: Any = model_selection.train_test_split(
        images, bunch.target, test_size=TEST_SHARE, stratify=bunch.target, random_state=SEED
    )
    x_train, x_test, y_train, y_test = parts
    return Digits(x_train, y_train, x_test, y_test)


def build() -> keras.Model:
    """Three convolutions with batch norms, one of them depthwise."""
    layers = keras.layers
    inputs = x = keras.Input((8, 8, 1), name="image")
    for name, layer in (
        ("conv1", layers.Conv2D(16, 3, padding="same", use_bias=False)),
        ("depthwise2", layers.DepthwiseConv2D(3, padding="same", use_bias=False)),
        ("conv3", layers.Conv2D(32, 3, strides=2, padding="same", use_bias=False)),
    ):
        x = layers.ReLU(name=f"{name}_relu")(layers.BatchNormalization(name=f"{name}_bn")(layer(x)))
    x = layers.MaxPooling2D(name="pool")(x)
    x = layers.Dropout(0.2, name="dropout")(layers.Flatten(name="flatten")(x))
    return keras.Model(inputs, layers.Dense(10, activation="softmax", name="digit")(x), name="digits")


def trained(digits: Digits) -> keras.Model:
    """A float model, the same one in every run on one machine."""
    keras.utils.set_random_seed(SEED)
    model = build()
    _fit(model, digits, EPOCHS, RATE)
    return model


def _fit(model: keras.Model, digits: Digits, epochs: int, rate: float) -> None:
    steps = -(-len(digits.x_train) // 32) * epochs
    schedule: Any = keras.optimizers.schedules.CosineDecay(rate, steps)
    # down to a rate of 0: the last batches no longer move the accuracy
    model.compile(keras.optimizers.Adam(schedule), "sparse_categorical_crossentropy")
    model.fit(digits.x_train, digits.y_train, batch_size=32, epochs=epochs, verbose=QUIET)


def _accuracy(outputs: Any, digits: Digits) -> float:
    return float(np.mean(np.asarray(outputs).argmax(-1) == digits.y_test))


def _on_runtimes(content: bytes, digits: Digits) -> dict[str, float | None]:
    """Accuracy of a file on every interpreter that is installed."""
    able = {name: _accuracy(predict(content, digits.x_test, name), digits) for name in available()}
    return {name: able.get(name) for name in RUNTIMES}


def _float_row(model: keras.Model, digits: Digits, path: Path) -> Row:
    """The float model and its float file, made by TensorFlow's converter, for comparison."""
    with contextlib.redirect_stdout(io.StringIO()):  # the converter lists the model's endpoints
        content = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    write_atomically(path, content, "demo")
    return Row(
        name="float",
        float_accuracy=_accuracy(model.predict(digits.x_test, verbose=QUIET), digits),
        simulated_accuracy=None,
        accuracy=_on_runtimes(content, digits),
        file_bytes=len(content),
        arena_bytes=arena_bytes(content),
        operators=inspect(content).operator_counts,
    )


def _integer_row(name: str, qmodel: keras.Model, digits: Digits, path: Path) -> Row:
    report: ExportReport = export(qmodel, path, data=digits.x_train[:64])
    return Row(
        name=name,
        float_accuracy=None,
        simulated_accuracy=_accuracy(qmodel.predict(digits.x_test, verbose=QUIET), digits),
        accuracy=_on_runtimes(path.read_bytes(), digits),
        file_bytes=report.file_bytes,
        arena_bytes=report.arena_bytes,
        operators=report.operators,
    )


def render(result: DemoResult) -> str:
    """The table and the list of files, as plain text."""
    numbers = ("float", "simulated", "LiteRT", "LiteRT reference", "TFLM", "file bytes", "arena bytes", "operators")
    rows = tuple(
        (
            row.name,
            *(_percent(a) for a in (row.float_accuracy, row.simulated_accuracy, *(row.accuracy[r] for r in RUNTIMES))),
            f"{row.file_bytes:,}",
            "-" if row.arena_bytes is None else f"{row.arena_bytes:,}",
            str(sum(row.operators.values())),
        )
        for row in result.rows
    )
    title = f"Accuracy on {result.test_samples} test digits in %, sizes and operators of the files"
    table = render_table(Table(title, ("", *numbers), rows, numbers))
    return f"\n{table}\n{result.seconds:.0f} s; files: {', '.join(result.files)}\n"


def to_json(result: DemoResult) -> str:
    """The result as JSON."""
    return json.dumps(asdict(result), indent=2)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def _say(verbose: bool, text: str) -> None:
    if verbose:
        print(text, flush=True)

"""One ResNet8 for several grids and roundings, against one trained for each: the worst of them is what counts.

20,000 CIFAR-10 training images, `--epochs` of them, Adam with a cosine to 0, flip and crop; three trainings: for 8
bits, for 4 bits, and with `[training.robust]`, which draws a grid at every step. Of each the float function is
quantized on every grid (200 images calibrate; ranges of weights as trained, those of the largest, and by the squared
error where nothing was trained) and judged on the first `--limit` test images, in the rounding of LiteRT's reference
kernels and of TFLM (simulated: the codes are those of the files) and as the file that XNNPACK runs.

python -m benchmarks.robust_training --path benchmarks/results/robust_training.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

import kquant
from benchmarks.assets import loader
from benchmarks.coded_training import accuracy
from benchmarks.machine import machine
from benchmarks.qat_accuracy import batches
from kquant.files.atomic import write_atomically

GRIDS = {f"{bits} bits, {'channels' if each else 'kernel'}": (bits, each) for bits in (8, 4) for each in (True, False)}
ROUNDINGS = ("reference", "TFLM", "XNNPACK")
TRAINED: dict[str, tuple[int, dict[str, Any]]] = {
    "for 8 bits": (8, {}),
    "for 4 bits": (4, {}),
    "robust": (8, {"robust": {"bits": [8, 4]}}),
}


def recipe(
    bits: int, per_axis: bool = True, observer: str = "minmax", training: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Of a grid."""
    weights = {"bits": bits, "per_axis": per_axis, "observer": observer}
    return {"name": "grid", "weights": weights, "training": training or {}}


def trained(model: keras.Model, how: str, data: tuple[np.ndarray, np.ndarray], args: Any) -> keras.Model:
    """The float function after training."""
    bits, training = TRAINED[how]
    keras.utils.set_random_seed(args.seed)
    q = kquant.calibrate(kquant.quantize(model, recipe(bits, training=training)), data[0][:200], verbose=False)
    steps = args.epochs * -(-len(data[0]) // 64)
    q.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(args.rate, steps)),
        "sparse_categorical_crossentropy",
    )
    q.fit(batches(*data, args.seed), epochs=args.epochs, verbose=2)
    return kquant.strip(q)


def judged(
    model: keras.Model, calibration: np.ndarray, x: np.ndarray, y: np.ndarray, observer: str = "minmax"
) -> dict[str, dict[str, float]]:
    """Accuracy in %: grid -> rounding -> of the model on it."""
    rows: dict[str, dict[str, float]] = {name: {} for name in GRIDS}
    for (name, (bits, per_axis)), target in itertools.product(GRIDS.items(), ("litert", "tflm")):
        q = kquant.quantize(model, recipe(bits, per_axis, observer), target=target)
        q = kquant.calibrate(q, calibration, verbose=False)
        q.compile(jit_compile=True)
        simulated = accuracy(q.predict(x, batch_size=500, verbose=0), y)
        if target == "tflm":
            rows[name]["TFLM"] = simulated
            continue
        rows[name]["reference"] = simulated
        with tempfile.TemporaryDirectory() as folder:
            kquant.export(q, path := Path(folder) / "m.tflite", check_runtimes=False)
            rows[name]["XNNPACK"] = accuracy(kquant.predict(path, x, "litert"), y)
    return rows


def worst(rows: dict[str, dict[str, float]]) -> float:
    """Over grids and roundings."""
    return min(value for row in rows.values() for value in row.values())


def main() -> None:
    """Train, judge, print and keep a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--limit", type=int, default=2000, help="test images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--path", type=Path, help="JSON to write")
    args = parser.parse_args()
    load = loader()
    x, y = load.cifar10_train([0, 1, 2, 3])
    tests, labels = load.cifar10_test()
    tests, labels = tests[: args.limit].astype("float32"), labels.reshape(-1)[: args.limit]
    model, calibration = load.mlperf_model("image_classification"), x[:200].astype("float32")
    results = {"not trained": judged(model, calibration, tests, labels, observer="mse")}
    for how in TRAINED:
        results[how] = judged(trained(model, how, (x.astype("float32"), y), args), calibration, tests, labels)
    print("| " + " | ".join(("trained", *(f"{g}, {r}" for g in GRIDS for r in ROUNDINGS), "worst")) + " |")
    for how, rows in results.items():
        cells = [f"{rows[g][r]:.2f}" for g in GRIDS for r in ROUNDINGS]
        print("| " + " | ".join((how, *cells, f"{worst(rows):.2f}")) + " |")
    if args.path is not None:
        asked = {key: value for key, value in vars(args).items() if key != "path"}
        about = {**machine(), **asked}
        write_atomically(args.path, json.dumps({"about": about, "accuracy": results}, indent=1).encode())


if __name__ == "__main__":
    main()

"""Every family of `keras.applications`, its smallest member at a small input with seeded random weights: quantize,
calibrate, export, run, save and load, one training step. Random weights show coverage, not accuracy.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

from benchmarks.choice import one_of
from benchmarks.memory import peak_kb
from kquant.graph.keras_private import every_layer

# name -> (constructor, side of the input, further arguments)
FAMILIES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "ConvNeXt": ("ConvNeXtTiny", 64, {}),
    "DenseNet": ("DenseNet121", 64, {}),
    "EfficientNet": ("EfficientNetB0", 64, {}),
    "EfficientNetV2": ("EfficientNetV2B0", 64, {}),
    "InceptionResNetV2": ("InceptionResNetV2", 75, {}),
    "InceptionV3": ("InceptionV3", 75, {}),
    "MobileNet": ("MobileNet", 64, {"alpha": 0.25}),
    "MobileNetV2": ("MobileNetV2", 64, {"alpha": 0.35}),
    "MobileNetV3": ("MobileNetV3Small", 64, {}),
    "MobileNetV3 minimalistic": ("MobileNetV3Small", 64, {"minimalistic": True}),
    "MobileNetV3Large": ("MobileNetV3Large", 64, {}),
    "NASNet": ("NASNetMobile", 64, {}),
    "ResNet": ("ResNet50", 64, {}),
    "ResNetV2": ("ResNet50V2", 64, {}),
    "VGG": ("VGG16", 64, {}),
    "Xception": ("Xception", 71, {}),
}
CLASSES, CALIBRATION, SAMPLES = 10, 8, 16


def child(family: str) -> None:
    """One family; prints a JSON row."""
    import kquant

    constructor, side, arguments = FAMILIES[family]
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, constructor)(
        weights=None, input_shape=(side, side, 3), classes=CLASSES, **arguments
    )
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (CALIBRATION + SAMPLES, side, side, 3)).astype("float32")
    settle(model, images[:CALIBRATION])
    started = time.perf_counter()
    q = kquant.quantize(model)
    quantized = time.perf_counter()
    kquant.calibrate(q, images[:CALIBRATION], verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        report = kquant.export(q, path, data=images[CALIBRATION:])
        seconds = time.perf_counter() - started
        file = kquant.inspect(path)
        found = kquant.predict(path, images[CALIBRATION:])
        simulated = q.predict(images[CALIBRATION:], batch_size=8, verbose=0)
        q.save(Path(folder) / "q.keras")
        again = keras.saving.load_model(Path(folder) / "q.keras")
        same = bool(np.array_equal(again(images[:2], training=False), q(images[:2], training=False)))
    q.compile("sgd", "sparse_categorical_crossentropy")
    loss = float(q.train_on_batch(images[:4], np.arange(4)))
    row = {
        "operators": len(file.operators),
        "float": 0 if file.is_integer else len([f for f in file.findings if "float" in f]),
        "bytes": report.file_bytes,
        "top1": float(np.mean(found.argmax(1) == simulated.argmax(1))),
        "top5": float(np.mean([f[s.argmax()] >= np.sort(f)[-5] for s, f in zip(simulated, found, strict=True)])),
        "equal": {v.runtime: v.agreements[0].equal for v in report.verification},
        "reloads": same,
        "trains": bool(np.isfinite(loss)),
        "quantize_s": quantized - started,
        "seconds": seconds,
        "peak_mb": peak_kb() / 1024,
    }
    print(json.dumps(row))


def settle(model: keras.Model, images: np.ndarray) -> None:
    """Batch norms take the statistics of these images: with those of a fresh model, activations die out or explode."""
    norms = [layer for layer in every_layer(model) if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(images, training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def main() -> None:
    """Each family in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", type=one_of(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--child")
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child)
        return
    for family in arguments.families:
        command = [sys.executable, "-m", "benchmarks.applications", "--child", family]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            print(f"{family:<26} FAILED: {done.stderr.strip().splitlines()[-1][:300]}", flush=True)
            continue
        row = json.loads(done.stdout.splitlines()[-1])
        equal = ", ".join(f"{name} {share:.3f}" for name, share in row["equal"].items())
        print(
            f"{family:<26} {row['operators']:4d} operators, {row['float']} float, {row['bytes'] / 1e6:6.2f} MB, codes "
            f"equal {equal}, top-1 {row['top1']:.2f}, top-5 {row['top5']:.2f}, reloads {row['reloads']}, trains "
            f"{row['trains']}, {row['seconds']:.1f} s ({row['quantize_s']:.1f} s quantize), {row['peak_mb']:.0f} MB",
            flush=True,
        )


if __name__ == "__main__":
    main()

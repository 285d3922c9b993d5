"""The recipe `int4-weights` on models of the size that phones run: seconds of each step, those of the processor for all
of them (which load does not stretch as much), and peak memory.

The weights are random, each batch norm has the statistics of the data: that does for time and memory, and to see that
each step brings the outputs of images that it has not seen nearer to those of the float model. Each model runs in a
process of its own.

    python -m benchmarks.phone_recovery --path benchmarks/results/phone_recovery.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import kquant
from benchmarks.choice import one_of
from benchmarks.machine import processor
from benchmarks.memory import peak_kb
from kquant.correct.steps import apply_steps
from kquant.recipe.recipe import Step

SIZE = 224
MODELS = ("efficientnet_lite0", "mobilenetv2")
STEPS = ("calibrate", "sequential-mse", "adaround")
# expansion, channels, repeats, kernel, stride of each stage. Source: Tan and Le, arXiv:1905.11946, table 1; Lite has no
# squeeze-and-excite, ReLU6 in swish's place, and stem and head of fixed width.
STAGES = ((1, 16, 1, 3, 1), (6, 24, 2, 3, 2), (6, 40, 2, 5, 2), (6, 80, 3, 3, 2), (6, 112, 3, 5, 1), (6, 192, 4, 5, 2))
STAGES += ((6, 320, 1, 3, 1),)


def efficientnet_lite0() -> keras.Model:
    """4.7 million weights, 50 layers with some."""
    layers = keras.layers

    def block(x: Any, layer: Any, activate: bool = True) -> Any:
        x = layers.BatchNormalization()(layer(x))
        return layers.ReLU(6.0)(x) if activate else x

    def conv(filters: int, kernel: int, strides: int = 1) -> Any:
        options = {"padding": "same", "use_bias": False, "kernel_initializer": "he_normal"}
        return layers.Conv2D(filters, kernel, strides, **options)

    inputs = keras.Input((SIZE, SIZE, 3))
    x, had = block(inputs, conv(32, 3, 2)), 32
    for expansion, channels, repeats, kernel, first in STAGES:
        for number in range(repeats):
            strides = first if number == 0 else 1
            y = x if expansion == 1 else block(x, conv(had * expansion, 1))
            y = block(y, layers.DepthwiseConv2D(kernel, strides, "same", use_bias=False))
            y = block(y, conv(channels, 1), activate=False)
            x, had = layers.Add()([x, y]) if strides == 1 and had == channels else y, channels
    x = layers.GlobalAveragePooling2D()(block(x, conv(1280, 1)))
    return keras.Model(inputs, layers.Dense(1000)(x), name="efficientnet_lite0")


def mobilenetv2() -> keras.Model:
    """3.5 million weights, 53 layers with some."""
    return keras.applications.MobileNetV2((SIZE, SIZE, 3), weights=None, classifier_activation=None)


def images(count: int, seed: int) -> np.ndarray:
    """Smooth noise with a little of the sharp kind: neighbours are alike, as in photographs."""
    rng = np.random.default_rng(seed)
    smooth = tf.image.resize(rng.normal(size=(count, SIZE // 8, SIZE // 8, 3)), (SIZE, SIZE), "bicubic").numpy()
    return np.float32(smooth + 0.1 * rng.normal(size=smooth.shape))


def settle(model: keras.Model, x: np.ndarray) -> None:
    """Batch norms with the statistics of these images."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(x, training=True)


def measured(name: str, count: int, iterations: int | None) -> dict[str, Any]:
    """Seconds of each step, peak memory of the process, and what the result is worth."""
    keras.utils.set_random_seed(0)
    model, data = globals()[name](), images(count, 0)
    settle(model, data[:8])
    new = images(32, 1)
    wanted = model.predict(new, batch_size=8, verbose=0)
    seconds, decibels = {}, {}
    started = time.perf_counter()
    q = kquant.quantize(model, "int4-weights")
    seconds["quantize"] = time.perf_counter() - started
    for step in STEPS:
        options = {"iterations": iterations} if step == "adaround" and iterations else {}
        started = time.perf_counter()
        apply_steps(q, [Step(name=step, **options)], data)
        seconds[step] = time.perf_counter() - started
        made = q.predict(new, batch_size=8, verbose=0)
        error = np.mean((made - wanted) ** 2) / np.mean((wanted - wanted.mean(0)) ** 2)
        decibels[step] = round(float(-10 * np.log10(error)), 1)
    peak, processor = peak_kb() / 2**20, time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        report = kquant.export(q, Path(folder) / "m.tflite", data=data[:8])
        seconds["export"] = time.perf_counter() - started
    return {
        "images": count,
        "weights": model.count_params(),
        "seconds": {key: round(value, 1) for key, value in seconds.items()},
        "total_s": round(sum(seconds.values()), 1),
        "processor_s": round(processor, 1),
        "load": os.getloadavg()[0],
        "peak_gib": round(peak, 2),
        "sqnr_db": decibels,
        "verified": all(v.ok for v in report.verification),
    }


def main() -> None:
    """Parse; a table as Markdown, and the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=one_of(MODELS), default=list(MODELS))
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--iterations", type=int, default=None, help="of AdaRound, instead of its default")
    parser.add_argument("--path", type=Path, default=None, help="where the figures go")
    parser.add_argument("--here", action="store_true", help="in this process, one model")
    args = parser.parse_args()
    if args.here:
        warnings.simplefilter("ignore", UserWarning)
        print(json.dumps(measured(args.models[0], args.images, args.iterations)))
        return
    found: dict[str, Any] = {"machine": processor()}
    steps = " | ".join(("quantize", *STEPS, "export"))
    print(f"| | {steps}, s | all, s | of the processor | peak, GiB | dB after each step |")
    print("| --- " * (len(STEPS) + 7) + "|")
    for name in args.models:
        given = ["--images", str(args.images)] + (["--iterations", str(args.iterations)] if args.iterations else [])
        command = [sys.executable, "-m", "benchmarks.phone_recovery", name, "--here", *given]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        row = found[name] = json.loads(done.stdout.splitlines()[-1])
        near = ", ".join(map(str, row["sqnr_db"].values()))
        cells = [*row["seconds"].values(), row["total_s"], row["processor_s"], row["peak_gib"], near]
        print(f"| {name} | " + " | ".join(map(str, cells)) + " |", flush=True)
    if args.path:
        args.path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

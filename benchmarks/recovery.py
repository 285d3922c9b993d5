"""Low-bit weights after training: what range setting and rounding get back, on real files.

python -m benchmarks.recovery --w4              W4A8: ranges alone and with adaround, on LiteRT files
python -m benchmarks.recovery --simulated       W4A4 and W3A8, in Keras only
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

import kquant
from benchmarks.assets import Task, loader, task
from benchmarks.choice import one_of
from benchmarks.memory import peak_kb
from kquant.correct.steps import apply_steps
from kquant.recipe.recipe import Step

TASKS = ("image_classification", "keyword_spotting", "visual_wake_words")
MOST_JUDGED = 2000
# name -> (observer of the weights, steps)
METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "nearest": ("minmax", ("calibrate",)),
    "mse": ("mse", ("calibrate",)),
    "sequential-mse": ("minmax", ("calibrate", "sequential-mse")),
    "gptq": ("minmax", ("calibrate", "gptq")),
    "mse, gptq": ("mse", ("calibrate", "gptq")),
    "sequential-mse, gptq": ("minmax", ("calibrate", "sequential-mse", "gptq")),
    "mse, adaround": ("mse", ("calibrate", "adaround")),
    "sequential-mse, adaround": ("minmax", ("calibrate", "sequential-mse", "adaround")),
}


def quantized(
    t: Task, data: np.ndarray, method: str, weights: int, activations: int, of_activations: str
) -> keras.Model:
    """The task's model with this method applied; `of_activations` is the observer of tensors."""
    observer, steps = METHODS[method]
    recipe: dict[str, Any] = {
        "name": method,
        "activations": {"bits": activations, "observer": of_activations},
        "weights": {"bits": weights, "unpacked_bits": 8, "observer": observer},
    }
    q = kquant.quantize(t.model, recipe)
    return apply_steps(q, [Step(name=name) for name in steps], data, verbose=False)


def samples(t: Task, count: int | None) -> np.ndarray:
    """The task's calibration samples, or `count` of the training images where there are such."""
    if count is None or t.name != "image_classification":
        return t.calibration
    pool = loader().cifar10_train([0])[0]
    return pool[np.random.default_rng(0).choice(len(pool), count, replace=False)].astype("float32")


def score(y: np.ndarray, reference: np.ndarray, t: Task) -> str:
    """Accuracy, and how often the class is that of the float model."""
    labels = np.asarray(t.y)[: len(y)]
    hits = 100 * np.mean(y.argmax(-1) == labels)
    agree = 100 * np.mean(y.argmax(-1) == reference.argmax(-1))
    return f"accuracy {hits:6.2f}  = float {agree:6.2f}  n={len(y)}"


def run(
    name: str, methods: list[str], count: int | None, pairs: list[tuple[int, int]], files: bool, observer: str
) -> None:
    """Print one model's block."""
    t = task(name)
    x, data = t.x[:MOST_JUDGED], samples(t, count)
    reference = t.model.predict(x, verbose=0)
    print(f"{name}: {len(data)} samples to quantize with\n  {'float':<26} {score(reference, reference, t)}", flush=True)
    for weights, activations in pairs:
        for method in methods:
            started, busy = time.perf_counter(), time.process_time()
            q = quantized(t, data, method, weights, activations, observer)
            took = f"{time.perf_counter() - started:6.1f} s, {time.process_time() - busy:6.1f} s of CPU"
            print(f"  W{weights}A{activations} {method}: {took}, peak {peak_kb() / 1024:,.0f} MiB", flush=True)
            if files:
                on_files(q, x, reference, t)
            else:
                print(f"    {'simulated':<24} {score(q.predict(x, verbose=0), reference, t)}", flush=True)


def on_files(q: keras.Model, x: np.ndarray, reference: np.ndarray, t: Task) -> None:
    """The file on both kinds of kernels."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.tflite"
        kquant.export(q, path, data=t.calibration)
        content = path.read_bytes()
    for runtime in ("litert", "litert-reference"):
        y = kquant.predict(content, x, runtime)
        print(f"    {runtime:<24} {score(y, reference, t)}  {len(content):,} bytes", flush=True)


def main() -> None:
    """Parse; each task runs in a process of its own, so that its peak of memory is its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", type=one_of(TASKS), default=TASKS)
    parser.add_argument("--w4", action="store_true", help="W4A8 on files (the default)")
    parser.add_argument("--simulated", action="store_true", help="W4A4 and W3A8 in Keras")
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--samples", type=int, default=None, help="training images for ResNet8 instead of its 200")
    parser.add_argument("--observer", default="percentile", help="of activations; mse suits 4 bits better")
    parser.add_argument("--here", action="store_true", help="in this process")
    args = parser.parse_args()
    if not args.here:
        for name in args.tasks:
            given = [a for a in sys.argv[1:] if a not in args.tasks]
            subprocess.run([sys.executable, "-m", "benchmarks.recovery", name, "--here", *given], check=True)
        return
    for name in args.tasks:
        if args.w4 or not args.simulated:
            run(name, args.methods, args.samples, [(4, 8)], True, args.observer)
        if args.simulated:
            run(name, args.methods, args.samples, [(4, 4), (3, 8)], False, args.observer)


if __name__ == "__main__":
    main()

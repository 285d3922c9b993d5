"""Quantization-aware training of ResNet8 at low bits: the training that tfmot was measured with, and longer ones.

python -m benchmarks.qat_low_bits int8 w4a8 w4a4 w2a8 --seeds 0 1

20,000 training images (shards 0-3), batch 64, Adam, flip and crop behind 4 edge pixels, as `benchmarks.qat_accuracy`;
int8: 2 epochs at 1e-4. The other widths: `SETUPS`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

import kquant
from benchmarks.assets import loader
from benchmarks.qat_accuracy import batches
from kquant.correct.steps import apply_steps
from kquant.recipe.recipe import Step

FIRST = 2000


@dataclass(frozen=True)
class Setup:
    """A recipe, what prepares the model, and its training."""

    weights: int
    activations: int
    training: dict[str, Any] = field(default_factory=dict)
    steps: tuple[str, ...] = ("calibrate",)
    observers: tuple[str, str] = ("percentile", "minmax")
    epochs: int = 2
    rate: float = 1e-4
    cosine: bool = False
    image_bits: int | None = None


LEARNED = {"ranges": "learned", "range_rate": 1.0}
LOW = {"observers": ("mse", "mse"), "rate": 1e-3, "cosine": True}
SETUPS = {
    "int8": Setup(8, 8),
    "int8-learned": Setup(8, 8, LEARNED),
    "w4a8-moving": Setup(4, 8, steps=("calibrate", "sequential-mse"), rate=5e-4, cosine=True),
    "w4a8": Setup(4, 8, LEARNED, steps=("calibrate", "sequential-mse"), rate=5e-4, cosine=True),
    "w4a4": Setup(4, 4, LEARNED, steps=("calibrate", "sequential-mse"), epochs=4, image_bits=8, **LOW),
    "w4a4-image4": Setup(4, 4, LEARNED, steps=("calibrate", "sequential-mse"), epochs=4, **{**LOW, "rate": 5e-4}),
    "w2a8": Setup(2, 8, LEARNED, steps=("calibrate", "sequential-mse"), rate=1e-3, epochs=4, cosine=True),
}


def quantized(model: keras.Model, setup: Setup, data: np.ndarray) -> keras.Model:
    """The model with its ranges set."""
    recipe = {
        "name": "qat",
        "activations": {"bits": setup.image_bits or setup.activations, "observer": setup.observers[0]},
        "rules": [{"layer": "*", "activations": {"bits": setup.activations}}],
        "weights": {"bits": setup.weights, "unpacked_bits": max(setup.weights, 8), "observer": setup.observers[1]},
        "training": setup.training,
    }
    return apply_steps(kquant.quantize(model, recipe), [Step(name=s) for s in setup.steps], data, verbose=False)


def run(name: str, seed: int, args: argparse.Namespace) -> None:
    """Train, export, judge on the test images."""
    load, setup = loader(), SETUPS[name]
    keras.utils.set_random_seed(seed)
    x, y = load.cifar10_train([0, 1, 2, 3])
    x_test, y_test = load.cifar10_test()
    x_test, y_test = x_test[: args.limit].astype("float32"), y_test.reshape(-1)[: args.limit]
    model = load.mlperf_model("image_classification")
    q = quantized(model, setup, x[:200].astype("float32"))
    if seed == args.seeds[0]:
        print(f"{name}: float {score(model, x_test, y_test)}; quantized, before training {score(q, x_test, y_test)}")
    epochs, rate = args.epochs or setup.epochs, args.rate or setup.rate
    steps = epochs * -(-len(x) // 64)
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps) if setup.cosine else rate
    q.compile(keras.optimizers.Adam(schedule), "sparse_categorical_crossentropy", metrics=["accuracy"])
    started = time.perf_counter()
    q.fit(batches(x, y.reshape(-1), seed), epochs=epochs, verbose=0)
    took = time.perf_counter() - started
    simulated = q.predict(x_test, verbose=0, batch_size=256)
    title = f"{name}, seed {seed}, {epochs} epochs, Adam {rate:g}{' cosine' * setup.cosine}, {took:.0f} s"
    print(f"{title}: simulated {hits(simulated, y_test)}", flush=True)
    if setup.activations != 8:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "qat.tflite"
        kquant.export(q, path, data=x_test[:64])
        size = path.stat().st_size
        for runtime in ("litert", "litert-reference"):
            found = kquant.predict(path, x_test, runtime)
            agree = np.mean(found[:FIRST].argmax(-1) == simulated[:FIRST].argmax(-1))
            print(f"  {runtime:<17} {hits(found, y_test)}  = simulation {100 * agree:.2f}  {size:,} bytes", flush=True)


def score(model: keras.Model, x: np.ndarray, y: np.ndarray) -> str:
    """Accuracy of a Keras model."""
    return hits(model.predict(x, verbose=0, batch_size=256), y)


def hits(found: np.ndarray, y: np.ndarray) -> str:
    """Accuracy on the first 2,000 and on all."""
    right = found.argmax(-1) == y
    every = f" ({100 * np.mean(right):.2f} of {len(y):,})" if len(y) > FIRST else ""
    return f"{100 * np.mean(right[:FIRST]):.2f}{every}"


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["int8", "w4a8", "w4a4", "w2a8"])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--rate", type=float, default=None)
    parser.add_argument("--limit", type=int, default=10000)
    args = parser.parse_args()
    for name in args.names:
        for seed in args.seeds:
            run(name, seed, args)


if __name__ == "__main__":
    main()

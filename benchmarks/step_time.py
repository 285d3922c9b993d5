"""Number 4: time of a quantization-aware training step against the float step of the same model, in one process.

Rounds alternate between the two, so that a machine that slows down slows both. First step and peak memory are taken in
a process of their own for each configuration.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import kquant
from benchmarks.assets import loader
from benchmarks.choice import one_of
from benchmarks.memory import peak_kb
from benchmarks.turns import fit_step, in_turns, ratios, timed

BATCH = {"resnet8": 64, "mobilenetv2": 32}
STEPS, FEATURES = 32, 16  # of what a GRU(32) reads
BATCHES = {**BATCH, "gru": 64}  # without a peer: tfmot quantizes none


def build(name: str) -> tuple[Any, np.ndarray, np.ndarray]:
    """The float model and data for eight batches."""
    rng = np.random.default_rng(0)
    if name == "resnet8":
        model = loader().mlperf_model("image_classification")
        x = rng.uniform(0, 255, (8 * BATCH[name], 32, 32, 3)).astype("float32")
    elif name == "gru":
        layers = [keras.layers.GRU(32), keras.layers.Dense(10, activation="softmax")]
        model = keras.Sequential([keras.Input((STEPS, FEATURES)), *layers])
        x = rng.normal(size=(8 * BATCHES[name], STEPS, FEATURES)).astype("float32")
    else:
        model = keras.applications.MobileNetV2((96, 96, 3), alpha=0.35, weights=None, classes=10)
        x = rng.uniform(-1, 1, (8 * BATCH[name], 96, 96, 3)).astype("float32")
    return model, x, rng.integers(0, 10, len(x))


def prepared(name: str, kind: str, jit: bool) -> tuple[Any, np.ndarray, np.ndarray]:
    """A compiled model, float or quantized, and its data."""
    model, x, y = build(name)
    if kind == "qat":
        model = kquant.calibrate(kquant.quantize(model), x[: BATCHES[name]], verbose=False)
    model.compile(keras.optimizers.Adam(1e-4), "sparse_categorical_crossentropy", jit_compile=jit)
    return model, x, y


def steps(name: str, jit: bool, count: int, rounds: int) -> None:
    """Alternate rounds of float and quantized steps; print medians and their ratio."""
    runs = {kind: timed(fit_step(*prepared(name, kind, jit), BATCHES[name])) for kind in ("float", "qat")}
    found = ratios(in_turns(runs, rounds, count), "float")
    print(
        f"{name} batch {BATCHES[name]} jit={jit}: float {found['float'][0]:.1f} ms, QAT {found['qat'][0]:.1f} ms, "
        f"ratio {found['qat'][1]:.3f} ({rounds} rounds of {count} steps)",
        flush=True,
    )


def child(name: str, kind: str, jit: bool) -> None:
    """First step and memory of one configuration, as JSON."""
    model, x, y = prepared(name, kind, jit)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCHES[name]).repeat()
    started = time.perf_counter()
    model.fit(data, steps_per_epoch=1, verbose=0)
    first = time.perf_counter() - started
    model.fit(data, steps_per_epoch=20, verbose=0)
    print(json.dumps({"first_s": first, "peak_kb": peak_kb()}))


def first_steps(name: str, jit: bool) -> None:
    """Ratios of first step and peak memory, each configuration alone in a process."""
    found = {}
    for kind in ("float", "qat"):
        command = [sys.executable, "-m", "benchmarks.step_time", name, "--child", kind, *(["--jit"] if jit else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[kind] = json.loads(done.stdout.splitlines()[-1])
    a, b = found["float"], found["qat"]
    print(
        f"{name} jit={jit}: first step {a['first_s']:.1f} and {b['first_s']:.1f} s, "
        f"ratio {b['first_s'] / a['first_s']:.2f}; "
        f"peak memory {a['peak_kb'] // 1024} and {b['peak_kb'] // 1024} MB, ratio {b['peak_kb'] / a['peak_kb']:.2f}",
        flush=True,
    )


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", type=one_of(BATCHES), default=list(BATCH))
    parser.add_argument("--jit", action="store_true")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", choices=("float", "qat"))
    args = parser.parse_args()
    if args.child:
        child(args.models[0], args.child, args.jit)
        return
    for name in args.models:
        steps(name, args.jit, args.steps, args.rounds)
        first_steps(name, args.jit)


if __name__ == "__main__":
    main()

"""Samples a second of a quantized model's `predict`, by turns with the float model, LiteRT and TFLM.

`predict` is what replaces the device on the desk, so it is held against the interpreters that compute the same codes:
LiteRT (XNNPACK) on one thread, and TensorFlow Lite Micro's interpreter; and against what Keras
takes for the float model. `evaluate` stands beside it, and for the recurrent models `predict` compiled by XLA in
batches of 512, as somebody asks for it; kquant's own `predict` and `evaluate` go over to XLA by themselves, of
convolutional networks with what stands between convolutions, and have run as many batches as that takes before they are
timed. Each takes its turn in every round, so that a machine that slows down slows all of them; `--clock cpu` counts the
processor's seconds, for a machine that does other work too (one thread: OMP_NUM_THREADS, TF_NUM_INTRAOP_THREADS,
TF_NUM_INTEROP_THREADS = 1). All models, those with convolutions and the recurrent ones, are in one run and one file:

    python -m benchmarks.predict_time --path benchmarks/results/predict_time.json
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import kquant
from benchmarks.assets import task
from benchmarks.choice import one_of
from benchmarks.latency import invocation
from benchmarks.machine import processor
from kquant.graph.by_xla import MANY

RECURRENT = ("lstm", "gru", "attention")
MODELS = ("image_classification", "keyword_spotting", "visual_wake_words", "mobilenetv2", *RECURRENT)
BATCH, LARGE_BATCH = 64, 512
layers = keras.layers
Run = Callable[[], float]  # samples a second of one turn
Clock = Callable[[], float]  # seconds
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


def model_and_data(name: str) -> tuple[Any, np.ndarray]:
    """A float model and samples."""
    if name == "mobilenetv2":
        model = keras.applications.MobileNetV2((96, 96, 3), alpha=1.0, weights=None, classes=10)
        return model, np.random.default_rng(0).uniform(-1, 1, (128, 96, 96, 3)).astype("float32")
    if name in RECURRENT:
        model = small(name)
        return model, np.random.default_rng(0).normal(size=(MANY * BATCH, *model.inputs[0].shape[1:])).astype("float32")
    chosen = task(name)
    return chosen.model, np.float32(chosen.x[:512])


def small(name: str) -> keras.Model:
    """32 steps through 32 units, or a block of a transformer of that width; random weights."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32 if name == "attention" else 16), name="frames")
    if name == "attention":
        y = layers.LayerNormalization()(inputs)
        x = layers.Add()([inputs, layers.MultiHeadAttention(2, 16)(y, y)])
        x = layers.Dense(32)(layers.Dense(64, activation="relu")(layers.LayerNormalization()(x)))
        x = layers.GlobalAveragePooling1D()(x)
    else:
        x = {"lstm": layers.LSTM, "gru": layers.GRU}[name](32)(inputs)
    return keras.Model(inputs, layers.Dense(4)(x), name=name)


def in_keras(model: Any, x: np.ndarray, clock: Clock, batch: int = BATCH) -> Run:
    """`predict` of all samples."""

    def run() -> float:
        started = clock()
        model.predict(x, batch_size=batch, verbose=0)
        return len(x) / (clock() - started)

    return run


def evaluating(model: Any, x: np.ndarray, clock: Clock) -> Run:
    """`evaluate` of all samples, the mean squared distance from zeros."""
    model.compile(loss="mse")
    y = np.zeros((len(x), *model.outputs[0].shape[1:]), np.float32)

    def run() -> float:
        started = clock()
        model.evaluate(x, y, batch_size=BATCH, verbose=0)
        return len(x) / (clock() - started)

    return run


def compiled(model: Any, x: np.ndarray, clock: Clock) -> Run:
    """`predict` of a copy by XLA."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    copy.compile(jit_compile=True)
    return in_keras(copy, x, clock, LARGE_BATCH)


def in_interpreter(content: bytes, runtime: str, clock: Clock, seconds: float = 0.5) -> Run:
    """One sample after the other; what they hold does not change the time."""
    invoke = invocation(content, runtime)

    def run() -> float:
        count, started = 0, clock()
        while not count or clock() - started < seconds:
            invoke()
            count += 1
        return count / (clock() - started)

    return run


def measured(name: str, rounds: int, folder: Path, clock: Clock) -> dict[str, Any]:
    """Medians over rounds, in samples a second, and the first `predict` in seconds."""
    model, x = model_and_data(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of few samples, and of ranges: nothing to do with time
        # TFLM rounds some functions its own way: the simulation that is held against it should
        target = "tflm" if name in RECURRENT else "litert"
        q = kquant.calibrate(kquant.quantize(model, target=target), x[:128], verbose=False)
        kquant.export(q, folder / f"{name}.tflite", check_runtimes=False)
    content = (folder / f"{name}.tflite").read_bytes()
    first = {}
    for label, each in (("float", model), ("kquant", q)):
        started = clock()
        each.predict(x[:BATCH], batch_size=BATCH, verbose=0)
        first[label] = clock() - started
    runs = {"float": in_keras(model, x, clock), "kquant": in_keras(q, x, clock)}
    if name in RECURRENT:
        runs |= {"float, XLA": compiled(model, x, clock), "kquant, XLA": compiled(q, x, clock)}
    runs |= {"float, evaluate": evaluating(model, x, clock), "kquant, evaluate": evaluating(q, x, clock)}
    for label, run in runs.items():  # traces, and compiles
        started = clock()
        run()
        first[f"{label}, all samples"] = clock() - started
    for label in ("kquant", "kquant, evaluate"):
        for _ in range(-(-MANY // -(-len(x) // BATCH))):
            runs[label]()
    runs |= {runtime: in_interpreter(content, runtime, clock) for runtime in ("litert", "tflm")}
    rows: dict[str, list[float]] = {label: [] for label in runs}
    for _ in range(rounds):
        for label, run in runs.items():
            rows[label].append(run())
    return {
        "per_second": {label: float(np.median(values)) for label, values in rows.items()},
        "times_tflm": float(np.median(np.divide(rows["kquant"], rows["tflm"]))),
        "of_float": float(np.median(np.divide(rows["kquant"], rows["float"]))),
        "evaluate_times_tflm": float(np.median(np.divide(rows["kquant, evaluate"], rows["tflm"]))),
        "evaluate_of_float": float(np.median(np.divide(rows["kquant, evaluate"], rows["float, evaluate"]))),
        "first_predict_s": first,
        "batch": BATCH,
        "samples": len(x),
        "rounds": rounds,
    }


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=one_of(MODELS), default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--path", type=Path, help="where to write the figures, as JSON")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="whose seconds are counted")
    args = parser.parse_args()
    found = {
        "clock": args.clock,
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "versions": {"keras": keras.__version__, "tensorflow": tf.__version__, "kquant": kquant.__version__},
        "models": {},
    }
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            found["models"][name] = each = measured(name, args.rounds, Path(folder), CLOCKS[args.clock])
        speeds = ", ".join(f"{label} {value:,.0f}" for label, value in each["per_second"].items())
        first = each["first_predict_s"]
        print(
            f"{name}, samples a second: {speeds}; {each['times_tflm']:.1f} times TFLM, {each['of_float']:.2f} of "
            f"float; evaluate {each['evaluate_times_tflm']:.1f} and {each['evaluate_of_float']:.2f}; "
            f"first predict {first['kquant']:.1f} and {first['float']:.1f} s",
            flush=True,
        )
        if args.path:  # after each model, as a run takes minutes
            args.path.parent.mkdir(parents=True, exist_ok=True)
            args.path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

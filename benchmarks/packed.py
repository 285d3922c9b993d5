"""What weights packed several to a byte cost in time, on LiteRT with XNNPACK, one thread, by turns.

    python -m benchmarks.packed operators        # each operator alone, with 8-bit weights and with packed ones
    python -m benchmarks.packed operators --type int2    # of 2 bits, where an operator takes them
    python -m benchmarks.packed models --peer ../peer/bin/python    # whole models, beside LiteRT Quantizer's W4A8

The first part is where `slow` of `packed` in kquant/targets/litert.toml comes from. The Python of `--peer` has
ai-edge-quantizer 0.10; without it that column is left out. Times are medians of single invocations: a load on the
machine that interrupts some of them does not reach the median. The load is printed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import kquant
from benchmarks.assets import Task, task
from benchmarks.choice import one_of
from benchmarks.latency import invocation
from benchmarks.turns import in_turns, ratios, timed
from kquant import targets
from kquant.core.packed import PACKED
from kquant.correct.steps import apply_steps
from kquant.recipe.recipe import Step
from kquant.views.packing import UNPACKS

MODELS = ("keyword_spotting", "visual_wake_words")
Case = tuple[tuple[int, ...], Callable[[], keras.layers.Layer]]

# Shapes of the two models, of ResNet8 and the autoencoder, and what the kernels may treat apart.
CASES: dict[str, Case] = {
    "1x1, 64 to 64": ((25, 5, 64), lambda: layers.Conv2D(64, 1)),
    "1x1, 128 to 128": ((12, 12, 128), lambda: layers.Conv2D(128, 1)),
    "1x1, 256 to 256": ((3, 3, 256), lambda: layers.Conv2D(256, 1)),
    "1x1, 8 to 16": ((48, 48, 8), lambda: layers.Conv2D(16, 1)),
    "1x1, stride 2": ((24, 24, 32), lambda: layers.Conv2D(64, 1, strides=2)),
    "3x3, 32 to 32": ((16, 16, 32), lambda: layers.Conv2D(32, 3, padding="same")),
    "3x3, 3 to 8": ((96, 96, 3), lambda: layers.Conv2D(8, 3, strides=2, padding="same")),
    "3x3, dilated": ((16, 16, 32), lambda: layers.Conv2D(32, 3, padding="same", dilation_rate=2)),
    "3 in 1-D": ((64, 32), lambda: layers.Conv1D(32, 3, padding="same")),
    "3x3, 4 groups": ((16, 16, 32), lambda: layers.Conv2D(32, 3, padding="same", groups=4)),
    "10x4, 1 to 64": ((49, 10, 1), lambda: layers.Conv2D(64, (10, 4), strides=2, padding="same")),
    "depthwise 3x3, 64": ((25, 5, 64), lambda: layers.DepthwiseConv2D(3, padding="same")),
    "depthwise 3x3, stride 2": ((48, 48, 16), lambda: layers.DepthwiseConv2D(3, strides=2, padding="same")),
    "depthwise 3x3, 256": ((3, 3, 256), lambda: layers.DepthwiseConv2D(3, padding="same")),
    "depthwise 5x5, 64": ((12, 12, 64), lambda: layers.DepthwiseConv2D(5, padding="same")),
    "depthwise 3x3, two each": ((12, 12, 32), lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same")),
    "dense, 64 to 12": ((64,), lambda: layers.Dense(12)),
    "dense, 640 to 128": ((640,), lambda: layers.Dense(128)),
    "dense, 16 rows": ((16, 64), lambda: layers.Dense(64)),
    "dense, 63 to 128": ((63,), lambda: layers.Dense(128)),
    "dense, 255 to 64": ((255,), lambda: layers.Dense(64)),
    "dense, 66 to 128": ((66,), lambda: layers.Dense(128)),
    "dense, 130 to 128": ((130,), lambda: layers.Dense(128)),
}


def file_of(
    model: keras.Model, recipe: Mapping[str, Any], samples: np.ndarray, path: Path, steps: Sequence[str] = ()
) -> Path:
    """The file of a recipe, calibrated and then corrected by `steps`, which change its accuracy, not its time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        q = kquant.quantize(model, dict(recipe), target="litert")
        if recipe.get("mode", "static") == "static":
            kquant.calibrate(q, samples, verbose=False)
        apply_steps(q, [Step(name=name) for name in steps], samples, verbose=False)
        kquant.export(q, path, check_runtimes=False)
    return path


def times_ms(paths: Mapping[str, Path], base: str, rounds: int, count: int) -> dict[str, tuple[float, float, float]]:
    """For each file its median invocation in ms, the ratio to that of `base`, and the spread of the ratio."""
    runs = {name: timed(invocation(path.read_bytes(), "litert")) for name, path in paths.items()}
    return ratios(in_turns(runs, rounds, count, warm_up=50), base)


def operators(folder: Path, mode: str, rounds: int, type: str) -> None:
    """Every case with 8-bit weights and with packed ones; then the median of each operator's cases."""
    found: dict[tuple[str, str], list[float]] = {}
    target = targets.load("litert")
    print(f"{'operator':18} {'case':24} {'8 bits':>9} {'packed':>9} {'ratio':>6}   in the target file, {mode}")
    for name, (shape, make) in CASES.items():
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input(shape), make()])
        samples = np.random.default_rng(0).normal(size=(8, *shape)).astype("float32")
        paths = {}
        for bits in (8, PACKED[type].bits):
            recipe = {"name": "packed", "mode": mode, "weights": {"bits": bits}}
            paths[str(bits)] = file_of(model, recipe, samples, folder / f"{bits}.tflite")
        base, packed = paths
        file = kquant.inspect(paths[packed])
        if any(tensor.dtype == type for tensor in file.tensors):
            code = next(op.code for op in file.operators if target.ops[op.code].packs(type))
            reader = UNPACKS if mode == "weight-only" else code
            told = target.ops[reader].slowdown(type, "litert", int(np.prod(model.layers[-1].kernel.shape[:-1])))
            times = times_ms(paths, base, rounds, 200)
            found.setdefault((reader, "slow" if told else "fast"), []).append(times[packed][1])
            row = f"{code:18} {name:24} {times[base][0]:9.4f} {times[packed][0]:9.4f} {times[packed][1]:6.2f}"
            print(f"{row}   {told or 'not slow'}", flush=True)
        else:
            print(f"{'':18} {name:24} not packed", flush=True)
    for (code, told), values in found.items():
        span = f"{min(values):.2f} to {max(values):.2f}"
        print(f"{code}, {told}: median {np.median(values):.2f} of {len(values)}, {span}")


FOUR = {"name": "packed", "weights": {"bits": 4, "unpacked_bits": 8}}
RECIPES: dict[str, dict[str, Any]] = {
    "int8": {"name": "int8"},
    "4 bits, bytes": {**FOUR, "prefer": "bytes"},
    "4 bits, latency": {**FOUR, "prefer": "latency"},
    "latency, Conv2D bytes": {**FOUR, "prefer": "latency", "rules": [{"type": "Conv2D", "prefer": "bytes"}]},
}
STEPS = ("sequential-mse", "adaround")  # those of the recipe int4-weights, but for calibration
PEER = "LiteRT Quantizer W4A8"


def peer_file(model: Any, samples: np.ndarray, python: str, folder: Path) -> Path:
    """LiteRT Quantizer's file with 4-bit weights, from the converter's float file with a signature."""
    archive = keras.export.ExportArchive()
    archive.track(model)
    signature = [tf.TensorSpec((1, *model.input_shape[1:]), tf.float32)]
    archive.add_endpoint("serve", lambda x: model(x, training=False), input_signature=signature)
    archive.write_out(str(folder / "saved"), verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved"))
    (folder / "float.tflite").write_bytes(converter.convert())
    np.save(folder / "samples.npy", samples.astype("float32"))
    script = Path(__file__).with_name("litert_quantizer.py")
    out = folder / "peer.tflite"
    command = [python, str(script), str(folder / "float.tflite"), str(folder / "samples.npy"), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{python} {script.name} failed:\n{done.stderr[-2000:]}")
    return out


def models(folder: Path, peer: str | None, rounds: int, correct: bool) -> None:
    """Whole models: bytes and times over LiteRT Quantizer's, or over int8 where it is not there."""
    for name in MODELS:
        t = task(name)
        place = folder / name
        place.mkdir()
        paths = {
            key: file_of(t.model, recipe, t.calibration, place / f"{i}.tflite", STEPS if correct and i else ())
            for i, (key, recipe) in enumerate(RECIPES.items())
        }
        if peer is not None:
            paths[PEER] = peer_file(t.model, t.calibration, peer, place)
        base = PEER if peer is not None else "int8"
        sizes = {key: path.stat().st_size for key, path in paths.items()}
        for key, (ms, ratio, spread) in times_ms(paths, base, rounds, 60).items():
            print(
                f"{name:18} {key:22} {ms:.4f} ms, {ratio:.3f} of {base} (spread {spread:.3f}); {sizes[key]:,} bytes, "
                f"{sizes[key] / sizes[base]:.2f}; load {os.getloadavg()[0]:.1f}; right {accuracy(paths[key], t):.2f} %",
                flush=True,
            )


def accuracy(path: Path, t: Task) -> float:
    """Share of right classes on the samples that judge, in %."""
    return 100 * float(np.mean(kquant.predict(path, t.x, runtime="litert").argmax(-1) == t.y))


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["operators", "models"], type=one_of(("operators", "models")))
    parser.add_argument("--mode", default="static", choices=("static", "dynamic", "weight-only"), help="of operators")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--type", choices=tuple(PACKED), default="int4", help="of the operators' packed weights")
    parser.add_argument("--peer", help="a Python with ai-edge-quantizer")
    parser.add_argument("--correct", action="store_true", help=f"4-bit models by {', '.join(STEPS)}, some minutes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if "operators" in args.parts:
            operators(Path(folder), args.mode, args.rounds, args.type)
        if "models" in args.parts:
            models(Path(folder), args.peer, args.rounds, args.correct)


if __name__ == "__main__":
    main()

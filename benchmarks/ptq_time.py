"""Numbers 5 and 6: wall time, memory, latency and size against the TensorFlow converter, same model and samples."""

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

from benchmarks.assets import task
from benchmarks.latency import latencies_ms
from benchmarks.memory import peak_kb

TASKS = {
    "resnet8": "image_classification",
    "kws": "keyword_spotting",
    "vww": "visual_wake_words",
    "ad": "anomaly_detection",
    "sww": "streaming_wakeword",
}


def build(name: str) -> tuple[Any, np.ndarray]:
    """A model and its calibration samples."""
    if name == "resnet50":
        model = keras.applications.ResNet50(weights=None, input_shape=(96, 96, 3), classes=10)
        return model, np.random.default_rng(0).uniform(0, 255, (200, 96, 96, 3)).astype("float32")
    t = task(TASKS[name])
    return t.model, t.calibration


def child(name: str, tool: str, path: str) -> None:
    """Make one file; print seconds and peak memory as JSON."""
    model, samples = build(name)
    if tool != "converter":
        import kquant

        started = time.perf_counter()
        q = kquant.calibrate(kquant.quantize(model), samples, verbose=False)
        kquant.export(q, path, check_runtimes=tool == "kquant")
    else:
        from benchmarks.converter import convert_int8

        started = time.perf_counter()
        Path(path).write_bytes(convert_int8(model, samples))
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "peak_kb": peak_kb()}))


def run(name: str, repeats: int) -> None:
    """Both tools in processes of their own, in turn; then both files in one process."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {tool: str(Path(folder) / f"{tool}.tflite") for tool in ("kquant", "unverified", "converter")}
        rows: dict[str, list[dict[str, float]]] = {tool: [] for tool in paths}
        for _ in range(repeats):
            for tool, path in paths.items():
                command = [sys.executable, "-m", "benchmarks.ptq_time", name, "--child", tool, "--path", path]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                rows[tool].append(json.loads(done.stdout.splitlines()[-1]))
        times = {tool: float(np.median([r["seconds"] for r in found])) for tool, found in rows.items()}
        memory = {tool: max(r["peak_kb"] for r in found) / 1024 for tool, found in rows.items()}
        sizes = {tool: Path(path).stat().st_size for tool, path in paths.items()}
        a, b = latencies_ms([paths["kquant"], paths["converter"]])
    print(
        f"{name:<9} PTQ {times['unverified']:.2f} s against the converter's {times['converter']:.2f} s (ratio "
        f"{times['unverified'] / times['converter']:.2f}), {times['kquant']:.2f} s with the file run on all runtimes; "
        f"peak {memory['kquant']:.0f} against {memory['converter']:.0f} MB; "
        f"{sizes['kquant']:,} against {sizes['converter']:,} bytes "
        f"({sizes['kquant'] / sizes['converter']:.3f}); "
        f"latency {a:.4f} against {b:.4f} ms ({a / b:.3f})",
        flush=True,
    )


def calibration(name: str) -> None:
    """calibrate against `predict` on the same 1,000 samples, both from a fresh model, as a user calls them."""
    import kquant

    model, samples = build(name)
    many = np.concatenate([samples] * (1000 // len(samples) + 1))[:1000]
    ratios = []
    for _ in range(5):
        q, fresh = kquant.quantize(model), keras.models.clone_model(model)
        started = time.perf_counter()
        kquant.calibrate(q, many, verbose=False)
        middle = time.perf_counter()
        fresh.predict(many, verbose=0)
        ratios.append((middle - started) / (time.perf_counter() - middle))
    print(f"{name:<9} calibrate / predict on 1,000 samples: {np.median(ratios):.2f}", flush=True)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=[*TASKS, "resnet50"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", choices=("kquant", "unverified", "converter"))
    parser.add_argument("--path")
    args = parser.parse_args()
    if args.child:
        child(args.models[0], args.child, args.path)
        return
    for name in args.models:
        run(name, args.repeats)
        if name != "resnet50":
            calibration(name)


if __name__ == "__main__":
    main()

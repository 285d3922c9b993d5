"""Time, memory, latency and size against the TensorFlow converter, same model and samples.

Wall time, and the processor's: on a machine that others use too, only the latter can be compared.

    python -m benchmarks.ptq_time                           # MLPerf Tiny: the table, and results/ptq_time.json
    python -m benchmarks.ptq_time resnet152 --path r.json   # a large model
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

from benchmarks.assets import task
from benchmarks.choice import one_of
from benchmarks.latency import latencies_ms
from benchmarks.machine import machine
from benchmarks.memory import peak_kb
from benchmarks.phone_recovery import efficientnet_lite0, images, settle

TASKS = {
    "resnet8": "image_classification",
    "kws": "keyword_spotting",
    "vww": "visual_wake_words",
    "ad": "anomaly_detection",
    "sww": "streaming_wakeword",
}
RESULTS = Path(__file__).parent / "results" / "ptq_time.json"
LARGE = ("resnet50", "resnet152", "efficientnet_lite0")


def build(name: str) -> tuple[Any, np.ndarray]:
    """A model and its calibration samples."""
    if name == "efficientnet_lite0":
        data = images(100, 0)
        settle(model := efficientnet_lite0(), data[:8])
        return model, data
    if name in LARGE:
        made = {"resnet50": (keras.applications.ResNet50, 96), "resnet152": (keras.applications.ResNet152, 64)}
        make, size = made[name]
        model = make(weights=None, input_shape=(size, size, 3), classes=10)
        return model, np.random.default_rng(0).uniform(0, 255, (200, size, size, 3)).astype("float32")
    t = task(TASKS[name])
    return t.model, t.calibration


def child(name: str, tool: str, path: str) -> None:
    """Make one file; print seconds, those of the processor and peak memory as JSON."""
    model, samples = build(name)
    if tool != "converter":
        import kquant

        started, processor = time.perf_counter(), time.process_time()
        q = kquant.calibrate(kquant.quantize(model), samples, verbose=False)
        kquant.export(q, path, check_runtimes=tool == "kquant")
    else:
        from benchmarks.converter import convert_int8

        started, processor = time.perf_counter(), time.process_time()
        Path(path).write_bytes(convert_int8(model, samples))
    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    print(json.dumps({"seconds": seconds, "processor_s": processor, "peak_kb": peak_kb()}))


def run(name: str, rounds: int) -> dict[str, Any]:
    """Medians of both tools in processes of their own, in turn; then both files in one process."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        paths = {tool: str(Path(folder) / f"{tool}.tflite") for tool in ("kquant", "unverified", "converter")}
        rows: dict[str, list[dict[str, float]]] = {tool: [] for tool in paths}
        for _ in range(rounds):
            for tool, path in paths.items():
                command = [sys.executable, "-m", "benchmarks.ptq_time", name, "--child", tool, "--file", path]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                rows[tool].append(json.loads(done.stdout.splitlines()[-1]))
        times, processor = (
            {tool: float(np.median([r[key] for r in turns])) for tool, turns in rows.items()}
            for key in ("seconds", "processor_s")
        )
        memory = {tool: max(r["peak_kb"] for r in turns) / 1024 for tool, turns in rows.items()}
        sizes = {tool: Path(path).stat().st_size for tool, path in paths.items()}
        a, b = latencies_ms([paths["kquant"], paths["converter"]])
    print(
        f"{name:<9} PTQ {times['unverified']:.2f} s against the converter's {times['converter']:.2f} s (ratio "
        f"{times['unverified'] / times['converter']:.2f}; of the processor {processor['unverified']:.2f} and "
        f"{processor['converter']:.2f}, {processor['unverified'] / processor['converter']:.2f}), "
        f"{times['kquant']:.2f} s with the file run on all runtimes; "
        f"peak {memory['kquant']:.0f} against {memory['converter']:.0f} MB; "
        f"{sizes['kquant']:,} against {sizes['converter']:,} bytes "
        f"({sizes['kquant'] / sizes['converter']:.3f}); "
        f"latency {a:.4f} against {b:.4f} ms ({a / b:.3f})",
        flush=True,
    )
    latency = {"kquant": a, "converter": b}
    spent = {"seconds": times, "processor_s": processor, "peak_mb": memory}
    ratios = {"ratio": times["unverified"] / times["converter"]}
    ratios["processor_ratio"] = processor["unverified"] / processor["converter"]
    return {**spent, **ratios, "bytes": sizes, "latency_ms": latency, "rounds": rounds, "load": load}


def calibration(name: str) -> float:
    """Median of calibrate against `predict` on the same 1,000 samples, both from a fresh model, as users call them."""
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
    return float(np.median(ratios))


def written_to(models: list[str], path: Path | None) -> Path | None:
    """Where the figures go: by default those of all the table's models into it, and those of a few nowhere."""
    return RESULTS if path is None and set(TASKS) == set(models) else path


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=one_of([*TASKS, *LARGE]), default=[*TASKS])
    parser.add_argument("--rounds", type=int, default=7, help="turns of each tool, of which the medians are told")
    parser.add_argument(
        "--path",
        type=Path,
        help="where to write the figures, as JSON; of the whole table by default results/ptq_time.json",
    )
    parser.add_argument("--child", choices=("kquant", "unverified", "converter"))
    parser.add_argument("--file")
    args = parser.parse_args()
    if args.child:
        child(args.models[0], args.child, args.file)
        return
    from kquant.files.atomic import write_atomically  # not before a child has begun to measure: it loads with a verb

    path = written_to(args.models, args.path)
    measured: dict[str, Any] = {**machine(), "models": {}}
    print(f"{measured['processor']}, {measured['cores']} cores, load {measured['load']:.2f}", flush=True)
    for name in args.models:
        measured["models"][name] = run(name, args.rounds)
        if name not in LARGE:
            measured["models"][name]["calibrate_to_predict"] = calibration(name)
        if path is not None:
            write_atomically(path, f"{json.dumps(measured, indent=1)}\n".encode())


if __name__ == "__main__":
    main()

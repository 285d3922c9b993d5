"""Number 1: the five MLPerf Tiny models, PTQ int8, on every runtime, beside the official file and the converter's."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

import kquant
from benchmarks.assets import TASKS, Task, task
from benchmarks.choice import one_of
from benchmarks.converter import convert_int8
from kquant import targets
from kquant.runtime.running import available


def sqnr_db(reference: np.ndarray, found: np.ndarray) -> float:
    """Power of the reference over the power of the difference."""
    noise = float(np.mean((reference.astype(np.float64) - found) ** 2))
    return (
        float("inf") if noise == 0 else 10 * float(np.log10(float(np.mean(reference.astype(np.float64) ** 2)) / noise))
    )


def row(what: str, runtime: str, y: np.ndarray, reference: np.ndarray, simulated: np.ndarray | None, t: Task) -> None:
    """One line: accuracy, agreement with float and with the simulation, SQNR against float."""
    accuracy = "-" if t.y is None else f"{100 * np.mean(y.argmax(-1) == t.y[: len(y)]):.2f}"
    agree = "-" if t.y is None else f"{100 * np.mean(y.argmax(-1) == reference.argmax(-1)):.2f}"
    same = "-" if simulated is None else f"{100 * np.mean(y.argmax(-1) == simulated.argmax(-1)):.2f}"
    print(
        f"  {what:<10} {runtime:<17} accuracy {accuracy:>6}  = float {agree:>6}  = simulation {same:>6}  "
        f"SQNR {sqnr_db(reference, y):6.2f} dB  n={len(y)}",
        flush=True,
    )


def run(name: str, limit: int | None, peers: bool) -> None:
    """Print one model's block."""
    t = task(name)
    x = t.x[:limit]
    reference = t.model.predict(x, verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.tflite"
        started = time.perf_counter()
        result = kquant.compress(t.model, t.calibration, path=path, verbose=False)
        seconds = time.perf_counter() - started
        content = path.read_bytes()
    peer = convert_int8(t.model, t.calibration)
    floats = len(kquant.inspect(content).findings)
    print(
        f"{name}: {len(t.calibration)} calibration samples, kquant {len(content):,} bytes in {seconds:.1f} s "
        f"(findings: {floats}), converter {len(peer):,} bytes, official {t.official.stat().st_size:,} bytes",
        flush=True,
    )
    row("float", "keras", reference, reference, None, t)
    simulated = result.model.predict(x, verbose=0)
    row("kquant", "simulated", simulated, reference, None, t)
    for runtime in available():
        row("kquant", runtime, kquant.predict(content, x, runtime), reference, simulated, t)
    for what, data in (("converter", peer), ("official", t.official.read_bytes())) if peers else ():
        for runtime in ("litert", "litert-reference"):
            row(what, runtime, kquant.predict(data, x, runtime), reference, None, t)


def run_format(name: str, limit: int | None, recipe: str) -> None:
    """One model in another format, a file for each target."""
    t = task(name)
    x = t.x[:limit]
    reference = t.model.predict(x, verbose=0)
    row("float", "keras", reference, reference, None, t)
    for target in ("litert", "tflm"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "m.tflite"
            result = kquant.compress(t.model, t.calibration, recipe, path=path, target=target, verbose=False)
            content = path.read_bytes()
        print(f"{name} {recipe} for {target}: {len(content):,} bytes, arena {result.report.arena_bytes}", flush=True)
        simulated = result.model.predict(x, verbose=0)
        row(recipe, "simulated", simulated, reference, None, t)
        for runtime in targets.load(target).runtimes:
            if runtime in available():
                row(recipe, runtime, kquant.predict(content, x, runtime), reference, simulated, t)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", type=one_of(TASKS), default=TASKS)
    parser.add_argument("--limit", type=int, default=None, help="judge on the first N samples only")
    parser.add_argument("--no-peers", action="store_true", help="leave out the converter's and the official file")
    parser.add_argument("--recipe", default="int8", help="another format, without peers")
    args = parser.parse_args()
    for name in args.tasks:
        if args.recipe == "int8":
            run(name, args.limit, not args.no_peers)
        else:
            run_format(name, args.limit, args.recipe)


if __name__ == "__main__":
    main()

"""Time of an invocation of files, on one thread, by turns: `python -m benchmarks.latency one.tflite two.tflite`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from kquant.runtime.interpreters import RUNTIMES, litert_interpreter, tflm_interpreter


def invocation(data: bytes, runtime: str) -> Callable[[], object]:
    """A function that runs a file once, on whatever its input holds."""
    if runtime == "tflm":
        interpreter = tflm_interpreter(data)
        details = interpreter.get_input_details(0)
        interpreter.set_input(np.zeros(details["shape"], details["dtype"]), 0)
        return interpreter.invoke
    return litert_interpreter(data, reference=runtime == "litert-reference").invoke


def latencies_ms(
    paths: Sequence[str | Path], runtime: str = "litert", rounds: int = 15, seconds: float = 0.25
) -> list[float]:
    """Of each file, the median over rounds of the mean time in a round, in ms; the files take turns."""
    invocations = [invocation(Path(path).read_bytes(), runtime) for path in paths]
    found: list[list[float]] = [[] for _ in paths]
    for _ in range(rounds):
        for invoke, times in zip(invocations, found, strict=True):
            count, started = 0, time.perf_counter()
            while time.perf_counter() - started < seconds:
                invoke()
                count += 1
            times.append(1e3 * (time.perf_counter() - started) / count)
    return [float(np.median(times)) for times in found]


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--runtimes", nargs="*", default=list(RUNTIMES), choices=RUNTIMES)
    args = parser.parse_args()
    for runtime in args.runtimes:
        times = latencies_ms(args.paths, runtime)
        for path, ms in zip(args.paths, times, strict=True):
            print(f"{runtime:<17} {path}: {ms:.4f} ms, {ms / times[0]:.3f} of the first", flush=True)


if __name__ == "__main__":
    main()

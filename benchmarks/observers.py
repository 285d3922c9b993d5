"""Which observer to take by default: SQNR and accuracy of the simulated model, by ranges of activations and weights."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

import kquant
from benchmarks.accuracy import sqnr_db
from benchmarks.assets import TASKS, task
from benchmarks.choice import one_of
from kquant.calibration.observers import NEED_SAMPLES, OBSERVERS


def measured(name: str, recipe: dict[str, Any], limit: int) -> tuple[float, str]:
    """SQNR of the outputs in dB, and accuracy in %."""
    t = task(name)
    x = t.x[:limit]
    q = kquant.calibrate(kquant.quantize(t.model, recipe), t.calibration, verbose=False)
    found, wanted = q.predict(x, verbose=0), t.model.predict(x, verbose=0)
    accuracy = "-" if t.y is None else f"{100 * np.mean(found.argmax(-1) == t.y[:limit]):.2f}"
    return sqnr_db(wanted, found), accuracy


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", type=one_of(TASKS), default=TASKS)
    parser.add_argument("--limit", type=int, default=1000)
    arguments = parser.parse_args()
    able = [name for name in OBSERVERS if name not in NEED_SAMPLES]
    for name in arguments.tasks:
        for observer in able:
            row = measured(name, {"name": "a", "activations": {"observer": observer}}, arguments.limit)
            print(f"{name:<20} activations 8 bits {observer:<15} {row[0]:6.2f} dB  {row[1]}", flush=True)
        for bits in (8, 4):
            for observer in able:
                recipe = {"name": "w", "weights": {"bits": bits, "observer": observer}}
                row = measured(name, recipe, arguments.limit)
                print(f"{name:<20} weights     {bits} bits {observer:<15} {row[0]:6.2f} dB  {row[1]}", flush=True)


if __name__ == "__main__":
    main()

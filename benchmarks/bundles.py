"""Projects of the five MLPerf Tiny models, beside the official int8 files: seconds, arena by the same trial, flash.

Each official file goes through the same search for the smallest arena.

    python -m benchmarks.bundles --path benchmarks/results/bundles.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

import kquant
from benchmarks.assets import TASKS, task
from kquant.projects.arena import smallest_arena

SAMPLES, GOLDEN = 200, 20


def measured(name: str, folder: Path) -> dict[str, Any]:
    """One model: its project, and the official file."""
    chosen = task(name)
    # the smaller sets have fewer than 200 to calibrate with; the rest are of those that judge
    x = np.concatenate([chosen.calibration, chosen.x])[:SAMPLES]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        started = time.perf_counter()
        q = kquant.calibrate(kquant.quantize(chosen.model, target="tflm"), chosen.calibration, verbose=False)
        made = kquant.bundle(q, folder / name, data=x, name=name, golden=GOLDEN)
        seconds = time.perf_counter() - started
    row = {
        "seconds": seconds,
        "samples": len(x),
        "golden": made.golden,
        "flash": made.flash_bytes,
        "arena": made.arena.smallest_bytes,
        "with_margin": made.arena.bytes,
        "peak_layer": made.arena.peak_layer,
        "macs": made.macs,
    }
    official = chosen.official.read_bytes()
    arena = smallest_arena(official, kquant.inspect(official)).smallest_bytes
    return {**row, "official": {"flash": len(official), "arena": arena}}


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(TASKS))
    parser.add_argument("--path", type=Path, help="where to write the figures, as JSON")
    args = parser.parse_args()
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    rows: dict[str, Any] = {}
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = row = measured(name, Path(folder))
        official = row["official"]
        print(
            f"{name}: {row['seconds']:.1f} s, flash {row['flash']:,} of {official['flash']:,} "
            f"({row['flash'] / official['flash']:.2f}), arena {row['arena']:,} of {official['arena']:,} "
            f"({row['arena'] / official['arena']:.2f}), {row['macs']:,} MACs, most alive at {row['peak_layer']}",
            flush=True,
        )
    if args.path:
        args.path.write_text(json.dumps({**machine, "load": os.getloadavg()[0], "models": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Projects of the five MLPerf Tiny models, beside the official int8 files: seconds, arena by the same trial, flash.

Each official file goes through the same search for the smallest arena. Two recipes: int8, and the one with one scale
for each Dense kernel; of the autoencoder, whose plain 8-bit weights are more than 0.95 of the official file, the latter
in Huffman codes too, which take arena to decode into. What `kquant.estimate` tells of the model alone stands beside.
Where Vela is installed, so does what it places on an Ethos-U55-128.

    python -m benchmarks.bundles --path benchmarks/results/bundles.json
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

import kquant
from benchmarks.assets import TASKS, Task, task
from benchmarks.choice import one_of
from benchmarks.machine import processor
from kquant.analysis.sqnr import decibel
from kquant.app.pipeline import prepare
from kquant.projects.arena import smallest_arena
from kquant.tflite.vela import find_vela

SAMPLES, GOLDEN = 200, 20
RECIPES = ("int8", "int8-dense-tensor")
# one more row: the recipe, and the form of the file
CODED = {"anomaly_detection": ("int8-dense-tensor", {"compression": "huffman", "decode_budget": 17 * 1024})}


def measured(chosen: Task, recipe: str, folder: Path, **form: Any) -> dict[str, Any]:
    """One model: its project, and what was told of it without data, where the file is not in codes."""
    # the smaller sets have fewer than 200 to calibrate with; the rest are of those that judge
    x = np.concatenate([chosen.calibration, chosen.x])[:SAMPLES]
    started = time.perf_counter()
    q = prepare(chosen.model, chosen.calibration, recipe, target="tflm", verbose=False)
    made = kquant.bundle(q, folder / recipe, data=x, name=chosen.name, golden=GOLDEN, **form)
    seconds = time.perf_counter() - started
    wanted = chosen.model.predict(x, verbose=0)
    got = kquant.predict(folder / recipe / "model.tflite", x, runtime="tflm", verbose=False)
    return {
        "seconds": seconds,
        "samples": len(x),
        "golden": made.golden,
        "flash": made.flash_bytes,
        "arena": made.arena.smallest_bytes,
        "with_margin": made.arena.bytes,
        "peak_layer": made.arena.peak_layer,
        "macs": made.macs,
        "sqnr_db": decibel(float(np.sum((got - wanted) ** 2) / np.sum(wanted**2))),
        "told": None if form else told(chosen, recipe),
    }


def told(chosen: Task, recipe: str) -> dict[str, Any]:
    """Of the model alone."""
    started = time.perf_counter()
    found = kquant.estimate(chosen.model, recipe, target="tflm")
    return {"flash": found.flash_bytes, "arena": found.arena_bytes, "seconds": time.perf_counter() - started}


def placed(chosen: Task, folder: Path) -> dict[str, Any] | None:
    """What Vela compiles of it; None where it is not installed."""
    if find_vela() is None:
        return None
    q = prepare(chosen.model, chosen.calibration, "int8", target="ethos-u", verbose=False)
    made = kquant.bundle(q, folder / "npu", data=chosen.calibration, name=chosen.name, golden=1)
    return {
        "compiler": made.compiled.compiler,
        "accelerator": made.compiled.accelerator,
        "operators": made.compiled.operators,
        "on_npu": made.compiled.operators - len(made.compiled.stays),
        "flash": made.flash_bytes,
        "arena": made.arena.smallest_bytes,
    }


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=one_of(TASKS), default=list(TASKS))
    parser.add_argument("--path", type=Path, help="where to write the figures, as JSON")
    args = parser.parse_args()
    machine = {"processor": processor(), "cores": os.cpu_count()}
    rows: dict[str, Any] = {}
    warnings.simplefilter("ignore", UserWarning)
    for name in args.models:
        chosen = task(name)
        content = chosen.official.read_bytes()
        official = {"flash": len(content), "arena": smallest_arena(content, kquant.inspect(content)).smallest_bytes}
        with tempfile.TemporaryDirectory() as folder:
            made = {recipe: measured(chosen, recipe, Path(folder)) for recipe in RECIPES}
            if name in CODED:
                recipe, form = CODED[name]
                made[f"{recipe}, {form['compression']}"] = measured(chosen, recipe, Path(folder) / "coded", **form)
            rows[name] = {**made, "official": official, "vela": placed(chosen, Path(folder))}
        for recipe, row in made.items():
            alone = "nothing" if row["told"] is None else "flash {flash:,}, arena {arena:,}".format(**row["told"])
            print(
                f"{name}, {recipe}: {row['seconds']:.1f} s, flash {row['flash']:,} of {official['flash']:,} "
                f"({row['flash'] / official['flash']:.2f}), arena {row['arena']:,} of {official['arena']:,} "
                f"({row['arena'] / official['arena']:.2f}), {row['sqnr_db']:.1f} dB, told without data {alone}; "
                f"{row['macs']:,} MACs, most alive at {row['peak_layer']}",
                flush=True,
            )
        print(f"{name}, Vela: {rows[name]['vela']}", flush=True)
    if args.path:
        args.path.write_text(json.dumps({**machine, "load": os.getloadavg()[0], "models": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

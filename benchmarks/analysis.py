"""What `kquant.analyze` says of real models, how long it takes, and whether its rules help.

python -m benchmarks.analysis image_classification int4-weights
"""

from __future__ import annotations

import argparse
import time
import tomllib
from typing import Any

import numpy as np

import kquant
from benchmarks import assets
from kquant.recipe import recipe as recipes

SAMPLES = 256


def accuracy_of(q: Any, t: assets.Task) -> float:
    """Of all labelled samples."""
    return float(np.mean(q.predict(t.x, batch_size=100, verbose=0).argmax(1) == t.y))


def calibrated(t: assets.Task, recipe: Any) -> Any:
    """The recipe's grids, weights rounded to nearest: its steps are left out."""
    return kquant.calibrate(kquant.quantize(t.model, recipe), t.calibration, verbose=False)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("task", nargs="?", default="image_classification", choices=assets.TASKS)
    parser.add_argument("recipe", nargs="?", default="int4-weights")
    parser.add_argument("--html", help="write the report to this file")
    chosen = parser.parse_args()
    t = assets.task(chosen.task)
    q = calibrated(t, chosen.recipe)
    order = np.random.default_rng(0).permutation(len(t.x))[:SAMPLES]
    start = time.perf_counter()
    analysis = kquant.analyze(q, t.x[order], verbose=False)
    print(kquant.report.render(analysis))
    print(f"{analysis.samples} samples: {time.perf_counter() - start:.1f} s")
    if chosen.html:
        kquant.report.html(analysis, chosen.html)
    if t.y is None:
        return
    real = np.mean(t.model.predict(t.x, verbose=0).argmax(1) == t.y)
    base = recipes.load(chosen.recipe)
    label = f"{base.weights.bits}-bit weights, rounded to nearest"
    print(f"accuracy of {len(t.y)} samples: float {real:.4f}, {label} {accuracy_of(q, t):.4f}")
    for finding in analysis.findings:
        if finding.remedy.startswith("[[rules]]"):
            rules = tomllib.loads(finding.remedy)["rules"]
            changed = base.model_copy(update={"rules": tuple(recipes.LayerRule(**r) for r in rules)})
            print(f"  with {rules[0]}: {accuracy_of(calibrated(t, changed), t):.4f}", flush=True)


if __name__ == "__main__":
    main()

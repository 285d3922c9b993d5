"""Bytes of files whose weights are clustered, with and without look-up tables; outputs compared on TFLM.

Every kernel gets 16 values for each output channel by k-means, after the batch norms are folded, without training: what
is measured is the file, not the accuracy that training would bring back.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

import kquant
from benchmarks.assets import Task, task
from benchmarks.choice import one_of
from kquant.runtime.running import probe, quantize_input

NAMES = ("image_classification", "keyword_spotting", "visual_wake_words", "anomaly_detection")
SAMPLES = 64


def clustered(model: keras.Model, clusters: int, per_channel: bool) -> keras.Model:
    """A folded copy whose kernels have `clusters` values a channel, or a kernel; depthwise kernels stay as they are."""
    folded = kquant.fold(model)
    warnings.simplefilter("ignore", ConvergenceWarning)
    for layer in folded.layers:
        kernel = getattr(layer, "kernel", None)
        if kernel is None or isinstance(layer, keras.layers.DepthwiseConv2D | keras.layers.DepthwiseConv1D):
            continue
        weights = keras.ops.convert_to_numpy(kernel).copy()
        parts = np.moveaxis(weights, -1, 0).reshape(weights.shape[-1], -1) if per_channel else weights.reshape(1, -1)
        shared = np.stack([_means(part, clusters) for part in parts])
        shape = (weights.shape[-1], *weights.shape[:-1])
        kernel.assign(np.moveaxis(shared.reshape(shape), 0, -1) if per_channel else shared.reshape(weights.shape))
    return folded


def _means(values: np.ndarray, clusters: int) -> np.ndarray:
    if len(np.unique(values)) <= clusters:
        return values
    found = KMeans(clusters, n_init=1, random_state=0).fit(values.reshape(-1, 1))
    return found.cluster_centers_[found.labels_, 0]


def measure(t: Task, clusters: int, per_channel: bool, folder: Path) -> dict[str, Any]:
    """Both files of one model."""
    recipe = {"name": "int8", "weights": {"per_axis": per_channel}}
    q = kquant.quantize(clustered(t.model, clusters, per_channel), recipe, target="tflm")
    kquant.calibrate(q, t.calibration, verbose=False)
    plain = kquant.export(q, folder / "plain.tflite", data=t.calibration[:8])
    tabled = kquant.export(q, folder / "lut.tflite", data=t.calibration[:8], compression="lut")
    a, b = ((folder / f"{name}.tflite").read_bytes() for name in ("plain", "lut"))
    codes = [quantize_input(t.x[:SAMPLES], kquant.inspect(a).inputs[0])]
    same = all(np.array_equal(p, r) for p, r in zip(probe(a, "tflm", codes), probe(b, "tflm", codes), strict=True))
    return {"plain": plain, "lut": tabled, "same": same, "tables": kquant.inspect(b).tables}


def row(name: str, layout: str, found: dict[str, Any]) -> str:
    """A line of the table in docs/benchmarks.md."""
    plain, lut = found["plain"], found["lut"]
    raw, stored = plain.weights.totals["raw_bytes"], lut.weights.totals["stored_bytes"]
    tables = {t.name: t for t in found["tables"]}.values()
    entries = sum(t.stored_bytes - 16 - -(-t.raw_bytes * t.bits // 8) for t in tables)
    cells = [
        f"{name}, {layout}",
        f"{plain.file_bytes:,}",
        f"{lut.file_bytes:,}",
        f"{lut.file_bytes / plain.file_bytes:.3f}",
        f"{raw:,}",
        f"{stored:,}",
        f"{entries:,}",
        f"{len(tables)} of {len(plain.weights.layers)}",
        f"{plain.weights.deflated_file_bytes:,}",
        f"{lut.weights.deflated_file_bytes:,}",
        f"{lut.arena_bytes - plain.arena_bytes:+,}",
        "equal" if found["same"] else "DIFFERENT",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Parse, measure, print a row at a time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", type=one_of(NAMES), default=list(NAMES), help=f"of {', '.join(NAMES)}")
    parser.add_argument("--clusters", type=int, default=16)
    args = parser.parse_args()
    columns = ("", "int8 file", "with tables", "ratio", "codes", "stored", "of it entries", "layers")
    columns += ("deflated", "tables deflated", "arena", f"outputs, {SAMPLES} samples")
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}", flush=True)
    for name in args.names:
        t = task(name)
        for per_channel in (True, False):
            with tempfile.TemporaryDirectory() as folder:
                found = measure(t, args.clusters, per_channel, Path(folder))
            layout = "values and scale a channel" if per_channel else "values and scale a kernel"
            print(row(name, layout, found), flush=True)


if __name__ == "__main__":
    main()

"""Do ranges of activations get better where an error counts by the channel it is in? Measured, and not in the package.

An error in input channel c of the next layer moves its outputs by the norm of that channel's weights, so that the least
squared error of the outputs is that of a histogram whose counts are weighted: `sum_c |W_c|^2 hist_c`. Compared with the
plain `mse` observer, weights of 8 bits: SQNR of the outputs and accuracy.
"""

from __future__ import annotations

import argparse
from typing import Any

import keras
import numpy as np

import kquant
from benchmarks.accuracy import sqnr_db
from benchmarks.assets import Task, task
from benchmarks.choice import one_of
from kquant.calibration.observers import mse
from kquant.calibration.tensor_statistics import Statistics, histogram
from kquant.graph.graph import Graph, Node
from kquant.layers.nodes import Compressed, FakeQuant
from kquant.views.quantized_model import forget_graphs, read, tensors

TASKS = ("image_classification", "keyword_spotting", "visual_wake_words")


def importance(graph: Graph, node: Node, channels: int) -> np.ndarray:
    """`|W_c|^2` of the layers that read what a `FakeQuant` writes, straight or behind a pool or a reshape; or ones."""
    consumers, found = graph.consumers, np.zeros(channels)
    waiting = list(consumers.get(id(node.outputs[0]), []))
    while waiting:
        reader = waiting.pop()
        if isinstance(reader.op, Compressed):
            kernel = reader.op.weights_as_used().numpy().astype(np.float64)
            inputs = kernel.ndim - 2
            found += np.sum(np.moveaxis(kernel, inputs, 0).reshape(-1, channels, kernel.size // kernel.shape[inputs])
                            ** 2, axis=(0, 2))  # fmt: skip
        elif type(reader.op).__name__ in ("Flatten", "Reshape", "GlobalAveragePooling2D", "AveragePooling2D"):
            waiting += consumers.get(id(reader.outputs[0]), [])
    return found / found.mean() if found.any() else np.ones(channels)


def weigh(q: keras.Model, data: np.ndarray) -> int:
    """Set the ranges of a calibrated model by weighted histograms; how many there were."""
    graph, count = read(q), 0
    for node in graph.nodes:
        if not isinstance(node.op, FakeQuant) or not node.op.has_range:
            continue
        parts = [a for (a,) in tensors(graph, [node.inputs[0]], np.array_split(data, 4), quantized=False)]
        rows = np.concatenate([a.reshape(-1, a.shape[-1]) for a in parts])
        weights = importance(graph, node, rows.shape[-1])
        total = histogram(rows)
        end = np.nextafter(np.float32(total.reach), np.float32(0))
        ends = (np.float32([-end, end]),)  # so that every channel has the same bins
        counts = sum(w * (histogram(np.concatenate([rows[:, c], *ends])).counts) for c, w in enumerate(weights))
        counts[[0, -1]] -= weights.sum()
        seen = Statistics(rows.min(keepdims=True)[0], rows.max(keepdims=True)[0], np.maximum(counts, 0), total.reach)
        low, high = mse(seen, node.op.spec)
        node.op.set_range(node.kwargs.get("site", 0), low, high)
        count += 1
    forget_graphs(q)
    return count


def measured(q: keras.Model, t: Task, x: np.ndarray) -> str:
    """SQNR and accuracy."""
    found, wanted = q.predict(x, verbose=0), t.model.predict(x, verbose=0)
    return f"{sqnr_db(wanted, found):6.2f} dB  {100 * np.mean(found.argmax(-1) == t.y[: len(x)]):.2f} %"


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", type=one_of(TASKS), default=TASKS)
    parser.add_argument("--limit", type=int, default=1000)
    arguments = parser.parse_args()
    for name in arguments.tasks:
        t = task(name)
        x = t.x[: arguments.limit]
        for bits in (8, 4):
            recipe: dict[str, Any] = {"name": "a", "activations": {"observer": "mse", "bits": bits}}
            q = kquant.calibrate(kquant.quantize(t.model, recipe), t.calibration, verbose=False)
            print(f"{name:<22} {bits} bits  plain    {measured(q, t, x)}", flush=True)
            count = weigh(q, t.calibration)
            print(f"{name:<22} {bits} bits  weighted {measured(q, t, x)}  ({count} ranges)", flush=True)


if __name__ == "__main__":
    main()

"""Steps of tfmot's ways to compress, for benchmarks/train_time.py, in a Python of their own with Keras 2.

Reads lines `[name, steps]`, answers each with the seconds of the steps; the first answer is the list of names.
"""

from __future__ import annotations

import json
import os
import sys

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from tensorflow_model_optimization.python.core.clustering.keras.experimental import cluster
from turns import fit_step, timed  # beside this file, which runs as a script

BATCH = {"resnet8": 64, "mobilenetv2": 32}


def build(name: str, weights: str):
    """The float model."""
    if name == "resnet8":
        return tf_keras.models.load_model(weights, compile=False)
    return tf_keras.applications.MobileNetV2((96, 96, 3), alpha=0.35, weights=None, classes=10)


def pruned(model):
    schedule = tfmot.sparsity.keras.PolynomialDecay(0.0, 0.5, 0, 1000, frequency=15)
    return tfmot.sparsity.keras.prune_low_magnitude(model, pruning_schedule=schedule)


def clustered(model, **options):
    init = tfmot.clustering.keras.CentroidInitialization.KMEANS_PLUS_PLUS
    return cluster.cluster_weights(model, number_of_clusters=16, cluster_centroids_init=init, **options)


def pcqat(model):
    """Quantization-aware training of weights that are half zeros and shared, and stay so."""
    for layer in model.layers:
        if layer.weights and "conv" in layer.name or "dense" in layer.name:
            kernel, *others = layer.get_weights()
            layer.set_weights([np.where(np.abs(kernel) < np.median(np.abs(kernel)), 0.0, kernel), *others])
    shared = tfmot.clustering.keras.strip_clustering(clustered(model, preserve_sparsity=True))
    scheme = tfmot.experimental.combine.Default8BitClusterPreserveQuantizeScheme(preserve_sparsity=True)
    return tfmot.quantization.keras.quantize_apply(tfmot.quantization.keras.quantize_annotate_model(shared), scheme)


WAYS = {
    "float": lambda model: model,
    "QAT": tfmot.quantization.keras.quantize_model,
    "pruning": pruned,
    "clustering": clustered,
    "PCQAT": pcqat,
}


def prepared(name: str, way: str, x: np.ndarray, y: np.ndarray, weights: str, jit: bool):
    """A function that takes one step, as `fit` does it, and waits for it."""
    model = WAYS[way](build(name, weights))
    model.compile(tf_keras.optimizers.Adam(1e-4), "sparse_categorical_crossentropy", jit_compile=jit)
    step = fit_step(model, x, y, BATCH[name])
    if way != "pruning":
        return step
    update = tfmot.sparsity.keras.UpdatePruningStep()  # what its users must add to `fit`
    update.set_model(model)
    update.on_train_begin()

    def run() -> None:
        update.on_train_batch_begin(0)
        step()

    return run


def main() -> None:
    name, data, weights, jit, clock = sys.argv[1:]
    tf.config.threading.set_intra_op_parallelism_threads(int(os.environ.get("OMP_NUM_THREADS", "0")))
    stored = np.load(data)
    found = {}
    for way in WAYS:
        try:
            found[way] = timed(prepared(name, way, stored["x"], stored["y"], weights, jit == "1"), clock)
        except Exception as error:  # noqa: BLE001  a way that it cannot do with this model has no row
            print(f"tfmot, {way}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    print(json.dumps(list(found)), flush=True)
    for line in sys.stdin:
        if not line.strip():
            return
        way, count = json.loads(line)
        print(json.dumps(found[way](count)), flush=True)


if __name__ == "__main__":
    main()

"""Steps of tfmot's ways to compress, for benchmarks/train_time.py, in a Python of their own with Keras 2.

Reads lines `[name, steps]`, answers each with the seconds of the steps; the first answer is the list of names.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from tensorflow_model_optimization.python.core.clustering.keras.experimental import cluster
from turns import fit_step, timed  # beside this file, which runs as a script

sys.path.insert(0, str(Path(__file__).parent / "peers" / "scripts"))
import zoo  # noqa: E402  what both Keras build alike

BATCH = {"mobilenetv2": 32}  # of the others 64


def build(name: str, weights: str):
    """The float model."""
    if name == "resnet8":
        return tf_keras.models.load_model(weights, compile=False)
    if hasattr(zoo, name):
        return getattr(zoo, name)(tf_keras)
    return tf_keras.applications.MobileNetV2((96, 96, 3), alpha=0.35, weights=None, classes=10)


def pruned(model):
    schedule = tfmot.sparsity.keras.PolynomialDecay(0.0, 0.5, 0, 1000, frequency=15)
    return tfmot.sparsity.keras.prune_low_magnitude(model, pruning_schedule=schedule)


def clustered(model, **options):
    init = tfmot.clustering.keras.CentroidInitialization.KMEANS_PLUS_PLUS
    return cluster.cluster_weights(model, number_of_clusters=16, cluster_centroids_init=init, **options)


def halved(model):
    """Half of each kernel zeros."""
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            kernel, *others = layer.get_weights()
            layer.set_weights([np.where(np.abs(kernel) < np.median(np.abs(kernel)), 0.0, kernel), *others])
    return model


def kept(model, scheme):
    """Quantization-aware training under a scheme that keeps what the weights have."""
    return tfmot.quantization.keras.quantize_apply(tfmot.quantization.keras.quantize_annotate_model(model), scheme)


def pqat(model):
    return kept(halved(model), tfmot.experimental.combine.Default8BitPrunePreserveQuantizeScheme())


def cqat(model):
    shared = tfmot.clustering.keras.strip_clustering(clustered(model))
    return kept(shared, tfmot.experimental.combine.Default8BitClusterPreserveQuantizeScheme())


def pcqat(model):
    shared = tfmot.clustering.keras.strip_clustering(clustered(halved(model), preserve_sparsity=True))
    return kept(shared, tfmot.experimental.combine.Default8BitClusterPreserveQuantizeScheme(preserve_sparsity=True))


WAYS = {
    "float": lambda model: model,
    "QAT": tfmot.quantization.keras.quantize_model,
    "pruning": pruned,
    "clustering": clustered,
    "PCQAT": pcqat,
    "QAT, masks": pqat,
    "QAT, codebooks": cqat,
}


def prepared(name: str, way: str, x: np.ndarray, y: np.ndarray, weights: str, jit: bool):
    """A function that takes one step, as `fit` does it, and waits for it."""
    model = WAYS[way](build(name, weights))
    model.compile(tf_keras.optimizers.Adam(1e-4), "sparse_categorical_crossentropy", jit_compile=jit)
    step = fit_step(model, x, y, BATCH.get(name, 64))
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

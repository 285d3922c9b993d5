"""tfmot's ways: training in Keras 2 (tf_keras), the file by TensorFlow's converter."""

from __future__ import annotations

import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"

from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import keras2  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
import tensorflow_model_optimization as tfmot  # noqa: E402
import tf_keras  # noqa: E402
from common import BATCH, Task, Way, convert_int8, cover, fit, main  # noqa: E402
from tensorflow_model_optimization.python.core.clustering.keras.experimental import cluster as clustering  # noqa: E402

quantization, sparsity = tfmot.quantization.keras, tfmot.sparsity.keras
combine = tfmot.experimental.combine


def pruned(model: Any, task: Task, seed: int) -> tuple[Any, dict[str, float]]:
    """Half zeros from the first step on, as `kquant.prune(model, 0.5)`."""
    wrapped = sparsity.prune_low_magnitude(model, pruning_schedule=sparsity.ConstantSparsity(0.5, 0, frequency=100))
    told = fit(tf_keras, wrapped, task, seed, (sparsity.UpdatePruningStep(),))
    return sparsity.strip_pruning(wrapped), told


def clustered(model: Any, task: Task, seed: int, zeros: bool = False) -> tuple[Any, dict[str, float]]:
    """16 values a layer."""
    init = tfmot.clustering.keras.CentroidInitialization.KMEANS_PLUS_PLUS
    wrapped = clustering.cluster_weights(
        model, number_of_clusters=16, cluster_centroids_init=init, preserve_sparsity=zeros
    )
    told = fit(tf_keras, wrapped, task, seed)
    return tfmot.clustering.keras.strip_clustering(wrapped), told


def both(model: Any, task: Task, seed: int) -> tuple[Any, dict[str, float]]:
    small, _ = pruned(model, task, seed)
    return clustered(small, task, seed, zeros=True)


SCHEMES = {
    "qat": None,
    "pqat": combine.Default8BitPrunePreserveQuantizeScheme,
    "cqat": combine.Default8BitClusterPreserveQuantizeScheme,
    "pcqat": lambda: combine.Default8BitClusterPreserveQuantizeScheme(preserve_sparsity=True),
}


def way(prepare: Callable | None, scheme: str = "") -> Way:
    """Masks and codebooks first, then quantization: in training under a scheme, or by the converter."""

    def make(task: Task, out: Path, seed: int) -> Callable[[], dict[str, Any]]:
        model, data = task.keras2(tf_keras), task.array("calibration")

        def run() -> dict[str, Any]:
            tf_keras.utils.set_random_seed(seed)
            small, told = (model, {}) if prepare is None else prepare(model, task, seed)
            if scheme:
                annotated = quantization.quantize_annotate_model(small)
                made = SCHEMES[scheme]
                small = quantization.quantize_apply(annotated, *(() if made is None else (made(),)))
                told = fit(tf_keras, small, task, seed)
                np.save(out / "simulated.npy", small.predict(task.array("x"), batch_size=BATCH, verbose=0))
            (out / "model.tflite").write_bytes(convert_int8(tf, small, data))
            return {**told, "file": "model.tflite"}

        return run

    return make


def one(folder: Path, data: list[np.ndarray]) -> bytes:
    """Quantized as for training, then converted; the model rebuilt in Keras 2, weights random."""
    tf_keras.backend.clear_session()
    model = keras2.model_of(tf_keras, folder)
    return convert_int8(tf, quantization.quantize_model(model), *data)


if __name__ == "__main__":
    main(
        {
            "cover": cover(one),
            "qat": way(None, "qat"),
            "prune": way(pruned),
            "cluster": way(clustered),
            "pqat": way(pruned, "pqat"),
            "cqat": way(clustered, "cqat"),
            "pcqat": way(both, "pcqat"),
        }
    )

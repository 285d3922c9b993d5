"""kquant's ways."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from common import Task, Way, cover, fit, main

import kquant

SHARED = "scale"  # sharing of values, by the scale of each channel


def ptq(recipe: Any, target: str = "litert") -> Way:
    """A recipe, from unlabelled samples; the file is run on every runtime before the call returns."""

    def make(task: Task, out: Path, seed: int) -> Callable[[], dict[str, Any]]:
        model, data = keras.models.load_model(task.folder / "float.keras"), task.array("calibration")

        def run() -> dict[str, Any]:
            result = kquant.compress(model, data, recipe, path=out / "model.tflite", target=target, verbose=False)
            return simulated(result.model, task, out)

        return run

    return make


def train(prepare: Callable[[Any], Any], aware: bool) -> Way:
    """Masks and codebooks, training with them, then int8: with `aware`, training goes on in integers instead."""

    def make(task: Task, out: Path, seed: int) -> Callable[[], dict[str, Any]]:
        model, data = keras.models.load_model(task.folder / "float.keras"), task.array("calibration")

        def run() -> dict[str, Any]:
            keras.utils.set_random_seed(seed)
            small = prepare(model)
            told: dict[str, Any] = {}
            if small is not model:
                told = fit(keras, small, task, seed)
            q = kquant.calibrate(kquant.quantize(small), data, verbose=False)
            if aware:
                told = fit(keras, q, task, seed)
            kquant.export(q, out / "model.tflite", data=data)
            return {**told, **simulated(q, task, out)}

        return run

    return make


def simulated(q: Any, task: Task, out: Path) -> dict[str, Any]:
    """What the quantized Keras model predicts, to be compared with its file."""
    np.save(out / "simulated.npy", q.predict(task.array("x"), verbose=0))
    return {"file": "model.tflite"}


def same(model: Any) -> Any:
    return model


def pruned(model: Any) -> Any:
    return kquant.prune(model, 0.5)


def clustered(model: Any) -> Any:
    return kquant.cluster(model, 16, per_channel=SHARED)


def both(model: Any) -> Any:
    return clustered(pruned(model))


def one(folder: Path, data: list[np.ndarray]) -> bytes:
    """A file for LiteRT, run there before the call returns."""
    keras.backend.clear_session()
    model = keras.models.load_model(folder / "float.keras")
    kquant.compress(model, data if len(data) > 1 else data[0], path=folder / "ours.tflite", verbose=False)
    return (folder / "ours.tflite").read_bytes()


if __name__ == "__main__":
    main(
        {
            "cover": cover(one),
            "int8": ptq("int8"),
            "int8-mse": ptq({"name": "int8-mse", "weights": {"observer": "mse"}}),
            "int8-tflm": ptq("int8", "tflm"),
            "int16x8": ptq("int16x8"),
            "w4a8": ptq("int4-weights"),
            "w4a8-nearest": ptq({"name": "w4a8", "weights": {"bits": 4, "unpacked_bits": 8}}),
            "qat": train(same, True),
            "prune": train(pruned, False),
            "cluster": train(clustered, False),
            "pqat": train(pruned, True),
            "cqat": train(clustered, True),
            "pcqat": train(both, True),
        }
    )

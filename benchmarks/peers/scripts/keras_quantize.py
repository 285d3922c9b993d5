"""Keras' own `model.quantize`: weights of Dense and Embedding in int8, in Keras; it writes no integer file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from common import Task, cover, main


def quantize(task: Task, out: Path, seed: int) -> Callable[[], dict[str, Any]]:
    model = keras.models.load_model(task.folder / "float.keras")

    def run() -> dict[str, Any]:
        model.quantize("int8")
        np.save(out / "simulated.npy", model.predict(task.array("x"), verbose=0))
        model.save(out / "model.keras")
        return {"note": "a Keras model; no integer file"}

    return run


def one(folder: Path, data: list[np.ndarray]) -> bytes:
    """How many kernels it makes integers of, in Keras: weights of two axes or more."""
    keras.backend.clear_session()
    model = keras.models.load_model(folder / "float.keras")
    kernels = sum(_is_kernel(v) for v in model.variables)
    if kernels:  # without one it raises
        model.quantize("int8")
    left = sum(_is_kernel(v) for v in model.variables)
    return json.dumps({"kernels": kernels, "quantized": kernels - left}).encode()


def _is_kernel(variable: Any) -> bool:
    # scales of channels are floats of one axis
    return "float" in variable.dtype and sum(side > 1 for side in variable.shape) > 1


if __name__ == "__main__":
    main({"cover": cover(one, "json"), "int8": quantize})

"""Keras' own `model.quantize`: weights of Dense and Embedding in int8, in Keras; it writes no integer file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from common import Task, main


def quantize(task: Task, out: Path, seed: int) -> Callable[[], dict[str, Any]]:
    model = keras.models.load_model(task.folder / "float.keras")

    def run() -> dict[str, Any]:
        model.quantize("int8")
        np.save(out / "simulated.npy", model.predict(task.array("x"), verbose=0))
        model.save(out / "model.keras")
        return {"note": "a Keras model; no integer file"}

    return run


if __name__ == "__main__":
    main({"int8": quantize})

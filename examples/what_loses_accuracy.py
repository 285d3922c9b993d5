"""Which layer loses the accuracy at 4 bits, why, and what helps: a model with one channel far wider than the others.

python examples/what_loses_accuracy.py
"""

from __future__ import annotations

import keras
import numpy as np

import kquant


def main() -> None:
    """Break a layer, ask, and follow the answer."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((16,), name="x"),
            keras.layers.Dense(32, activation="relu", name="wide"),
            keras.layers.Dense(32, activation="relu", name="middle"),
            keras.layers.Dense(4, name="out"),
        ]
    )
    kernel = np.array(model.get_layer("wide").kernel)
    kernel[:, 0] *= 60.0  # what a bad batch norm leaves behind
    model.get_layer("wide").kernel.assign(kernel)
    x = np.float32(np.random.default_rng(0).normal(size=(256, 16)))

    recipe = {"name": "w4", "weights": {"bits": 4, "per_axis": False}}
    q = kquant.calibrate(kquant.quantize(model, recipe), x, verbose=False)
    kquant.report.show(kquant.analyze(q, x, verbose=False))


if __name__ == "__main__":
    main()

"""Half of the weights pruned while training goes on, then int8: the zeros are in the file.

python examples/prune_and_export.py         # needs: pip install '.[demo]'
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import keras
import numpy as np
from sklearn.datasets import load_digits

import kquant


def main() -> None:
    """Prune, train, quantize, export, count."""
    keras.utils.set_random_seed(0)
    digits = load_digits()
    x, y = np.float32(digits.data / 16.0), digits.target
    model = keras.Sequential(
        [keras.Input((64,), name="pixels"), keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)]
    )
    pruned = kquant.prune(model, 0.5)
    pruned.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    pruned.fit(x[:1500], y[:1500], epochs=8, batch_size=32, verbose=0)
    print(f"accuracy {100 * pruned.evaluate(x[1500:], y[1500:], verbose=0)[1]:.1f} %")

    q = kquant.calibrate(kquant.quantize(pruned), x[:300], verbose=False)
    print(kquant.sparsity(q))
    with tempfile.TemporaryDirectory() as folder:
        print(kquant.export(q, Path(folder) / "pruned.tflite", data=x[:32]))


if __name__ == "__main__":
    main()

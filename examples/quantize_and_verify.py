"""From a trained model to a verified full-integer file, and the file on an interpreter: scikit-learn's digits.

python examples/quantize_and_verify.py      # needs: pip install '.[demo]'
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import keras
import numpy as np
from sklearn.datasets import load_digits

import kquant


def main() -> None:
    """Train, quantize, export, run."""
    keras.utils.set_random_seed(0)
    digits = load_digits()
    images, labels = np.float32(digits.images[..., None] / 16.0), digits.target
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            keras.layers.Conv2D(16, 3, activation="relu", name="first"),
            keras.layers.Conv2D(16, 3, activation="relu", name="second"),
            keras.layers.GlobalAveragePooling2D(name="mean"),
            keras.layers.Dense(10, activation="softmax", name="digit"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(images[:1500], labels[:1500], epochs=5, batch_size=32, verbose=0)

    q = kquant.quantize(model)  # a Keras model again; `model` is untouched
    kquant.calibrate(q, images[:200], verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.tflite"
        report = kquant.export(q, path, data=images[:32])
        codes = kquant.predict(path, images[1500:])
    right = {
        "float": np.mean(model.predict(images[1500:], verbose=0).argmax(1) == labels[1500:]),
        "quantized": np.mean(q.predict(images[1500:], verbose=0).argmax(1) == labels[1500:]),
        "file": np.mean(codes.argmax(1) == labels[1500:]),
    }
    for name, share in right.items():
        print(f"{name:10} {100 * share:.1f} %")
    print(f"{report.file_bytes:,} bytes; operators: {', '.join(sorted(report.operators))}")


if __name__ == "__main__":
    main()

"""Number 3: one epoch of quantization-aware training of ResNet8 from its pretrained weights."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import kquant
from benchmarks.assets import loader


def batches(x: np.ndarray, y: np.ndarray, seed: int) -> tf.data.Dataset:
    """Shuffled batches of 64 with a flip and a crop of 4 edge pixels."""

    def augment(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = tf.image.random_flip_left_right(image)
        padded = tf.pad(image, [[4, 4], [4, 4], [0, 0]], "SYMMETRIC")
        return tf.image.random_crop(padded, (32, 32, 3)), label

    tf.random.set_seed(seed)
    data = tf.data.Dataset.from_tensor_slices((x.astype("float32"), y)).shuffle(len(x), seed=seed)
    return data.map(augment, num_parallel_calls=1, deterministic=True).batch(64)


def run(seed: int, epochs: int, rate: float, limit: int | None, runtimes: list[str]) -> None:
    """Train, export, judge on the test images."""
    load = loader()
    keras.utils.set_random_seed(seed)
    x, y = load.cifar10_train()
    x_test, y_test = load.cifar10_test()
    x_test, y_test = x_test[:limit].astype("float32"), y_test.reshape(-1)[:limit]
    model = load.mlperf_model("image_classification")
    reference = np.mean(model.predict(x_test, verbose=0).argmax(-1) == y_test)
    q = kquant.calibrate(kquant.quantize(model), x[:200].astype("float32"), verbose=False)
    q.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    q.fit(batches(x, y.reshape(-1), seed), epochs=epochs, verbose=2)
    q.compile(jit_compile=True)
    simulated = q.predict(x_test, verbose=0)
    print(
        f"seed {seed}, {epochs} epoch(s), Adam {rate:g}, n={len(x_test)}: float {100 * reference:.2f}, "
        f"simulated {100 * np.mean(simulated.argmax(-1) == y_test):.2f}",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "qat.tflite"
        kquant.export(q, path, data=x_test[:64])
        for runtime in runtimes:
            found = kquant.predict(path, x_test, runtime)
            print(
                f"  {runtime:<17} accuracy {100 * np.mean(found.argmax(-1) == y_test):.2f}  = simulation "
                f"{100 * np.mean(found.argmax(-1) == simulated.argmax(-1)):.2f}",
                flush=True,
            )


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--runtimes", nargs="*", default=["litert", "litert-reference"])
    args = parser.parse_args()
    for seed in args.seeds:
        run(seed, args.epochs, args.rate, args.limit, args.runtimes)


if __name__ == "__main__":
    main()

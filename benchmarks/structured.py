"""Structured compression of ResNet8: channels removed or kernels split, fine-tuned on CIFAR-10, judged on test images.

Trained on the 20,000 training images of the assets, with the flip and the crop of `qat_accuracy`; the float model
teaches what it says of the same augmented image. `--hold-out` judges on 2,000 training images left out of the training
instead, which is how the settings were chosen.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import kquant
from benchmarks.assets import loader
from benchmarks.qat_accuracy import batches

CLASSES, HELD_OUT, TEMPERATURE = 10, 2000, 4.0
LOSS = "sparse_categorical_crossentropy"


def compressed(
    model: keras.Model, method: str, macs: float, x: np.ndarray, y: np.ndarray, multiple: int
) -> keras.Model:
    """The smaller model before any training."""

    def likelihood(candidate: keras.Model) -> float:
        said = candidate(x[:512], training=False)
        return -float(np.mean(keras.losses.sparse_categorical_crossentropy(y[:512], said)))

    if method.startswith("low-rank"):
        judge = likelihood if method == "low-rank-eval" else None
        return kquant.factorize(
            model, macs=macs, data=x[:1024], multiple=multiple, evaluate=judge, verbose=False
        )
    return kquant.prune_channels(
        model, macs=macs, importance=method, data=(x[:2048], y[:2048]), loss=LOSS, multiple=multiple, verbose=False
    )


def tune(
    small: keras.Model,
    teacher: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    *,
    seed: int,
    epochs: int,
    batch: int,
    rate: float,
    soft: float,
) -> None:
    """Adam, a cosine from `rate` to 0 behind a short warm-up; distillation as in Hinton et al., arXiv:1503.02531."""

    def both(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return images, tf.stack([tf.one_hot(tf.cast(labels, tf.int32), CLASSES), teacher(images, training=False)], 1)

    def loss(labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        hard = keras.losses.categorical_crossentropy(labels[:, 0], outputs)
        taught, said = (tf.math.log(p + 1e-7) / TEMPERATURE for p in (labels[:, 1], outputs))
        far = tf.reduce_sum(tf.nn.softmax(taught) * (tf.nn.log_softmax(taught) - tf.nn.log_softmax(said)), -1)
        return (1.0 - soft) * hard + soft * TEMPERATURE**2 * far

    steps = epochs * -(-len(x) // batch)
    schedule = keras.optimizers.schedules.CosineDecay(0.0, steps, warmup_target=rate, warmup_steps=steps // 20)
    small.compile(keras.optimizers.Adam(schedule), loss)
    small.fit(batches(x, y, seed).rebatch(batch).map(both), epochs=epochs, verbose=0)


def accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
    """In %."""
    return 100 * float(np.mean(outputs.argmax(-1) == labels))


def latencies_ms(paths: Sequence[Path], rounds: int = 200, calls: int = 10) -> list[float]:
    """Shortest time of a call of each file on one thread of LiteRT (XNNPACK), the files in turn."""
    runners = []
    for path in paths:
        runner = Interpreter(str(path), num_threads=1)
        runner.allocate_tensors()
        runners.append(runner)
    found: list[list[float]] = [[] for _ in runners]
    for _ in range(rounds):
        for times, runner in zip(found, runners, strict=True):
            start = time.perf_counter()
            for _ in range(calls):
                runner.invoke()
            times.append((time.perf_counter() - start) / calls * 1e3)
    return [min(times) for times in found]


def exported(model: keras.Model, x: np.ndarray, path: Path) -> Path:
    """An int8 file."""
    q = kquant.calibrate(kquant.quantize(model), x[:200], verbose=False)
    kquant.export(q, path, samples=x[:16])
    return path


def judge(
    model: keras.Model, args: Any, data: tuple[Any, ...], method: str, share: float, seed: int, folder: Path
) -> None:
    """One method at one budget."""
    x, y, u, v = data
    keras.utils.set_random_seed(seed)
    small, before, start, whole = model, 0.0, time.perf_counter(), kquant.cost(model)
    for stage in range(1, args.stages + 1):
        budget = round((1 - (1 - share) * stage / args.stages) * whole.macs)
        small = compressed(small, method, budget, x, y, args.multiple)
        before = accuracy(small.predict(u, verbose=0), v)
        epochs = args.epochs * stage // args.stages - args.epochs * (stage - 1) // args.stages
        tune(small, model, x, y, seed=seed, epochs=epochs, batch=args.batch, rate=args.rate, soft=args.soft)
    seconds, left = time.perf_counter() - start, kquant.cost(small)
    after, reference = (accuracy(m.predict(u, verbose=0), v) for m in (small, model))
    line = (
        f"{method} {share:g}, multiple {args.multiple}, seed {seed}, {args.stages} stages, {args.epochs} epochs of "
        f"batches of {args.batch}, Adam {args.rate:g}, soft labels {args.soft:g}: MACs {left.macs / whole.macs:.3f}, "
        f"weight bytes {left.weight_bytes / whole.weight_bytes:.3f}; float {reference:.2f}, untrained {before:.2f}, "
        f"trained {after:.2f} (n={len(v)}), {seconds:.0f} s"
    )
    if not args.hold_out:
        files = [exported(m, x, folder / f"{i}.tflite") for i, m in enumerate((model, small))]
        int8 = accuracy(kquant.predict(files[1], u, "litert"), v)
        first, second = latencies_ms(files)
        sizes = [path.stat().st_size for path in files]
        line += f"; int8 {int8:.2f}, {first:.3f} -> {second:.3f} ms ({second / first:.2f})"
        line += f", {sizes[0]:,} -> {sizes[1]:,} bytes"
    print(line, flush=True)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="*", default=["taylor", "l1", "bn-scale", "low-rank", "low-rank-eval"])
    parser.add_argument("--macs", type=float, nargs="*", default=[0.6])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--stages", type=int, default=1, help="compress in so many steps, with epochs behind each")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--soft", type=float, default=0.95)
    parser.add_argument("--multiple", type=int, default=1)
    parser.add_argument("--limit", type=int, default=None, help="test images")
    parser.add_argument("--hold-out", action="store_true", help="judge on training images that are not trained on")
    args = parser.parse_args()
    load = loader()
    x, y = load.cifar10_train()
    u, v = load.cifar10_test()
    x, y, u, v = x.astype("float32"), y.reshape(-1), u.astype("float32")[: args.limit], v.reshape(-1)[: args.limit]
    if args.hold_out:
        x, y, u, v = x[:-HELD_OUT], y[:-HELD_OUT], x[-HELD_OUT:], y[-HELD_OUT:]
    model = load.mlperf_model("image_classification")
    with tempfile.TemporaryDirectory() as folder:
        for method in args.methods:
            for share in args.macs:
                for seed in args.seeds:
                    judge(model, args, (x, y, u, v), method, share, seed, Path(folder))


if __name__ == "__main__":
    main()

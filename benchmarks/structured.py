"""Structured compression of ResNet8: channels removed or kernels split, fine-tuned on CIFAR-10, judged on test images.

Trained on the 20,000 training images of the assets, with the flip and the crop of `qat_accuracy`; the float model
teaches what it says of the same augmented image. Settings were chosen on the first half of the test images; the second
half shows what that is worth. Training images cannot choose: the float model knows them, and imitation wins there.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import kquant
from benchmarks.assets import loader
from benchmarks.latency import latencies_ms
from benchmarks.qat_accuracy import batches

TEMPERATURE = 4.0
LOSS = "sparse_categorical_crossentropy"


def closeness(teacher: keras.Model, x: np.ndarray) -> Callable[[keras.Model], float]:
    """How near a candidate's probabilities are to the float model's on a thousand images: minus the mean divergence."""
    few, wanted = x[:1000], teacher.predict(x[:1000], verbose=0)

    def score(candidate: keras.Model) -> float:
        return -float(np.mean(keras.losses.kl_divergence(wanted, candidate(few, training=False))))

    return score


def compressed(model: keras.Model, method: str, macs: float, data: tuple[Any, Any], args: Any) -> keras.Model:
    """The smaller model before any training; the options are those of `main`."""
    x, y = data
    judge = closeness(model, x) if method in ("channels", "both", "low-rank-eval") else None
    common: dict[str, Any] = {"evaluate": judge, "verbose": args.widths}
    if method != "both" and not method.startswith("low-rank"):
        kind = "taylor" if method == "channels" else method
        labelled = (x[:2048], y[:2048])
        return kquant.prune_channels(
            model, macs=macs, importance=kind, data=labelled, loss=LOSS, multiple=args.multiple, **common
        )
    if method == "both":
        most = round(args.channels * kquant.cost(model).macs)
        model = compressed(model, "channels", most, data, args)
    return kquant.factorize(model, macs=macs, data=x[:1024], multiple=args.rank_multiple, **common)


def alike(small: keras.Model, teacher: keras.Model) -> list[str]:
    """Activations that have the same shape in both."""
    shapes = {layer.name: layer.output.shape for layer in teacher.layers}
    activations = [layer for layer in small.layers if isinstance(layer, keras.layers.Activation)]
    return [layer.name for layer in activations if shapes.get(layer.name) == layer.output.shape]


def mixed(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Each image with a random share of another one, which the float model has not seen; the labels are no longer true.

    Source: Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", arXiv:2106.05237.
    """
    count = tf.shape(images)[0]
    share = tf.random.uniform((count, 1, 1, 1))
    return share * images + (1.0 - share) * tf.gather(images, tf.random.shuffle(tf.range(count))), labels


def tune(small: keras.Model, teacher: keras.Model, data: tuple[Any, Any], seed: int, epochs: int, args: Any) -> None:
    """Adam, a cosine from `args.rate` to 0 behind a short warm-up; outputs and layers learn from the float model's."""
    keras.utils.set_random_seed(seed)
    steps = epochs * -(-len(data[0]) // args.batch)
    schedule = keras.optimizers.schedules.CosineDecay(0.0, steps, warmup_target=args.rate, warmup_steps=steps // 20)
    features = alike(small, teacher) if args.features else []
    trainer = kquant.distill(
        small,
        teacher,
        temperature=TEMPERATURE,
        alpha=args.soft,
        features=features,
        feature_weight=args.features,
        outputs="probabilities",
    )
    trainer.compile(keras.optimizers.Adam(schedule), LOSS)
    images = batches(*data, seed).rebatch(args.batch)
    trainer.fit(images.map(mixed) if args.mix else images, epochs=epochs, verbose=0)


def accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
    """In %."""
    return 100 * float(np.mean(outputs.argmax(-1) == labels))


def halved(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Its first and its second half."""
    return values[: len(values) // 2], values[len(values) // 2 :]


def exported(model: keras.Model, x: np.ndarray, path: Path) -> Path:
    """An int8 file."""
    q = kquant.calibrate(kquant.quantize(model), x[:200], verbose=False)
    kquant.export(q, path, data=x[:16])
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
        small = compressed(small, method, budget, (x, y), args)
        before = accuracy(small.predict(u, verbose=0), v)
        epochs = args.epochs * stage // args.stages - args.epochs * (stage - 1) // args.stages
        tune(small, model, (x, y), seed, epochs, args)
    seconds, left = time.perf_counter() - start, kquant.cost(small)
    outputs = small.predict(u, verbose=0)
    after, reference = accuracy(outputs, v), accuracy(model.predict(u, verbose=0), v)
    halves = [accuracy(*pair) for pair in zip(halved(outputs), halved(v), strict=True)]
    line = (
        f"{method} {share:g}, multiples {args.multiple} and {args.rank_multiple}, seed {seed}, {args.stages} stages, "
        f"{args.epochs} epochs of batches of {args.batch}, Adam {args.rate:g}, soft labels {args.soft:g}, features "
        f"{args.features:g}{', mixed images' * args.mix}: MACs {left.macs / whole.macs:.3f}, weight bytes "
        f"{left.weight_bytes / whole.weight_bytes:.3f}; float {reference:.2f}, untrained {before:.2f}, "
        f"trained {after:.2f} (n={len(v)}; halves {halves[0]:.2f}, {halves[1]:.2f}), {seconds:.0f} s"
    )
    files = [exported(m, x, folder / f"{i}.tflite") for i, m in enumerate((model, small))]
    sizes = [path.stat().st_size for path in files]
    line += f"; int8 {accuracy(kquant.predict(files[1], u, 'litert'), v):.2f}, {sizes[0]:,} -> {sizes[1]:,} bytes"
    for runtime in ("litert", "litert-reference", "tflm"):
        first, second = latencies_ms(files, runtime)
        line += f", {runtime} {first:.3f} -> {second:.3f} ms ({second / first:.2f})"
    print(line, flush=True)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="*", default=["channels", "low-rank-eval", "both"])
    parser.add_argument("--macs", type=float, nargs="*", default=[0.6])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--stages", type=int, default=1, help="compress in so many steps, with epochs behind each")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--soft", type=float, default=0.5, help="share of the float model's word in the loss")
    parser.add_argument("--features", type=float, default=0.0, help="weight of the layers' loss")
    parser.add_argument("--mix", action="store_true", help="mix images with each other; for --soft 1")
    parser.add_argument("--multiple", type=int, default=1, help="of channels")
    parser.add_argument("--rank-multiple", type=int, default=1)
    parser.add_argument("--channels", type=float, default=0.83, help="both: the share that the channels leave")
    parser.add_argument("--widths", action="store_true", help="show them, and bars")
    parser.add_argument("--limit", type=int, default=None, help="test images")
    args = parser.parse_args()
    load = loader()
    x, y = load.cifar10_train()
    u, v = load.cifar10_test()
    x, y, u, v = x.astype("float32"), y.reshape(-1), u.astype("float32")[: args.limit], v.reshape(-1)[: args.limit]
    model = load.mlperf_model("image_classification")
    with tempfile.TemporaryDirectory() as folder:
        for method in args.methods:
            for share in args.macs:
                for seed in args.seeds:
                    judge(model, args, (x, y, u, v), method, share, seed, Path(folder))


if __name__ == "__main__":
    main()

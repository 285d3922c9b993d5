"""Numbers 3 and 4: ResNet8 with 16 values for each channel, and with half of its weights zero as well, in int8.

Training data and augmentation as in `qat_accuracy`: 20,000 images of CIFAR-10, batches of 64. Adam with a learning rate
that falls to zero along a cosine.
"""

from __future__ import annotations

import argparse
import gzip
import math
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import kquant
from benchmarks.assets import loader
from benchmarks.qat_accuracy import batches
from benchmarks.turns import fit_step, in_turns, ratios, timed
from kquant.graph.keras_private import every_layer
from kquant.layers.nodes import Compressed

BATCH = 64
SHARING: dict[str, dict[str, Any]] = {
    "layer": {"per_channel": False},
    "channel": {"per_channel": True},
    "scale": {"per_channel": "scale"},
    "linear": {"per_channel": "scale", "init": "linear", "train_values": False},
}


def trained(model: keras.Model, x: np.ndarray, y: np.ndarray, seed: int, epochs: float, rate: float) -> None:
    """`fit` for so many epochs."""
    steps = int(epochs * -(-len(x) // BATCH))
    if steps:
        fall = keras.optimizers.schedules.CosineDecay(rate, steps)
        model.compile(keras.optimizers.Adam(fall), "sparse_categorical_crossentropy", metrics=["accuracy"])
        model.fit(batches(x, y, seed).repeat(), steps_per_epoch=steps, epochs=1, verbose=0)


def pruned(model: keras.Model, x: np.ndarray, y: np.ndarray, args: argparse.Namespace, seed: int) -> keras.Model:
    """Half of the weights zero, trained for `--prune-epochs`."""
    sparse = kquant.prune(model, 0.5, scope="global")
    trained(sparse, x, y, seed, args.prune_epochs, args.rate)
    return sparse


def run(seed: int, prune: bool, args: argparse.Namespace) -> None:
    """Cluster, train, quantize, train, export, judge."""
    load = loader()
    keras.utils.set_random_seed(seed)
    x, y = load.cifar10_train()
    x, y = x.astype("float32"), y.reshape(-1)
    test, labels = load.cifar10_test()
    test, labels = test[: args.limit].astype("float32"), labels.reshape(-1)[: args.limit]
    model = load.mlperf_model("image_classification")
    reference = np.mean(model.predict(test, verbose=0).argmax(-1) == labels)
    before = pruned(model, x, y, args, seed) if prune else model
    for name in args.sharing:
        options = SHARING[name]
        keras.utils.set_random_seed(seed)
        shared = kquant.cluster(before, args.clusters, seed=seed, **options)
        trained(shared, x, y, seed, args.float_epochs, args.rate)
        q = kquant.calibrate(kquant.quantize(shared, target=args.target), x[:200], verbose=False)
        trained(q, x, y, seed, args.epochs, args.rate)
        what = f"{'prune 50 % + ' if prune else ''}{args.clusters} values, {name}, seed {seed}"
        judge(q, test, labels, what, reference)


def judge(q: keras.Model, test: np.ndarray, labels: np.ndarray, what: str, reference: float) -> None:
    """Accuracy of the file, its bytes, and codes of its kernels."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        kquant.export(q, path, data=test[:64])
        found = kquant.predict(path, test)
        data = path.read_bytes()
        said = tables(q, test, Path(folder), len(data)) if q.layers[1].origin.load_target().decodes else ""
    kernels = [codes_of(layer) for layer in every_layer(q) if isinstance(layer, Compressed) and layer.transforms]
    most = max(len(np.unique(c)) for kernel in kernels for c in kernel)
    print(
        f"{what}, n={len(test)}: float {100 * reference:.2f}, file {100 * np.mean(found.argmax(-1) == labels):.2f}; "
        f"{len(data)} bytes, gzip -9 {len(gzip.compress(data, 9))}; at most {most} codes in a channel, "
        f"{np.mean([len(np.unique(k)) for k in kernels]):.0f} in a kernel on average, zeros "
        f"{100 * np.mean(np.concatenate([k.ravel() for k in kernels]) == 0):.1f} %{said}",
        flush=True,
    )


def tables(q: keras.Model, test: np.ndarray, folder: Path, plain_bytes: int) -> str:
    """The file with look-up tables, against the plain one: bytes, and outputs under TFLM."""
    kquant.export(q, folder / "lut.tflite", data=test[:64], compression="lut")
    size = (folder / "lut.tflite").stat().st_size
    a, b = (kquant.predict(folder / name, test[:200], "tflm") for name in ("model.tflite", "lut.tflite"))
    same = "equal" if np.array_equal(a, b) else "DIFFERENT"
    return f"; look-up tables {size} bytes, ratio {size / plain_bytes:.3f}, {same} outputs under TFLM (200 images)"


def step_times(clusters: int, rounds: int = 6, steps: int = 15) -> None:
    """Processor time of a training step on one thread, rounds of all kinds in turn."""
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 255, (512, 32, 32, 3)).astype("float32"), rng.integers(0, 10, 512)
    float_model = loader().mlperf_model("image_classification")
    models = {"float": float_model}
    models |= {name: kquant.cluster(float_model, clusters, **options) for name, options in SHARING.items()}
    both = kquant.cluster(kquant.prune(float_model, 0.5), clusters, per_channel="scale")
    models["prune, scale, int8"] = kquant.calibrate(kquant.quantize(both), x[:BATCH], verbose=False)
    models["float"] = keras.models.clone_model(float_model)
    for model in models.values():
        model.compile(keras.optimizers.Adam(1e-4), "sparse_categorical_crossentropy", jit_compile=False)
    runs = {name: timed(fit_step(model, x, y, BATCH), "cpu") for name, model in models.items()}
    for name, (ms, ratio, _) in ratios(in_turns(runs, rounds, steps), "float").items():
        print(f"{name}: {ms:.1f} ms, ratio {ratio:.2f} ({rounds} rounds of {steps} steps)", flush=True)


def codes_of(layer: Compressed) -> np.ndarray:
    """Codes of one layer by output channel: float32[channels, n]."""
    values = layer.codes(tf.constant(1.0))[0].numpy()
    kept = [axis % values.ndim for axis in layer.channel_axes]
    order = [*kept, *(axis for axis in range(values.ndim) if axis not in kept)]
    return values.transpose(order).reshape(math.prod(values.shape[axis] for axis in kept), -1)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--clusters", type=int, default=16)
    parser.add_argument("--sharing", nargs="*", choices=SHARING, default=["channel", "scale", "layer"])
    parser.add_argument("--prune", action="store_true")
    parser.add_argument("--prune-epochs", type=float, default=1.0)
    parser.add_argument("--float-epochs", type=float, default=0.0)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--target", default="litert", help="tflm: look-up tables too")
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--time", action="store_true", help="of a training step, instead")
    args = parser.parse_args()
    if args.time:
        step_times(args.clusters)
        return
    for seed in args.seeds:
        run(seed, args.prune, args)


if __name__ == "__main__":
    main()

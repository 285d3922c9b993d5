"""Pruned ResNet8, two epochs on 20,000 images, then int8: accuracy of the file, and its bytes deflated.

python -m benchmarks.pruning                             50 % and 80 %, 2:4
python -m benchmarks.pruning --settings tfmot            with the schedule and optimizer that tfmot was measured with
python -m benchmarks.pruning --qat                       one more epoch, quantized: the zeros must stay
python -m benchmarks.pruning --time                      training step against the float model's
"""

from __future__ import annotations

import argparse
import gzip
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
from kquant.layers.nodes import Compressed

STEPS = 313  # of an epoch: 20,000 images in batches of 64
JUDGED = 2000
# name -> part of the steps over which sparsity grows, learning rate, its decay, arguments of kquant.prune
SETTINGS: dict[str, tuple[float, float, bool, dict[str, Any]]] = {
    "kquant": (0.3, 1e-3, True, {"scope": "global"}),
    "flat": (0.3, 1e-4, False, {"scope": "global"}),
    "layer": (0.3, 1e-3, True, {"scope": "layer"}),
    "layer-constant": (0.0, 1e-3, True, {"scope": "layer"}),
    "tfmot": (0.75, 1e-4, False, {"scope": "global"}),
    "tfmot-layer": (0.75, 1e-4, False, {"scope": "layer"}),
    "tfmot-masked": (0.75, 1e-4, False, {"scope": "layer", "gradient": "masked"}),
}


def pruned(model: keras.Model, what: str, settings: str, epochs: int) -> keras.Model:
    """The model with masks, compiled; `what` is a share of zeros or a structure."""
    ramp, rate, decays, arguments = SETTINGS[settings]
    total = STEPS * epochs
    if ":" in what:
        new = kquant.prune(model, structure=what)
    else:
        course: Any = float(what)
        if ramp:
            course = kquant.SparsitySchedule(float(what), initial=0.0, end=int(ramp * total), frequency=15)
        new = kquant.prune(model, course, **arguments)
    rate = keras.optimizers.schedules.CosineDecay(rate, total) if decays else rate
    new.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
    return new


def exported(q: keras.Model, x: np.ndarray, y: np.ndarray) -> tuple[float, float, int, int]:
    """Accuracy of the int8 file on LiteRT and on its reference kernels, its bytes, and those deflated."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pruned.tflite"
        kquant.export(q, path, data=x[:64])
        found = [kquant.predict(path, x, runtime) for runtime in ("litert", "litert-reference")]
        content = path.read_bytes()
    right = [float(np.mean(f.argmax(-1) == y)) for f in found]
    return right[0], right[1], len(content), len(gzip.compress(content, 9))


def zeros_in_codes(q: keras.Model) -> int:
    """Zeros of all kernels, in codes."""
    layers = [layer for layer in q.layers if isinstance(layer, Compressed) and layer.spec is not None]
    return sum(int(np.sum(np.asarray(layer.codes(tf.constant(1e9))[0]) == 0)) for layer in layers)


def zeros_in_masks(q: keras.Model) -> int:
    """Weights that masks hold at zero."""
    return sum(int(np.sum(~np.asarray(t.mask))) for x in q.layers if isinstance(x, Compressed) for t in x.transforms)


def run(what: str, settings: str, seed: int, epochs: int, qat: bool) -> None:
    """Prune, train, quantize, judge the file."""
    load = loader()
    keras.utils.set_random_seed(seed)
    x, y = load.cifar10_train()
    x_test, y_test = load.cifar10_test()
    x_test, y_test = x_test[:JUDGED].astype("float32"), y_test.reshape(-1)[:JUDGED]
    model = pruned(load.mlperf_model("image_classification"), what, settings, epochs)
    model.fit(batches(x, y.reshape(-1), seed), epochs=epochs, verbose=0)
    real = np.mean(model.predict(x_test, verbose=0).argmax(-1) == y_test)
    q = kquant.calibrate(kquant.quantize(model), x[:200].astype("float32"), verbose=False)
    head = f"{what} {settings} seed {seed}: zeros {100 * kquant.sparsity(model).total:.2f} %, float {100 * real:.2f}"
    accuracy, reference, size, deflated = exported(q, x_test, y_test)
    found = f"int8 {100 * accuracy:.2f} ({100 * reference:.2f}), {size:,} bytes, {deflated:,} deflated"
    print(f"{head}, {found}", flush=True)
    if not qat:
        return
    held = zeros_in_masks(q)
    q.compile(keras.optimizers.Adam(1e-4), "sparse_categorical_crossentropy")
    q.fit(batches(x, y.reshape(-1), seed + 1), epochs=1, verbose=0)
    accuracy, reference, size, deflated = exported(q, x_test, y_test)
    print(
        f"  one more epoch quantized: int8 {100 * accuracy:.2f} ({100 * reference:.2f}), {deflated:,} bytes deflated, "
        f"zeros held {held:,} before and {zeros_in_masks(q):,} after, {zeros_in_codes(q):,} codes are 0",
        flush=True,
    )


def times(rounds: int, count: int) -> None:
    """Medians of training steps, float and pruned in turn."""
    x = np.random.default_rng(0).uniform(0, 255, (512, 32, 32, 3)).astype("float32")
    model = loader().mlperf_model("image_classification")
    models = {
        "float": model,
        "every 10 steps": kquant.prune(model, 0.5),
        "every step": kquant.prune(model, kquant.SparsitySchedule(0.5, frequency=1)),
    }
    for each in models.values():
        each.compile(keras.optimizers.Adam(1e-4), "sparse_categorical_crossentropy")
    runs = {name: timed(fit_step(each, x, np.arange(512) % 10, 64)) for name, each in models.items()}
    for name, (ms, ratio, _) in ratios(in_turns(runs, rounds, count), "float").items():
        print(f"ResNet8 batch 64, masks {name}: {ms:.1f} ms, ratio {ratio:.3f}", flush=True)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["0.5", "0.8", "2:4"], help="shares of zeros, or structures")
    parser.add_argument("--settings", choices=SETTINGS, default="kquant")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--qat", action="store_true")
    parser.add_argument("--time", action="store_true")
    args = parser.parse_args()
    if args.time:
        times(4, 40)
        return
    for seed in args.seeds:
        for what in args.what:
            run(what, args.settings, seed, args.epochs, args.qat)


if __name__ == "__main__":
    main()

"""Hashes of exported files, to show that a change of the code changes no file: write them before, compare after.

    python -m benchmarks.same_files --write before.json     # on one tree
    python -m benchmarks.same_files --against before.json   # on another: exits with 1 where a file differs

Every recipe that ships, recurrent networks, attention, streams, look-up tables, every correction, a step of training,
and the models of MLPerf Tiny where their folder is there. The same machine must make both: weights are random numbers
of a seed, and sums of floats differ between processors.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers
from tqdm import tqdm

import kquant
from benchmarks import assets

RNG = np.random.default_rng(0)
IMAGES = np.float32(RNG.normal(size=(64, 12, 12, 3)))
FRAMES = np.float32(RNG.normal(size=(64, 16, 8)))
RECIPES = sorted(path.stem for path in (Path(__file__).parents[1] / "recipes").glob("*.toml"))
STEPS = ("equalize", "calibrate", "sequential-mse", "adaround", "bias")


def images() -> keras.Model:
    """Convolutions of all kinds, a residual, tables, pools, a concatenation, a softmax."""
    inputs = keras.Input((12, 12, 3), name="image")
    x = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same", use_bias=False)(inputs))
    x = layers.ReLU(6.0)(x)
    y = layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x))
    x = layers.Add()([x, layers.Activation("swish")(y)])
    x = layers.Concatenate()([x, layers.Activation("tanh")(layers.SeparableConv2D(4, 3, padding="same")(y))])
    x = layers.UpSampling2D(2)(layers.MaxPooling2D(2)(layers.Dropout(0.1)(x)))
    x = layers.Conv2DTranspose(6, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.Dense(12, activation="gelu")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(5, activation="softmax")(x), name="images")


def recurrent(layer: Callable[..., Any]) -> keras.Model:
    """A sequence through two recurrent layers."""
    inputs = keras.Input((16, 8), name="frames")
    x = layer(6)(layer(6, return_sequences=True)(inputs))
    return keras.Model(inputs, layers.Dense(3)(x), name="recurrent")


def both_ways() -> keras.Model:
    """Bidirectional, behind a mask."""
    inputs = keras.Input((16, 8), name="frames")
    x = layers.Bidirectional(layers.LSTM(4))(layers.Masking()(inputs))
    return keras.Model(inputs, layers.Dense(3)(x), name="both_ways")


def attention() -> keras.Model:
    """A block of a transformer."""
    inputs = keras.Input((16, 8), name="frames")
    y = layers.LayerNormalization()(inputs)
    x = layers.Add()([inputs, layers.MultiHeadAttention(2, 4)(y, y)])
    x = layers.Dense(8)(layers.Dense(16, activation="gelu")(layers.LayerNormalization()(x)))
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)), name="attention")


def causal() -> keras.Model:
    """What can be streamed."""
    inputs = keras.Input((16, 8), name="frames")
    x = layers.Conv1D(6, 3, padding="causal", activation="relu")(inputs)
    y = layers.Conv1D(6, 3, dilation_rate=2, padding="causal")(x)
    x = layers.AveragePooling1D(2)(layers.Add()([x, y]))
    return keras.Model(inputs, layers.Dense(3)(x), name="causal")


def quantized(model: keras.Model, x: np.ndarray, recipe: Any = "int8", target: str = "litert") -> keras.Model:
    """With random weights, calibrated."""
    rng = np.random.default_rng(1)
    for variable in model.weights:
        if variable.path.endswith(("gamma", "moving_variance")):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif "float" in variable.dtype and len(variable.shape):
            variable.assign(rng.normal(size=variable.shape) / np.sqrt(max(1, np.prod(variable.shape[:-1]))))
    return calibrated(model, x, recipe, target)


def calibrated(model: keras.Model, x: np.ndarray, recipe: Any = "int8", target: str = "litert") -> keras.Model:
    """Quantized as it is; float files have no ranges."""
    q = kquant.quantize(model, recipe, target=target)
    floats = recipe in ("float16", "dynamic-int8", "weight-only-int8")
    return q if floats else kquant.calibrate(q, x, verbose=False)


def trained(q: keras.Model) -> keras.Model:
    """Two steps further."""
    q.compile(keras.optimizers.SGD(0.01), "mse")
    q.fit(IMAGES, np.ones((64, 5), np.float32), batch_size=32, shuffle=False, verbose=0)
    return q


def jobs() -> dict[str, tuple[Callable[[], keras.Model], dict[str, Any]]]:
    """Name -> the model, and options of `kquant.export`."""
    made: dict[str, tuple[Callable[[], keras.Model], dict[str, Any]]] = {}
    for recipe in RECIPES:
        for target in ("litert", "tflm") if recipe.startswith("int") else ("litert",):
            made[f"{recipe}, {target}"] = lambda r=recipe, t=target: quantized(images(), IMAGES, r, t), {}
    for recipe in ("int8", "int16x8"):
        for name, layer in (("lstm", layers.LSTM), ("gru", layers.GRU), ("rnn", layers.SimpleRNN)):
            made[f"{name}, {recipe}"] = lambda x=layer, r=recipe: quantized(recurrent(x), FRAMES, r, "tflm"), {}
        made[f"attention, {recipe}"] = lambda r=recipe: quantized(attention(), FRAMES, r), {}
        made[f"masked, {recipe}"] = lambda r=recipe: quantized(both_ways(), FRAMES, r), {}
    for states in ("io", "variables"):
        options: dict[str, Any] = {"streaming": 2, "states": states}
        made[f"stream, {states}"] = lambda: quantized(causal(), FRAMES, target="tflm"), options
    options = {"compression": "lut"}
    made["look-up tables"] = lambda: quantized(images(), IMAGES, "cluster16-int8", "tflm"), options
    made["float edges"] = lambda: quantized(images(), IMAGES), {"io": "float32"}
    made["trained"] = lambda: trained(quantized(images(), IMAGES)), {}
    for step in STEPS:
        made[f"step {step}"] = lambda s=step: corrected(s), {}
    if assets.FOLDER.is_dir():
        for task in assets.TASKS:
            made[task] = lambda t=task: of_task(t), {}
    return made


def corrected(step: str) -> keras.Model:
    """Int4 weights, with one step of a recipe."""
    q = quantized(images(), IMAGES, "int4-weights")
    verb = {
        "equalize": lambda: kquant.calibrate(kquant.equalize(q, verbose=False), IMAGES, verbose=False),
        "calibrate": lambda: q,
        "sequential-mse": lambda: kquant.sequential_mse(q, IMAGES, candidates=5, verbose=False),
        "adaround": lambda: kquant.adaround(q, IMAGES, iterations=50, verbose=False),
        "bias": lambda: kquant.correct_bias(q, IMAGES, verbose=False),
    }[step]
    return verb()


def of_task(name: str) -> keras.Model:
    """A model of MLPerf Tiny, calibrated on its data."""
    task = assets.task(name)
    return calibrated(task.model, task.calibration, target="tflm")


def hashes() -> dict[str, str]:
    """SHA-256 of each file."""
    found = {}
    with tempfile.TemporaryDirectory() as folder, tqdm(jobs().items(), unit="file") as bar:
        for name, (build, options) in bar:
            bar.set_description(name)
            keras.utils.set_random_seed(0)
            path = Path(folder) / "model.tflite"
            kquant.export(build(), path, check_runtimes=False, **options)
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
            keras.backend.clear_session()
    return found


def main() -> None:
    """Write or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--write", type=Path, help="JSON file to write")
    way.add_argument("--against", type=Path, help="JSON file that another tree wrote")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    found = hashes()
    if options.write:
        options.write.write_text(json.dumps(found, indent=1))
        print(f"{len(found)} files")
        return
    before = json.loads(options.against.read_text())
    other = sorted(name for name in {*before, *found} if before.get(name) != found.get(name))
    print(f"{len(found)} files, {len(other)} not the same" + "".join(f"\n  {name}" for name in other))
    sys.exit(1 if other else 0)


if __name__ == "__main__":
    main()

"""One training run of every case, to be compared with itself under another strategy: see test_distribution.py.

`main("one" | "mirrored" | "workers", folder)` writes the variables of each case to folder/case.npz, and for "mirrored"
the model and its file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import kquant

RNG = np.random.default_rng(0)
X = np.float32(RNG.normal(size=(64, 6, 6, 2)))
Y = np.float32(RNG.normal(size=(64, 3)))
BATCH = 16
CASES: dict[str, Case] = {}


@dataclass(frozen=True)
class Case:
    """A model made for images of 6x6x2 and three outputs, and for how many epochs it trains, with which optimizer.

    Batch norms, where there are any, need `synchronized=True`: their statistics are those of a replica otherwise.
    """

    make_model: Callable[[], keras.Model]
    epochs: int = 2
    optimizer: type[keras.optimizers.Optimizer] = keras.optimizers.Adam
    tolerance: float = 1e-4  # without the ranges of the whole batch they differ by 1e-2 and more
    workers: bool = True  # False: what goes between its replicas goes through gradients alone, as in any model


def case(**options: Any) -> Callable:
    """Enrol the function that makes a model."""

    def enrol(make_model: Callable[[], keras.Model]) -> Callable[[], keras.Model]:
        CASES[make_model.__name__] = Case(make_model, **options)
        return make_model

    return enrol


def convolutions() -> keras.Model:
    """A float model with a branch, so that encodings are shared. To trace a layer on two devices takes seconds."""
    x = keras.Input((6, 6, 2), name="image")
    y = layers.Conv2D(4, 3, padding="same", activation="relu", name="conv")(x)
    y = layers.Concatenate(name="both")([y, x])
    return keras.Model(x, layers.Dense(3, name="head")(layers.GlobalAveragePooling2D(name="pool")(y)))


def qat() -> keras.Model:
    return kquant.calibrate(kquant.quantize(convolutions()), X[:32], verbose=False)


@case()
def pruning_clustering_qat_from_no_ranges() -> keras.Model:
    """Masks that follow a ramp, shared values, ranges that the first batch sets and that move fast from then on.

    The range of a cell state is inside its layer.
    """
    x = keras.Input((6, 6, 2), name="image")
    y = layers.LSTM(3, name="memory")(layers.Reshape((2, 36), name="rows")(x))
    ramp = kquant.SparsitySchedule(final=0.5, initial=0.0, end=6, frequency=1)
    recipe = {"name": "fast", "training": {"momentum": 0.5, "freeze_ranges_after": 6}}
    return kquant.quantize(kquant.cluster(kquant.prune(keras.Model(x, y), ramp), 4), recipe)


@case(optimizer=keras.optimizers.SGD, workers=False, tolerance=5e-6)  # gradients of half a batch change ranges by 2e-5
def qat_of_learned_ranges() -> keras.Model:
    """Ranges of tensors and weights by gradient, from a wider grid on, with what is done about oscillations.

    Sums in another order move a value over the edge of two codes now and then. The gradient of a range jumps by that
    one value then, which Adam makes a whole step of where the gradients of some steps cancel out, and SGD does not.
    """
    still = {"dampen": 1e-3, "freeze": 0.02}
    training = {"ranges": "learned", "progressive": {"from": 8, "steps": 4}, "oscillations": still}
    recipe = {"name": "lsq", "weights": {"bits": 4}, "training": training}
    return kquant.calibrate(kquant.quantize(convolutions(), recipe), X[:32], verbose=False)


@case(optimizer=keras.optimizers.SGD, workers=False)
def distillation() -> keras.Model:
    """Quantized from calibrated ranges; features are collected in the threads of the replicas."""
    teacher = convolutions()
    return kquant.distill(qat(), teacher, features=["conv"])


@case(epochs=0)
def calibration() -> keras.Model:
    return kquant.calibrate(kquant.quantize(convolutions()), X, batch_size=BATCH, verbose=False)


def data() -> tf.data.Dataset:
    """The same global batches whoever shares them: workers take turns in parts of a batch."""
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(BATCH).with_options(options)


def trained(chosen: Case, where: Any) -> keras.Model:
    """The model after its epochs, on the strategy `where` or on one device (None)."""
    keras.utils.set_random_seed(1)
    with where.scope() if where else contextlib.nullcontext():
        model = chosen.make_model()
        model.compile(chosen.optimizer(1e-2), "mse", run_eagerly=not where)  # tracing takes longer than the steps
        model.optimizer.build(model.trainable_variables)
    if chosen.epochs and isinstance(where, tf.distribute.MultiWorkerMirroredStrategy):
        kquant.fit_on_workers(model, data(), epochs=chosen.epochs, verbose=False)
    elif chosen.epochs:
        model.fit(data(), epochs=chosen.epochs, verbose=0)
    return model


def floats(model: keras.Model) -> dict[str, np.ndarray]:
    """Its variables by path, without seeds, which Keras numbers through a process."""
    return {v.path.replace("/", "."): np.asarray(v) for v in model.variables if "float" in v.dtype}


def strategy(name: str) -> Any:
    """What `name` says; the worker's place among the workers is in TF_CONFIG."""
    if name == "mirrored":
        (cpu,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    return tf.distribute.MultiWorkerMirroredStrategy() if name == "workers" else None


def main(name: str, folder: Path) -> None:
    """Run every case that is for it."""
    chosen = strategy(name)
    for label, each in CASES.items():
        if name == "workers" and not each.workers:
            continue
        model = trained(each, chosen)
        np.savez(folder / f"{label}.npz", **floats(model))
        if name == "mirrored":
            model.save(folder / f"{label}.keras")
            kquant.export(getattr(model, "student", model), folder / f"{label}.tflite", check_runtimes=False)

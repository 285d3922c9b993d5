"""Models that train in the contract tests of `fit`: an entry here enrols a method in all of test_training.py."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
from keras import layers

import kquant

MODELS: dict[str, Callable[[], keras.Model]] = {}
RNG = np.random.default_rng(0)
X = np.float32(RNG.normal(size=(32, 6)))
LABELS = RNG.integers(0, 3, 32)
BATCH = 8


def make_model(build: Callable[[], keras.Model]) -> Callable[[], keras.Model]:
    """Enrol a function that makes a model for rows of six numbers with three logits, always the same one."""
    MODELS[build.__name__] = build
    return build


def made(name: str) -> keras.Model:
    """The model of that name, with the same weights and seeds every time."""
    keras.utils.set_random_seed(1)
    return MODELS[name]()


def small() -> keras.Model:
    """A float model."""
    return keras.Sequential(
        [keras.Input((6,), name="row"), layers.Dense(4, activation="relu", name="hidden"), layers.Dense(3, name="out")]
    )


@make_model
def qat() -> keras.Model:
    """From calibrated ranges."""
    return kquant.calibrate(kquant.quantize(small()), X, verbose=False)


@make_model
def qat_that_freezes() -> keras.Model:
    """No ranges at first, and after some steps they stay; a batch norm is folded away, a layer is shared.

    No Dropout: Keras saves none of its seeds, so that no model with it resumes to the same numbers.
    """
    x = keras.Input((6,), name="row")
    twin = layers.Dense(3, name="twin")
    y = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(layers.Dense(6, name="hidden")(x)))
    recipe = {"name": "frozen", "training": {"momentum": 0.8, "freeze_ranges_after": 5}}
    return kquant.quantize(keras.Model(x, layers.Add(name="sum")([twin(x), twin(y)])), recipe)


@make_model
def pruned() -> keras.Model:
    """A ramp that ends while it trains."""
    return kquant.prune(small(), kquant.SparsitySchedule(final=0.5, initial=0.0, end=6, frequency=2))


@make_model
def pruned_clustered_qat() -> keras.Model:
    """Masks, shared values and moving ranges in one layer."""
    clustered = kquant.cluster(kquant.prune(small(), 0.5), 4)
    return kquant.calibrate(kquant.quantize(clustered), X, verbose=False)


@make_model
def learned_ranges() -> keras.Model:
    """Four bits whose ranges train."""
    recipe = {"name": "lsq", "weights": {"bits": 4}, "training": {"ranges": "learned", "range_rate": 0.1}}
    return kquant.calibrate(kquant.quantize(small(), recipe), X, verbose=False)


@make_model
def pruned_by_movement() -> keras.Model:
    """The scores of the masks train."""
    ramp = kquant.SparsitySchedule(final=0.5, initial=0.0, end=6, frequency=1)
    return kquant.prune(small(), ramp, criterion="movement")


@make_model
def live_norm_with_masks() -> keras.Model:
    """A batch norm inside a quantized layer that also has a mask and a codebook.

    No bias before the norm, which takes it away again: its gradient would be noise, which Adam makes steps of.
    """
    x = keras.Input((6,), name="row")
    hidden = layers.Dense(6, use_bias=False, name="hidden")(x)
    y = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(hidden))
    model = keras.Model(x, layers.Dense(3, name="out")(y))
    q = kquant.quantize(model, {"name": "live", "training": {"batch_norm": "live"}})
    return kquant.cluster(kquant.prune(kquant.calibrate(q, X, verbose=False), 0.5), 4)

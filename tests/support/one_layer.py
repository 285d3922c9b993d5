"""A small good model of one layer, its file, and a layer that nobody can follow: what bad input is made of."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import kquant

X = np.float32(np.random.default_rng(0).normal(size=(64, 6)))


def dense(**options: Any) -> keras.Model:
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((6,), name="x"), layers.Dense(3, name="head", **options)], name="net")


@cache
def calibrated() -> keras.Model:
    return kquant.calibrate(kquant.quantize(dense()), X, verbose=False)


@cache
def content() -> bytes:
    """A good file."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.tflite"
        kquant.export(calibrated(), path)
        return path.read_bytes()


class RawTensorFlow(layers.Layer):
    def call(self, x: Any) -> Any:
        return tf.math.bessel_i0(x)

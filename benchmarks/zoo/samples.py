"""Made-up inputs whose statistics are those of the real kind: images are smooth, sounds are not."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

CHANNELS = (1, 3)


def samples(model: keras.Model, limit: int, seed: int = 0) -> list[np.ndarray]:
    """One array for each input of the model, `[limit, ...]`: words, images in 0..255, or normal numbers."""
    rng = np.random.default_rng(seed)
    return [_of(t, limit, rng) for t in model.inputs]


def _of(tensor: Any, limit: int, rng: np.random.Generator) -> np.ndarray:
    shape = tuple(tensor.shape[1:])
    if "int" in tensor.dtype:
        return rng.integers(0, 100, (limit, *shape)).astype(tensor.dtype)
    if len(shape) == 3 and shape[-1] == CHANNELS[-1]:
        return _images(limit, shape, rng)
    return rng.normal(0.0, 1.0, (limit, *shape)).astype("float32")


def _images(limit: int, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Blobs of colour with a little noise: white noise alone leaves nothing behind the first strides."""
    height, width, channels = shape
    coarse = rng.normal(0.0, 1.0, (limit, 6, 6, channels)).astype("float32")
    smooth = np.asarray(keras.ops.image.resize(coarse, (height, width), interpolation="bicubic"))
    values = 128.0 + 70.0 * smooth + rng.normal(0.0, 8.0, (limit, *shape))
    return np.clip(values, 0.0, 255.0).astype("float32")

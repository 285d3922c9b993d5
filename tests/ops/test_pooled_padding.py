"""Minus infinity around what max pooling reads: the lowest code, in the model and in its file."""

from __future__ import annotations

import contract
import keras
import numpy as np
import pytest
from keras import layers, ops

import kquant
from kquant.tflite.reader import read_model

REFERENCES = (("litert", "litert-reference"), ("tflm", "tflm"))
SIDES = {1: ((1, 1),), 2: ((1, 1), (2, 1)), 3: ((1, 0), (1, 1), (0, 2))}
POOLS = {
    "1d": (layers.MaxPooling1D, (9, 3), 1),
    "2d": (layers.MaxPooling2D, (6, 5, 3), 2),
    "3d": (layers.MaxPooling3D, (3, 4, 4, 2), 3),
}


def network(pool, shape: tuple[int, ...], rank: int, value: float = -np.inf) -> keras.Model:
    """A product in front, so that values are of either sign; all of some windows' values are negative."""
    x = keras.Input(shape, name="x")
    around = ops.pad(layers.Dense(3, name="mix")(x), ((0, 0), *SIDES[rank], (0, 0)), constant_values=value)
    return contract.randomise(keras.Model(x, layers.Dense(2, name="head")(pool(3, strides=2)(around))))


def values(shape: tuple[int, ...], count: int, seed: int) -> np.ndarray:
    return np.float32(np.random.default_rng(seed).normal(-1.0, 1.0, (count, *shape)))


@pytest.mark.parametrize(("target", "runtime"), REFERENCES)
@pytest.mark.parametrize("recipe", ["int8", "int16x8"])
@pytest.mark.parametrize("name", POOLS)
def test_padding_is_never_the_largest(name, recipe, target, runtime):
    pool, shape, rank = POOLS[name]
    model = network(pool, shape, rank)
    q = kquant.quantize(model, recipe, target=target)
    kquant.calibrate(q, values(shape, 512, 0), batch_size=512, verbose=False)
    x, content = values(shape, 8, 1), contract.file_of(q)
    assert contract.compare(q, content, runtime, [x]) == contract.Parity(1.0, 0)
    assert not contract.floats(content)
    wanted, got = np.asarray(model(x)), np.asarray(q(x, training=False))
    assert 10 * np.log10(np.sum(wanted**2) / np.sum((wanted - got) ** 2)) > 25


def test_the_range_is_that_of_the_values():
    """No code is spent on minus infinity."""
    pool, shape, rank = POOLS["2d"]
    model = network(pool, shape, rank)
    x = values(shape, 512, 0)
    q = kquant.calibrate(kquant.quantize(model), x, batch_size=512, verbose=False)
    mixed = np.asarray(keras.Model(model.input, model.get_layer("mix").output)(x))
    (scale,) = {
        t.scale[0]
        for t in read_model(contract.file_of(q)).tensors
        if "mix" in t.name and t.type == "INT8" and t.scale is not None and len(t.shape) == 4
    }
    assert 255 * scale <= 1.01 * np.ptp(mixed)


@pytest.mark.parametrize("low", [-1e30, -65504.0])  # the second is the least of float16
def test_a_very_low_number_is_minus_infinity(low):
    pool, shape, rank = POOLS["2d"]
    x = values(shape, 8, 1)
    kept = []
    for number in (-np.inf, low):
        keras.utils.set_random_seed(7)
        kept.append(contract.simulate(contract.quantized(network(pool, shape, rank, number)), [x])[0])
    np.testing.assert_array_equal(*kept)


def test_trains_and_is_saved_with_padding(tmp_path):
    pool, shape, rank = POOLS["2d"]
    q = contract.quantized(network(pool, shape, rank))
    q.compile(keras.optimizers.SGD(0.01), "mse", run_eagerly=True)
    x = values(shape, 16, 2)
    assert np.isfinite(q.fit(x, np.zeros((16, *q.output_shape[1:]), np.float32), verbose=0).history["loss"][0])
    q.save(tmp_path / "q.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "q.keras")(x), q(x))

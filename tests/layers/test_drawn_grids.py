"""`[training.robust]`: a grid drawn at every step, the same for all layers; outside of training the recipe's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import kquant
from kquant.layers import drawn_grids
from kquant.layers.nodes import Compressed
from kquant.recipe import recipe as recipes
from kquant.recipe.training_section import Robust

X = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, 3, 64)


def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    parts = [layers.Dense(8, activation="relu", name="first"), layers.Dense(3, activation="softmax", name="head")]
    return keras.Sequential([keras.Input((6,)), *parts])


def quantized(robust: dict[str, Any], bits: int = 8) -> Any:
    recipe = {"name": "robust", "weights": {"bits": bits}, "training": {"robust": robust}}
    return kquant.calibrate(kquant.quantize(model(), recipe), X, verbose=False)


def compressed(q: Any) -> list[Compressed]:
    return [layer for layer in q.layers if isinstance(layer, Compressed)]


def codes(weights: np.ndarray, axis: Any) -> np.ndarray:
    """Numbers of different values along the other axis: how many codes the grid had."""
    return np.array([len(np.unique(column)) for column in np.moveaxis(weights, axis, 0)])


def test_every_layer_gets_the_grid_of_the_step() -> None:
    q = quantized({"bits": [8, 2], "shift": 0.0})
    parts, widths = compressed(q), set()
    inside = keras.Model(q.input, [(layer.input[0], layer.output[0]) for layer in parts])
    for step in range(1, 9):
        made = inside(X[:4], training=True)
        width, merged = drawn_grids.kernel_grid(Robust(bits=(8, 2), shift=0.0), tf.constant(float(step)))
        widths.add((int(width), bool(merged)))
        high = 2 ** (int(width) - 1) - 1
        for layer, (x, y) in zip(parts, made, strict=True):
            weights = layer.weights_as_used().numpy()
            reach = np.abs(weights).max(None if bool(merged) else 0, keepdims=True)
            on_grid = np.round(weights / (reach / high)) * (reach / high)
            expected = layer.layer.activation(x @ on_grid + layer.bias_as_used())
            np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    assert len(widths) > 2


def test_draws_are_those_of_the_seed_and_spread_over_all_grids() -> None:
    def drawn(seed: int) -> list[tuple[int, bool]]:
        robust = Robust(bits=(8, 4, 3), seed=seed)
        grids = (drawn_grids.kernel_grid(robust, tf.constant(float(t))) for t in range(400))
        return [(int(bits), bool(merged)) for bits, merged in grids]

    first = drawn(0)
    assert first == drawn(0) and first != drawn(1)
    counts = [first.count((bits, merged)) for bits in (8, 4, 3) for merged in (True, False)]
    assert min(counts) > 30  # of 400 over 6: each expects 67, deviation 7.5
    robust = Robust(shift=0.25)
    shifts = np.array([drawn_grids.shift(robust, tf.constant(float(t))) for t in range(200)])
    assert np.abs(shifts).max() <= 0.25 and shifts.min() < -0.2 and shifts.max() > 0.2


def test_outside_of_training_the_grid_is_the_recipes() -> None:
    plain = kquant.calibrate(kquant.quantize(model(), {"name": "plain"}), X, verbose=False)
    q = quantized({})
    np.testing.assert_array_equal(q.predict(X, verbose=0), plain.predict(X, verbose=0))


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_it_trains_the_same_twice_and_goes_on_from_a_file(policy: str, jit: bool, tmp_path: Path) -> None:
    def trained(q: Any, epochs: int) -> Any:
        q.fit(X, Y, batch_size=32, epochs=epochs, shuffle=False, verbose=0)
        return q

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        made = []
        for _ in range(2):
            q = quantized({})
            q.compile(keras.optimizers.SGD(0.05), "sparse_categorical_crossentropy", jit_compile=jit)
            made.append(trained(q, 2))
        for a, b in zip(made[0].get_weights(), made[1].get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
        made[0].save(tmp_path / "m.keras")
        loaded = keras.models.load_model(tmp_path / "m.keras")
        for a, b in zip(trained(made[1], 1).get_weights(), trained(loaded, 1).get_weights(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    finally:
        keras.config.set_dtype_policy(before)


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"robust": {}, "progressive": {"steps": 5}}, "progressive counts on one that stays"),
        ({"robust": {}, "ranges": "learned"}, "learned' counts on one that stays"),
        ({"robust": {}, "oscillations": {"freeze": 0.1}}, "freeze counts on one that stays"),
        ({"robust": {}, "entropy": 0.1}, "entropy counts on one that stays"),
        ({"robust": {"bits": [1]}}, r"training.robust.bits.0: .*greater than or equal to 2"),
        ({"robust": {"bits": []}}, r"training.robust.bits: .*at least 1"),
        ({"robust": {"shfit": 0.1}}, "Did you mean 'shift'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(training: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        recipes.load({"name": "t", "weights": {"bits": 4}, "training": training})


def test_recipes_of_it_round_trip() -> None:
    recipe = recipes.load({"name": "t", "training": {"robust": {"bits": [8, 4], "per_tensor": False}}})
    assert recipes.load(recipe.model_dump(by_alias=True)) == recipe

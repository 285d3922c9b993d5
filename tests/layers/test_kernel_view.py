"""`kquant.layers.kernel`: one view of a weight, whatever layer it is in; what a stage asks of it holds for all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import contract
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import kquant
from kquant.layers.kernel import Holder, Kernel, holders
from kquant.layers.transform import Transform

pytestmark = pytest.mark.filterwarnings(
    "ignore:quantize. .* takes no packed 4-bit weights",
)

PATHS = {"cell.kernel", "cell.recurrent_kernel"}


@keras.saving.register_keras_serializable(package="test")
class Clip(Transform):
    """Weights between -0.1 and 0.1."""

    def call(self, weights: tf.Tensor) -> tf.Tensor:
        return tf.clip_by_value(weights, -0.1, 0.1)


def of_one(layer: Any, shape: tuple[int, ...], dtype: str = "float32") -> keras.Model:
    inputs = keras.Input(shape, dtype=dtype, name="x")
    y = layers.Flatten(name="flatten")(layer(inputs))
    return keras.Model(inputs, layers.Dense(3, name="head")(y), name="model")


KINDS: dict[str, tuple[Callable[[], keras.Model], set[str]]] = {
    "dense": (lambda: of_one(layers.Dense(4, name="me"), (6,)), {"kernel"}),
    "convolution": (lambda: of_one(layers.Conv2D(4, 3, name="me"), (6, 6, 2)), {"kernel"}),
    "depthwise": (lambda: of_one(layers.DepthwiseConv2D(3, name="me"), (6, 6, 2)), {"kernel"}),
    "transposed": (lambda: of_one(layers.Conv2DTranspose(4, 3, name="me"), (4, 4, 2)), {"kernel"}),
    "lstm": (lambda: of_one(layers.LSTM(5, return_sequences=True, name="me"), (6, 3)), PATHS),
    "table": (lambda: of_one(layers.Embedding(10, 4, name="me"), (5,), "int32"), {"embeddings"}),
}
MACS = {"dense": 24, "convolution": 16 * 9 * 2 * 4, "depthwise": 16 * 9 * 2, "transposed": 16 * 9 * 2 * 4}
MACS |= {"lstm": 6 * 4 * 5 * (3 + 5), "table": 0}


def made(name: str, recipe: Any = "int8") -> keras.Model:
    keras.utils.set_random_seed(3)
    return contract.quantized(contract.randomise(KINDS[name][0]()), samples=32, recipe=recipe)


def of(q: keras.Model) -> dict[str, Kernel]:
    return {kernel.path: kernel for layer in holders(q) if layer.name == "me" for kernel in layer.kernels()}


FOUR_BITS = {"name": "w4", "weights": {"bits": 4}}


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_kernel_answers(name: str) -> None:
    found = of(made(name, FOUR_BITS))
    assert set(found) == KINDS[name][1]
    for kernel in found.values():
        assert kernel.trains and kernel.raw.shape == kernel.used.shape == kernel.on_grid.shape == kernel.shape
        rows, grid, scale = kernel.rows, kernel.rows_on_grid, kernel.scale
        assert rows.shape == grid.shape and rows.size == np.prod(kernel.shape)
        if scale is None:  # a table's rows are rounded where they are read
            np.testing.assert_array_equal(grid, rows)
            continue
        codes = grid / np.asarray(scale, np.float64)
        np.testing.assert_allclose(codes, np.rint(codes), atol=1e-5)
        assert np.rint(np.abs(codes).max()) == 7 and np.abs(grid - rows).max() <= 0.5 * np.asarray(scale).max() * 1.001


@pytest.mark.parametrize("name", sorted(KINDS))
def test_strip_with_grids_holds_what_the_codes_hold(name: str) -> None:
    q = made(name, FOUR_BITS)
    kernels, plain = of(q), kquant.strip(q, grids=True)
    for path, kernel in kernels.items():
        layer: Any = plain.get_layer("me")
        for part in path.split("."):
            layer = getattr(layer, part)
        np.testing.assert_array_equal(np.asarray(layer), np.asarray(kernel.on_grid))
    if name == "lstm":
        values = np.asarray(plain.get_layer("me").cell.recurrent_kernel).reshape(5, 4, 5)
        assert all(len(np.unique(values[:, gate])) <= 15 for gate in range(4))


@pytest.mark.parametrize("way", ["of each kernel", "of the layer"])
@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_transform_of_ones_own(name: str, way: str, tmp_path: Path) -> None:
    q = made(name)
    for layer in holders(q):
        if way == "of the layer":
            layer.transform_by(Clip())
        else:
            for kernel in layer.kernels():
                kernel.transform_by(Clip())
    for kernel in of(q).values():
        assert len(kernel.transforms) == 1
        assert np.abs(kernel.raw).max() > 0.1 >= np.abs(kernel.transformed).max()
    q.save(tmp_path / "q.keras")
    again = keras.saving.load_model(tmp_path / "q.keras")
    x = contract.data(q, 16)
    for a, b in zip(contract.simulate(q, x), contract.simulate(again, x), strict=True):
        np.testing.assert_array_equal(a, b)
    assert contract.compare(q, contract.file_of(q), "litert-reference", x).equal == 1.0


@pytest.mark.parametrize("name", sorted(KINDS))
def test_costs_are_those_of_the_kernels(name: str) -> None:
    q = made(name)
    rows = {row.name: row for row in kquant.analyze(q, contract.packed(q, contract.data(q, 16)), verbose=False).layers}
    assert (rows["me"].macs if "me" in rows else 0) == MACS[name]
    if name not in ("lstm", "table", "transposed"):
        assert kquant.cost(KINDS[name][0]()).macs == MACS[name] + rows["head"].macs
    if name == "lstm":
        assert rows["me"].weight_bytes == (3 + 5) * 20 + 4 * 20 and rows["me"].weights.channels


def test_a_path_that_a_layer_has_not_is_refused() -> None:
    q = made("dense")
    with pytest.raises(ValueError, match="me: it quantizes 'kernel'. Received: path='bias'"):
        q.get_layer("me").transform_by(Clip(), "bias")


def test_kernels_of_a_float_model_answer_too() -> None:
    pruned = kquant.prune(KINDS["lstm"][0](), 0.5)
    for kernel in of(pruned).values():
        np.testing.assert_array_equal(kernel.on_grid, kernel.used)
        assert kernel.scale is None and kernel.rows.shape == (1, np.prod(kernel.shape))
        assert np.mean(kernel.rows == 0.0) == 0.5


def test_a_holder_that_leaves_a_question_open_is_refused() -> None:
    class Open(Holder, keras.layers.Wrapper):
        """Answers nothing."""

    with pytest.raises(TypeError, match="abstract.*kernel_paths"):
        Open(layers.Dense(2))

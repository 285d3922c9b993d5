"""Transpositions in as few dimensions as they have, against NumPy's own."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kquant
from kquant.ops.expansion import expand
from kquant.ops.shape import merged_axes


@st.composite
def transpositions(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=7))
    return shape, draw(st.permutations(range(len(shape))))


@given(transpositions())
def test_merged_axes_move_the_same_values(case: tuple[list[int], list[int]]) -> None:
    shape, order = case
    x = np.arange(np.prod(shape)).reshape(shape)
    fewer, moved = merged_axes(shape, order)
    assert np.array_equal(x.reshape(fewer).transpose(moved).ravel(), x.transpose(order).ravel())
    assert all(b != a + 1 for a, b in zip(moved, moved[1:], strict=False)), "neighbours are left that move together"


@pytest.mark.parametrize("target", ["litert", "tflm"])
def test_patches_of_an_image_are_unfolded_and_folded(target: str, tmp_path) -> None:
    image = keras.Input((8, 8, 3))
    x = keras.layers.Reshape((4, 2, 4, 2, 3))(image)
    x = keras.layers.Permute((2, 4, 1, 3, 5))(x)
    x = keras.layers.Dense(6, activation="relu")(keras.layers.Reshape((4, 16, 3))(x))
    x = keras.layers.Permute((3, 1, 4, 2, 5))(keras.layers.Reshape((2, 2, 4, 4, 6))(x))
    model = keras.Model(image, keras.layers.Reshape((8, 8, 6))(x))
    data = np.random.default_rng(0).normal(size=(32, 8, 8, 3)).astype("float32")
    q = kquant.calibrate(kquant.quantize(model, target=target), data, verbose=False)
    report = kquant.export(q, tmp_path / "patches.tflite", data=data)
    runtime = {"litert": "litert-reference", "tflm": "tflm"}[target]
    assert {v.runtime: v.agreements[0].equal for v in report.verification}[runtime] == 1.0


def test_what_cannot_be_merged_is_refused_and_its_remedy_works() -> None:
    image = keras.Input((2, 3, 2, 3, 2, 3))
    turned = keras.layers.Permute((6, 5, 4, 3, 2, 1))(image)
    why = r"permute.*a tensor of rank 6, batch included; .*takes TRANSPOSE up to rank 5. Move fewer axes at a time"
    with pytest.raises(ValueError, match=why):
        kquant.quantize(keras.Model(image, turned), target="tflm")
    steps = image
    for order in ((4, 5, 6, 1, 2, 3), (3, 2, 1, 4, 5, 6), (1, 2, 3, 6, 5, 4)):
        steps = keras.layers.Permute(order)(steps)
    model = keras.Model(image, [turned, steps])
    x = np.random.default_rng(0).normal(size=(2, *image.shape[1:]))
    assert np.array_equal(*model.predict(x, verbose=0))
    kquant.quantize(keras.Model(image, steps), target="tflm")


KEYS = {
    "last step": (slice(None), -1),
    "every second": (slice(None), slice(None, None, 2)),
    "new axis": (slice(None), None, slice(1, 3)),
    "from the end": (Ellipsis, 0),
}


@pytest.mark.parametrize("name", KEYS)
def test_an_index_of_a_loaded_model_is_that_of_the_saved_one(name: str, tmp_path) -> None:
    """Keras' files have no tuples: `x[:, -1]` comes back as a list."""
    series = keras.Input((6, 4))
    model = keras.Model(series, keras.layers.Dense(2)(series[KEYS[name]]))
    model.save(tmp_path / "m.keras")
    x = np.random.default_rng(0).normal(size=(8, 6, 4)).astype("float32")
    loaded = expand(keras.models.load_model(tmp_path / "m.keras"))
    np.testing.assert_array_equal(loaded(x), expand(model)(x))
    np.testing.assert_allclose(loaded(x), model(x), rtol=1e-6)


class Patches(keras.layers.Layer):
    """As vision transformers of KerasHub write it: an open batch, and one size that is left to be counted."""

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        shape = keras.ops.shape(x)
        return keras.ops.reshape(x, (shape[0], -1, shape[-1]))


def test_a_size_that_is_left_open_beside_the_batch_is_counted() -> None:
    image = keras.Input((4, 6, 3))
    model = keras.Model(image, keras.layers.Dense(5, name="head")(Patches()(image)))
    data = np.random.default_rng(0).normal(size=(32, 4, 6, 3)).astype("float32")
    q = kquant.calibrate(kquant.quantize(model), data, verbose=False)
    assert q.output_shape == (None, 24, 5)
    error = q.predict(data, verbose=0) - model.predict(data, verbose=0)
    assert np.mean(error**2) < 1e-3 * np.mean(model.predict(data, verbose=0) ** 2)

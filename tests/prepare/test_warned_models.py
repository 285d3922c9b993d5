"""What `quantize` warns of, and goes on with."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from one_layer import X, dense

import kquant


def with_kernel(change: Callable[[np.ndarray], None]) -> keras.Model:
    model = dense()
    kernel = model.get_layer("head").kernel.numpy()
    change(kernel)
    model.get_layer("head").kernel.assign(kernel)
    return model


def exported(q: keras.Model, tmp_path: Path, data: np.ndarray = X) -> np.ndarray:
    """Goes on to a file whose codes are the simulation's."""
    kquant.calibrate(q, data, verbose=False)
    report = kquant.export(q, tmp_path / "m.tflite", data=data)
    assert all(a.equal == 1.0 for v in report.verification if v.runtime != "litert" for a in v.agreements)
    return kquant.predict(tmp_path / "m.tflite", data, "litert-reference")


def test_zero_channels_warn_and_work(tmp_path: Path) -> None:
    model = with_kernel(lambda kernel: kernel.__setitem__((slice(None), 1), 0.0))
    with pytest.warns(UserWarning, match="head: the weights of 1 of its 3 output channels are all 0.*Take them out"):
        q = kquant.quantize(model)
    assert not exported(q, tmp_path)[:, 1].any()


def test_all_zero_weights_warn_and_work(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="head: every weight is 0; were the weights loaded"):
        q = kquant.quantize(with_kernel(lambda kernel: kernel.fill(0.0)))
    assert not exported(q, tmp_path).any()  # and no word of the data, which are not the cause


@pytest.mark.parametrize("recipe", ["int8", "int16x8"])
def test_a_fresh_prelu_is_no_lost_layer(recipe: str) -> None:
    """Its slopes begin at 0."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kquant.quantize(keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.PReLU(name="slopes")]), recipe)


@pytest.mark.parametrize("value", [0.0, 0.5, -3.0, 1e-30])
def test_single_valued_activations_warn_and_work(value: float, tmp_path: Path) -> None:
    q = kquant.quantize(dense())
    with pytest.warns(UserWarning, match="these tensors hold a single value on all data: x_quant.*Use data that vary"):
        found = exported(q, tmp_path, np.full((64, 6), value, "float32"))
    wanted = dense()(np.full((1, 6), value, "float32")).numpy()
    np.testing.assert_allclose(found[:1], wanted, atol=0.05 * max(1.0, abs(value)))


def test_lost_activity_regularizers_are_named() -> None:
    layer = layers.Dense(2, activity_regularizer="l2", kernel_regularizer="l2", name="sparse_head")
    model = keras.Sequential([keras.Input((4,)), layer])
    with pytest.warns(UserWarning, match="activity regularizers of sparse_head"):
        q = kquant.quantize(model)
    assert len(q.losses) == 1  # the kernel's


def test_what_draws_is_told_once_and_together() -> None:
    """Beside the model that is made, a look is taken at what scales the input: at each layer alone."""
    augmented = [layers.RandomFlip(name="flip"), layers.RandomGrayscale(name="gray"), layers.Rescaling(1 / 255)]
    model = keras.Sequential([keras.Input((8, 8, 3)), *augmented, layers.Conv2D(2, 3, name="conv")])
    for look in (kquant.quantize, kquant.check, kquant.fold):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            look(model)
        [drawn] = [str(one.message) for one in told if "draws in training" in str(one.message)]
        assert drawn.startswith("flip (RandomFlip), gray (RandomGrayscale): ")

"""Calls that pass Keras by in calibration and analysis (`modes.is_bare`): the same numbers as by way of Keras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import kquant
from kquant.core.spec import QuantSpec
from kquant.graph.copies import copy_of
from kquant.graph.keras_private import mask_of
from kquant.layers import compressed, fake_quant, modes
from kquant.layers.nodes import Compressed, FakeQuant

layers = keras.layers
FLOAT = [{"layer": "middle", "skip": True}]


def images() -> keras.Model:
    x = inputs = keras.Input((6, 6, 2))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(4, 3, name="conv")(x)))
    x = layers.Conv2D(4, 3, activation="relu", name="middle")(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax", name="head")(layers.Flatten()(x)))


def masked() -> keras.Model:
    x = inputs = keras.Input((5, 3))
    x = layers.Dense(4, activation="relu", name="conv")(layers.Masking()(x))
    x = layers.GRU(4, name="memory")(layers.Dense(4, name="middle")(x))
    return keras.Model(inputs, layers.Dense(2, name="head")(x))


def numbers(build: Callable[[], keras.Model], policy: str, rules: list[dict[str, Any]]) -> list[np.ndarray]:
    """Ranges of a calibration, and outputs with one layer quantized at a time."""
    keras.utils.set_random_seed(2)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = build()
    finally:
        keras.config.set_dtype_policy(before)
    x = np.random.default_rng(0).normal(size=(16, *model.input_shape[1:])).astype(np.float32)
    if build is masked:
        x[:8, 3:] = 0.0
    q = kquant.quantize(copy_of(model), {"name": "t", "rules": rules})
    kquant.calibrate(q, x, verbose=False)
    made = [np.asarray(weight) for weight in q.get_weights()]
    for layer in q.layers:
        if isinstance(layer, Compressed | FakeQuant):
            with modes.only([layer.name]):
                made.append(np.asarray(q(x), np.float32))
    return made


@pytest.mark.filterwarnings("ignore:calibrate. in some samples the mask", "ignore:calibrate. 16 samples are few")
@pytest.mark.parametrize("rules", [[], FLOAT], ids=["all", "one layer float"])
@pytest.mark.parametrize(
    ("build", "policy"),
    [(images, "float32"), (images, "mixed_bfloat16"), (masked, "float32")],
)
def test_what_passes_keras_by_computes_the_same(
    build: Callable[[], keras.Model], policy: str, rules: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bare: list[bool] = []

    def asked(args: tuple[Any, ...]) -> bool:
        bare.append(modes.is_bare(args))
        return bare[-1]

    for module in (compressed, fake_quant):
        monkeypatch.setattr(module, "is_bare", asked)
    ours = numbers(build, policy, rules)
    assert any(bare) == (policy == "float32") and not all(bare)
    for module in (compressed, fake_quant):
        monkeypatch.setattr(module, "is_bare", lambda _: False)
    plain = numbers(build, policy, rules)
    for one, other in zip(ours, plain, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("bare", [True, False])
def test_a_mask_goes_through_what_passes_keras_by(bare: bool) -> None:
    """Inside of `observing`; what comes without a mask needs nothing of Keras."""
    x = tf.ones((2, 3, 4)) if bare else layers.Masking()(tf.constant([[[1.0] * 4] * 2 + [[0.0] * 4]] * 2))
    dense = kquant.quantize(keras.Sequential([keras.Input((3, 4)), layers.Dense(4, name="dense")])).get_layer("dense")
    with modes.observing(lambda *_: None):
        assert modes.is_bare((x,)) is bare
        for made in (FakeQuant(QuantSpec(8).to_config())(x)[0], dense(x)[0]):
            assert (mask_of(made) is None) is bare

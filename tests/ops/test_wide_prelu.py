"""PReLU with 16-bit activations, for which no interpreter has a kernel: written in layers that have one."""

from __future__ import annotations

import tomllib
import warnings
from typing import Any

import contract
import keras
import numpy as np
import pytest
from keras import layers

import kquant
from kquant.runtime.running import available

X = np.float32(np.random.default_rng(0).normal(size=(128, 6, 6, 3)))


def net(**settings: Any) -> keras.Model:
    inputs = keras.Input(X.shape[1:], name="x")
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(5, 3, name="conv")(inputs))
    x = layers.PReLU(keras.initializers.RandomUniform(-0.3, 0.6, seed=1), name="slopes", **settings)(x)
    return keras.Model(inputs, layers.Conv2D(3, 3, name="last")(x))


def in_8_bits() -> dict[str, Any]:
    """A recipe that has the PReLU in 8 bits, and all around it in 16."""
    rules = [{"layer": "slopes", "activations": {"bits": 8}}]
    return tomllib.loads(kquant.recipe_to_toml("int16x8")) | {"rules": rules}


def decibels(wanted: np.ndarray, found: np.ndarray) -> float:
    return float(10 * np.log10(np.sum(wanted**2) / np.sum((wanted - found) ** 2)))


@pytest.mark.parametrize("target", ["litert", "tflm"])
@pytest.mark.parametrize("settings", [{"shared_axes": [1, 2]}, {}], ids=["of-channels", "of-each-value"])
def test_no_code_is_narrowed_and_the_interpreter_computes_the_same(target: str, settings: dict[str, Any]) -> None:
    if contract.RUNTIMES[target] not in available():
        pytest.skip(f"{target} needs an extra: pip install 'kquant[micro]'")
    keras.utils.set_random_seed(0)
    model = net(**settings)
    before = [w.copy() for w in model.get_weights()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        q = contract.quantized(model, target, 128, "int16x8")
    content = contract.file_of(q)
    codes = kquant.inspect(content).operators
    assert "PRELU" not in codes
    assert "QUANTIZE" not in codes
    assert contract.compare(q, content, contract.RUNTIMES[target], [X]).equal == 1.0
    narrow = contract.quantized(model, target, 128, in_8_bits())
    wanted = model.predict(X, verbose=0)
    assert decibels(wanted, q.predict(X, verbose=0)) > decibels(wanted, narrow.predict(X, verbose=0)) + 3.0
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_rule_by_its_name_still_means_it_and_its_slopes_train() -> None:
    model = net(shared_axes=[1, 2])
    narrow = kquant.quantize(model, in_8_bits())
    assert "slopes_slopes" not in {layer.name for layer in narrow.layers}
    q = kquant.quantize(model, "int16x8")
    kquant.calibrate(q, X, verbose=False)
    slopes = q.get_layer("slopes_slopes").layer.scale
    before = slopes.numpy().copy()
    q.compile(keras.optimizers.SGD(0.1), "mse")
    q.fit(X, np.zeros((len(X), *q.output_shape[1:]), np.float32), verbose=0)
    assert not np.array_equal(before, slopes.numpy())
    model.trainable = False
    assert not kquant.quantize(model, "int16x8").get_layer("slopes_slopes").trainable_weights


def test_slopes_of_rows_stay_in_8_bits_and_are_named() -> None:
    with pytest.warns(UserWarning, match=r"no 16-bit kernel for slopes \(PReLU\)"):
        q = kquant.quantize(net(shared_axes=[2]), "int16x8")
    assert "slopes_slopes" not in {layer.name for layer in q.layers}

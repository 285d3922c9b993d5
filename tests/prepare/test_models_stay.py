"""Models of every kind are after `quantize`, `check` and `calibrate` what they were before."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from enrolled import samples
from keras import layers
from model_cases import CASES, made
from one_layer import RawTensorFlow

import kquant
from kquant.graph.keras_private import calls_of, every_layer


def state(model: keras.Model) -> dict[str, Any]:
    """Everything that a careless reader of a model would change."""
    every = every_layer(model)
    return {
        "nodes": [(layer.name, *map(len, calls_of(layer))) for layer in every],
        "weights": [(v.path, v.trainable, v.numpy().tobytes()) for v in model.variables],
        "flags": [(layer.name, layer.trainable, layer.built, layer.dtype_policy.name) for layer in every],
        "config": str(model.get_config())
        if isinstance(model, keras.Sequential) or isinstance(model, keras.Function)
        else "",
    }


@pytest.mark.parametrize("name", CASES)
def test_the_given_model_is_never_changed(name: str) -> None:
    model = made(name)
    q = kquant.quantize(model)
    x = samples(q, 4)
    arguments = keras.tree.pack_sequence_as(q.input, x) if isinstance(q.input, list | dict) else x[0]
    outputs = [y.numpy() for y in keras.tree.flatten(model(arguments, training=False))]
    before = state(model)
    q = kquant.quantize(model)
    kquant.check(model)
    kquant.calibrate(q, lambda: [arguments] * 8, verbose=False)
    for variable in q.trainable_variables:
        variable.assign(variable + 1.0)  # weights of its own
    assert state(model) == before
    for a, b in zip(outputs, keras.tree.flatten(model(arguments, training=False)), strict=True):
        np.testing.assert_array_equal(a, b.numpy())


def test_a_refused_model_is_not_changed() -> None:
    x = keras.Input((6,), name="x")
    model = keras.Model(x, layers.Dense(2)(RawTensorFlow(name="opaque")(x)))
    before = state(model)
    for verb in (kquant.quantize, kquant.check):
        with pytest.raises(ValueError, match="opaque"):
            verb(model)
    assert state(model) == before

"""A recipe of float activations for a target of integers: the recipe is the reason, and is named once."""

from __future__ import annotations

import re

import keras
import pytest

import kquant
from kquant.recipe import recipe as recipes

FLOATS = [name for name in recipes.names() if recipes.load(name).mode != "static"]
INTEGERS = [name for name in kquant.targets.names() if not kquant.targets.load(name).floats]


def network() -> keras.Model:
    x = inputs = keras.Input((8, 1), name="x")
    x = keras.layers.Flatten(name="flat")(keras.layers.Conv1D(4, 3, activation="relu", name="conv")(x))
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(x), name="net")


@pytest.mark.parametrize("target", INTEGERS)
@pytest.mark.parametrize("recipe", FLOATS)
def test_the_recipe_is_named_and_no_layer(recipe: str, target: str) -> None:
    for verb in (kquant.quantize, kquant.check, kquant.estimate):
        with pytest.raises(ValueError, match=rf"^recipe '{recipe}': its activations are floats") as told:
            verb(network(), target=target, recipe=recipe)
        assert "conv" not in str(told.value) and "\n" not in str(told.value)


def test_the_remedies_work() -> None:
    assert {"dynamic-int8", "float16", "weight-only-int8"} <= set(FLOATS) and "tflm" in INTEGERS
    with pytest.raises(ValueError, match="integers only") as told:
        kquant.quantize(network(), "dynamic-int8", target="tflm")
    named = re.findall(r"'([\w-]+)'", str(told.value))[1:]
    *others, target = named
    assert len(others) == 3 and target in kquant.targets.names()
    for recipe in others:
        kquant.quantize(network(), recipe, target="tflm")
    kquant.quantize(network(), "dynamic-int8", target=target)

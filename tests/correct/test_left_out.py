"""Corrections of codes say which layers they have nothing to choose in."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import kquant

X = np.float32(np.random.default_rng(0).normal(size=(40, 32)))
BLOCKS = {"name": "b", "mode": "dynamic", "weights": {"bits": 4, "block": 32}}
VERBS: dict[str, dict[str, Any]] = {
    "adaround": {"iterations": 3},
    "sequential_mse": {},
    "gptq": {},
    "shorten_codes": {},
    "correct_bias": {},
}


def quantized(recipe: Any) -> keras.Model:
    keras.utils.set_random_seed(0)
    made = [layers.Dense(32, activation="relu", name="wide"), layers.Dense(4, name="head")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # simulated only
        q = kquant.quantize(keras.Sequential([keras.Input((32,)), *made], name="net"), recipe)
        return kquant.calibrate(q, X, verbose=False) if isinstance(recipe, dict) and "mode" not in recipe else q


def said(verb: str, recipe: Any) -> list[str]:
    q = quantized(recipe)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        getattr(kquant, verb)(q, X, verbose=False, **VERBS[verb])
    return [str(w.message) for w in caught if w.category is UserWarning]


@pytest.mark.parametrize("verb", VERBS)
def test_layers_in_blocks_are_named_with_the_correction_that_takes_them(verb: str) -> None:
    told = said(verb, BLOCKS)
    if verb == "gptq":
        assert told == []
        return
    assert len(told) == 1 and told[0].startswith(f"{verb}: head, wide ") and "kquant.gptq" in told[0]
    mixed = {"name": "m", "rules": [{"layer": "head", "weights": {"bits": 4, "block": 32}}]}
    told = said(verb, mixed)
    assert len(told) == 1 and told[0].startswith(f"{verb}: head ")


def test_biases_without_data_name_the_layers_too() -> None:
    with pytest.warns(UserWarning, match="correct_bias: head, wide keep their biases: .*kquant.gptq"):
        kquant.correct_bias(quantized(BLOCKS), verbose=False)


@pytest.mark.parametrize("verb", VERBS)
def test_grids_without_codes_are_named(verb: str) -> None:
    told = said(verb, {"name": "e", "rules": [{"layer": "wide", "weights": {"kind": "e4m3"}}]})
    assert len(told) == 1 and told[0].startswith(f"{verb}: wide stay as they are") and "kind e4m3." in told[0]
    told = said(verb, "float16")
    assert len(told) == 1 and told[0].startswith(f"{verb}: no layer of 'net' has weights that are codes")
    assert said(verb, {"name": "w4", "weights": {"bits": 4}}) == []


def test_a_step_of_a_recipe_says_it_too(tmp_path: Any) -> None:
    recipe = {**BLOCKS, "steps": [{"name": "adaround", "iterations": 3}]}
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((32,)), layers.Dense(4, name="head")])
    with pytest.warns(UserWarning, match="adaround: head stay rounded to nearest: .*take|adaround: head .*kquant.gptq"):
        kquant.compress(model, X, recipe=recipe, target="litert", path=tmp_path / "m.tflite", verbose=False)

"""Weights of float16 under integer activations are refused where the model is quantized, each layer with its name."""

from __future__ import annotations

from typing import Any

import keras
import pytest

import kquant

HALF: dict[str, Any] = {"weights": {"dtype": "float16"}}


def network() -> keras.Model:
    inputs = keras.Input((6, 4), name="x")
    x = keras.layers.LSTM(3, return_sequences=True, name="memory")(inputs)
    x = keras.layers.GRU(3, name="gate")(x)
    return keras.Model(inputs, keras.layers.Dense(2, name="head")(x), name="net")


@pytest.mark.parametrize("target", ["tflm", "litert"])
def test_every_layer_with_weights_is_named(target: str) -> None:
    with pytest.raises(ValueError, match="leave dtype out") as refused:
        kquant.quantize(network(), {"name": "half", **HALF}, target=target)
    assert all(f"  {name}" in str(refused.value) for name in ("memory", "gate", "head"))
    told = {line.split()[0]: "float = true" in line for line in str(refused.value).splitlines()[1:]}
    assert told["head"] == (target == "litert"), "only there do layers stay float"
    assert not told["memory"], "an LSTM is written in integers only"


def test_what_the_refusal_says_works() -> None:
    one: dict[str, Any] = {"layer": "head", **HALF}
    with pytest.raises(ValueError, match=r"(?s)in integers on LiteRT.*head \(Dense\): .*float = true") as refused:
        kquant.quantize(network(), {"name": "half", "rules": [one]}, target="litert")
    assert "memory" not in str(refused.value) and "gate" not in str(refused.value)
    kquant.quantize(network(), {"name": "half", "rules": [{**one, "float": True}]}, target="litert")
    kquant.quantize(network(), {"name": "half", "rules": [{**one, "skip": True}]}, target="litert")
    dense = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="head")])
    kquant.quantize(dense, "float16", target="litert")


def test_rows_that_are_looked_up_have_the_codes_of_their_output() -> None:
    inputs = keras.Input((4,), dtype="int32", name="words")
    model = keras.Model(inputs, keras.layers.Embedding(8, 4, name="table")(inputs))
    with pytest.raises(ValueError, match="table .Embedding.: .*leave dtype out"):
        kquant.quantize(model, {"name": "half", **HALF}, target="litert")

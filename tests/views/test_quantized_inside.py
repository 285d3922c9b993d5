"""A quantized model among the layers of another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import pytest
from keras import layers
from one_layer import X, calibrated

import kquant


def with_a_head() -> keras.Model:
    return keras.Sequential([calibrated(), layers.Dense(2, name="top")], name="whole")


@pytest.mark.parametrize("verb", ["calibrate", "export", "prune", "cluster"])
def test_a_quantized_model_inside_another_is_named(verb: str, tmp_path: Path) -> None:
    calls: dict[str, Callable[[keras.Model], Any]] = {
        "calibrate": lambda model: kquant.calibrate(model, X, verbose=False),
        "export": lambda model: kquant.export(model, tmp_path / "m.tflite"),
        "prune": lambda model: kquant.prune(model, 0.5),
        "cluster": lambda model: kquant.cluster(model, 2),
    }
    with pytest.raises(ValueError, match="^whole: it has the quantized model 'net' among its layers.*kquant.strip"):
        calls[verb](with_a_head())

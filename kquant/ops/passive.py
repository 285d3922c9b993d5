"""Layers that do nothing at inference: they leave the model."""

from __future__ import annotations

from typing import Any

import keras

from kquant.ops.rule import Make, Rule, example

layers = keras.layers


def _pass(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    return x


RULES = (
    Rule(
        layers=(
            layers.Dropout,
            layers.SpatialDropout1D,
            layers.SpatialDropout2D,
            layers.SpatialDropout3D,
            layers.AlphaDropout,
            layers.GaussianDropout,
            layers.GaussianNoise,
            layers.ActivityRegularization,
            layers.Identity,
        ),
        expand=_pass,
        examples=(
            example(
                lambda: layers.Dropout(0.5), lambda: layers.Dense(3), lambda: layers.GaussianNoise(0.1), shape=(4,)
            ),
            example(lambda: layers.SpatialDropout1D(0.5), layers.Identity, lambda: layers.Dense(3), shape=(4, 5)),
        ),
    ),
)

"""Layers that do nothing at inference: regularizing ones stay for training and are not written, the others leave."""

from __future__ import annotations

from typing import Any

import keras

from kquant.core.program import Program
from kquant.ops.rule import Call, Make, Rule, computed, example

layers = keras.layers

RANDOM = (
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.AlphaDropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
)


def _pass(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    return x


def _same(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    """The same numbers; a conversion to whole numbers would cut them."""
    dtype = str(getattr(op, "dtype", None) or "float")
    if "int" in dtype and not _is_whole(x):
        raise ValueError(
            f"{op.name} ({type(op).__name__}): it cuts numbers off to {dtype}; use keras.ops.floor or trunc, which have "
            "an integer form, or do it in the application."
        )
    return x


def _is_whole(x: Any) -> bool:
    return any(kind in str(x.dtype) for kind in ("int", "bool"))


def _lower(program: Program, call: Call) -> None:
    """A RESHAPE to the same shape, which tidying removes."""
    program.reshape(call.inputs[0], call.output.shape, call.output)


RULES = (
    Rule(
        layers=(layers.ActivityRegularization, layers.Identity),
        expand=_pass,
        examples=(example(layers.Identity, lambda: layers.Dense(3), shape=(4,)),),
    ),
    Rule(
        operations=("Cast", "StopGradient", "ConvertToTensor", "Copy"),
        expand=_same,
        examples=(computed(lambda x: keras.ops.cast(keras.ops.stop_gradient(x), "float32") * 2.0, (4,)),),
    ),
    Rule(
        layers=RANDOM,
        operators=(),
        output="same",
        lower=_lower,
        examples=(
            example(
                lambda: layers.Dropout(0.5), lambda: layers.Dense(3), lambda: layers.GaussianNoise(0.1), shape=(4,)
            ),
            example(lambda: layers.SpatialDropout1D(0.5), layers.Identity, lambda: layers.Dense(3), shape=(4, 5)),
        ),
    ),
)

"""Models and layers of a mixed policy, which compute in 16 bits, brought to float32."""

from __future__ import annotations

import contextlib
from typing import Any

import keras

from kquant.graph.copies import copy_of
from kquant.graph.given_model import check_keras
from kquant.graph.keras_private import every_layer, variables_as

HALF = ("float16", "bfloat16")


def in_float32(qmodel: keras.Model) -> keras.Model:
    """A model that trained in mixed precision, computing in float32 throughout, as its file does.

    Copies: `qmodel` stays as it was.

    Such a model rounds all that passes between its layers to 16 bits, at inference too: its `predict` is near the file,
    not equal to it. `kquant.export` and `kquant.verify` compare the file with this one.

    Args:
        qmodel: a quantized model.

    Returns:
        The model itself where no layer computes in 16 bits; otherwise a copy with the same state, not compiled.

    Example:
        >>> layers = [keras.layers.Dense(2, dtype="mixed_bfloat16"), keras.layers.ReLU(dtype="mixed_bfloat16")]
        >>> q = kquant.quantize(keras.Sequential([keras.Input((4,)), *layers]))
        >>> q.get_layer("re_lu").compute_dtype, in_float32(q).get_layer("re_lu").compute_dtype
        ('bfloat16', 'float32')
    """
    check_keras(qmodel, "in_float32")
    if all(layer.compute_dtype not in HALF for layer in every_layer(qmodel)):
        return qmodel
    return copy_of(qmodel, _with_float32(qmodel.get_config()))


def _with_float32(config: Any) -> Any:
    """A config with float32 in place of every policy that computes in 16 bits."""
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy" and config["config"]["name"].endswith(HALF):
            return {**config, "config": {"name": "float32"}}
        return {key: _with_float32(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return type(config)(_with_float32(value) for value in config)
    return config


def full_precision() -> contextlib.AbstractContextManager:
    """Inside, float variables read as float32, which is what they are, whatever a mixed policy would cast them to.

    For those of Keras' layers: variables of kquant's own are made with `autocast=False`, and read so everywhere.
    (`AutocastScope(None)` would do so too, but there a variable's `dtype` is that of `keras.config.floatx()`.)
    """
    return variables_as("float32")

"""The configuration of a layer as Keras 2 wrote it -> as Keras 3 reads it. Plain data in, plain data out.

What differs is in `layers.toml`; here is how the table is applied, at any depth: layers in wrappers, cells in layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kquant.migrate.tables import layers

Config = dict[str, Any]
INNER = ("layer", "backward_layer", "cell", "cells")  # arguments that are layers


def translated(name: str, config: Mapping[str, Any], where: str) -> tuple[str, Config]:
    """Class and arguments of a layer in Keras 3.

    Args:
        name: of its class in Keras 2.
        config: its arguments, as `get_config` gave them.
        where: the layer, for errors.

    Returns:
        Name of the class in Keras 3, and arguments for its `from_config`.

    Raises:
        ValueError: it computes what Keras 3 has no argument for, with a way out.

    Example:
        >>> translated("DepthwiseConv2D", {"name": "dw", "kernel_size": [3, 3], "groups": 1}, "layer 'dw'")
        ('DepthwiseConv2D', {'name': 'dw', 'kernel_size': [3, 3]})
    """
    table = layers()
    fresh = table.classes.get(name, name)
    renames, kept = table.renamed.get(fresh, {}), {}
    for key, value in config.items():
        lost = key in table.dropped["all"] or fresh in table.dropped.get(key, ())
        if lost and value not in (None, table.expected.get(key, value)):
            raise ValueError(_refusal(where, key, value))
        if key in renames:
            kept[renames[key]] = value
        elif not lost:
            kept[key] = _value(key, value, f"{where}, {key}")
    # a class of its own in Keras 2, an argument in Keras 3
    if fresh == "BatchNormalization" and name.startswith("Sync"):
        kept["synchronized"] = True
    if fresh == "ReLU" and name.endswith("ReLU6"):
        kept["max_value"] = 6.0
    return fresh, kept


def _refusal(where: str, key: str, value: Any) -> str:
    said = f"{where}: {key}={value!r}, which Keras 3 does not have"
    if key == "time_major":
        return (
            f"{said} inside a wrapper. Make the old layer with time_major=False (its weights are the same) and turn "
            "the axes of its input and output with tf.transpose(x, [1, 0, 2]), save it again, and migrate that file."
        )
    return f"{said}. Give another layer in its place: replacing={{name: keras_3_layer}}; it takes on the old weights."


def _value(key: str, value: Any, where: str) -> Any:
    """An argument: what is in it may be a layer, a cell, a function or a policy."""
    if key == "dtype":
        return dtype_of(value)
    if isinstance(value, list):
        return value[0] if key == "axis" and len(value) == 1 else [_value("", each, where) for each in value]
    if not isinstance(value, dict) or "class_name" not in value:
        return value
    name, config = value["class_name"], value.get("config")
    if name == "function" and isinstance(config, str):
        return config
    if not isinstance(config, dict):
        return value
    if key in (*INNER, "") and "name" in config:
        fresh, kept = translated(name, config, f"{where} '{config['name']}'")
        return {"module": "keras.layers", "class_name": fresh, "config": kept, "registered_name": None}
    # initializers of earlier versions knew a dtype
    kept = {k: v for k, v in config.items() if not (key.endswith("initializer") and k == "dtype")}
    return {"class_name": name, "config": kept}


def dtype_of(value: Any) -> Any:
    """A dtype or the name of a policy.

    Example:
        >>> dtype_of({"class_name": "Policy", "config": {"name": "mixed_float16"}})
        'mixed_float16'
    """
    if isinstance(value, dict):
        return value.get("config", {}).get("name")
    return value


def ramp_of(config: Mapping[str, Any]) -> str | None:
    """Name of an activation whose values changed: Keras 3 builds it of a scale and a clip behind the layer.

    Example:
        >>> ramp_of({"activation": "hard_sigmoid"}), ramp_of({"activation": "relu"})
        ('hard_sigmoid', None)
    """
    name = activation_of(config)
    return name if name in layers().other_values else None


def activation_of(config: Mapping[str, Any], key: str = "activation") -> str | None:
    """Name of a layer's activation, out of its config of either version."""
    value = config.get(key)
    if isinstance(value, dict):
        value = value.get("config")
    if isinstance(value, dict):  # an activation that is an object (a layer)
        value = value.get("name")
    return value if isinstance(value, str) else None

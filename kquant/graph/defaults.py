"""Settings of the process that new layers take over, held as a model has them: dtype policy, float, data format."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import keras


@contextlib.contextmanager
def own_defaults(layers: Iterable[Any]) -> Iterator[None]:
    """Inside, new layers are like these, whatever the process is set to: their dtype policy, float32, channels last.

    Args:
        layers: those of the model that the new ones belong to; most of them say which policy it is. Operations among
            them say nothing.

    Example:
        >>> keras.config.set_dtype_policy("mixed_bfloat16")
        >>> with own_defaults([keras.layers.Dense(2, dtype="float32")]):
        ...     keras.layers.ReLU().compute_dtype
        'float32'
        >>> keras.config.dtype_policy().name
        'mixed_bfloat16'
        >>> keras.config.set_dtype_policy("float32")
    """
    policy, floats = keras.config.dtype_policy(), keras.config.floatx()
    images = keras.config.image_data_format()
    keras.config.set_floatx("float32")
    keras.config.set_image_data_format("channels_last")
    keras.config.set_dtype_policy(_policy(layers))
    try:
        yield
    finally:
        keras.config.set_floatx(floats)
        keras.config.set_image_data_format(images)
        keras.config.set_dtype_policy(policy)


def _policy(layers: Iterable[Any]) -> str:
    """The policy of most layers; those that read integers or strings, and models, which only hold layers, have none."""
    policies = [layer.dtype_policy for layer in layers if isinstance(layer, keras.layers.Layer)]
    names = [policy.name for policy in policies if "float" in str(policy.compute_dtype)]
    return Counter(names).most_common(1)[0][0] if names else "float32"

"""Layers that act in training only, in forms that leave inference to the layers around them.

What stands between two layers keeps a file writer from making one operator of them, though inference has nothing there.
An affine map may change places with such a layer `p` all the same, exactly:

    p(scale * x + offset)  =  scale * q(x) + offset      where  q(x) = (p(scale * x + offset) - offset) / scale

and a ReLU may take it in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="kquant")
class Conjugated(keras.layers.Layer):
    """`(layer(scale * x + offset) - offset) / scale` in training, x itself at inference.

    Args:
        layer: one that does nothing at inference (Dropout, GaussianNoise, ...), or its config.
        scale, offset: float[channels], of the last axis. Where the scale is 0 no value of the layer comes through, so
            that x passes.

    Example:
        >>> layer = Conjugated(keras.layers.Dropout(0.5, seed=0), [2.0], [1.0])
        >>> layer(np.ones((1, 2), "float32")).numpy().tolist()
        [[1.0, 1.0]]
        >>> sorted({float(v) for v in np.ravel(layer(np.ones((1, 64), "float32"), training=True))})
        [-0.5, 2.5]
    """

    def __init__(self, layer: Any, scale: Iterable[float], offset: Iterable[float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layer = _made(layer)
        self.scale, self.offset = [float(s) for s in scale], [float(o) for o in offset]
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        """Build what is inside."""
        if not self.layer.built:
            self.layer.build(input_shape)

    def call(self, x: Any, training: bool = False) -> Any:
        """Act in training."""
        if not training:
            return x
        scale, offset = tf.constant(self.scale, x.dtype), tf.constant(self.offset, x.dtype)
        alive = scale != 0.0
        # Divided by 1, not by 0, what is thrown away below has no NaN to put into the gradients.
        unit = tf.where(alive, scale, tf.ones_like(scale))
        y = (self.layer(unit * x + offset, training=True) - offset) / unit
        return tf.where(alive, y, x)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """As the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        inner = keras.saving.serialize_keras_object(self.layer)
        return {**super().get_config(), "layer": inner, "scale": self.scale, "offset": self.offset}


@keras.saving.register_keras_serializable(package="kquant")
class ReLUBehind(keras.layers.ReLU):
    """A ReLU that takes in the layers before it which act in training only: `relu(layers(x))`, `relu(x)` at inference.

    Args:
        before: those layers, in order, or their configs.

    Example:
        >>> layer = ReLUBehind([keras.layers.GaussianNoise(1.0)], max_value=6.0)
        >>> layer(np.array([[-1.0, 8.0]])).numpy().tolist()
        [[0.0, 6.0]]
    """

    def __init__(self, before: Sequence[Any], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.before = [_made(layer) for layer in before]

    def build(self, input_shape: Any) -> None:
        """Build what is inside."""
        for layer in self.before:
            if not layer.built:
                layer.build(input_shape)

    def call(self, x: Any, training: bool = False) -> Any:
        """Act in training, then rectify."""
        for layer in self.before if training else ():
            x = layer(x, training=True)
        return super().call(x)

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        return {**super().get_config(), "before": [keras.saving.serialize_keras_object(b) for b in self.before]}


def _made(layer: Any) -> keras.layers.Layer:
    return layer if isinstance(layer, keras.layers.Layer) else keras.saving.deserialize_keras_object(layer)

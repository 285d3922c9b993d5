"""Colours: brightness of red, green and blue, a 1 x 1 convolution with the weights of ITU-R BT.601."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kquant.graph.creation import without_random
from kquant.ops.rule import Make, Rule, computed

layers = keras.layers
BRIGHTNESS = (0.2989, 0.5870, 0.1140)  # as Keras' backends round them


def _weighted(name: str) -> Any:
    layer: Any = layers.Conv2D(1, 1, use_bias=False, name=name)
    with without_random(layer):
        layer.build((None, None, None, 3))
    layer.kernel.assign(np.reshape(np.array(BRIGHTNESS, np.float32), (1, 1, 3, 1)))
    layer.trainable = False
    return layer


def _grayscale(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    where = f"{op.name} (RGBToGrayscale): "
    if (op.data_format or keras.config.image_data_format()) != "channels_last":
        raise ValueError(f"{where}data_format='channels_first'; give it images with the channels last.")
    if len(x.shape) != 4 or x.shape[-1] != 3:
        raise ValueError(f"{where}expected images [batch, height, width, 3]. Received: {tuple(x.shape)}.")
    return make("weighted", lambda: _weighted(op.name))(x)


RULES = (
    Rule(
        operations=("RGBToGrayscale",),
        needs=("ops.image.rgb_to_grayscale",),
        expand=_grayscale,
        examples=(
            computed(keras.ops.image.rgb_to_grayscale, (5, 4, 3)),
            computed(lambda x: layers.Conv2D(4, 3)(keras.ops.image.rgb_to_grayscale(x)), (6, 6, 3)),
        ),
    ),
)

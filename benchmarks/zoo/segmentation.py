"""Segmenters: a class for each pixel."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from benchmarks.zoo.blocks import conv, mobilenet_v2, model, separable, upsample


def deeplab_v3_plus(side: int = 96, classes: int = 4) -> keras.Model:
    """DeepLabV3+ (Chen et al. 2018): dilated pyramid pooling with an image level, a decoder at stride 4."""
    image = keras.Input((side, side, 3))
    four, _, sixteen, _ = mobilenet_v2(layers.Rescaling(1 / 127.5, -1)(image))
    branches = [conv(sixteen, 32, 1)]
    for rate in (2, 4):
        y = layers.DepthwiseConv2D(3, padding="same", dilation_rate=rate, use_bias=False)(sixteen)
        branches.append(conv(layers.ReLU()(layers.BatchNormalization()(y)), 32, 1))
    pooled = conv(layers.GlobalAveragePooling2D(keepdims=True)(sixteen), 32, 1)
    branches.append(upsample(pooled, sixteen))
    x = layers.Dropout(0.1)(conv(layers.Concatenate()(branches), 32, 1))
    x = layers.Concatenate()([upsample(x, four), conv(four, 16, 1)])
    x = layers.Conv2D(classes, 1)(separable(x, 32, activation="relu"))
    return model(image, layers.Softmax()(upsample(x, image)), "deeplab_v3_plus")


def u_net(side: int = 64, classes: int = 4, width: int = 8) -> keras.Model:
    """U-Net (Ronneberger et al. 2015) with padded convolutions: a path down, one up, and what joins them."""
    image = keras.Input((side, side, 3))
    x: Any = layers.Rescaling(1 / 255)(image)
    kept = []
    for level in range(3):
        x = conv(conv(x, width << level), width << level)
        kept.append(x)
        x = layers.MaxPooling2D()(x)
    x = conv(conv(x, width << 3), width << 3)
    for level in (2, 1, 0):
        x = layers.Conv2DTranspose(width << level, 2, 2)(x)
        x = layers.Concatenate()([kept[level], x])
        x = conv(conv(x, width << level), width << level)
    return model(image, layers.Conv2D(classes, 1, activation="softmax")(x), "u_net")


def bisenet(side: int = 96, classes: int = 4) -> keras.Model:
    """BiSeNet (Yu et al. 2018): a spatial and a context path, attention over channels, their fusion."""
    image = keras.Input((side, side, 3))
    x = layers.Rescaling(1 / 127.5, -1)(image)
    spatial = conv(conv(conv(x, 16, 3, 2), 16, 3, 2), 32, 3, 2)
    _, _, sixteen, last = mobilenet_v2(x)

    def refined(t: Any) -> Any:
        weight = conv(layers.GlobalAveragePooling2D(keepdims=True)(t), t.shape[-1], 1, activation="sigmoid")
        return layers.Multiply()([t, weight])

    tail = conv(layers.GlobalAveragePooling2D(keepdims=True)(last), last.shape[-1], 1)
    deep = layers.Add()([refined(last), tail])
    context = layers.Concatenate()([upsample(refined(sixteen), spatial), upsample(deep, spatial)])
    fused = conv(layers.Concatenate()([spatial, context]), 32, 1)
    weight = layers.GlobalAveragePooling2D(keepdims=True)(fused)
    weight = layers.Conv2D(32, 1, activation="sigmoid")(layers.Conv2D(32, 1, activation="relu")(weight))
    fused = layers.Add()([fused, layers.Multiply()([fused, weight])])
    return model(image, upsample(layers.Conv2D(classes, 1)(conv(fused, 32)), image), "bisenet")

"""What several of the architectures are made of."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers


def conv(x: Any, filters: int, kernel: int = 3, strides: int = 1, activation: str | None = "relu", **more: Any) -> Any:
    """Convolution without bias, batch norm, activation."""
    x = layers.Conv2D(filters, kernel, strides, padding="same", use_bias=False, **more)(x)
    x = layers.BatchNormalization()(x)
    return layers.Activation(activation)(x) if activation else x


def separable(x: Any, filters: int, kernel: int = 3, strides: int = 1, activation: str | None = "relu6") -> Any:
    """Depthwise and pointwise convolution, each with batch norm and activation."""
    x = layers.DepthwiseConv2D(kernel, strides, padding="same", use_bias=False)(x)
    x = layers.Activation(activation or "relu6")(layers.BatchNormalization()(x))
    return conv(x, filters, 1, activation=activation)


def inverted_residual(x: Any, filters: int, strides: int = 1, expansion: int = 6) -> Any:
    """Block of MobileNetV2 (Sandler et al. 2018, figure 3)."""
    narrow = x.shape[-1]
    y = conv(x, narrow * expansion, 1, activation="relu6") if expansion > 1 else x
    y = layers.DepthwiseConv2D(3, strides, padding="same", use_bias=False)(y)
    y = layers.Activation("relu6")(layers.BatchNormalization()(y))
    y = conv(y, filters, 1, activation=None)
    return layers.Add()([x, y]) if strides == 1 and narrow == filters else y


def mobilenet_v2(x: Any, width: float = 0.35) -> list[Any]:
    """MobileNetV2's features at strides 4, 8, 16 and 32, of a narrower and shorter body."""

    def wide(channels: int) -> int:
        return max(8, int(channels * width + 4) // 8 * 8)

    x = conv(x, wide(32), 3, 2, "relu6")
    x = inverted_residual(x, wide(16), expansion=1)
    features = []
    for filters, repeats, strides in ((24, 2, 2), (32, 2, 2), (64, 2, 2), (96, 2, 1), (160, 2, 2)):
        for n in range(repeats):
            x = inverted_residual(x, wide(filters), strides if n == 0 else 1)
        features.append(x)
    return [features[0], features[1], features[3], features[4]]


def upsample(x: Any, like: Any, how: str = "bilinear") -> Any:
    """To the height and width of another tensor."""
    size = (like.shape[1] // x.shape[1], like.shape[2] // x.shape[2])
    return layers.UpSampling2D(size, interpolation=how)(x)


def encoder(x: Any, heads: int, width: int, activation: str = "gelu", *, before: bool = True) -> Any:
    """Transformer block with the layer norm before (or after) attention and feed-forward."""

    def norm(t: Any) -> Any:
        return layers.LayerNormalization(epsilon=1e-5)(t)

    size = x.shape[-1]
    y = norm(x) if before else x
    y = layers.MultiHeadAttention(heads, size // heads)(y, y)
    x = layers.Add()([x, y]) if before else norm(layers.Add()([x, y]))
    y = norm(x) if before else x
    y = layers.Dense(size)(layers.Activation(activation)(layers.Dense(width)(y)))
    return layers.Add()([x, y]) if before else norm(layers.Add()([x, y]))


def model(inputs: Any, outputs: Any, name: str) -> keras.Model:
    """A Functional model of that name."""
    return keras.Model(inputs, outputs, name=name)

"""Small models that Keras 2 and Keras 3 build alike: each takes the `keras` to build with."""

from __future__ import annotations

from typing import Any


def digits_cnn(keras: Any) -> Any:
    """Three convolutions with batch norms, one of them depthwise: images of 8x8, ten classes."""
    layers = keras.layers
    inputs = x = keras.Input((8, 8, 1), name="image")
    for name, layer in (
        ("conv1", layers.Conv2D(16, 3, padding="same", use_bias=False, name="conv1")),
        ("depthwise2", layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise2")),
        ("conv3", layers.Conv2D(32, 3, strides=2, padding="same", use_bias=False, name="conv3")),
    ):
        x = layers.ReLU(name=f"{name}_relu")(layers.BatchNormalization(name=f"{name}_bn")(layer(x)))
    x = layers.Flatten(name="flatten")(layers.MaxPooling2D(name="pool")(x))
    return keras.Model(inputs, layers.Dense(10, activation="softmax", name="digit")(x), name="digits_cnn")


def digits_mobile(keras: Any) -> Any:
    """MobileNetV2's blocks, small: expanded, depthwise, narrow, with a residual; ReLU6."""
    layers = keras.layers

    def normed(x: Any, layer: Any, active: bool = True) -> Any:
        x = layers.BatchNormalization(name=f"{layer.name}_bn")(layer(x))
        return layers.ReLU(6.0, name=f"{layer.name}_relu6")(x) if active else x

    inputs = keras.Input((8, 8, 1), name="image")
    x = normed(inputs, layers.Conv2D(16, 3, padding="same", use_bias=False, name="stem"))
    for n, (width, stride) in enumerate(((16, 1), (24, 2), (24, 1), (32, 2), (32, 1))):
        block, narrow = x, x.shape[-1]
        x = normed(x, layers.Conv2D(4 * narrow, 1, use_bias=False, name=f"expand{n}"))
        depthwise = layers.DepthwiseConv2D(3, strides=stride, padding="same", use_bias=False, name=f"depthwise{n}")
        x = normed(x, depthwise)
        x = normed(x, layers.Conv2D(width, 1, use_bias=False, name=f"project{n}"), active=False)
        if stride == 1 and narrow == width:
            x = layers.Add(name=f"add{n}")([block, x])
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    return keras.Model(inputs, layers.Dense(10, activation="softmax", name="digit")(x), name="digits_mobile")


def digits_dense(keras: Any) -> Any:
    """Dense layers alone."""
    layers = keras.layers
    inputs = keras.Input((64,), name="pixels")
    x = layers.Dense(96, activation="relu", name="first")(inputs)
    x = layers.Dense(48, activation="relu", name="second")(x)
    return keras.Model(inputs, layers.Dense(10, activation="softmax", name="digit")(x), name="digits_dense")

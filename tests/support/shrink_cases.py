"""Small models in which channels run through every kind of layer, and the means to make some of them zero."""

from __future__ import annotations

import keras
import numpy as np
from enrolled import Cases, samples
from keras import layers

from kquant.shrink.channels import Channels, follow_channels
from kquant.views.flat_copy import plain, read

CASES = Cases()
case, made = CASES.case, CASES.made


def images(model: keras.Model, count: int = 8) -> list[np.ndarray]:
    """Few random samples, one array for each input."""
    return samples(model, count)


def _block(x: keras.KerasTensor, width: int, name: str, *, shortcut: bool = False) -> keras.KerasTensor:
    y = layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"{name}_1")(x)
    y = layers.ReLU()(layers.BatchNormalization()(y))
    y = layers.BatchNormalization()(layers.Conv2D(width, 3, padding="same", name=f"{name}_2")(y))
    x = layers.Conv2D(width, 1, name=f"{name}_shortcut")(x) if shortcut else x
    return layers.ReLU()(layers.Add()([x, y]))


@case
def residual() -> keras.Model:
    x = inputs = keras.Input((8, 8, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(6, 3, padding="same", name="stem")(x)))
    x = _block(_block(x, 6, "a"), 10, "b", shortcut=True)
    x = layers.GlobalAveragePooling2D()(layers.MaxPooling2D(2)(x))
    return keras.Model(inputs, layers.Dense(4, activation="softmax", name="head")(x))


@case
def concatenated() -> keras.Model:
    x = inputs = keras.Input((8, 8, 3))
    for i in range(3):
        y = layers.Conv2D(4, 3, padding="same", activation="relu", name=f"grow{i}")(x)
        x = layers.Concatenate()([x, layers.BatchNormalization()(y)])
    x = layers.AveragePooling2D(2)(layers.Conv2D(6, 1, name="squeeze")(x))
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(x)))


@case
def depthwise() -> keras.Model:
    x = inputs = keras.Input((9, 9, 3))
    x = layers.Conv2D(6, 3, strides=2, name="stem")(layers.ZeroPadding2D(1)(x))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", name="deep")(x)
    x = layers.Conv2D(8, 1, name="point")(layers.ReLU(6.0)(layers.BatchNormalization()(x)))
    x = layers.SeparableConv2D(7, 3, activation="relu", name="pair")(layers.Dropout(0.2)(x))
    x = layers.Conv2DTranspose(5, 2, strides=2, name="up")(layers.PReLU(shared_axes=[1, 2])(x))
    return keras.Model(inputs, layers.Conv2D(2, 1, name="head")(layers.Cropping2D(1)(x)))


@case
def squeezed() -> keras.Model:
    """Squeeze-excite, as EfficientNet and MobileNetV3 write it."""
    x = inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="swish", name="stem")(x)
    gate = layers.Reshape((1, 1, 8))(layers.GlobalAveragePooling2D()(x))
    gate = layers.Conv2D(4, 1, activation="swish", name="down")(gate)
    x = layers.Multiply()([x, layers.Conv2D(8, 1, activation="sigmoid", name="gate")(gate)])
    x = layers.Conv2D(5, 1, activation="relu", name="mix")(keras.ops.relu(x) + x)
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(x)))


@case
def shared() -> keras.Model:
    a, b = keras.Input((6, 6, 2), name="a"), keras.Input((6, 6, 2), name="b")
    stem, twin = layers.Conv2D(6, 3, name="stem"), layers.Conv2D(5, 1, activation="relu", name="twin")
    y = layers.Subtract()([twin(stem(a)), twin(stem(b))])
    return keras.Model([a, b], layers.Dense(3, name="head")(layers.Flatten()(y)))


@case
def one_dimension() -> keras.Model:
    x = inputs = keras.Input((16, 3))
    x = layers.Conv1D(8, 3, dilation_rate=2, padding="causal", name="causal")(x)
    x = layers.DepthwiseConv1D(3, padding="same", name="deep")(layers.LeakyReLU()(x))
    x = layers.SeparableConv1D(6, 3, name="pair")(x)
    x = layers.MaxPooling1D(2)(layers.Conv1D(7, 1, name="point")(x))
    x = layers.Dense(5, activation="tanh", name="each")(x)
    return keras.Model(inputs, layers.Dense(2, name="head")(layers.Flatten()(x)))


def channels_of(model: keras.Model) -> Channels:
    """Of a copy of the model."""
    return follow_channels(read(plain(model)))


def silence(channels: Channels, seed: int = 0) -> np.ndarray:
    """Make a random half of the channels that may leave zero; bool[channels], those that stay.

    A silent channel is 0 behind every kernel and every batch norm.
    """
    rng, kept = np.random.default_rng(seed), np.ones(channels.count, bool)
    for _, members in channels.groups():
        free = [int(c) for c in members if int(c) not in channels.fixed]
        kept[rng.permutation(free)[: min(len(free) // 2, len(members) - 1)].astype(int)] = False
    for site in channels.sites:
        if site.maker:
            weights, silent = site.weights, ~kept[site.makes]
            kernel = getattr(site.op, weights.kernel)
            values = np.moveaxis(kernel.numpy(), weights.channel_axes[0], -1)
            kernel.assign(np.moveaxis(np.where(silent, 0.0, values), -1, weights.channel_axes[0]))
        for variable in getattr(site.op, "variables", ()):
            if variable.name in ("bias", "gamma", "beta") and not np.all(kept[site.makes]):
                variable.assign(np.where(kept[site.makes], variable.numpy(), 0.0))
    return kept

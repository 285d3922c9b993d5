"""Speech, text and signals."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers

from benchmarks.zoo.blocks import conv, encoder, inverted_residual, model


def deepspeech2(frames: int = 64, bands: int = 40, letters: int = 12, units: int = 24) -> keras.Model:
    """DeepSpeech2 (Amodei et al. 2016): convolutions over time and frequency, bidirectional GRUs, letters for CTC."""
    sound = keras.Input((frames, bands, 1))
    x = sound
    for filters, kernel, strides in ((8, (11, 11), (2, 2)), (8, (11, 7), (1, 2))):
        x = layers.Conv2D(filters, kernel, strides, padding="same", use_bias=False)(x)
        x = layers.ReLU(20.0)(layers.BatchNormalization()(x))
    x = layers.Reshape((x.shape[1], x.shape[2] * x.shape[3]))(x)
    for _ in range(2):
        x = layers.Bidirectional(layers.GRU(units, return_sequences=True))(x)
        x = layers.BatchNormalization()(x)
    x = layers.ReLU()(layers.Dense(2 * units)(x))
    return model(sound, layers.Dense(letters + 1, activation="softmax")(x), "deepspeech2")


def crnn(width: int = 64, height: int = 16, letters: int = 10, units: int = 24) -> keras.Model:
    """CRNN (Shi et al. 2017): convolutions that flatten the height, bidirectional LSTMs over the width."""
    image = keras.Input((height, width, 1))
    x = layers.MaxPooling2D(2)(conv(layers.Rescaling(1 / 255)(image), 16))
    x = layers.MaxPooling2D(2)(conv(x, 32))
    x = conv(layers.MaxPooling2D((2, 1))(conv(x, 32)), 48)
    x = layers.Permute((2, 1, 3))(x)
    x = layers.Reshape((x.shape[1], x.shape[2] * x.shape[3]))(x)
    for _ in range(2):
        x = layers.Bidirectional(layers.LSTM(units, return_sequences=True))(x)
    return model(image, layers.Dense(letters + 1, activation="softmax")(x), "crnn")


def whisper_encoder(frames: int = 64, bands: int = 40, size: int = 48, blocks: int = 2) -> keras.Model:
    """Whisper's audio encoder (Radford et al. 2023): two convolutions, sinusoids, blocks with the norm before."""
    sound = keras.Input((frames, bands))
    x = layers.Conv1D(size, 3, padding="same", activation="gelu")(sound)
    x = layers.Conv1D(size, 3, 2, padding="same", activation="gelu")(x)
    waves = np.arange(x.shape[1])[:, None] / 10_000 ** (np.arange(size // 2)[None] / (size // 2 - 1))
    x = x + np.concatenate([np.sin(waves), np.cos(waves)], 1).astype("float32")
    for _ in range(blocks):
        x = encoder(x, 4, 4 * size)
    return model(sound, layers.LayerNormalization()(x), "whisper_encoder")


def mobile_bert(length: int = 32, words: int = 200, size: int = 48, narrow: int = 32, blocks: int = 2) -> keras.Model:
    """MobileBERT (Sun et al. 2020): bottlenecks, stacked feed-forwards, scale and shift in place of layer norms."""
    tokens = keras.Input((length,), dtype="int32")
    x: Any = layers.Embedding(words, size)(tokens)
    x = x + layers.Embedding(length, size)(np.arange(length)[None])

    def no_norm(t: Any) -> Any:
        return layers.Normalization(mean=np.zeros(t.shape[-1]), variance=np.ones(t.shape[-1]))(t)

    for _ in range(blocks):
        y = no_norm(layers.Dense(narrow)(x))
        y = no_norm(layers.Add()([y, layers.MultiHeadAttention(4, narrow // 4)(y, y)]))
        for _ in range(2):
            y = no_norm(layers.Add()([y, layers.Dense(narrow)(layers.Dense(4 * narrow, activation="relu")(y))]))
        x = no_norm(layers.Add()([x, layers.Dense(size)(y)]))
    return model(tokens, layers.Dense(4, activation="softmax")(x[:, 0]), "mobile_bert")


def mobile_vit(side: int = 64, classes: int = 4) -> keras.Model:
    """MobileViT (Mehta and Rastegari 2022): patches unfolded, a transformer over them, folded back."""
    image = keras.Input((side, side, 3))
    x = conv(layers.Rescaling(1 / 255)(image), 8, 3, 2, "silu")
    x = inverted_residual(inverted_residual(x, 16, 2, 2), 24, 2, 2)
    for size in (32, 48):
        height, width, channels = x.shape[1:]
        y = layers.Conv2D(size, 1)(conv(x, channels, activation="silu"))
        y = layers.Reshape((height // 2, 2, width // 2, 2, size))(y)
        y = layers.Reshape((4, height * width // 4, size))(layers.Permute((2, 4, 1, 3, 5))(y))
        for _ in range(2):
            y = encoder(y, 4, 2 * size, "silu")
        y = layers.Reshape((2, 2, height // 2, width // 2, size))(layers.LayerNormalization()(y))
        y = layers.Reshape((height, width, size))(layers.Permute((3, 1, 4, 2, 5))(y))
        y = layers.Concatenate()([x, conv(y, channels, 1, activation="silu")])
        x = inverted_residual(conv(y, channels, activation="silu"), channels + 8, 2, 2)
    x = layers.GlobalAveragePooling2D()(conv(x, 64, 1, activation="silu"))
    return model(image, layers.Dense(classes, activation="softmax")(x), "mobile_vit")


def eegnet(channels: int = 16, samples: int = 128, classes: int = 4) -> keras.Model:
    """EEGNet (Lawhern et al. 2018): filters over time, over electrodes, separable ones."""
    signal = keras.Input((channels, samples, 1))
    x = layers.Conv2D(8, (1, 32), padding="same", use_bias=False)(signal)
    x = layers.BatchNormalization()(x)
    x = layers.DepthwiseConv2D((channels, 1), depth_multiplier=2, use_bias=False)(x)
    x = layers.Activation("elu")(layers.BatchNormalization()(x))
    x = layers.Dropout(0.25)(layers.AveragePooling2D((1, 4))(x))
    x = layers.SeparableConv2D(16, (1, 16), padding="same", use_bias=False)(x)
    x = layers.Activation("elu")(layers.BatchNormalization()(x))
    x = layers.Flatten()(layers.AveragePooling2D((1, 8))(x))
    return model(signal, layers.Dense(classes, activation="softmax")(x), "eegnet")


def tcn(steps: int = 64, features: int = 12, classes: int = 4) -> keras.Model:
    """Temporal convolutional network (Bai et al. 2018): causal dilated convolutions with residuals."""
    series = keras.Input((steps, features))
    x = series
    for dilation in (1, 2, 4, 8):
        y = x
        for _ in range(2):
            y = layers.Conv1D(24, 3, padding="causal", dilation_rate=dilation, activation="relu")(y)
            y = layers.SpatialDropout1D(0.1)(y)
        x = layers.ReLU()(layers.Add()([y, layers.Conv1D(24, 1)(x)]))
    return model(series, layers.Dense(classes, activation="softmax")(x[:, -1]), "tcn")


def recommender(users: int = 100, items: int = 200, size: int = 16) -> keras.Model:
    """Two embeddings, their product and a perceptron over both (He et al. 2017)."""
    user, item = keras.Input((1,), dtype="int32"), keras.Input((1,), dtype="int32")
    u = layers.Flatten()(layers.Embedding(users, size)(user))
    v = layers.Flatten()(layers.Embedding(items, size)(item))
    x = layers.Dense(16, activation="relu")(layers.Dense(32, activation="relu")(layers.Concatenate()([u, v])))
    joined = layers.Concatenate()([layers.Multiply()([u, v]), x])
    return model([user, item], layers.Dense(1, activation="sigmoid")(joined), "recommender")

"""Models that people train themselves: a DS-CNN, a CNN-LSTM and a small Conformer on spoken digits, a vision
transformer on CIFAR-10. Trained here in float, quantized after training, and judged on every runtime of the target.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

import kquant
from benchmarks.assets import loader
from benchmarks.choice import one_of

layers = keras.layers
CALIBRATION, BATCH = 200, 32


def ds_cnn() -> keras.Model:
    """Depthwise-separable network of MLPerf Tiny's keyword spotting, on a 49 x 40 spectrogram."""
    x = inputs = keras.Input((49, 40, 1), name="spectrogram")
    x = layers.Conv2D(48, (10, 4), strides=2, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    for _ in range(3):
        x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
        x = layers.Conv2D(48, 1, use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    x = layers.GlobalAveragePooling2D()(layers.Dropout(0.2)(x))
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(x), name="ds_cnn")


def cnn_lstm() -> keras.Model:
    """A convolution that halves time, then two LSTMs."""
    x = inputs = keras.Input((49, 40, 1), name="spectrogram")
    x = layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    x = layers.Conv2D(16, 3, strides=(1, 2), padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    x = layers.Reshape((25, 160))(x)
    x = layers.LSTM(48, return_sequences=True)(x)
    x = layers.LSTM(32)(layers.Dropout(0.2)(x))
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(x), name="cnn_lstm")


def _feed_forward(x: Any, width: int) -> Any:
    y = layers.LayerNormalization()(x)
    y = layers.Dense(4 * width, activation="swish")(y)
    y = layers.Dense(width)(layers.Dropout(0.1)(y))
    return layers.Add()([x, layers.Rescaling(0.5)(y)])


def _conformer_block(x: Any, width: int, heads: int) -> Any:
    """Gulati et al., arXiv:2005.08100: half a feed-forward layer, attention, convolution, half a feed-forward layer."""
    x = _feed_forward(x, width)
    y = layers.LayerNormalization()(x)
    x = layers.Add()([x, layers.MultiHeadAttention(heads, width // heads)(y, y)])
    y = layers.LayerNormalization()(x)
    gate = layers.Dense(width, activation="sigmoid")(y)
    y = layers.Multiply()([layers.Dense(width)(y), gate])
    y = layers.DepthwiseConv1D(7, padding="same", use_bias=False)(y)
    y = layers.Dense(width)(layers.Activation("swish")(layers.BatchNormalization(momentum=0.9)(y)))
    x = _feed_forward(layers.Add()([x, y]), width)
    return layers.LayerNormalization()(x)


def conformer() -> keras.Model:
    """Two blocks of width 48 over 25 frames."""
    x = inputs = keras.Input((49, 40, 1), name="spectrogram")
    x = layers.Conv2D(12, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.Dense(48)(layers.Reshape((25, 240))(x))
    for _ in range(2):
        x = _conformer_block(x, 48, 4)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(x), name="conformer")


@keras.saving.register_keras_serializable(package="benchmarks")
class Positions(keras.layers.Layer):
    """Learned positions, as a user writes them."""

    def build(self, shape: Any) -> None:
        """One vector for each token."""
        self.table = self.add_weight(name="table", shape=shape[1:], initializer="random_normal")

    def call(self, x: Any) -> Any:
        """Add them."""
        return x + self.table


def vit() -> keras.Model:
    """Four pre-norm blocks of width 64 on 4 x 4 patches."""
    x = inputs = keras.Input((32, 32, 3), name="image")
    x = layers.Rescaling(1 / 127.5, -1.0)(x)
    x = layers.Conv2D(64, 4, strides=4)(x)
    x = Positions()(layers.Reshape((64, 64))(x))
    for _ in range(4):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(4, 16)(y, y)])
        y = layers.Dense(128, activation="gelu")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(64)(y)])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(x), name="vit")


MODELS: dict[str, tuple[Callable[[], keras.Model], int]] = {  # and epochs
    "ds_cnn": (ds_cnn, 15),
    "cnn_lstm": (cnn_lstm, 20),
    "conformer": (conformer, 20),
    "vit": (vit, 12),
}


def data(name: str) -> tuple[Any, Any]:
    """((images, labels) to train with, (images, labels) to judge with)."""
    assets = loader()
    if name == "vit":
        (x, y), (u, v) = assets.cifar10_train(), assets.cifar10_test()
        return (np.float32(x), y), (np.float32(u[:2000]), v[:2000])
    (x, y), (u, v) = assets.spoken_digits()
    mean, deviation = x.mean(), x.std()
    return ((x[..., None] - mean) / deviation, y), ((u[..., None] - mean) / deviation, v)


def trained(name: str, cache: Path) -> keras.Model:
    """The float model, trained once for each cache folder."""
    path = cache / f"{name}.keras"
    if path.is_file():
        return keras.saving.load_model(path)
    build, epochs = MODELS[name]
    keras.utils.set_random_seed(0)
    (x, y), _ = data(name)
    model = build()
    steps = epochs * len(x) // BATCH
    rate = keras.optimizers.schedules.CosineDecay(0.0, steps, warmup_target=2e-3, warmup_steps=steps // 10)
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=2)
    model.save(path)
    return model


def judge(name: str, recipe: str, target: str, cache: Path, epochs: int) -> None:
    """One model in one format on one target."""
    model = trained(name, cache)
    (x, y), (u, v) = data(name)
    started = time.perf_counter()
    q = kquant.calibrate(kquant.quantize(model, recipe, target=target), x[:CALIBRATION], verbose=False)
    if epochs:
        q.compile(keras.optimizers.Adam(1e-4), "sparse_categorical_crossentropy")
        q.fit(x, y, batch_size=64, epochs=epochs, verbose=0)
    path = cache / f"{name}-{recipe}-{target}.tflite"
    report = kquant.export(q, path, data=u[:16])
    seconds = time.perf_counter() - started
    wanted = model.predict(u, verbose=0)
    rows = {"float": wanted, "simulated": q.predict(u, verbose=0)}
    for found in report.verification:
        rows[found.runtime] = kquant.predict(path, u, runtime=found.runtime)
    accuracies = ", ".join(f"{label} {100 * np.mean(p.argmax(1) == v):.2f}" for label, p in rows.items())
    choice = rows["simulated"].argmax(1)
    agree = {f.runtime: float(np.mean(rows[f.runtime].argmax(1) == choice)) for f in report.verification}
    print(
        f"{name} {recipe} for {target}{f', {epochs} epochs of QAT' if epochs else ''}: accuracy {accuracies} "
        f"(n={len(v)}); argmax = simulation {agree}; {report.file_bytes:,} bytes, arena {report.arena_bytes}, "
        f"{sum(report.operators.values())} operators, {seconds:.0f} s",
        flush=True,
    )


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", type=one_of(MODELS), default=list(MODELS))
    parser.add_argument("--recipes", nargs="*", default=["int8", "int16x8"])
    parser.add_argument("--targets", nargs="*", default=["litert", "tflm"])
    parser.add_argument("--epochs", type=int, default=0, help="of quantization-aware training")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "kquant-trained")
    arguments = parser.parse_args()
    arguments.cache.mkdir(exist_ok=True)
    for name in arguments.models:
        for recipe in arguments.recipes:
            for target in arguments.targets:
                judge(name, recipe, target, arguments.cache, arguments.epochs)


if __name__ == "__main__":
    main()

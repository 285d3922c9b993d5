"""Write the models of this folder: `python tests/saved/write.py` with the version whose files are to be kept.

The files stay as they are when kquant changes; `test_saved_models.py` loads them with the kquant of the day. Run this
only to add files of a newer version, into a folder of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from keras import layers

import kquant

HERE = Path(__file__).parent


def image_model() -> keras.Model:
    x = keras.Input((8, 8, 3), name="image")
    y = layers.BatchNormalization(name="norm")(layers.Conv2D(4, 3, use_bias=False, name="conv")(x))
    y = layers.DepthwiseConv2D(3, activation="relu6", name="depth")(layers.ReLU(name="relu")(y))
    return keras.Model(x, layers.Dense(3, "softmax", name="head")(layers.GlobalAveragePooling2D(name="pool")(y)))


def int8_tflm() -> keras.Model:
    model = image_model()
    return kquant.calibrate(kquant.quantize(model, target="tflm"), samples(model), verbose=False)


def int8_trained() -> keras.Model:
    model = image_model()
    q = kquant.calibrate(kquant.quantize(model), samples(model), verbose=False)
    q.compile("adam", "mse")
    q.fit(samples(model), np.zeros((32, 3), np.float32), batch_size=8, verbose=0)
    return q


def int4_learned() -> keras.Model:
    model = image_model()
    return kquant.calibrate(kquant.quantize(model, "int4-qat"), samples(model), verbose=False)


def live_norm() -> keras.Model:
    model = image_model()
    recipe = {"name": "live", "training": {"batch_norm": "live"}}
    return kquant.calibrate(kquant.quantize(model, recipe), samples(model), verbose=False)


def corrected() -> keras.Model:
    model = image_model()
    q = kquant.calibrate(kquant.quantize(model), samples(model), verbose=False)
    q = kquant.correct_bias(q, samples(model), verbose=False)
    return kquant.adaround(q, samples(model), iterations=4, verbose=False)


def pruned_float() -> keras.Model:
    return kquant.cluster(kquant.prune(image_model(), 0.5), 4)


def pruned_int8() -> keras.Model:
    model = image_model()
    return kquant.calibrate(kquant.quantize(kquant.cluster(kquant.prune(model, 0.5), 4)), samples(model), verbose=False)


def lstm_int16x8() -> keras.Model:
    x = keras.Input((6, 3), name="steps")
    y = layers.LSTM(4, return_sequences=True, name="first")(x)
    model = keras.Model(x, layers.Dense(2, name="head")(layers.LSTM(3, name="second")(y)))
    return kquant.calibrate(kquant.quantize(model, "int16x8", target="tflm"), samples(model), verbose=False)


def gru_int8() -> keras.Model:
    x = keras.Input((3, 2), name="steps")
    model = keras.Model(x, layers.Dense(2, name="head")(layers.GRU(2, name="gru")(x)))
    return kquant.calibrate(kquant.quantize(model), samples(model), verbose=False)


def attention_int8() -> keras.Model:
    x = keras.Input((4, 8), name="tokens")
    y = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    y = layers.LayerNormalization(name="norm")(layers.Add(name="sum")([x, y]))
    model = keras.Model(x, layers.Dense(2, "gelu", name="head")(layers.Flatten(name="flat")(y)))
    return kquant.calibrate(kquant.quantize(model), samples(model), verbose=False)


def embedded_dynamic() -> keras.Model:
    x = keras.Input((4,), dtype="int32", name="words")
    y = layers.GlobalAveragePooling1D(name="mean")(layers.Embedding(9, 5, name="table")(x))
    return kquant.quantize(keras.Model(x, layers.Dense(2, name="head")(y)), "dynamic-int8")


WRITERS: tuple[Callable[[], keras.Model], ...] = (
    int8_tflm,
    int8_trained,
    int4_learned,
    live_norm,
    corrected,
    pruned_float,
    pruned_int8,
    lstm_int16x8,
    gru_int8,
    attention_int8,
    embedded_dynamic,
)


def samples(model: keras.Model, count: int = 32) -> np.ndarray:
    """Inputs for a model, the same ones each time."""
    rng = np.random.default_rng(5)
    port = model.inputs[0]
    if port.dtype.startswith("int"):
        return rng.integers(0, 9, (count, *port.shape[1:])).astype(port.dtype)
    return rng.normal(size=(count, *port.shape[1:])).astype(np.float32)


def main(folder: Path) -> None:
    outputs = {}
    for write in WRITERS:
        keras.utils.set_random_seed(3)
        model = write()
        model.save(folder / f"{write.__name__}.keras")
        outputs[write.__name__] = model.predict(samples(model), verbose=0)
    np.savez_compressed(folder / "outputs.npz", **outputs)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)

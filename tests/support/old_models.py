"""Make `tests/migrate/golden`: files of Keras 2 and tfmot, and what `tf_keras_reader.py` finds in them.

    old-env/bin/python tests/support/old_models.py      # with tf_keras 2.21, tensorflow-model-optimization 0.8.1

Small models of each kind, trained for some hundred steps, so that ranges and outputs mean something. A folder of the
result is a dump (`model.json`, `arrays.npz`: weights, samples and tf_keras' outputs of them, versions inside).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import h5py
import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from tensorflow_model_optimization.python.core.clustering.keras.experimental import cluster
from tensorflow_model_optimization.python.core.quantization.keras.experimental.default_n_bit import (
    default_n_bit_quantize_scheme,
)
from tf_keras.src.saving import serialization_lib

L, Q, S = keras.layers, tfmot.quantization.keras, tfmot.experimental.combine
ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/migrate/golden"
READER = ROOT / "kquant/migrate/tf_keras_reader.py"
FILES = ("sequential", "lambda", "custom", "qat", "cqat", "separable")  # the old file itself is kept, too
CLASSES = 3


class Mine(L.Layer):
    """A custom layer."""

    def __init__(self, units=3, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, shape):
        self.w = self.add_weight("w", (shape[-1], self.units))

    def call(self, x):
        return x @ self.w

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def shaken(model):
    """Weights that are not those of the initializers: zeros and ones would hide what is not brought over."""
    for i, v in enumerate(model.weights):
        if v.dtype.is_floating and "variance" not in v.name:
            v.assign(v + 0.1 * np.random.default_rng(i).normal(size=v.shape))
    return model


def trained(model, epochs=30, callbacks=()):
    """Fitted to classes that are there."""
    shape = tuple(model.input_shape[1:])
    y = np.arange(96) % CLASSES
    rng = np.random.default_rng(9)
    x = np.float32(rng.normal(size=(CLASSES, *shape))[y] + rng.normal(size=(96, *shape)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits="softmax" not in str(model.layers[-1].get_config()))
    model.compile(keras.optimizers.Adam(3e-3), loss)
    model.fit(x, y, batch_size=8, epochs=epochs, verbose=0, callbacks=list(callbacks))
    return model


def cnn():
    image = L.Input((12, 12, 3), name="image")
    x = L.Conv2D(4, 3, padding="same", use_bias=False)(image)
    x = L.ReLU(6.0)(L.BatchNormalization()(x))
    x = L.DepthwiseConv2D(3, strides=2, padding="same", activation="relu")(x)
    x = L.LeakyReLU(0.2)(L.SeparableConv2D(6, 3, padding="same")(x))
    y = L.AveragePooling2D()(L.Conv2DTranspose(4, 3, strides=2, padding="same")(x))
    x = L.PReLU(shared_axes=[1, 2])(L.LayerNormalization()(L.Concatenate()([x, y])))
    x = L.GroupNormalization(2)(L.SpatialDropout2D(0.1)(L.UpSampling2D(interpolation="bilinear")(x)))
    x = L.Dense(5, activation="hard_sigmoid")(L.GlobalAveragePooling2D()(x))
    return shaken(keras.Model(image, L.Dense(3, activation="softmax", name="head")(x), name="cnn"))


def rnn():
    tokens = L.Input((7,), dtype="int32", name="tokens")
    x = L.Bidirectional(L.LSTM(4, return_sequences=True))(L.Embedding(10, 6, input_length=7)(tokens))
    x = L.TimeDistributed(L.Dense(4, activation="tanh"))(L.GRU(5, return_sequences=True)(x))
    x = L.SimpleRNN(4, return_sequences=True)(L.Conv1D(4, 3, padding="causal")(x))
    x = L.RNN([L.LSTMCell(3), L.LSTMCell(4)], return_sequences=True)(x)
    x = L.Flatten()(L.MaxPooling1D()(L.MultiHeadAttention(2, 3)(x, x)))
    return shaken(keras.Model(tokens, L.Dense(2)(x), name="rnn"))


def ops():
    """Functions of TensorFlow between layers, and an LSTM that has the steps first."""
    steps = L.Input((6, 3), name="steps")
    x = 2.0 * (tf.nn.relu(steps) / 255.0 + 1.0)
    y = x[:, 1:, :]
    z = L.LSTM(4, time_major=True, return_sequences=True, name="memory")(tf.transpose(x, [1, 0, 2]))
    z = tf.concat([tf.transpose(z, [1, 0, 2]), x], axis=-1)
    w = tf.reshape(tf.reduce_mean(z, axis=1), [-1, 7, 1])
    w = L.MultiHeadAttention(2, 3, name="attention")(w, value=w)
    w = L.Flatten()(tf.nn.silu(tf.squeeze(tf.expand_dims(w, 2), axis=2)))
    return shaken(keras.Model([steps], [w, tf.reduce_max(y, axis=[1, 2])], name="ops"))


def nested():
    inner = keras.Sequential([L.Dense(3, input_shape=(4,), name="a"), L.BatchNormalization(name="bn")], name="inner")
    block = keras.Model(inner.input, L.Dense(4)(inner.output), name="block")
    x = L.Input((4,), name="x")
    y = block(block(x))
    return shaken(keras.Model(x, [L.Add()([y, x]), y], name="nested"))


def norm():
    statistics = L.Normalization()
    statistics.adapt(np.float32(np.random.default_rng(0).normal(2, 3, size=(50, 4))))
    stack = [L.Input((4,)), statistics, L.Dense(3, activation="swish"), L.Activation("hard_sigmoid")]
    return shaken(keras.Sequential(stack, name="norm"))


def sequential():
    stack = [L.Rescaling(1 / 255.0, input_shape=(8, 8, 1)), L.Conv2D(2, 3), L.BatchNormalization()]
    return shaken(keras.Sequential([*stack, L.ThresholdedReLU(0.1), L.Flatten(), L.Dense(2)], name="sequential"))


def small():
    stack = [L.Conv2D(4, 3, input_shape=(8, 8, 1), name="c1", activation="relu")]
    stack += [L.Conv2D(6, 3, name="c2", activation="relu"), L.Flatten(name="flat")]
    return keras.Sequential([*stack, L.Dense(3, activation="softmax", name="head")], name="small")


def qat():
    """What the scheme has a pattern for."""
    stack = [L.Conv2D(4, 3, use_bias=False, input_shape=(8, 8, 1), name="conv"), L.BatchNormalization(name="norm")]
    stack += [L.ReLU(name="relu"), L.DepthwiseConv2D(3, name="dw", activation="relu"), L.Flatten(name="flat")]
    return trained(Q.quantize_model(keras.Sequential([*stack, L.Dense(3, activation="softmax", name="head")])))


def qat_graph():
    image = L.Input((12, 12, 3), name="image")
    x = L.ReLU(name="r1")(
        L.BatchNormalization(name="b1")(L.Conv2D(4, 3, padding="same", use_bias=False, name="c1")(image))
    )
    y = L.BatchNormalization(name="b2")(L.DepthwiseConv2D(3, padding="same", name="d1")(x))
    y = L.Conv2D(4, 1, name="c2")(L.ReLU(6.0, name="r2")(y))
    x = L.Activation("relu", name="ar")(L.Add(name="add")([x, y]))
    x = L.Concatenate(name="cat")([x, L.SeparableConv2D(4, 3, padding="same", name="sep", activation="relu")(x)])
    x = L.AveragePooling2D(name="ap")(L.MaxPooling2D(name="mp")(x))
    x = L.UpSampling2D(name="up")(L.Conv2DTranspose(4, 3, strides=2, padding="same", name="tr", activation="relu")(x))
    x = L.Activation("relu6", name="r6")(L.Conv2D(6, 3, name="c3")(x))
    x = L.Dense(3, name="head")(L.Dropout(0.1, name="dr")(L.GlobalAveragePooling2D(name="gap")(x)))
    return trained(Q.quantize_model(keras.Model(image, x, name="qat_graph")))


def qat_dense():
    """tfmot's own converter leaves floats in this one: Dense + BatchNormalization."""
    stack = [L.Dense(8, input_shape=(6,), name="a"), L.BatchNormalization(name="bn"), L.ReLU(name="r")]
    stack += [L.Dense(5, activation="tanh", name="t"), L.Dense(5, activation="sigmoid", name="s")]
    return trained(
        Q.quantize_model(keras.Sequential([*stack, L.Dense(4, activation="gelu", name="g"), L.Dense(3, name="o")]))
    )


def partial():
    """Two layers are annotated."""
    stack = [L.Conv2D(4, 3, input_shape=(8, 8, 1), name="c1", activation="relu")]
    stack += [Q.quantize_annotate_layer(L.Conv2D(6, 3, name="c2", activation="relu")), L.Flatten(name="flat")]
    return trained(Q.quantize_apply(keras.Sequential([*stack, Q.quantize_annotate_layer(L.Dense(3, name="head"))])))


def nbit():
    scheme = default_n_bit_quantize_scheme.DefaultNBitQuantizeScheme(num_bits_weight=4, num_bits_activation=8)
    return trained(Q.quantize_apply(Q.quantize_annotate_model(small()), scheme))


def pruned():
    schedule = tfmot.sparsity.keras.ConstantSparsity(0.5, 0, frequency=1)
    model = tfmot.sparsity.keras.prune_low_magnitude(trained(small(), 5), schedule)
    return trained(model, 5, [tfmot.sparsity.keras.UpdatePruningStep()])


def clustered(**options):
    init = tfmot.clustering.keras.CentroidInitialization.KMEANS_PLUS_PLUS
    base = small()
    base.set_weights(
        tfmot.sparsity.keras.strip_pruning(pruned()).get_weights() if options else trained(small(), 5).get_weights()
    )
    return trained(cluster.cluster_weights(base, 8, cluster_centroids_init=init, **options), 5)


def inside(change, callbacks=()):
    """A model in a model, whose layers `change` wraps all the same."""
    image = L.Input((8, 8, 1), name="image")
    body = keras.Sequential([L.Conv2D(4, 3, name="c1", activation="relu"), L.Flatten(name="flat")], name="body")
    return trained(change(keras.Model(image, L.Dense(3, activation="softmax", name="head")(body(image)))), 5, callbacks)


def pruned_inside():
    schedule = tfmot.sparsity.keras.ConstantSparsity(0.5, 0, frequency=1)
    steps = [tfmot.sparsity.keras.UpdatePruningStep()]
    return inside(lambda model: tfmot.sparsity.keras.prune_low_magnitude(model, schedule), steps)


def clustered_inside():
    init = tfmot.clustering.keras.CentroidInitialization.KMEANS_PLUS_PLUS
    return inside(lambda model: cluster.cluster_weights(model, 8, cluster_centroids_init=init))


def separable():
    """tfmot makes two Lambdas of it, which tf_keras 2.21 runs only where it is told to."""
    serialization_lib.enable_unsafe_deserialization()
    signal = L.Input((16, 3), name="signal")
    x = L.SeparableConv1D(8, 3, padding="same", activation="relu", name="sep")(signal)
    return trained(Q.quantize_model(keras.Model(signal, L.Dense(3, name="head")(L.Flatten(name="flat")(x)))))


def applied(model, scheme):
    return trained(Q.quantize_apply(Q.quantize_annotate_model(model), scheme))


def pqat():
    return applied(tfmot.sparsity.keras.strip_pruning(pruned()), S.Default8BitPrunePreserveQuantizeScheme())


def cqat():
    return applied(
        tfmot.clustering.keras.strip_clustering(clustered()), S.Default8BitClusterPreserveQuantizeScheme(False)
    )


MODELS = {
    **{f.__name__: f for f in (cnn, rnn, ops, nested, norm, sequential, qat, qat_graph, qat_dense, partial, nbit)},
    **{f.__name__: f for f in (pruned, clustered, pqat, cqat, pruned_inside, clustered_inside, separable)},
    "pruned_clustered": lambda: clustered(preserve_sparsity=True),
    "lambda": lambda: shaken(
        keras.Sequential([L.Input((4,)), L.Lambda(lambda x: x * 2, name="twice"), L.Dense(2, name="head")])
    ),
    "custom": lambda: shaken(keras.Sequential([L.Input((4,)), Mine(name="mine"), L.Dense(2, name="head")])),
}


def without_shapes(file: Path) -> None:
    """A `.keras` file as `kquant.migrate.old_files` copies it: tf_keras cannot load tfmot's own otherwise."""

    def plain(value):
        if isinstance(value, list):
            return [plain(each) for each in value]
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items() if key != "build_config"}
        return value

    with zipfile.ZipFile(file) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    held["config.json"] = json.dumps(plain(json.loads(held["config.json"]))).encode()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in held.items():
            archive.writestr(name, content)


def without_bytecode(file: Path) -> None:
    """A Lambda of a golden file keeps its place only: bytecode tells where on a disk it was compiled."""
    whole = Path(shutil.move(file, file.with_suffix(".whole")))
    with h5py.File(whole) as old, h5py.File(file, "w") as new:  # changed in place, it would keep the old text's bytes
        for name in old:
            old.copy(name, new)
        new.attrs.update(old.attrs)
        config = json.loads(old.attrs["model_config"])
        for entry in config["config"]["layers"]:
            inner = entry["config"].get("layer", entry)
            if inner["class_name"] == "Lambda":
                inner["config"]["function"] = ["", None, None]
        new.attrs["model_config"] = json.dumps(config)
    whole.unlink()


def dumped(name: str, model) -> None:
    """The old file where it is kept, and a dump where tf_keras can load what it saved."""
    with tempfile.TemporaryDirectory() as made:
        # a quantized model that tfmot saves as .keras it cannot load; the reader can. CQAT: the same, less its codebook
        file = Path(made) / f"{name}.{'keras' if name == 'cqat' else 'h5'}"
        model.save(file, **({} if name == "cqat" else {"include_optimizer": False}))
        if name == "cqat":
            without_shapes(file)
        if name in FILES:
            model.save(GOLDEN / f"{name}.h5", include_optimizer=False)
        if name in ("lambda", "custom", "separable"):  # whose code nobody runs
            shape = (4, *model.input_shape[1:])
            x = np.float32(np.eye(4) if len(shape) == 2 else np.random.default_rng(0).normal(size=shape))
            np.savez(GOLDEN / f"{name}.npz", x=x, y=np.asarray(model(x)))
            without_bytecode(GOLDEN / f"{name}.h5")
            return
        folder = GOLDEN / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        subprocess.run([sys.executable, str(READER), "file", str(file), str(folder), str(10**7)], check=True)


def main() -> None:
    for name in sys.argv[1:] or MODELS:
        keras.backend.clear_session()
        keras.utils.set_random_seed(0)
        dumped(name, MODELS[name]())
        print(name, flush=True)


if __name__ == "__main__":
    main()

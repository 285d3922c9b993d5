"""Weight sharing: shared values in training, in a saved model, through folding, quantization and in the file."""

from __future__ import annotations

import keras
import new_process
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

import kquant
from kquant.graph.keras_private import every_layer, projection
from kquant.layers.kernel import holders
from kquant.layers.nodes import Compressed, Transformed
from kquant.layers.transform import Held, kernel_at
from kquant.masking.codebook import Codebook, look_up, places

pytestmark = pytest.mark.filterwarnings(
    "ignore:.* every weight is 0",
    r"ignore:.* the weights of \d+ of its \d+ output channels are all 0",
    r"ignore:calibrate. \d+ samples are few",
    "ignore:calibrate. tensors of very different ranges share",
    "ignore:cluster. left as they are",
    "ignore:quantize. the masks and codebooks of",
)

layers = keras.layers
SHARING = [False, True, "scale"]


def book(shape, clusters=5, **options):
    weights = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    made = Codebook(clusters, **options)
    made.build(shape)
    made.start(tf.constant(weights))
    return made, weights


# Indices and gradients of tensorflow/model-optimization, clustering/keras/clustering_registry_test.py (Apache-2.0).
CHANNEL_TABLE = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
CHANNEL_WEIGHTS = np.array([[[[1.1, 3.2, 5.2]], [[2.0, 4.1, 5.2]]], [[[2.1, 2.0, 6.1]], [[1.0, 5.0, 5.0]]]])
CHANNEL_INDICES = np.array([[[[0, 0, 0]], [[1, 1, 0]]], [[[1, 0, 1]], [[0, 1, 0]]]])


def test_indices_are_tfmots():
    found = places(tf.constant(CHANNEL_WEIGHTS.reshape(-1, 3).T, tf.float32), tf.constant(CHANNEL_TABLE))
    np.testing.assert_array_equal(found.numpy(), CHANNEL_INDICES.reshape(-1, 3).T)


@pytest.mark.parametrize(
    ("mean", "table", "weights", "expected"),
    [
        (False, CHANNEL_TABLE, CHANNEL_WEIGHTS.reshape(-1, 3).T, [[2, 2], [2, 2], [3, 1]]),
        (True, CHANNEL_TABLE, CHANNEL_WEIGHTS.reshape(-1, 3).T, [[1, 1], [1, 1], [1, 1]]),
        (False, [[0.0, 3.0]], [[0.1] * 3 + [3.0] * 3 + [0.2] * 3], [[6, 3]]),
        (True, [[0.0, 3.0]], [[0.1] * 3 + [3.0] * 3 + [0.2] * 3], [[1, 1]]),
        (False, [[0.0, 3.0]], [[0.1] * 9], [[9, 0]]),
        (True, [[0.0, 3.0]], [[0.1] * 9], [[1, 0]]),
    ],
)
def test_gradients_are_tfmots(mean, table, weights, expected):
    table, weights = tf.constant(table), tf.constant(np.asarray(weights), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch([table, weights])
        y = tf.reduce_sum(look_up(table, weights, mean, keep_zero=False))
    of_table, of_weights = tape.gradient(y, [table, weights])
    np.testing.assert_array_equal(of_table, expected)
    np.testing.assert_array_equal(of_weights, np.ones(weights.shape))


@pytest.mark.parametrize("per_channel", SHARING)
@pytest.mark.parametrize("shape", [(3, 2, 4, 6), (40, 6)])
def test_forward_and_gradients_against_numpy(shape, per_channel):
    made, weights = book(shape, per_channel=per_channel)
    factor = np.random.default_rng(1).normal(size=shape)
    x = tf.Variable(weights)
    with tf.GradientTape() as tape:
        y = made(x)
        loss = tf.reduce_sum(y * tf.constant(factor, tf.float32))
    grads = tape.gradient(loss, [x, *[v.value for v in made.trainable_variables]])
    rows, factors = (np.float64(a).reshape(-1, shape[-1]).T for a in (weights, factor))
    values = np.concatenate([np.float64(made.centroids), np.tile(made.fixed, (made.centroids.shape[0], 1))], axis=1)
    reach = np.ones(shape[-1]) if made.reach is None else np.float64(made.reach)
    if per_channel is False:
        rows, factors, reach = rows.reshape(1, -1), factors.reshape(1, -1), np.ones(1)
    table = values * reach[:, None]
    index = np.argmin(np.abs(rows[:, :, None] - table[:, None, :]), axis=2)
    wanted = np.take_along_axis(table, index, axis=1)
    got = y.numpy().reshape(-1, shape[-1]).T.reshape(rows.shape)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    np.testing.assert_allclose(grads[0], factor, rtol=1e-6)
    sums = np.stack([[f[i == k].sum() for k in range(5)] for f, i in zip(factors, index, strict=True)])
    free = (sums * reach[:, None])[:, : made.centroids.shape[1]]
    np.testing.assert_allclose(grads[1], free.sum(axis=0, keepdims=True) if per_channel == "scale" else free, rtol=1e-4)
    if per_channel == "scale":
        np.testing.assert_allclose(grads[2], np.sum(sums * values, axis=1), rtol=1e-4)


@pytest.mark.parametrize("per_channel", SHARING)
def test_zero_stays_and_does_not_train(per_channel):
    made, weights = book((30, 4), per_channel=per_channel)
    weights[::2] = 0.0
    x = tf.Variable(weights)
    with tf.GradientTape() as tape:
        y = made(x)
        loss = tf.reduce_sum(y)
    assert np.all(y.numpy()[::2] == 0.0)
    np.testing.assert_array_equal(tape.gradient(loss, x), weights != 0.0)


@pytest.mark.parametrize("per_channel", SHARING)
def test_values_out_of_order_and_twice_do_no_harm(per_channel):
    made, weights = book((30, 4), per_channel=per_channel, preserve_sparsity=False)
    values = np.array(made.centroids)[:, ::-1].copy()
    values[:, 1] = values[:, 0]
    made.centroids.assign(values)
    table, y = made.table(made._rows(tf.constant(weights))).numpy(), made(tf.constant(weights)).numpy()
    assert np.all(np.diff(table) >= 0)
    for channel in range(4):
        row = table[channel if len(table) > 1 else 0]
        wanted = row[np.argmin(np.abs(weights[:, channel, None] - row), axis=1)]
        np.testing.assert_array_equal(y[:, channel], wanted)
    np.testing.assert_array_equal(made(tf.constant(y)), y)


def test_the_same_in_xla_and_in_a_function():
    made, weights = book((3, 3, 4, 6), per_channel=True)

    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = made(x)
            loss = tf.reduce_sum(y**2)
        return y, tape.gradient(loss, [x, made.centroids.value])

    plain = step(tf.constant(weights))
    for jit in (False, True):
        compiled = tf.function(step, jit_compile=jit)(tf.constant(weights))
        keras.tree.map_structure(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), plain, compiled)


def test_a_kernel_made_of_another_keeps_its_values():
    made, weights = book((4, 30, 6), per_channel=True)
    kernel = made(tf.constant(weights)).numpy()
    for part in (kernel[1], kernel.reshape(120, 6), kernel[2:, ::2].reshape(-1, 6)):
        derived = made.derived(part)
        assert derived.clusters == 5 and derived.centroids.shape == (6, 4)
        np.testing.assert_allclose(derived(tf.constant(part * (1 + 1e-7))), part, rtol=1e-6)
    assert made.derived(weights[0]) is None and made.derived(kernel[0, :2]) is None
    part = np.where(np.arange(6) < 2, np.abs(kernel[1]), 0.0).astype("float32")  # zeros in some channels only
    np.testing.assert_allclose(made.derived(part)(tf.constant(part)), part, rtol=1e-6)


def image() -> keras.Model:
    x = inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(6, 3, use_bias=False, name="conv")(x)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", name="depthwise")(x)
    x = layers.SeparableConv2D(5, 3, activation="relu", padding="same", name="separable")(x)
    x = layers.Conv2DTranspose(4, 3, name="transpose")(x)
    x = layers.Dropout(0.2, name="dropout")(layers.Flatten(name="flatten")(x))
    return keras.Model(inputs, layers.Dense(4, activation="softmax", name="head")(x), name="image")


def small() -> keras.Model:
    """Two of its kernels, of the same names."""
    x = inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(6, 3, use_bias=False, name="conv")(x)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x))
    x = layers.Flatten(name="flatten")(layers.MaxPooling2D(name="pool")(x))
    return keras.Model(inputs, layers.Dense(4, activation="softmax", name="head")(x), name="small")


def attentive() -> keras.Model:
    x = inputs = keras.Input((3, 6), name="steps")
    x = layers.Conv1D(8, 3, padding="causal", activation="gelu", name="conv")(x)
    x = layers.Add(name="add")([x, layers.MultiHeadAttention(2, 4, name="attention")(x, x)])
    x = layers.EinsumDense("abc,cd->abd", (None, 8), bias_axes="d", name="einsum")(x)
    x = layers.LSTM(6, return_sequences=True, name="lstm")(x)
    x = layers.GRU(5, name="gru")(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(x), name="attentive")


def words() -> keras.Model:
    inputs = keras.Input((3,), dtype="int32", name="words")
    x = layers.Embedding(10, 8, name="table")(inputs)
    x = layers.Bidirectional(layers.LSTM(4), name="both")(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(x), name="words")


def samples(model, n=24):
    rng = np.random.default_rng(0)
    shape = (n, *model.input_shape[1:])
    x = rng.integers(0, 10, shape).astype("int32") if model.name == "words" else rng.normal(size=shape)
    return np.asarray(x, "int32" if model.name == "words" else "float32"), np.zeros((n, model.output_shape[-1]), "f4")


def made(build):
    keras.utils.set_random_seed(7)
    return build()


def train(model, steps=1, **options):
    """Eagerly by default: tracing takes longer than a few steps."""
    x, y = samples(model)
    model.compile(keras.optimizers.SGD(0.1), "mse", **{"run_eagerly": "jit_compile" not in options, **options})
    model.fit(x, y, batch_size=8, steps_per_epoch=steps, verbose=0)
    return model


def books(model):
    """(wrapper, path, codebook) of every kernel that has one."""
    for layer in every_layer(model):
        held = getattr(layer, "transforms", {})
        held = {layer.kernel_name: held} if isinstance(layer, Compressed) else held
        for path, found in held.items():
            yield from ((layer, path, t) for t in found if isinstance(t, Codebook))


def shared_by(codebook, kernel):
    """Most distinct values in any part of a kernel that has values of its own."""
    return max(len(np.unique(row)) for row in codebook._rows(tf.constant(kernel)).numpy())


def codes_in(content):
    """Most distinct codes in a channel of each int8 matrix of a file, by the tensor's name."""
    model = schema.ModelT.InitFromPackedBuf(content)
    found = {}
    for tensor in model.subgraphs[0].tensors:
        data = model.buffers[tensor.buffer].data
        if tensor.type != schema.TensorType.INT8 or data is None or len(tensor.shape) < 2:
            continue
        values = np.asarray(data, np.uint8).view(np.int8).reshape(tensor.shape)
        several = len(tensor.quantization.scale) > 1
        rows = np.moveaxis(values, tensor.quantization.quantizedDimension, 0) if several else values[None]
        found[tensor.name.decode()] = max(len(np.unique(row)) for row in rows)
    return found


@pytest.mark.parametrize(
    ("build", "per_channel"), [*((image, each) for each in SHARING), (attentive, "scale"), (words, False)]
)
def test_every_kernel_shares_from_training_to_the_file(build, per_channel, tmp_path):
    model = made(build)
    before = [np.array(v) for v in model.variables]
    clustered = kquant.cluster(model, 4, per_channel=per_channel, depthwise=True)
    train(clustered)
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, variable)
    plain = kquant.strip(clustered)
    assert not any(isinstance(layer, Transformed) for layer in every_layer(plain))
    count = 0
    for layer, path, codebook in books(clustered):
        assert shared_by(codebook, np.array(kernel_at(plain.get_layer(layer.name), path))) <= 4
        assert np.any(np.array(kernel_at(layer.layer, path)) != np.array(layer.weights_as_used(path)))
        count += 1
    assert count == {"image": 6, "attentive": 11, "words": 6}[build.__name__]
    x, _ = samples(model)
    q = kquant.calibrate(kquant.quantize(clustered), x, verbose=False)
    train(q)
    kquant.export(q, tmp_path / "m.tflite", check_runtimes=False)
    found = codes_in((tmp_path / "m.tflite").read_bytes())
    limit = 4 if per_channel is False else 4 * 8  # LSTM's gates and embeddings have one scale for all channels
    single = {name: n for name, n in found.items() if "lstm" in name or "both" in name or "table" in name}
    assert found and max(n for name, n in found.items() if name not in single) <= 4
    assert not single or max(single.values()) <= limit


def test_masks_and_zeros_stay():
    per_channel = "scale"
    pruned = kquant.prune(made(small), 0.5)
    clustered = train(kquant.cluster(pruned, 6, per_channel=per_channel))
    assert [type(t).__name__ for t in clustered.get_layer("conv").transforms["kernel"]] == ["Mask", "Codebook"]
    x, _ = samples(clustered)
    q = train(kquant.calibrate(kquant.quantize(clustered), x, verbose=False))
    for name in ("conv", "head"):
        zeros = np.array(clustered.get_layer(name).weights_as_used()) == 0.0
        codes = q.get_layer(name).codes(tf.constant(1.0))[0].numpy()
        assert zeros.mean() >= 0.5 and np.all(codes[~np.array(q.get_layer(name).transforms[0].mask)] == 0)
        assert max(len(np.unique(c)) for c in np.moveaxis(codes, -1, 0)) <= 6
    stripped = kquant.strip(pruned)  # no masks any more: the zeros themselves stay
    zeros = stripped.get_layer("head").kernel.numpy() == 0.0
    again = train(kquant.cluster(stripped, 6, per_channel=per_channel))
    assert zeros.mean() == 0.5 and np.all(np.array(again.get_layer("head").weights_as_used())[zeros] == 0.0)


@pytest.mark.parametrize("per_channel", SHARING)
def test_sixteen_values_with_zero_are_sixteen_codes(per_channel):
    inputs = keras.Input((64,))
    model = keras.Model(inputs, layers.Dense(12, name="head")(inputs))
    pruned = kquant.prune(model, 0.5)
    q = kquant.quantize(kquant.cluster(pruned, 16, per_channel=per_channel))
    codes = q.get_layer("head").codes(tf.constant(1.0))[0].numpy()
    assert max(len(np.unique(c)) for c in codes.T) <= 16
    assert np.mean(codes == 0) >= 0.5
    if per_channel == "scale":
        assert len(np.unique(codes)) <= 16 and np.abs(codes).max() == 127


def test_a_quantized_model_is_clustered():
    model = made(image)
    x, _ = samples(model)
    q = kquant.calibrate(kquant.quantize(model), x, verbose=False)
    before = np.asarray(q(x))
    clustered = kquant.cluster(q, 4, per_channel=True)
    np.testing.assert_array_equal(before, q(x))
    train(clustered)
    assert np.any(before != clustered(x))
    for layer, _, _ in books(clustered):
        codes = np.moveaxis(layer.codes(tf.constant(1.0))[0].numpy(), layer.channel_axes[-1], 0)
        assert max(len(np.unique(c)) for c in codes) <= 4
    assert len(list(books(clustered))) == 4


@pytest.fixture(scope="module")
def trained():
    """A clustered model that `fit` trained, and the variables of its codebooks before."""
    clustered = kquant.cluster(made(image), 4, per_channel="scale")
    before = [np.array(v) for _, _, b in books(clustered) for v in b.variables]
    return train(clustered, steps=2), before


LOAD = """
import sys, keras, kquant, numpy as np
model = keras.models.load_model(sys.argv[1])
x = np.load(sys.argv[2])
np.save(sys.argv[3], model(x))
model.run_eagerly = True
model.fit(x, np.zeros((len(x), 4)), verbose=0)
print(max(len(np.unique(c)) for c in model.get_layer("head").weights_as_used().numpy().T))
"""


def test_saved_and_loaded_in_another_process_to_the_bit(trained, tmp_path):
    clustered, _ = trained
    x, _ = samples(clustered)
    clustered.save(tmp_path / "m.keras")
    np.save(tmp_path / "x.npy", x)
    paths = [str(tmp_path / name) for name in ("m.keras", "x.npy", "y.npy")]
    done = new_process.run(LOAD, *paths)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(paths[2]), clustered(x))
    assert int(done.stdout.split()[-1]) <= 4


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    keras.utils.set_random_seed(1)
    with _policy(policy):
        model = keras.Sequential([keras.Input((12,)), layers.Dense(9, name="a"), layers.Dense(3, name="b")])
    clustered = train(kquant.cluster(model, 4), run_eagerly=False)
    assert clustered.get_layer("a").compute_dtype == policy.removeprefix("mixed_")
    for layer, path, codebook in books(clustered):
        used = layer.weights_as_used(path)
        assert used.dtype == tf.float32 and shared_by(codebook, used.numpy()) <= 4
        assert np.all(np.isfinite(used))


class _policy:
    def __init__(self, name):
        self.name = name

    def __enter__(self):
        self.before = keras.mixed_precision.global_policy()
        keras.mixed_precision.set_global_policy(self.name)

    def __exit__(self, *_):
        keras.mixed_precision.set_global_policy(self.before)


def test_jit_compiled_training():
    x = inputs = keras.Input((4, 4, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(6, 3, use_bias=False)(x)))
    x = layers.Flatten()(layers.Conv2DTranspose(4, 3)(x))
    model = keras.Model(inputs, layers.Dense(4)(x))
    clustered = train(kquant.cluster(model, 4, per_channel=True), jit_compile=True)
    assert len(list(books(clustered))) == 3
    for layer, path, codebook in books(clustered):
        assert shared_by(codebook, np.array(layer.weights_as_used(path))) <= 4


def test_a_shared_layer_has_one_codebook():
    inputs = keras.Input((6,))
    dense = layers.Dense(6, name="twice")
    model = keras.Model(inputs, layers.Dense(2, name="head")(dense(dense(inputs))))
    clustered = kquant.cluster(model, 3)
    assert len(list(books(clustered))) == 2
    x = np.ones((2, 6), "float32")
    np.testing.assert_allclose(clustered(x), kquant.strip(clustered)(x), atol=1e-6)


def test_norms_and_dropout_train():
    """tfmot's wrapper drops the argument `training`: statistics stand still, dropout does nothing."""
    clustered = kquant.cluster(made(image), 4)
    before = np.array(clustered.get_layer("norm").moving_mean)
    x, _ = samples(clustered)
    assert np.any(np.array(clustered(x, training=True)) != np.array(clustered(x, training=True)))
    assert np.any(before != np.array(clustered.get_layer("norm").moving_mean))


def test_values_train(trained):
    clustered, before = trained
    after = [np.array(v) for _, _, b in books(clustered) for v in b.variables]
    assert all(np.any(a != b) for a, b in zip(before, after, strict=True) if a.size)


def test_recipes_and_rules():
    model = made(image)
    clustered = kquant.cluster(model, "cluster16-int8")
    assert {b.clusters for *_, b in books(clustered)} == {16}
    assert all(b.per_channel is True for *_, b in books(clustered))
    rules = [{"layer": "head", "clustering": {"clusters": 3}}, {"layer": "conv", "clustering": {"clusters": 0}}]
    clustered = kquant.cluster(model, {"name": "mine", "clustering": {"clusters": 8}, "rules": rules}, init="linear")
    found = {layer.name: (b.clusters, b.init) for layer, _, b in books(clustered)}
    assert found == {"separable": (8, "linear"), "transpose": (8, "linear"), "head": (3, "linear")}
    both = kquant.cluster(kquant.prune(model, "prune50-cluster16-int8"), "prune50-cluster16-int8")
    assert [len(t) for t in both.get_layer("head").transforms.values()] == [2]
    found = {layer.name for layer, _, _ in books(kquant.cluster(model, 4, layers=["conv", "h*"], protect="head"))}
    assert found == {"conv"}


def test_an_argument_at_its_default_replaces_the_recipes():
    inputs = keras.Input((64,))
    model = keras.Model(inputs, layers.Dense(12, name="head")(inputs))
    options = {"init": "kmeans++", "per_channel": False, "train_values": True}
    for given in ({}, options):
        ((_, _, found),) = books(kquant.cluster(model, "prune50-cluster16-int8", **given))
        wanted = given or {"init": "linear", "per_channel": "scale", "train_values": False}
        assert {name: getattr(found, name) for name in wanted} == wanted
    ((_, _, found),) = books(kquant.cluster(model, 4))
    assert {name: getattr(found, name) for name in options} == options and found.preserve_sparsity is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clusters": 1}, "2 or more"),
        ({"clusters": 4, "init": "kmeans"}, "kmeans"),
        ({"clusters": 4, "layers": "haed"}, "Did you mean 'head'"),
        ({"clusters": "int8"}, r"no \[clustering\] section"),
        ({"clusters": {"name": "x", "clustering": {"cluster": 3}}}, "Did you mean 'clusters'"),
        ({"clusters": 2, "per_channel": "scale"}, r"^conv \(kernel\): cluster: clusters=2, and at least 3.*'scale'"),
        ({"clusters": 4, "layers": "depthwise"}, "depthwise=True"),
        ({"clusters": 4.0}, "whole number, 2 or more. Received: 4.0"),
        ({"clusters": 4, "per_channel": "channel"}, "^cluster: per_channel must be False, True or 'scale'"),
        ({"clusters": {"name": "x", "clustering": {"per_channel": "channel"}}}, "^[^\n]*per_channel: must be[^\n]*$"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        kquant.cluster(made(image), **options)


def test_clustered_twice_is_refused():
    with pytest.raises(ValueError, match="conv: 'kernel' is clustered already"):
        kquant.cluster(kquant.cluster(made(image), 4), 4)


def test_kernels_without_enough_weights_are_named():
    with pytest.warns(UserWarning, match=r"conv \(kernel: 27 for 32 values\)"):
        clustered = kquant.cluster(made(image), 32, per_channel=True)
    assert {layer.name for layer, _, _ in books(clustered)} == {"transpose", "head"}


def test_quantize_clusters_where_the_recipe_says_so():
    recipe = {"name": "mine", "clustering": {"clusters": 4, "per_channel": True}}
    q = kquant.quantize(made(image), recipe)
    assert {layer.name for layer, _, _ in books(q)} >= {"conv", "head", "transpose"}
    before = kquant.cluster(made(image), 5)
    assert {b.clusters for _, _, b in books(kquant.quantize(before, recipe))} == {5}


def test_evenly_spaced_values_that_stay_are_the_same_codes_in_every_layer():
    pruned = kquant.prune(made(image), 0.5, scope="global")
    clustered = kquant.cluster(pruned, "prune50-cluster16-int8")
    x, _ = samples(pruned)
    q = train(kquant.calibrate(kquant.quantize(clustered), x, verbose=False))
    codes = {float(c) for layer, _, _ in books(q) for c in np.unique(layer.codes(tf.constant(1.0))[0])}
    assert len({abs(c) for c in codes}) <= 16 and max(codes) == 127 and 0 in codes


def of_two_kernels(name):
    """A layer that quantization takes apart, with a kernel that is clustered and one that only a mask is on."""
    x = keras.Input((4, 4, 16) if name == "separable" else (2, 4))
    made = {
        "separable": lambda: layers.SeparableConv2D(16, 3, use_bias=False, name="layer"),
        "gru": lambda: layers.GRU(16, name="layer"),
        "simple": lambda: layers.SimpleRNN(16, name="layer"),
    }
    y = made[name]()(x)
    if name == "separable":
        y = layers.GlobalAveragePooling2D(name="mean")(layers.BatchNormalization()(y))
    return keras.Model(x, y)


@pytest.mark.parametrize(
    ("name", "codebooks"),
    [("separable", ["layer"]), ("gru", ["layer_h_h", "layer_h_r", "layer_h_z"]), ("simple", ["layer_h_h"])],
)
@pytest.mark.filterwarnings("ignore")  # kernels that are too small, channels that are 0
def test_each_part_of_a_layer_gets_what_its_own_kernel_had(name, codebooks):
    """Every kernel has a mask, and one has a codebook: a lone mask would fit them all."""
    keras.utils.set_random_seed(4)
    pruned = kquant.prune(of_two_kernels(name), 0.5, depthwise=True)
    q = kquant.quantize(kquant.cluster(pruned, 8, per_channel=True))
    parts = {layer.name: layer for layer in holders(q)}  # inside of a loop, too
    found = {name: [type(t).__name__ for t in layer.transforms] for name, layer in parts.items()}
    assert len(found) > len(codebooks)
    assert found == {part: ["Mask", "Codebook"] if part in codebooks else ["Mask"] for part in found}
    train(q)
    for part in codebooks:
        rows = np.asarray(parts[part].weights_on_grid()).reshape(-1, 16).T
        assert max(np.unique(row).size for row in rows) <= 8


def test_a_slice_is_known_by_its_weights():
    rng = np.random.default_rng(0)
    first, second = (rng.normal(size=(24, 24)).astype(np.float32) for _ in range(2))
    held, gain = Held(first, []), rng.uniform(1e-3, 1e3, 24).astype(np.float32)
    part = first[::-1, 3:9]
    assert held.share_of(part) == held.share_of((part * gain[:6]) / gain[:6]) == held.share_of(0 * part) == 1.0
    assert held.share_of(second) < 0.1


def test_a_kernel_of_zeros_can_leave_them():
    """Attention often starts with an output kernel of zeros: its mask is half ones, the zeros of its values are all."""
    x = keras.Input((3, 4), name="x")
    model = keras.Model(x, layers.Flatten()(layers.MultiHeadAttention(2, 4, name="attention")(x, x)))
    projection(model.get_layer("attention"), "output").kernel.assign(np.zeros((2, 4, 4)))
    with pytest.warns(UserWarning, match=r"masks and codebooks of attention \(_output_dense.kernel\)"):
        q = kquant.quantize(kquant.prune(model, 0.5))
    assert not q.get_layer("attention").transforms and len(q.get_layer("attention_query").transforms) == 1

"""Pruned models: zeros stay zeros through training, saving, stripping, quantization, training again, and the file."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

import kquant
from kquant.graph.keras_private import every_layer
from kquant.layers.nodes import Compressed, Transformed
from kquant.layers.transformed import ManyKernels
from kquant.views.kernels import kernels_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:calibrate. tensors of very different ranges share",
)

L = keras.layers


def images():
    """Kernels that run over images, each in its own branch."""
    x = keras.Input((6, 6, 4), name="image")
    conv = L.ReLU(name="relu")(L.BatchNormalization(name="norm")(L.Conv2D(8, 3, use_bias=False, name="conv")(x)))
    ends = [
        conv,
        L.Conv2D(4, 3, groups=2, activation="elu", name="grouped")(x),
        L.DepthwiseConv2D(3, name="depthwise")(x),
        L.SeparableConv2D(6, 3, activation="relu", name="separable")(x),
        L.Conv2DTranspose(4, 3, strides=2, name="transposed")(x),
    ]
    ends = [L.GlobalAveragePooling2D(name=f"mean_{i}")(y) for i, y in enumerate(ends)]
    return keras.Model(x, L.Dense(4, activation="softmax", name="head")(L.Concatenate(name="all")(ends)), name="images")


def block():
    return keras.Sequential([keras.Input((6,)), L.Dense(4, activation="relu"), L.Dense(3)])


def sequences():
    """Kernels that run over steps."""
    x = keras.Input((2, 6), name="steps")
    ends = [
        L.LSTM(4, name="lstm")(x),
        L.Bidirectional(L.LSTM(3), name="both")(x),
        L.GRU(3, name="gru")(x),
        L.Flatten(name="f1")(L.Conv1D(4, 2, padding="causal", activation="relu", name="causal")(x)),
        L.Flatten(name="f2")(L.MultiHeadAttention(2, 3, name="attention")(x, x)),
        L.Flatten(name="f3")(L.EinsumDense("abc,cd->abd", (2, 5), name="einsum")(x)),
        L.Flatten(name="f4")(L.TimeDistributed(L.Dense(3, name="inner"), name="each")(x)),
        L.Flatten(name="f5")(L.TimeDistributed(block(), name="blocks")(x)),
        L.RNN(L.StackedRNNCells([L.SimpleRNNCell(3), L.GRUCell(3)]), name="stacked")(x),
    ]
    return keras.Model(x, L.Dense(3, name="head")(L.Concatenate(name="all")(ends)), name="sequences")


def small():
    """A convolution whose batch norm is folded, and a Dense layer."""
    x = keras.Input((6, 6, 4), name="image")
    y = L.ReLU(name="relu")(L.BatchNormalization(name="norm")(L.Conv2D(8, 3, use_bias=False, name="conv")(x)))
    return keras.Model(x, L.Dense(4, name="head")(L.GlobalAveragePooling2D(name="mean")(y)), name="small")


MODELS = {"images": images, "sequences": sequences}


def data(model, samples=32):
    x = np.random.default_rng(3).normal(size=(samples, *model.input_shape[1:])).astype(np.float32)
    return x, np.random.default_rng(4).normal(size=(samples, *model.output_shape[1:])).astype(np.float32)


def train(model, x, y, epochs=2, batch=16, **kwargs):
    model.compile(keras.optimizers.SGD(0.1), "mse", **kwargs)
    model.fit(x, y, batch_size=batch, epochs=epochs, verbose=0)


def masks(model):
    """(layer, path) -> mask."""
    found = {}
    for layer in every_layer(model):
        if isinstance(layer, ManyKernels | Compressed):
            held = {layer.kernel_name: layer.transforms} if isinstance(layer, Compressed) else layer.transforms
            found.update({(layer.name, path): np.asarray(t[0].mask) for path, t in held.items() if t})
    return found


def named(model, name):
    """The layer of a name, inside of a loop too; a wrapper before what it wraps."""
    return next(layer for layer in every_layer(model) if layer.name == name)


def used(model, key):
    layer = named(model, key[0])
    return np.asarray(layer.weights_as_used() if isinstance(layer, Compressed) else layer.weights_as_used(key[1]))


@pytest.fixture(scope="module", params=MODELS)
def pruned(request):
    """A dense model, what it was, and the model pruned and trained for two steps."""
    keras.utils.set_random_seed(5)
    model = MODELS[request.param]()
    before = [w.numpy() for w in model.weights]
    new = kquant.prune(model, 0.5)
    x, y = data(model)
    train(new, x, y, batch=32, run_eagerly=True)  # tracing takes longer than two steps
    return model, before, new, x, y


def test_every_kernel_is_half_zeros(pruned):
    model, before, new, _, _ = pruned
    expected = {(layer.name, p) for layer in model.layers for p, k in kernels_of(layer).items() if not k.depthwise}
    assert set(masks(new)) == expected and len(expected) >= 5
    for key, mask in masks(new).items():
        assert mask.sum() == round(0.5 * mask.size), key
        assert np.all(used(new, key)[~mask] == 0), key
    assert all(np.array_equal(old, w.numpy()) for old, w in zip(before, model.weights, strict=True))
    assert all(int(t.steps) == 2 for layer in new.layers if isinstance(layer, Transformed) for t in layer.held)


def test_zero_sparsity_and_first_call_are_the_model(pruned):
    model, _, _, x, _ = pruned
    ramp = kquant.SparsitySchedule(0.5, initial=0.0, end=100)
    np.testing.assert_allclose(kquant.prune(model, ramp)(x), model(x), atol=1e-6)


def test_saved_and_stripped_to_the_bit(pruned, tmp_path):
    _, _, new, x, _ = pruned
    new.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    plain = kquant.strip(new)
    expected = np.asarray(new(x))
    np.testing.assert_array_equal(np.asarray(loaded(x)), expected)
    np.testing.assert_array_equal(np.asarray(plain(x)), expected)
    assert not any(isinstance(layer, Transformed) for layer in every_layer(plain))
    assert kquant.sparsity(plain).total == pytest.approx(kquant.sparsity(new).total)


def file_zeros(path):
    """Zeros of each kernel in the file, by name."""
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    found = {}
    for t in (t for graph in model.subgraphs for t in graph.tensors):
        content = model.buffers[t.buffer].data
        if content is not None and t.type == schema.TensorType.INT8:
            found[t.name.decode()] = int((np.asarray(content).view(np.int8) == 0).sum())
    return found


def test_training_of_the_quantized_model_keeps_exactly_the_zeros(pruned, tmp_path):
    _, _, new, x, y = pruned
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # every mask finds its place
        warnings.filterwarnings("ignore", message="(?s).*output channels are all 0")
        q = kquant.quantize(new)
    kquant.calibrate(q, x, verbose=False)
    before = masks(q)
    assert sum((~m).sum() for m in before.values()) >= sum((~m).sum() for m in masks(new).values())
    train(q, x[:16], y[:16], epochs=1, run_eagerly=True)
    for key, mask in masks(q).items():
        np.testing.assert_array_equal(mask, before[key])
        assert np.all(used(q, key)[~mask] == 0), key
    # channels that are zeros from end to end would not be in the file, nor their zeros
    kquant.export(q, tmp_path / "m.tflite", check_runtimes=False, shrink=False)
    zeros = file_zeros(tmp_path / "m.tflite")
    for (name, path), mask in masks(q).items():
        layer = named(q, name)
        if not isinstance(layer, Compressed):
            continue
        codes = np.asarray(layer.codes(tf.constant(1e9))[0])  # so large a scale that no bias widens a channel's
        assert np.all(codes[~mask] == 0)
        assert zeros[f"{name}/{path}"] >= (~mask).sum(), name


def test_quantized_model_takes_masks(tmp_path):
    model = small()
    x, y = data(model)
    q = kquant.calibrate(kquant.quantize(model), x, verbose=False)
    before = q.get_weights()
    new = kquant.prune(q, 0.75, structure="unstructured", protect=["head"])
    train(new, x, y, epochs=1)
    assert ("head", "kernel") not in masks(new)
    assert all((~m).mean() == 0.75 for m in masks(new).values()) and len(masks(new)) == 1
    assert all(np.array_equal(a, b) for a, b in zip(before, q.get_weights(), strict=True))
    again = kquant.prune(new, 0.5)
    assert set(masks(again)) == {*masks(new), ("head", "kernel")}
    assert all((~m).mean() == 0.5 for m in masks(again).values())
    new.save(tmp_path / "q.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "q.keras")(x), new(x))


def dense(units=6, inputs=8, **kwargs):
    keras.utils.set_random_seed(2)
    return keras.Sequential([keras.Input((inputs,)), L.Dense(units, name="a", **kwargs), L.Dense(4, name="b")])


def step_by_step(model, x, y, steps):
    """Sparsity after each training step of a loop of one's own."""
    optimizer, found = keras.optimizers.SGD(0.1), []

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x, training=True) - y) ** 2)
        grads = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(grads, model.trainable_variables)

    for _ in range(steps):
        step()
        found.append(kquant.sparsity(model).kernels[0].sparsity)
    return found


def test_custom_loop_follows_the_ramp():
    model = kquant.prune(dense(), kquant.SparsitySchedule(0.75, initial=0.0, begin=2, end=6, frequency=2), rules=[])
    x, y = data(model)
    ramp = [0.75 * (1 - (1 - t / 4) ** 3) for t in (0, 2, 4)]
    expected = [round(48 * s) / 48 for s in (0, ramp[0], ramp[0], ramp[1], ramp[1], ramp[2], ramp[2])]
    np.testing.assert_allclose(step_by_step(model, x, y, 7), expected, atol=1e-9)


@pytest.mark.parametrize("gradient", ["straight-through", "masked"])
def test_gradient_of_masked_weights(gradient):
    model = kquant.prune(dense(), 0.5, gradient=gradient)
    x, y = data(model)
    kernel, mask = model.get_layer("a").layer.kernel, np.asarray(model.get_layer("a").transforms["kernel"][0].mask)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(x, training=True) - y) ** 2)
    grad = np.asarray(tape.gradient(loss, kernel.value))
    assert np.any(grad[mask]) and np.any(grad[~mask]) == (gradient == "straight-through")
    if gradient == "straight-through":  # that of a dense layer with the zeros in place
        plain = kquant.strip(model)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((plain(x) - y) ** 2)
        np.testing.assert_allclose(grad, tape.gradient(loss, plain.get_layer("a").kernel.value), atol=1e-6)


def test_masked_weights_come_back():
    model = kquant.prune(dense(), kquant.SparsitySchedule(0.5, frequency=1))
    old = masks(model)["a", "kernel"]
    kernel = model.get_layer("a").layer.kernel
    kernel.assign(np.where(old, 0.01, 1.0))
    model(data(model)[0], training=True)
    np.testing.assert_array_equal(masks(model)["a", "kernel"], ~old)


@pytest.mark.parametrize(("end", "above", "comes"), [(-1, 1.05, False), (-1, 1.15, True), (9, 1.05, True)])
def test_a_weight_that_is_hardly_larger_does_not_come_back(end, above, comes):
    """Where masks come to rest at `end` each choice is by magnitude alone; where they never do, by a margin."""
    model = kquant.prune(dense(), kquant.SparsitySchedule(0.5, end=end, frequency=1))
    old = masks(model)["a", "kernel"]
    model.get_layer("a").layer.kernel.assign(np.where(old, 1.0, above))
    model(data(model)[0], training=True)
    np.testing.assert_array_equal(masks(model)["a", "kernel"], ~old if comes else old)


def test_movement_scores_train_by_gradient_times_weight():
    model = kquant.prune(dense(), 0.5, criterion="movement")
    x, y = data(model)
    layer = model.get_layer("a")
    transform = layer.transforms["kernel"][0]
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(x, training=True) - y) ** 2)
    to_weights, to_scores = tape.gradient(loss, [layer.layer.kernel.value, transform.scores.value])
    np.testing.assert_allclose(to_scores, to_weights * layer.layer.kernel, rtol=1e-5)
    assert any(v is transform.scores for v in model.trainable_variables)
    flipped = ~np.asarray(transform.mask)
    transform.scores.assign(np.where(flipped, 5.0, 0.0))
    transform.steps.assign(9)
    model(x, training=True)
    np.testing.assert_array_equal(np.asarray(transform.mask), flipped)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_and_compiled_steps(policy):
    model = kquant.prune(dense(dtype=policy), kquant.SparsitySchedule(0.75, initial=0.25, end=3), gradient="masked")
    x, y = data(model)
    in_xla = policy == "mixed_float16"
    train(model, x, y, jit_compile=in_xla, run_eagerly=not in_xla)
    assert kquant.sparsity(model).kernels[0].sparsity == 0.75
    assert np.all(np.isfinite(model(x)))


def test_shared_layer_counts_a_step_once():
    layer, x = L.Dense(8, name="shared"), keras.Input((8,))
    model = kquant.prune(keras.Model(x, layer(layer(x))), 0.5)
    model(np.ones((2, 8), np.float32), training=True)
    assert int(model.get_layer("shared").transforms["kernel"][0].steps) == 1


@keras.saving.register_keras_serializable(package="kquant-tests")
class Block(L.Layer):
    """Keras layers and a batch norm in a layer of one's own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.norm = L.Dense(6, name="inner"), L.BatchNormalization(name="inner_norm")

    def call(self, x, training=None):
        return self.norm(self.dense(x), training=training)


@keras.saving.register_keras_serializable(package="kquant-tests")
class Nested(keras.Model):
    """A subclassed model with a nested one of the same layer names."""

    def __init__(self):
        super().__init__()
        self.block = Block(name="block")
        self.inside = keras.Sequential([keras.Input((6,)), L.Dense(5, name="inner"), L.Dropout(0.5)])

    def call(self, x, training=None):
        return self.inside(self.block(x, training=training), training=training)


def test_subclassed_and_nested_models():
    model = Nested()
    x = np.ones((4, 8), np.float32)
    expected = model(x)
    new = kquant.prune(model, kquant.SparsitySchedule(0.5, initial=0.0, end=2, frequency=1))
    np.testing.assert_allclose(new(x), expected, atol=1e-6)
    assert set(masks(new)) == {("inner", "kernel"), ("inner_1", "kernel")}
    train(new, *data(new))
    assert np.any(np.asarray(new.get_layer("inner_norm").moving_mean))  # it is live
    assert not np.any(np.asarray(model.block.norm.moving_mean))
    assert kquant.sparsity(new).total == 0.5


def test_what_a_normalization_was_adapted_to_stays():
    x = np.random.default_rng(0).normal(3.0, 2.0, (64, 6)).astype(np.float32)
    adapted = L.Normalization(name="norm")
    adapted.adapt(x)
    model = keras.Sequential([keras.Input((6,)), adapted, L.Dense(4, name="a")])
    for copy in (kquant.prune(model, kquant.SparsitySchedule(0.5, initial=0.0, end=9)), kquant.strip(model)):
        np.testing.assert_allclose(copy(x), model(x), atol=1e-5)


def test_variables_outside_layers_are_refused():
    class Loose(keras.Model):
        def __init__(self):
            super().__init__()
            self.scale = self.add_weight(shape=(3, 3), name="scale")

        def call(self, x):
            return keras.ops.matmul(x, self.scale)

    model = Loose()
    model(np.ones((1, 3), np.float32))
    with pytest.raises(ValueError, match="outside any layer"):
        kquant.prune(model)


def test_masked_steps_of_sequences_work():
    x = keras.Input((5,), dtype="int32")
    y = L.LSTM(3, name="lstm")(L.Embedding(10, 4, mask_zero=True, name="table")(x))
    model = keras.Model(x, y)
    new = kquant.prune(model, kquant.SparsitySchedule(0.5, initial=0.0, end=2))
    tokens = np.array([[3, 4, 0, 0, 0], [1, 2, 3, 4, 5]])
    np.testing.assert_allclose(new(tokens), model(tokens), atol=1e-6)
    assert ("table", "embeddings") in masks(new)


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("verb", ["prune", "cluster"])
def test_frozen_layers_are_left_with_a_warning(verb, quantized):
    model = dense(units=32, inputs=16)
    model.get_layer("a").trainable = False
    model = kquant.quantize(model) if quantized else model
    call = {"prune": lambda m: kquant.prune(m, 0.5), "cluster": lambda m: kquant.cluster(m, 4)}[verb]
    with pytest.warns(UserWarning, match=rf"{verb}: left as they are, because they do not train: a \(kernel\)"):
        new = call(model)
    held = {name: new.get_layer(name).transforms for name in "ab"}
    assert held["b"] and not (held["a"] if quantized else held["a"].get("kernel"))
    with pytest.raises(ValueError, match=r"no.*kernel to .*they do not train: a \(kernel\)"):
        kquant.prune(model, protect=["b"]) if verb == "prune" else kquant.cluster(model, 4, layers="a")


def test_blocks_as_tfmot_gives_them():
    model = dense(units=32, inputs=16)
    expected = masks(kquant.prune(model, 0.5, structure="4x1"))
    recipe = {"name": "r", "pruning": {"structure": [4, 1]}}
    for found in (kquant.prune(model, 0.5, structure=(4, 1)), kquant.prune(model, recipe)):
        for key, mask in masks(found).items():
            np.testing.assert_array_equal(mask, expected[key])


def test_a_layer_with_brackets_in_its_name_is_protected_by_it():
    x = inputs = keras.Input((16,))
    for name in ("a[0]", "b"):
        x = keras.layers.Dense(16, name=name)(x)
    model = keras.Model(inputs, x)
    rule = {"layer": "a[0]", "pruning": {"sparsity": 0.0}}
    for new in (kquant.prune(model, 0.5, protect="a[0]"), kquant.prune(model, 0.5, rules=[rule])):
        assert [k.sparsity for k in kquant.sparsity(new).kernels if k.sparsity] == [0.5]


def test_global_threshold():
    model = dense(units=32, inputs=32)
    model.get_layer("b").kernel.assign(np.random.default_rng(0).normal(size=(32, 4)) * 10.0)
    new = kquant.prune(model, 0.8, scope="global")
    found = kquant.sparsity(new)
    assert found.total == pytest.approx(0.8, abs=1e-3)
    a, b = found.kernels
    assert b.sparsity < 0.05 and a.sparsity > 0.8
    weights = np.abs(np.concatenate([new.get_layer(n).layer.kernel.numpy().ravel() for n in "ab"]))
    mask = np.concatenate([masks(new)[n, "kernel"].ravel() for n in "ab"])
    assert weights[mask].min() >= weights[~mask].max()
    model.get_layer("a").kernel.assign(np.full((32, 32), 1e-6))  # would die
    assert kquant.sparsity(kquant.prune(model, 0.8, scope="global")).kernels[0].sparsity <= 1 - 0.2 * 0.2 + 1e-3


def of_signs(model):
    """Kernels of -1 and 1 only."""
    for layer in model.layers:
        layer.kernel.assign(np.where(np.random.default_rng(0).normal(size=layer.kernel.shape) < 0, -1.0, 1.0))
    return model


@pytest.mark.parametrize(
    ("made", "sparsity"),
    [
        (of_signs, 0.5),
        (of_signs, 0.999),  # each kernel keeps some weights
        (lambda model: kquant.strip(kquant.prune(model, 0.5)), 0.3),
        (lambda model: kquant.strip(kquant.prune(model, 0.8)), 0.5),
        (lambda model: kquant.strip(kquant.cluster(model, 4)), 0.6),
    ],
    ids=("signs", "few", "sparse", "sparser", "clustered"),
)
def test_global_threshold_of_equal_weights(made, sparsity):
    """Many weights are at the threshold: the masks hold the number of zeros that was asked for, now and in training."""
    new = kquant.prune(made(dense()), sparsity, scope="global")
    held = [masks(new)[n, "kernel"] for n in "ab"]
    kept = [int(mask.sum()) for mask in held]
    size = sum(mask.size for mask in held)
    least = sum(max(1, round(0.2 * (1 - sparsity) * mask.size)) for mask in held)
    assert sum(kept) == max(round((1 - sparsity) * size), least) and min(kept) > 0
    again = masks(kquant.prune(made(dense()), sparsity, scope="global"))
    assert all(np.array_equal(mask, again[n, "kernel"]) for n, mask in zip("ab", held, strict=True))


@pytest.mark.parametrize("compiled", [False, True], ids=("graph", "xla"))
def test_equal_weights_in_training(compiled):
    """Masks that a training step chooses anew hold as many zeros; the weights here are the same, so are the masks."""
    new = kquant.prune(of_signs(dense()), kquant.SparsitySchedule(0.5, frequency=1), scope="global")
    held = masks(new)
    step = tf.function(lambda: [new.get_layer(name).advance() for name in "ab"] and None, jit_compile=compiled)
    for _ in range(2):
        step()
    for key, mask in masks(new).items():
        np.testing.assert_array_equal(mask, held[key])


def test_global_threshold_shares_ties():
    kernels = [k.sparsity for k in kquant.sparsity(kquant.prune(of_signs(dense()), 0.5, scope="global")).kernels]
    np.testing.assert_allclose(kernels, 0.5, atol=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(recipe=1.0), "final must be in"),
        (dict(recipe=0.8, structure="2:4"), "sparsity of 0.5"),
        (dict(structure="rows"), "structure"),
        (dict(structure=(4, 1, 1)), r"structure must be .*Received: '\(4, 1, 1\)'"),
        (dict(structure=(0, 1)), "structure must be .*Received: '0x1'"),
        (dict(recipe="int8"), r"no \[pruning\] section"),
        (dict(scope="model"), "scope"),
        (dict(protect=["*"]), "no layer has a kernel"),
        (dict(rules=[{"layer": "a", "pruning": {"sparsty": 0.1}}]), "Did you mean 'sparsity'"),
        (dict(recipe="fast"), "no recipe"),
        (dict(recipe=[0.5]), "expected a share of zeros"),
        (dict(structure="2:4", scope="global"), "fixes that of a"),
        (dict(recipe=50), "Received: 50.* For 50 % give 0.5"),
        (dict(protect=["haed"]), "prune: 'haed' matches no layer with a kernel. There are: a, b"),
        (dict(protect="bb"), "Did you mean 'b'"),
        (dict(rules=[{"type": "Conv2D", "pruning": {"sparsity": 0.1}}]), "rule type='Conv2D' matches no layer"),
        (dict(rules=[{"layer": "bb", "pruning": {"sparsity": 0.1}}]), "rule layer='bb' matches.*mean 'b'"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        kquant.prune(dense(), **arguments)


def test_rules_speak_of_layers():
    rules = [{"type": "Dense", "pruning": {"sparsity": 0.75}}, {"position": "last", "pruning": {"structure": "2:4"}}]
    with pytest.raises(ValueError, match="2:4"):
        kquant.prune(dense(), 0.5, rules=rules)
    new = kquant.prune(dense(), 0.5, rules=[{"layer": "a", "pruning": {"sparsity": 0.75}}, rules[1]])
    assert [k.sparsity for k in kquant.sparsity(new).kernels] == [0.75, pytest.approx(8 / 24)]  # a tail of 2 stays
    assert new.get_layer("b").transforms["kernel"][0].structure == "2:4"
    assert kquant.sparsity(kquant.prune(dense(), structure="1:4")).kernels[0].sparsity == 0.75


def test_recipe_prunes_with_both_verbs(tmp_path):
    model = small()
    new = kquant.prune(model, "prune50-int8")
    q = kquant.quantize(model, "prune50-int8")
    assert kquant.sparsity(new).total == pytest.approx(0.5, abs=1e-3)
    for key, mask in masks(new).items():
        np.testing.assert_array_equal(masks(q)[key], mask)
    kept = kquant.quantize(kquant.prune(model, 0.75, protect=["head"]), "prune50-int8")
    assert ("head", "kernel") not in masks(kept) and np.mean(~masks(kept)["conv", "kernel"]) == 0.75
    path = tmp_path / "mine.toml"
    path.write_text(kquant.recipe_to_toml({"name": "mine", "pruning": {"sparsity": 0.75, "structure": "1:4"}}))
    assert np.mean(~masks(kquant.prune(model, path))["conv", "kernel"]) == 0.75
    with pytest.raises(ValueError, match="Did you mean 'structure'"):
        kquant.prune(model, {"name": "m", "pruning": {"strcture": "2:4"}})
    with pytest.raises(ValueError, match="needs `end`"):
        kquant.prune(model, {"name": "m", "pruning": {"schedule": "polynomial"}})


def test_scan_proposes_what_the_target_wants():
    model = dense(units=32, inputs=16)
    model.get_layer("b").kernel.assign(np.random.default_rng(0).normal(size=(32, 4)) * 3)
    x, _ = data(model, 64)
    scan = kquant.scan_sparsity(model, x, sparsity=0.6, verbose=False)
    assert kquant.sparsity(kquant.prune(model, 0.6, rules=scan.rules)).total == pytest.approx(0.6, abs=2e-3)
    for row in scan.layers:
        assert sorted(row.values, reverse=True) == list(row.values)  # SQNR falls with sparsity
    single = kquant.strip(kquant.prune(model, 0.5, protect=["b"]))
    noise = np.sum((np.asarray(single(x)) - np.asarray(model(x))) ** 2) / np.sum(np.asarray(model(x)) ** 2)
    assert scan.layers[0].values[1] == pytest.approx(-10 * np.log10(noise), abs=1e-3)
    judged = kquant.scan_sparsity(model, evaluate=lambda m: -float(np.abs(m(x)).sum()), sparsities=[0.5], verbose=False)
    assert "evaluate" in str(judged) and judged.to_json()
    with pytest.raises(ValueError, match="one of the two"):
        kquant.scan_sparsity(model, verbose=False)


def test_zeros_hold_before_a_codebook_or_are_refused():
    shared = kquant.cluster(dense(), 4, preserve_sparsity=False)
    for verb in (lambda: kquant.prune(shared, 0.5), lambda: kquant.scan_sparsity(shared, np.ones((1, 8), "f4"))):
        with pytest.raises(ValueError, match=r"a \(kernel\).*codebook without a zero.*preserve_sparsity=True"):
            verb()
    with pytest.raises(ValueError, match=r"a: 'kernel' has a mask.*preserve_sparsity=True"):
        kquant.cluster(kquant.prune(dense(), 0.5), 4, preserve_sparsity=False)
    both = kquant.prune(kquant.cluster(dense(), 4), 0.5)
    assert kquant.sparsity(both).total >= 0.5


def test_scan_of_a_pruned_model_adds_to_its_zeros():
    model = dense(units=32, inputs=16)
    pruned = kquant.prune(model, 0.9)
    before = masks(pruned)
    x, _ = data(model, 64)
    seen = []

    def judge(copy):
        seen.append({k.layer: k.sparsity for k in kquant.sparsity(copy).kernels})
        return 0.0

    kquant.scan_sparsity(pruned, evaluate=judge, sparsities=[0.5, 0.95], verbose=False)
    assert [s["a"] for s in seen] == pytest.approx([0.9, 0.9, 0.95, 0.9, 0.9], abs=0.01)
    assert [s["b"] for s in seen] == pytest.approx([0.9, 0.9, 0.9, 0.9, 0.95], abs=0.01)
    for key, mask in masks(pruned).items():
        np.testing.assert_array_equal(mask, before[key])
    scan = kquant.scan_sparsity(pruned, x, sparsities=[0.5, 0.95], verbose=False)
    assert all(row.damage[0] == 0.0 < row.damage[1] for row in scan.layers)


def test_scan_of_a_quantized_model_is_refused():
    model = dense()
    with pytest.raises(ValueError, match="scan_sparsity: expected a float model.*before kquant.quantize"):
        kquant.scan_sparsity(kquant.quantize(model), data(model)[0])


@pytest.mark.parametrize("verb", ["prune", "cluster", "sparsity", "scan_sparsity"])
@pytest.mark.parametrize("given", [L.Dense(3, name="alone"), 3])
def test_what_is_no_model_is_refused(verb, given):
    rest = {"cluster": (4,), "scan_sparsity": (np.ones((1, 3)),)}
    with pytest.raises(ValueError, match=f"^{verb}: expected a keras.Model. Received: .*(Dense|int)"):
        getattr(kquant, verb)(given, *rest.get(verb, ()))


def test_numbers_of_numpy_are_numbers():
    assert kquant.sparsity(kquant.prune(dense(), np.float32(0.5))).total == 0.5


def test_both_kernels_of_a_convolutional_lstm_are_masked(tmp_path):
    inputs = keras.Input((2, 4, 4, 3))
    model = keras.Model(inputs, L.ConvLSTM2D(4, 2, name="memory")(inputs))
    new = kquant.prune(model, structure="2:4")
    x, y = data(new, 8)
    train(new, x, y, epochs=1, run_eagerly=True)
    new.save(tmp_path / "m.keras")
    plain = kquant.strip(keras.models.load_model(tmp_path / "m.keras"))
    for path in ("cell.kernel", "cell.recurrent_kernel"):
        kept = masks(new)["memory", path]
        assert np.all(used(new, ("memory", path))[~kept] == 0)
        channels = np.moveaxis(kept, -2, -1).reshape(-1, kept.shape[-2])
        assert np.all(channels.sum(1) == 2), path
    np.testing.assert_allclose(plain(x), new(x), atol=1e-6)


@keras.saving.register_keras_serializable(package="tests")
class Projected(L.Layer):
    """A matrix that no rule knows, and one that is known."""

    def build(self, shape):
        self.matrix = self.add_weight(shape=(shape[-1], 6), name="matrix")
        self.inner = L.Dense(6)
        self.inner.build((None, 6))

    def call(self, x):
        return self.inner(keras.ops.matmul(x, self.matrix))


@pytest.mark.parametrize("verb", ["prune", "cluster"])
@pytest.mark.parametrize("quantized", [False, True])
def test_layers_whose_kernels_nothing_tells_are_named(verb, quantized):
    inputs = keras.Input((8,))
    made = Projected(name="mine")(L.SpectralNormalization(L.Dense(6), name="bounded")(inputs))
    model = keras.Model(inputs, L.Dense(6, name="head")(made))
    call = {"prune": lambda m: kquant.prune(m, 0.5), "cluster": lambda m: kquant.cluster(m, 4)}[verb]
    if quantized:  # both became layers that are known
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            call(kquant.quantize(model))
        return
    said = r"knows no kernels among weights of such layers: bounded \(SpectralNormalization\)"
    with pytest.warns(UserWarning, match=said + r", mine \(Projected\)"):
        new = call(model)
    assert [k.layer for k in kquant.sparsity(new).kernels if k.masked] == ["mine", "head"] * (verb == "prune")
    with pytest.raises(ValueError, match=said):
        call(keras.Sequential([keras.Input((8,)), L.SpectralNormalization(L.Dense(6), name="bounded")]))

"""Transforms of kernels: what a mask or codebook promises holds through saving, folding, quantization and export."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import kquant
from kquant.graph.copies import copy_of
from kquant.layers import transform
from kquant.layers.nodes import Compressed, Transformed
from kquant.layers.transform import Transform

pytestmark = pytest.mark.filterwarnings(
    "ignore:prune. left as they are",
    "ignore:quantize. .* takes no packed 4-bit weights",
)

layers = keras.layers


@keras.saving.register_keras_serializable(package="kquant-tests")
class Half(Transform):
    """Keeps the weights above the median of |w|, as they were when it started; counts its steps."""

    def build(self, shape):
        self.mask = self.add_weight(name="mask", shape=shape, initializer="ones", trainable=False)
        self.steps = self.add_weight(name="steps", shape=(), initializer="zeros", trainable=False)
        self.built = True

    def start(self, weights):
        self.mask.assign(np.abs(weights) > np.median(np.abs(weights)))

    def advance(self, weights):
        self.steps.assign(self.steps + 1.0)

    def call(self, weights):
        return weights * tf.convert_to_tensor(self.mask)


def small() -> keras.Model:
    x = inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(6, 3, use_bias=False, name="conv")(x)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x))
    x = layers.DepthwiseConv2D(3, activation="relu", name="depthwise")(x)
    x = layers.Flatten(name="flatten")(x)
    return keras.Model(inputs, layers.Dense(4, activation="softmax", name="head")(x), name="small")


def recurrent() -> keras.Model:
    inputs = keras.Input((3, 3), name="steps")
    return keras.Model(inputs, layers.Dense(2, name="head")(layers.LSTM(5, name="lstm")(inputs)), name="recurrent")


LSTM = ["cell.kernel", "cell.recurrent_kernel"]
PATHS = {"conv": ["kernel"], "depthwise": ["kernel"], "head": ["kernel"], "lstm": LSTM}


def halved(model: keras.Model) -> keras.Model:
    """Every kernel of the model with a `Half`."""

    def wrap(layer):
        if layer.name not in PATHS:
            return layer
        new = Transformed(type(layer).from_config(layer.get_config()), {})
        new.build(layer.get_build_config()["input_shape"])
        new.layer.set_weights(layer.get_weights())
        for path in PATHS[layer.name]:
            new.transform_by(Half(), path)
        return new

    new = keras.models.clone_model(model, clone_function=wrap)
    for old, fresh in zip(model.layers, new.layers, strict=True):
        if not isinstance(fresh, Transformed):
            fresh.set_weights(old.get_weights())
    return new


@pytest.fixture(scope="module", params=[small, recurrent])
def model(request):
    keras.utils.set_random_seed(1)
    return request.param()


@pytest.fixture(scope="module")
def x(model):
    return np.random.default_rng(0).normal(size=(48, *model.input_shape[1:])).astype(np.float32)


def zeros_of(layer, path="kernel"):
    held = layer.transforms if isinstance(layer.transforms, dict) else {"kernel": layer.transforms}
    return np.asarray(held[path][0].mask) == 0


def test_float_model_computes_with_the_transformed_kernel(model, x):
    masked, plain = halved(model), kquant.strip(halved(model))
    np.testing.assert_allclose(masked(x), plain(x), atol=1e-6)
    assert not any(isinstance(layer, Transformed) for layer in plain.layers)
    kernel = plain.get_layer("head").kernel.numpy()
    assert np.mean(kernel == 0) == 0.5


def test_training_keeps_zeros_and_counts_each_step_once(model, x):
    masked = halved(model)
    masked.compile("sgd", "mse")
    y = np.zeros((len(x), *model.output_shape[1:]), np.float32)
    masked.fit(x, y, batch_size=16, epochs=2, verbose=0)
    head = masked.get_layer("head")
    assert float(head.transforms["kernel"][0].steps) == 6.0
    assert np.all(head.weights_as_used().numpy()[zeros_of(head)] == 0)


def test_round_trip_to_the_bit(model, x, tmp_path):
    masked = halved(model)
    masked.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(masked(x), loaded(x))


@pytest.mark.parametrize("recipe", ["int8", "dynamic-int8"])
def test_zeros_reach_the_file(model, x, tmp_path, recipe):
    if recipe == "dynamic-int8" and model.name == "recurrent":
        pytest.skip("LSTM has no dynamic kernel")
    q = kquant.calibrate(kquant.quantize(halved(model), recipe), x, verbose=False)
    q.compile("sgd", "mse", run_eagerly=True)
    q.fit(x, np.zeros((len(x), *model.output_shape[1:]), np.float32), verbose=0)
    q.save(tmp_path / "q.keras")
    q = keras.models.load_model(tmp_path / "q.keras")
    kquant.export(q, tmp_path / "m.tflite", data=x[:8])
    for layer in q.layers:
        if isinstance(layer, Compressed) and layer.spec is not None:
            codes = layer.codes(tf.constant(1.0))[0].numpy()
            assert np.all(codes[zeros_of(layer)] == 0) and np.any(codes)
    for name, paths in PATHS.items():
        if any(layer.name == name for layer in q.layers):
            layer = q.get_layer(name)
            assert all(zeros_of(layer, path).mean() >= 0.4 for path in paths)


def test_pruned_after_quantization(x, model):
    q = kquant.calibrate(kquant.quantize(model), x, verbose=False)
    before = np.asarray(q(x))
    q.get_layer("head").transform_by(Half())
    assert np.mean(q.get_layer("head").weights_as_used().numpy() == 0) == 0.5
    copy = keras.models.clone_model(q)
    copy.set_weights(q.get_weights())
    after = np.asarray(q(x))
    assert np.any(before != after)
    np.testing.assert_array_equal(copy(x), after)


def test_clone_has_variables_of_its_own():
    half = Half()
    half.build((2, 2))
    half.start(np.array([[1.0, 2.0], [3.0, 4.0]]))
    other = transform.clone(half)
    half.mask.assign(np.ones((2, 2)))
    assert np.asarray(other.mask).tolist() == [[0, 0], [1, 1]]


@keras.saving.register_keras_serializable(package="kquant-tests")
class Scaled(layers.Layer):
    """Two layers and a variable of its own, which no verb takes apart."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = layers.Dense(3, name="first"), layers.Dense(3, name="second")

    def build(self, shape):
        self.factor = self.add_weight(name="factor", shape=(3,), initializer="ones")
        self.first.build(shape)
        self.second.build((None, 3))

    def call(self, x):
        return self.second(self.first(x) * self.factor)


def test_what_is_frozen_inside_a_layer_stays_frozen():
    model = keras.Sequential([keras.Input((4,)), Scaled(name="scaled"), layers.Dense(2, name="head")])
    model.get_layer("scaled").first.trainable = False
    model.get_layer("head").bias.trainable = False
    pruned = kquant.prune(model, 0.5)
    for made in (model, pruned, kquant.strip(pruned)):
        trained = ["/".join(v.path.split("/")[-2:]) for v in made.trainable_variables]
        assert sorted(path for path in trained if not path.endswith("factor")) == [
            "head/kernel",
            "second/bias",
            "second/kernel",
        ]


@keras.saving.register_keras_serializable(package="kquant-tests")
class Tenths(Transform):
    """Weights that share values: multiples of 0.1."""

    rank, shares = 1, True

    def call(self, weights):
        return weights + tf.stop_gradient(tf.round(weights * 10.0) / 10.0 - weights)


def wide() -> keras.Model:
    x = inputs = keras.Input((12,), name="x")
    x = layers.Dense(16, activation="relu", name="first")(x)
    return keras.Model(inputs, layers.Dense(4, name="second")(x), name="wide")


@pytest.fixture(scope="module")
def calibrated():
    keras.utils.set_random_seed(2)
    rng = np.random.default_rng(1)  # inputs that go together, so that roundings can make up for each other
    x = (rng.normal(size=(64, 3)) @ rng.normal(size=(3, 12))).astype(np.float32)
    recipe = {"name": "w3", "weights": {"bits": 3}}
    return lambda: kquant.calibrate(kquant.quantize(wide(), recipe), x, verbose=False), x


def test_adaround_leaves_pruned_weights_at_zero(calibrated):
    make, x = calibrated
    q = make()
    q.get_layer("first").transform_by(Half())
    kquant.adaround(q, x, iterations=300, regularisation=0.01, learning_rate=0.3, verbose=False)
    layer = q.get_layer("first")
    codes = layer.codes(tf.constant(1.0))[0].numpy()
    assert np.all(codes[zeros_of(layer)] == 0)
    assert np.any(codes != np.rint(layer.weights_as_used() / layer.scale_of(layer.weights_as_used())))


def test_adaround_and_equalize_leave_shared_weights(calibrated):
    make, x = calibrated
    q = make()
    q.get_layer("first").transform_by(Tenths())
    with pytest.warns(UserWarning, match="first share values"):
        kquant.adaround(q, x, iterations=20, verbose=False)
    assert q.get_layer("first").rounding is None and q.get_layer("second").rounding is not None
    before = q.get_layer("first").layer.kernel.numpy()
    kquant.equalize(q, x, verbose=False)
    np.testing.assert_array_equal(q.get_layer("first").layer.kernel.numpy(), before)


def test_quantized_models_are_copied_with_what_they_took_on_late():
    keras.utils.set_random_seed(4)
    x = np.random.default_rng(2).normal(size=(48, 3, 3)).astype(np.float32)
    learned = {"name": "lsq", "weights": {"bits": 4}, "training": {"ranges": "learned"}}
    for recipe in ("int8", learned):
        q = kquant.calibrate(kquant.quantize(recurrent(), recipe), x, verbose=False)
        q = kquant.cluster(kquant.prune(q, 0.5), 4)
        if recipe == "int8":
            kquant.correct_bias(q, x, verbose=False)
        other = copy_of(q)
        np.testing.assert_array_equal(q(x), other(x))
        order = [[v.path for v in m.trainable_variables] for m in (q, copy_of(q))]
        assert order[0] == order[1]  # an optimizer finds its state by it


def test_masks_and_codebooks_after_adaround_hold(calibrated):
    make, x = calibrated
    q = kquant.adaround(make(), x, iterations=60, verbose=False)
    assert kquant.sparsity(kquant.prune(q, 0.5)).total >= 0.5
    with pytest.warns(UserWarning, match="rounded to nearest again"):
        shared = kquant.cluster(q, 3)
    codes = shared.get_layer("first").codes(tf.constant(1.0))[0].numpy()
    assert max(np.unique(codes[:, i]).size for i in range(codes.shape[1])) <= 3


def test_shrinking_wants_the_plain_model():
    for verb in (kquant.cost, lambda m: kquant.prune_channels(m, macs=0.5), lambda m: kquant.factorize(m, macs=0.5)):
        with pytest.raises(ValueError, match="kquant.strip"):
            verb(kquant.prune(wide(), 0.5))


def regularized() -> keras.Model:
    x = inputs = keras.Input((3, 4), name="steps")
    x = layers.LSTM(6, activity_regularizer="l1", return_sequences=True, name="lstm")(x)
    shared = layers.Dense(6, activation="relu", activity_regularizer=keras.regularizers.L2(0.3), name="shared")
    x = layers.Flatten(name="flatten")(shared(shared(x)))
    x = layers.ActivityRegularization(l1=0.1, name="penalty")(layers.Dense(3, name="head")(x))
    return keras.Model(inputs, x, name="regularized")


@pytest.mark.parametrize("compiled", [False, True], ids=("eager", "xla"))
def test_activity_regularizers_act(compiled):
    """The losses are those of the plain model with the same weights, in every call anew, and have gradients."""
    keras.utils.set_random_seed(3)
    new = kquant.cluster(kquant.prune(regularized(), 0.5), 4)
    plain, x = kquant.strip(new), tf.constant(np.random.default_rng(0).normal(size=(5, 3, 4)), tf.float32)

    def losses(model):
        with tf.GradientTape() as tape:
            model(x)
            total = tf.add_n(model.losses)
        return model.losses, tape.gradient(total, [v.value for v in model.trainable_variables])

    expected = losses(plain)[0]
    for jit in (True, False):  # traced anew each time
        found, gradients = tf.function(losses, jit_compile=jit)(new) if compiled else losses(new)
        assert len(found) == 4
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    kernels = [g for v, g in zip(new.trainable_variables, gradients, strict=True) if "kernel" in v.path]
    assert len(kernels) == 4 and all(g is not None and np.any(g) for g in kernels)


def test_activity_regularizers_of_opened_layers_are_named():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(3)], name="inner")
    inner.activity_regularizer = keras.regularizers.L2(0.1)
    model = keras.Sequential([keras.Input((4,)), inner])
    with pytest.warns(UserWarning, match="activity regularizers of inner do not act"):
        kquant.prune(model, 0.5)

"""Batch norms that stay alive in a quantized model: Keras' own in training, the file's folded ones elsewhere."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import kquant
from kquant.layers.live_norm import LiveNorm

pytestmark = pytest.mark.filterwarnings(
    "ignore:equalize. the ranges of .* were those of the old",
)

layers = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(1.0, 2.0, size=(64, 6, 6, 3)).astype(np.float32)
LIVE = {"name": "live", "training": {"batch_norm": "live", "ranges": "fixed"}}


def model(bias: bool = True, norm: bool = True) -> keras.Model:
    """A convolution and a depthwise one, each with a batch norm that has seen data."""
    keras.utils.set_random_seed(3)
    x = inputs = keras.Input((6, 6, 3), name="image")
    x = layers.Conv2D(5, 3, use_bias=bias, name="conv")(x)
    x = layers.BatchNormalization(momentum=0.8, name="norm")(x) if norm else x
    x = layers.ReLU(name="relu")(x)
    x = layers.DepthwiseConv2D(3, use_bias=False, name="depthwise")(x)
    x = layers.BatchNormalization(momentum=0.8, scale=False, name="norm2")(x)
    made = keras.Model(inputs, x, name="m")
    rng = np.random.default_rng(5)
    for layer in made.layers:
        if isinstance(layer, layers.BatchNormalization):
            size = layer.moving_mean.shape
            layer.moving_mean.assign(rng.normal(size=size))
            layer.moving_variance.assign(rng.uniform(0.5, 2.0, size))
            layer.beta.assign(rng.normal(size=size))
            if layer.scale:
                layer.gamma.assign(rng.uniform(0.5, 1.5, size) * np.sign(rng.normal(size=size)))
    if bias:
        made.get_layer("conv").bias.assign(rng.normal(size=5))
    return made


def fresh() -> keras.Model:
    """Without calibration: the first batch sets the ranges, so that nothing is clipped."""
    return kquant.quantize(model(), LIVE)


def quantized(recipe: dict = LIVE, **options) -> keras.Model:
    return kquant.calibrate(kquant.quantize(model(**options), recipe), X, verbose=False)


@pytest.fixture(scope="module")
def live() -> keras.Model:
    return quantized()


def test_the_float_function_is_the_models(live):
    from kquant.layers.nodes import observing

    with observing(lambda *_: None):
        found = live(X)
    np.testing.assert_allclose(found, model()(X), rtol=1e-4, atol=1e-4)
    assert [layer.name for layer in live.layers if isinstance(layer, layers.BatchNormalization)] == []


def test_inference_is_that_of_the_folded_model(live):
    folded = quantized({"name": "folded"})
    step = float(live.layers[-1].grid()[0])
    np.testing.assert_allclose(np.asarray(live(X)), np.asarray(folded(X)), atol=1.01 * step)


def test_training_normalises_by_the_batch_as_keras_does():
    twin, q = model(), fresh()
    expected, found = twin(X, training=True), q(X, training=True)
    scale = np.std(expected)
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.03 * scale  # 8-bit weights and activations
    inference = np.sqrt(np.mean((twin(X) - expected) ** 2))
    assert inference > 0.3 * scale  # the moving statistics would give something else
    for name, norm in (("conv", "norm"), ("depthwise", "norm2")):
        ours, theirs = q.get_layer(name).norm, twin.get_layer(norm)
        np.testing.assert_allclose(ours.moving_mean, theirs.moving_mean, atol=0.03)
        np.testing.assert_allclose(ours.moving_variance, theirs.moving_variance, rtol=0.05, atol=0.02)


def test_gradients_reach_scale_and_offset_as_in_keras():
    twin, q = model(), fresh()
    target = RNG.normal(size=(64, 2, 2, 5)).astype(np.float32)
    found = []
    for net, pick in ((twin, "norm"), (q, "conv")):
        layer = net.get_layer(pick)
        norm = layer.norm if pick == "conv" else layer
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((net(X, training=True) - target) ** 2)
        found.append(tape.gradient(loss, [norm.gamma.value, norm.beta.value]))
    for ours, theirs in zip(found[1], found[0], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("shape", [(16, 4), (8, 7, 4), (4, 5, 6, 4), (3, 2, 3, 2, 4), (1, 4)])
@pytest.mark.parametrize("jit", [False, True])
def test_the_kernel_computes_keras_own_batch_norm(shape, jit):
    rng = np.random.default_rng(7)
    y, upstream = (rng.normal(1.0, 2.0, shape).astype(np.float32) for _ in range(2))
    settings = {"momentum": 0.9, "epsilon": 1e-5}
    ours, theirs = LiveNorm(4, **settings), layers.BatchNormalization(**settings)
    theirs.build(shape)
    found = []
    for norm, options in ((ours, {}), (theirs, {"training": True})):
        norm.gamma.assign(np.float32([0.5, 1.0, -2.0, 0.1]))
        norm.beta.assign(np.arange(4, dtype=np.float32))

        @tf.function(jit_compile=jit)
        def step(y, norm=norm, options=options):
            with tf.GradientTape() as tape:
                tape.watch(y)
                made = norm(y, **options)
            return made, tape.gradient(made, [y, norm.gamma.value, norm.beta.value], upstream)

        made, gradients = step(tf.constant(y))
        found.append((made, *gradients, norm.moving_mean, norm.moving_variance))
    for mine, keras_own in zip(*found, strict=True):
        np.testing.assert_allclose(mine, keras_own, rtol=1e-3, atol=1e-3 if len(y) > 1 else 2e-2)


def test_frozen_statistics_stay_and_training_computes_the_folded_model():
    recipe = {"name": "live", "training": {**LIVE["training"], "freeze_batch_norm_after": 1}}
    q = quantized(recipe)
    q(X, training=True)
    norm = q.get_layer("conv").norm
    held = np.asarray(norm.moving_mean), np.asarray(norm.moving_variance)
    trained = np.asarray(q(X, training=True))
    np.testing.assert_array_equal(held[0], norm.moving_mean)
    np.testing.assert_array_equal(held[1], norm.moving_variance)
    step = float(q.layers[-1].grid()[0])
    assert np.mean(np.abs(trained - np.asarray(q(X))) > 0.5 * step) < 0.02  # ties of rounding


def test_a_channel_that_is_switched_off_can_come_back(tmp_path):
    given = model()
    gamma = given.get_layer("norm").gamma
    gamma.assign(np.where(np.arange(5) == 2, 0.0, np.asarray(gamma)))
    given.get_layer("norm").beta.assign(np.ones(5))  # where the ReLU lets gradients pass
    q = kquant.calibrate(kquant.quantize(given, LIVE), X, verbose=False)
    norm = q.get_layer("conv").norm
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(q(X, training=True) ** 2)
    by_gamma = tape.gradient(loss, norm.gamma.value)
    assert np.all(np.isfinite(by_gamma)) and by_gamma[2] != 0
    assert all(np.all(np.isfinite(v)) for v in q.get_weights())
    kquant.export(q, tmp_path / "m.tflite", data=X[:2], check_runtimes=False)


@pytest.mark.parametrize("ranges", ["moving", "learned"])
def test_reestimation_gives_the_statistics_of_the_data_and_keeps_the_codes(ranges, tmp_path):
    q = quantized({"name": "live", "training": {"batch_norm": "live", "ranges": ranges}})
    q(X, training=True)
    conv = q.get_layer("conv")
    codes = conv.codes(tf.constant(0.01))[0].numpy()
    kquant.reestimate(q, X, batch_size=64, verbose=False)
    kernel = (conv.weights_on_grid() / conv.norm.factor()).numpy()
    y = tf.nn.conv2d(q.layers[1](X)[0], kernel, 1, "VALID") + conv.own_bias()
    np.testing.assert_allclose(conv.norm.moving_mean, np.mean(y, (0, 1, 2)), atol=1e-3)
    np.testing.assert_allclose(conv.norm.moving_variance, np.var(y, (0, 1, 2)), rtol=1e-3)
    assert np.mean(codes != conv.codes(tf.constant(0.01))[0].numpy()) < 0.01  # ties
    kquant.export(q, tmp_path / "m.tflite", data=X[:2], check_runtimes=False)
    found = kquant.predict(tmp_path / "m.tflite", X[:8], "litert-reference")
    np.testing.assert_array_equal(found, np.asarray(q(X[:8])))


def test_equalization_and_strip_keep_the_function(live):
    before = model()(X)
    q = quantized()
    kquant.equalize(q, verbose=False)
    plain = kquant.strip(q)
    np.testing.assert_allclose(plain(X), before, rtol=1e-3, atol=2e-3)
    assert not any(isinstance(layer, layers.BatchNormalization) for layer in plain.layers)
    kernel = np.asarray(plain.get_layer("depthwise").kernel)
    assert not np.allclose(kernel, np.asarray(kquant.strip(live).get_layer("depthwise").kernel))


def test_norms_without_a_layer_before_them_are_named():
    inputs = keras.Input((6, 6, 3))
    x = layers.BatchNormalization()(inputs)
    loose = keras.Model(inputs, layers.Conv2D(2, 3)(x))
    with pytest.warns(UserWarning, match="1 of 1 batch norms"):
        kquant.quantize(loose, LIVE)
    with pytest.raises(ValueError, match="fold = true"):
        kquant.quantize(loose, {**LIVE, "fold": False})
    with pytest.raises(ValueError, match="whole recipe"):
        kquant.Recipe(name="r", rules=[{"layer": "conv", "training": {"batch_norm": "live"}}])


@pytest.mark.parametrize("rule", [{"skip": True}, {"float": True}])
def test_layers_that_stay_float_keep_their_norm(rule):
    q = kquant.quantize(model(), {**LIVE, "rules": [{"layer": "conv", **rule}]})
    plain = kquant.strip(q)
    np.testing.assert_allclose(plain(X), model()(X), rtol=1e-4, atol=1e-4)


def test_what_stands_around_a_norm_is_folded_into_it():
    x = inputs = keras.Input((6, 6, 3))
    x = layers.Rescaling(0.5, offset=1.0)(x)
    x = layers.Conv2D(4, 3, name="conv")(x)
    x = layers.BatchNormalization(name="norm")(x)
    given = keras.Model(inputs, layers.Rescaling(2.0, offset=-1.0)(x))
    given.get_layer("norm").moving_mean.assign(RNG.normal(size=4))
    q = kquant.calibrate(kquant.quantize(given, LIVE), X, verbose=False)
    plain = kquant.strip(q)
    np.testing.assert_allclose(plain(X), given(X), rtol=1e-4, atol=1e-4)
    found = kquant.quantize(given, LIVE)(X, training=True)
    expected = 2.0 * given.get_layer("norm")(given.get_layer("conv")(0.5 * X + 1), training=True) - 1
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.03 * np.std(expected)

"""Layers that act in training only stop no fusion, wherever they stand, and act in training as they did."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from contract import randomise
from keras import layers, ops

import kquant
from kquant.layers.nodes import FakeQuant
from kquant.layers.training_only import Conjugated, ReLUBehind

RNG = np.random.default_rng(0)


KINDS = itertools.cycle([layers.GaussianNoise, layers.AlphaDropout, layers.Dropout, layers.GaussianDropout])


def noise() -> Any:
    """One of each kind in turn."""
    return next(KINDS)(0.1)


def through(x: Any, *stack: Any) -> Any:
    for layer in stack:
        x = layer(x)
    return x


def image() -> keras.Model:
    """Convolutions of all kinds with noise in front of and behind everything that folds or fuses."""
    x = inputs = keras.Input((8, 8, 3))
    x = through(x, layers.Rescaling(0.5, -0.5), noise(), noise(), layers.Conv2D(4, 3), noise())
    x = through(x, layers.BatchNormalization(), noise(), layers.ReLU(6.0))
    y = through(x, layers.ZeroPadding2D(1), noise(), layers.DepthwiseConv2D(3), layers.Identity(), noise())
    y = through(y, layers.BatchNormalization(), layers.Reshape((6, 6, 4)), layers.Activation("linear"), layers.ReLU())
    x = through(layers.Add()([x, y]), noise(), layers.ReLU(), layers.ZeroPadding2D(0), layers.Permute((1, 2, 3)))
    x = through(x, layers.SeparableConv2D(3, 3), noise(), layers.BatchNormalization(), noise(), layers.ReLU())
    x = through(x, layers.MaxPooling2D(1), layers.Conv2DTranspose(2, 2), layers.SpatialDropout2D(0.2))
    return keras.Model(inputs, through(x, layers.BatchNormalization(), layers.Dropout(0.2)))


def vector() -> keras.Model:
    """A shared block, a batch norm that folds into the layer behind, and bounds."""
    block = keras.Sequential([keras.Input((6,)), layers.Dense(5), noise(), layers.BatchNormalization(), noise()])
    a, b = keras.Input((6,)), keras.Input((6,))
    x = layers.Concatenate()([layers.ReLU()(block(a)), layers.ReLU()(block(b))])
    x = through(x, layers.BatchNormalization(), noise(), layers.Dense(4), noise())
    return keras.Model([a, b], layers.Dense(2)(ops.clip(x, -1.0, 1.0)))


MODELS = {
    "image": (image, {"CONV_2D": 2, "DEPTHWISE_CONV_2D": 2, "ADD": 1, "TRANSPOSE_CONV": 1}),
    "vector": (vector, {"FULLY_CONNECTED": 4, "CONCATENATION": 1}),
}


@pytest.mark.parametrize("name", MODELS)
def test_nothing_of_them_in_the_file(name: str, tmp_path: Path) -> None:
    build, operators = MODELS[name]
    model = randomise(build())
    x = [RNG.normal(size=(32, *t.shape[1:])).astype("float32") for t in model.inputs]
    q = kquant.calibrate(kquant.quantize(model, target="tflm"), x, verbose=False)
    report = kquant.export(q, tmp_path / "m.tflite", check_runtimes=False)
    assert report.operators == operators
    assert kquant.verify(q, tmp_path / "m.tflite", x, runtime="tflm").agreements[0].equal == 1.0
    wanted, got = np.asarray(model(x if len(x) > 1 else x[0])), kquant.predict(tmp_path / "m.tflite", x, "tflm")
    assert 10 * np.log10(np.square(wanted).mean() / np.square(wanted - got).mean()) > 20


def constant_maps(name: str) -> keras.Model:
    """Constant maps beside seeded noise, so that training can be compared number for number."""
    scale, offset = [2.0, 0.0, -0.5], [1.0, 3.0, 0.25]
    stacks = {
        "before": [layers.Normalization(mean=[3.0, 1.0, 0.0], variance=[4.0, 1.0, 9.0]), layers.Dropout(0.5, seed=1)],
        "noise before": [layers.Rescaling(1 / 255), layers.GaussianNoise(0.5, seed=2), layers.Dropout(0.3, seed=3)],
        "behind": [layers.Dense(3), layers.AlphaDropout(0.5, seed=4), layers.Rescaling(scale, offset)],
        "linear": [layers.Dense(3), layers.SpatialDropout1D(0.5, seed=5), layers.Rescaling(scale)],
    }
    return keras.Sequential([keras.Input((4, 3) if name == "linear" else (3,)), *stacks[name], layers.Dense(2)])


@pytest.mark.parametrize("name", ["before", "noise before", "behind", "linear"])
def test_training_sees_the_same_numbers(name: str) -> None:
    keras.utils.set_random_seed(0)
    model = constant_maps(name)
    folded = kquant.fold(model)
    assert sum(isinstance(layer, layers.Dense) for layer in folded.layers) == sum(
        isinstance(layer, layers.Dense) for layer in model.layers
    )
    assert not any(type(layer).__name__ == "Affine" for layer in folded.layers)
    assert any(isinstance(layer, Conjugated) for layer in folded.layers) == (name != "linear")
    x = RNG.normal(size=(16, *model.inputs[0].shape[1:])).astype("float32") * 3
    wanted, got = model(x, training=True), folded(x, training=True)
    alive = np.std(model(x, training=True), axis=0) > 0  # noise was drawn at all
    assert alive.any() and not np.allclose(wanted, model(x), atol=1e-2)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(folded(x), model(x), rtol=1e-4, atol=1e-4)


def test_a_relu_takes_in_what_trains_before_it(tmp_path: Path) -> None:
    model = keras.Sequential(
        [keras.Input((8,)), layers.Dense(6, name="dense"), layers.Dropout(0.5, name="drop"), layers.ReLU(name="relu")]
    )
    q = kquant.quantize(model)
    relu = q.get_layer("relu")
    assert isinstance(relu, ReLUBehind) and [layer.name for layer in relu.before] == ["drop"]
    assert [type(layer) for layer in q.layers].count(FakeQuant) == 2
    kquant.calibrate(q, RNG.normal(size=(32, 8)).astype("float32"), verbose=False)
    q.save(tmp_path / "q.keras")
    relu = keras.models.load_model(tmp_path / "q.keras").get_layer("relu")
    ones = np.ones((1, 6), "float32")
    assert np.all(np.asarray(relu(ones)) == 1) and set(np.ravel(relu(ones, training=True))) <= {0.0, 2.0}


def test_a_tensor_that_is_read_elsewhere_keeps_its_place(tmp_path: Path) -> None:
    x = inputs = keras.Input((6,))
    x = layers.Dropout(0.5)(layers.Dense(4)(x))
    model = keras.Model(inputs, [layers.ReLU()(x), layers.Dense(2)(x)])
    x = RNG.normal(size=(64, 6)).astype("float32")
    q = kquant.calibrate(kquant.quantize(model, target="tflm"), x, verbose=False)
    kquant.export(q, tmp_path / "m.tflite", check_runtimes=False)
    equal = [a.equal for a in kquant.verify(q, tmp_path / "m.tflite", x, runtime="tflm").agreements]
    assert equal == [1.0] * len(equal)

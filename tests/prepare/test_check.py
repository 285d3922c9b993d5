"""What `kquant.check` says of batch norms and constant factors: which fold, into what, and what keeps the others."""

import json

import keras
import numpy as np
import pytest

import kquant
from kquant import report

layers = keras.layers


@pytest.fixture(scope="module")
def model():
    """Batch norms in every place: behind and before convolutions, behind a branch, a ReLU, at an output."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, use_bias=False, name="a")(layers.Rescaling(1 / 255, name="scale")(inputs))
    x = layers.BatchNormalization(name="a_norm")(x)
    b = layers.Conv2D(4, 3, padding="same", name="b")(layers.ReLU(name="relu")(x))
    side = layers.BatchNormalization(name="side_norm")(b)
    x = layers.BatchNormalization(name="sum_norm")(layers.Add(name="sum")([layers.ReLU(name="cut")(b), side]))
    x = layers.BatchNormalization(name="c_norm", trainable=False)(layers.Conv2D(4, 3, name="c")(x)) * 2.0
    x = layers.ReLU(name="relu_c")(x)
    padded = layers.BatchNormalization(name="padded_norm")(x)
    x = layers.Conv2D(2, 3, padding="same", name="d")(padded)
    x = layers.GlobalAveragePooling2D(name="mean")(layers.ReLU(name="relu_d")(x))
    made = keras.Model(inputs, layers.BatchNormalization(name="end_norm")(x), name="norms")
    made.get_layer("padded_norm").beta.assign(np.ones(4, "float32"))
    return made


def test_every_batch_norm_is_told(model):
    before = [w.copy() for w in model.get_weights()]
    found = kquant.check(model, "tflm")
    told = {fold.layer: fold.into or fold.reason for fold in found.folds}
    into = {"scale": "a", "a_norm": "a", "sum_norm": "c", "c_norm": "c", "multiply": "c"}
    assert {name: told.pop(name) for name in into} == into
    assert told.keys() == {"side_norm", "padded_norm", "end_norm"}
    assert "'b' (Conv2D) before it is read elsewhere too" in told["side_norm"]
    assert "'relu_c' (ReLU) before it has no weights to take it in" in told["padded_norm"]
    assert "'d' (Conv2D) behind it pads with zeros" in told["padded_norm"]
    assert "it makes an output of the model" in told["end_norm"]
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_it_is_what_the_quantized_model_does(model):
    """A layer that is told to fold has none of its own in the quantized model; the others have one."""
    found = kquant.check(model, "tflm")
    names = {layer.name for layer in kquant.quantize(model, target="tflm").layers}
    assert {fold.layer for fold in found.folds if fold.layer in names} == {
        fold.layer for fold in found.folds if fold.into is None
    }
    gone = {row.layer for row in found.layers if row.status == "folded"}
    assert gone == {fold.layer for fold in found.folds if fold.into is not None}


def test_text_and_json_say_it(model):
    found = kquant.check(model, "tflm")
    text = " ".join(report.render(found).split())
    assert "5 of 8 batch norms and constant factors fold: scale into a, a_norm into a" in text
    assert "end_norm (BatchNormalization) stays an operator of its own: 'mean'" in text
    plain = json.loads(report.to_json(found))["folds"]
    assert [fold["layer"] for fold in plain if fold["into"] is None] == ["side_norm", "padded_norm", "end_norm"]


def test_a_layer_without_integer_form_leaves_it_open():
    inputs = keras.Input((4, 4, 2))
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(2, 3, name="conv")(inputs))
    found = kquant.check(keras.Model(inputs, layers.GaussianNoise(0.1)(keras.ops.fft2((x, x))[0])))
    assert not found.ok and found.folds == ()
    assert "known once every layer has an integer form" in " ".join(report.render(found).split())

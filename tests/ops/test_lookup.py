"""Integer inputs: positions stay int32 in the file, images are quantized; masks that nobody reads do no harm."""

from __future__ import annotations

import contract
import keras
import numpy as np
import pytest
from keras import layers, ops

import kquant
from kquant.graph.keras_private import every_layer
from kquant.ops.expansion import expand
from kquant.ops.function import Function
from kquant.tflite.reader import read_model

pytestmark = pytest.mark.filterwarnings(
    "ignore:calibrate. tensors of very different ranges share",
    "ignore:The model does not have any trainable weights",
)


def _tokens() -> keras.Model:
    tokens, image = keras.Input((5,), dtype="int32", name="tokens"), keras.Input((4,), dtype="uint8", name="image")
    words = layers.Flatten()(layers.Embedding(10, 3, mask_zero=True)(tokens))
    return keras.Model([tokens, image], layers.Dense(2)(layers.Concatenate()([words, layers.Dense(3)(image)])))


@pytest.mark.parametrize("io", ["int8", "uint8", "float32"])
def test_tokens_beside_an_image(io, tmp_path):
    model = contract.randomise(_tokens())
    rng = np.random.default_rng(0)
    data = [rng.integers(0, 10, (64, 5)).astype("int32"), rng.integers(0, 256, (64, 4)).astype("uint8")]
    q = kquant.calibrate(kquant.quantize(model, target="tflm"), data, verbose=False)
    report = kquant.export(q, tmp_path / "m.tflite", data=data, io=io)
    kinds = {"int8": "INT8", "uint8": "UINT8", "float32": "FLOAT32"}
    assert [p.type for p in report.inputs] == ["INT32", kinds[io]]
    assert all(a.equal == 1.0 for v in report.verification if v.runtime == "tflm" for a in v.agreements)
    found = kquant.predict(tmp_path / "m.tflite", data, runtime="tflm")
    np.testing.assert_allclose(found, np.asarray(q(data)), atol=1e-5)


def test_random_samples_stay_inside_the_table(tmp_path):
    x = keras.Input((4,), name="tokens")  # Keras takes positions as floats too
    q = kquant.quantize(keras.Model(x, layers.Embedding(3, 2)(x)))
    kquant.calibrate(q, np.float32(np.arange(400).reshape(100, 4) % 3), verbose=False)
    report = kquant.export(q, tmp_path / "m.tflite")
    assert report.inputs[0].type == "INT32"
    assert read_model((tmp_path / "m.tflite").read_bytes()).operator_counts == {"GATHER": 1}


def test_training_reaches_the_table():
    q = kquant.calibrate(kquant.quantize(contract.randomise(_tokens())), contract.data(_tokens()), verbose=False)
    table = next(layer.embeddings for layer in every_layer(q) if isinstance(layer, layers.Embedding))
    before = table.numpy()
    q.compile("sgd", "mse", run_eagerly=True)
    q.fit(contract.data(q), np.ones((contract.SAMPLES, 2)), verbose=0)
    assert np.abs(table.numpy() - before).max() > 0


def test_infinite_logarithms_are_refused_in_calibration():
    x = keras.Input((4,))
    q = kquant.quantize(keras.Model(x, ops.log(ops.relu(x))))
    with pytest.raises(ValueError, match=r"NaN or Inf first appears at 'log"):
        kquant.calibrate(q, np.float32(np.random.default_rng(0).normal(size=(64, 4))), verbose=False)


def test_logarithm_of_code_zero_is_the_smallest_seen(tmp_path):
    x = keras.Input((4,))
    q = kquant.quantize(keras.Model(x, ops.log(x)), target="tflm")
    data = np.float32(np.random.default_rng(0).uniform(0.01, 2.0, (64, 4)))
    kquant.calibrate(q, data, verbose=False)
    low = float(np.log(data.min()))
    assert np.asarray(q(np.zeros((1, 4), np.float32))) == pytest.approx(low, abs=0.05)
    q.compile("sgd", "mse", run_eagerly=True)
    q.fit(np.zeros((32, 4), np.float32), np.zeros((32, 4), np.float32), verbose=0)  # outside the domain: stays finite
    assert np.isfinite(np.asarray(q(data))).all()


def test_rows_are_picked_without_a_gather():
    x = keras.Input((6, 3))
    model = keras.Model(x, ops.roll(ops.repeat(ops.flip(x, 1), 2, axis=1), 5, axis=1))
    q = contract.quantized(model, "ethos-u", 64)
    content = contract.file_of(q)
    assert set(read_model(content).operator_counts) == {"SLICE", "CONCATENATION"}
    assert contract.compare(q, content, "tflm", contract.data(q, 64)).equal == 1.0


@pytest.mark.skipif(not hasattr(ops, "array_split"), reason="this Keras has no array_split")
def test_uneven_parts_are_those_of_numpy():
    x, data = keras.Input((7, 2)), np.arange(28, dtype=np.float32).reshape(2, 7, 2)
    parts = expand(keras.Model(x, ops.array_split(x, 3, axis=1)))(data)
    for made, wanted in zip(parts, np.array_split(data, 3, axis=1), strict=True):
        np.testing.assert_array_equal(made, wanted)


@pytest.mark.parametrize(
    ("numbers", "tables"), [(lambda x: ops.relu(x - 0.5), 1), (lambda x: ops.logical_and(x > 0.0, x < 1.0), 2)]
)
def test_numbers_become_conditions(numbers, tables):
    x, data = keras.Input((5,)), np.random.default_rng(0).normal(size=(32, 5)).astype(np.float32)
    model = keras.Model(x, ops.cast(ops.cast(numbers(x), "bool"), "float32"))
    expanded = expand(model)
    np.testing.assert_array_equal(expanded(data), model(data))
    assert sum(isinstance(layer, Function) for layer in expanded.layers) == tables


@pytest.mark.parametrize(
    ("choose", "tables"),
    [
        (lambda x: ops.where(ops.relu(x), x, -1.0), 1),
        (lambda x: ops.cast(ops.logical_not(ops.relu(x)), "float32"), 1),
        (lambda x: ops.where(ops.logical_and(ops.relu(x), x < 1.0), x, 0.5), 2),
        (lambda x: ops.where(ops.logical_not(ops.reshape(x > 0.0, (-1, 2, 3))), ops.reshape(x, (-1, 2, 3)), 0.0), 1),
        (lambda x: ops.where(ops.cast(x > 0.0, "float32") * ops.cast(x < 1.0, "float32"), x, 0.0), 2),
        (lambda x: ops.where(np.arange(6) % 2 == 0, x, 0.0), 0),
    ],
)
def test_choices_read_numbers_as_conditions(choose, tables):
    x, data = keras.Input((6,)), np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
    model = keras.Model(x, choose(x))
    expanded = expand(model)
    np.testing.assert_allclose(expanded(data), model(data), atol=1e-6)
    assert sum(isinstance(layer, Function) for layer in expanded.layers) == tables


def test_indices_become_the_steps_that_are_no_padding():
    x, data = keras.Input((5,), dtype="int32"), np.random.default_rng(0).integers(0, 10, (32, 5))
    real = ops.cast(ops.cast(x, "bool"), "float32")
    model = keras.Model(x, layers.Embedding(10, 2)(x) * real[..., None])
    np.testing.assert_array_equal(expand(model)(data), model(data))
    assert read_model(contract.file_of(contract.quantized(model))).operator_counts["NOT_EQUAL"] == 1

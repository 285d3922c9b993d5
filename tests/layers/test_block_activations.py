"""Activations in blocks, as OCP MX has them: numbers against the specification's formula in NumPy and ml_dtypes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import keras
import ml_dtypes
import new_process
import numpy as np
import pytest
import tensorflow as tf
from float_types import TYPES
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

import kquant
from kquant.core.quant_spec import QuantSpec
from kquant.layers.block_quant import BlockQuant
from kquant.layers.nonuniform import on_grid
from kquant.layers.straight_through import rounded_in_blocks
from kquant.views.layer_table import rows

pytestmark = pytest.mark.filterwarnings("ignore:quantize. .* simulated only")

BITS = {"e4m3": 8, "e5m2": 8, "e3m2": 6, "e2m3": 6, "e2m1": 4}


def reference(x: np.ndarray, kind: str, block: int = 32) -> np.ndarray:
    """Section 6.3 of the specification, block by block along the last axis, in float64."""
    largest = float(ml_dtypes.finfo(TYPES[kind]).max)
    out = np.zeros(x.shape)
    for row in np.ndindex(x.shape[:-1]):
        for start in range(0, x.shape[-1], block):
            part = x[row][start : start + block].astype(np.float64)
            top = np.abs(part).max()
            if top == 0.0:
                continue
            if np.isnan(top):  # the shared scale is NaN
                out[row][start : start + block] = np.nan
                continue
            exponent = 128.0 if np.isinf(top) else np.floor(np.log2(top))
            shared = 2.0 ** (exponent - np.floor(np.log2(largest)))
            inside = np.clip(part / shared, -largest, largest).astype(np.float32)
            out[row][start : start + block] = inside.astype(TYPES[kind]).astype(np.float64) * shared
    with np.errstate(over="ignore"):
        return out.astype(np.float32)


def spec(kind: str, block: int = 32) -> QuantSpec:
    return QuantSpec(BITS[kind], symmetric=True, kind=kind, block=block)  # pyright: ignore[reportArgumentType]


def numbers(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Blocks of other sizes each, in which some are far below the others, or 0."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape) * 2.0 ** rng.integers(-40, 40, (*shape[:-1], 1)) * 2.0 ** rng.integers(-20, 1, shape)
    x[rng.random(shape) < 0.1] = 0.0
    x[0] = 0.0
    return x.astype(np.float32)


@pytest.mark.parametrize("kind", TYPES)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(3, 1), (2, 31), (2, 32), (3, 33), (2, 3, 70), (2, 2, 3, 5), (1, 129)]),
    block=st.sampled_from([32, 16, 5]),
)
@settings(max_examples=10, deadline=None)
def test_blocks_are_those_of_the_specification(kind: str, seed: int, shape: tuple[int, ...], block: int) -> None:
    x = numbers(seed, shape)
    found = rounded_in_blocks(tf.constant(x), spec(kind, block)).numpy()
    np.testing.assert_array_equal(found, reference(x, kind, block))


def odd(kind: str) -> np.ndarray:
    """Numbers and ties of the format and their neighbours, subnormal ones, zeros, infinities, NaN."""
    values = np.arange(1 << BITS[kind], dtype=np.uint8).view(TYPES[kind]).astype(np.float32)
    values = np.unique(values[np.isfinite(values)])
    ties = (values[1:] + values[:-1]) / 2
    every = np.concatenate([values, ties, np.nextafter(ties, np.float32(9)), np.nextafter(ties, np.float32(-9))])
    every = np.resize(every, (-(-every.size // 31), 31))
    x = np.concatenate([every, np.full((len(every), 1), values.max(), np.float32)], 1)  # sets the scale 1
    special = np.zeros((5, 32), np.float32)
    special[1] = np.float32(1.5e-38)  # the smallest normal numbers of float32
    special[2, :3], special[3, :3] = (1.0, np.inf, -2e38), (3.0, np.nan, -np.inf)
    special[4] = np.finfo(np.float32).max
    return np.concatenate([x, special])


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("way", ["eager", "graph", "xla"])
def test_special_numbers(kind: str, way: str) -> None:
    x = odd(kind)
    call = {"eager": lambda f: f, "graph": tf.function, "xla": lambda f: tf.function(f, jit_compile=True)}[way]
    found = call(lambda y: rounded_in_blocks(y, spec(kind)))(tf.constant(x)).numpy()
    wanted = reference(x, kind)
    normal = np.abs(wanted) >= np.finfo(np.float32).tiny
    found = np.where(normal | ~np.isfinite(wanted) | (wanted == 0.0), found, 0.0)  # subnormal numbers may count as 0
    np.testing.assert_array_equal(found, np.where(normal | ~np.isfinite(wanted), wanted, 0.0))
    assert np.isnan(wanted).sum() == 32 and np.isinf(wanted[-3]).any()


def test_samples_are_no_block() -> None:
    x = np.float32([1.1, 100.3, 0.013])
    found = rounded_in_blocks(tf.constant(x), spec("e2m1")).numpy()
    np.testing.assert_array_equal(found, reference(x[:, None], "e2m1")[:, 0])


def test_the_gradient_stops_where_a_number_is_cut_off() -> None:
    x = tf.constant(np.float32([[7.9, 6.0, 6.1, -6.5, -3.3, 0.0], [4.1, -4.0, 1.0, 0.2, 0.0, 5.9]]))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(rounded_in_blocks(x, spec("e2m1")) * 3.0)
    wanted = np.where(np.abs(x.numpy()) <= 6.0, 3.0, 0.0)  # both blocks have the scale 1
    np.testing.assert_array_equal(tape.gradient(y, x).numpy(), wanted)


@pytest.mark.parametrize("kind", ["e4m3", "e2m1"])
def test_weights_of_zero_in_blocks_stay_numbers_under_xla(kind: str) -> None:
    kernel = np.float32(np.random.default_rng(0).normal(size=(96, 3)))
    kernel[:64, 1] = 0.0
    grid = QuantSpec(BITS[kind], True, True, per_axis=True, kind=kind, block=32)  # pyright: ignore
    compiled = tf.function(lambda w: on_grid(w, grid, (1,)), jit_compile=True)
    np.testing.assert_array_equal(compiled(tf.constant(kernel)), reference(kernel.T, kind).T)


X = np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype("float32")


def image() -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(40, 3, activation="relu", name="conv")(inputs)
    x = layers.Add(name="sum")([layers.DepthwiseConv2D(3, padding="same")(x), x])
    x = layers.Concatenate()([layers.AveragePooling2D(2)(x), layers.MaxPooling2D(2)(x)])
    return keras.Model(inputs, layers.Dense(4, activation="softmax", name="head")(layers.Flatten()(x)))


def recipe(kind: str, weights: bool = False) -> dict[str, Any]:
    grid = {"kind": kind, "bits": BITS[kind], "block": 32}
    return {"name": f"mx-{kind}", "activations": grid, **({"weights": grid} if weights else {})}


@pytest.mark.parametrize("kind", TYPES)
def test_every_tensor_of_a_model_is_in_blocks(kind: str) -> None:
    model = image()
    q = kquant.quantize(model, recipe(kind))
    nodes = [layer for layer in q.layers if isinstance(layer, BlockQuant)]
    tensors = [t for node in nodes for t in (keras.tree.flatten(node.input)[0], node.output[0])]
    found = keras.Model(q.inputs, tensors).predict(X[:8], verbose=0)
    assert len(nodes) > 8 and {node.name for node in nodes} >= {"image_quant", "conv_relu_quant", "flatten_quant"}
    for given_, made in zip(found[::2], found[1::2], strict=True):
        np.testing.assert_array_equal(made, reference(given_, kind))
    head = q.get_layer("head")
    read = next(made for node, made in zip(nodes, found[1::2], strict=True) if node.name == "flatten_quant")
    weights = np.float64(head.weights_on_grid())
    (sums,) = [given_ for node, given_ in zip(nodes, found[::2], strict=True) if node.name == "head_quant"]
    np.testing.assert_allclose(sums, np.float64(read) @ weights + head.layer.bias.numpy(), rtol=1e-5, atol=1e-5)


def test_nothing_is_calibrated() -> None:
    q = kquant.quantize(image(), recipe("e4m3"))
    before = q.predict(X, verbose=0)
    kquant.calibrate(q, X, verbose=False)
    np.testing.assert_array_equal(q.predict(X, verbose=0), before)
    # each sample has scales of its own: what else is in the batch changes nothing
    other = np.concatenate([X[:1], 1e3 * X[1:2]])
    np.testing.assert_array_equal(q.predict(other, verbose=0)[0], q.predict(X[:1], verbose=0)[0])


def test_more_bits_come_nearer() -> None:
    model = image()
    wanted = model.predict(X, verbose=0)
    errors = [np.abs(kquant.quantize(model, recipe(k)).predict(X, verbose=0) - wanted).max() for k in BITS]
    e4m3, e5m2, e3m2, e2m3, e2m1 = errors
    assert e4m3 < e5m2 < 0.1 and e2m3 < e3m2 < e2m1 < 0.2


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", ["e4m3", "e2m1"])
def test_it_trains(kind: str, compiled: bool) -> None:
    q = kquant.quantize(image(), recipe(kind, weights=True))
    q.compile(keras.optimizers.SGD(0.05), "sparse_categorical_crossentropy", jit_compile=compiled)
    losses = q.fit(X, np.arange(64) % 4, epochs=4, batch_size=16, verbose=0, shuffle=False).history["loss"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_another_process_predicts_the_same_bits(policy: str, tmp_path: Path) -> None:
    keras.config.set_dtype_policy(policy)
    try:
        q = kquant.quantize(image(), recipe("e4m3", weights=True))
    finally:
        keras.config.set_dtype_policy("float32")
    found = np.float32(q.predict(X, verbose=0))  # bfloat16, too
    assert np.isfinite(found).all()
    q.save(tmp_path / "q.keras")
    np.save(tmp_path / "x.npy", X)
    code = (
        "import sys, keras, kquant, numpy as np; folder = sys.argv[1]\n"
        "q = keras.models.load_model(folder + '/q.keras')\n"
        "np.save(folder + '/y.npy', np.float32(q.predict(np.load(folder + '/x.npy'), verbose=0)))"
    )
    done = new_process.run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), found)


def sequence(make: Any) -> keras.Model:
    keras.utils.set_random_seed(1)
    steps = keras.Input((6, 40), name="steps")
    return keras.Model(steps, layers.Dense(3)(make(steps)))


SEQUENCES = {
    "attention": lambda x: layers.GlobalAveragePooling1D()(layers.MultiHeadAttention(2, 8)(x, x)),
    "lstm": layers.LSTM(9),
    "gru": layers.GRU(9),
    "norm": lambda x: layers.Flatten()(layers.LayerNormalization()(x)),
    "transposed": lambda x: layers.Flatten()(layers.Permute((2, 1))(layers.Conv1D(7, 3)(x))),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences(name: str, tmp_path: Path) -> None:
    model, x = sequence(SEQUENCES[name]), np.random.default_rng(1).normal(size=(64, 6, 40)).astype("float32")
    q = kquant.calibrate(kquant.quantize(model, recipe("e4m3")), x, verbose=False)
    wanted, found = model.predict(x, verbose=0), q.predict(x, verbose=0)
    assert 0.0 < np.abs(wanted - found).max() < 0.2 * np.abs(wanted).max()
    q.compile("sgd", "mse")
    losses = q.fit(x, np.zeros((64, 3)), epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    q.save(tmp_path / "q.keras")
    loaded: Any = keras.saving.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), q.predict(x, verbose=0))


def test_export_names_what_runs(tmp_path: Path) -> None:
    model = image()
    q = kquant.quantize(model, recipe("e2m1"))
    with pytest.raises(ValueError, match="activations on a e2m1 grid, which no integer kernel multiplies") as refused:
        kquant.export(q, tmp_path / "q.tflite")
    (named,) = re.findall(r"activations = {[^}]*}", str(refused.value))
    assert tomllib.loads(named)["activations"] == {"kind": "uniform", "bits": 8, "block": 0}
    rules = [{"type": "*", **tomllib.loads(named)}]
    for way in ({"name": "near", **tomllib.loads(named)}, {**recipe("e2m1"), **tomllib.loads(named), "rules": rules}):
        near = kquant.calibrate(kquant.quantize(model, way), X, verbose=False)
        assert kquant.export(near, tmp_path / "near.tflite", data=X[:8]).verification


def test_a_recipe_of_toml_and_what_is_told(tmp_path: Path) -> None:
    (tmp_path / "mx.toml").write_text('[activations]\nkind = "e3m2"\nbits = 6\nblock = 32\n')
    with pytest.warns(UserWarning, match="activations of kind e3m2 in blocks are simulated only"):
        q = kquant.quantize(image(), str(tmp_path / "mx.toml"))
    told = {row.name: row.encoding for row in rows(q)}
    assert told["image"] == told["head_softmax"] == "e3m2, blocks of 32"
    refused = [row.layer for row in kquant.check(image(), recipe=str(tmp_path / "mx.toml")).layers if row.remedy]
    assert "conv" in " ".join(refused)
    one = kquant.quantize(image(), {"name": "one", "activations": {"kind": "e3m2", "bits": 6}})
    kquant.calibrate(one, X, verbose=False)
    assert {row.name: row.encoding for row in rows(one)}["image"].startswith("e3m2 0.")
    assert kquant.encodings(q)["activation_encodings"] == kquant.encodings(one)["activation_encodings"] == {}
    analysis = kquant.analyze(q, X, verbose=False, remedies=False)
    assert analysis.layers


def test_integers_have_no_blocks() -> None:
    for table in ({"block": 32}, {"kind": "power-of-two", "block": 32}):
        with pytest.raises(
            ValueError, match="has one scale, as kernels read it; block is for activations of the kinds"
        ):
            kquant.quantize(image(), {"name": "m", "activations": table})
    with pytest.raises(ValueError, match="or one for each block .* weights = { per_axis"):
        kquant.quantize(image(), {"name": "m", "activations": {"per_axis": True}})


@pytest.mark.filterwarnings("ignore:calibrate")  # of few bits
@pytest.mark.parametrize("block", [0, 32])
@pytest.mark.parametrize("kind", ["e4m3", "e2m1"])
def test_probabilities_and_heads(kind: str, block: int) -> None:
    x = keras.Input((40,))
    parts = [
        layers.Dense(3, activation=a, kernel_initializer=keras.initializers.RandomNormal(0, 1, 1))(x)
        for a in ("softmax", None)
    ]
    model = keras.Model(x, layers.Concatenate()(parts))
    data = np.random.default_rng(2).normal(size=(64, 40)).astype("float32")
    grid = {"kind": kind, "bits": BITS[kind], "block": block}
    q = kquant.calibrate(kquant.quantize(model, {"name": "m", "activations": grid}), data, verbose=False)
    nodes = {layer.name: layer for layer in q.layers if hasattr(layer, "spec") and hasattr(layer, "fixed")}
    one = next(node for node in nodes.values() if node.fixed is not None)
    found = keras.Model(q.inputs, one.output[0]).predict(data, verbose=0)
    if block:
        model_of = keras.Model(q.inputs, keras.tree.flatten(one.input)[0])
        np.testing.assert_array_equal(found, reference(model_of.predict(data, verbose=0), kind))
    else:
        assert found.max() > 0.95  # 4 bits held up to 0.53

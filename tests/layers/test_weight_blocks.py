"""Uniform weights in blocks, as LiteRT's BlockwiseQuantization has them: simulated anywhere, tables in the file too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import interpreter
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

import kquant
from kquant.core.spec import QuantSpec
from kquant.layers.nonuniform import on_grid

pytestmark = pytest.mark.filterwarnings("ignore:quantize. weights that are simulated only")

X = np.random.default_rng(0).integers(0, 50, size=(64, 5)).astype(np.int32)


def nearest(rows: np.ndarray, bits: int, block: int) -> np.ndarray:
    """In NumPy, block by block."""
    high, out = 2 ** (bits - 1) - 1, np.zeros_like(rows)
    for row in range(len(rows)):
        for start in range(0, rows.shape[1], block):
            part = rows[row, start : start + block]
            scale = np.float32(np.float16(np.float32(np.abs(part).max()) / np.float32(high)))
            out[row, start : start + block] = np.clip(np.rint(part / scale), -high, high) * scale
    return out


@given(seed=st.integers(0, 2**32 - 1), bits=st.sampled_from([2, 3, 4, 8]), block=st.sampled_from([4, 16, 100]))
@settings(max_examples=20, deadline=None)
def test_each_block_has_a_scale_of_its_own(seed: int, bits: int, block: int) -> None:
    rng = np.random.default_rng(seed)
    kernel = (rng.normal(size=(50, 3)) * 2.0 ** rng.integers(-6, 6, (50, 3))).astype(np.float32)
    spec = QuantSpec(bits, symmetric=True, narrow=True, per_axis=True, block=block)
    found = on_grid(tf.constant(kernel), spec, (1,)).numpy()
    np.testing.assert_array_equal(found, nearest(kernel.T, bits, block).T)


def test_weights_of_zero_stay_zero() -> None:
    spec = QuantSpec(4, symmetric=True, narrow=True, block=4)
    assert not on_grid(tf.zeros((8, 2)), spec, (1,)).numpy().any()
    tiny = on_grid(tf.fill((8, 2), 1e-9), spec, (1,)).numpy()  # below float16
    assert np.isfinite(tiny).all() and np.abs(tiny).max() <= 2.0**-24 * 7


def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    tokens = keras.Input((5,), dtype="int32", name="tokens")
    x = layers.Flatten()(layers.Embedding(50, 64, name="table")(tokens))
    return keras.Model(tokens, layers.Dense(4, name="head")(x))


def quantized(bits: int, block: int, target: str = "litert") -> keras.Model:
    weights = {"bits": bits, "block": block}
    recipe = {"name": "blocks", "rules": [{"layer": "table", "float": True, "weights": weights}]}
    return kquant.calibrate(kquant.quantize(model(), recipe, target=target), X, verbose=False)


@pytest.mark.parametrize(("bits", "block"), [(4, 32), (3, 64), (2, 16)])
def test_a_table_in_blocks_is_what_litert_looks_up(bits: int, block: int, tmp_path: Path) -> None:
    q = quantized(bits, block)
    kquant.export(q, path := tmp_path / "m.tflite", check_runtimes=False)
    for runtime in ("litert-reference", "litert"):
        np.testing.assert_array_equal(kquant.predict(path, X, runtime), q.predict(X, verbose=0))
    file = kquant.inspect(path)
    assert "EMBEDDING_LOOKUP" in [op.code for op in file.operators]
    table = next(t for t in file.tensors if t.name == "table/kernel")
    packed = 2 if bits == 2 else 4
    assert table.size_bytes == 50 * 64 * packed // 8


def test_blocks_of_floats_divide_the_columns_of_a_table() -> None:
    # channels, as in any kernel, and as models that were saved before tables had blocks of their rows have them
    table = np.random.default_rng(0).normal(size=(50, 24)) * 2.0 ** (np.arange(50)[:, None] % 7)
    tokens = keras.Input((5,), dtype="int32", name="tokens")
    rows = keras.Model(tokens, layers.Embedding(50, 24, name="table", weights=[table])(tokens))
    weights = {"kind": "e2m1", "bits": 4, "block": 32}
    recipe = {"name": "mx", "rules": [{"layer": "table", "float": True, "weights": weights}]}
    q = kquant.calibrate(kquant.quantize(rows, recipe), X, verbose=False)
    spec = QuantSpec(4, symmetric=True, narrow=True, kind="e2m1", block=32)
    wanted = on_grid(tf.constant(np.float32(table)), spec, (1,)).numpy()
    np.testing.assert_array_equal(q.get_layer("table").kernels()[0].on_grid.numpy(), wanted)


def test_it_trains_and_comes_back(tmp_path: Path) -> None:
    q, y = quantized(4, 32), np.arange(64) % 4
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    q.compile(keras.optimizers.Adam(1e-2), loss)
    losses = q.fit(X, y, epochs=3, batch_size=16, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    q.save(tmp_path / "q.keras")
    loaded: Any = keras.saving.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), q.predict(X, verbose=0))
    kquant.export(q, path := tmp_path / "m.tflite", check_runtimes=False)
    np.testing.assert_array_equal(kquant.predict(path, X, "litert-reference"), q.predict(X, verbose=0))


SOUND = np.float32(np.random.default_rng(1).normal(size=(96, 12)) @ np.random.default_rng(2).normal(size=(12, 64)))


def dense(recipe: Any) -> keras.Model:
    keras.utils.set_random_seed(0)
    made = [layers.Dense(96, activation="relu", name="wide"), layers.Dense(5, name="head")]
    return kquant.quantize(keras.Sequential([keras.Input((64,)), *made]), recipe)


def by_rows(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """In float64: each row of activations in 8 bits on the way, from its least to its largest value, 0 among them."""
    low, high = np.minimum(x.min(1, keepdims=True), 0.0), np.maximum(x.max(1, keepdims=True), 0.0)
    scale = (high - low) / 255
    zero = np.rint(-128 - low / scale)
    return (np.clip(np.rint(x / scale) + zero, -128, 127) - zero) * scale @ weights


def decibels(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(wanted**2) / np.mean((found - wanted) ** 2)))


@pytest.mark.parametrize("delegates", [True, False])
@pytest.mark.parametrize(("bits", "block"), [(4, 32), (3, 64)])
def test_a_dense_in_blocks_is_what_kernels_of_phones_multiply(
    bits: int, block: int, delegates: bool, tmp_path: Path
) -> None:
    weights = {"bits": bits, "block": 32}
    wide = {"layer": "wide", "weights": {"block": block}}
    q = dense({"name": "d", "mode": "dynamic", "weights": weights, "rules": [wide]})
    report = kquant.export(q, path := tmp_path / "m.tflite", data=SOUND)
    assert [v.runtime for v in report.verification] == ["litert"] and report.file_bytes < 6000
    kinds = interpreter.OpResolverType
    kind = kinds.AUTO if delegates else kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    file = interpreter.Interpreter(str(path), experimental_op_resolver_type=kind)
    file.resize_tensor_input(0, SOUND.shape)
    file.allocate_tensors()
    file.set_tensor(file.get_input_details()[0]["index"], SOUND)
    file.invoke()
    found = file.get_tensor(file.get_output_details()[0]["index"])
    held = [np.float64(q.get_layer(name).weights_on_grid()) for name in ("wide", "head")]
    x = np.maximum(by_rows(np.float64(SOUND), held[0]), 0.0)
    assert decibels(found, by_rows(x, held[1])) > 45.0
    assert decibels(found, q.predict(SOUND, verbose=0)) > 35.0


def test_the_kernels_that_leave_blocks_out_are_refused(tmp_path: Path) -> None:
    q = dense({"name": "d", "mode": "dynamic", "weights": {"bits": 4, "block": 32}})
    kquant.gptq(q, SOUND, verbose=False)
    kquant.export(q, path := tmp_path / "m.tflite", data=SOUND)
    assert decibels(kquant.predict(path, SOUND), q.predict(SOUND, verbose=0)) > 35.0  # the codes that were chosen
    for verb in (kquant.predict, lambda *given: kquant.verify(q, *given)):
        with pytest.raises(ValueError, match=r"multiplies weights in blocks, which 'litert-reference' leaves out"):
            verb(path, SOUND, "litert-reference")
    for layer, weights in (("wide", {"bits": 4, "block": 16}), ("head", {"bits": 4, "block": 48})):
        q = dense({"name": "d", "mode": "dynamic", "rules": [{"layer": layer, "weights": weights}]})
        with pytest.raises(ValueError, match=f"{layer}: weights in blocks of .*multiple of 32"):
            kquant.export(q, tmp_path / "other.tflite")


@pytest.mark.parametrize(
    ("weights", "rule", "told"),
    [
        ({"block": 32}, {}, ["4 bits in blocks of 32, packed", ""]),
        (
            {"block": 32},
            {"layer": "head", "weights": {"block": 0}},
            ["4 bits in blocks of 32, packed", "4 bits, packed"],
        ),
        (
            {"block": 32, "bits": 3},
            {"layer": "head", "weights": {"block": 0, "bits": 8}},
            ["3 bits in 4 in bl", "8 bits"],
        ),
        ({"block": 16}, {}, ["", ""]),
        ({"block": 32, "bits": 8}, {}, ["", ""]),
    ],
)
def test_what_no_operator_reads_is_told_before_anyone_trains(
    weights: dict[str, Any], rule: dict[str, Any], told: list[str], tmp_path: Path
) -> None:
    keras.utils.set_random_seed(0)
    made = [layers.Dense(96, activation="relu", name="wide"), layers.Dense(1, name="head")]  # an operator wants 4 units
    net = keras.Sequential([keras.Input((64,)), *made])
    for layer in net.layers:
        layer.bias.assign(np.linspace(0.5, 1.5, layer.units))  # as trained ones: a file keeps no zeros
    recipe = {"name": "d", "mode": "dynamic", "weights": {"bits": 4, **weights}, "rules": [rule] if rule else []}
    rows = {row.layer: row for row in kquant.check(net, "litert", recipe=recipe).layers}
    assert all("".join(rows[name].weights).startswith(said) for name, said in zip(("wide", "head"), told, strict=True))
    bad = [name for name, row in rows.items() if row.status == "refused"]
    assert bad == [name for name, said in zip(("wide", "head"), told, strict=True) if not said]
    sized = kquant.estimate(net, recipe, target="litert")
    assert [row.layer for row in sized.refused] == bad
    if not bad:
        report = kquant.export(kquant.quantize(net, recipe), tmp_path / "m.tflite", check_runtimes=False)
        assert report.file_bytes == sized.flash_bytes
        return
    assert all("with weights = { block = 0 }" in rows[name].remedy for name in bad)
    with pytest.warns(UserWarning, match=f"will refuse this model. .*{bad[0]}.*: weights in blocks of "):
        q = kquant.quantize(net, recipe)
    with pytest.raises(
        ValueError, match=f"{', '.join(sorted(bad))}: weights in blocks of .* weights = {{ block = 0 }}"
    ):
        kquant.export(q, tmp_path / "m.tflite")


def test_a_table_in_blocks_is_told_as_it_is_stored() -> None:
    rule = {"layer": "table", "float": True, "weights": {"bits": 4, "block": 32}}
    rows = kquant.check(model(), "litert", recipe={"name": "b", "rules": [rule]}).layers
    assert [row.weights for row in rows if row.layer == "table"] == [("4 bits in blocks of 32, packed",)]
    told = kquant.analyze(quantized(4, 32), X, sensitivity=False, remedies=False, verbose=False)
    assert [row.weight_bytes for row in told.layers if row.name == "table"] == [50 * 64 // 2 + 100 * 2]
    rule["weights"] = {"bits": 4, "block": 48}  # a row of 64 is no whole number of them
    rows = kquant.check(model(), "litert", recipe={"name": "b", "rules": [rule]}).layers
    assert [row.layer for row in rows if row.status == "refused"] == ["table"]


def test_a_transformer_in_blocks_is_written_and_corrected(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 32), name="frames")
    x = layers.LayerNormalization(name="norm")(
        inputs + layers.MultiHeadAttention(2, 16, name="attention")(inputs, inputs)
    )
    x = layers.Dense(64, activation="gelu", name="wide")(x)
    text = keras.Model(inputs, layers.Dense(4, name="head")(layers.GlobalAveragePooling1D()(x)))
    text.get_layer("norm").gamma.assign(np.linspace(0.5, 2.0, 32))
    frames = np.float32(
        np.random.default_rng(1).normal(size=(128, 6, 8)) @ np.random.default_rng(2).normal(size=(8, 32))
    )
    wanted, sound = text.predict(frames, verbose=0), []
    for correct in (False, True):
        q = kquant.quantize(text, {"name": "d", "mode": "dynamic", "weights": {"bits": 4, "block": 32}})
        if correct:
            kquant.gptq(q, frames, verbose=False)
        kquant.export(q, path := tmp_path / "m.tflite", data=frames)
        sound.append(decibels(kquant.predict(path, frames), wanted))
    assert sound[1] > sound[0] + 3.0, sound


def test_what_no_file_holds_says_so(tmp_path: Path) -> None:
    q = kquant.calibrate(kquant.quantize(model(), {"name": "b", "weights": {"bits": 4, "block": 32}}), X, verbose=False)
    with pytest.raises(
        ValueError, match=r"head: weights in blocks of 32, which no integer kernel.*weights = { block = 0 }"
    ):
        kquant.export(q, tmp_path / "m.tflite")
    with pytest.raises(ValueError, match=r"table: weights in blocks of 48"):  # 64 is no multiple of it
        kquant.export(quantized(4, 48), tmp_path / "m.tflite")
    with pytest.raises(ValueError, match="runs integers only"):
        quantized(4, 32, target="tflm")

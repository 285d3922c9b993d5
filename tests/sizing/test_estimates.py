"""What `kquant.estimate` tells of models without data, against the files of trained and calibrated ones, and TFLM."""

from __future__ import annotations

import dataclasses
import json
import warnings
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import kquant
from benchmarks import assets
from kquant import report
from kquant.layers.nodes import encodings_of
from kquant.runtime.arenas import arena_bytes
from kquant.runtime.running import available
from kquant.sizing import estimation
from kquant.tflite.arena_forecast import forecast_arena
from kquant.tflite.file_content import file_content
from kquant.tflite.lowering import lower
from kquant.tflite.memory_plan import memory_plan
from kquant.tflite.reader import read_model

MICRO = pytest.mark.skipif("tflm" not in available(), reason="needs the micro extra")
ASSETS = pytest.mark.skipif(
    not (assets.FOLDER / "load.py").is_file(), reason="the models are not part of the repository; set KQUANT_ASSETS"
)
RNG = np.random.default_rng(0)


def net(activation: str = "relu", batch_norm: bool = True) -> keras.Model:
    """As it is built: biases of zeros, fresh batch norms."""
    x = inputs = keras.Input((16, 16, 3), name="image")
    for i, width in enumerate((8, 16)):
        x = layers.Conv2D(width, 3, strides=2, padding="same", use_bias=not batch_norm, name=f"conv{i}")(x)
        x = layers.BatchNormalization(name=f"norm{i}")(x) if batch_norm else x
        x = layers.Activation(activation, name=f"act{i}")(x)
    x = layers.Add(name="add")([x, layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)])
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(5, activation="softmax", name="head")(x), name="net")


def mixed() -> keras.Model:
    """A recurrent layer, attention and a table beside each other."""
    tokens, series = keras.Input((7,), dtype="int32", name="tokens"), keras.Input((6, 8), name="series")
    x = layers.Embedding(20, 8, name="table")(tokens)
    x = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    y = layers.LSTM(4, name="lstm")(series)
    x = layers.PReLU(name="slopes")(layers.GlobalMaxPooling1D(name="most")(x))
    x = layers.Concatenate(name="both")([x, y])
    return keras.Model([tokens, series], layers.Dense(3, name="head")(x), name="mixed")


def loop() -> keras.Model:
    """What repeats a step, in a subgraph of its own."""
    x = inputs = keras.Input((6, 8), name="series")
    x = layers.GRU(4, name="gru")(layers.Dense(8, activation="relu", name="wide")(x))
    return keras.Model(inputs, layers.Dense(3, name="head")(x), name="loop")


def samples(model: keras.Model) -> list[np.ndarray]:
    return [
        RNG.integers(0, 20, (64, *t.shape[1:])).astype("int32")
        if t.dtype == "int32"
        else RNG.normal(size=(64, *t.shape[1:])).astype("float32")
        for t in model.inputs
    ]


def train(model: keras.Model) -> None:
    """Every weight becomes another one, as after training."""
    for variable in model.weights:
        noise = RNG.normal(0.0, 0.1, variable.shape)
        # a variance stays one
        variable.assign(np.abs(variable.numpy() + noise) if "variance" in variable.name else variable.numpy() + noise)


def written(model: keras.Model, data: Any, recipe: Any, target: str, ranged: bool = False) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        q = kquant.calibrate(kquant.quantize(model, recipe, target=target), data, verbose=False)
    # an estimate leaves out what weights alone prove dead: ranges are made up there
    return file_content(lower(q, ranged=ranged))


MIXTURE = {
    "name": "mixture",
    "rules": [
        {"layer": "conv0", "weights": {"bits": 4}},
        {"layer": "depthwise", "activations": {"bits": 16}},
        {"layer": "head", "float": True},
    ],
}
CASES = (
    (net, "int8", "tflm"),
    (net, "int8", "litert"),
    (net, "int8", "ethos-u"),
    (net, "int16x8", "tflm"),
    (net, "int4-weights", "litert"),
    (net, "float16", "litert"),
    (net, "dynamic-int8", "litert"),
    (net, MIXTURE, "litert"),
    (lambda: net("relu6"), "int8", "tflm"),
    (lambda: net("swish", batch_norm=False), "int8", "tflm"),
    (mixed, "int8", "tflm"),
    (mixed, "int16x8", "litert"),
    (loop, "int8", "tflm"),
)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("build", "recipe", "target"), CASES)
def test_an_untrained_model_takes_what_the_trained_one_will(build: Any, recipe: Any, target: str) -> None:
    keras.utils.set_random_seed(0)
    model = build()
    found = kquant.estimate(model, recipe, target=target)
    train(model)
    content = written(model, samples(model), recipe, target)
    file = read_model(content)
    assert found.operators == file.operator_counts
    assert found.flash_bytes == pytest.approx(len(content), rel=0.01)
    assert found.activation_bytes == memory_plan(file).size_bytes
    assert found.stored_bytes == file.weight_bytes == sum(row.flash_bytes for row in found.layers)
    assert found.macs == sum(row.macs for row in found.layers)
    if found.arena_bytes is not None and not found.arena_is_forecast:
        assert found.arena_bytes == pytest.approx(arena_bytes(content), rel=0.02)


def test_channels_that_weights_alone_prove_dead_are_left_out() -> None:
    """What ranges prove as well is in the file only: an estimate is never below it for that."""
    keras.utils.set_random_seed(3)
    x = inputs = keras.Input((8, 8, 2), name="x")
    x = layers.Conv2D(12, 3, activation="relu", name="first")(x)
    x = layers.DepthwiseConv2D(3, activation="relu", name="middle")(x)
    model = keras.Model(inputs, layers.Conv2D(4, 1, name="last")(x))
    whole = kquant.estimate(model, target="tflm")
    last, bias = model.get_layer("last").kernel, model.get_layer("first").bias
    last.assign(last * (np.arange(12) < 7)[:, None])  # five are read by nobody
    found = kquant.estimate(model, target="tflm")
    assert found.flash_bytes < whole.flash_bytes - 5 * (18 + 9 + 4)
    # two more never rise above the ReLU's zero: that takes ranges
    bias.assign(np.where(np.arange(12) < 2, -1e4, np.asarray(bias)))
    again = kquant.estimate(model, target="tflm")
    made = len(written(model, samples(model), "int8", "tflm", ranged=True))
    assert made < again.flash_bytes - 2 * (18 + 9) and abs(again.flash_bytes - found.flash_bytes) < 64


def test_a_bias_that_is_still_zero_is_counted() -> None:
    """A file stores no bias of zeros, and an estimate is of what training makes of it."""
    model = net(batch_norm=False)
    before = [v.numpy().copy() for v in model.variables]
    found = kquant.estimate(model, target="tflm")
    bare = len(written(model, samples(model), "int8", "tflm"))
    assert found.flash_bytes is not None and found.flash_bytes - bare > 4 * (8 + 16 + 16 + 5)
    assert all(np.array_equal(a, v.numpy()) for a, v in zip(before, model.variables, strict=True))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_multiplications() -> None:
    rows = {row.layer: row.macs for row in kquant.estimate(mixed()).layers}
    heads = 2 * 4
    attention = 4 * 7 * 8 * heads + 2 * 7 * 7 * heads
    # a table is looked up and slopes multiply: neither adds up products
    assert rows["table"] == rows["slopes"] == rows["most"] == 0
    assert rows["attention"] == attention
    assert rows["lstm"] == 6 * 4 * (8 + 4) * 4
    assert rows["head"] == 3 * (8 + 4)
    assert {row.layer: row.macs for row in kquant.estimate(loop()).layers}["gru"] == 6 * 3 * 4 * (8 + 4)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_rows_are_the_layers_of_the_user() -> None:
    model = mixed()
    rows = kquant.estimate(model).layers
    assert {row.layer for row in rows} - {layer.name for layer in model.layers} == set()
    assert next(row for row in rows if row.layer == "attention").operators["BATCH_MATMUL"] == 2


def test_multiplications_of_float_layers_count() -> None:
    recipe = {"name": "head-float", "rules": [{"layer": "head", "float": True}]}
    assert kquant.estimate(net(), recipe).macs == kquant.estimate(net()).macs == kquant.cost(net()).macs


@ASSETS
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", assets.TASKS)
def test_mlperf_tiny(name: str) -> None:
    task = assets.task(name)
    found = kquant.estimate(task.model, target="tflm")
    content = written(task.model, task.calibration[:32], "int8", "tflm", ranged=True)
    assert (found.channels_left_out > 1000) == (name == "visual_wake_words")
    assert found.flash_bytes == pytest.approx(len(content), rel=0.01)
    assert found.macs == kquant.cost(task.model).macs
    file = read_model(content)
    assert found.operators == file.operator_counts
    if "tflm" in available():
        arena = arena_bytes(content)
        assert arena is not None
        assert found.arena_bytes == pytest.approx(arena, rel=0.02)
        assert forecast_arena(file, memory_plan(file).size_bytes) == pytest.approx(arena, rel=0.01)


@MICRO
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_large_untrained_model() -> None:
    untrained: Any = None
    model = keras.applications.MobileNetV2((96, 96, 3), alpha=0.35, weights=untrained)
    found = kquant.estimate(model, target="tflm")
    assert found.macs == kquant.cost(model).macs
    assert found.ok and not found.arena_is_forecast
    # what the widest depthwise convolution reads and writes
    assert found.peak_layer == "block_1_depthwise" and found.activation_bytes == 48 * 48 * 48 + 24 * 24 * 48


def test_without_tflm_the_arena_is_a_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    told = kquant.estimate(net(), target="tflm")
    monkeypatch.setattr("kquant.sizing.estimation.available", lambda: ["litert", "litert-reference"])
    monkeypatch.setattr("kquant.runtime.arenas.available", lambda: ["litert", "litert-reference"])
    found = kquant.estimate(net(), target="tflm")
    assert found.arena_is_forecast
    assert "forecast" in report.render(found)
    if not told.arena_is_forecast:
        assert found.arena_bytes == pytest.approx(told.arena_bytes, rel=0.1)


@MICRO
def test_no_arena_where_tflm_does_not_run_the_file() -> None:
    found = kquant.estimate(net(), "float16")
    assert found.arena_bytes is None and not found.arena_is_forecast and found.activation_bytes
    assert "arena unknown" in report.render(found)


def sorting() -> keras.Model:
    x = inputs = keras.Input((4, 4, 1), name="image")
    x = layers.Flatten(name="flat")(layers.Conv2D(2, 3, name="conv")(x))
    return keras.Model(inputs, layers.Dense(2, name="head")(keras.ops.sort(x)), name="sorts")


def test_what_would_not_run_is_named_and_nothing_raised() -> None:
    found = kquant.estimate(sorting(), target="tflm", flash_bytes=1)
    assert [(row.layer, row.status) for row in found.refused] == [("sort", "refused")]
    assert not found.ok and found.flash_bytes is None and not found.over
    assert repr(found) == "Estimate('sorts' on tflm, int8: sort would not run)"
    assert "no int8 kernel sorts" in report.render(found)


def test_other_faults_are_raised() -> None:
    with pytest.raises(ValueError, match="recipe 'int9'"):
        kquant.estimate(net(), "int9")
    with pytest.raises(ValueError, match="matches no layer|no layer"):
        kquant.estimate(net(), {"name": "mine", "rules": [{"layer": "absent", "float": True}]})
    with pytest.raises(ValueError, match="quantized already"):
        kquant.estimate(kquant.quantize(net()))
    with pytest.raises(ValueError, match="flash_bytes must be a whole number of bytes, 1 or more"):
        kquant.estimate(net(), flash_bytes=0)
    with pytest.raises(ValueError, match="decoded by TensorFlow Lite Micro alone"):
        kquant.estimate(net(), compression="lut")


def test_open_shapes() -> None:
    x = inputs = keras.Input((None, None, 3), name="image")
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, name="conv")(x))
    model = keras.Model(inputs, layers.Dense(2, name="head")(x), name="open")
    with pytest.raises(ValueError, match="input_shape"):
        kquant.estimate(model)
    small, large = (kquant.estimate(model, input_shape=(None, n, n, 3)) for n in (8, 16))
    assert (small.macs, large.macs) == (6 * 6 * 108 + 8, 14 * 14 * 108 + 8)
    assert small.flash_bytes == large.flash_bytes


@MICRO
def test_limits() -> None:
    plain = kquant.estimate(net(), target="tflm")
    assert plain.ok and plain.over == {} and plain.flash_bytes and plain.arena_bytes and plain.reserve_bytes
    exact = kquant.estimate(net(), target="tflm", flash_bytes=plain.flash_bytes, arena_bytes=plain.reserve_bytes)
    assert exact.ok and "fits" in report.render(exact)
    tight = kquant.estimate(
        net(), target="tflm", flash_bytes=plain.flash_bytes - 1, arena_bytes=plain.reserve_bytes - 7
    )
    assert tight.over == {"flash": 1, "arena": 7} and not tight.ok
    assert "too large" in report.render(tight)
    # the one that the interpreter starts in with reference kernels is not enough for those of a device
    smallest = kquant.estimate(net(), target="tflm", arena_bytes=plain.arena_bytes)
    assert smallest.over == {"arena": plain.reserve_bytes - plain.arena_bytes} and not smallest.ok
    told = report.render(plain)
    assert f"{plain.arena_bytes:,} bytes are the smallest" in told and f"reserves {plain.reserve_bytes:,}" in told


@MICRO
def test_look_up_tables_of_a_clustered_model() -> None:
    inputs = keras.Input((256,))
    model = kquant.cluster(keras.Sequential([inputs, layers.Dense(64, name="wide"), layers.Dense(4, name="head")]), 4)
    plain = kquant.estimate(model, target="tflm")
    small = kquant.estimate(model, target="tflm", compression="lut")
    assert plain.flash_bytes and small.flash_bytes and small.flash_bytes < 0.6 * plain.flash_bytes
    assert {row.layer for row in small.layers} == {"wide", "head"}


def test_edges_cost_an_operator_each() -> None:
    found = kquant.estimate(net(), io="float32")
    assert (found.operators["QUANTIZE"], found.operators["DEQUANTIZE"]) == (1, 1)


def test_report_and_json() -> None:
    found = kquant.estimate(net(), target="tflm")
    text = report.render(found, 80)
    assert max(map(len, text.splitlines())) <= 80 or "recipe 'int8'" in text.splitlines()[0]
    assert "DEPTHWISE_CONV_2D" in text and found.peak_layer in text
    plain = json.loads(report.to_json(found))
    assert plain["macs"] == found.macs and plain["ok"] and plain["layers"][0]["layer"] == "conv0"
    assert repr(found).startswith("Estimate('net' on tflm, int8: flash ") and len(repr(found)) < 100
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.macs = 0  # pyright: ignore[reportAttributeAccessIssue]


def test_made_up_ranges_are_all_different() -> None:
    """Files store equal zero points once, and need no QUANTIZE between equal encodings."""
    q = kquant.quantize(net("swish"), target="tflm")
    estimation.make_up(q, estimation.read(q))
    grids = [tuple(float(n) for n in layer.grid()[:2]) for layer in encodings_of(q) if layer.has_range]
    assert len(set(grids)) == len(grids) > 8

"""Whole graphs, file against simulation: encodings meet, layers are shared, weights, ranges and names are odd."""

from __future__ import annotations

import re
import sys
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import contract
import graph_cases
import graph_cases_shapes  # noqa: F401  (enrols its graphs)
import keras
import numpy as np
import pytest
from graph_cases import image
from keras import layers

import kquant
from kquant import targets
from kquant.graph.copies import copy_of
from kquant.layers.nodes import Compressed
from kquant.ops.expansion import expand
from kquant.prepare.folding import fold
from kquant.runtime.running import available
from kquant.tflite.lowering import lower
from kquant.tflite.reader import read_model

pytestmark = pytest.mark.filterwarnings(
    r"ignore:calibrate. \d+ samples are few",
    "ignore:calibrate. tensors of very different ranges share",
    "ignore:calibrate. the range differs more than 2 times",
    "ignore:calibrate. these tensors carry hardly any signal",
    "ignore:quantize. an output of the model joins heads whose ranges may differ",
    "ignore:calibrate. what an output of the model joins has ranges that are alike",
)

NAMES = sorted(graph_cases.CASES)
every_graph = pytest.mark.parametrize("name", NAMES)
both_targets = pytest.mark.parametrize("target", ["litert", "tflm"])


def _build(name: str) -> keras.Model:
    return contract.randomise(graph_cases.CASES[name](), zlib.crc32(name.encode()))


def _quantized(model: keras.Model, x: list[np.ndarray], target: str = "litert") -> keras.Model:
    q = kquant.quantize(model, target=target)
    return kquant.calibrate(q, contract.packed(q, x), verbose=False)


@cache
def _calibrated(name: str, target: str = "litert") -> keras.Model:
    """A graph, quantized; tests read it only."""
    model = _build(name)
    return _quantized(model, contract.data(expand(model)), target)


def _same_codes(q: keras.Model, x: list[np.ndarray], target: str) -> None:
    """Equal on the runtimes whose rounding the simulation follows; XNNPACK must take the file."""
    content = contract.file_of(q)
    assert contract.floats(content) == []
    for runtime in targets.load(target).runtimes:
        if runtime in available():
            parity = contract.compare(q, content, runtime, x)
            print(f"{runtime}: {parity.equal:.6f} equal, {parity.max_err_lsb} LSB")
            if runtime != "litert":
                assert parity.equal >= 0.999, runtime
                assert parity.max_err_lsb <= 1, runtime


@pytest.mark.one_in(2)
@every_graph
def test_float_function_is_kept(name):
    model = _build(name)
    x = contract.data(expand(model), 64)
    wanted = keras.tree.flatten(model(contract.packed(model, x)))
    for verb in (expand, fold):
        changed = verb(model)
        got = keras.tree.flatten(changed(contract.packed(changed, x)))
        for a, b in zip(wanted, got, strict=True):
            scale = np.abs(np.asarray(a)).max()
            np.testing.assert_allclose(np.asarray(b), np.asarray(a), rtol=0, atol=1e-5 * max(scale, 1e-3))


# Both targets of each graph, every second time the other one first.
TARGETS = [(name, target) for i, name in enumerate(NAMES) for target in ("litert", "tflm")[:: 1 if i % 2 else -1]]


@pytest.mark.one_in(2, always="concat_of_twelve|repeat_vector_of_23")  # these become other files on the other target
@pytest.mark.parametrize(("name", "target"), TARGETS)
def test_file_computes_the_codes_of_the_model(name, target):
    q = _calibrated(name, target)
    _same_codes(q, contract.data(q, 64, seed=3, spread=2.0), target)


@pytest.mark.one_in(5)
@every_graph
def test_saved_model_computes_the_same(name, tmp_path):
    q = _calibrated(name)
    q.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    x = contract.data(q, 32)
    for a, b in zip(contract.simulate(q, x), contract.simulate(again, x), strict=True):
        np.testing.assert_array_equal(a, b)
    assert contract.file_of(again) == contract.file_of(q)


@pytest.mark.parametrize(
    "name", ["average_pool_of_softmax_in_concat", "clipped_relu_of_sum_in_concat", "squeeze_excite"]
)
def test_any_layer_may_stay_float(name):
    model = _build(name)
    x = contract.data(model, 16)
    for layer in [n for n in fold(model).layers if not isinstance(n, keras.layers.InputLayer)]:
        recipe = {"name": "partly", "title": "one layer float", "rules": [{"layer": layer.name, "skip": True}]}
        q = kquant.calibrate(kquant.quantize(model, recipe), contract.packed(model, x), verbose=False)
        for y in contract.simulate(q, x):
            assert np.all(np.isfinite(y))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", ["unused_input", "input_is_an_output", "nested_list_of_outputs", "odd_names"])
@pytest.mark.parametrize("io", ["int8", "uint8", "float32"])
def test_export_verifies(name, io, tmp_path):
    q = _calibrated(name)
    report = kquant.export(q, tmp_path / "model.tflite", io=io)
    assert all(v.ok for v in report.verification)
    assert all(a.max_err_lsb == 0 for v in report.verification if v.runtime != "litert" for a in v.agreements)


# What the files look like


def _operators(name: str, target: str = "litert") -> dict[str, int]:
    return dict(read_model(contract.file_of(_calibrated(name, target))).operator_counts)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("padding_before_strided_convs", {"PAD": 3, "CONV_2D": 5, "DEPTHWISE_CONV_2D": 1}),
        ("pool_after_padding", {"CONV_2D": 1, "PAD": 1, "MAX_POOL_2D": 1}),
        ("mobile_bottleneck", {"CONV_2D": 2, "DEPTHWISE_CONV_2D": 1, "ADD": 1}),
        ("shared_conv_and_norm", {"CONV_2D": 2, "SUB": 1}),
        ("norm_of_norm", {"DEPTHWISE_CONV_2D": 1}),
        ("concat_two_sigmoids", {"FULLY_CONNECTED": 2, "LOGISTIC": 2, "CONCATENATION": 1}),
        ("concat_of_twelve", {"FULLY_CONNECTED": 12, "CONCATENATION": 1}),
        ("relu_of_elementwise", {"CONV_2D": 2, "ADD": 1, "MUL": 1, "SUB": 1}),
        ("unused_branch_of_a_nested_model", {"CONV_2D": 1, "MAX_POOL_2D": 1, "RESHAPE": 1}),
    ],
)
def test_no_operator_too_many(name, expected):
    assert _operators(name) == expected


def test_tflm_concatenates_in_parts():
    assert _operators("concat_of_twelve", "tflm")["CONCATENATION"] == 3
    # 10, 10 and 3 of one tensor, and these together: the first two are alike, so that one is enough
    assert _operators("repeat_vector_of_23", "tflm")["CONCATENATION"] == 3


def test_shared_layer_has_one_kernel_and_a_bias_for_each_input_scale():
    model = _build("shared_conv_and_norm")
    q = _quantized(model, [a * s for a, s in zip(contract.data(expand(model), 32), (1.0, 3.0), strict=True)])
    tensors = read_model(contract.file_of(q)).tensors
    assert sum("kernel" in t.name for t in tensors) == 1
    assert sum("bias" in t.name for t in tensors) == 2
    assert sum(isinstance(layer, Compressed) for layer in q.layers) == 1


def test_names_of_the_file_are_those_of_the_layers():
    model = _build("odd_names")
    q = _quantized(model, contract.data(expand(model)))
    assert model.name == "a model, v1.0"  # the given model keeps its own
    assert all(re.fullmatch(r"[A-Za-z0-9_.>-]+", layer.name) for layer in q.layers[1:])
    assert "x_quant" in {t.name for t in read_model(contract.file_of(q)).tensors}
    assert np.all(np.isfinite(q.predict(contract.data(q, 4)[0], verbose=0)))


# Weights and ranges at the edge


def _conv(**changes) -> keras.Model:
    x = image()
    y = layers.Conv2D(5, 3, activation="relu", name="conv")(x)
    model = contract.randomise(keras.Model(x, layers.Dense(3)(layers.GlobalAveragePooling2D()(y))), 5)
    for name, change in changes.items():
        variable = getattr(model.get_layer("conv"), name)
        variable.assign(change(np.asarray(variable)))
    return model


def _first_channel_dead(kernel: np.ndarray) -> np.ndarray:
    kernel = kernel.copy()
    kernel[..., 0] = 0.0
    kernel[..., 1] *= 1e-7
    return kernel


ODD = {
    "all weights zero": (lambda: _conv(kernel=np.zeros_like, bias=np.zeros_like), 1.0),
    "dead channels": (lambda: _conv(kernel=_first_channel_dead), 1.0),
    "dead channel with a large bias": (lambda: _conv(kernel=_first_channel_dead, bias=lambda b: b + 1e3), 1.0),
    "relu always zero": (lambda: _conv(bias=lambda b: b - 100.0), 1.0),
    "input always zero": (lambda: _conv(), 0.0),
    "input tiny": (lambda: _conv(), 1e-8),
    "input huge": (lambda: _conv(), 1e8),
    "input constant": (lambda: _conv(kernel=np.abs), None),
}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", ODD)
@both_targets
@pytest.mark.filterwarnings("ignore::UserWarning")  # kquant warns of each of these; test_models.py reads the warnings
def test_odd_weights_and_ranges(name, target):
    build, scale = ODD[name]
    model = build()
    x = contract.data(model, 64)
    x = [np.full_like(a, 7.0) if scale is None else a * np.float32(scale) for a in x]
    _same_codes(_quantized(model, x, target), x, target)


def _from_layer(layer: keras.layers.Layer, factor: float) -> keras.Model:
    x = image()
    return keras.Model(x, layer(layers.Rescaling(factor)(x)))


EXTREME = {
    "softmax": (layers.Softmax, 1e3),
    "sigmoid": (lambda: layers.Activation("sigmoid"), 1e4),
    "tanh": (lambda: layers.Activation("tanh"), 1e4),
    "tanh of little": (lambda: layers.Activation("tanh"), 1e-5),
    "gelu of little": (lambda: layers.Activation("gelu"), 1e-4),
    "silu": (lambda: layers.Activation("silu"), 1e2),
    "leaky": (lambda: layers.LeakyReLU(0.0), 1e4),
    "elu": (layers.ELU, 1e3),
}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", EXTREME)
@both_targets
def test_extreme_activations(name, target):
    make, factor = EXTREME[name]
    model = _from_layer(make(), factor)
    x = contract.data(model, 64)
    _same_codes(_quantized(model, x, target), x, target)


def test_inputs_that_differ_by_a_million_add():
    x = image()
    model = keras.Model(x, layers.Add()([x, layers.Rescaling(1e-6)(x)]))
    data = contract.data(model, 64)
    _same_codes(_quantized(model, data), data, "litert")


def test_hard_swish_of_an_outlier_gets_steps_that_its_kernel_takes():
    x = image()
    model = keras.Model(x, layers.Activation("hard_silu", name="swish")(x))
    data = contract.data(model, 64, spread=0.5)[0] - 2.0
    data[0] = -1000.0
    with pytest.warns(UserWarning, match="hardly any signal: swish"):
        q = _quantized(model, [data])
    _same_codes(q, [data], "litert")


def test_a_range_too_small_for_its_weights_is_refused_by_name():
    x = image()
    model = keras.Model(x, layers.Concatenate()([x, layers.Rescaling(1e6, name="far")(x)]))
    q = _quantized(model, contract.data(model, 64))
    with pytest.raises(ValueError, match=r"far.*would rescale by .*less than 256.*scale those down"):
        lower(q)


@pytest.mark.parametrize("inside", ["layer", "model"])
def test_what_a_normalization_of_every_step_was_adapted_to_stays(inside):
    x = np.random.default_rng(0).normal(3.0, 2.0, (16, 5, 6)).astype(np.float32)
    adapted = layers.Normalization(name="norm")
    adapted.adapt(x.reshape(-1, 6))
    block = adapted if inside == "layer" else keras.Sequential([keras.Input((6,)), adapted, layers.Dense(3)])
    inputs = keras.Input((5, 6))
    model = keras.Model(inputs, layers.TimeDistributed(block, name="each")(inputs))
    np.testing.assert_allclose(expand(model)(x), model(x), atol=1e-5)


def test_a_deep_model_becomes_three_times_as_deep(tmp_path: Path) -> None:
    x = inputs = keras.Input((2,))
    for _ in range(130):
        x = keras.layers.Dense(2, activation="relu")(x)
    model, before = keras.Model(inputs, x), sys.getrecursionlimit()
    sys.setrecursionlimit(400)  # instead of the usual thousand, which takes a model of 340 layers
    try:
        q = kquant.quantize(model)
        q.save(tmp_path / "deep.keras")
        again = keras.saving.load_model(tmp_path / "deep.keras")
        copied = copy_of(q)
        with pytest.raises(RecursionError):  # Keras alone
            keras.Model(q.input, q.output)
        assert sys.getrecursionlimit() == 400
    finally:
        sys.setrecursionlimit(before)
    assert [layer.name for layer in again.layers] == [layer.name for layer in q.layers]
    assert len(copied.layers) == len(q.layers) > 390


@keras.saving.register_keras_serializable(package="test_graphs")
class Nested(keras.layers.Layer):
    """A weight of its own, and a layer inside that begins as it does."""

    def __init__(self, kernel_initializer: Any = "glorot_uniform", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(shape[-1], shape[-1]), initializer=self.kernel_initializer.clone())
        self.inner = keras.layers.Dense(3, kernel_initializer=self.kernel_initializer)
        self.inner.build(shape)

    def call(self, x: Any) -> Any:
        return self.inner(x @ self.kernel)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "kernel_initializer": keras.initializers.serialize(self.kernel_initializer)}


@pytest.mark.filterwarnings("ignore:.*no kernels among weights of such layers:UserWarning")
def test_initializers_of_a_copy_are_keras_own() -> None:
    """Copies are built without random numbers; layers clone what they begin with, and hand it to others."""
    inputs = keras.Input((8,))
    model = keras.Model(inputs, keras.layers.Dense(2)(Nested(name="nested")(inputs)))
    small = kquant.prune(model, 0.5)
    for part in (small, kquant.strip(small)):
        assert kquant.quantize(part).output_shape == (None, 2)

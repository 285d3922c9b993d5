"""Tensors without signal: the kernels that check the scale of what they read get one that they take."""

from __future__ import annotations

import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
from contract import file_of, simulate
from keras import layers

import kquant
from kquant import targets
from kquant.core.spec import QuantSpec, encode_range
from kquant.runtime.prefixes import Place, first_that_ends, place_of
from kquant.runtime.running import probe, quantize_input
from kquant.tflite.reader import read_model

X = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
KERNELS = ("softmax", "sigmoid", "tanh")


def shrunk(kernel: str, size: float) -> keras.Model:
    """An activation over values of about this size."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8,))
    x = layers.Dense(6, kernel_initializer=keras.initializers.RandomNormal(stddev=size), name="logits")(x)
    return keras.Model(inputs, layers.Activation(kernel)(x))


@pytest.mark.parametrize("target", ["litert", "tflm"])
def test_values_too_small_for_a_kernel_are_told_and_the_file_runs(target: str, tmp_path: Path) -> None:
    inputs = keras.Input((8,))
    outputs = [shrunk(kernel, 1e-13)(inputs) for kernel in KERNELS]
    small = keras.initializers.RandomNormal(stddev=1e-9)
    pair = layers.Reshape((2, 4))(layers.Dense(8, kernel_initializer=small)(inputs))
    outputs.append(layers.MultiHeadAttention(1, 4)(pair, pair))  # its softmax multiplies by a beta below 1
    q = kquant.quantize(keras.Model(inputs, outputs), target=target)
    with pytest.warns(UserWarning, match=r"hardly any signal: .*logits.*e-1[23] wide, in steps of 1.49e-08"):
        kquant.calibrate(q, X, verbose=False)
    report = kquant.export(q, tmp_path / "m.tflite", data=X[:8])
    for found in report.verification:
        assert all(agreement.equal == 1.0 for agreement in found.agreements)


def test_values_that_a_kernel_takes_stay_as_they_are() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "calibrate: these tensors carry hardly any signal")
        q = kquant.calibrate(kquant.quantize(shrunk("softmax", 1e-3)), X, verbose=False)
    node = q.get_layer("logits_quant")
    plain = QuantSpec(node.spec.bits)
    low, high = (float(v.numpy()[0]) for v in (node.low, node.high))
    assert node.spec.smallest > 2**-26
    assert [float(v) for v in encode_range(low, high, node.spec)] == [float(v) for v in encode_range(low, high, plain)]


def test_a_floor_holds_on_every_grid() -> None:
    smallest = float(np.float32(1e-6))
    for spec in (QuantSpec(smallest=smallest), QuantSpec(8, True, smallest=smallest)):
        scale, zero_point = encode_range(-1e-9, 3e-9, spec)
        assert float(scale) == smallest and spec.low <= float(zero_point) <= spec.high
    powers = QuantSpec(kind="power-of-two", smallest=smallest)
    assert float(encode_range(-1e-9, 3e-9, powers)[0]) == 2.0**-19
    assert float(encode_range(0.0, 0.0, QuantSpec(smallest=smallest))[0]) == pytest.approx(1 / 255)


def test_the_floors_are_those_of_the_target_files() -> None:
    for name in targets.names():
        ops = targets.load(name).ops
        assert ops["SOFTMAX"].min_scale == 2.0**-26  # QuantizeMultiplierGreaterThanOne(beta * scale * 2^26)
        assert ops["LOGISTIC"].min_scale == ops["TANH"].min_scale == 2.0**-28  # a shift to the left of scale * 2^27


def test_the_first_prefix_that_ends_is_found(tmp_path: Path) -> None:
    net = keras.Sequential([keras.Input((8,)), *(layers.Dense(4, name=f"d{i}") for i in range(5))])
    kquant.export(kquant.calibrate(kquant.quantize(net), X, verbose=False), tmp_path / "m.tflite", check_runtimes=False)
    content = (tmp_path / "m.tflite").read_bytes()
    sizes: list[int] = []

    def ends(prefix: bytes) -> bool:
        sizes.append(len(kquant.inspect(prefix).operators))
        return sizes[-1] > 3

    assert first_that_ends(content, ends) == Place(4, 5, "FULLY_CONNECTED", "d3") == place_of(content, 3)
    assert sizes == [5, 3, 4]
    assert first_that_ends(content, lambda prefix: False) is None
    assert first_that_ends(b"TFL3", lambda prefix: True) is None and place_of(content, 9) is None


ROWS = np.random.default_rng(0).normal(size=(40, 600)).astype("float32")


def _over_many(recipe: object, target: str, spread: float) -> keras.Model:
    inputs = keras.Input((600,))
    q = kquant.quantize(keras.Model(inputs, layers.Softmax()(inputs)), recipe, target=target)
    return kquant.calibrate(q, np.clip(ROWS, -4, 4) * spread, verbose=False)


@pytest.mark.parametrize("target", ["litert", "tflm"])
def test_a_softmax_over_many_equal_values_is_computed_in_16_bits(target: str) -> None:
    q = _over_many("int8", target, 0.3)
    file, some = read_model(content := file_of(q)), 0.3 * ROWS[:2]
    assert [op.code for op in file.operators] == ["QUANTIZE", "SOFTMAX", "QUANTIZE"]
    found = probe(content, "litert-reference" if target == "litert" else target, [quantize_input(some, file.inputs[0])])
    assert np.array_equal(simulate(q, [some])[0], found[0] / 256 + 0.5)


def test_a_softmax_that_ends_the_process_runs_in_16_bits() -> None:
    equal = np.zeros((1, 600))  # of which the data have none
    with pytest.raises(ValueError, match=r"SOFTMAX, which makes 'softmax'.*16 bits by a rule .*\{ bits = 16 \}"):
        probe(file_of(_over_many("int8", "tflm", 1.5)), "tflm", [equal.astype("int8")])
    rule = {"type": "Softmax", "activations": {"bits": 16}}
    content = file_of(_over_many({"name": "wide", "rules": [rule]}, "tflm", 1.5))
    (found,) = probe(content, "tflm", [equal.astype(read_model(content).inputs[0].dtype)])
    assert np.all(np.abs(found / 32768 - 1 / 600) < 1e-4)


@pytest.mark.parametrize("target", ["litert", "tflm"])
def test_16_bit_functions_of_tiny_values_keep_their_multiplier(target: str) -> None:
    inputs = keras.Input((8,))
    model = keras.Model(inputs, [layers.Activation(kernel)(inputs) for kernel in KERNELS])
    q = kquant.quantize(model, "int16x8", target=target)
    with pytest.warns(UserWarning, match="hardly any signal"):
        kquant.calibrate(q, X * np.float32(1e-13), verbose=False)
    content, some = file_of(q), X[:4] * np.float32(1e-13)
    codes = quantize_input(some, read_model(content).inputs[0])
    found = probe(content, "litert-reference" if target == "litert" else target, [codes])
    for expected, made in zip(simulate(q, [some]), found, strict=True):
        assert np.array_equal(expected, made / np.float32(32768))

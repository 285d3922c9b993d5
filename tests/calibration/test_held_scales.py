"""Tensors of unlike sizes: every scale stays within what the kernels around it take, or the layer is named."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest
from contract import file_of, simulate
from keras import layers, ops

import kquant
from kquant import targets
from kquant.core.program import Program
from kquant.core.spec import Encoding, QuantSpec
from kquant.runtime.running import dequantize_output, probe, quantize_input
from kquant.tflite.limits import refuse_extremes, rescale
from kquant.tflite.lowering import lower
from kquant.tflite.reader import read_model

X = np.random.default_rng(0).normal(size=(64, 6, 4)).astype("float32")


def _chosen(x: keras.KerasTensor) -> keras.KerasTensor:
    """Twelve operators, among them a sum of tiny numbers and of what is always 0."""
    return ops.where(ops.logical_and(x > 0.0, x < 1.0), x, ops.zeros_like(x))


# What had one operator that ended the process, or codes of their own, where all inputs have such a size.
TINY = (
    lambda x: layers.ReLU(6.0)(layers.Conv1D(4, 3, use_bias=False)(x)),
    _chosen,
    lambda x: layers.AdditiveAttention()([x, x]),
    lambda x: x * x + 1e-6,
)
HUGE = (
    lambda x: layers.Subtract()([x, layers.Rescaling(1.0)(x)]),
    lambda x: layers.Attention()([x, x], use_causal_mask=True),
)


def _model(build: object) -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 4), name="x")
    return keras.Model(inputs, build(inputs))


@pytest.mark.parametrize("target", ["litert", "tflm"])
def test_files_of_unlike_sizes_run_as_the_model_does(target: str) -> None:
    keras.utils.set_random_seed(0)
    tiny, huge = (keras.Input((6, 4), name=name) for name in ("tiny", "huge"))
    outputs = [build(x) for x, builds in ((tiny, TINY), (huge, HUGE)) for build in builds]
    q = kquant.quantize(keras.Model([tiny, huge], outputs), target=target)
    data = {"tiny": X * np.float32(1e-12), "huge": X * np.float32(1e12)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kquant.calibrate(q, data, verbose=False)
    content, some = file_of(q), [data["tiny"][:4], data["huge"][:4]]
    file = read_model(content)
    codes = [quantize_input(x, t) for x, t in zip(some, file.inputs, strict=True)]
    found = probe(content, "litert-reference" if target == "litert" else "tflm", codes)
    for expected, made, t in zip(simulate(q, some), found, file.outputs, strict=True):
        assert np.array_equal(expected, dequantize_output(made, t)), t.name


def test_what_is_widened_is_told() -> None:
    inputs = keras.Input((4,), name="x")
    near = layers.Rescaling(1.0 + 2.0**-23, name="near")(inputs)
    q = kquant.quantize(keras.Model(inputs, layers.Subtract(name="difference")([near, inputs])))
    with pytest.warns(UserWarning, match=r"hardly any signal: difference_quant \(.*e-07 wide, in steps of .*e-08\)"):
        kquant.calibrate(q, X[:, 0], verbose=False)
    add = lower(q).program.operators[-1]
    assert add.code == "SUB" and 0.99 * 2**19 < rescale(add) < 2**19


def test_ranges_that_kernels_take_stay_as_they_are() -> None:
    model = _model(lambda x: layers.Add()([layers.Dense(4)(x), x]))
    q = kquant.quantize(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*hardly any signal")
        kquant.calibrate(q, X, verbose=False)
    y = model.predict(X, verbose=0)
    assert [float(end.numpy()[0]) for end in (q.layers[-1].low, q.layers[-1].high)] == [float(y.min()), float(y.max())]


@pytest.mark.parametrize(
    ("target", "layer", "size", "said"),
    [
        ("litert", lambda: layers.ReLU(6.0, name="bounded"), 1e10, r"bounded: its range \[0, 6\] is too small"),
        ("tflm", lambda: layers.Activation("tanh", name="bounded"), 1e13, "bounded: what it reads, x, comes in steps"),
        ("litert", lambda: layers.Activation("hard_swish", name="bounded"), 1e10, "bounded: what it reads, x, comes"),
        ("litert", lambda: layers.LSTM(3, name="bounded"), 1e10, "bounded: what it reads, x, is too large"),
    ],
)
def test_functions_with_bounds_refuse_what_is_far_beyond(target: str, layer: object, size: float, said: str) -> None:
    model = _model(lambda x: layer()(x))
    for samples, refused in ((size * X, True), (X, False)):  # scaled down before the model, as the message says
        q = kquant.quantize(model, target=target)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kquant.calibrate(q, samples, verbose=False)
        if refused:
            with pytest.raises(ValueError, match=f"export: {said}.*scale"):
                lower(q)
        else:
            lower(q)


@pytest.mark.parametrize("code", ["CONV_2D", "TRANSPOSE_CONV"])
def test_sums_that_leave_int32_are_refused(code: str) -> None:
    grid = Encoding(np.float32([1.0]), np.int64([-128]), QuantSpec())
    weights = Encoding(np.float32([1.0]), np.int64([0]), QuantSpec(8, True, True))
    for output_scale, refused in ((1 / 200, True), (1 / 100, False)):  # 300 * 127 * 255 goes up by 8 bits, or by 7
        program = Program("one")
        x, y = program.value("x", (1, 1, 3, 100), grid), program.value("me", (1, 1, 3, 1), grid)
        y.encoding = Encoding(np.float32([output_scale]), np.int64([0]), QuantSpec())
        kernel = program.constant("me/kernel", np.full((1, 1, 3, 100), 127, np.int8), weights)
        shape = program.constant("shape", np.int32(y.shape))
        program.emit(code, [x, kernel] if code == "CONV_2D" else [shape, kernel, x], y)
        if refused:
            with pytest.raises(ValueError, match=f"me: what it reads, x, is too large.*{code}.*9.72e.06 .* by 8 bits"):
                refuse_extremes(program, targets.load("tflm"))
        else:
            refuse_extremes(program, targets.load("tflm"))


def test_limits_are_those_of_the_target_files() -> None:
    for name in targets.names():
        target = targets.load(name)
        known, beyond = target.ops, None if "litert" in target.runtimes else 2**35
        for code in ("ADD", "SUB"):  # 2 max(s_1, s_2) / (2^20 s_out) < 1, of int16 2^15
            assert known[code].max_rescale == 2**19 and known[code].max_rescale_for("int16x8") == 2**14
        assert known["SQUARED_DIFFERENCE"].max_rescale == 2**12
        assert known["HARD_SWISH"].max_rescale == 128 and known["HARD_SWISH"].max_scale == 2**31 * 3 / 256
        assert known["SOFTMAX"].max_scale_for("int16x8") == 5.0  # 65535 steps, up by log2(s 65535 / 10) bits
        assert known["CONV_2D"].max_rescale_for("int16x8") == 2**7  # a shift of 7 bits (MultiplyByQuantizedMultiplier)
        assert known["TANH"].max_scale == known["LOGISTIC"].max_scale == beyond

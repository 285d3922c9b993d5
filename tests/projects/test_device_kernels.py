"""The margin of an arena has room for what kernels of CMSIS-NN ask for."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import kquant
from kquant.tflite.device_kernels import BLOCK, device_bytes
from kquant.tflite.memory_plan import memory_plan
from kquant.tflite.reader import FileModel

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
layers = keras.layers


def _file(*stack: keras.layers.Layer, shape: tuple[int, ...], recipe: str = "int8") -> FileModel:
    x = keras.Input(shape)
    y = x
    for layer in stack:
        y = layer(y)
    data = np.random.default_rng(0).normal(size=(128, *shape)).astype("float32")
    q = kquant.calibrate(kquant.quantize(keras.Model(x, y), recipe, target="tflm"), data, verbose=False)
    kquant.export(q, "m.tflite", check_runtimes=False, shrink=False)
    return kquant.inspect("m.tflite")


def test_scratch_lies_beside_the_tensors_of_its_operator() -> None:
    """Numbers that CMSIS-NN's functions give for these shapes, by hand."""
    file = _file(layers.Conv2D(8, 3, name="conv"), shape=(8, 8, 6))
    assert device_bytes(file) == 4 * 64  # 3 x 3 x 6 = 54, in vectors of 16
    file = _file(layers.DepthwiseConv2D(3), shape=(8, 8, 6))
    assert device_bytes(file) == 4 * BLOCK * 9
    file = _file(layers.DepthwiseConv2D(3, depth_multiplier=8), shape=(8, 8, 1))
    assert device_bytes(file) == 4 * 16 + 9 * 8 + 8  # in blocks of 16 bytes
    file = _file(layers.Dense(10), shape=(7,))
    assert device_bytes(file) == 4 * 10  # for good


def test_scratch_where_there_is_room_costs_nothing() -> None:
    """The first operator fills the memory; the one behind it asks while most of it is free."""
    stack = (layers.Conv2D(32, 1), layers.MaxPooling2D(8), layers.Conv2D(4, 2))
    file = _file(*stack, shape=(16, 16, 16))
    asked = 4 * 16
    assert device_bytes(file) == asked, "of the first convolution alone"
    plan = memory_plan(file, {2: 512})
    assert plan.size_bytes == memory_plan(file).size_bytes
    (scratch,) = (t for t in plan.tensors if t.index < 0)
    assert (scratch.bytes, scratch.first, scratch.last) == (512, 2, 2)
    others = [t for t in plan.tensors if t.index >= 0 and t.is_alive(2)]
    assert all(t.end <= scratch.offset or scratch.end <= t.offset for t in others)


def test_wider_codes_take_twice_as_much() -> None:
    x = keras.Input((8, 8, 6))
    model = kquant.quantize(keras.Model(x, layers.Conv2D(8, 3)(x)), "int16x8", target="tflm")
    q = kquant.calibrate(model, np.random.default_rng(0).normal(size=(128, 8, 8, 6)).astype("float32"), verbose=False)
    kquant.export(q, "m.tflite", check_runtimes=False)
    assert device_bytes(kquant.inspect("m.tflite")) == 2 * 4 * 64


def test_sixteen_bits_ask_for_all_channels_at_once() -> None:
    """`arm_depthwise_conv_fast_s16_get_buffer_size_mve`: 4 x channels x window x 2 + 8."""
    file = _file(layers.DepthwiseConv2D(3), shape=(6, 6, 8), recipe="int16x8")
    assert device_bytes(file) == -(-(4 * 8 * 9 * 2 + 8) // 16) * 16
    file = _file(layers.Conv2D(8, 3, name="conv"), shape=(8, 8, 6), recipe="int16x8")
    assert device_bytes(file) >= 4 * 7 * 8 * 2  # 54 values in vectors of 8

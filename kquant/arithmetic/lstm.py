"""UNIDIRECTIONAL_SEQUENCE_LSTM with int8 weights and an int16 cell state: activations of int8, in TFLM of int16 too.

    z = x W + b  ->  int16 at 2^-12      z += h U  ->  saturated     i, f, o = sigmoid(z), g = tanh(z) at 2^-15
    c' = f c + i g  ->  int16 at a power of two                      h' = o tanh(c')  ->  int8 or int16

With int16 activations the sums have 64 bits and the multipliers of the gates 15; everything behind them is the same.

Sources: LiteRT tflite/kernels/unidirectional_sequence_lstm.cc (PopulateQuantizedLstmParams8x8_16), lstm_eval.cc and
internal/reference/portable_tensor_utils.cc; TFLM tensorflow/lite/micro/kernels/lstm_eval_common.cc, .h and .cc.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from kquant.arithmetic.fixed_point import (
    Multiplier,
    multiply,
    multiply_reduced,
    quantize_multiplier,
    rounding_divide_by_power,
)
from kquant.arithmetic.gates import cell_tanh_tables, sigmoid_table, tanh_table
from kquant.arithmetic.grid import Grid, centred, check_int8, check_runtime

GATE_SCALE = 2.0**-12
_LOW, _HIGH = tf.int16.min, tf.int16.max


class LstmWeights(NamedTuple):
    """Codes of the four gates side by side (i, f, g, o, as Keras and TFLite order them), and one scale for each matrix.

    Attributes:
        kernel: float64[inputs, 4 units], integers.
        recurrent: float64[units, 4 units], integers.
        bias: float64[4 units], integers at `input scale * kernel scale`.
        kernel_scale, recurrent_scale: float32[4].
    """

    kernel: tf.Tensor
    recurrent: tf.Tensor
    bias: tf.Tensor
    kernel_scale: tf.Tensor
    recurrent_scale: tf.Tensor


def lstm(
    codes: tf.Tensor, source: Grid, weights: LstmWeights, out: Grid, cell_bits: tf.Tensor, runtime: str = "litert"
) -> tf.Tensor:
    """Codes of the hidden state after every step, from a state of zeros.

    Args:
        codes: int[batch, steps, inputs].
        source: grid of the input; of 8 or 16 bits as that of the hidden state is.
        weights: of the layer.
        out: grid of the hidden state.
        cell_bits: int32[], integer bits of the cell state: its scale is `2**(cell_bits - 15)`.
        runtime: "litert" or "tflm".

    Returns:
        int32[batch, steps, units].

    Raises:
        ValueError: a grid of 16 bits, which LiteRT has no kernel for.
    """
    if check_runtime(runtime) == "litert":
        check_int8("UNIDIRECTIONAL_SEQUENCE_LSTM", out, "LiteRT")
    kernel = _Kernel(source, weights, out, cell_bits, runtime)
    # Steps first, since `tf.scan` runs along axis 0. What the input adds needs no state: one product for all steps.
    by_input = tf.transpose(kernel.inputs(codes), (1, 0, 2))
    # A state of zeros: real 0 is the zero point for the hidden state, and code 0 for the symmetric cell state.
    zeros = tf.zeros_like(by_input[0, :, : weights.recurrent.shape[0]])
    states = tf.scan(kernel.step, by_input, (zeros + tf.cast(out.zero_point, tf.int64), zeros))
    return tf.cast(tf.transpose(states[0], (1, 0, 2)), tf.int32)


class _Kernel:
    """One LSTM with the multipliers that the kernel prepares."""

    def __init__(self, source: Grid, weights: LstmWeights, out: Grid, cell_bits: tf.Tensor, runtime: str) -> None:
        self.source, self.weights, self.out, self.runtime = source, weights, out, runtime
        self.multiply_sums = multiply_reduced if out.is_int16 else multiply
        self.by_input = self.gate_multiplier(source.scale, weights.kernel_scale)
        self.by_state = self.gate_multiplier(out.scale, weights.recurrent_scale)
        # o and tanh(c') are Q0 with 15 fraction bits each, so that one unit of their product is 2**-30.
        hidden = tf.constant(2.0**-30, tf.float64) / tf.cast(out.scale, tf.float64)
        if runtime == "litert":  # kept in a float
            hidden = tf.cast(tf.cast(hidden, tf.float32), tf.float64)
        self.to_hidden = quantize_multiplier(hidden)
        self.bits = tf.cast(cell_bits, tf.int64)
        self.sigmoid = tf.constant(sigmoid_table(runtime))
        self.tanh = tf.constant(tanh_table(runtime, 3))
        self.cell_tanh = tf.gather(tf.constant(cell_tanh_tables(runtime)), cell_bits)

    def gate_multiplier(self, scale: tf.Tensor, weight_scale: tf.Tensor) -> Multiplier:
        """`s * s_w / 2^-12` for each column of the four gates; LiteRT multiplies in float32, TFLM in double."""
        kind = tf.float32 if self.runtime == "litert" else tf.float64
        real = tf.cast(weight_scale, kind) * tf.cast(scale, kind) * np.float32(1 / GATE_SCALE)
        units = self.weights.recurrent.shape[0]
        # One multiplier for each gate, spread over its units: the four gates stand side by side on the last axis.
        mantissa, shift = quantize_multiplier(tf.cast(real, tf.float64))
        return Multiplier(tf.repeat(mantissa, units), tf.repeat(shift, units))

    def inputs(self, codes: tf.Tensor) -> tf.Tensor:
        """What the input adds to the gates: int64[batch, steps, 4 units]."""
        # Integers in float64: float32 loses the last bits beyond 2**24. The bias is on the scale of these sums only.
        sums = tf.matmul(tf.cast(centred(codes, self.source), tf.float64), self.weights.kernel) + self.weights.bias
        return _saturated(self.multiply_sums(tf.cast(sums, tf.int64), self.by_input))

    def step(self, states: tuple[tf.Tensor, tf.Tensor], by_input: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """`(h, c)` after one more step; all int64[batch, ...]."""
        hidden, cell = states
        sums = tf.matmul(tf.cast(centred(hidden, self.out), tf.float64), self.weights.recurrent)
        by_state = self.multiply_sums(tf.cast(sums, tf.int64), self.by_state)
        if self.runtime == "tflm":  # saturates each of the two; LiteRT adds the second to the first
            by_state = _saturated(by_state)
        i, f, g, o = tf.split(_saturated(by_input + by_state), 4, axis=-1)
        cell = _saturated(self.forget(_look(self.sigmoid, f), cell) + self.update(_look(self.sigmoid, i), self.gate(g)))
        # Not saturated to 16 bits between: the kernels hold the product in 32 bits until it is rescaled.
        product = _look(self.cell_tanh, cell) * _look(self.sigmoid, o)
        moved = multiply(product, self.to_hidden) + tf.cast(self.out.zero_point, tf.int64)
        return tf.clip_by_value(moved, self.out.low, self.out.high), cell

    def gate(self, codes: tf.Tensor) -> tf.Tensor:
        """The cell gate's tanh."""
        return _look(self.tanh, codes)

    def forget(self, gate: tf.Tensor, cell: tf.Tensor) -> tf.Tensor:
        """`f * c` on the cell's grid."""
        if self.runtime == "litert":
            return rounding_divide_by_power(gate * cell, 15)
        # The multiplier of 2**-15 is one half with a shift by 14, so TFLM rounds twice where LiteRT shifts once.
        return _saturated(multiply(gate * cell, quantize_multiplier(tf.constant(2.0**-15, tf.float64))))

    def update(self, gate: tf.Tensor, new: tf.Tensor) -> tf.Tensor:
        """`i * g` on the cell's grid."""
        if self.runtime == "litert":
            # 30 fraction bits go to the cell's 15 - bits of them.
            return rounding_divide_by_power(gate * new, 15 + self.bits)
        scale = tf.pow(tf.constant(2.0, tf.float64), tf.cast(-15 - self.bits, tf.float64))
        return _saturated(multiply(gate * new, quantize_multiplier(scale)))


def _look(table: tf.Tensor, codes: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.gather(table, codes + 32768), tf.int64)


def _saturated(values: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(values, tf.constant(_LOW, tf.int64), tf.constant(_HIGH, tf.int64))

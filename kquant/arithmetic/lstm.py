"""UNIDIRECTIONAL_SEQUENCE_LSTM with int8 weights and an int16 cell state: activations of int8, in TFLM of int16 too.

    z = x W + b  ->  int16 at 2^-12      z += h U  ->  saturated     i, f, o = sigmoid(z), g = tanh(z) at 2^-15
    c' = f c + i g  ->  int16 at a power of two                      h' = o tanh(c')  ->  int8 or int16

With int16 activations the sums have 64 bits and the multipliers of the gates 15; everything behind them is the same.

Sources: LiteRT tflite/kernels/unidirectional_sequence_lstm.cc (PopulateQuantizedLstmParams8x8_16), lstm_eval.cc and
internal/reference/portable_tensor_utils.cc; TFLM tensorflow/lite/micro/kernels/lstm_eval_common.cc, .h and .cc.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from kquant.arithmetic.fixed_point import (
    Multiplier,
    divided_by_power,
    multiply_reduced,
    quantize_multiplier,
    scaled,
    scaled_reduced,
)
from kquant.arithmetic.gates import cell_tanh_tables, sigmoid_table, tanh_table
from kquant.arithmetic.grid import Grid, centred, check_int8, check_runtime
from kquant.core.beforehand import beforehand
from kquant.core.checks import static_length
from kquant.core.tables import looked_up

GATE_SCALE = 2.0**-12
_LOW, _HIGH, _ZERO = -(2.0**15), 2.0**15 - 1.0, 2.0**15  # the last: entry of code 0 in a table of 16-bit codes


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
    with beforehand(source.scale, source.zero_point, out.scale, out.zero_point, cell_bits, *weights):
        kernel = _Kernel(source, weights, out, cell_bits, runtime)
    # What the input adds needs no state: one product for all steps. Steps first, to read one after the other.
    by_input = tf.transpose(kernel.inputs(codes), (1, 0, 2))
    rows = tf.TensorArray(tf.float64, tf.shape(by_input)[0], element_shape=by_input.shape[1:]).unstack(by_input)
    # A state of zeros: real 0 is the zero point for the hidden state, and code 0 for the symmetric cell state.
    zeros = tf.zeros_like(by_input[0, :, : weights.recurrent.shape[0]])
    made = tf.TensorArray(tf.float64, rows.size(), element_shape=zeros.shape)

    def body(t: tf.Tensor, hidden: tf.Tensor, cell: tf.Tensor, made: tf.TensorArray) -> Any:
        hidden, cell = kernel.step(hidden, cell, rows.read(t))
        return t + 1, hidden, cell, made.write(t, hidden)

    begin = (tf.constant(0), zeros, zeros, made)
    *_, made = tf.while_loop(lambda t, *_: t < rows.size(), body, begin, maximum_iterations=by_input.shape[0])
    # a list of rows forgets in a graph how many there are, which layers behind may ask
    steps = tf.cast(
        tf.transpose(tf.ensure_shape(made.stack(), by_input.shape[:1] + zeros.shape), (1, 0, 2)), tf.float32
    )
    return tf.cast(steps + tf.cast(out.zero_point, tf.float32), tf.int32)


class _Kernel:
    """One LSTM with the multipliers that the kernel prepares.

    A step takes some fifty passes over few numbers, so what counts is how many: whole numbers stay in float64, which
    holds their products, and the gates stand as i, f, o, g, so that one look-up serves all three sigmoids.
    """

    def __init__(self, source: Grid, weights: LstmWeights, out: Grid, cell_bits: tf.Tensor, runtime: str) -> None:
        self.source, self.weights, self.out, self.runtime = source, weights, out, runtime
        self.units = static_length(weights.recurrent, 0)
        self.by_input = self.gate_multiplier(source.scale, weights.kernel_scale)
        by_state = self.gate_multiplier(out.scale, weights.recurrent_scale)
        self.by_state = Multiplier(*(self.sigmoids_first(part) for part in by_state))
        # Products of a hidden state, centred, with a weight, and as many of them as there are units.
        largest = self.units * (2.0**15 if not out.is_int16 else 2.0**23)
        self.recurrent = tf.cast(
            self.sigmoids_first(weights.recurrent), tf.float32 if largest < 2.0**24 else tf.float64
        )
        self.wide = largest >= 2.0**22
        # o and tanh(c') are Q0 with 15 fraction bits each, so that one unit of their product is 2**-30.
        hidden = tf.constant(2.0**-30, tf.float64) / tf.cast(out.scale, tf.float64)
        if runtime == "litert":  # kept in a float
            hidden = tf.cast(tf.cast(hidden, tf.float32), tf.float64)
        self.to_hidden = quantize_multiplier(hidden)
        self.to_forget, self.to_update = (self.cell_multiplier(bits) for bits in (0, cell_bits))
        point = tf.cast(out.zero_point, tf.float64)
        self.ends = out.low - point, out.high - point
        self.sigmoid = tf.constant(sigmoid_table(runtime))
        self.tanh = tf.constant(tanh_table(runtime, 3))
        self.cell_tanh = tf.gather(tf.constant(cell_tanh_tables(runtime)), cell_bits)

    def gate_multiplier(self, scale: tf.Tensor, weight_scale: tf.Tensor) -> Multiplier:
        """`s * s_w / 2^-12` for each column of the four gates; LiteRT multiplies in float32, TFLM in double."""
        kind = tf.float32 if self.runtime == "litert" else tf.float64
        real = tf.cast(weight_scale, kind) * tf.cast(scale, kind) * np.float32(1 / GATE_SCALE)
        # One multiplier for each gate, spread over its units: the four gates stand side by side on the last axis.
        mantissa, shift = quantize_multiplier(tf.cast(real, tf.float64))
        return Multiplier(tf.repeat(mantissa, self.units), tf.repeat(shift, self.units))

    def cell_multiplier(self, bits: tf.Tensor | int) -> Multiplier:
        """`2^-(15 + bits)`, what brings a product of two Q0 numbers to the cell's grid."""
        power = tf.cast(-15 - tf.cast(bits, tf.int64), tf.float64)
        return quantize_multiplier(tf.pow(tf.constant(2.0, tf.float64), power))

    def sigmoids_first(self, columns: tf.Tensor) -> tf.Tensor:
        """i, f, g, o on the last axis as i, f, o, g."""
        i_and_f, g, o = tf.split(columns, (2 * self.units, self.units, self.units), axis=-1)
        return tf.concat([i_and_f, o, g], axis=-1)

    def inputs(self, codes: tf.Tensor) -> tf.Tensor:
        """What the input adds to the gates, and the place of 0 in their tables: float64[batch, steps, 4 units]."""
        # In float64 where float32 loses the last bits, beyond 2**24. The bias is on the scale of these sums only.
        kind = (
            tf.float64 if self.out.is_int16 or static_length(self.weights.kernel, 0) * 2.0**15 > 2.0**24 else tf.float32
        )
        products = tf.matmul(tf.cast(centred(codes, self.source), kind), tf.cast(self.weights.kernel, kind))
        sums = tf.cast(products, tf.float64) + self.weights.bias
        if self.out.is_int16:  # sums of 64 bits
            made = tf.cast(multiply_reduced(tf.cast(sums, tf.int64), self.by_input), tf.float64)
        else:
            made = scaled(sums, self.by_input, wide=True)
        return self.sigmoids_first(_saturated(made)) + _ZERO

    def step(self, hidden: tf.Tensor, cell: tf.Tensor, by_input: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """`(h, c)` after one more step, h without its zero point; integers in float64[batch, ...]."""
        sums = tf.matmul(tf.cast(hidden, self.recurrent.dtype), self.recurrent)
        if self.out.is_int16:
            by_state = scaled_reduced(sums, self.by_state)
        else:
            by_state = scaled(sums, self.by_state, wide=self.wide)
        if self.runtime == "tflm":  # saturates each of the two; LiteRT adds the second to the first
            by_state = _saturated(by_state)
        places = tf.cast(_clipped(by_input + by_state, 0.0, _HIGH + _ZERO), tf.int32)
        for_sigmoid, for_tanh = tf.split(places, (3 * self.units, self.units), axis=-1)
        i, f, o = tf.split(_look(self.sigmoid, for_sigmoid), 3, axis=-1)
        forgotten, new = f * cell, i * _look(self.tanh, for_tanh)
        if self.runtime == "litert":
            cell = self.shifted(forgotten, self.to_forget) + self.shifted(new, self.to_update)
        else:
            # The multiplier of 2**-15 is one half with a shift by 14, so TFLM rounds twice where LiteRT shifts once.
            cell = _saturated(scaled(forgotten, self.to_forget)) + _saturated(scaled(new, self.to_update))
        cell = _saturated(cell)
        # Not saturated to 16 bits between: the kernels hold the product in 32 bits until it is rescaled.
        product = _look(self.cell_tanh, tf.cast(cell + _ZERO, tf.int32)) * o
        return _clipped(scaled(product, self.to_hidden, wide=True), *self.ends), cell

    def shifted(self, product: tf.Tensor, by: Multiplier) -> tf.Tensor:
        """Times a power of two, rounded once, halves away from zero."""
        return divided_by_power(product, 1 - by.shift)


def _look(table: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    return tf.cast(looked_up(table, places), tf.float64)


def _clipped(values: tf.Tensor, low: Any, high: Any) -> tf.Tensor:
    ends = (tf.cast(end, values.dtype) for end in (low, high))
    # One pass, where `tf.clip_by_value` takes a minimum and then a maximum.
    return tf.raw_ops.ClipByValue(t=values, clip_value_min=next(ends), clip_value_max=next(ends))


def _saturated(values: tf.Tensor) -> tf.Tensor:
    return _clipped(values, _LOW, _HIGH)

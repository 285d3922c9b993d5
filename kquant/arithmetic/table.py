"""Kernels that read a table of one entry per code: ELU, GELU, LOGISTIC, TANH, and `lookup` for any other function."""

import math
from collections.abc import Callable, Sequence

import tensorflow as tf

from kquant.arithmetic import transcendental
from kquant.arithmetic.fixed_point import multiply, quantize_multiplier, rounding_divide_by_power
from kquant.arithmetic.grid import (
    Grid,
    centred,
    check_int8,
    check_runtime,
    clipped,
    round_half_away,
    tabulated,
)
from kquant.arithmetic.interpolated import gelu_int16, logistic_int16, tanh_int16
from kquant.core.tables import looked_up

# LOGISTIC and TANH of TFLM read their input in Q4 and answer in Q0 cut to 8 or 7 fraction bits.
_INPUT_INTEGER_BITS = 4


def lookup(function: Callable[[tf.Tensor], tf.Tensor], source: tf.Tensor, grid: Grid, out: Grid) -> tf.Tensor:
    """Codes of a real function, read from its table: what a table operator, or a GATHER over `table`, computes.

    Args:
        function: maps float32 to float32 element by element.
        source: int32 codes.
        grid: the grid of `source`.
        out: the output grid.

    Returns:
        int32 codes, shaped like `source`.
    """
    return looked_up(table(function, grid, out), source - grid.low)


def table(function: Callable[[tf.Tensor], tf.Tensor], grid: Grid, out: Grid) -> tf.Tensor:
    """The table itself: `round(function(s_in (code - z_in)) * (1 / s_out)) + z_out` for every code, clipped.

    All in float32, by the reciprocal of the output's scale and not by a quotient; halves away from zero
    (LUTPopulate in tflite/kernels/internal/common.h, PopulateLookupTable in micro/kernels/elu.cc).

    Args:
        function: maps float32 to float32 element by element.
        grid: the grid of the input.
        out: the output grid.

    Returns:
        int32[high - low + 1], the entry of the smallest code first.
    """
    codes = tf.range(grid.low, grid.high + 1, dtype=tf.int32)
    reals = tf.cast(grid.scale, tf.float32) * tf.cast(centred(codes, grid), tf.float32)
    steps = round_half_away(function(reals) * (1.0 / tf.cast(out.scale, tf.float32)))
    # In float64 until it is clipped: a function may be far beyond int32 on the grid of its output.
    steps = steps + tf.cast(out.zero_point, tf.float64)
    return tf.cast(
        tf.clip_by_value(steps, tf.constant(out.low, tf.float64), tf.constant(out.high, tf.float64)), tf.int32
    )


def elu(sources: Sequence[tf.Tensor], grids: Sequence[Grid], out: Grid, runtime: str = "litert") -> tf.Tensor:
    """ELU: the table of `x` where `x >= 0`, else `exp(x) - 1`. Both runtimes alike (activations.cc, micro elu.cc)."""
    check_runtime(runtime)
    check_int8("ELU", out)
    return lookup(lambda x: tf.where(x < 0.0, _in_double(tf.math.expm1, x), x), sources[0], grids[0], out)


def gelu(
    sources: Sequence[tf.Tensor], grids: Sequence[Grid], out: Grid, approximate: bool = False, runtime: str = "litert"
) -> tf.Tensor:
    """GELU: the table of `x erfc(-x / sqrt 2) / 2`, or of its tanh form (tflite/kernels/internal/reference/gelu.h).

    Args:
        sources: one int32 tensor of codes.
        grids: its grid.
        out: the output grid.
        approximate: whether to use `x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`.
        runtime: TFLM has no such kernel; there a GATHER over the same table takes its place, with the same codes. In
            int16 only LiteRT has one, which interpolates.

    Returns:
        int32 codes.
    """
    check_runtime(runtime)
    function = _gelu_by_tanh if approximate else _gelu_by_erfc
    if runtime == "tflm":
        check_int8("GELU", out, runtime)
    if out.is_int16:
        return gelu_int16(function, sources[0], grids[0], out)
    return lookup(function, sources[0], grids[0], out)


def logistic(sources: Sequence[tf.Tensor], grids: Sequence[Grid], out: Grid, runtime: str = "litert") -> tf.Tensor:
    """LOGISTIC: `1 / (1 + exp(-x))`; the output's scale is 1/256 and its zero point -128.

    LiteRT reads a float table (tflite/kernels/activations.cc); TFLM computes in fixed point
    (micro/kernels/logistic_common.cc, reference/integer_ops/logistic.h). For int16 see `logistic_int16`.

    Args:
        sources: one int32 tensor of codes.
        grids: its grid.
        out: the output grid; TFLM takes the fixed one whatever it says.
        runtime: "litert" or "tflm".

    Returns:
        int32 codes.
    """
    check_runtime(runtime)
    if out.is_int16:
        return logistic_int16(sources[0], grids[0])
    if runtime == "litert":
        return lookup(lambda x: 1.0 / (1.0 + _in_double(tf.exp, -x)), sources[0], grids[0], out)
    return _fixed_point(transcendental.logistic, sources[0], grids[0], output_bits=8, zero_point=-128)


def tanh(sources: Sequence[tf.Tensor], grids: Sequence[Grid], out: Grid, runtime: str = "litert") -> tf.Tensor:
    """TANH; the output's scale is 1/128 and its zero point 0.

    LiteRT reads a float table, TFLM computes in fixed point (micro/kernels/tanh.cc, reference/integer_ops/tanh.h).
    For int16 see `tanh_int16`, for the arguments `logistic`.
    """
    check_runtime(runtime)
    if out.is_int16:
        return tanh_int16(sources[0], grids[0])
    if runtime == "litert":
        return lookup(lambda x: _in_double(tf.tanh, x), sources[0], grids[0], out)
    return _fixed_point(transcendental.tanh, sources[0], grids[0], output_bits=7, zero_point=0)


def input_radius(shift: tf.Tensor, integer_bits: int) -> tf.Tensor:
    """Largest input, in codes, whose rescaled value fits in Q<integer_bits>: CalculateInputRadius.

    `floor((2**m - 1) 2**(31 - m) / 2**shift)` (tflite/kernels/internal/quantization_util.cc), as int64.
    """
    largest = ((1 << integer_bits) - 1) << (31 - integer_bits)
    return tf.bitwise.right_shift(tf.zeros_like(shift) + largest, tf.maximum(shift, 0))


def _fixed_point(
    function: Callable[[tf.Tensor, int], tf.Tensor], source: tf.Tensor, grid: Grid, output_bits: int, zero_point: int
) -> tf.Tensor:
    by = quantize_multiplier(tf.cast(grid.scale, tf.float64) * 2.0 ** (31 - _INPUT_INTEGER_BITS))
    radius = input_radius(by.shift, _INPUT_INTEGER_BITS)

    def kernel(codes: tf.Tensor) -> tf.Tensor:
        values = centred(codes, grid)
        inside = tf.abs(values) < radius
        # Beyond the radius the product would overflow; the kernel answers with the smallest or the largest code.
        raw = function(multiply(tf.where(inside, values, 0), by), _INPUT_INTEGER_BITS)
        result = rounding_divide_by_power(raw, 31 - output_bits) + zero_point
        # ... the smallest also for 0 itself, where the input's scale leaves no radius.
        saturated = tf.where(values <= 0, tf.constant(-128, tf.int64), tf.constant(127, tf.int64))
        return clipped(tf.where(inside, result, saturated), -128, 127)

    return tabulated(kernel, source, grid)


def _in_double(function: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor) -> tf.Tensor:
    """float32 function values to the last bit; TensorFlow's own float32 functions are off by a few of them."""
    return tf.cast(function(tf.cast(x, tf.float64)), tf.float32)


def _gelu_by_erfc(x: tf.Tensor) -> tf.Tensor:
    argument = x * tf.constant(-math.sqrt(0.5), tf.float32)
    return 0.5 * x * _in_double(tf.math.erfc, argument)


def _gelu_by_tanh(x: tf.Tensor) -> tf.Tensor:
    cubic = tf.constant(0.044715, tf.float32) * x * x * x
    argument = tf.constant(math.sqrt(2.0 / math.pi), tf.float32) * (x + cubic)
    return 0.5 * x * (1.0 + _in_double(tf.tanh, argument))

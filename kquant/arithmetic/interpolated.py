"""Functions of int16 codes, interpolated between the entries of a table: LOGISTIC, TANH, SOFTMAX and GELU.

Two kinds of tables are in use. LOGISTIC and TANH share one of 256 entries, the logistic function of 0 to 255/24. The
others have 513, one for every 128 codes and one at the end, made for the function and the scales.
"""

import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from kquant.arithmetic.fixed_point import (
    multiply,
    power_of_two,
    quantize_multiplier,
    shift_right,
    split_exponent,
)
from kquant.arithmetic.grid import INT16_MAX, INT16_MIN, Grid, clipped, round_half_away
from kquant.core.tables import looked_up

Function = Callable[[tf.Tensor], tf.Tensor]

_ENTRIES_PER_UNIT = 24
_STEPS = 512
_CODES = INT16_MAX - INT16_MIN


def logistic_int16(source: tf.Tensor, grid: Grid) -> tf.Tensor:
    """LOGISTIC of int16 codes; the output's scale is 1/32768 (reference/integer_ops/logistic.h). Both runtimes alike.

    Args:
        source: int32 codes.
        grid: their grid, zero point 0.

    Returns:
        int32 codes.
    """
    position = _table_position(source, grid, powers=(-12,))
    between = _between_entries(tf.abs(position), fraction_bits=9, largest=INT16_MAX << 10)
    half = 1 << 9
    # sigmoid(-x) = 1 - sigmoid(x), with 1 being 2**25; the half less one mirrors the rounding, so it holds in codes.
    return _as_codes(tf.where(position >= 0, between + half, (1 << 25) - between + half - 1), 10)


def tanh_int16(source: tf.Tensor, grid: Grid) -> tf.Tensor:
    """TANH of int16 codes, `2 logistic(2x) - 1`; the output's scale is 1/32768 (reference/integer_ops/tanh.h).

    Both runtimes alike; for the arguments see `logistic_int16`.
    """
    position = _table_position(source, grid, powers=(-12, -11))
    between = _between_entries(tf.abs(position), fraction_bits=8, largest=0xFFFF << 8) - (1 << 23)
    half = 1 << 7
    return _as_codes(tf.where(position >= 0, between + half, -between + half - 1), 8)


def softmax_int16(source: tf.Tensor, grid: Grid, beta: float, runtime: str) -> tf.Tensor:
    """SOFTMAX of int16 codes along the last axis; the output's scale is 1/32768.

    Differences to the row's largest code are brought to a table of exp over [-10, 0]; their sum, as a number in [1, 2),
    goes to a table of `1 / (1 + x)`; the product is shifted back (SoftmaxInt16 in reference/softmax.h). LiteRT makes
    the tables in double and the factor `s_in beta` in float32, TFLM the other way round
    (tflite/kernels/activations.cc, micro/kernels/softmax_common.cc).

    Args:
        source: int32 codes.
        grid: their grid, zero point 0.
        beta: factor of the logits; the file keeps it as float32.
        runtime: "litert" or "tflm".

    Returns:
        int32 codes.
    """
    exp_table, reciprocal_table = _softmax_tables("float32" if runtime == "tflm" else "float64")
    precision = tf.float64 if runtime == "tflm" else tf.float32
    scale = tf.cast(grid.scale, precision) * tf.cast(tf.constant(beta, tf.float32), precision)
    by = quantize_multiplier(tf.cast(scale, tf.float64) / (10.0 / _CODES))
    # Rescaled differences of -65535 .. 0 stand for -10 .. 0; the offset brings them to the codes of a symmetric table.
    difference = tf.cast(source - tf.reduce_max(source, axis=-1, keepdims=True), tf.int64)
    exps = interpolate(clipped(multiply(difference, by) + INT16_MAX, INT16_MIN, INT16_MAX), exp_table)
    total = tf.reduce_sum(exps, axis=-1, keepdims=True)
    _, bits = split_exponent(tf.cast(total, tf.float64))
    # The sum with its highest bit at 2**30, rounded to 16 bits behind it, is 1 + x.
    mantissa = shift_right(total * power_of_two(31 - bits) + (1 << 13), tf.constant(14, tf.int64))
    reciprocal = interpolate(clipped(mantissa - (1 << 15) - (1 << 16), INT16_MIN, INT16_MAX), reciprocal_table)
    product = exps * reciprocal + power_of_two(bits - 2)
    return clipped(shift_right(product, bits - 1), 0, INT16_MAX)


def gelu_int16(function: Function, source: tf.Tensor, grid: Grid, out: Grid) -> tf.Tensor:
    """GELU of int16 codes, interpolated in a table made in float32 (tflite/kernels/activations.cc; not in TFLM).

    Args:
        function: maps float32 to float32 element by element.
        source: int32 codes.
        grid: their grid.
        out: the output grid.

    Returns:
        int32 codes.
    """
    made = interpolation_table(function, tf.cast(grid.scale, tf.float32), 0, tf.cast(out.scale, tf.float32))
    return tf.cast(interpolate(source, made), tf.int32)


def interpolation_table(function: Function, scale: tf.Tensor, zero_point: int, out_scale: tf.Tensor) -> tf.Tensor:
    """The function at every 128th int16 code, in steps of the output; LUTPopulateInt16 in kernels/internal/common.h.

    Each entry but the last is lowered by half the error that interpolation makes in the middle before the next one.
    All in the type of the scales.

    Args:
        function: maps numbers to numbers of the same type, element by element.
        scale: of the input codes, float32 or float64.
        zero_point: of the input codes.
        out_scale: of the output codes, like `scale`.

    Returns:
        int64[513].
    """
    lowest = scale * tf.cast(INT16_MIN - zero_point, scale.dtype)
    highest = scale * tf.cast(INT16_MAX - zero_point, scale.dtype)
    step = (highest - lowest) / _STEPS
    inverse = (_CODES + 1) / (out_scale * INT16_MAX - out_scale * INT16_MIN)

    def rounded(values: tf.Tensor) -> tf.Tensor:
        return tf.cast(round_half_away(values), scale.dtype)

    starts = lowest + tf.cast(tf.range(_STEPS), scale.dtype) * step
    following = lowest + tf.cast(tf.range(1, _STEPS + 1), scale.dtype) * step
    samples = rounded(function(starts) * inverse)
    middles = rounded((function(following) * inverse + samples) / 2)
    errors = middles - rounded(function(starts + step / 2) * inverse)
    entries = tf.concat([samples - rounded(errors / 2), rounded(function(highest) * inverse)[None]], axis=0)
    return tf.cast(tf.clip_by_value(tf.cast(entries, tf.float64), INT16_MIN, INT16_MAX), tf.int64)


def interpolate(codes: tf.Tensor, table: tf.Tensor | np.ndarray) -> tf.Tensor:
    """Values of a table of 513 entries at int16 codes: LUTLookup in tflite/kernels/internal/common.h, in int64."""
    wide = tf.cast(codes, tf.int64)
    index = shift_right(wide, tf.constant(7, tf.int64)) + _STEPS // 2
    start, following = looked_up(table, index), looked_up(table, index + 1)
    part = tf.bitwise.bitwise_and(wide, tf.constant(127, tf.int64))
    return start + shift_right((following - start) * part + 64, tf.constant(7, tf.int64))


@functools.cache
def _softmax_tables(precision: str) -> tuple[np.ndarray, np.ndarray]:
    """The exponential over [-10, 0] and 1 / (1 + x) over [0, 1], both in steps of 1/32767.5."""

    def constant(value: float) -> tf.Tensor:
        # TFLM divides in float32.
        return tf.constant(np.dtype(precision).type(value) / np.dtype(precision).type(_CODES))

    def exp(x: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.exp(tf.cast(x, tf.float64)), x.dtype)

    with tf.init_scope(), tf.device("CPU"):
        exps = interpolation_table(exp, constant(10.0), INT16_MAX, constant(2.0))
        reciprocals = interpolation_table(lambda x: 1.0 / (1.0 + x), constant(1.0), INT16_MIN, constant(2.0))
        return exps.numpy(), reciprocals.numpy()


@functools.cache
def _logistic_table() -> np.ndarray:
    """logistic(i / 24) in 16 bits, lowered by half of what interpolation is off in the middle before the next entry."""

    def exact(at: np.ndarray) -> np.ndarray:
        return 2.0**16 / (1.0 + np.exp(-at / _ENTRIES_PER_UNIT))

    at = np.arange(256)
    error = (exact(at) + exact(at + 1)) / 2 - exact(at + 0.5)
    table = np.floor(exact(at) - error / 2 + 0.5).astype(np.int64)
    table[-1] = 2**16 - 1
    return table


def _table_position(source: tf.Tensor, grid: Grid, powers: tuple[int, ...]) -> tf.Tensor:
    """Codes in units of 1 / (3 * 2**12), by a multiplier of 15 bits that is cut off and not rounded.

    A scale that is a power of two to within 0.1 % counts as that power, for those in `powers`.
    """
    real = tf.cast(grid.scale, tf.float64) * 4096.0 * 3.0
    # SigmoidPrepare and TanhPrepare double the multiplier while it is at most 32767 / 2 and count the shifts, up to
    # 31; here the exponent tells how often.
    fraction, exponent = split_exponent(real)
    nearly_doubled = tf.cast(fraction * 2.0**14 > 32767.0 / 2.0, tf.int64)
    shift = tf.clip_by_value(15 - exponent - nearly_doubled, tf.constant(0, tf.int64), tf.constant(31, tf.int64))
    multiplier = tf.cast(tf.floor(real * tf.cast(power_of_two(shift), tf.float64)), tf.int64)
    log2 = tf.math.log(tf.cast(grid.scale, tf.float64)) / np.log(2.0)
    # At those scales (CheckedLog2) the kernels cut nothing off: they take 3, and TANH at 2**-11 shifts by one bit more.
    for power in powers:
        near = tf.abs(log2 - power) < 1e-3
        multiplier = tf.where(near, tf.constant(3 << (power + 12), tf.int64), multiplier)
        shift = tf.where(near, tf.zeros_like(shift), shift)
    half = shift_right(power_of_two(shift), tf.constant(1, tf.int64))
    return shift_right(tf.cast(source, tf.int64) * multiplier + half, shift)


def _between_entries(position: tf.Tensor, fraction_bits: int, largest: int) -> tf.Tensor:
    table = _logistic_table()
    index = shift_right(position, tf.constant(fraction_bits, tf.int64))
    inside = index < len(table) - 1
    safe = tf.where(inside, index, 0)
    start, following = looked_up(table, safe), looked_up(table, safe + 1)
    part = tf.bitwise.bitwise_and(position, tf.constant((1 << fraction_bits) - 1, tf.int64))
    between = start * (1 << fraction_bits) + part * (following - start)
    return tf.where(inside, between, tf.constant(largest, tf.int64))


def _as_codes(values: tf.Tensor, shift: int) -> tf.Tensor:
    return tf.cast(shift_right(values, tf.constant(shift, tf.int64)), tf.int32)

"""The codes of a quantized tensor and what they stand for."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from kquant.core.beforehand import beforehand
from kquant.core.one_node import one_node
from kquant.core.tables import looked_up

# What a fused activation leaves of the real axis: (lowest, highest), None where it is open.
ACTIVATIONS: dict[str, tuple[float | None, float | None]] = {
    "RELU": (0.0, None),
    "RELU6": (0.0, 6.0),
    "RELU_N1_TO_1": (-1.0, 1.0),
}

RUNTIMES = ("litert", "tflm")

INT16_MIN, INT16_MAX = -(2**15), 2**15 - 1

# Kernels of one operand are tabulated up to this many codes; beyond, direct arithmetic is cheaper than the table.
_LARGEST_TABLE = 256


class Grid(NamedTuple):
    """An affine grid of codes, `real = scale * (code - zero_point)`.

    Attributes:
        scale: float32 scalar, or float32[channels] for a kernel's per-axis grid.
        zero_point: float32 scalar that holds an integer.
        low: smallest code.
        high: largest code. An int16 grid is -32768 .. 32767 with zero point 0: that is what the kernels clip to.
    """

    scale: tf.Tensor
    zero_point: tf.Tensor
    low: int = -128
    high: int = 127

    @property
    def is_int16(self) -> bool:
        """Whether the codes need 16 bits; the kernels of int16 tensors compute in other ways than those of int8."""
        return self.high > 127


def centred(codes: tf.Tensor, grid: Grid, kind: tf.DType = tf.int64) -> tf.Tensor:
    """Codes without their zero point, `code - zero_point`, as int64 or another kind of number."""
    return tf.cast(codes, kind) - tf.cast(grid.zero_point, kind)


def clipped(codes: tf.Tensor, low: tf.Tensor | int, high: tf.Tensor | int) -> tf.Tensor:
    """Codes of any integer type clipped to [low, high], as int32."""
    low, high = tf.cast(low, codes.dtype), tf.cast(high, codes.dtype)
    # One pass, where `tf.clip_by_value` takes a minimum and then a maximum.
    return tf.cast(tf.raw_ops.ClipByValue(t=codes, clip_value_min=low, clip_value_max=high), tf.int32)


def placed(values: tf.Tensor, out: Grid, activation: str | float | None = None) -> tf.Tensor:
    """Integers on the output's scale moved to its zero point and clipped to what may leave the kernel.

    Args:
        values: int64 or integers in floats, `real / out.scale` already rounded.
        out: the output grid.
        activation: a key of `ACTIVATIONS`, None, or the maximum of a RELU that a MINIMUM follows.

    Returns:
        Codes: int32 of int64, float32 of floats.
    """
    if values.dtype.is_floating:
        return tf.cast(clipped_steps(values, out, activation), tf.float32) + tf.cast(out.zero_point, tf.float32)
    low, high = activation_range(out, activation)
    return clipped(values + tf.cast(out.zero_point, tf.int64), low, high)


def clipped_steps(values: tf.Tensor, out: Grid, activation: str | float | None = None) -> tf.Tensor:
    """`placed` of floats without the zero point, in the type of the values.

    float32 does: what that cannot tell apart, beyond 2**24, lies outside of every grid.
    """
    with beforehand(out.scale, out.zero_point):
        scale, zero_point = (tf.convert_to_tensor(number, tf.float32) for number in (out.scale, out.zero_point))
    low, high = _step_range(scale, zero_point, out.low, out.high, activation, values.dtype.name)
    return tf.raw_ops.ClipByValue(t=values, clip_value_min=low, clip_value_max=high)


@one_node
def _step_range(
    scale: tf.Tensor, zero_point: tf.Tensor, low: int, high: int, activation: str | float | None, kind: str
) -> tuple[tf.Tensor, tf.Tensor]:
    """`activation_range` of a grid without its zero point, in floats."""
    ends = activation_range(Grid(scale, zero_point, low, high), activation)
    return tf.cast(ends[0], kind) - tf.cast(zero_point, kind), tf.cast(ends[1], kind) - tf.cast(zero_point, kind)


def round_half_away(values: tf.Tensor) -> tf.Tensor:
    """`std::round` of float32 or float64 values, as float64: nearest integer, halves away from zero.

    A float32 that is no half is far enough from one to stay on its side when float64 makes it a little larger, as
    `fixed_point.rounding_divide_by_power` does. Of float64 the sum with one half is cut off.
    """
    if values.dtype == tf.float32:
        return tf.round(tf.cast(values, tf.float64) * (1.0 + 2.0**-51))
    return tf.sign(values) * tf.floor(tf.abs(values) + 0.5)


def starts_at_zero(activation: str | float | None) -> bool:
    """Whether what a fused activation lets through begins at real 0."""
    if activation is None or isinstance(activation, int | float):
        return activation is not None
    return ACTIVATIONS.get(activation, (None, None))[0] == 0.0


def activation_range(out: Grid, activation: str | float | None) -> tuple[tf.Tensor, tf.Tensor]:
    """Codes that a fused activation lets through, as (low, high) in int64.

    `low = max(out.low, zero_point + round(a / scale))`, likewise `high`, divided in float32 and rounded half away from
    zero: CalculateActivationRangeQuantized in tflite/kernels/kernel_util.cc, the same in TFLM.

    Args:
        out: the grid of the kernel's output.
        activation: a key of `ACTIVATIONS`, or None.

    Returns:
        Two int64 scalars.

    Raises:
        ValueError: the activation has no fused form.
    """
    low, high = tf.constant(out.low, tf.int64), tf.constant(out.high, tf.int64)
    if activation is None:
        return low, high
    if isinstance(activation, int | float):
        return tf.maximum(low, _code_of(0.0, out)), tf.minimum(high, _code_of(float(activation), out))
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"Fused activation: expected None or one of {sorted(ACTIVATIONS)}, received {activation!r}. "
            "Write any other activation as an operator of its own."
        )
    lowest, highest = ACTIVATIONS[activation]
    if lowest is not None:
        low = tf.maximum(low, _code_of(lowest, out))
    if highest is not None:
        high = tf.minimum(high, _code_of(highest, out))
    return low, high


def tabulated(kernel: Callable[[tf.Tensor], tf.Tensor], source: tf.Tensor, grid: Grid) -> tf.Tensor:
    """Applies a kernel of one operand by computing it once for every code of an int8 grid.

    An int8 tensor has 256 different codes, so a table of the exact arithmetic followed by a gather costs one pass over
    the tensor, whatever the kernel does in int64. On an int16 grid the kernel runs on the tensor itself.

    Args:
        kernel: maps int32 codes to int32 codes of the same shape.
        source: int32 codes within `grid.low` .. `grid.high`.
        grid: the grid of `source`.

    Returns:
        int32 codes, shaped like `source`.
    """
    if grid.high - grid.low >= _LARGEST_TABLE:
        return kernel(source)
    table = kernel(tf.range(grid.low, grid.high + 1, dtype=tf.int32))
    return looked_up(table, source - grid.low)


def check_runtime(runtime: str) -> str:
    """Returns the name of the runtime whose arithmetic is wanted, or raises ValueError when it is unknown."""
    if runtime not in RUNTIMES:
        raise ValueError(
            f"runtime: expected one of {RUNTIMES}, received {runtime!r}. "
            "'litert' is LiteRT's reference kernels, 'tflm' is TensorFlow Lite Micro."
        )
    return runtime


def check_int8(op: str, out: Grid, runtime: str | None = None) -> None:
    """Raises ValueError for an int16 grid: the operator has no int16 kernel on that runtime, or on none."""
    if out.is_int16:
        raise ValueError(
            f"{op}: {'no runtime has a' if runtime is None else f'{runtime} has no'} kernel for int16 codes, received "
            f"a grid of {out.low} .. {out.high}. Keep this layer in int8, or write it with operators that run in int16."
        )


def _code_of(real: float, out: Grid) -> tf.Tensor:
    if real == 0.0:  # of most activations, and ten operations less
        return tf.cast(out.zero_point, tf.int64)
    steps = round_half_away(tf.constant(real, tf.float32) / tf.cast(out.scale, tf.float32))
    # On a grid far finer than the bound it lies beyond every code; the kernels refuse beyond 2^31.
    steps = tf.clip_by_value(steps, tf.constant(-(2.0**31), tf.float64), tf.constant(2.0**31, tf.float64))
    return tf.cast(out.zero_point, tf.int64) + tf.cast(steps, tf.int64)

"""The codes that the interpreter computes, from what `FakeQuant` knows of the layer before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from kquant import arithmetic
from kquant.core.beforehand import beforehand
from kquant.core.joined import is_joining, joined
from kquant.core.tables import looked_up
from kquant.layers.byte_sums import Held, lowest_step, steps_of_bytes
from kquant.layers.carried import carried


@dataclass(frozen=True, eq=False)
class Origin:
    """How the operator before made a tensor.

    Attributes:
        kernel: TFLite operator whose arithmetic makes the codes; None rounds to nearest.
        attributes: of the kernel; "activation" is what it fuses. None in models of 0.1, where a kernel with sums has
            an activation behind it or not.
        sources: its inputs, where its rounding needs their codes.
        encodings: float32[2] of each source.
        source_bits: width of each source's codes, 8 by default.
        accumulator: scale of its int32 sums: float64[channels] or like the tensor.
        sums: the sums, where float32 cannot hold them (16-bit activations).
    """

    kernel: str | None = None
    attributes: dict[str, Any] | None = None
    sources: Sequence[tf.Tensor] = ()
    encodings: Sequence[tf.Tensor] = ()
    source_bits: Sequence[int] = ()
    accumulator: tf.Tensor | None = None
    sums: tf.Tensor | None = None


def steps_of(y: tf.Tensor, origin: Origin, out: arithmetic.Grid, rounding: str) -> tf.Tensor:
    """Codes of a tensor without their zero point, as the interpreter computes them.

    Args:
        y: float32[...], its values.
        origin: how it was made.
        out: its grid.
        rounding: "litert" or "tflm", whose kernels.

    Returns:
        float32[...] or float64[...], integers: steps from real 0.
    """
    if origin.accumulator is not None:
        return _of_sums(y, origin, origin.accumulator, out, rounding)
    if origin.kernel == "QUANTIZE" and not origin.sources:  # of what was computed in float
        return tf.cast(arithmetic.KERNELS[origin.kernel]([y], [None], out), tf.float32) - out.zero_point
    if origin.kernel is None or not origin.sources:
        return _joined(lambda given: nearest_steps(given[0], out), [y], out)
    bits = tuple(origin.source_bits) or (8,) * len(origin.sources)
    known, scales, points = zip(*(read(encoding) for encoding in origin.encodings), strict=True)
    grids = [
        arithmetic.Grid(scale, point, -(1 << n - 1), (1 << n - 1) - 1)
        for scale, point, n in zip(scales, points, bits, strict=True)
    ]
    sources = [_steps(x, grid) for x, grid in zip(origin.sources, grids, strict=True)]
    options = {"runtime": rounding, **(origin.attributes or {})}
    if origin.kernel in arithmetic.OF_ONE and bits[0] == 8:
        steps = _of_table(origin.kernel, sources[0], grids[0], out, options)
    elif origin.kernel in arithmetic.OF_STEPS:
        kernel = arithmetic.OF_STEPS[origin.kernel]
        steps = _joined(lambda given: kernel(given, grids, out, **options), sources, out)
    else:
        integers = [tf.cast(x, tf.int32) + tf.cast(g.zero_point, tf.int32) for x, g in zip(sources, grids, strict=True)]
        made = (arithmetic.CHAINS | arithmetic.KERNELS)[origin.kernel](integers, grids, out, **options)
        # Without the zero point, as all codes travel: 0 is real 0, and the next layer sums them as they are.
        steps = tf.cast(made, tf.float32) - out.zero_point
    # `is True`: an encoding that only the running graph knows about gives a tensor here, which has no truth yet.
    if all(k is True for k in known):
        return steps
    return tf.where(tf.reduce_all(tf.stack(known)), tf.cast(steps, tf.float32), nearest_steps(y, out))


def _of_table(
    kernel: str, steps: tf.Tensor, grid: arithmetic.Grid, out: arithmetic.Grid, options: dict[str, Any]
) -> tf.Tensor:
    """Steps that a kernel of one operand gives, read from a table, which a loop or `predict` makes once."""
    with beforehand(grid.scale, grid.zero_point, out.scale, out.zero_point):
        codes = tf.range(grid.low, grid.high + 1, dtype=tf.int32)
        made = arithmetic.KERNELS[kernel]([codes], [grid], out, **options)
        table = tf.cast(made, tf.float32) - out.zero_point
        first = grid.low - tf.cast(grid.zero_point, tf.int32)
    return looked_up(table, tf.cast(steps, tf.int32) - first)


def read(encoding: tf.Tensor) -> tuple[bool | tf.Tensor, tf.Tensor, tf.Tensor]:
    """What an encoding says.

    Args:
        encoding: float32[2], as it travels beside its tensor.

    Returns:
        Whether data gave it, True where that is known while a graph is made, else bool[]; its scale, 1 where none did;
        its zero point.
    """
    grid = carried(encoding, "grid")
    if grid is not None:
        return True, *grid
    known = encoding[0] > 0.0
    # 1, not 0: the quotient is thrown away, but its NaN would come back in the gradient of the `tf.where` behind.
    return known, tf.where(known, encoding[0], 1.0), encoding[1]


def chosen(known: bool | tf.Tensor, value: tf.Tensor, otherwise: tf.Tensor) -> tf.Tensor:
    """`value` where it is known, else the other: without a pass over both where that is known beforehand."""
    return value if known is True else tf.where(known, value, otherwise)


def _steps(x: tf.Tensor, grid: arithmetic.Grid) -> tf.Tensor:
    """Steps of values on a grid, codes without their zero point, in float32 or float64."""
    steps = carried(x, "codes")
    # Exact to the code: the values are multiples of the scale, and pooling or a reshape left them so.
    return tf.round(tf.cast(x, tf.float32) / grid.scale) if steps is None else steps


def _of_sums(y: tf.Tensor, origin: Origin, scale: tf.Tensor, out: arithmetic.Grid, runtime: str) -> tf.Tensor:
    """The steps that the interpreter makes of its integer sums."""
    kernel, activation = origin.kernel or "", (origin.attributes or {}).get("activation")
    # A model of 0.1 does not say what its kernel fuses, so that only its output tells where an activation has clipped.
    sums = origin.sums if origin.attributes is None or origin.sums is not None else carried(scale, "sums")
    if origin.sums is not None:
        rounding = arithmetic.ROUNDING_INT16[runtime].get(kernel, "reduced")
    else:
        rounding = arithmetic.ROUNDING[runtime].get(kernel, "double")
    if sums is None:  # a model of 0.1, or one that nobody has calibrated
        # `y` is what the layer made in float of its sums, so that it has the activation behind it already.
        unit = tf.where(scale > 0.0, scale, tf.ones_like(scale))
        sums, activation = tf.round(tf.cast(y, tf.float64) / unit), None

    def requantized(given: Sequence[tf.Tensor]) -> tf.Tensor:
        real = given[0] if given[0].dtype.is_floating else tf.cast(given[0], tf.float64)
        return arithmetic.requantized_steps(real, scale, out, rounding, activation)

    steps = _joined(requantized, [sums], out)
    if carried(scale, "sums") is not None:  # no zeros: data gave the encoding of what was summed
        return steps
    # A scale of 0 is that of no encoding: `y` came in float, and there were no sums.
    return tf.where(tf.reduce_min(scale) > 0.0, tf.cast(steps, tf.float32), nearest_steps(y, out))


def _joined(
    function: Callable[[Sequence[tf.Tensor]], tf.Tensor], given: Sequence[tf.Tensor], out: arithmetic.Grid
) -> tf.Tensor:
    """Steps that a function makes, element by element: by XLA from bytes to bytes, where they are such."""
    if not is_joining():
        return function(given)
    held = [carried(x, "bytes") for x in given]

    def of_held(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
        each = zip(tensors, held, strict=True)
        return function([x if b is None else Held(x, b.lowest).steps() for x, b in each])

    tensors = [x if b is None else b.values for x, b in zip(given, held, strict=True)]
    lowest = lowest_step(out.low, out.zero_point) if out.high - out.low < 256 else None
    if lowest is None:
        return joined(of_held)(tensors)
    return steps_of_bytes(joined(lambda x: of_held(x) - lowest, tf.uint8)(tensors), lowest)


def nearest_steps(y: tf.Tensor, out: arithmetic.Grid) -> tf.Tensor:
    """Steps of values, ties to even."""
    low, high = out.low - out.zero_point, out.high - out.zero_point
    # One pass over the tensor, where `tf.clip_by_value` takes a minimum and a maximum.
    return tf.raw_ops.ClipByValue(t=tf.round(y / out.scale), clip_value_min=low, clip_value_max=high)

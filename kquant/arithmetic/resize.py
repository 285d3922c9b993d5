"""RESIZE_BILINEAR and RESIZE_NEAREST_NEIGHBOR; both keep their input's encoding."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from kquant.arithmetic.fixed_point import rounding_divide_by_power
from kquant.arithmetic.grid import Grid, check_int8, check_runtime, clipped

_FRACTION_BITS = 10
_ONE = 1 << _FRACTION_BITS


def resize_bilinear(
    sources: Sequence[tf.Tensor],
    grids: Sequence[Grid],
    out: Grid,
    size: Sequence[int],
    half_pixel_centers: bool = True,
    align_corners: bool = False,
    runtime: str = "litert",
) -> tf.Tensor:
    """RESIZE_BILINEAR: positions and weights in Q10, the weighted sum of codes rounded once, halves away from zero.

    The step between positions is `round(2**10 in / out)`, an integer, so positions drift from the exact ones by up to
    `out / 2` units of 2**-10 (ResizeBilinearInteger in reference/resize_bilinear.h). Both runtimes alike, but
    TFLM has no int16 kernel.

    Args:
        sources: one int32 tensor of codes, [batch, height, width, channels], height and width static.
        grids: its grid, the same as `out`.
        out: the output grid.
        size: output height and width.
        half_pixel_centers: whether pixels are taken at their centres, as Keras does.
        align_corners: whether the corners of input and output coincide instead.
        runtime: "litert" or "tflm"; no difference here.

    Returns:
        int32 codes.
    """
    if check_runtime(runtime) == "tflm":
        check_int8("RESIZE_BILINEAR", out, runtime)
    values = tf.cast(sources[0], tf.int64)
    for axis, length in zip((1, 2), size, strict=True):
        lower, upper, fraction = _bilinear_positions(
            _static_length(sources[0], axis, "RESIZE_BILINEAR"), length, half_pixel_centers, align_corners
        )
        # One axis after the other, against [batch, height, width, channels]. Nothing is rounded in between, so the sum
        # is that of the kernel's four products.
        weight = tf.constant(fraction.reshape([-1, 1, 1] if axis == 1 else [-1, 1]), tf.int64)
        values = tf.gather(values, lower, axis=axis) * (_ONE - weight) + tf.gather(values, upper, axis=axis) * weight
    return clipped(rounding_divide_by_power(values, 2 * _FRACTION_BITS), out.low, out.high)


def resize_nearest_neighbor(
    sources: Sequence[tf.Tensor],
    grids: Sequence[Grid],
    out: Grid,
    size: Sequence[int],
    half_pixel_centers: bool = True,
    align_corners: bool = False,
    runtime: str = "litert",
) -> tf.Tensor:
    """RESIZE_NEAREST_NEIGHBOR: codes are copied; only the positions, taken in float32, can round.

    Position `floor((i + c) in / out)` with c one half for half-pixel centres, else 0, at most `in - 1`
    (reference/resize_nearest_neighbor.h). Both runtimes alike. For the arguments see `resize_bilinear`.
    """
    check_runtime(runtime)
    values = sources[0]
    for axis, length in zip((1, 2), size, strict=True):
        source_length = _static_length(sources[0], axis, "RESIZE_NEAREST_NEIGHBOR")
        positions = _nearest_positions(source_length, length, half_pixel_centers, align_corners)
        values = tf.gather(values, positions, axis=axis)
    return clipped(values, out.low, out.high)


def _static_length(source: tf.Tensor, axis: int, op: str) -> int:
    length = source.shape[axis] if source.shape.rank == 4 else None
    if length is None:
        raise ValueError(
            f"{op}: expected [batch, height, width, channels] with static height and width, received shape "
            f"{source.shape}. Give the model's Input a full shape."
        )
    return length


def _bilinear_positions(
    length: int, out_length: int, half_pixel_centers: bool, align_corners: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower and upper neighbour of each output pixel, and the upper one's weight in Q10."""
    if align_corners and out_length > 1:
        step = (_ONE * (length - 1) + (out_length - 1) // 2) // (out_length - 1)
    else:
        step = (_ONE * length + out_length // 2) // out_length
    position = np.arange(out_length) * step
    if half_pixel_centers:
        # Half a step to the centre of the output's pixel, half a pixel back from the centre of the input's.
        position = position + step // 2 - _ONE // 2
    # Division towards zero, as in C: only positions before the first pixel are negative.
    lower = np.maximum(np.trunc(position / _ONE).astype(int), 0)
    upper = np.minimum(np.trunc((position + _ONE - 1) / _ONE).astype(int), length - 1)
    return lower, upper, position - lower * _ONE


def _nearest_positions(length: int, out_length: int, half_pixel_centers: bool, align_corners: bool) -> np.ndarray:
    aligned = align_corners and out_length > 1
    scale = (
        np.float32(length - 1) / np.float32(out_length - 1) if aligned else np.float32(length) / np.float32(out_length)
    )
    offset = np.float32(0.5 if half_pixel_centers else 0.0)
    position = (np.arange(out_length, dtype=np.float32) + offset) * scale
    position = np.floor(position.astype(np.float64) + 0.5) if align_corners else np.floor(position)
    return np.clip(position.astype(int), 0, length - 1)

"""The Fourier transform of 16-bit sound in fixed point, as TensorFlow Lite Micro's SignalRfft computes it (kissfft).

    int16[length]  ->  as length / 2 complex numbers, transformed in steps of 4, and of 2 at last
                   ->  the two interleaved spectra taken apart  ->  int16[length / 2 + 1] real and imaginary parts

Each step first divides by its radix, so the result is that of the transform over `length`, and rounds: products to 15
bits, halves up; sums wrap at 16 bits. (kiss_fft.c, kiss_fftr.c and _kiss_fft_guts.h of kissfft v130, FIXED_POINT = 16.)
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import tensorflow as tf

FRACTION = 15
ONE = 2**FRACTION - 1
Complex = tuple[Any, Any]  # tensors, real and imaginary; TensorFlow's types know no ellipsis


def _rounded(products: tf.Tensor) -> tf.Tensor:
    return _wrapped(tf.bitwise.right_shift(products + 2 ** (FRACTION - 1), FRACTION))


def _wrapped(values: tf.Tensor) -> tf.Tensor:
    """int32 as an int16 holds it."""
    return tf.bitwise.right_shift(tf.bitwise.left_shift(values, 16), 16)


def _divided(x: Complex, by: int) -> Complex:
    return _rounded(x[0] * (ONE // by)), _rounded(x[1] * (ONE // by))


def _times(x: Complex, turn: tuple[np.ndarray, np.ndarray]) -> Complex:
    return _rounded(x[0] * turn[0] - x[1] * turn[1]), _rounded(x[0] * turn[1] + x[1] * turn[0])


def _sum(a: Complex, b: Complex) -> Complex:
    return _wrapped(a[0] + b[0]), _wrapped(a[1] + b[1])


def _less(a: Complex, b: Complex) -> Complex:
    return _wrapped(a[0] - b[0]), _wrapped(a[1] - b[1])


@lru_cache(maxsize=64)
def _turns(size: int, count: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """int32[count]: `e^(-2 pi i k step / size)` in 15 bits."""
    phase = -2.0 * np.pi / size * (np.arange(count) * step)
    return _of_phase(phase)


def _of_phase(phase: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    real, imaginary = (np.floor(0.5 + ONE * f(phase)).astype(np.int32) for f in (np.cos, np.sin))
    return real, imaginary


def _transformed(x: Complex, size: int, whole: int) -> Complex:
    """Of `size` numbers along the last axis, out of a transform over `whole`."""
    if size == 1:
        return x
    radix = 4 if size % 4 == 0 else 2
    part = size // radix
    # numbers k, k + radix, ... are a transform of their own
    rows = tuple(tf.linalg.matrix_transpose(tf.reshape(v, (-1, *v.shape[1:-1], part, radix))) for v in x)
    real, imaginary = _transformed((rows[0], rows[1]), part, whole)
    parts = [_divided((real[..., k, :], imaginary[..., k, :]), radix) for k in range(radix)]
    turned = [_times(p, _turns(whole, part, k * whole // size)) for k, p in enumerate(parts) if k]
    if radix == 2:
        made = [_sum(parts[0], turned[0]), _less(parts[0], turned[0])]
    else:
        one, two, three = turned
        even, odd = _sum(parts[0], two), _less(parts[0], two)
        both, apart = _sum(one, three), _less(one, three)
        quarter = (_wrapped(odd[0] + apart[1]), _wrapped(odd[1] - apart[0]))
        last = (_wrapped(odd[0] - apart[1]), _wrapped(odd[1] + apart[0]))
        made = [_sum(even, both), quarter, _less(even, both), last]
    return tf.concat([m[0] for m in made], -1), tf.concat([m[1] for m in made], -1)


def real_transform(x: Any) -> Complex:
    """The spectrum of real numbers, over their count.

    Args:
        x: int32[..., length] that int16 holds; `length` is a power of two, and one other size may be unknown.

    Returns:
        int32[..., length / 2 + 1] twice, the real and the imaginary parts.

    Example:
        >>> real, _ = real_transform(tf.constant([[1000] * 64]))
        >>> real.numpy()[0, :3].tolist()
        [1000, 0, 0]
    """
    half = int(x.shape[-1]) // 2
    pairs: Any = tf.reshape(x, (-1, half, 2))
    real, imaginary = _transformed((pairs[..., 0], pairs[..., 1]), half, half)
    count = half // 2
    at, mirrored = slice(1, count + 1), slice(half - 1, count - 1, -1)
    a = _divided((real[..., at], imaginary[..., at]), 2)
    b = _divided((real[..., mirrored], _wrapped(-imaginary[..., mirrored])), 2)
    both = _sum(a, b)
    turn = _of_phase(-np.pi * (np.arange(1, count + 1) / half + 0.5))
    apart = _times(_less(a, b), turn)
    low = [tf.bitwise.right_shift(p + q, 1) for p, q in zip(both, apart, strict=True)]
    high = [tf.bitwise.right_shift(v, 1) for v in (both[0] - apart[0], apart[1] - both[1])]
    ends = _divided((real[..., :1], imaginary[..., :1]), 2)
    first, last = _wrapped(ends[0] + ends[1]), _wrapped(ends[0] - ends[1])
    # the middle bin is written twice, the second time as the mirror of itself
    upper = [tf.reverse(v, [-1]) for v in high]
    zero = tf.zeros_like(first)
    whole = [
        tf.concat([e, low_part[..., : count - 1], high_part, f], -1)
        for e, low_part, high_part, f in zip((first, zero), low, upper, (last, zero), strict=True)
    ]
    before = [-1 if size is None else size for size in x.shape[:-1]]
    return tf.reshape(whole[0], (*before, half + 1)), tf.reshape(whole[1], (*before, half + 1))

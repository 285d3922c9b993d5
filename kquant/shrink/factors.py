"""Kernels as products of two smaller ones.

A convolution is split into a vertical and a horizontal one with r channels between them (a Dense layer and a 1x1
convolution into two layers of their kind): its kernel as a matrix whose rows are (height, input channel) and whose
columns are (width, output channel) has the singular values s_1 >= s_2 >= ..., and the r largest are kept.

    W[h, i, w, o] ~ sum_j<=r  first[h, i, j] * second[j, w, o],       |W - W_r|^2 = sum_j>r s_j^2

Source: Jaderberg et al., "Speeding up Convolutional Neural Networks with Low Rank Expansions", arXiv:1405.3866, section
2.2, scheme 2; solved in closed form by Tai et al., arXiv:1511.06067, section 3.1; the error is Eckart and Young's.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kquant.graph.copies import again
from kquant.shrink.narrow import kernel_of

layers = keras.layers


def as_wide_matrix(kernel: np.ndarray) -> np.ndarray:
    """A kernel [(height, (width,)) in, out] as float64[height * in, width * out]; one axis of positions is the height.

    Example:
        >>> as_wide_matrix(np.zeros((3, 5, 8, 16))).shape, as_wide_matrix(np.zeros((8, 16))).shape
        ((24, 80), (8, 16))
    """
    kernel = np.asarray(kernel, np.float64)
    if kernel.ndim == 4:
        height, width, inputs, outputs = kernel.shape
        return kernel.transpose(0, 2, 1, 3).reshape(height * inputs, width * outputs)
    return kernel.reshape(-1, kernel.shape[-1])


def split(kernel: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The two kernels whose product is nearest to a kernel.

    Args:
        kernel: float[height, width, in, out], [length, in, out] or [in, out].
        rank: channels between the two.

    Returns:
        Kernels of the same number of axes: [height, 1, in, rank] and [1, width, rank, out] (or [length, in, rank] and
        [1, rank, out], or [in, rank] and [rank, out]). Each takes the root of the singular values.

    Example:
        >>> kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 5))
        >>> first, second = split(kernel, 12)
        >>> first.shape, second.shape, np.allclose(np.einsum("hxij,xwjo->hwio", first, second), kernel)
        ((3, 1, 4, 12), (1, 3, 12, 5), True)
    """
    # Of all matrices of this rank the nearest (Eckart and Young); v has its vectors in rows.
    u, s, v = np.linalg.svd(as_wide_matrix(kernel), full_matrices=False)
    # Half of each singular value on either side, so that neither half has much larger weights than the other.
    roots = np.sqrt(s[:rank])
    first, second = u[:, :rank] * roots, roots[:, None] * v[:rank]
    if kernel.ndim == 4:
        height, width, inputs, outputs = kernel.shape
        # Rows are (height, in), columns (width, out): kernels [height, 1, in, rank] and [1, width, rank, out].
        return first.reshape(height, 1, inputs, rank), second.reshape(rank, width, outputs).transpose(1, 0, 2)[None]
    if kernel.ndim == 3:
        return first.reshape(*kernel.shape[:2], rank), second[None]
    return first, second


def singular_values(op: Any) -> np.ndarray:
    """Of a layer's kernel, largest first."""
    weights: Any = kernel_of(op)  # nobody asks for those of a layer without one
    return np.linalg.svd(as_wide_matrix(getattr(op, weights.kernel).numpy()), compute_uv=False)


def can_split(op: Any) -> str | None:
    """Why a layer with a kernel is not split; None where it can be."""
    weights = kernel_of(op)
    if weights is None:
        return "it has no kernel of sums over channels"
    if type(op) not in (layers.Dense, layers.Conv1D, layers.Conv2D):
        return f"a {type(op).__name__} has no two halves"
    if getattr(op, "groups", 1) > 1:
        return f"it has {op.groups} groups"
    if getattr(op, "data_format", "channels_last") == "channels_first":
        return "it has its channels first"
    return None


def halves(op: Any, rank: int) -> tuple[Any, Any]:
    """The two layers that a layer becomes, not built: `<name>_first` without bias, and one of the same name.

    Strides, dilation and padding of each axis go with the half that has this axis' kernel.
    """
    name = f"{op.name}_first"
    bare: dict[str, Any] = {
        "name": name,
        "use_bias": False,
        "activation": None,
        "bias_regularizer": None,
        "activity_regularizer": None,
    }
    if isinstance(op, layers.Dense):
        return again(op, units=rank, **bare), again(op)
    if op.rank == 1:
        # The first half has moved and padded already; the second looks at one position.
        moves = {"strides": 1, "dilation_rate": 1, "padding": "valid"}
        return again(op, filters=rank, **bare), again(op, kernel_size=1, **moves)
    size, strides, rates = op.kernel_size, op.strides, op.dilation_rate
    vertical = {"kernel_size": (size[0], 1), "strides": (strides[0], 1), "dilation_rate": (rates[0], 1)}
    horizontal = {"kernel_size": (1, size[1]), "strides": (1, strides[1]), "dilation_rate": (1, rates[1])}
    return again(op, filters=rank, **vertical, **bare), again(op, **horizontal)

"""Rounding a matrix one input after the other, where the weights still to come make up for each error.

    least sum_m (q_m - w_m)' G (q_m - w_m),   G = sum x x'

What is rounded stays; of those behind it the least error is that of `w_j -= (w_k - q_k) u_kj / u_kk` for j > k, with u
upper triangular and `u' u = G^-1`: each row of it is the row of the inverse of what of G is left by then.

Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
arXiv:2210.17323, (2) and section 3.3, steps 2 (lazy batches) and 3 (Cholesky).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

BATCH = 128  # inputs whose errors reach the inputs far behind in one product of matrices


def factor(inverse: np.ndarray) -> np.ndarray:
    """Upper triangular float64[..., k, k] u with `u' u` the given matrix, which need not be symmetric to the last bit.

    Example:
        >>> factor(np.diag([4.0, 9.0])).tolist()
        [[2.0, 0.0], [0.0, 3.0]]
    """
    return np.swapaxes(np.linalg.cholesky((inverse + np.swapaxes(inverse, -1, -2)) / 2.0), -1, -2)


def compensated(weights: np.ndarray, upper: np.ndarray, rounded: Callable[[int, np.ndarray], np.ndarray]) -> np.ndarray:
    """Values of all inputs in order, what is still to come makes up for each error: float64[g, k, m].

    Args:
        weights: float64[g, k, m].
        upper: float64[g, k, k], u above.
        rounded: of the number of an input and what its weights are by then, float64[g, m], the values they take.

    Example:
        >>> alike = np.linalg.inv([[[1.0, 0.999], [0.999, 1.0]]])
        >>> weights = np.float64([[[0.4], [0.4]]])
        >>> compensated(weights, factor(alike), lambda _, w: np.rint(w)).ravel().tolist()
        [0.0, 1.0]
    """
    left, made = weights.copy(), np.empty_like(weights)
    count = left.shape[1]
    for start in range(0, count, BATCH):
        end = min(start + BATCH, count)
        wrong = np.empty((left.shape[0], end - start, left.shape[2]))
        for k in range(start, end):
            made[:, k] = rounded(k, left[:, k])
            wrong[:, k - start] = (left[:, k] - made[:, k]) / upper[:, k, k, None]
            left[:, k + 1 : end] -= upper[:, k, k + 1 : end, None] * wrong[:, k - start, None]
        left[:, end:] -= np.swapaxes(upper[:, start:end, end:], 1, 2) @ wrong
    return made

"""First centroids of a codebook: k-means, evenly spaced, by density, at random; numpy, float64.

    kmeans++   seeds by squared distance (Arthur and Vassilvitskii, SODA 2007, section 2.2), then Lloyd's iterations
    linear     evenly from the lowest to the highest weight (Han et al., arXiv:1510.00149, section 3.2)
    density    quantiles: as many weights between any two neighbours (same section)
    random     uniform between the lowest and the highest weight

With a centroid that is fixed at zero, the others are split between the signs in proportion to the weights there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

Init = Literal["kmeans++", "linear", "density", "random"]
Make = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]

TRIES = 4  # k-means keeps the best of so many starts
LLOYD_STEPS = 100
SEEDED_FROM = 2**16  # weights that seeds are drawn from, where a kernel has more
LOWEST_QUANTILE = 0.01  # of "density": its first centroid stands for weights, not for the one outlier


@dataclass(frozen=True, eq=False)
class Points:
    """Weights in order, with sums up to each: means of any interval cost two look-ups.

    Attributes:
        values: float64[n], ascending.
        mass, moment: float64[n + 1], sums of the importance of the weights, and of importance times weight.
    """

    values: np.ndarray
    mass: np.ndarray
    moment: np.ndarray


def points(weights: np.ndarray, importance: np.ndarray | None = None) -> Points:
    """Weights of any shape, each as important as the others unless said."""
    flat = np.asarray(weights, np.float64).ravel()
    order = np.argsort(flat, kind="stable")
    values = flat[order]
    share = np.ones_like(values) if importance is None else np.asarray(importance, np.float64).ravel()[order]
    # From 0 on, so that the sum over values[a:b] is entry b minus entry a, also where a is 0.
    return Points(values, np.append(0.0, np.cumsum(share)), np.append(0.0, np.cumsum(share * values)))


def centroids(weights: np.ndarray, clusters: int, init: Init, *, keep_zero: bool = False, seed: int = 0) -> np.ndarray:
    """Centroids for some weights.

    Args:
        weights: float[...], at least one.
        clusters: how many; the zero counts.
        init: name of the rule.
        keep_zero: one centroid is 0.
        seed: of what is drawn.

    Returns:
        float64[clusters], ascending; distinct where the weights have as many values, else with repetitions.

    Raises:
        ValueError: an unknown rule.

    Example:
        >>> centroids(np.arange(11.0), 5, "linear").tolist()
        [0.0, 2.5, 5.0, 7.5, 10.0]
        >>> centroids(np.arange(11.0), 5, "linear", keep_zero=True).tolist()
        [0.0, 1.0, 4.0, 7.0, 10.0]
    """
    if init not in INITS:
        raise ValueError(f"clustering: no init '{init}'. Known here: {', '.join(INITS)}.")
    flat = np.asarray(weights, np.float64).ravel()
    rng = np.random.default_rng(seed)
    if not keep_zero:
        return _exactly(INITS[init](flat, clusters, rng), flat, clusters)
    centres = _around_zero(flat, clusters, INITS[init], rng)
    if init == "kmeans++":
        # They were found for each sign alone. Beside the zero some weights are nearest to that, so the means of the
        # others move.
        centres = lloyd(points(flat[flat != 0.0]), centres, centres == 0.0)
    return centres


def lloyd(data: Points, centres: np.ndarray, fixed: np.ndarray | None = None) -> np.ndarray:
    """Lloyd's iterations: every centroid to the mean of the weights that are nearest to it.

    Args:
        data: the weights.
        centres: float64[k], where to start, ascending.
        fixed: bool[k], centroids that stay.

    Returns:
        float64[k], ascending; a centroid that is nearest to no weight stays where it is.
    """
    fixed = np.zeros(len(centres), bool) if fixed is None else fixed
    for _ in range(LLOYD_STEPS if data.values.size else 0):
        # In one dimension the weights of a centroid are an interval, whose sums are two look-ups: a step costs the
        # number of centroids, not that of the weights.
        moved = np.where(fixed, centres, means(data, centres))
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres


def means(data: Points, centres: np.ndarray) -> np.ndarray:
    """Mean of the weights nearest to each of ascending centroids; the centroid itself where there are none."""
    edges = np.searchsorted(data.values, (centres[1:] + centres[:-1]) / 2.0)
    edges = np.concatenate([[0], edges, [data.values.size]])
    mass, moment = np.diff(data.mass[edges]), np.diff(data.moment[edges])
    return np.where(mass > 0.0, moment / np.where(mass > 0.0, mass, 1.0), centres)


def nearest(weights: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Index of the nearest of ascending centroids, shaped like the weights."""
    return np.searchsorted((centres[1:] + centres[:-1]) / 2.0, weights)


def inertia(weights: np.ndarray, centres: np.ndarray) -> float:
    """Sum of squared distances to the nearest centroid, what k-means makes small."""
    centres = np.sort(np.asarray(centres, np.float64))
    flat = np.asarray(weights, np.float64).ravel()
    return float(np.sum((flat - centres[nearest(flat, centres)]) ** 2))


def scaled(rows: np.ndarray, clusters: int, init: Init, *, keep_zero: bool, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One codebook with ends at -1 and 1 for all channels, and for each channel what it is multiplied by.

        minimize   sum over c, i of (rows[c, i] - reach[c] * shape[k(c, i)])^2        in turns by shape, k and reach

    Args:
        rows: float[channels, n].
        clusters: how many; ends and zero count.
        init: name of the rule; the scales of "kmeans++" are fitted, the others' are the largest weights.
        keep_zero: one centroid is 0.
        seed: of what is drawn.

    Returns:
        float64[clusters - fixed ones], ascending, and float64[channels]; 0 for a channel of zeros.
    """
    rows = np.asarray(rows, np.float64)
    reach = np.max(np.abs(rows), axis=1)
    unit = _over(rows, reach)
    # In units of its channel each largest weight is an end already; the others tell where values are wanted between.
    inner = unit[np.abs(unit) < 1.0] if np.any(np.abs(unit) < 1.0) else np.zeros(1)
    ends = [-1.0, 1.0, 0.0] if keep_zero else [-1.0, 1.0]
    if clusters == len(ends):
        free = np.zeros(0)
    elif init == "linear":
        free = _between_ends(clusters, keep_zero)
    else:
        # Two are the ends. `centroids` counts the zero, which is fixed here and comes out again.
        free = centroids(inner, clusters - 2, init, keep_zero=keep_zero, seed=seed)
        free = np.delete(free, np.flatnonzero(free == 0.0)[:1]) if keep_zero else free
    for _ in range(LLOYD_STEPS if init == "kmeans++" else 0):
        whole = np.sort(np.concatenate([free, ends]))
        used = whole[nearest(_over(rows, reach), whole)]
        # With values and places held, the best factor of a channel is that of least squares.
        fitted = np.sum(rows * used, axis=1) / np.maximum(np.sum(used**2, axis=1), 1e-30)
        reach, before = np.abs(fitted), reach
        if free.size:
            # And with factors and places held, the best values are means: (w - r c)^2 = r^2 (w / r - c)^2, so each
            # weight counts r^2.
            data = points(_over(rows, reach), np.broadcast_to(reach[:, None] ** 2, rows.shape))
            moved = means(data, whole)
            free = np.delete(moved, [int(np.flatnonzero(whole == end)[0]) for end in ends])
        # Each half of a turn makes the sum no larger, so that it settles.
        if np.allclose(reach, before, rtol=1e-6, atol=0.0):
            break
    return np.clip(free, -1.0, 1.0), reach


def _between_ends(clusters: int, keep_zero: bool) -> np.ndarray:
    """Evenly from -1 to 1, the same whatever the weights are; beside a zero, evenly on both sides."""
    if not keep_zero:
        return np.linspace(-1.0, 1.0, clusters)[1:-1]
    below = clusters // 2
    sides = [np.linspace(-1.0, 0.0, below + 1)[1:-1], np.linspace(0.0, 1.0, clusters - below)[1:-1]]
    return np.concatenate(sides) * (1.0 - 1e-4)  # half of 127 would be rounded down here and up there


def _over(rows: np.ndarray, reach: np.ndarray) -> np.ndarray:
    return rows / np.where(reach > 0.0, reach, 1.0)[:, None]


def _around_zero(weights: np.ndarray, clusters: int, make: Make, rng: np.random.Generator) -> np.ndarray:
    """Centroids of the negative weights, zero, and those of the positive ones."""
    signs = weights[weights < 0.0], weights[weights > 0.0]
    left, count = clusters - 1, signs[0].size + signs[1].size
    if count == 0:
        return np.zeros(clusters)
    # By how many weights each sign has; a sign without any gets none.
    below = int(np.round(left * signs[0].size / count))
    parts = [_exactly(make(w, k, rng), w, k) if k else [] for w, k in zip(signs, (below, left - below), strict=True)]
    return np.concatenate([parts[0], [0.0], parts[1]])


def _exactly(centres: np.ndarray, weights: np.ndarray, clusters: int) -> np.ndarray:
    """`clusters` distinct centroids: the weight farthest from all others joins until there are as many."""
    centres = np.unique(centres)
    while centres.size < clusters:
        distance = np.abs(weights - centres[nearest(weights, centres)])
        # Fewer values than centroids: some are there twice.
        if not np.any(distance > 0.0):
            return np.pad(centres, (0, clusters - centres.size), mode="edge")
        centres = np.sort(np.append(centres, weights[np.argmax(distance)]))
    return centres


def _kmeans(weights: np.ndarray, clusters: int, rng: np.random.Generator) -> np.ndarray:
    data, some = points(weights), weights
    if weights.size > SEEDED_FROM:
        # Only the seeds are drawn from some: each costs a pass over the weights, where a step of Lloyd's costs next to
        # nothing.
        some = rng.choice(weights, SEEDED_FROM, replace=False)
    tried = [lloyd(data, _seeds(some, clusters, rng)) for _ in range(TRIES)]
    return min(tried, key=lambda centres: inertia(weights, centres))


def _seeds(weights: np.ndarray, clusters: int, rng: np.random.Generator) -> np.ndarray:
    """Weights drawn one by one, with a chance that grows with the squared distance to those drawn before."""
    drawn = [weights[rng.integers(weights.size)]]
    distance = (weights - drawn[0]) ** 2
    while len(drawn) < clusters and np.any(distance > 0.0):
        # Drawn with these chances: the place where the running sum passes a number between 0 and the whole. The two
        # sums round apart, so that the last one may not be reached.
        at = np.searchsorted(np.cumsum(distance), rng.random() * np.sum(distance))
        drawn.append(weights[min(at, weights.size - 1)])
        distance = np.minimum(distance, (weights - drawn[-1]) ** 2)
    return np.sort(drawn)


def _linear(weights: np.ndarray, clusters: int, rng: np.random.Generator) -> np.ndarray:
    return np.linspace(weights.min(), weights.max(), clusters)


def _density(weights: np.ndarray, clusters: int, rng: np.random.Generator) -> np.ndarray:
    # "inverted_cdf" gives weights that are there, no numbers between two.
    return np.quantile(weights, np.linspace(LOWEST_QUANTILE, 1.0, clusters), method="inverted_cdf")


def _random(weights: np.ndarray, clusters: int, rng: np.random.Generator) -> np.ndarray:
    return np.sort(rng.uniform(weights.min(), weights.max(), clusters))


INITS: dict[str, Make] = {"kmeans++": _kmeans, "linear": _linear, "density": _density, "random": _random}

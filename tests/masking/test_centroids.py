"""First centroids: against tfmot's own cases, against the best split of a line, and what they promise for any weights.

The weights and expected values of the cases named so are data of tensorflow/model-optimization,
clustering/keras/clustering_centroids_test.py (Apache-2.0).
"""

from __future__ import annotations

import numpy as np
import pytest

from kquant.masking.centroids import INITS, centroids, inertia, lloyd, nearest, points, scaled

TENTHS = [0, 1, 2, 3, 3.1, 3.2, 3.3, 3.4, 3.5]
SIGNS = [-3.0, -2.0, -1.0, 0.0, 1.1, 2.2, 3.3, 4.4, 5.5, 6.6, 7.7, 8.8, 9.0]
CUBE = np.arange(8.0).reshape(2, 2, 1, 2)  # Conv2D kernel, two channels

LINEAR = [
    (list(range(11)), 5, [0.0, 2.5, 5.0, 7.5, 10.0]),
    (TENTHS, 3, [0.0, 1.75, 3.5]),
    (SIGNS, 6, [-3.0, -0.6, 1.8, 4.2, 6.6, 9.0]),
]
LINEAR_ZERO = [
    (list(range(11)), 5, [0.0, 1.0, 4.0, 7.0, 10.0]),
    (TENTHS, 3, [0.0, 1.0, 3.5]),
    (SIGNS, 6, [-3.0, 0.0, 1.1, 3.7333333, 6.366666, 9.0]),
]
DENSITY = [
    (TENTHS, 5, [0.11137931, 2.0534482, 3.145862, 3.3886206, 3.51]),
    (TENTHS, 3, [0.11137931, 3.145862, 3.51]),
    (list(range(10)), 3, [0.3010345, 5.2775865, 9.01]),
]
DENSITY_ZERO = [
    ([0, -1, -2, -3, -4, -5, -6], 4, [-5.836897, -2.8941379, -0.98999995, 0.0]),
    ([0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 5, [0.0, 1.2665517, 4.032069, 7.0741386, 9.01]),
    ([-4, -3, -2, -1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7], 6, [-3.9058623, -0.99, 0, 1.1975863, 4.103793, 7.01]),
    ([0, 1, 2, 3, -3.1, -3.2, -3.3, -0.005, 3.5], 3, [-3.1887069, 0.0, 1.0768965]),
]
KMEANS = [
    (TENTHS, 5, False, [3.1, 0.0, 2.0, 1.0, 3.4]),
    (TENTHS, 3, False, [3.1, 0.0, 2.0]),
    (list(range(10)), 3, False, [6.0, 1.0, 8.0]),
    (TENTHS, 5, True, [0.0, 3.0, 1.0, 2.0, 3.3]),
    (TENTHS, 3, True, [0.0, 3.0, 1.0]),
    ([-4.0, *SIGNS], 6, True, [-2.0, -4.0, 0.0, 5.5, 2.2, 8.8]),
]


@pytest.mark.parametrize(("weights", "clusters", "expected"), LINEAR)
def test_linear_is_tfmots(weights, clusters, expected):
    np.testing.assert_allclose(centroids(weights, clusters, "linear"), expected, atol=1e-4)


@pytest.mark.parametrize(("weights", "clusters", "expected"), LINEAR_ZERO)
def test_linear_with_zero_is_tfmots(weights, clusters, expected):
    np.testing.assert_allclose(centroids(weights, clusters, "linear", keep_zero=True), expected, atol=1e-4)


@pytest.mark.parametrize("init", ["linear", "density"])
def test_each_channel_as_tfmot(init):
    expected = {"linear": [[0.0, 6.0], [1.0, 7.0]], "density": [[0.197586, 6.01], [1.197586, 7.01]]}[init]
    for channel in range(2):
        found = centroids(CUBE[..., channel], 2, init)
        step = (CUBE[..., channel].max() - CUBE[..., channel].min() + 0.02) / 29 if init == "density" else 0.0
        assert np.all(np.abs(found - expected[channel]) <= step + 1e-4)


@pytest.mark.parametrize(
    ("weights", "clusters", "expected", "zero"), [(*c, False) for c in DENSITY] + [(*c, True) for c in DENSITY_ZERO]
)
def test_density_is_tfmots_within_the_step_of_its_grid(weights, clusters, expected, zero):
    """tfmot takes the upper node of the thirtieth of the range in which the quantile lies, not the quantile."""
    found = centroids(weights, clusters, "density", keep_zero=zero)
    values = np.asarray(weights, float)
    for own, theirs in zip(found, expected, strict=True):
        side = values if not zero else values[np.sign(values) == np.sign(theirs)]
        step = (side.max() - side.min() + 0.02) / 29 if theirs else 0.0
        assert theirs - step - 1e-4 <= own <= theirs + 1e-4


@pytest.mark.parametrize(("weights", "clusters", "zero", "expected"), KMEANS)
def test_kmeans_is_as_close_as_tfmots_or_closer(weights, clusters, zero, expected):
    """tfmot keeps the seeds, which its random numbers choose; Lloyd's iterations go on from seeds."""
    found = centroids(weights, clusters, "kmeans++", keep_zero=zero)
    assert len(np.unique(found)) == clusters and (not zero or 0.0 in found)
    assert inertia(weights, found) <= inertia(weights, expected) * (1 + 1e-9)


def best_on_a_line(values, clusters):
    """Inertia of the best clusters, by dynamic programming over the ends of intervals (Wang and Song, 2011)."""
    values = np.sort(values)
    n, first, second = len(values), np.append(0, np.cumsum(values)), np.append(0, np.cumsum(values**2))

    def cost(a, b):
        return second[b] - second[a] - (first[b] - first[a]) ** 2 / (b - a)

    best = np.array([0.0] + [cost(0, b) for b in range(1, n + 1)])
    for _ in range(clusters - 1):
        best = np.array([0.0] + [min(best[a] + cost(a, b) for a in range(b)) for b in range(1, n + 1)])
    return best[n]


@pytest.mark.parametrize("seed", range(3))
def test_kmeans_is_near_the_best(seed):
    weights = np.random.default_rng(seed).normal(size=150) ** 3
    found = inertia(weights, centroids(weights, 6, "kmeans++", seed=seed))
    best = best_on_a_line(weights, 6)
    assert best * (1 - 1e-9) <= found <= 1.05 * best


def test_lloyd_stops_where_every_centroid_is_a_mean():
    weights = np.random.default_rng(0).laplace(size=4000)
    found = centroids(weights, 16, "kmeans++")
    places = nearest(weights, found)
    means = [weights[places == k].mean() for k in range(16)]
    np.testing.assert_allclose(found, means, atol=1e-9)


def test_fixed_centroids_stay():
    weights = np.random.default_rng(0).normal(size=500)
    start = np.array([-1.0, 0.0, 2.0])
    found = lloyd(points(weights), start, start == 0.0)
    assert found[1] == 0.0 and found[0] != -1.0 and found[2] != 2.0


@pytest.mark.parametrize("init", sorted(INITS))
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("clusters", [2, 3, 8, 16, 19])
def test_exactly_as_many_as_asked(init, zero, clusters):
    """tfmot's density-based centroids fall on a grid of 30 nodes: 16 become 14, 32 become 19."""
    rng = np.random.default_rng(clusters)
    weights = np.concatenate([rng.normal(size=300), np.full(200, 0.25), np.zeros(100)])
    found = centroids(weights, clusters, init, keep_zero=zero, seed=1)
    assert len(np.unique(found)) == clusters and np.all(np.diff(found) > 0)
    assert found.min() >= weights.min() and found.max() <= weights.max()
    assert not zero or 0.0 in found
    np.testing.assert_array_equal(found, centroids(weights, clusters, init, keep_zero=zero, seed=1))


def test_signs_share_in_proportion():
    weights = np.concatenate([-np.random.default_rng(0).random(300) - 0.1, np.random.default_rng(1).random(100) + 0.1])
    found = centroids(weights, 9, "kmeans++", keep_zero=True)
    assert np.sum(found < 0) == 6 and np.sum(found > 0) == 2


@pytest.mark.parametrize("init", sorted(INITS))
def test_few_distinct_weights_repeat(init):
    assert set(centroids([0.0, 0.0, 0.0, 0.0], 2, init, keep_zero=True)) == {0.0}
    assert len(centroids([0.5, 0.5, -1.0], 6, init)) == 6


@pytest.mark.parametrize("zero", [False, True])
def test_scaled_channels_have_one_shape(zero):
    rng = np.random.default_rng(0)
    shape = np.array([-1.0, -0.6, -0.2, 0.0, 0.1, 0.5, 1.0])
    reach = np.array([0.1, 2.0, 0.7, 30.0])
    rows = reach[:, None] * shape[rng.integers(7, size=(4, 200))]
    free, found = scaled(rows, 7, "kmeans++", keep_zero=zero, seed=0)
    ends = [-1.0, 1.0, 0.0] if zero else [-1.0, 1.0]
    np.testing.assert_allclose(np.sort([*free, *ends]), shape, atol=1e-6)
    np.testing.assert_allclose(found, reach, rtol=1e-6)


def test_unknown_init_is_named():
    with pytest.raises(ValueError, match=r"no init 'kmeans'\. Known here: kmeans\+\+"):
        centroids([1.0, 2.0], 2, "kmeans")

"""Schedules and masks against tfmot's own expectations, and against a plain numpy selection.

The numbers are those that tensorflow/model-optimization asserts (commit 6fbc2ce, python/core/sparsity/keras:
pruning_schedule_test.py, pruning_impl_test.py, pruning_utils_test.py). tfmot's m-by-n counts the zeros, kquant's "2:4"
what stays; its step 0 is its first training step, kquant's is the call.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from kquant.masking.patterns import choose, highest, structure_of
from kquant.masking.schedules import SparsitySchedule, schedule_of

CONV = [[[[-0.36, -0.77], [-0.43, -0.18], [0.12, 1.36], [0.77, 0.96]]]]
# name: (weights in Keras' layout, structure, mask)
GROUPS = {
    "2d_2by4": (
        [[0.74, 0.68], [-0.89, -0.45], [-1.68, 1.24], [0.31, -0.6]],
        "2:4",
        [[0, 1], [1, 0], [1, 1], [0, 0]],
    ),
    "4d_2by4": (CONV, "2:4", [[[[0, 0], [1, 0], [0, 1], [1, 1]]]]),
    "4d_1by2": (CONV, "1:2", [[[[0, 1], [1, 0], [0, 1], [1, 0]]]]),
    "2d_2by4_pad": ([[1.92, -0.21], [-0.19, 0.57], [1.1, -0.42]], "2:4", [[1, 0], [0, 1], [1, 1]]),
    "4d_2by4_pad": ([[[[-0.37, 1.85], [0.82, 0.07], [1.17, 0.5]]]], "2:4", [[[[0, 1], [1, 0], [1, 1]]]]),
}
# the same of `generate_m_by_n_mask`, whose rows are groups: weights and masks transposed to Keras' Dense layout
ROWS = {
    "wt_2x1_mbyn_2x4": ([[1.24], [1.11]], "2:4", [[1], [1]]),
    "wt_2x3_mbyn_2x4": ([[-0.49, -0.66, 0.42], [0.31, 0.63, -1.63]], "2:4", [[1, 1, 0], [0, 1, 1]]),
    "wt_2x3_mbyn_1x2": ([[-0.49, -0.66, 0.42], [0.31, 0.63, -1.63]], "1:2", [[0, 1, 1], [0, 1, 1]]),
    "wt_2x4_mbyn_2x4": (
        [[0.25, -1.33, 0.43, -0.11], [0.47, 0.92, -0.13, -2.23]],
        "2:4",
        [[0, 1, 1, 0], [0, 1, 0, 1]],
    ),
    "wt_2x5_mbyn_3x5": (
        [[1.71, -0.27, -0.3, -0.61, -0.19], [-0.4, 1.12, 0.46, -1.12, 0.17]],
        "2:5",
        [[1, 0, 0, 1, 0], [0, 1, 0, 1, 0]],
    ),
}
AVERAGE = [[0.1, 0.1, 0.2, 0.2], [0.1, 0.1, 0.2, 0.2], [0.3, 0.3, 0.4, 0.4], [0.3, 0.3, 0.4, 0.4]]
MAXIMUM = [[0.1, 0.0, 0.2, 0.0], [0.0, -0.1, 0.0, -0.2], [0.3, 0.0, 0.4, 0.0], [0.0, -0.3, 0.0, -0.4]]
LOWER_HALF = [[0] * 4, [0] * 4, [1] * 4, [1] * 4]


def mask(weights, structure="unstructured", sparsity=None, axes=(-2, -1), pooling="mean"):
    pattern = structure_of(structure)
    share = pattern.sparsity if sparsity is None else sparsity
    return np.asarray(choose(tf.abs(tf.constant(weights, tf.float32)), share, pattern, axes, pooling)).astype(int)


@pytest.mark.parametrize("name", GROUPS)
def test_groups_of_tfmot(name):
    weights, structure, expected = GROUPS[name]
    np.testing.assert_array_equal(mask(weights, structure), expected)


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_tfmot(name):
    weights, structure, expected = ROWS[name]
    np.testing.assert_array_equal(mask(np.transpose(weights), structure), np.transpose(expected))


@pytest.mark.parametrize(("weights", "pooling"), [(AVERAGE, "mean"), (MAXIMUM, "max")])
def test_blocks_of_tfmot(weights, pooling):
    np.testing.assert_array_equal(mask(weights, "2x2", 0.5, pooling=pooling), LOWER_HALF)


def test_counts_of_tfmot():
    weights = np.linspace(1.0, 100.0, 100)
    assert mask(weights, sparsity=0.9999).sum() == 1  # one always stays
    assert mask(weights, sparsity=0.99).sum() == 1
    assert mask(weights, sparsity=0.5).sum() == 50
    assert mask(np.arange(1, 11), sparsity=0.200000018).tolist() == [0, 0] + [1] * 8
    course = [0.0, 0.1, 0.1, 0.3, 0.3, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert [int(mask(weights, sparsity=s).sum()) for s in course] == [100, 90, 90, 70, 70, 50, 50, 50, 50, 50]


def test_ramp_of_tfmot():
    ramp = SparsitySchedule(0.8, initial=0.2, begin=100, end=110, power=3, frequency=2)
    found = [float(ramp.sparsity(step)) for step in (100, 102, 105, 110)]
    np.testing.assert_allclose(found, [0.2, 0.4928, 0.725, 0.8], atol=1e-6)


@pytest.mark.parametrize("initial", [None, 0.2])
def test_steps_of_tfmot(initial):
    each = SparsitySchedule(0.8, initial=initial, begin=100, end=200, frequency=1)
    assert [bool(each.due(t)) for t in (90, 99, 100, 110, 200, 201, 210)] == [False, False, *[True] * 3, False, False]
    tenth = dataclasses.replace(each, frequency=10)
    assert [bool(tenth.due(t)) for t in (100, 109, 110, 111)] == [True, False, True, False]


def test_constant_never_ends_in_tfmot():
    forever = SparsitySchedule(0.5, frequency=10)
    assert all(bool(forever.due(t)) and float(forever.sparsity(t)) == 0.5 for t in (10_000, 100_000_000))


def test_last_step_is_never_left_out():
    ramp = SparsitySchedule(0.8, initial=0.0, end=7, frequency=100)
    assert [t for t in range(20) if bool(ramp.due(t))] == [0, 7]
    assert ramp.at(7) == ramp.at(500) == 0.8 and ramp.is_done(7) and not ramp.is_done(6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"final": 1.0},
        {"final": -0.001},
        {"final": 10.0},
        {"final": 0.8, "initial": 1.0, "end": 9},
        {"final": 0.8, "begin": -1},
        {"final": 0.8, "begin": 10, "end": 5},
        {"final": 0.8, "begin": 10, "end": -5},
        {"final": 0.8, "frequency": 0},
        {"final": 0.8, "initial": 0.2, "end": -1},
    ],
)
def test_what_tfmot_refuses(wrong):
    with pytest.raises(ValueError, match="SparsitySchedule"):
        SparsitySchedule(**wrong)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"end": 4.5}, "end must be a whole number of training steps. Received: 4.5"),
        ({"end": "10"}, "end must be a whole number of training steps. Received: '10'"),
        ({"begin": 0.5, "end": 9}, "begin must be a whole number"),
        ({"end": 9, "frequency": 2.5}, "frequency must be a whole number"),
        ({"end": 9, "frequency": True}, "frequency must be a whole number.*Received: True"),
        ({"end": float("nan")}, "end must be a whole number"),
        ({"end": float("inf")}, "end must be a whole number"),
        ({"end": 9, "power": "cubic"}, "power must be a number"),
        ({"end": 9, "power": float("nan")}, "power > 0"),
        ({"end": 9, "final": "0.5"}, "final must be a number. Received: '0.5'"),
    ],
)
def test_steps_are_whole_numbers(wrong, said):
    with pytest.raises(ValueError, match=f"SparsitySchedule: .*{said}"):
        SparsitySchedule(**{"final": 0.8, "initial": 0.0, **wrong})


def test_whole_numbers_of_any_type_are_taken():
    found = SparsitySchedule(np.float32(0.5), initial=0, begin=np.int64(2), end=30.0, frequency=np.float64(5.0))
    assert found == SparsitySchedule(0.5, initial=0.0, begin=2, end=30, frequency=5)
    assert [type(value) for value in found.get_config().values()] == [float, float, int, int, float, int]


class Foreign:
    """What tfmot's schedules look like from outside."""

    def __init__(self, kind, **config):
        self.kind, self.config = kind, config

    def get_config(self):
        return {"class_name": self.kind, "config": self.config}


def test_schedules_of_tfmot_are_taken():
    constant = Foreign("ConstantSparsity", target_sparsity=0.7, begin_step=10, end_step=20, frequency=5)
    assert schedule_of(constant) == SparsitySchedule(0.7, begin=10, end=20, frequency=5)
    steps = {"begin_step": 0, "end_step": 100, "power": 5, "frequency": 10}
    ramp = Foreign("PolynomialDecay", initial_sparsity=0.2, final_sparsity=0.6, **steps)
    assert schedule_of(ramp) == SparsitySchedule(0.6, initial=0.2, end=100, power=5, frequency=10)
    with pytest.raises(ValueError, match="recipe"):
        schedule_of(Foreign("Custom", value=1))


@pytest.mark.parametrize("wrong", ["4:2", "0x1", "2:", "row", "0:4"])
def test_unknown_structures(wrong):
    with pytest.raises(ValueError, match="structure must be"):
        structure_of(wrong)


def test_ties_keep_the_first():
    assert np.asarray(highest(tf.constant([2.0, 1.0, 1.0, 1.0, 0.5]), 0.4)).tolist() == [True, True, True, False, False]
    assert np.asarray(highest(tf.zeros((4,)), 0.5)).tolist() == [True, True, False, False]


def test_against_numpy():
    rng = np.random.default_rng(0)
    for sparsity in (0.0, 0.31, 0.5, 0.875, 0.97):
        weights = rng.normal(size=(3, 3, 5, 7))
        kept = max(1, round(weights.size * (1 - sparsity)))
        least = np.sort(np.abs(weights.astype(np.float32)).ravel())[-kept]
        np.testing.assert_array_equal(mask(weights, sparsity=sparsity), np.abs(weights.astype(np.float32)) >= least)


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize(("shape", "axes"), [((7, 6), (0, 1)), ((3, 2, 7, 6), (-2, -1)), ((2, 2, 6, 7), (-1, -2))])
def test_ragged_blocks_against_numpy(shape, axes, pooling):
    weights = np.abs(np.random.default_rng(1).normal(size=shape)).astype(np.float32)
    moved = np.moveaxis(weights, axes, (-2, -1)).reshape(-1, 7, 6)
    pool = np.mean if pooling == "mean" else np.max
    starts = [(k, i, j) for k in range(len(moved)) for i in (0, 4) for j in (0, 3)]
    scores = np.array([pool(moved[k, i : i + 4, j : j + 3]) for k, i, j in starts])
    expected = np.zeros_like(moved)
    for place in np.argsort(-scores)[: round(len(starts) * 0.5)]:
        k, i, j = starts[place]
        expected[k, i : i + 4, j : j + 3] = 1
    found = np.moveaxis(mask(weights, "4x3", 0.5, axes, pooling), axes, (-2, -1)).reshape(-1, 7, 6)
    np.testing.assert_array_equal(found, expected)


def test_groups_ramp_through_their_own_zeros():
    weights = np.random.default_rng(2).normal(size=(8, 5)).astype(np.float32)
    final = mask(weights, "2:4", axes=(0, 1))
    half = mask(weights, "2:4", 0.25, axes=(0, 1))
    assert final.sum() == 20 and half.sum() == 30 and np.all(half >= final)
    assert np.abs(weights[half == 0]).max() <= np.abs(weights[(final == 0) & (half == 1)]).min()

"""Scales and zero points: the same to the bit by NumPy, one operation after the other, and as one node of a graph."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from kquant.core.spec import QuantSpec, encode_range
from kquant.layers import range_numbers

ends = st.floats(-1e6, 1e6, width=32)
SPECS = [
    QuantSpec(8),
    QuantSpec(16, symmetric=True),
    QuantSpec(4),
    QuantSpec(8, smallest=2.0**-20),
    QuantSpec(8, symmetric=True, kind="power-of-two"),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.bits} bits, {spec.kind}, {spec.smallest}")
@given(low=ends, high=ends, other=ends)
@settings(max_examples=60, deadline=None)
def test_traced_or_not_the_numbers_are_equal(spec: QuantSpec, low: float, high: float, other: float) -> None:
    ranges = [tf.constant([min(low, high), other]), tf.constant([max(low, high), other])]
    by_numpy = range_numbers.encoded(*ranges, spec)
    # TensorFlow's own operations, and the node that stands in a graph, which asks nothing of NumPy
    eager = encode_range(tf.reduce_min(ranges[0]), tf.reduce_max(ranges[1]), spec)
    traced = tf.function(lambda a, b: range_numbers.encoded(a, b, spec), autograph=False)(*ranges)
    for a, b in zip(by_numpy, traced, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
        assert a.dtype == b.dtype and a.shape == b.shape
    assert [t.numpy() for t in eager] == [t.numpy() for t in by_numpy[:2]]

"""Scales and zero points: the same to the bit one operation after the other and as one node of a graph."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from kquant.core import one_node
from kquant.core.spec import QuantSpec
from kquant.layers import range_numbers

ends = st.floats(-1e6, 1e6, width=32)
SPECS = [QuantSpec(8), QuantSpec(16, symmetric=True), QuantSpec(4)]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.bits} bits")
@given(low=ends, high=ends)
@settings(max_examples=40, deadline=None)
def test_traced_or_not_the_numbers_are_equal(spec: QuantSpec, low: float, high: float) -> None:
    ranges = [tf.constant([min(low, high)]), tf.constant([max(low, high)])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_node, "AS_THEY_ARE", 10**9)
        as_they_are = range_numbers.encoded(*ranges, spec)
        patch.setattr(one_node, "AS_THEY_ARE", 0)
        traced = range_numbers.encoded(*ranges, spec)
    for a, b in zip(as_they_are, traced, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())

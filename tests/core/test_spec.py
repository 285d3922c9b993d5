"""Scales and zero points: exact zero, covered ranges, float64 numpy as the reference, TensorFlow's kernel as a peer."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kquant.arithmetic import Grid
from kquant.core.spec import SMALLEST_CHANNEL, SMALLEST_RANGE, Encoding, QuantSpec, encode_range, encode_weights
from kquant.layers.integers import nearest_steps

SPECS = [QuantSpec(bits, symmetric) for bits in (2, 4, 8, 16) for symmetric in (False, True)]
ends = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
specs = st.sampled_from(SPECS)
weight_specs = st.builds(
    QuantSpec, bits=st.sampled_from([2, 4, 8]), symmetric=st.just(True), narrow=st.just(True), per_axis=st.booleans()
)
matrices = arrays(np.float32, (5, 4), elements=st.floats(-100, 100, width=32, allow_subnormal=False))


def encoded(low: float, high: float, spec: QuantSpec) -> tuple[np.float32, float]:
    scale, zero_point = encode_range(tf.constant(low, tf.float32), tf.constant(high, tf.float32), spec)
    return np.float32(scale.numpy()), float(zero_point)


def reference(low: float, high: float, spec: QuantSpec) -> tuple[float, float]:
    """The LiteRT specification in float64."""
    low, high = min(np.float64(np.float32(low)), 0.0), max(np.float64(np.float32(high)), 0.0)
    if spec.symmetric:
        reach = max(-low, high)
        return (reach if reach > SMALLEST_RANGE else 1.0) / spec.high, 0.0
    width = high - low
    scale = (width if width > SMALLEST_RANGE else 1.0) / (spec.high - spec.low)
    return scale, float(np.clip(np.rint(spec.low - low / scale), spec.low, spec.high))


@settings(deadline=None)
@given(ends, ends, specs)
def test_encode_range_against_float64(low: float, high: float, spec: QuantSpec) -> None:
    assume(low <= high)
    scale, zero_point = encoded(low, high, spec)
    wanted_scale, wanted_zero = reference(low, high, spec)
    assert scale == pytest.approx(wanted_scale, rel=3e-7)
    # float32 arithmetic may fall on the other side of a tie, and 16 bits have codes beyond float32's half steps
    assert abs(zero_point - wanted_zero) <= 1
    if spec.bits <= 8:
        exact = spec.low - min(np.float64(np.float32(low)), 0.0) / wanted_scale
        if abs(exact - np.floor(exact) - 0.5) > 1e-3:
            assert zero_point == wanted_zero


@settings(deadline=None)
@given(ends, ends, specs)
def test_zero_is_exactly_a_code(low: float, high: float, spec: QuantSpec) -> None:
    assume(low <= high)
    scale, zero_point = encoded(low, high, spec)
    assert zero_point == round(zero_point) and spec.low <= zero_point <= spec.high
    encoding = Encoding(scale.reshape(1), np.int64([zero_point]), spec)
    code = encoding.quantize(np.zeros(1, np.float32))
    assert code == zero_point and encoding.dequantize(code) == 0.0


@settings(deadline=None)
@given(ends, ends, specs)
def test_the_range_is_covered_to_half_a_step(low: float, high: float, spec: QuantSpec) -> None:
    assume(low <= high)
    scale, zero_point = encoded(low, high, spec)
    reach = (spec.low - zero_point) * np.float64(scale), (spec.high - zero_point) * np.float64(scale)
    slack = 0.5001 * np.float64(scale) + 1e-6 * max(abs(low), abs(high))
    assert reach[0] <= min(low, 0.0) + slack and reach[1] >= max(high, 0.0) - slack


@settings(deadline=None)
@given(ends, ends, specs, st.floats(0, 1))
def test_values_in_the_range_move_by_half_a_step_at_most(low: float, high: float, spec: QuantSpec, at: float) -> None:
    assume(low <= high)
    scale, zero_point = encoded(low, high, spec)
    encoding = Encoding(scale.reshape(1), np.int64([zero_point]), spec)
    real = np.float32(np.float64(low) + at * (np.float64(high) - np.float64(low)))
    # an end may lie half a step beyond the last code, for the zero point is rounded
    assert abs(float(encoding.dequantize(encoding.quantize(real))) - float(real)) <= 1.001 * scale + 1e-6 * abs(real)


@settings(deadline=None)
@given(
    arrays(np.int64, 7, elements=st.integers(-128, 127)), st.floats(2.0**-20, 2.0**10, width=32), st.integers(-128, 127)
)
def test_codes_survive_the_round_trip(codes: np.ndarray, scale: float, zero_point: int) -> None:
    encoding = Encoding(np.float32([scale]), np.int64([zero_point]), QuantSpec())
    np.testing.assert_array_equal(encoding.quantize(encoding.dequantize(codes)), codes)


def test_per_axis_encoding_follows_its_axis() -> None:
    encoding = Encoding(np.float32([1.0, 0.5]), np.int64([0, 0]), QuantSpec(8, True, True, True), axis=1)
    assert encoding.quantize(np.float32([[3.0, 3.0]])).tolist() == [[3, 6]]
    assert encoding.dequantize(np.int64([[3, 6]])).tolist() == [[3.0, 3.0]]


@pytest.mark.parametrize("spec", SPECS)
def test_graph_eager_and_compiled_agree_to_the_bit(spec: QuantSpec) -> None:
    rng = np.random.default_rng(0)
    compiled = [tf.function(lambda a, b: encode_range(a, b, spec), jit_compile=jit) for jit in (False, True)]
    for low, high in np.float32(np.sort(rng.normal(size=(20, 2)) * 10)):
        arguments = tf.constant(low), tf.constant(high)
        results = [encode_range(*arguments, spec), *(function(*arguments) for function in compiled)]
        assert len({(float(s), float(z)) for s, z in results}) == 1


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("narrow", [False, True])
def test_agreement_with_tensorflows_fake_quant(bits: int, narrow: bool) -> None:
    """On its own nudged range TensorFlow's kernel gives the values of our codes."""
    rng = np.random.default_rng(bits)
    x = np.float32(rng.normal(size=2000) * 3)
    spec = QuantSpec(bits, symmetric=narrow, narrow=narrow)
    scale, zero_point = encoded(float(x.min()), float(x.max()), spec)
    low, high = (np.float32((code - zero_point) * scale) for code in (spec.low, spec.high))
    theirs = tf.quantization.fake_quant_with_min_max_args(
        x, float(low), float(high), num_bits=bits, narrow_range=narrow
    )
    out = Grid(tf.constant(scale), tf.constant(float(zero_point)), spec.low, spec.high)
    ours = nearest_steps(tf.constant(x), out).numpy() * scale
    steps = np.abs(theirs.numpy() - ours) / scale
    assert np.mean(steps > 0.01) <= 0.002, "but for ties"
    assert steps.max() <= 1.01


@settings(deadline=None)
@given(matrices, weight_specs)
def test_weights_use_the_narrow_range(weights: np.ndarray, spec: QuantSpec) -> None:
    scale = encode_weights(tf.constant(weights), spec, (1,)).numpy()
    assert scale.shape == ((1, 4) if spec.per_axis else (1, 1)) and np.all(scale > 0)
    codes = np.rint(weights / scale)
    assert codes.min() >= spec.low == -spec.high and codes.max() <= spec.high
    largest = np.abs(weights).max(axis=0 if spec.per_axis else None)
    alive = largest > max(np.abs(weights).max() * SMALLEST_CHANNEL, SMALLEST_RANGE)
    found = np.abs(codes).max(axis=0 if spec.per_axis else None)
    assert np.all(found[alive] == spec.high), "the largest weight of a channel takes the last code"


@settings(deadline=None)
@given(matrices)
def test_weight_scales_against_float64(weights: np.ndarray) -> None:
    spec = QuantSpec(8, True, True, True)
    reach = np.abs(weights.astype(np.float64)).max(axis=0)
    reach = np.maximum(reach, (reach.max() if reach.max() > SMALLEST_RANGE else 1.0) * SMALLEST_CHANNEL)
    np.testing.assert_allclose(encode_weights(tf.constant(weights), spec, (1,)).numpy()[0], reach / 127, rtol=3e-7)


def test_a_large_bias_widens_the_scale_of_its_channel_only() -> None:
    weights, spec = tf.constant([[1.27, 1.27]]), QuantSpec(8, True, True, True)
    scale = encode_weights(weights, spec, (1,), bias_reach=tf.constant([[0.0, 2.0**40]])).numpy()[0]
    assert scale[0] == pytest.approx(0.01) and scale[1] == pytest.approx(2.0**10)
    assert 2.0**40 / scale[1] <= 2.0**30


@pytest.mark.parametrize("bits", [1, 17])
def test_widths_out_of_reach_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=rf"bits must lie in 2..16. Received: bits={bits}"):
        QuantSpec(bits)


def test_narrow_needs_symmetric() -> None:
    with pytest.raises(ValueError, match="narrow needs symmetric=True"):
        QuantSpec(narrow=True)


def test_config_makes_the_same_spec() -> None:
    for spec in SPECS:
        assert QuantSpec(**spec.to_config()) == spec

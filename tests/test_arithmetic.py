"""The arithmetic of kquant.core.arithmetic against the interpreters, code for code."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import OpResolverType
from arithmetic_cases import CASES, INT16, Case, Encoding, random_codes, random_encoding
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_oracle import Operand, one_op_model, run_litert, run_tflm

from kquant.core.arithmetic import KERNELS, ROUNDING, Grid, accumulator_scale, activation_range, requantize, table
from kquant.core.arithmetic.fixed_point import quantize_multiplier

EXAMPLES = 25
# TFLM has no kernel for these.
NOT_IN_TFLM = ("GELU", "RELU_N1_TO_1")
CONTRACTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")


def _run_litert_as(name: str) -> Callable[..., np.ndarray]:
    """LiteRT's reference resolver has no ELU; the builtin one reads the same table."""
    resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES if name == "ELU" else OpResolverType.BUILTIN_REF
    return lambda model, *inputs: run_litert(model, *inputs, resolver=resolver)


def _assert_equal_codes(got: np.ndarray, want: np.ndarray, what: str) -> None:
    wrong = got.reshape(want.shape) != want
    largest_lsb = np.abs(got.reshape(want.shape).astype(int) - want).max(initial=0)
    assert not wrong.any(), f"{what}: {wrong.mean():.6f} of {want.size} codes differ, by up to {largest_lsb} LSB"


def test_every_kernel_has_a_case():
    assert {name.split(" ")[0] for name in CASES} == set(KERNELS)


@pytest.mark.parametrize("name", CASES)
def test_codes_equal_litert_reference(name):
    for seed in range(EXAMPLES):
        case = CASES[name](np.random.default_rng(seed), "int8")
        _assert_equal_codes(case.computed("litert"), case.expected(_run_litert_as(name)), f"{case}")


@pytest.mark.parametrize("name", [name for name in CASES if name not in NOT_IN_TFLM])
def test_codes_equal_tflm(name):
    pytest.importorskip("tflite_micro", reason="the TFLM interpreter exists for Linux only")
    for seed in range(EXAMPLES):
        case = CASES[name](np.random.default_rng(seed), "int8")
        _assert_equal_codes(case.computed("tflm"), case.expected(run_tflm), f"{case}")


@pytest.mark.parametrize("name", INT16["litert"])
def test_int16_codes_equal_litert_reference(name):
    for seed in range(EXAMPLES):
        case = CASES[name](np.random.default_rng(seed), "int16")
        _assert_equal_codes(case.computed("litert"), case.expected(run_litert), f"{case}")


@pytest.mark.parametrize("name", INT16["tflm"])
def test_int16_codes_equal_tflm(name):
    pytest.importorskip("tflite_micro", reason="the TFLM interpreter exists for Linux only")
    for seed in range(EXAMPLES):
        case = CASES[name](np.random.default_rng(seed), "int16")
        _assert_equal_codes(case.computed("tflm"), case.expected(run_tflm), f"{case}")


@pytest.mark.parametrize("name", INT16["litert"])
def test_xla_gives_the_same_int16_codes(name):
    for seed in range(2):
        case = CASES[name](np.random.default_rng(seed), "int16")
        for runtime in [runtime for runtime in INT16 if name in INT16[runtime]]:
            _assert_equal_codes(case.computed(runtime, compiled=True), case.computed(runtime), f"{case}")


@pytest.mark.parametrize("name", CASES)
def test_xla_gives_the_same_codes(name):
    for seed in range(2):
        case = CASES[name](np.random.default_rng(seed), "int8")
        for runtime in ("litert",) if name in NOT_IN_TFLM else ("litert", "tflm"):
            _assert_equal_codes(case.computed(runtime, compiled=True), case.computed(runtime), f"{case}")


# Encodings, found by search, for which some code differs between the runtimes: a few in a million do.
DIFFERING = {
    "LOGISTIC": ([(0.017039446160197258, -111)], (1 / 256, -128)),
    "TANH": ([(0.022111937403678894, -121)], (1 / 128, 0)),
    "MUL": ([(0.008431995287537575, -118), (0.02042553946375847, -108)], (0.005399958696216345, -58)),
    "PRELU": ([(0.05160541087388992, 105), (0.22062860429286957, 30)], (0.11442282050848007, 75)),
}


@pytest.mark.parametrize("op", DIFFERING)
def test_runtimes_differ_and_each_is_met(op):
    pytest.importorskip("tflite_micro", reason="the TFLM interpreter exists for Linux only")
    encodings, out = DIFFERING[op]
    grid = np.meshgrid(*[np.arange(-128, 128)] * len(encodings), indexing="ij")
    codes = [axis.reshape(1, 1, 1, -1).astype(np.int8) for axis in grid]
    made = [Encoding(*encoding) for encoding in encodings]
    case = Case(op, codes, made, Encoding(*out), constant_from=1 if op == "PRELU" else 9)
    _assert_equal_codes(case.computed("litert"), case.expected(run_litert), "LiteRT")
    _assert_equal_codes(case.computed("tflm"), case.expected(run_tflm), "TFLM")
    assert (case.computed("litert") != case.computed("tflm")).any()


@dataclass(frozen=True)
class Contraction:
    """A file of one 1x1 contraction with a bias, its input, and the accumulator it has to find."""

    model: bytes
    codes: np.ndarray
    accumulator: np.ndarray
    source: Grid
    weights: Grid
    out: Grid


def _contraction(op: str, per_axis: bool, halves: bool, seed: int) -> Contraction:
    """Random weights; with `halves`, scales that put many accumulators exactly half way between two codes."""
    rng = np.random.default_rng(seed)
    depthwise, channels_in, channels = op == "DEPTHWISE_CONV_2D", 16, 24
    source = Encoding(2.0**-4, 17) if halves else random_encoding(rng, 0.01, 0.1)
    count = channels if per_axis else 1
    scales = 2.0 ** -rng.integers(5, 8, count) if halves else rng.uniform(0.002, 0.02, count)
    codes = random_codes(rng, 1, 40, 40, channels if depthwise else channels_in)
    weights = rng.integers(-127, 128, (1, channels) if depthwise else (channels, channels_in)).astype(np.int8)
    bias = rng.integers(-5000, 5000, channels).astype(np.int32)
    centred = codes.astype(np.int64) - source.zero_point
    accumulator = (centred * weights[0] if depthwise else centred @ weights.T.astype(np.int64)) + bias
    out_scale = 0.25 if halves else np.float32(accumulator.std() * source.scale * scales.mean() / 60)
    if op == "FULLY_CONNECTED":
        codes, accumulator = codes.reshape(-1, channels_in), accumulator.reshape(-1, channels)
    out = Encoding(float(out_scale), int(rng.integers(-20, 20)))
    scales = np.float32(scales if per_axis else scales[0])
    model = _contraction_model(op, source, codes, weights, scales, bias, out, accumulator.shape)
    weight_grid = Grid(tf.constant(scales), tf.constant(0.0), -127, 127)
    return Contraction(model, codes, accumulator, source.grid(), weight_grid, out.grid())


def _contraction_model(
    op: str,
    source: Encoding,
    codes: np.ndarray,
    weights: np.ndarray,
    scales: np.ndarray,
    bias: np.ndarray,
    out: Encoding,
    out_shape: tuple[int, ...],
) -> bytes:
    rows, columns = weights.shape
    shape = {"FULLY_CONNECTED": (rows, columns), "DEPTHWISE_CONV_2D": (1, 1, 1, columns)}.get(op, (rows, 1, 1, columns))
    axis = 3 if op == "DEPTHWISE_CONV_2D" and scales.ndim else 0
    options = {} if op == "FULLY_CONNECTED" else {"strideW": 1, "strideH": 1, "padding": 1}
    if op == "DEPTHWISE_CONV_2D":
        # LiteRT derives it from the shapes; TFLM reads it, and computes nonsense from the default of 0.
        options["depthMultiplier"] = 1
    operands = [
        source.operand(codes.shape),
        Operand(shape, np.int8, scales, 0, weights, axis),
        Operand(bias.shape, np.int32, np.float32(source.scale) * scales, 0, bias),
    ]
    if op == "TRANSPOSE_CONV":
        out_shape_operand = Operand((4,), np.int32, data=np.array(out_shape))
        operands = [out_shape_operand, operands[1], operands[0], operands[2]]
    return one_op_model(op, operands, out.operand(out_shape), **options)


@pytest.mark.parametrize("runtime", ROUNDING)
@pytest.mark.parametrize("op", CONTRACTIONS)
def test_rounding_of_accumulators(op, runtime):
    """Each contraction rounds as `ROUNDING` says, and as no other way."""
    if runtime == "tflm":
        pytest.importorskip("tflite_micro", reason="the TFLM interpreter exists for Linux only")
    run = {
        "litert": run_litert,
        "tflm": run_tflm,
        "xnnpack": lambda model, codes: run_litert(model, codes, resolver=OpResolverType.AUTO),
    }[runtime]
    alike = {rounding: True for rounding in ("double", "single", "real", "float")}
    for per_axis in (True, False):
        for halves in (True, False):
            made = _contraction(op, per_axis, halves, seed=3)
            want = run(made.model, made.codes)
            scale = accumulator_scale(made.source, made.weights)
            for rounding in alike:
                got = requantize(tf.constant(made.accumulator, tf.float64), scale, made.out, rounding).numpy()
                alike[rounding] &= np.array_equal(got, want)
    assert [rounding for rounding, equal in alike.items() if equal] == [ROUNDING[runtime][op]]


def _nearest(value: Fraction, half: str) -> int:
    below = math.floor(value)
    rest = value - below
    up = rest > Fraction(1, 2) or (rest == Fraction(1, 2) and (half == "up" or value > 0))
    return below + int(up)


def _multiplier_by_hand(real: float) -> tuple[int, int]:
    fraction, shift = math.frexp(real)
    mantissa = _nearest(Fraction(fraction) * 2**31, "away")
    if mantissa == 2**31:
        mantissa, shift = 2**30, shift + 1
    return (0, 0) if shift < -31 else (mantissa, shift)


def _requantized_by_hand(accumulator: int, real: float, zero_point: int, rounding: str) -> int:
    """Integers and fractions only, one value at a time."""
    mantissa, shift = _multiplier_by_hand(real)
    if rounding == "real":
        value = _nearest(Fraction(accumulator * real), "away")
    elif rounding == "single":
        value = _nearest(Fraction(accumulator * mantissa) * Fraction(2) ** (shift - 31), "up")
    else:
        high = _nearest(Fraction(accumulator * 2 ** max(shift, 0) * mantissa, 2**31), "up")
        value = _nearest(Fraction(high, 2 ** max(-shift, 0)), "away")
    return min(max(value + zero_point, -128), 127)


_scales = st.floats(2.0**-20, 10.0, width=32)


@settings(max_examples=300, deadline=None)
@given(st.integers(-(2**31), 2**31 - 1), _scales, _scales, _scales, st.integers(-128, 127))
def test_requantize_against_integers(accumulator, source_scale, weight_scale, out_scale, zero_point):
    out = Grid(tf.constant(out_scale, tf.float32), tf.constant(float(zero_point)))
    weights = Grid(tf.constant([weight_scale], tf.float32), tf.constant(0.0))
    scale = accumulator_scale(Grid(tf.constant(source_scale, tf.float32), tf.constant(0.0)), weights)
    real = source_scale * weight_scale / out_scale
    # What a kernel would shift out of its 32 bits is outside the contract.
    accumulator >>= max(math.frexp(real)[1], 0)
    for rounding in ("double", "single", "real"):
        got = requantize(tf.constant([[accumulator]], tf.int32), scale, out, rounding).numpy()
        assert got[0, 0] == _requantized_by_hand(accumulator, real, zero_point, rounding), rounding


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.just(0.0), st.floats(1e-12, 2.0**29), st.integers(-40, 29).map(lambda k: 2.0**k)))
def test_quantize_multiplier_against_integers(real):
    mantissa, shift = quantize_multiplier(tf.constant(real, tf.float64))
    assert (int(mantissa), int(shift)) == (_multiplier_by_hand(real) if real else (0, 0))


def test_accumulators_of_every_type_give_the_same_codes():
    rng = np.random.default_rng(0)
    accumulator = rng.integers(-(2**23), 2**23, (64, 8))
    scale = tf.constant(rng.uniform(1e-5, 1e-3, 8), tf.float32)
    out = random_encoding(rng).grid()
    for rounding in ("double", "single", "real", "float"):
        codes = [
            requantize(tf.constant(accumulator, dtype), scale, out, rounding).numpy()
            for dtype in (tf.int32, tf.int64, tf.float32, tf.float64)
        ]
        assert all(np.array_equal(codes[0], other) for other in codes[1:]), rounding


def test_table_of_a_function():
    out = Grid(tf.constant(1 / 4), tf.constant(-3.0))
    entries = table(tf.square, Grid(tf.constant(0.5), tf.constant(1.0), -8, 7), out).numpy()
    # Codes -8 .. 7 are -4.5 .. 3.0; their squares in quarters, minus 3, clipped.
    assert entries.tolist() == [min((code - 1) ** 2 - 3, 127) for code in range(-8, 8)]


def test_errors_name_the_operator_and_what_was_expected():
    grid = Grid(tf.constant(0.1), tf.constant(0.0))
    codes = tf.zeros([1, 4], tf.int32)
    with pytest.raises(ValueError, match="RELU_N1_TO_1: TFLM has no such kernel"):
        KERNELS["RELU_N1_TO_1"]([codes], [grid], grid, runtime="tflm")
    with pytest.raises(ValueError, match="expected one of .*'litert'"):
        KERNELS["RELU"]([codes], [grid], grid, runtime="cmsis")
    with pytest.raises(ValueError, match="AVERAGE_POOL_2D: expected .*static height and width"):
        KERNELS["AVERAGE_POOL_2D"]([codes], [grid], grid, pool_size=[2, 2], strides=[2, 2], padding="valid")
    with pytest.raises(ValueError, match="expected rounding to be one of"):
        requantize(codes, tf.constant(1.0), grid, "nearest")
    with pytest.raises(ValueError, match="TANH"):
        activation_range(grid, "TANH")
    with pytest.raises(ValueError, match="QUANTIZE: codes need their grid"):
        KERNELS["QUANTIZE"]([codes], [None], grid)

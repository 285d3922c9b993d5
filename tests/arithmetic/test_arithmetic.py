"""The arithmetic of kquant.arithmetic against the interpreters, code for code."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import OpResolverType
from arithmetic_cases import CASES, INT16, Case, Encoding, random_codes, random_encoding
from contractions import CONTRACTIONS, TYPES, Contraction, contraction, matmul
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_oracle import one_op_model, run_litert, run_tflm

from kquant import targets
from kquant.arithmetic import (
    KERNELS,
    ROUNDING,
    ROUNDING_INT16,
    Grid,
    accumulator_scale,
    activation_range,
    product_scale,
    requantize,
    table,
)
from kquant.arithmetic.fixed_point import Multiplier, quantize_multiplier, scaled, scaled_from_zero
from kquant.arithmetic.requantize import ROUNDINGS
from kquant.core.packed import PACKED
from kquant.targets.kernels import Operator

EXAMPLES = 25
# Random examples of each kernel, in thirds: each kernel meets one of them in `make test`.
some_seeds = pytest.mark.parametrize("seeds", [range(8), range(8, 16), range(16, EXAMPLES)], ids=("a", "b", "c"))
# TFLM has no kernel for these.
NOT_IN_TFLM = ("GELU", "RELU_N1_TO_1")


def _run_litert_as(name: str) -> Callable[..., np.ndarray]:
    """LiteRT's reference resolver has no ELU; the builtin one reads the same table."""
    resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES if name == "ELU" else OpResolverType.BUILTIN_REF
    return lambda model, *inputs: run_litert(model, *inputs, resolver=resolver)


def _assert_equal_codes(got: np.ndarray, want: np.ndarray, what: str) -> None:
    wrong = got.reshape(want.shape) != want
    largest_lsb = np.abs(got.reshape(want.shape).astype(int) - want).max(initial=0)
    assert not wrong.any(), f"{what}: {wrong.mean():.6f} of {want.size} codes differ, by up to {largest_lsb} LSB"


def doubly_rounded(value: int, mantissa: int, shift: int) -> int:
    """MultiplyByQuantizedMultiplier in Python's integers."""
    high = (value * 2 ** max(shift, 0) * mantissa + 2**30) >> 31
    right = max(-shift, 0)
    lost, half = high & (2**right - 1), (2**right - 1 >> 1) + (high < 0)
    return (high >> right) + (lost > half)


@settings(max_examples=200, deadline=None)
@given(st.integers(2**30, 2**31 - 1), st.integers(-31, 6), st.integers(0, 2**31 - 1), st.integers(-40, 40))
def test_integers_in_floats_are_multiplied_to_the_last_bit(mantissa, shift, start, near):
    """Of any size by halves; below 2**22 at once, and behind a RELU in one rounding; above all around ties."""
    most = 2**31 >> max(shift, 0)
    tie = (2 * near + 1) * 2 ** max(30 - shift, 0) // mantissa if shift <= 30 else 0  # a result ends in a half here
    values = [int(v) for v in (start % most, -(start % most), *(tie + n for n in range(-3, 4))) if abs(int(v)) < most]
    by = Multiplier(tf.constant(mantissa, tf.int64), tf.constant(shift, tf.int64))
    wanted = [doubly_rounded(v, mantissa, shift) for v in values]
    assert scaled(tf.constant(values, tf.float64), by, wide=True).numpy().tolist() == wanted
    assert scaled(tf.constant(values, tf.int64), by).numpy().tolist() == wanted
    few = [v for v in values if abs(v) < 2**22]
    wanted = [doubly_rounded(v, mantissa, shift) for v in few]
    assert scaled(tf.constant(few, tf.float64), by).numpy().tolist() == wanted
    above = scaled_from_zero(tf.constant(few, tf.float64), by).numpy()
    assert np.maximum(above, 0).tolist() == np.maximum(wanted, 0).tolist()


def test_every_kernel_has_a_case():
    assert {name.split(" ")[0] for name in CASES} == set(KERNELS)


@pytest.mark.one_in(3)
@some_seeds
@pytest.mark.parametrize("name", CASES)
def test_codes_equal_litert_reference(name, seeds):
    for seed in seeds:
        case = CASES[name](np.random.default_rng(seed), "int8")
        _assert_equal_codes(case.computed("litert"), case.expected(_run_litert_as(name)), f"{case}")


@pytest.mark.one_in(3)
@some_seeds
@pytest.mark.parametrize("name", [name for name in CASES if name not in NOT_IN_TFLM])
def test_codes_equal_tflm(name, seeds):
    pytest.importorskip("tflite_micro", reason="the TFLM interpreter exists for Linux only")
    for seed in seeds:
        case = CASES[name](np.random.default_rng(seed), "int8")
        _assert_equal_codes(case.computed("tflm"), case.expected(run_tflm), f"{case}")


@pytest.mark.one_in(3)
@some_seeds
@pytest.mark.parametrize("name", INT16["litert"])
def test_int16_codes_equal_litert_reference(name, seeds):
    for seed in seeds:
        case = CASES[name](np.random.default_rng(seed), "int16")
        _assert_equal_codes(case.computed("litert"), case.expected(run_litert), f"{case}")


@pytest.mark.one_in(3)
@some_seeds
@pytest.mark.parametrize("name", INT16["tflm"])
def test_int16_codes_equal_tflm(name, seeds):
    pytest.importorskip("tflite_micro", reason="the TFLM interpreter exists for Linux only")
    for seed in seeds:
        case = CASES[name](np.random.default_rng(seed), "int16")
        _assert_equal_codes(case.computed("tflm"), case.expected(run_tflm), f"{case}")


_small_scales = st.floats(2.0**-22, 2.0**-7, width=32)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([*"ABS LEAKY_RELU LOGISTIC QUANTIZE RELU TANH".split(), "QUANTIZE to int8"]), _small_scales)
def test_int16_codes_for_any_scale(name, scale):
    pytest.importorskip("tflite_micro", reason="the TFLM interpreter exists for Linux only")
    case = CASES[name](np.random.default_rng(0), "int16")
    case = replace(case, encodings=[replace(case.encodings[0], scale=scale)])
    _assert_equal_codes(case.computed("litert"), case.expected(run_litert), f"LiteRT, {case}")
    _assert_equal_codes(case.computed("tflm"), case.expected(run_tflm), f"TFLM, {case}")


# Scales for which some int16 kernels go another way: powers of two, and those that they take for one.
NEAR_POWERS = [2.0**power * factor for power in (-13, -12, -11, -10) for factor in (1.0, 1.0006, 0.9994, 1.0008)]


@pytest.mark.parametrize("op", ["ADD", "LOGISTIC", "MUL", "SOFTMAX", "SUB", "TANH"])
def test_int16_codes_near_powers_of_two(op):
    pytest.importorskip("tflite_micro", reason="the TFLM interpreter exists for Linux only")
    for seed, scale in enumerate(NEAR_POWERS):
        case = CASES[op](np.random.default_rng(seed), "int16")
        encodings = [Encoding(float(np.float32(scale)), 0, "int16") for _ in case.encodings]
        case = replace(case, encodings=encodings, out=encodings[0] if len(encodings) == 2 else case.out)
        _assert_equal_codes(case.computed("litert"), case.expected(run_litert), f"LiteRT, {case}")
        _assert_equal_codes(case.computed("tflm"), case.expected(run_tflm), f"TFLM, {case}")


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", INT16["litert"])
def test_xla_gives_the_same_int16_codes(name):
    for seed, runtime in enumerate(runtime for runtime in INT16 if name in INT16[runtime]):
        case = CASES[name](np.random.default_rng(seed), "int16")
        _assert_equal_codes(case.computed(runtime, compiled=True), case.computed(runtime), f"{case}")


def test_int16_gelu_is_near_litert_reference():
    """Its table comes from the C library's float32 erfc and tanh, which no other library gives to the last bit."""
    exact = 0
    for seed in range(EXAMPLES):
        case = CASES["GELU"](np.random.default_rng(seed), "int16")
        apart = np.abs(case.computed("litert") - case.expected(run_litert))
        assert apart.max() <= 1
        assert (apart > 0).mean() < 0.005
        exact += not apart.any()
    assert exact >= 0.8 * EXAMPLES


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", CASES)
def test_xla_gives_the_same_codes(name):
    for seed, runtime in enumerate(("litert",) if name in NOT_IN_TFLM else ("litert", "tflm")):
        case = CASES[name](np.random.default_rng(seed), "int8")
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


RUN = {
    "litert": run_litert,
    "tflm": run_tflm,
    "xnnpack": lambda model, *codes: run_litert(model, *codes, resolver=OpResolverType.AUTO),
}
PRODUCT = ((4.5430024329107255e-05, 6.0848040448036045e-05), 0.00028989618294872344)
# Packed weights are summed and rounded as int8 ones.
TABLES = {"int8": ROUNDING, "int16x8": ROUNDING_INT16, **dict.fromkeys(PACKED, ROUNDING)}


CLIPS = ((None, 0.5), (None, 100.0), (None, 1e-4), ("RELU", 0.5), ("RELU6", 0.5), ("RELU_N1_TO_1", 0.5))


def _row(op: str, runtime: str) -> Operator:
    """What the file of the runtime's target says."""
    return targets.load("tflm" if runtime == "tflm" else "litert").ops[op]


def _contractions(op: str, types: str, runtime: str) -> Iterator[Contraction]:
    """One for each kind of scale and of clipping that the runtime takes."""
    for per_axis, halves, (activation, reach) in itertools.product((True, False), (True, False), CLIPS):
        if types not in PACKED or not per_axis or _row(op, runtime).per_axis_for(types):
            yield contraction(op, per_axis, halves, 3, types, activation, reach)


def _requantized(made: Contraction, rounding: str) -> np.ndarray:
    scale = accumulator_scale(made.source, made.weights)
    return requantize(tf.constant(made.accumulator, tf.float64), scale, made.out, rounding, made.activation).numpy()


@pytest.mark.one_in(2)
@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("runtime", ROUNDING)
@pytest.mark.parametrize("op", CONTRACTIONS)
def test_rounding_of_accumulators(op, runtime, types):
    """Each contraction rounds as the tables say, and as no other way."""
    if runtime == "tflm":
        pytest.importorskip("tflite_micro", reason="the TFLM interpreter exists for Linux only")
    if types in PACKED and not _row(op, runtime).packs(types):
        pytest.skip("the runtime does not take it: test_targets.py")
    if types in PACKED and runtime == "xnnpack":
        pytest.skip("it rounds in a way of its own: test_xnnpack_is_near_with_packed_weights")
    alike = dict.fromkeys(ROUNDINGS, True)
    for made in _contractions(op, types, runtime):
        want = RUN[runtime](made.model, made.codes)
        for rounding in alike:
            alike[rounding] = alike[rounding] and np.array_equal(_requantized(made, rounding), want)
    assert [rounding for rounding, equal in alike.items() if equal] == [TABLES[types][runtime][op]]


@pytest.mark.parametrize(("op", "types"), [(o, t) for t in PACKED for o in CONTRACTIONS if _row(o, "xnnpack").packs(t)])
def test_xnnpack_is_near_with_packed_weights(op, types):
    for made in _contractions(op, types, "xnnpack"):
        want = RUN["xnnpack"](made.model, made.codes)
        assert np.abs(_requantized(made, "float") - want).max() <= 1


@pytest.mark.parametrize("dtype", ["int8", "int16"])
@pytest.mark.parametrize("runtime", ["litert", "tflm"])
def test_rounding_of_products(runtime, dtype):
    """BATCH_MATMUL rounds as the tables say, with the product of scales as `product_scale` says."""
    if runtime == "tflm":
        pytest.importorskip("tflite_micro", reason="the TFLM interpreter exists for Linux only")
    rounding = (ROUNDING_INT16 if dtype == "int16" else ROUNDING)[runtime]["BATCH_MATMUL"]
    for seed, halves in itertools.product(range(EXAMPLES), (True, False)):
        made, other = matmul(halves, seed, dtype)
        sums, scale = tf.constant(made.accumulator, tf.float64), product_scale(made.source, made.weights, runtime)
        got = requantize(sums, scale, made.out, rounding).numpy()
        _assert_equal_codes(got, RUN[runtime](made.model, made.codes, other), f"seed {seed}")


def test_products_of_scales_differ_between_runtimes():
    """Two scales, found by search, whose product as float32 and as double gives multipliers of 15 bits one apart."""
    pytest.importorskip("tflite_micro", reason="the TFLM interpreter exists for Linux only")
    rng = np.random.default_rng(0)
    scales, out_scale = PRODUCT
    encodings = [Encoding(scale, 0, "int16") for scale in scales]
    out = Encoding(out_scale, 0, "int16")
    left, right = random_codes(rng, 1, 40, 15, dtype="int16"), random_codes(rng, 1, 15, 40, dtype="int16")
    operands = [encodings[0].operand(left.shape), encodings[1].operand(right.shape)]
    model = one_op_model("BATCH_MATMUL", operands, out.operand((1, 40, 40)))
    sums = tf.constant(left.astype(np.int64) @ right.astype(np.int64))
    found = {}
    for runtime in ("litert", "tflm"):
        scale = product_scale(encodings[0].grid(), encodings[1].grid(), runtime)
        found[runtime] = requantize(sums, scale, out.grid(), "reduced").numpy()
        _assert_equal_codes(found[runtime], RUN[runtime](model, left, right), runtime)
    assert (found["litert"] != found["tflm"]).any()


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


def _requantized_by_hand(accumulator: int, real: float, zero_point: int, rounding: str, out: Grid) -> int:
    """Integers and fractions only, one value at a time."""
    mantissa, shift = _multiplier_by_hand(real)
    if rounding == "reduced":
        reduced = min(_nearest(Fraction(mantissa, 2**16), "up"), 2**15 - 1)
        value = _nearest(Fraction(accumulator * reduced) * Fraction(2) ** (shift - 15), "up")
    elif rounding == "real":
        value = _nearest(Fraction(accumulator * real), "away")
    elif rounding == "single":
        value = _nearest(Fraction(accumulator * mantissa) * Fraction(2) ** (shift - 31), "up")
    else:
        high = _nearest(Fraction(accumulator * 2 ** max(shift, 0) * mantissa, 2**31), "up")
        value = _nearest(Fraction(high, 2 ** max(-shift, 0)), "away")
    return min(max(value + zero_point, out.low), out.high)


_scales = st.floats(2.0**-20, 10.0, width=32)


def _four(low: int, high: int) -> st.SearchStrategy[list[int]]:
    """As many accumulators as one example has scales."""
    return st.lists(st.integers(low, high), min_size=4, max_size=4)


@settings(max_examples=100, deadline=None)
@given(_four(-(2**31), 2**31 - 1), _scales, _scales, _scales, st.integers(-128, 127))
def test_requantize_against_integers(accumulators, source_scale, weight_scale, out_scale, zero_point):
    out = Grid(tf.constant(out_scale, tf.float32), tf.constant(float(zero_point)))
    weights = Grid(tf.constant([weight_scale], tf.float32), tf.constant(0.0))
    scale = accumulator_scale(Grid(tf.constant(source_scale, tf.float32), tf.constant(0.0)), weights)
    real = source_scale * weight_scale / out_scale
    # What a kernel would shift out of its 32 bits is outside the contract.
    accumulators = [[a >> max(math.frexp(real)[1], 0)] for a in accumulators]
    for rounding in ("double", "single", "reduced", "real"):
        got = requantize(tf.constant(accumulators, tf.int32), scale, out, rounding).numpy()
        wanted = [[_requantized_by_hand(a, real, zero_point, rounding, out)] for (a,) in accumulators]
        np.testing.assert_array_equal(got, wanted, rounding)


@settings(max_examples=100, deadline=None)
@given(_four(-(2**47), 2**47 - 1), st.floats(2.0**-40, 100.0), st.booleans())
def test_requantize_of_wide_accumulators(accumulators, real, per_axis):
    out = Grid(tf.constant(1.0), tf.constant(0.0), -(2**15), 2**15 - 1)
    scale = tf.constant([real] if per_axis else real, tf.float64)
    for dtype in (tf.int64, tf.float64):
        for rounding in ("reduced", "real"):
            got = requantize(tf.constant([[a] for a in accumulators], dtype), scale, out, rounding).numpy()
            wanted = [[_requantized_by_hand(a, real, 0, rounding, out)] for a in accumulators]
            np.testing.assert_array_equal(got, wanted, rounding)


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
    for rounding in ROUNDINGS:
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
    wide = Grid(tf.constant(1e-4), tf.constant(0.0), -(2**15), 2**15 - 1)
    with pytest.raises(ValueError, match="HARD_SWISH: no runtime has a kernel for int16 codes"):
        KERNELS["HARD_SWISH"]([codes], [wide], wide)
    with pytest.raises(ValueError, match="GELU: tflm has no kernel for int16 codes"):
        KERNELS["GELU"]([codes], [wide], wide, runtime="tflm")
    with pytest.raises(ValueError, match="expected rounding to be one of"):
        requantize(codes, tf.constant(1.0), grid, "nearest")
    with pytest.raises(ValueError, match="TANH"):
        activation_range(grid, "TANH")
    with pytest.raises(ValueError, match="QUANTIZE: codes need their grid"):
        KERNELS["QUANTIZE"]([codes], [None], grid)

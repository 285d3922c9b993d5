"""Calibration: observers against numpy, warnings, refusals, and what becomes of ranges before, during and after it."""

from __future__ import annotations

import dataclasses
import gc
import tracemalloc
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import kquant
from kquant.calibration import observations, observers, tensor_statistics
from kquant.calibration.observers import minmax, moving_average, percentile
from kquant.calibration.tensor_statistics import BINS, MOST_BATCHES, Statistics, histogram, thinned
from kquant.core.spec import QuantSpec
from kquant.graph.graph import outputs_of
from kquant.layers.nodes import FakeQuant
from kquant.views import quantized_model

pytestmark = pytest.mark.filterwarnings(
    "ignore:divide by zero encountered in log10",
    "ignore:calibrate. '.*' reads .* in steps of",
    "ignore:calibrate. the range differs more than 2 times",
    "ignore:data, input .* lie outside",
)

RNG = np.random.default_rng(0)
X = np.float32(RNG.normal(size=(96, 6)))


MINMAX = {"name": "minmax", "activations": {"observer": "minmax"}}


def small(recipe: Any = MINMAX, seed: int = 1) -> keras.Model:
    keras.utils.set_random_seed(seed)
    parts = [keras.layers.Dense(5, activation="relu", name="hidden"), keras.layers.Dense(3, name="out")]
    return kquant.quantize(keras.Sequential([keras.Input((6,), name="x"), *parts]), recipe)


def with_observer(name: str) -> dict[str, Any]:
    return {"name": name, "activations": {"observer": name}}


def ranges(q: keras.Model) -> dict[str, tuple[float, float]]:
    nodes = [layer for layer in q.layers if isinstance(layer, FakeQuant) and layer.has_range]
    return {n.name: (float(n.low.numpy().min()), float(n.high.numpy().max())) for n in nodes}


def calibrated(q: keras.Model, data: Any = X, **options: Any) -> keras.Model:
    return kquant.calibrate(q, data, verbose=False, **options)


# Observers


def test_minmax_is_the_range_of_all_data() -> None:
    found = ranges(calibrated(small()))["x_quant"]
    assert found == (float(X.min()), float(X.max()))


@given(st.lists(st.tuples(st.floats(-1e3, 0, width=32), st.floats(0, 1e3, width=32)), min_size=1, max_size=40))
def test_moving_average_against_float64_reference(extremes: list[tuple[float, float]]) -> None:
    """Adam's: `m = b m + (1 - b) x`, divided by `1 - b^n`."""
    lows, highs = (np.float32(column) for column in zip(*extremes, strict=True))
    found = moving_average(Statistics(lows, highs), QuantSpec())
    for value, column in zip(found, (lows, highs), strict=True):
        average = 0.0
        for x in column.astype(np.float64):
            average = 0.9 * average + 0.1 * x
        assert value == pytest.approx(average / (1 - 0.9 ** len(column)), rel=1e-9, abs=1e-9)


def test_moving_average_of_a_model() -> None:
    found = ranges(calibrated(small(with_observer("moving-average")), batch_size=16))["x_quant"]
    batches = X.reshape(6, 16, 6).astype(np.float64)
    weights = 0.9 ** np.arange(5, -1, -1)
    expected = [(weights @ f(batches, axis=(1, 2))) / weights.sum() for f in (np.min, np.max)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def statistics(*batches: np.ndarray) -> Statistics:
    """As calibration collects them."""
    merged = histogram(batches[0])
    for batch in batches[1:]:
        merged = merged.merge(histogram(batch))
    lows, highs = np.float32([b.min() for b in batches]), np.float32([b.max() for b in batches])
    return Statistics(lows, highs, merged.counts, merged.reach)


@pytest.mark.parametrize("percent", [50.0, 90.0, 99.0, 99.9])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 300.0])
def test_percentile_against_numpy(percent: float, scale: float) -> None:
    values = np.float32(RNG.standard_t(3, size=(5, 3999)) * scale)
    s = statistics(*values)
    found = percentile(s, QuantSpec(), percent)
    tail = (100.0 - percent) / 2
    expected = np.percentile(values, [tail, 100.0 - tail], method="inverted_cdf")
    width = 2 * s.reach / BINS
    assert np.all(np.abs(np.subtract(found, expected)) <= width)


def test_percentile_of_a_model_cuts_outliers() -> None:
    data = np.float32(RNG.uniform(-1, 1, size=(4096, 6)))
    data[7, 3] = 100.0
    low, high = ranges(calibrated(small(with_observer("percentile")), data))["x_quant"]
    assert -1.2 <= low <= -0.9 and 0.9 <= high <= 1.2
    assert ranges(calibrated(small(with_observer("minmax")), data))["x_quant"][1] == 100.0


numbers = arrays(np.float32, st.integers(1, 60), elements=st.floats(-(2.0**20), 2.0**20, width=32))


@settings(deadline=None)
@given(numbers, numbers, numbers)
def test_histogram_merge_is_associative_and_equals_the_whole(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    left = histogram(a).merge(histogram(b)).merge(histogram(c))
    right = histogram(a).merge(histogram(b).merge(histogram(c)))
    whole = histogram(np.concatenate([a, b, c]))
    for other in (right, whole):
        np.testing.assert_array_equal(left.counts, other.counts)
        assert left.reach == other.reach
    assert left.counts.sum() == a.size + b.size + c.size


def test_histogram_of_zeros_and_powers_of_two() -> None:
    zeros, ones = np.zeros(3, np.float32), np.ones(5, np.float32)
    merged = histogram(zeros).merge(histogram(ones))
    np.testing.assert_array_equal(merged.counts, histogram(np.concatenate([zeros, ones])).counts)


def test_observers_are_functions_from_statistics_to_a_range() -> None:
    s = replace(statistics(X[:48], X[48:]), samples=X)
    for name, observe in observers.OBSERVERS.items():
        low, high = observe(s, QuantSpec())
        assert minmax(s, QuantSpec())[0] <= low < high <= minmax(s, QuantSpec())[1], name


def test_unknown_observer_names_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"observer 'min-max' does not exist. Did you mean 'minmax'\? There are: minmax"
    ):
        small(with_observer("min-max"))


# Data


@pytest.mark.parametrize(("limit", "batches"), [(32, 1), (40, 2), (64, 2)])
def test_limit_limits_the_data(limit: int, batches: int) -> None:
    asked = 0

    def generate() -> Iterator[np.ndarray]:
        nonlocal asked
        for i in range(3):
            asked += 1
            yield X[32 * i : 32 * (i + 1)]

    found = ranges(calibrated(small(), generate, limit=limit))["x_quant"]
    seen = X[:limit]
    assert found == (float(seen.min()), float(seen.max()))
    assert asked == batches, "batches beyond the limit may be slow to make"


def test_limit_stops_an_endless_dataset() -> None:
    repeated = tf.data.Dataset.from_tensor_slices(X).batch(32).repeat()
    assert ranges(calibrated(small(), repeated, limit=96))["x_quant"] == (float(X.min()), float(X.max()))
    with pytest.raises(ValueError, match="repeats forever"):
        calibrated(small(), repeated)


@pytest.mark.parametrize("name", ["limit", "batch_size"])
@pytest.mark.parametrize("value", [0, -3, "a", 2.5, True])
def test_wrong_counts_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"calibrate: {name} must be 1 or more. Received: {value!r}"):
        calibrated(small(), **{name: value})


def empty_generator() -> Iterator[np.ndarray]:
    yield from ()


@pytest.mark.parametrize("data", [X[:0], empty_generator, tf.data.Dataset.from_tensor_slices(X[:0]).batch(4)])
def test_empty_data_are_refused(data: Any) -> None:
    with pytest.raises(ValueError, match="the data are empty; give at least one sample"):
        calibrated(small(), data)


def test_exhausted_generator_is_refused() -> None:
    used = iter([X])
    next(used)
    with pytest.raises(ValueError, match="data are empty.*A function must return a new generator on each call"):
        calibrated(small(), lambda: used)


def test_float_model_is_refused() -> None:
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2)], name="plain")
    with pytest.raises(ValueError, match="plain: nothing to calibrate; pass the model that kquant.quantize returned"):
        calibrated(model)


def test_infinity_inside_the_model_is_named() -> None:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2, name="large"), keras.layers.Dense(2)])
    model.get_layer("large").kernel.assign(np.full((6, 2), 3e38, "float32"))
    q = kquant.quantize(model)
    with pytest.raises(ValueError, match="NaN or Inf first appears at 'large_quant', although the input is finite"):
        calibrated(q, np.full((64, 6), 10.0, "float32"))


# Warnings


def test_few_samples_warn() -> None:
    with pytest.warns(UserWarning, match="calibrate: 8 samples are few; ranges want 100 or more"):
        calibrated(small(), X[:8])


def test_constant_tensor_warns() -> None:
    with pytest.warns(UserWarning, match="hold a single value on all data: x_quant.*Use data that vary"):
        calibrated(small(), np.full((64, 6), 0.5, "float32"))


def test_constants_of_the_model_are_no_fault_of_the_data() -> None:
    x = keras.Input((3, 4), name="x")
    ones = keras.ops.ones((3, 4))
    model = keras.Model(x, [x * ones, keras.ops.maximum(keras.layers.Dense(4, name="head")(x), ones[:, :1])])
    data = np.float32(RNG.normal(size=(64, 3, 4)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        calibrated(kquant.quantize(model, MINMAX), data)
    with pytest.warns(UserWarning, match="hold a single value on all data: x_quant(?!.*stored)"):
        calibrated(kquant.quantize(model, MINMAX), np.ones_like(data))


def test_slopes_of_zeros_are_no_fault_of_the_data() -> None:
    """A new PReLU in 16 bits computes 0 below zero, whatever the data; constant data are told of all the same."""
    model = keras.Sequential([keras.Input((6,), name="x"), keras.layers.Dense(4), keras.layers.PReLU()])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        calibrated(kquant.quantize(model, "int16x8"), X)
    with pytest.warns(UserWarning, match="hold a single value on all data: x_quant"):
        calibrated(kquant.quantize(model, "int16x8"), np.full((64, 6), 0.5, "float32"))


def test_what_a_new_prelu_lets_nothing_through_is_told() -> None:
    """In 8 bits its slopes are a kernel of 0 too, and what is above 0 passes: here nothing is."""
    dense = keras.layers.Dense(4, bias_initializer=keras.initializers.Constant(-100.0))
    body = [dense, keras.layers.PReLU(name="above"), keras.layers.Dense(3, name="behind")]
    with pytest.warns(UserWarning, match="hold a single value on all data: above_quant, behind_quant"):
        calibrated(kquant.quantize(keras.Sequential([keras.Input((6,), name="x"), *body])), X)


def test_halves_that_differ_warn() -> None:
    data = np.concatenate([X[:48], X[48:] * 10])
    with pytest.warns(
        UserWarning, match="differs more than 2 times between the first and the second half.*x_quant.*Shuffle"
    ):
        calibrated(small(), data, batch_size=16)


@pytest.mark.parametrize("count", [33, 40, 63, 64, 100, 129, 130, 200, 1000])
def test_halves_that_differ_warn_wherever_the_middle_falls(count: int) -> None:
    data = np.float32(RNG.normal(size=(count, 6)))
    data[(count + 1) // 2 :] *= 50
    with pytest.warns(UserWarning, match="between the first and the second half.*x_quant"):
        calibrated(small(), data)


@pytest.mark.parametrize("sizes", [(20, 40, 20, 20), (1, 42, 20, 20), (25, 30, 25)])
def test_a_batch_with_the_middle_belongs_to_no_half(sizes: tuple[int, ...]) -> None:
    """Its few samples of the other half would hide what differs."""
    data = np.float32(RNG.normal(size=(sum(sizes), 6)))
    data[sum(sizes) // 2 :] *= 50
    ends = np.cumsum(sizes)
    with pytest.warns(UserWarning, match="between the first and the second half.*x_quant"):
        calibrated(small(), lambda: iter([data[e - n : e] for e, n in zip(ends, sizes, strict=True)]))


def test_halves_that_lie_apart_warn() -> None:
    """What counts is the range with 0 in it, as on the grid: of one width, but not at one place."""
    data = np.float32(RNG.uniform(0, 1, size=(96, 6)))
    data[48:] += 10
    with pytest.warns(UserWarning, match="between the first and the second half.*x_quant"):
        calibrated(small(), data)


def far_away(mean: float = 1000.0) -> keras.Model:
    x = keras.Input((4,), name="pressure")
    return keras.Model(x, keras.layers.Dense(3)(keras.layers.Normalization(mean=[mean] * 4, variance=[1.0] * 4)(x)))


@pytest.mark.parametrize("sign", [1, -1])
def test_inputs_far_from_zero_warn(sign: int) -> None:
    """Where the first layer was to bring them near 0, too few codes are left to hand it."""
    data = sign * np.float32(1000 + np.random.default_rng(0).normal(size=(64, 4)))
    with pytest.warns(UserWarning, match=r"input 'pressure', .* span 1.\d steps of its 8-bit grid.*Subtract their"):
        calibrated(kquant.quantize(far_away(sign * 1000.0)), data)


@pytest.mark.parametrize(("recipe", "centre"), [("int16x8", 1000.0), ("int8", 20.0), ("int8", 1.0)])
def test_inputs_with_codes_enough_do_not_warn(recipe: str, centre: float) -> None:
    data = np.float32(centre + np.random.default_rng(0).normal(size=(64, 4)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        calibrated(kquant.quantize(far_away(centre), recipe), data)


def of_function(compute: Any) -> keras.Model:
    x = keras.Input((6,), name="x")
    return keras.Model(x, compute(x))


@pytest.mark.parametrize("name", ["reciprocal", "rsqrt", "log"])
def test_functions_near_where_they_have_no_bound_warn(name: str) -> None:
    compute = getattr(keras.ops, name)
    model = of_function(lambda x: compute(x if name == "reciprocal" else x * x))
    with pytest.warns(UserWarning, match=rf"\({name}\) takes values from .* has no bound near some of the data. Keep"):
        q = calibrated(kquant.quantize(model, MINMAX))
    wanted, found = np.asarray(model(X)), np.asarray(q(X))
    assert np.mean(wanted**2) < 10 * np.mean((found - wanted) ** 2), "less than 10 dB: the warning is right"


@pytest.mark.parametrize("name", ["reciprocal", "rsqrt", "log"])
def test_functions_of_what_stays_away_do_not_warn(name: str) -> None:
    model = of_function(lambda x: getattr(keras.ops, name)(keras.ops.abs(x) + 0.5))
    signs = of_function(keras.ops.reciprocal)  # across 0, and never near it
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        calibrated(kquant.quantize(model, MINMAX))
        calibrated(kquant.quantize(signs, MINMAX), np.float32(np.sign(X) * (0.5 + np.abs(X))))


@pytest.mark.parametrize("count", [40, 45, 96, 200])
def test_good_data_do_not_warn(count: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        calibrated(small(), np.float32(np.random.default_rng(count).normal(size=(count, 6))))
        calibrated(small(), np.float32(np.random.default_rng(count).uniform(9, 11, size=(count, 6))))


# Shards


@pytest.mark.parametrize("name", sorted(observers.OBSERVERS))
def test_shards_add_up_to_the_whole(name: str, tmp_path: Path) -> None:
    q = small(with_observer(name))
    first = kquant.observe(q, X[:48], batch_size=16, verbose=False)
    first.save(tmp_path / "first.npz")
    second = kquant.observe(small(with_observer(name)), X[48:], batch_size=16, verbose=False)
    both = kquant.Observations.load(tmp_path / "first.npz") + second
    assert both.samples == len(X)
    assert ranges(kquant.calibrate(q, both)) == ranges(calibrated(small(with_observer(name)), X, batch_size=16))


@pytest.mark.parametrize("name", sorted(observers.OBSERVERS))
@pytest.mark.parametrize("count", [2, 8])
def test_shards_by_number_are_the_whole_to_the_bit(name: str, count: int, tmp_path: Path) -> None:
    """Also where tensors are so large that batches behind the first ones are looked at more thinly."""
    model = keras.Sequential([keras.Input((24, 24, 8), name="x"), keras.layers.Conv2D(16, 1), keras.layers.ReLU()])
    x = np.float32(RNG.normal(size=(130, 24, 24, 8)) * np.linspace(0.5, 3.0, 130)[:, None, None, None])
    recipe = with_observer(name)
    whole = kquant.observe(kquant.quantize(model, recipe), x, batch_size=8, verbose=False)
    parts = []
    for i in range(count):  # each as a process of its own has it
        part = kquant.observe(kquant.quantize(model, recipe), x, batch_size=8, shard=(i, count), verbose=False)
        part.save(tmp_path / "part.npz")
        parts.append(kquant.Observations.load(tmp_path / "part.npz"))
    both = sum(parts[1:], start=parts[0])
    assert both.sizes.tolist() == whole.sizes.tolist()
    for key, s in whole.tensors.items():
        for field in dataclasses.fields(s):
            assert np.array_equal(getattr(both.tensors[key], field.name), getattr(s, field.name)), (key, field.name)
    q = [kquant.quantize(model, recipe) for _ in range(2)]
    assert ranges(kquant.calibrate(q[0], both)) == ranges(kquant.calibrate(q[1], whole))


def test_a_sum_of_shards_takes_no_more_memory_than_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_statistics, "MOST_BATCHES", 16)
    q, x = small(with_observer("moving-average")), np.float32(RNG.normal(size=(120, 6)))
    whole = kquant.observe(q, x, batch_size=2, verbose=False)
    parts = [kquant.observe(q, x, batch_size=2, shard=(i, 5), verbose=False) for i in range(5)]
    both = sum(parts[1:], start=parts[0])
    assert len(whole.sizes) < 16 and both.sizes.tolist() == whole.sizes.tolist() and both.samples == 120
    assert all(np.array_equal(both.tensors[key].lows, s.lows) for key, s in whole.tensors.items())


def test_a_shard_needs_data_that_tell_their_length() -> None:
    q = small(with_observer("minmax"))
    with pytest.raises(ValueError, match=r"shard=\(0, 2\) needs data that tell how many batches they have"):
        kquant.observe(q, lambda: iter([X]), shard=(0, 2), verbose=False)
    with pytest.raises(ValueError, match=r"n at most the number of batches, 2. Received: \(0, 3\)"):
        kquant.observe(q, X[:8], batch_size=4, shard=(0, 3), verbose=False)
    with pytest.raises(ValueError, match=r"0 <= i < n"):
        kquant.observe(q, X, batch_size=4, shard=(2, 2), verbose=False)
    known = tf.data.Dataset.from_generator(lambda: iter([X[:8], X[8:16]]), output_types=tf.float32)
    known = known.apply(tf.data.experimental.assert_cardinality(2))  # the remedy
    assert kquant.observe(q, known, shard=(1, 2), verbose=False).samples == 8


def test_shards_of_many_batches_count_alike() -> None:
    """Later batches are looked at more thinly; they weigh what the first ones weigh."""
    model = keras.Sequential([keras.Input((32, 32, 8), name="x"), keras.layers.GlobalAveragePooling2D()])
    recipe = {"name": "p", "activations": {"observer": "kl"}}
    x = np.float32(RNG.normal(size=(160, 32, 32, 8)))
    x[80:] *= 4.0
    whole = kquant.observe(kquant.quantize(model, recipe), x, batch_size=8, verbose=False)
    q = kquant.quantize(model, recipe)
    parts = [kquant.observe(q, part, batch_size=8, verbose=False) for part in (x[:80], x[80:])]
    both = (parts[0] + parts[1]).tensors["x_quant", 0]
    one = whole.tensors["x_quant", 0]
    assert one.counts.sum() == pytest.approx(x.size, rel=0.01) and both.counts.sum() == pytest.approx(x.size, rel=0.01)
    edges = np.linspace(-one.reach, one.reach, one.counts.size + 1)[1:]
    beyond = [s.counts[np.abs(edges) > 4.0].sum() / s.counts.sum() for s in (one, both)]
    assert beyond[0] == pytest.approx(beyond[1], rel=0.1) == pytest.approx(np.mean(np.abs(x) > 4.0), rel=0.1)


def test_observations_of_another_model_or_recipe_are_refused(tmp_path: Path) -> None:
    seen = kquant.observe(small(with_observer("minmax")), X, verbose=False)
    with pytest.raises(ValueError, match="'x_quant' has the observer 'mse', which these observations were not"):
        kquant.calibrate(small(with_observer("mse")), seen)
    other = kquant.quantize(keras.Sequential([keras.Input((6,), name="y"), keras.layers.Dense(2)]))
    with pytest.raises(ValueError, match="these observations are not of .*x_quant"):
        kquant.calibrate(other, seen)
    with pytest.raises(ValueError, match="these two are of different models; only one has"):
        _ = seen + kquant.observe(other, X, verbose=False)
    (tmp_path / "not.npz").write_text("no")
    with pytest.raises(ValueError, match="is not what Observations.save wrote"):
        kquant.Observations.load(tmp_path / "not.npz")


# State


def test_calibration_is_deterministic() -> None:
    for name in observers.OBSERVERS:
        assert ranges(calibrated(small(with_observer(name)))) == ranges(calibrated(small(with_observer(name)))), name


def test_recalibration_replaces_ranges() -> None:
    q = calibrated(small(), X * 10)
    assert ranges(calibrated(q)) == ranges(calibrated(small()))


def test_interrupted_calibration_leaves_old_ranges() -> None:
    q = calibrated(small())
    before = [v.numpy().copy() for v in q.variables]

    def interrupted() -> Iterator[np.ndarray]:
        yield X * 10
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrated(q, interrupted)
    with pytest.raises(ValueError, match="NaN"):
        calibrated(q, [*(X * 10), np.full(6, np.nan, "float32")])
    for old, new in zip(before, q.variables, strict=True):
        np.testing.assert_array_equal(old, new.numpy())


def test_calibration_changes_ranges_only() -> None:
    q = small()
    before = {v.path: v.numpy().copy() for v in q.variables}
    calibrated(q)
    changed = {v.path for v in q.variables if not np.array_equal(before[v.path], v.numpy())}
    assert changed and {path.rsplit("/", 1)[-1] for path in changed} <= {"low", "high", "count"}


def test_memory_does_not_grow_with_the_samples() -> None:
    q = calibrated(small(with_observer("percentile")))
    held = []

    def watched() -> Iterator[np.ndarray]:
        for i in range(400):
            if i in (20, 399):
                gc.collect()
                held.append(tracemalloc.get_traced_memory()[0])
            yield X

    tracemalloc.start()
    calibrated(q, watched)
    tracemalloc.stop()
    assert held[1] - held[0] < 379 * X.nbytes / 6, "a few numbers for each batch, not its samples"


def test_statistics_of_many_batches_are_thinned() -> None:
    rows = [np.float32([[-i, i], [0, 1]]) for i in range(30_000)]
    kept: list[np.ndarray] = []
    sizes: list[int] = []
    for row in rows:
        kept.append(row)
        sizes.append(3)
        kept, sizes = thinned(kept, sizes)
    assert len(kept) == len(sizes) < MOST_BATCHES and sum(sizes) == 3 * len(rows)
    both = [Statistics(*np.stack(part)[:, 0].T) for part in (kept, rows)]
    assert minmax(both[0], QuantSpec()) == minmax(both[1], QuantSpec()) == (-29_999.0, 29_999.0)
    assert moving_average(both[0], QuantSpec()) == pytest.approx(moving_average(both[1], QuantSpec()), rel=1e-12)


def test_nodes_without_data_pass_values_through_and_say_so_once() -> None:
    q = small()
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(5, activation="relu"), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((6,)), *layers])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        outputs = q.predict(X, verbose=0)
        q.predict(X[:8], verbose=0)
    # weights need no data: they are quantized already
    np.testing.assert_allclose(outputs, model.predict(X, verbose=0), atol=0.02)
    messages = [str(w.message) for w in caught if "have seen no data" in str(w.message)]
    assert len(messages) == 1 and "Run kquant.calibrate" in messages[0]


def test_nodes_without_data_are_told_of_once_however_many_there_are() -> None:
    q = small()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        q.predict(X, verbose=0)
    assert len([w for w in caught if "have seen no data" in str(w.message)]) == 1


def test_nodes_without_data_start_from_the_first_batch_in_training() -> None:
    q = small()
    q.compile(keras.optimizers.SGD(0.0), "mse", run_eagerly=True)
    q.fit(X[:32], np.zeros((32, 3)), batch_size=32, verbose=0)
    assert ranges(q)["x_quant"] == pytest.approx((float(X[:32].min()), float(X[:32].max())), rel=1e-6)


def test_training_moves_ranges_without_bias() -> None:
    """Three steps against the float64 average with zero debias."""
    q = small({"name": "mine", "training": {"momentum": 0.5}})
    q.compile(keras.optimizers.SGD(0.0), "mse", run_eagerly=True)
    q.fit(X, np.zeros((96, 3)), batch_size=32, shuffle=False, verbose=0)
    lows = X.reshape(3, 32, 6).min(axis=(1, 2)).astype(np.float64)
    weights = np.array([0.25, 0.5, 1.0])
    assert ranges(q)["x_quant"][0] == pytest.approx(float(weights @ lows / weights.sum()), rel=1e-6)


def test_training_goes_on_from_calibrated_ranges() -> None:
    q = calibrated(small({"name": "mine", "training": {"momentum": 0.99}}), batch_size=1)
    before = ranges(q)["x_quant"]
    q.compile(keras.optimizers.SGD(0.0), "mse", run_eagerly=True)
    q.fit(X[:32] * 0.1, np.zeros((32, 3)), batch_size=32, verbose=0)
    assert ranges(q)["x_quant"] == pytest.approx(before, rel=0.05) and ranges(q)["x_quant"] != before


@pytest.mark.parametrize("first", ["calibrate", "nothing"])
def test_freeze_ranges_after(first: str) -> None:
    """So many training steps; the batches of a calibration do not count."""
    q = small({"name": "mine", "training": {"momentum": 0.5, "freeze_ranges_after": 2}})
    if first == "calibrate":
        calibrated(q, batch_size=8)
    q.compile(keras.optimizers.SGD(0.0), "mse", run_eagerly=True)
    y = np.zeros((32, 3))
    seen = [ranges(q)]
    for factor in (2.0, 3.0, 50.0, 80.0):
        q.fit(X[:32] * factor, y, batch_size=32, verbose=0)
        seen.append(ranges(q))
    assert seen[0] != seen[1] != seen[2]
    assert seen[2] == seen[3] == seen[4]


def test_frozen_from_the_start_still_takes_the_first_batch() -> None:
    q = small({"name": "mine", "training": {"freeze_ranges_after": 0}})
    q.compile(keras.optimizers.SGD(0.0), "mse", run_eagerly=True)
    for factor in (1.0, 5.0):
        q.fit(X[:32] * factor, np.zeros((32, 3)), batch_size=32, verbose=0)
    assert ranges(q)["x_quant"] == pytest.approx((float(X[:32].min()), float(X[:32].max())), rel=1e-6)
    calibrated(q, X * 3)
    before = ranges(q)
    q.fit(X[:32] * 9, np.zeros((32, 3)), batch_size=32, verbose=0)
    assert ranges(q) == before


def test_freezing_survives_saving(tmp_path: Any) -> None:
    q = calibrated(small({"name": "mine", "training": {"freeze_ranges_after": 1}}))
    q.save(tmp_path / "q.keras")
    again = keras.models.load_model(tmp_path / "q.keras")
    again.compile(keras.optimizers.SGD(0.0), "mse", run_eagerly=True)
    for _ in range(2):
        again.fit(X[:32] * 9, np.zeros((32, 3)), batch_size=32, verbose=0)
        moved = ranges(again)
    assert moved != ranges(q)
    again.fit(X[:32] * 90, np.zeros((32, 3)), batch_size=32, verbose=0)
    assert ranges(again) == moved


@pytest.mark.parametrize("momentum", [0.9, 0.99])
def test_training_moves_calibrated_ranges_at_the_pace_of_momentum(momentum: float) -> None:
    model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3)])
    rng = np.random.default_rng(0)
    x, small = (np.float32(rng.normal(size=(64, 4))) * scale for scale in (1.0, 0.25))
    q = kquant.calibrate(kquant.quantize(model, {"name": "m", "training": {"momentum": momentum}}), x, verbose=False)
    node = q.get_layer("x_quant")
    start, steps = float(node.high.numpy()[0]), 5
    q.compile(keras.optimizers.SGD(0.0), "mse", run_eagerly=True)
    q.fit(small, np.zeros((64, 3), np.float32), batch_size=64, epochs=steps, verbose=0)
    expected = momentum**steps * start + (1.0 - momentum**steps) * float(small.max())
    np.testing.assert_allclose(node.high.numpy()[0], expected, rtol=1e-5)


def joined(factor: float, apart: bool) -> keras.Model:
    inputs = keras.Input((4, 4, 2), name="x")
    narrow = keras.layers.Rescaling(1.0, name="apart")(inputs) if apart else inputs
    return keras.Model(inputs, keras.layers.Concatenate(name="join")([inputs * factor, narrow]))


def test_ranges_that_do_not_go_together_are_named_and_the_remedy_helps():
    x = np.random.default_rng(0).normal(size=(100, 4, 4, 2)).astype("float32")
    sqnr = {}
    for apart in (False, True):
        model = joined(100.0, apart)
        with pytest.warns(UserWarning, match=r"share an encoding: .* wide\).*Rescaling"):
            q = kquant.calibrate(kquant.quantize(model), x, verbose=False)
        wanted = np.asarray(model(x))
        sqnr[apart] = 10 * np.log10(np.sum(wanted**2) / np.sum((wanted - np.asarray(q(x))) ** 2))
    assert sqnr[True] > sqnr[False] + 20, sqnr


def test_ranges_that_go_together_need_no_word(recwarn):
    x = np.random.default_rng(0).normal(size=(100, 4, 4, 2)).astype("float32")
    kquant.calibrate(kquant.quantize(joined(4.0, False)), x, verbose=False)
    assert not [w for w in recwarn if "share an encoding" in str(w.message)]


def test_large_batches_are_computed_call_by_call(monkeypatch: pytest.MonkeyPatch) -> None:
    x = keras.Input((8, 8, 3), name="image")
    y = keras.layers.Conv2D(4, 3, activation="relu")(x)
    y = keras.layers.Concatenate()([y, keras.layers.Conv2D(4, 1)(y)])
    model = keras.Model(x, {"a": keras.layers.Flatten()(y), "b": y})
    data = np.random.default_rng(0).normal(size=(40, 8, 8, 3)).astype("float32")
    held = kquant.calibrate(kquant.quantize(model), data, batch_size=20, verbose=False)
    monkeypatch.setattr(quantized_model, "HELD_BYTES", 0)
    graph = quantized_model.graph_if_large(held, 1)
    assert graph is not None
    for a, b in zip(*(keras.tree.flatten(y) for y in (held(data), outputs_of(graph, data))), strict=True):
        np.testing.assert_array_equal(a, b)
    calls = kquant.calibrate(kquant.quantize(model), data, batch_size=20, verbose=False)
    assert kquant.encodings(calls) == kquant.encodings(held)
    # the image, which the first layer's input is, and what the concatenation reads and makes are not all alive at once
    sizes = quantized_model.tensor_bytes(graph)
    assert max(sizes) < quantized_model.live_bytes(graph) < sum(sizes)
    monkeypatch.setattr(observations, "LIVE_BYTES", 3 * quantized_model.live_bytes(graph))
    shards = kquant.observe(kquant.quantize(model), data, verbose=False)
    assert set(shards.sizes.tolist()) == {3, 1}

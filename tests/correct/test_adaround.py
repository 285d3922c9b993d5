"""AdaRound and sequential MSE: against real layers, numpy in float64 and rounding to nearest, on data held out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import contract
import keras
import numpy as np
import pytest
import tensorflow as tf

import kquant
from kquant.correct import adaptive_rounding, range_search, rounding
from kquant.correct.adaptive_rounding import error, examples
from kquant.correct.reconstruction import Reservoir, input_rows, matrix_of
from kquant.correct.rounding import Examples, Settings, inverse, products, rectified_sigmoid, round_matrix
from kquant.correct.sweep import Sweep
from kquant.layers.nodes import Compressed
from kquant.ops import RULES
from kquant.ops.rows import as_matrix, from_matrix
from kquant.views.quantized_model import Place, places, read, tensors

RNG = np.random.default_rng(0)
W4 = {"name": "w4", "weights": {"bits": 4}}
QUICK: dict[str, Any] = {"iterations": 200, "rows": 2048, "row_batch": 128, "verbose": False}
SETTINGS = Settings(800, 3e-2, 128, 0.2, (20.0, 2.0), 10.0)


def correlated(samples: int, *shape: int, seed: int = 1) -> np.ndarray:
    """Few sources mixed into all channels: rounding errors of one weight can make up for those of another."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(5).normal(size=(max(2, shape[-1] // 3), shape[-1]))
    return np.float32(rng.normal(0.3, 1.0, (samples, *shape[:-1], len(mix))) @ mix)


def network() -> keras.Model:
    """A convolution, a depthwise one and a Dense, ReLUs between them."""
    keras.utils.set_random_seed(3)
    layers = keras.layers
    inputs = keras.Input((6, 6, 6), name="image")
    x = layers.Conv2D(8, 3, activation="relu", name="conv")(inputs)
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu6", name="depthwise")(x)
    x = layers.Dense(4, name="head")(layers.Flatten(name="flatten")(x))
    return contract.randomise(keras.Model(inputs, x, name="network"))


COMPILED = rounding._compiled


@pytest.fixture(scope="module", autouse=True)
def in_graphs() -> Iterator[None]:
    """By XLA, which takes two seconds for each layer, are the roundings that have to be good on new data."""
    with pytest.MonkeyPatch.context() as patch:
        in_graph = lambda run, *given: tf.function(run, autograph=False).get_concrete_function(*given)  # noqa: E731
        patch.setattr(rounding, "_compiled", in_graph)
        yield


X = correlated(96, 6, 6, 6)
NEW = correlated(64, 6, 6, 6, seed=2)


def calibrated(model: keras.Model | None = None, x: np.ndarray = X, recipe: Any = W4) -> keras.Model:
    return kquant.calibrate(kquant.quantize(model or network(), recipe), x, verbose=False)


@pytest.fixture(scope="module")
def rounded() -> keras.Model:
    """The network with learned roundings; tests read it only."""
    return kquant.adaround(calibrated(), X, **QUICK)


def compressed(q: keras.Model) -> dict[str, Compressed]:
    return {layer.name: layer for layer in q.layers if isinstance(layer, Compressed)}


def codes(layer: Compressed) -> np.ndarray:
    return layer.codes(tf.constant(1.0))[0].numpy()


def all_codes(q: keras.Model) -> dict[str, np.ndarray]:
    return {name: codes(layer) for name, layer in compressed(q).items()}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


WITH_ROWS = [
    name
    for rule in RULES
    if rule.weights is not None and rule.weights.rows is not None
    for name in contract.EXAMPLES
    if contract.EXAMPLES[name] in rule.examples
]


@pytest.mark.parametrize("name", WITH_ROWS)
def test_rows_times_the_matrix_are_the_layer(name: str) -> None:
    q = kquant.quantize(contract.build(name))
    found = [place for place in places(read(q)) if place.rule.weights.rows is not None]
    assert found
    for place in found:
        layer = place.layer.layer
        x = RNG.normal(size=(2, *place.calls[0].inputs[0].shape[1:])).astype("float32")
        y = place.layer.apply(tf.constant(x), place.layer.weights_as_used(), None).numpy()
        rows = place.rule.weights.rows(layer, tf.constant(x))
        weights = place.layer.weights_as_used().numpy()
        some = RNG.permutation(len(rows))[: len(rows) // 2 + 1]
        np.testing.assert_array_equal(place.rule.weights.rows(layer, tf.constant(x), some), tf.gather(rows, some))
        matrix = as_matrix(weights, rows.shape[1], y.shape[-1])
        bias = getattr(layer, place.layer.bias_name, None)
        found_y = products(rows, tf.constant(matrix)).numpy() + (0.0 if bias is None else bias.numpy())
        np.testing.assert_allclose(found_y, y.reshape(-1, y.shape[-1]), rtol=1e-4, atol=1e-4)
        assert np.array_equal(from_matrix(matrix, weights.shape), weights)


@pytest.mark.parametrize("per_axis", [True, False])
def test_the_range_is_that_of_a_search_by_brute_force(per_axis: bool) -> None:
    q = calibrated(recipe={"name": "w4", "weights": {"bits": 4, "per_axis": per_axis}})
    kquant.sequential_mse(q, X, candidates=12, verbose=False)
    graph = read(q)
    chosen = 0
    for place in places(graph):
        layer, x = place.layer, []
        for batch in tensors(graph, [place.calls[0].inputs[0]], [X], quantized=True):
            x.append(batch[0].astype(np.float64))
        weights = layer.weights_as_used().numpy().astype(np.float64)
        axes = tuple(i for i, n in enumerate(layer.reach.shape) if n != weights.shape[i])
        widest = np.abs(weights).max(axes, keepdims=True)
        errors = []
        for n in range(1, 13):
            scale = widest * n / 12 / 7
            wrong = np.clip(np.rint(weights / scale), -7, 7) * scale - weights
            errors.append((by_hand(place.name, x[0], wrong) ** 2).sum((0, 1, 2)))
        errors = np.array(errors) if per_axis else np.array(errors).sum(1, keepdims=True)
        best = widest * (errors.argmin(0) + 1).reshape(layer.reach.shape) / 12
        np.testing.assert_allclose(layer.reach.numpy(), best, rtol=1e-5)
        chosen += int((errors.argmin(0) < 11).sum())
    assert chosen > 0


def by_hand(name: str, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The three layers of the network in float64: [b, h, w, channels]."""
    if name == "head":
        return (x @ w)[:, None, None]
    if name == "depthwise":
        x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    size = x.shape[1] - 2
    y = 0.0
    for i in range(3):
        for j in range(3):
            part = x[:, i : i + size, j : j + size]
            y = y + (part * w[i, j, :, 0] if name == "depthwise" else part @ w[i, j])
    return y


def test_layers_that_are_no_product_get_a_range_without_data() -> None:
    model = contract.randomise(
        keras.Sequential([keras.Input((5, 5, 3)), keras.layers.Conv2DTranspose(4, 3, name="up")], name="m")
    )
    x = np.float32(RNG.normal(size=(40, 5, 5, 3)))
    with pytest.warns(UserWarning, match="packed 4-bit weights for up"):
        q = calibrated(model, x)
    kquant.sequential_mse(q, x, verbose=False)
    (layer,) = compressed(q).values()
    assert np.all(layer.reach.numpy() > 0) and np.any(layer.reach.numpy() < np.abs(layer.weights_as_used()).max())
    with pytest.warns(UserWarning, match="adaround: up stay rounded to nearest"):
        kquant.adaround(q, x, **QUICK)
    assert layer.rounding is None


@pytest.mark.parametrize("kind", ["dense", "conv", "depthwise"])
def test_learned_rounding_beats_nearest_on_new_data(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "_compiled", COMPILED)
    keras.utils.set_random_seed(4)
    made: dict[str, tuple[tuple[int, ...], keras.layers.Layer]] = {
        "dense": ((24,), keras.layers.Dense(8, name="only")),
        "conv": ((6, 6, 9), keras.layers.Conv2D(6, 3, name="only")),
        "depthwise": ((8, 8, 6), keras.layers.DepthwiseConv2D(3, depth_multiplier=2, name="only")),
    }
    shape, layer = made[kind]
    x, new = correlated(512 if kind == "dense" else 64, *shape), correlated(256, *shape, seed=2)
    if kind == "depthwise":  # its weights meet neighbours, not channels: let those be alike
        x, new = (each[:, :1, :1] + 0.3 * each for each in (x, new))
    q = calibrated(contract.randomise(keras.Sequential([keras.Input(shape), layer])), x)
    only = compressed(q)["only"]
    weights, bias = only.weights_as_used(), only.bias_as_used()
    scale, nearest = only.scale_of(weights), codes(only)
    kquant.adaround(q, x, **{**QUICK, "iterations": 400})
    wanted = only.apply(tf.constant(new), weights, bias)
    errors = [
        float(tf.reduce_mean((only.apply(tf.constant(new), each * scale, bias) - wanted) ** 2))
        for each in (codes(only), nearest)
    ]
    assert errors[0] < 0.7 * errors[1]


def test_codes_are_floor_or_ceil_and_on_the_grid(rounded: keras.Model) -> None:
    plain = all_codes(calibrated())
    for name, layer in compressed(rounded).items():
        weights = layer.weights_as_used()
        steps = (weights / layer.scale_of(weights)).numpy()
        found = codes(layer)
        assert np.array_equal(found, np.rint(found)) and np.abs(found).max() <= 7
        assert np.all((found >= np.clip(np.floor(steps), -7, 7)) & (found <= np.clip(np.ceil(steps), -7, 7)))
        assert np.any(found != plain[name]), name


def place_of(q: keras.Model, name: str) -> tuple[Sweep, Place]:
    sweep = Sweep("adaround", q, X)
    return sweep, next(place for place in places(sweep.graph) if place.name == name)


def test_h_is_hard_at_the_end() -> None:
    sweep, place = place_of(calibrated(), "conv")
    seen, _ = examples(sweep, place, 2048, np.random.default_rng(0))
    matrix = matrix_of(place, 1)
    _, h = round_matrix(matrix, place.layer.bias_as_used().numpy(), seen, SETTINGS)
    assert np.mean(np.minimum(h, 1.0 - h) < 0.01) > 0.99


def test_h_starts_as_the_fraction() -> None:
    fractions = np.linspace(0.0, 1.0, 11, dtype=np.float32)
    np.testing.assert_allclose(rectified_sigmoid(tf.constant(inverse(fractions))).numpy(), fractions, atol=1e-6)


def test_the_fused_activation_is_inside_the_loss() -> None:
    # A ReLU that passes only where a channel is large: what happens below it must not count.
    rng = np.random.default_rng(3)
    rows, new = (np.float32(rng.normal(size=(n, 1, 32)) @ rng.normal(size=(32, 32)) * 0.2) for n in (4096, 4096))
    model = keras.Sequential([keras.Input((32,)), keras.layers.Dense(8, activation="relu", name="dense")])
    model.layers[0].kernel.assign(rng.normal(size=(32, 8)) * 0.3)
    model.layers[0].bias.assign(np.full(8, -3.0))
    q = calibrated(model, rows[:, 0])
    place = next(iter(places(read(q))))
    relu, bias = place.activations[0], place.layer.bias_as_used().numpy()
    assert relu is not None
    matrix = matrix_of(place, 1)

    def made(x: np.ndarray, after: Any) -> list[Examples]:
        y = products(tf.constant(x), tf.constant(matrix.weights)) + bias
        return [Examples(x, np.asarray(y if after is None else after(y)), after)]

    found = [round_matrix(matrix, bias, made(rows, after), SETTINGS)[0] for after in (relu, None)]
    inside, outside = (error(matrix, each, bias, made(new, relu)).sum() for each in found)
    assert inside < 0.95 * outside


def test_the_float_function_stays(rounded: keras.Model) -> None:
    q = calibrated()
    for each in (rounded, kquant.sequential_mse(q, X, verbose=False)):
        graph = read(each)
        (y,) = next(tensors(graph, [graph.outputs], [NEW], quantized=False))
        np.testing.assert_allclose(y, network()(NEW), rtol=1e-4, atol=1e-4)


def test_it_survives_saving_bit_for_bit(rounded: keras.Model, tmp_path: Path) -> None:
    rounded.save(tmp_path / "q.keras")
    again = keras.models.load_model(tmp_path / "q.keras")
    assert same(all_codes(again), all_codes(rounded))
    assert np.array_equal(again(NEW), rounded(NEW))


def test_the_file_has_the_learned_codes(rounded: keras.Model, tmp_path: Path) -> None:
    report = kquant.export(rounded, tmp_path / "m.tflite", data=NEW)
    assert [v.agreements[0].equal for v in report.verification if v.runtime == "litert-reference"] == [1.0]


class Counting:
    """Data that count how often they are read."""

    def __init__(self) -> None:
        self.starts = 0

    def __call__(self) -> Iterator[np.ndarray]:
        self.starts += 1
        yield from np.split(X, 3)


@contextlib.contextmanager
def stopped_at(module: Any, function: str, name: str) -> Iterator[None]:
    """Ctrl-C while the layer of this name is worked on."""
    whole = getattr(module, function)

    def interrupted(sweep: Sweep, place: Place, *rest: Any) -> Any:
        if place.name == name:
            raise KeyboardInterrupt
        return whole(sweep, place, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, function, interrupted)
        with pytest.raises(KeyboardInterrupt):
            yield


def test_the_seed_decides_and_a_run_that_was_stopped_goes_on(rounded: keras.Model, tmp_path: Path) -> None:
    data = Counting()
    q = calibrated()  # a run of its own, to the same codes as the fixture's
    plain = all_codes(q)
    with stopped_at(adaptive_rounding, "round_layer", "head"):
        kquant.adaround(q, data, folder=tmp_path, **QUICK)
    stopped = all_codes(q)
    assert np.any(stopped["depthwise"] != plain["depthwise"]) and np.array_equal(stopped["head"], plain["head"])
    kquant.adaround(q, data, folder=tmp_path, **QUICK)
    assert data.starts == 2 and same(all_codes(q), all_codes(rounded))
    said = r"adaround.*holds the rounding of 'conv' for something else: iterations: \d+ there, 7 now\. Take another"
    with pytest.raises(ValueError, match=said):
        kquant.adaround(calibrated(), X, folder=tmp_path, **{**QUICK, "iterations": 7})
    with pytest.raises(ValueError, match=r"for something else: data: '\w+' there, '\w+' now\. Take another"):
        kquant.adaround(calibrated(), X[::-1], folder=tmp_path, **QUICK)


def test_sequential_mse_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    data = Counting()
    whole = kquant.sequential_mse(calibrated(), X, batch_size=len(X) // 3, verbose=False)
    q = calibrated()
    with stopped_at(range_search, "_reach", "head"):
        kquant.sequential_mse(q, data, folder=tmp_path, verbose=False)
    kquant.sequential_mse(q, data, folder=tmp_path, verbose=False)
    assert data.starts == 2 and same(all_codes(q), all_codes(whole))
    fresh = kquant.sequential_mse(calibrated(), data, folder=tmp_path, verbose=False)
    assert data.starts == 3 and same(all_codes(fresh), all_codes(whole)), "all of it was kept; data are recognized"
    with pytest.raises(ValueError, match=r"sequential-mse.*of 'conv' for something else: candidates: 20 there, 7 now"):
        kquant.sequential_mse(calibrated(), X, folder=tmp_path, candidates=7, verbose=False)
    with pytest.raises(
        ValueError, match=r"for something else: data: '\w+' there, '\w+' now; samples: \d+ there, 9 now"
    ):
        kquant.sequential_mse(calibrated(), X, folder=tmp_path, limit=9, verbose=False)


def test_many_positions_are_drawn_from(rounded: keras.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, place = place_of(rounded, "conv")
    whole = range_search.output_error(sweep, place).gram
    monkeypatch.setattr(range_search, "MOST_ROWS", 600)
    drawn = range_search.output_error(sweep, place).gram
    share = 600 / (len(X) * 16)
    assert not np.array_equal(drawn, whole) and np.trace(drawn[0]) == pytest.approx(share * np.trace(whole[0]), rel=0.1)


def test_a_shared_layer_learns_from_all_its_calls() -> None:
    inputs = keras.Input((12,))
    shared = keras.layers.Dense(12, name="shared")
    model = contract.randomise(keras.Model(inputs, shared(keras.layers.ReLU()(shared(inputs)))))
    q = calibrated(model, correlated(200, 12))
    sweep = Sweep("adaround", q, correlated(200, 12))
    (place,) = places(sweep.graph)
    seen, held = examples(sweep, place, 2048, np.random.default_rng(0))
    assert len(seen) == len(held) == 2 and (seen[0].activation is None) != (seen[1].activation is None)
    kquant.adaround(q, correlated(200, 12), **QUICK)
    assert place.layer.rounding is not None


def test_rows_are_a_fair_sample_in_bounded_memory() -> None:
    kept = Reservoir(500, np.random.default_rng(0))
    for part in np.array_split(np.arange(20_000), 37):
        kept.offer(len(part), lambda taken, part=part: [part[taken], -part[taken]])
    values, negative = kept.kept
    assert len(values) == 500 == len(np.unique(values)) and np.array_equal(values, -negative)
    assert abs(values.mean() / 20_000 - 0.5) < 4 * np.sqrt(1 / 12 / 500)


def test_samples_make_their_rows(rounded: keras.Model) -> None:
    sweep, place = place_of(rounded, "conv")
    assert sum(len(rows) for rows in input_rows(sweep, place)) == len(X) * 16


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"iterations": 0}, "iterations must be 1 or more. Received: 0"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite number above 0"),
        ({"warm_start": 1.0}, "warm_start must be in 0..1"),
        ({"beta": (2.0,)}, "beta needs its first and its last value"),
        ({"beta": (20.0, -2.0)}, "beta must be a finite number above 0"),
        ({"regularisation": float("inf")}, "regularisation must be a finite number of 0 or more. Received: inf"),
        ({"iterations": "7"}, "iterations must be 1 or more. Received: '7'"),
        ({"limit": 0}, "limit must be 1 or more"),
    ],
)
def test_what_cannot_be_done_is_refused(options: dict[str, Any], said: str, rounded: keras.Model) -> None:
    with pytest.raises(ValueError, match=said):
        kquant.adaround(rounded, X, **{**QUICK, **options})


def test_empty_data_and_no_candidates_are_refused(rounded: keras.Model) -> None:
    for step in (kquant.adaround, kquant.sequential_mse):
        with pytest.raises(ValueError, match="the data are empty"):
            step(calibrated(), X[:0], verbose=False)
    with pytest.raises(ValueError, match=r"candidates must be 1 or more. Received: 0"):
        kquant.sequential_mse(rounded, X, candidates=0)

"""Bias correction: closed forms against Monte Carlo, empirical means against the data, re-estimated batch norms."""

from __future__ import annotations

import math
import warnings
from typing import Any

import keras
import numpy as np
import pytest

import kquant
from kquant.correct.bias import analytic_errors, weight_errors
from kquant.correct.moments import closed_moments, rectified_moments
from kquant.layers.nodes import Compressed, observing
from kquant.views.quantized_model import places, read, tensors

pytestmark = pytest.mark.filterwarnings(
    "ignore:This model has quantization nodes that have seen no data",
)

layers = keras.layers
FOUR_BITS = {"name": "four", "weights": {"bits": 4, "per_axis": False}}
RNG = np.random.default_rng(0)
X = RNG.normal(1.0, 1.0, (96, 6, 6, 2)).astype("float32")


def settle(model: keras.Model, seed: int = 0) -> keras.Model:
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.gamma.assign(rng.normal(size=layer.gamma.shape) * 2)
            layer.beta.assign(rng.normal(size=layer.beta.shape))
        elif layer.weights:
            layer.weights[0].assign(rng.normal(size=layer.weights[0].shape))
    return model


def small() -> keras.Model:
    """Convolutions with and without a bias of their own, a depthwise one, a sum."""
    inputs = keras.Input((6, 6, 2), name="x")
    x = layers.Conv2D(4, 3, use_bias=False, name="bare")(inputs)
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="deep")(layers.ReLU()(x))
    y = layers.Add()([x, layers.BatchNormalization()(y)])
    y = layers.GlobalAveragePooling2D()(layers.ReLU()(y))
    return settle(keras.Model(inputs, layers.Dense(3, name="head")(y)))


@pytest.fixture(scope="module")
def ready() -> keras.Model:
    q = kquant.quantize(small(), FOUR_BITS)
    return kquant.calibrate(q, X, verbose=False)


@pytest.fixture
def q(ready: keras.Model) -> keras.Model:
    for layer in ready.layers:
        if isinstance(layer, Compressed):
            layer.correction("shift").assign(np.zeros(layer.channels))
    return ready


# Closed forms

CASES = [
    (0.3, 1.2, 0.0, math.inf),
    (1.0, -1.0, 0.0, math.inf),  # AIMET's formula with the sign of gamma gives -0.083
    (-2.0, 0.7, 0.0, 6.0),
    (5.0, -2.0, 0.0, 6.0),
    (7.0, 0.5, 0.0, 6.0),
    (0.5, 2.0, -1.0, 1.0),
    (0.5, 2.0, -math.inf, 1.0),
    (1.5, 0.8, -math.inf, math.inf),
    (300.0, 1e-3, 0.0, math.inf),
]


@pytest.mark.parametrize(("mean", "deviation", "low", "high"), CASES)
def test_rectified_moments_against_monte_carlo(mean: float, deviation: float, low: float, high: float) -> None:
    y = np.clip(np.random.default_rng(1).normal(mean, abs(deviation), 400_000), low, high)
    found = rectified_moments(mean, deviation, low, high)
    np.testing.assert_allclose(float(found[0]), y.mean(), atol=5 * abs(deviation) / math.sqrt(y.size))
    np.testing.assert_allclose(float(found[1]), y.var(), atol=0.01 * deviation**2)


def test_no_deviation_is_a_constant() -> None:
    mean, variance = rectified_moments([-1.0, 2.0, 9.0], [0.0, 0.0, 0.0], 0.0, 6.0)
    assert mean.tolist() == [0.0, 2.0, 6.0] and not variance.any()


def gaussian(activation: Any, gamma: list[float]) -> keras.Model:
    """A dense layer whose outputs, on standard normal inputs, are exactly N(beta, gamma^2)."""
    parts = [layers.Dense(4, name="a"), layers.BatchNormalization(name="n"), activation, layers.Dense(3, name="b")]
    model = keras.Sequential([keras.Input((5,), name="x"), *parts])
    dense, norm = model.layers[:2]
    kernel = RNG.normal(size=(5, 4))
    for variable, value in zip(model.weights, [kernel, [0.5, -1.0, 0.0, 2.0]], strict=False):
        variable.assign(value)
    norm.epsilon = 1e-12
    norm.gamma.assign(gamma)
    norm.beta.assign([0.3, -0.5, 1.0, 4.0])
    norm.moving_mean.assign(dense.bias.numpy())
    norm.moving_variance.assign((kernel**2).sum(0))
    return model


@pytest.mark.parametrize("activation", [layers.ReLU, lambda: layers.ReLU(6.0), layers.Identity])
def test_analytic_error_against_monte_carlo(activation: Any) -> None:
    """The mean of `(quantized weights - weights) x` over float inputs, measured on 200,000 samples."""
    q = kquant.quantize(gaussian(activation(), [1.0, -1.5, -0.7, 2.0]), FOUR_BITS)
    x = np.random.default_rng(2).normal(size=(200_000, 5)).astype("float32")
    graph = read(q)
    place = next(p for p in places(graph) if p.name == "b")
    inputs = next(tensors(graph, [place.calls[0].inputs[0]], [x], quantized=False))[0]
    measured = (inputs.astype(np.float64) @ weight_errors(place.layer)).mean(0)
    found = analytic_errors(q)
    np.testing.assert_allclose(found.errors["b"], measured, atol=0.01)
    assert np.abs(measured).max() > 0.1, "there is an error to correct"
    assert "no batch-norm statistics" in found.skipped["a"]
    with pytest.warns(UserWarning, match="reach a; their biases stay"):
        kquant.correct_bias(q, verbose=False)
    np.testing.assert_allclose(q.get_layer("b").shift.numpy(), -found.errors["b"], rtol=1e-5)
    state = q.get_layer("b").shift.numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kquant.correct_bias(q, method="analytic", verbose=False)
    np.testing.assert_array_equal(q.get_layer("b").shift.numpy(), state)


def joined(kind: str) -> keras.Model:
    """Two branches of two inputs, with batch norms, that meet."""
    inputs = [keras.Input((6, 6, 3), name=name) for name in ("u", "v")]
    x, y = (layers.BatchNormalization()(layers.Conv2D(3, 1, name=f"conv_{t.name}")(t)) for t in inputs)
    if kind == "add":
        z = layers.Add()([x, layers.ReLU()(y)])
    elif kind == "concatenate":
        z = layers.Concatenate()([layers.ReLU()(x), y])
    else:
        z = layers.Flatten()(layers.AveragePooling2D(6)(layers.ReLU()(layers.Add()([x, y]))))
    return settle(keras.Model(inputs, layers.Dense(2, name="end")(z)), seed=3)


@pytest.mark.parametrize("kind", ["add", "concatenate", "pool"])
def test_moments_reach_through_sums_and_pools(kind: str) -> None:
    q = kquant.quantize(joined(kind))
    graph = read(q)
    place = next(p for p in places(graph) if p.name == "end")
    x = place.calls[0].inputs[0]
    found = closed_moments(graph, {id(p.layer): p for p in places(graph)}, {})[id(x)]
    bare = [q.get_layer(f"conv_{name}") for name in ("u", "v")]
    rng = np.random.default_rng(4)
    a, b = (rng.normal(p.mean.numpy(), p.deviation.numpy(), (300_000, 3)) for p in bare)
    expected = {"add": a + np.maximum(b, 0), "concatenate": np.concatenate([np.maximum(a, 0), b], 1)}
    values = expected.get(kind, np.maximum(a + b, 0))
    np.testing.assert_allclose(found.mean, values.mean(0), atol=0.02)
    np.testing.assert_allclose(found.variance, values.var(0), rtol=0.03, atol=1e-3)


def test_layers_without_statistics_propagate() -> None:
    """`W E[x] + b`, `W^2 Var[x]`: against Gaussian inputs of a convolution that does not pad."""
    parts = [layers.Conv2D(3, 1), layers.BatchNormalization(), layers.Conv2D(4, 2, groups=1, name="b")]
    model = settle(keras.Sequential([keras.Input((4, 4, 2)), *parts, layers.Conv2D(2, 1, name="c")]))
    graph = read(kquant.quantize(model))
    first, second, third = places(graph)
    found = closed_moments(graph, {id(p.layer): p for p in places(graph)}, {})[id(third.calls[0].inputs[0])]
    x = np.random.default_rng(5).normal(first.layer.mean.numpy(), first.layer.deviation.numpy(), (200_000, 2, 2, 3))
    y = x.reshape(len(x), -1) @ second.layer.weights_as_used().numpy().reshape(-1, 4) + second.layer.layer.bias.numpy()
    np.testing.assert_allclose(found.mean, y.mean(0), atol=0.1)
    np.testing.assert_allclose(found.variance, y.var(0), rtol=0.03)


# Empirical


def means(q: keras.Model, quantized: bool) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each layer's output, and the step of its integer sums."""
    graph = read(q)
    known = places(graph)
    outputs = [t for p in known for t in p.calls[0].outputs[:2]]
    found = next(tensors(graph, outputs, [X], quantized=quantized))
    rows = [y.reshape(-1, y.shape[-1]).mean(0, dtype=np.float64) for y in found[::2]]
    return {p.name: (row, step) for p, row, step in zip(known, rows, found[1::2], strict=True)}


def test_no_error_of_the_mean_is_left(q: keras.Model) -> None:
    wanted, before = means(q, False), means(q, True)
    kquant.correct_bias(q, X, batch_size=40, verbose=False)
    after = means(q, True)
    for name, (float_mean, _) in wanted.items():
        found, step = after[name]
        assert np.all(np.abs(found - float_mean) < 0.51 * step + 1e-5), "but for the rounding of the bias"
        assert np.abs(before[name][0] - float_mean).max() > 5 * np.abs(found - float_mean).max()
    shifts = {name: q.get_layer(name).shift.numpy() for name in wanted}
    kquant.correct_bias(q, X, batch_size=96, verbose=False)
    for name, shift in shifts.items():
        np.testing.assert_allclose(q.get_layer(name).shift.numpy(), shift, atol=0.02)


def test_float_function_stays(q: keras.Model) -> None:
    with observing(lambda *_: None):
        before = np.asarray(q(X[:4]))
        kquant.correct_bias(q, X, verbose=False)
        np.testing.assert_array_equal(np.asarray(q(X[:4])), before)


def test_interrupted_correction_changes_nothing(q: keras.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from kquant.correct import bias

    measured, asked = bias._measured, []

    def stop(sweep: Any, place: Any) -> np.ndarray:
        asked.append(place.name)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return measured(sweep, place) + 1.0

    monkeypatch.setattr(bias, "_measured", stop)
    with pytest.raises(KeyboardInterrupt):
        kquant.correct_bias(q, X, verbose=False)
    assert not any(layer.shift.numpy().any() for layer in q.layers if isinstance(layer, Compressed))


def test_shared_layers_take_the_mean_of_their_calls() -> None:
    inputs = [keras.Input((5,), name=name) for name in ("u", "v")]
    dense = layers.Dense(3, name="d")
    q = kquant.quantize(keras.Model(inputs, [dense(t) for t in inputs]), FOUR_BITS)
    data = [RNG.normal(mean, 1.0, (64, 5)).astype("float32") for mean in (1.0, 3.0)]
    kquant.correct_bias(q, data, verbose=False)  # before calibration: the error of the weights alone
    layer = q.get_layer("d")
    expected = np.concatenate(data).astype(np.float64).mean(0) @ weight_errors(layer)
    np.testing.assert_allclose(layer.shift.numpy(), -expected, atol=1e-4)


def test_wide_activations_and_the_file(q: keras.Model, tmp_path: Any) -> None:
    wide = kquant.quantize(gaussian(layers.ReLU(), [1.0, -1.5, -0.7, 2.0]), "int16x8")
    x = RNG.normal(size=(64, 5)).astype("float32")
    kquant.correct_bias(kquant.calibrate(wide, x, verbose=False), x, verbose=False)
    kquant.correct_bias(q, X, verbose=False)
    for name, (model, data) in {"wide": (wide, x), "narrow": (q, X)}.items():
        kquant.export(model, tmp_path / name, data=data[:8])
        found = kquant.predict(tmp_path / name, data[:8], "litert-reference")
        np.testing.assert_array_equal(found, model(data[:8]).numpy())


def test_adaround_and_bad_arguments(q: keras.Model) -> None:
    with pytest.raises(ValueError, match="method must be"):
        kquant.correct_bias(q, method="exact")
    with pytest.raises(ValueError, match="measures on data"):
        kquant.correct_bias(q, method="empirical")
    with pytest.raises(ValueError, match="empty"):
        kquant.correct_bias(q, X[:0], verbose=False)
    copy = kquant.quantize(small(), FOUR_BITS)
    layer = copy.get_layer("head")
    layer.round_by(np.zeros(layer.layer.kernel.shape, int))
    with pytest.warns(UserWarning, match="head carry roundings"):
        kquant.correct_bias(copy, X[:8], verbose=False)


# Batch norms


def normed() -> keras.Model:
    inputs = keras.Input((4, 4, 2), name="x")
    x = layers.BatchNormalization(name="one")(layers.Conv2D(3, 3, name="conv")(inputs))
    x = layers.Dropout(0.5)(layers.ReLU()(x))
    x = layers.BatchNormalization(name="two", scale=False)(layers.Dense(4)(x))
    return keras.Model(inputs, layers.Flatten()(x))


IMAGES = RNG.normal(2.0, 3.0, (70, 4, 4, 2)).astype("float32")


def test_statistics_are_those_of_all_the_data() -> None:
    """The first batch norm sees the same numbers in any batches: 70 samples in batches of 32, 32 and 6."""
    model = normed()
    y = model.get_layer("conv")(IMAGES).numpy().astype(np.float64).reshape(-1, 3)
    assert kquant.reestimate(model, IMAGES, verbose=False) is model
    np.testing.assert_allclose(model.get_layer("one").moving_mean.numpy(), y.mean(0), rtol=1e-5)
    np.testing.assert_allclose(model.get_layer("one").moving_variance.numpy(), y.var(0), rtol=1e-5)


def test_one_batch_is_training_with_momentum_zero() -> None:
    model = normed()
    model.layers[4].rate = 0.0  # dropout is off while statistics are counted
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    for name in ("one", "two"):
        twin.get_layer(name).momentum = 0.0
    twin(IMAGES, training=True)
    model.layers[4].rate = 0.9
    model.get_layer("two").trainable = False  # frozen ones too
    kquant.reestimate(model, IMAGES, batch_size=70, verbose=False)
    for name in ("one", "two"):
        for kind in ("moving_mean", "moving_variance"):
            expected = getattr(twin.get_layer(name), kind).numpy()
            np.testing.assert_allclose(getattr(model.get_layer(name), kind).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_reestimation_refuses_and_leaves_models_whole() -> None:
    model = normed()
    state = model.get_weights()

    def failing() -> Any:
        yield IMAGES[:8]
        raise RuntimeError

    for data, error in ((failing, RuntimeError), (IMAGES[:0], ValueError)):
        with pytest.raises(error):
            kquant.reestimate(model, data, verbose=False)
    assert all(np.array_equal(a, b) for a, b in zip(state, model.get_weights(), strict=True))
    y = model.predict(IMAGES[:4], verbose=0)
    kquant.reestimate(model, IMAGES, limit=32, verbose=False)
    assert not np.allclose(model.predict(IMAGES[:4], verbose=0), y), "no traced function holds the old numbers"
    with pytest.raises(ValueError, match="folds batch norms"):
        kquant.reestimate(kquant.quantize(model), IMAGES)

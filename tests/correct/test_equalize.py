"""Equalization: the float function stays, the ranges of a pair meet, and what may not be scaled is left alone."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import kquant
from kquant.correct.absorb import absorbable
from kquant.correct.chains import find_pairs
from kquant.correct.equalization import plan_equalization
from kquant.layers.nodes import Compressed, FakeQuant, observing
from kquant.views.quantized_model import read

pytestmark = pytest.mark.filterwarnings(
    "ignore:.* every weight is 0",
)

layers = keras.layers
PER_TENSOR = {"name": "per-tensor", "weights": {"per_axis": False}}
X = np.random.default_rng(0).normal(size=(48, 8, 8, 3)).astype("float32")


def settle(model: keras.Model, seed: int = 0, mean: float = 0.0) -> keras.Model:
    """Kernels whose channels differ by factors of up to 100, batch norms of either sign."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.gamma.assign(rng.normal(size=layer.gamma.shape) + np.sign(rng.normal(size=layer.gamma.shape)))
            layer.beta.assign(rng.normal(mean, 1.0, layer.beta.shape))
            layer.moving_variance.assign(rng.uniform(0.5, 2.0, layer.beta.shape))
        elif layer.weights and not isinstance(layer, layers.PReLU):
            kernel = layer.weights[0]
            kernel.assign(rng.normal(size=kernel.shape) * 10.0 ** rng.uniform(-1, 1, kernel.shape[-1]) * 0.3)
            for bias in layer.weights[1:]:
                bias.assign(rng.normal(size=bias.shape))
    return model


def network(*parts: Any, shape: tuple[int, ...] = (8, 8, 3), seed: int = 0, mean: float = 0.0) -> keras.Model:
    return settle(keras.Sequential([keras.Input(shape, name="x"), *parts]), seed, mean)


def separable(clip: float | None = None, mean: float = 0.0) -> keras.Model:
    """conv -> depthwise -> pointwise -> pool -> dense, with batch norms."""
    return network(
        layers.Conv2D(4, 3, use_bias=False, name="conv"),
        layers.BatchNormalization(),
        layers.ReLU(clip),
        layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="deep"),
        layers.BatchNormalization(),
        layers.ReLU(clip),
        layers.Conv2D(5, 1, use_bias=False, name="point"),
        layers.BatchNormalization(),
        layers.ReLU(clip),
        layers.AveragePooling2D(2),
        layers.Dropout(0.3),
        layers.Flatten(),
        layers.Dense(3, name="head"),
        mean=mean,
    )


def in_float(q: keras.Model, x: np.ndarray = X) -> np.ndarray:
    with observing(lambda *_: None):
        return np.asarray(q(x))


def wrapped(q: keras.Model, name: str) -> Compressed:
    return q.get_layer(name)


def weights_of(q: keras.Model, name: str) -> np.ndarray:
    return wrapped(q, name).weights_as_used().numpy().astype(np.float64)


def names(q: keras.Model) -> list[str]:
    return [pair.name for pair in find_pairs(read(q))[0]]


def equalized(q: keras.Model, data: Any = None, **options: Any) -> keras.Model:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kquant.equalize(q, data, verbose=False, **options)


# The function


@pytest.mark.parametrize("recipe", [PER_TENSOR, "int8"], ids=["per tensor", "per channel"])
def test_float_function_stays(recipe: Any) -> None:
    q = kquant.quantize(separable(), recipe)
    before = in_float(q)
    equalized(q, absorb=False)
    np.testing.assert_allclose(in_float(q), before, rtol=1e-4, atol=1e-4 * np.abs(before).max())


def test_powers_of_two_change_no_bit() -> None:
    q = kquant.quantize(separable(), PER_TENSOR)
    before, kernel = in_float(q), weights_of(q, "conv")
    equalized(q, absorb=False, powers_of_two=True)
    np.testing.assert_array_equal(in_float(q), before)
    assert not np.array_equal(weights_of(q, "conv"), kernel)


def test_int8_error_shrinks() -> None:
    """One of the channels is 1000 times the others: per-tensor weights lose the rest."""
    model = network(layers.Dense(8, activation="relu", name="a"), layers.Dense(3, name="b"), shape=(6,))
    factors = np.float32([1000, 1, 1, 1, 1, 1, 1, 1])
    a, b = model.layers
    for variable, change in ((a.kernel, factors), (a.bias, factors), (b.kernel, 1 / factors[:, None])):
        variable.assign(variable * change)
    x = np.random.default_rng(1).normal(size=(64, 6)).astype("float32")
    wanted, errors = model(x).numpy(), []
    for equal in (False, True):
        q = kquant.quantize(model, PER_TENSOR)
        kquant.calibrate(equalized(q) if equal else q, x, verbose=False)
        errors.append(float(np.mean((q(x).numpy() - wanted) ** 2)))
    assert errors[1] < errors[0] / 100


# The ranges


def reference(kernels: list[np.ndarray], sweeps: int = 500) -> list[np.ndarray]:
    """DFQ of a chain of dense layers: s = sqrt(r1 r2) / r2 divides the first and multiplies the second."""
    kernels = [k.copy() for k in kernels]
    for _ in range(sweeps):
        for i in range(len(kernels) - 1):
            r1, r2 = np.abs(kernels[i]).max(0), np.abs(kernels[i + 1]).max(1)
            s = np.sqrt(r1 * r2) / r2
            kernels[i] = kernels[i] / s
            kernels[i + 1] = kernels[i + 1] * s[:, None]
    return kernels


def test_chain_of_dense_layers_against_dfq() -> None:
    sizes = (8, 7, 6, 3)
    parts = [layers.Dense(n, activation="relu", name=f"d{n}") for n in sizes]
    q = kquant.quantize(network(*parts, shape=(5,)), PER_TENSOR)
    expected = reference([weights_of(q, f"d{n}") for n in sizes])
    biases = [wrapped(q, f"d{n}").layer.bias.numpy() for n in sizes]
    equalized(q)
    for n, kernel, bias in zip(sizes, expected, biases, strict=True):
        np.testing.assert_allclose(weights_of(q, f"d{n}"), kernel, rtol=1e-3)
        moved = wrapped(q, f"d{n}").layer.bias.numpy()
        assert (n == sizes[-1]) == np.array_equal(moved, bias)  # the last layer's outputs keep their scale
    for a, b in zip(sizes, sizes[1:], strict=False):
        found = np.abs(weights_of(q, f"d{a}")).max(0), np.abs(weights_of(q, f"d{b}")).max(1)
        np.testing.assert_allclose(*found, rtol=1e-3)


def test_depthwise_triplet_meets_at_the_cube_root() -> None:
    parts = [layers.Conv2D(4, 3, activation="relu", name="a"), layers.DepthwiseConv2D(3, activation="relu", name="b")]
    q = kquant.quantize(network(*parts, layers.Conv2D(2, 1, name="c")), PER_TENSOR)
    ranges = [np.abs(weights_of(q, "a")).max((0, 1, 2)), np.abs(weights_of(q, "b")).max((0, 1, 3))]
    ranges.append(np.abs(weights_of(q, "c")).max((0, 1, 3)))
    equalized(q)
    root = np.cbrt(np.prod(ranges, axis=0))
    np.testing.assert_allclose(np.abs(weights_of(q, "a")).max((0, 1, 2)), root, rtol=1e-3)
    np.testing.assert_allclose(np.abs(weights_of(q, "b")).max((0, 1, 3)), root, rtol=1e-3)
    np.testing.assert_allclose(np.abs(weights_of(q, "c")).max((0, 1, 3)), root, rtol=1e-3)


def test_channels_of_a_flattened_image_repeat() -> None:
    q = kquant.quantize(network(layers.Conv2D(4, 3, name="a"), layers.Flatten(), layers.Dense(2, name="b")))
    equalized(q)
    reads = np.abs(weights_of(q, "b")).reshape(36, 4, 2).max((0, 2))
    np.testing.assert_allclose(np.abs(weights_of(q, "a")).max((0, 1, 2)), reads, rtol=1e-3)


def test_groups() -> None:
    parts = [layers.Conv2D(6, 3, groups=3, activation="relu", name="a"), layers.Conv2D(4, 3, groups=2, name="b")]
    q = kquant.quantize(network(*parts))
    before = in_float(q)
    equalized(q, powers_of_two=True)
    np.testing.assert_array_equal(in_float(q), before)
    q = equalized(kquant.quantize(network(*parts)))
    kernel = np.abs(weights_of(q, "b")).max((0, 1))  # 3 inputs of each group, 4 outputs
    reads = np.concatenate([kernel[:, :2].max(1), kernel[:, 2:].max(1)])
    np.testing.assert_allclose(np.abs(weights_of(q, "a")).max((0, 1, 2)), reads, rtol=1e-3)


CONV = [lambda: layers.Conv2D(4, 3, name="a"), lambda: layers.Conv2D(2, 1, name="b")]
BETWEEN = {
    "nothing": ([], True),
    "leaky relu": ([lambda: layers.LeakyReLU(0.1)], True),
    "max pool": ([lambda: layers.ReLU(), lambda: layers.MaxPooling2D(2)], True),
    "padding": ([lambda: layers.ZeroPadding2D(1), lambda: layers.UpSampling2D(2)], True),
    "global pool": ([lambda: layers.GlobalAveragePooling2D(keepdims=True)], True),
    "tanh": ([lambda: layers.Activation("tanh")], False),
    "hard swish": ([lambda: layers.Activation("hard_silu")], False),
    "softmax": ([lambda: layers.Softmax()], False),
    "channels moved": ([lambda: layers.Permute((3, 1, 2))], False),
    "layer norm": ([lambda: layers.LayerNormalization()], False),
    "prelu": ([lambda: layers.PReLU(shared_axes=[1, 2])], False),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_what_may_lie_between(name: str) -> None:
    parts, passes = BETWEEN[name]
    q = kquant.quantize(network(CONV[0](), *[make() for make in parts], CONV[1]()), PER_TENSOR)
    assert ("a -> b" in names(q)) is passes
    before = in_float(q)
    equalized(q, powers_of_two=True)
    np.testing.assert_array_equal(in_float(q), before)


def test_transposed_convolution() -> None:
    q = kquant.quantize(network(layers.Conv2DTranspose(4, 2, strides=2, name="a"), layers.ReLU(), CONV[1]()))
    before = in_float(q)
    equalized(q, powers_of_two=True)
    assert names(q) == ["a -> b"]
    np.testing.assert_array_equal(in_float(q), before)


# Where chains end


def branching(kind: str) -> keras.Model:
    x = keras.Input((8, 8, 3), name="x")
    a, b = layers.Conv2D(3, 1, name="a"), layers.Conv2D(3, 1, name="b")
    if kind == "two readers":
        y = a(x)
        return settle(keras.Model(x, layers.Add(name="sum")([y, b(y)])))
    if kind == "output":
        y = layers.ReLU()(a(x))
        return settle(keras.Model(x, [y, b(y)]))
    if kind == "shared":
        return settle(keras.Model(x, b(a(layers.ReLU()(a(x))))))
    return settle(keras.Model(x, b(layers.Add(name="sum")([a(x), x]))))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("two readers", "2 layers read its output"),
        ("output", "gives its output away"),
        ("shared", "called 2 times"),
        ("sum", "sum (Add) reads more than one tensor"),
    ],
)
def test_chain_ends(kind: str, said: str) -> None:
    q = kquant.quantize(branching(kind))
    kernels = [w.numpy() for w in q.weights]
    plan = plan_equalization(q)
    assert not plan.steps
    assert said in plan.ends["a"] and said in str(plan)
    equalized(q)
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(kernels, q.weights, strict=True))


# ReLU6


def clipped(betas: list[float]) -> keras.Model:
    """Channels that reach 6, and some that never do."""
    parts = [layers.Conv2D(4, 3, use_bias=False, name="a"), layers.BatchNormalization(), layers.ReLU(6.0), CONV[1]()]
    model = network(*parts)
    model.layers[1].beta.assign(betas)
    model.layers[1].gamma.assign([0.5, -0.5, 0.5, 0.5])
    return model


def test_channels_below_the_clip_are_scaled_within_it() -> None:
    q = kquant.quantize(clipped([0.0, 1.0, 5.0, 40.0]), PER_TENSOR)
    step = plan_equalization(q).steps[0]
    assert np.array_equal(step.factors[2:], [1.0, 1.0])
    assert np.all(step.factors[:2] != 1.0)
    assert np.all(step.factors[:2] * [3.0, 4.0] < 6.0), "mean + 6 deviations stay below 6"
    assert "2 of 4 channels" in step.note
    batch = np.random.default_rng(1).normal(size=(64, 8, 8, 3)).astype("float32") * 0.05
    before = in_float(q, batch)
    equalized(q)
    np.testing.assert_allclose(in_float(q, batch), before, rtol=1e-4, atol=1e-4)


def test_data_hold_channels_that_moments_would_free() -> None:
    model = clipped([0.0, 0.0, 0.0, 0.0])
    kernel = model.layers[0].kernel
    kernel.assign(kernel * np.float32([1, 1, 1, 100]))  # the data are not those of the batch norm
    q = kquant.quantize(model, PER_TENSOR)
    assert np.all(plan_equalization(q).steps[0].factors != 1.0)
    factors = plan_equalization(q, X).steps[0].factors
    assert factors[3] == 1.0


def test_unknown_channels_of_a_clip_stay() -> None:
    q = kquant.quantize(network(CONV[0](), layers.ReLU(6.0), CONV[1]()))
    assert np.array_equal(plan_equalization(q).steps[0].factors, np.ones(4))


def test_replacement_is_measured(capsys: pytest.CaptureFixture) -> None:
    q = kquant.quantize(clipped([0.0, 1.0, 5.0, 40.0]), PER_TENSOR)
    kquant.equalize(q, X, replace_relu6=True, absorb=False)
    assert "float outputs moved by" in capsys.readouterr().out
    relu = next(layer for layer in q.layers if isinstance(layer, layers.ReLU))
    assert relu.max_value is None
    again = kquant.equalize(kquant.quantize(clipped([0.0, 1.0, 5.0, 40.0])), replace_relu6=True)
    assert "a: 2 of 4" in capsys.readouterr().out
    assert type(again) is type(q)


def test_wide_activations_keep_their_clip() -> None:
    q = kquant.quantize(clipped([0.0, 1.0, 5.0, 40.0]), "int16x8")
    with pytest.warns(UserWarning, match="keeps its clip"):
        kquant.equalize(q, replace_relu6=True, verbose=False)


# Absorption


def test_absorption_moves_the_mean_and_keeps_the_function_on_the_data() -> None:
    q = kquant.quantize(separable(mean=12.0), PER_TENSOR)
    before = in_float(q)
    amounts = [absorbable(pair, None) for pair in find_pairs(read(q))[0]]
    mean, deviation = wrapped(q, "deep").mean.numpy(), wrapped(q, "deep").deviation.numpy()
    np.testing.assert_allclose(amounts[1], np.maximum(0, mean - 3 * deviation), rtol=1e-6)
    biases = [wrapped(q, name).layer.bias.numpy() for name in ("conv", "deep", "point")]
    equalized(q, X, absorb=True)
    np.testing.assert_allclose(in_float(q), before, rtol=1e-4, atol=1e-4 * np.abs(before).max())
    factors = wrapped(q, "deep").deviation.numpy() / deviation
    assert np.any(wrapped(q, "deep").layer.bias.numpy() < biases[1] * factors - 1.0), "the depthwise layer gave some"


def test_absorption_stops_at_padding(capsys: pytest.CaptureFixture) -> None:
    q = kquant.quantize(separable(mean=12.0), PER_TENSOR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kquant.equalize(q, absorb=True)
    said = capsys.readouterr().out
    assert "conv -> deep: not done, deep pads with zeros" in said
    assert "deep -> point: 4 channels" in said


def test_absorbing_twice_is_absorbing_once() -> None:
    q = equalized(kquant.quantize(separable(mean=12.0), PER_TENSOR), absorb=True)
    state = q.get_weights()
    equalized(q, absorb=True)
    assert all(np.array_equal(a, b) for a, b in zip(state, q.get_weights(), strict=True))


# State


def test_only_ranges_inside_pairs_are_forgotten() -> None:
    q = kquant.calibrate(kquant.quantize(separable(), PER_TENSOR), X, verbose=False)
    reach = q.get_layer("point").correction("reach")
    reach.assign(np.ones(reach.shape))
    q.get_layer("deep").round_by(np.zeros(q.get_layer("deep").layer.kernel.shape, int))
    with pytest.warns(UserWarning, match="calibrate again"):
        kquant.equalize(q, verbose=False)
    seen = {n.name: bool(n.count.numpy().any()) for n in q.layers if isinstance(n, FakeQuant) and n.has_range}
    assert seen["x_quant"] and seen["head_quant"]
    assert sum(not known for known in seen.values()) == 3
    assert not q.get_layer("point").reach.numpy().any()
    assert not q.get_layer("deep").rounding.numpy().any()


def test_moments_and_shift_scale_along() -> None:
    q = kquant.quantize(separable(), PER_TENSOR)
    layer = wrapped(q, "conv")
    layer.correction("shift").assign([1.0, 2.0, 3.0, 4.0])
    before = [v.numpy() for v in (layer.shift, layer.mean, layer.deviation, layer.layer.bias)]
    gain = layer.gain.numpy()
    factors = plan_equalization(q).steps[0].factors
    equalized(q, absorb=False)
    for v, old in zip((layer.shift, layer.mean, layer.deviation, layer.layer.bias), before, strict=True):
        np.testing.assert_allclose(v.numpy(), old * factors, rtol=1e-6)
    np.testing.assert_array_equal(layer.gain.numpy(), gain)


def test_file_equals_the_model_and_models_come_back(tmp_path: Any) -> None:
    q = kquant.quantize(separable(), PER_TENSOR)
    wanted = in_float(q)
    kquant.calibrate(equalized(q), X, verbose=False)
    y = q(X[:8]).numpy()
    kquant.export(q, tmp_path / "m.tflite", data=X[:8])
    np.testing.assert_array_equal(kquant.predict(tmp_path / "m.tflite", X[:8], "litert-reference"), y)
    q.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(again(X[:8]).numpy(), y)
    np.testing.assert_allclose(in_float(again), wanted, rtol=1e-2, atol=1e-2 * np.abs(wanted).max())


def test_refuses_float_models() -> None:
    with pytest.raises(ValueError, match="not a quantized model"):
        kquant.equalize(separable())


def test_channels_without_weights_do_not_explode() -> None:
    """Pretrained networks have them: a batch norm's gamma of 1e-20, and a bias. DFQ alone would scale it up by 1e8."""
    model = network(layers.Dense(6, activation="relu", name="a"), layers.Dense(3, name="b"), shape=(5,))
    a, b = model.layers
    a.kernel.assign(a.kernel * np.float32([1, 1, 1, 1, 1e-20, 1]))
    b.kernel.assign(b.kernel * np.float32([1, 1, 1, 1, 1, 1e-20])[:, None])
    q = kquant.quantize(model, PER_TENSOR)
    x = np.random.default_rng(2).normal(size=(32, 5)).astype("float32")
    before = in_float(q, x)
    factors = plan_equalization(q).steps[0].factors
    reads = np.abs(weights_of(q, "b")).max(1)
    assert factors[4] < 10 * reads[4] / reads[:4].max() * factors[:4].max()
    assert factors[5] < 1e-3
    equalized(q)
    np.testing.assert_allclose(in_float(q, x), before, rtol=1e-4, atol=1e-5)
    assert np.abs(weights_of(q, "b")).max(1)[4] <= np.abs(weights_of(q, "b")).max() * 1.001
    state = q.get_weights()
    equalized(q)
    assert all(np.array_equal(a, b) for a, b in zip(state, q.get_weights(), strict=True))


@pytest.mark.parametrize("between", [(), (layers.MaxPooling2D(name="pool"),)], ids=["fused", "alone"])
def test_a_clip_that_is_taken_out_is_out_of_the_codes(between: tuple, tmp_path: Path) -> None:
    """Where the convolution before fused it, and where a pool stands between and it is an operator of its own."""
    keras.utils.set_random_seed(2)
    x = keras.Input((8, 8, 3), name="image")
    y = layers.Conv2D(4, 3, name="a", kernel_initializer=keras.initializers.RandomNormal(stddev=2.0))(x)
    for layer in between:
        y = layer(y)
    y = layers.Conv2D(3, 3, name="b")(layers.ReLU(6.0, name="clip")(y))
    q = kquant.quantize(keras.Model(x, y))
    kquant.equalize(q, X, replace_relu6=True, verbose=False)
    kquant.calibrate(q, X, verbose=False)
    assert any(getattr(layer, "unclipped", False) for layer in q.layers)
    q.save(tmp_path / "q.keras")
    for each in (q, keras.saving.load_model(tmp_path / "q.keras")):
        report = kquant.export(each, tmp_path / "q.tflite", data=X[:16])
        agreements = [a for run in report.verification if run.runtime != "litert" for a in run.agreements]
        assert agreements and all(a.equal == 1.0 for a in agreements)

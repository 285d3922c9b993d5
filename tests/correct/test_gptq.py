"""GPTQ: against direct least squares with what is rounded held fixed, and rounding to nearest on data held out."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import contract
import keras
import numpy as np
import pytest
import tensorflow as tf

import kquant
from kquant.correct import compensation, error_feedback
from kquant.correct.error_feedback import round_by_feedback
from kquant.correct.reconstruction import Matrix
from kquant.graph.keras_private import every_layer
from kquant.layers.nodes import Compressed

layers = keras.layers
RNG = np.random.default_rng(0)
DAMPING = 0.01

pytestmark = [
    pytest.mark.filterwarnings("ignore:calibrate. the range differs more than 2 times"),
    pytest.mark.filterwarnings("ignore:quantize. weights that are simulated only"),  # blocks between integers
    pytest.mark.filterwarnings("ignore:.*output channels are all 0"),  # pruned
]


def correlated(samples: int, *shape: int, seed: int = 1) -> np.ndarray:
    """Few sources mixed into all channels: errors of one weight can be made up for by others."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(5).normal(size=(max(2, shape[-1] // 3), shape[-1]))
    noise = 0.1 * rng.normal(size=(samples, *shape))
    return np.float32(rng.normal(0.3, 1.0, (samples, *shape[:-1], len(mix))) @ mix + noise)


def least_squares(rows: np.ndarray, matrix: Matrix, order: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Codes of one group: each input is rounded where the best values of all that are not yet rounded stand."""
    count = rows.shape[1]
    damped = np.concatenate([rows, np.sqrt(DAMPING * np.mean(np.sum(rows**2, 0))) * np.eye(count)])
    codes = np.zeros(matrix.weights.shape[1:])
    for m in range(codes.shape[1]):
        scale, weights = np.float64(matrix.scale[0, :, m]), np.float64(matrix.weights[0, :, m])
        values = weights.copy()
        for n, k in enumerate(order):
            codes[k, m] = np.clip(np.rint(values[k] / scale[k]), matrix.low, matrix.high) * free[0, k, m]
            values[k] = codes[k, m] * scale[k]
            rest = order[n + 1 :]
            gone = order[: n + 1]
            left = damped @ weights - damped[:, gone] @ values[gone]
            values[rest] = np.linalg.lstsq(damped[:, rest], left, rcond=None)[0]
    return codes


@pytest.mark.parametrize("order", ["largest", "given"])
@pytest.mark.parametrize("grid", ["channel", "kernel", "block", "masked"])
def test_codes_are_those_of_least_squares_with_what_is_rounded_held(grid: str, order: Any) -> None:
    rows = np.float64(correlated(60, 12))
    weights = np.float32(RNG.normal(size=(1, 12, 5)))
    free = RNG.random(weights.shape) < 0.6 if grid == "masked" else np.ones(weights.shape, bool)
    weights = weights * free
    size = np.abs(weights)
    if grid == "block":
        wide = np.repeat(size.reshape(1, 3, 4, 5).max(2), 4, axis=1)
    else:
        wide = size.max(None if grid == "kernel" else 1, keepdims=True)
    matrix = Matrix(weights, np.broadcast_to(np.float32(wide / 3), weights.shape), -3, 3)
    gram = (rows.T @ rows)[None]
    found = round_by_feedback(matrix, gram, DAMPING, order, free)
    turn = np.argsort(-np.diagonal(gram[0]), kind="stable") if order == "largest" else np.arange(12)
    np.testing.assert_array_equal(found[0], least_squares(rows, matrix, turn, free))
    plain = matrix.nearest()
    assert np.any(found != plain) and not np.any(found[~free])
    errors = [np.sum((rows @ (codes[0] * matrix.scale[0] - weights[0])) ** 2) for codes in (found, plain)]
    assert errors[0] < 0.6 * errors[1]


def test_errors_reach_behind_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.float64(correlated(200, 30))
    matrix = Matrix(np.float32(RNG.normal(size=(1, 30, 4))), np.full((1, 30, 4), 0.4, np.float32), -7, 7)
    free = np.ones(matrix.weights.shape, bool)
    whole = round_by_feedback(matrix, (rows.T @ rows)[None], DAMPING, "given", free)
    monkeypatch.setattr(compensation, "BATCH", 7)
    np.testing.assert_array_equal(round_by_feedback(matrix, (rows.T @ rows)[None], DAMPING, "given", free), whole)
    np.testing.assert_array_equal(whole[0], least_squares(rows, matrix, np.arange(30), free))


def quantized(model: keras.Model, x: np.ndarray, weights: dict[str, Any] | None = None) -> keras.Model:
    recipe = {"name": "w4", "weights": {"bits": 4, **(weights or {})}}
    return kquant.calibrate(kquant.quantize(model, recipe, target="litert"), x, verbose=False)


def compressed(q: keras.Model) -> list[Compressed]:
    return [layer for layer in every_layer(q) if isinstance(layer, Compressed)]


KINDS: dict[str, tuple[tuple[int, ...], Any]] = {
    "dense": ((24,), lambda: layers.Dense(8, name="only")),
    "conv": ((6, 6, 9), lambda: layers.Conv2D(6, 3, name="only")),
    "grouped": ((6, 6, 8), lambda: layers.Conv2D(6, 3, groups=2, name="only")),
    "depthwise": ((8, 8, 6), lambda: layers.DepthwiseConv2D(3, name="only")),
    "einsum": ((5, 12), lambda: layers.EinsumDense("abc,cde->abde", (None, 2, 6), name="only")),
}


@pytest.mark.parametrize("grid", ["channel", "kernel", "block"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_it_beats_nearest_on_new_data(kind: str, grid: str) -> None:
    keras.utils.set_random_seed(4)
    shape, made = KINDS[kind]
    x, new = correlated(256 if len(shape) < 3 else 64, *shape), correlated(128, *shape, seed=2)
    if kind == "depthwise":  # its weights meet neighbours, not channels: let those be alike
        x, new = (each[:, :1, :1] + 0.3 * each for each in (x, new))
    model = contract.randomise(keras.Sequential([keras.Input(shape), made()]))
    given = {"channel": {}, "kernel": {"per_axis": False}, "block": {"block": 4}}[grid]
    q = quantized(model, x, given)
    (layer,) = compressed(q)
    plain = layer.weights_on_grid()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none stays as it is
        kquant.gptq(q, x, verbose=False)
    steps = (layer.weights_on_grid() / layer.scale_of(layer.weights_as_used())).numpy()
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-4)
    assert np.abs(steps).max() < 7.01
    wanted = layer.apply(tf.constant(new), layer.weights_as_used(), None)
    errors = [
        float(tf.reduce_mean((layer.apply(tf.constant(new), each, None) - wanted) ** 2))
        for each in (layer.weights_on_grid(), plain)
    ]
    assert errors[0] < 0.85 * errors[1]


def transformer() -> keras.Model:
    keras.utils.set_random_seed(2)
    x = inputs = keras.Input((6, 16), name="frames")
    x = layers.LayerNormalization(name="norm")(x + layers.MultiHeadAttention(2, 8, name="attention")(x, x))
    x = layers.Dense(16, name="out")(layers.Dense(32, activation="relu", name="wide")(x))
    return keras.Model(inputs, layers.Dense(4, name="head")(layers.GlobalAveragePooling1D()(x)), name="text")


@pytest.mark.parametrize("block", [0, 8])
def test_projections_of_attention_and_what_is_saved(block: int, tmp_path: Path) -> None:
    model, x, new = transformer(), correlated(200, 6, 16), correlated(100, 6, 16, seed=2)
    q = quantized(model, x, {"block": block} if block else None)
    wanted, before = model.predict(new, verbose=0), q.predict(new, verbose=0)
    kquant.gptq(q, x, verbose=False)
    corrected = [layer.name for layer in compressed(q) if layer.rounding is not None and np.any(layer.rounding)]
    assert len(corrected) == 7, corrected  # query, key, value, output, three Dense
    after = q.predict(new, verbose=0)
    assert np.mean((after - wanted) ** 2) < 0.7 * np.mean((before - wanted) ** 2)
    q.save(tmp_path / "q.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "q.keras").predict(new, verbose=0), after)
    if not block:
        report = kquant.export(q, tmp_path / "m.tflite", data=new)
        assert [v.agreements[0].equal for v in report.verification if v.runtime == "litert-reference"] == [1.0]


def test_a_recurrent_step_a_mask_and_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keras.utils.set_random_seed(1)
    x = np.float32(np.cumsum(RNG.normal(size=(128, 9, 4)), 1) * 0.5)
    model = keras.Sequential([keras.Input((9, 4)), layers.GRU(8, name="memory"), layers.Dense(3, name="head")])

    def fresh() -> keras.Model:
        q = kquant.quantize(kquant.prune(model, 0.5), {"name": "w4", "weights": {"bits": 4}}, target="tflm")
        return kquant.calibrate(q, x, verbose=False)

    q = kquant.gptq(fresh(), x, folder=tmp_path, verbose=False)
    for layer in compressed(q):
        assert np.any(layer.rounding.numpy()), layer.name
        assert not np.any(layer.weights_on_grid().numpy()[layer.weights_as_used().numpy() == 0.0])
    monkeypatch.setattr(error_feedback, "round_by_feedback", None)  # nothing is computed anew
    again = kquant.gptq(fresh(), x, folder=tmp_path, verbose=False)
    np.testing.assert_array_equal(again.predict(x, verbose=0), q.predict(x, verbose=0))
    said = r"gptq.*holds the codes of '.*' for something else: damping: 0\.01 there, 0\.1 now\. Take another folder"
    with pytest.raises(ValueError, match=said):
        kquant.gptq(fresh(), x, damping=0.1, folder=tmp_path, verbose=False)


BLOCKS = {"name": "blocks", "mode": "dynamic", "weights": {"bits": 4, "block": 8}}


def net(first: float = 1.0) -> keras.Model:
    keras.utils.set_random_seed(3)
    made = [layers.Conv1DTranspose(4, 3, name="up"), layers.Flatten(), layers.Dense(6, name="head")]
    model = keras.Sequential([keras.Input((6, 4), name="x"), *made], name="net")
    model.layers[0].kernel.assign(first * model.layers[0].kernel)
    return model


@pytest.mark.filterwarnings("ignore:gptq. up stay")
def test_a_folder_of_other_samples_or_another_model_is_refused(tmp_path: Path) -> None:
    """Without ranges of activations nothing else tells of the data, and of the layer before nothing but its weights."""
    x = correlated(40, 6, 4)

    def codes(first: float = 1.0, data: Any = x, **options: Any) -> np.ndarray:
        q = kquant.gptq(kquant.quantize(net(first), BLOCKS, target="litert"), data, verbose=False, **options)
        return next(layer.rounding.numpy() for layer in compressed(q) if layer.rounding is not None)

    kept = codes(folder=tmp_path)
    batches = lambda: iter(np.split(x, 4))  # noqa: E731
    for same in (x, batches):
        np.testing.assert_array_equal(codes(data=same, folder=tmp_path), kept)
    other = np.concatenate([x[:32], 3.0 * x[32:, ::-1]])
    cases: dict[str, dict[str, Any]] = {
        r"data: '\w+' there, '\w+' now\. Take": {"data": other},
        r"data: '\w+' there, '\w+' now; samples: 40 there, 9 now\. Take": {"limit": 9},
        r"model: '\w+' there, '\w+' now\. Take": {"first": -1.0},
    }
    for said, given in cases.items():
        with pytest.raises(ValueError, match=rf"holds the codes of 'head' for something else: {said} another folder"):
            codes(folder=tmp_path, **given)
    (file,) = tmp_path.iterdir()
    np.savez_compressed(file, key="of an earlier version", made=kept, digest="")
    with pytest.raises(ValueError, match=r"gptq-.*npz holds the codes of 'head' of an earlier version, which did not"):
        codes(folder=tmp_path)


def test_others_are_named_and_options_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    x = correlated(40, 5, 5, 4)
    made = [layers.Conv2DTranspose(4, 3, name="up"), layers.Flatten(), layers.Dense(2, name="head")]
    q = kquant.calibrate(kquant.quantize(keras.Sequential([keras.Input((5, 5, 4)), *made])), x, verbose=False)
    monkeypatch.setattr(error_feedback, "WIDEST_GRAM", 100)
    with pytest.warns(UserWarning, match=r"gptq: head, up stay rounded to nearest: they are no matrix products"):
        kquant.gptq(q, x, verbose=False)
    assert all(layer.rounding is None for layer in compressed(q))
    for damping in (0.0, float("inf"), float("nan"), "0.1", True):
        with pytest.raises(ValueError, match=rf"gptq: damping must be a finite number above 0. Received: {damping!r}"):
            kquant.gptq(q, x, damping=damping)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"gptq: order must be 'largest' or 'given'. Received: 'last'"):
        kquant.gptq(q, x, order="last")  # type: ignore[arg-type]


def test_a_layer_whose_inputs_cannot_be_inverted_is_named() -> None:
    x = np.repeat(correlated(128, 1), 4, axis=1)
    q = quantized(keras.Sequential([keras.Input((4,)), layers.Dense(2, name="head")]), x)
    for damping in (1e-300, 1e308):  # nothing of it is left, and nothing of float64
        with pytest.raises(ValueError, match=rf"gptq: head: the products .* {re.escape(str(damping))};"):
            kquant.gptq(q, x, damping=damping, verbose=False)


@pytest.mark.parametrize("step", ["gptq", "adaround", "sequential_mse", "shorten_codes"])
def test_a_model_without_ranges_is_refused_once(step: str, recwarn: pytest.WarningsRecorder) -> None:
    q = kquant.quantize(net(), {"name": "w4", "weights": {"bits": 4}}, target="tflm")
    recwarn.clear()
    with pytest.raises(ValueError, match=rf"{step}: net has encodings without a range: .*Run kquant.calibrate"):
        getattr(kquant, step)(q, correlated(40, 6, 4), verbose=False)
    assert not recwarn.list

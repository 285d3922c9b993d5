"""Channels of which next to nothing depends: their readers' codes become zeros, the file gets smaller."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import kquant
from kquant.correct.steps import parse_steps

layers = keras.layers
RNG = np.random.default_rng(7)
X = RNG.normal(size=(64, 8, 8, 2)).astype("float32")


def float_model(small: float = 1e-4) -> keras.Model:
    keras.utils.set_random_seed(5)
    x = inputs = keras.Input((8, 8, 2), name="x")
    x = layers.Conv2D(12, 3, activation="relu", name="first")(x)
    x = layers.DepthwiseConv2D(3, activation="relu", name="middle")(x)
    x = layers.Conv2D(6, 1, activation="relu", name="reader")(x)
    model = keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(x)))
    kernel = model.get_layer("reader").kernel
    # one code each, next to weights of 127: the largest of a channel is what its scale is made of
    kernel.assign(kernel * np.where(np.arange(12) < 4, small, 1.0).astype("float32")[:, None])
    tiny = np.asarray(kernel) + np.where(np.arange(12) < 4, 1.0, 0.0)[:, None] * np.abs(kernel).max((0, 1, 2)) / 127
    kernel.assign(tiny.astype("float32"))
    return model


def quantized(**recipe) -> keras.Model:
    made = {"name": "int8", "weights": {"per_axis": True}, **recipe}
    return kquant.calibrate(kquant.quantize(float_model(), made, target="tflm"), X, verbose=False)


@pytest.fixture(scope="module")
def before() -> keras.Model:
    return quantized()


def test_channels_leave_the_file_and_codes_stay_near(before, tmp_path, capsys):
    q = quantized()
    assert kquant.silence(q, X, codes=4.0) is q
    said = capsys.readouterr().out
    assert said.startswith("silence: ") and "codes each, outputs at" in said
    report = kquant.export(q, tmp_path / "quiet.tflite", data=X)
    whole = kquant.export(before, tmp_path / "whole.tflite", data=X)
    gone = [row.channels - row.kept for row in report.removed]
    assert not whole.removed and len(gone) == 3 and 0 < gone[0] == gone[1] <= 4 and gone[2] == 0
    assert report.file_bytes < whole.file_bytes and all(v.verdict == "equal" for v in report.verification)


def test_float_weights_and_the_rest_of_the_codes_stay(before):
    q = quantized()
    kquant.silence(q, X, codes=4.0, verbose=False)
    for a, b in zip(before.layers, q.layers, strict=True):
        own = [w for w in b.weights if "rounding" not in w.path]
        assert all(np.array_equal(v.numpy(), w.numpy()) for v, w in zip(a.weights, own, strict=True))
    reader = next(layer for layer in q.layers if layer.name.startswith("reader") and hasattr(layer, "weights_on_grid"))
    same = next(layer for layer in before.layers if layer.name == reader.name)
    now, then = (np.asarray(layer.weights_on_grid())[0, 0] for layer in (reader, same))
    gone = np.flatnonzero(~now.any(axis=1))
    assert 0 < len(gone) <= 4 and set(gone) <= set(range(4))
    kept = np.setdiff1d(np.arange(12), gone)
    np.testing.assert_array_equal(now[kept], then[kept])


def test_half_a_code_moves_no_output_code_by_more_than_one(tmp_path):
    x = keras.Input((6,), name="x")
    y = layers.Dense(9, activation="relu", name="body")(x)
    model = keras.Model(x, layers.Dense(2, name="head")(y))
    head = model.get_layer("head").kernel
    head.assign(np.where(np.arange(9)[:, None] < 2, 0.004, 1.0) * np.sign(RNG.normal(size=(9, 2))))
    data = RNG.normal(size=(256, 6)).astype("float32")
    a, b = (
        kquant.calibrate(kquant.quantize(model, {"name": "t", "weights": {"per_axis": False}}), data, verbose=False)
        for _ in range(2)
    )
    kquant.silence(b, data, codes=1.0, verbose=False)
    assert any(row.layer.startswith("body") for row in kquant.export(b, tmp_path / "b.tflite", data=data).removed)
    [step] = kquant.inspect(tmp_path / "b.tflite").outputs[0].scale
    assert 0 < np.abs(a.predict(data, verbose=0) - b.predict(data, verbose=0)).max() <= 1.01 * step


def test_a_budget_of_noise_is_kept(before, tmp_path):
    outputs = before.predict(X, verbose=0)
    counts = []
    for budget in (60.0, 25.0, 5.0):
        q = quantized()
        kquant.silence(q, X, sqnr_db=budget, limit=None, verbose=False)
        change = outputs - q.predict(X, verbose=0)
        noise = float(np.mean(change**2))
        assert noise == 0 or 10 * np.log10(float(np.mean(outputs**2)) / noise) >= budget - 1e-6
        removed = kquant.export(q, tmp_path / "m.tflite", check_runtimes=False).removed
        counts.append(sum(row.channels - row.kept for row in removed))
    assert counts == sorted(counts) and counts[-1] > counts[0]


def test_a_step_of_recipes(tmp_path):
    result = kquant.compress(
        float_model(),
        X,
        {"name": "quiet", "steps": ["calibrate", {"name": "silence", "codes": 4.0}]},
        target="tflm",
        path=tmp_path / "m.tflite",
        verbose=False,
    )
    assert result.report.removed
    assert parse_steps("calibrate, silence:sqnr_db=40.0")[1].options == {"sqnr_db": 40.0}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"codes": 0.0}, "codes must be a finite number above 0"),
        ({"sqnr_db": float("nan")}, "sqnr_db must be finite. Received: nan"),
        ({"sqnr_db": 30.0}, "give data with sqnr_db=30.0"),
    ],
)
def test_refused(before, options, said):
    with pytest.raises(ValueError, match=said):
        kquant.silence(before, **options)


def test_a_float_model_is_refused():
    with pytest.raises(ValueError, match="quantize"):
        kquant.silence(float_model())

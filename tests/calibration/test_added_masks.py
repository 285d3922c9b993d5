"""Masks of attention that the application adds to the logits, as inputs: in the model, its training and its files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import contract
import keras
import new_process
import numpy as np
import pytest
from keras import layers, ops

import kquant
from kquant.calibration.data_scale import Expected, doubt

STEPS, WIDTH = 8, 12
REFERENCES = (("litert", "litert-reference"), ("tflm", "tflm"))


def signal_to_noise(real: Any, found: Any) -> float:
    """dB."""
    real, found = np.float64(real), np.float64(found)
    return float(10 * np.log10(np.sum(real**2) / np.sum((real - found) ** 2)))


def network(heads: bool = False, between: Any = lambda y: y, beside: bool = False) -> keras.Model:
    """Attention by hand; the mask is 0 where a key counts."""
    steps = keras.Input((STEPS, WIDTH), name="steps")
    mask = keras.Input((1, 1, STEPS) if heads else (STEPS,), name="mask")
    x = ops.transpose(ops.reshape(steps, (-1, STEPS, 2, WIDTH // 2)), (0, 2, 1, 3)) if heads else steps
    logits = ops.matmul(x, ops.swapaxes(x, -1, -2)) * 0.2
    y = ops.matmul(ops.softmax(between(logits + (mask if heads else mask[:, None, :]))), x)
    return keras.Model([steps, mask], [y, mask * 2.0] if beside else y)


def fed(least: float = -1e9, count: int = 128, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    seen = np.arange(STEPS) < rng.permutation(np.arange(count) % STEPS + 1)[:, None]
    return [np.float32(3 * rng.normal(size=(count, STEPS, WIDTH))), np.where(seen, 0.0, least).astype(np.float32)]


def shaped(model: keras.Model, data: list[np.ndarray]) -> list[np.ndarray]:
    return [data[0], data[1].reshape(-1, *model.inputs[1].shape[1:])]


def calibrated(model: keras.Model, least: float = -1e9, recipe: str = "int8", target: str = "litert") -> keras.Model:
    q = kquant.quantize(model, recipe, target=target)
    return kquant.calibrate(q, shaped(model, fed(least)), verbose=False)


@pytest.mark.filterwarnings("ignore:quantize. .* has no 16-bit kernel")
@pytest.mark.parametrize(("target", "runtime"), REFERENCES)
@pytest.mark.parametrize(
    ("least", "heads", "recipe"), [(-1e9, False, "int8"), (-1e4, True, "int8"), (-3e38, True, "int16x8")]
)
def test_what_is_hidden_costs_the_rest_no_codes(
    least: float, heads: bool, recipe: str, target: str, runtime: str
) -> None:
    model = network(heads)
    q = calibrated(model, least, recipe, target)
    x = shaped(model, fed(least, 32, 1))
    content = contract.file_of(q)
    assert contract.compare(q, content, runtime, x) == contract.Parity(1.0, 0)
    assert signal_to_noise(model(x), q(x, training=False)) > 28


def test_nothing_of_what_is_hidden_is_seen() -> None:
    q, (steps, mask) = calibrated(network()), fed(count=32, seed=2)
    other = np.where((mask < 0)[..., None], np.float32(9.0), steps)
    rows = mask == 0  # a hidden step asks, too, and what it sees of the others is the same
    assert np.any(~rows)
    np.testing.assert_array_equal(np.asarray(q([steps, mask]))[rows], np.asarray(q([other, mask]))[rows])


def test_a_bias_of_distances_in_the_same_tensor_keeps_its_place() -> None:
    """As ALiBi: numbers that differ where a key counts."""
    model, data = network(), fed()
    bias = np.where(data[1] < 0, -1e9, -0.7 * np.arange(STEPS)).astype(np.float32)
    q = kquant.calibrate(kquant.quantize(model), [data[0], bias], verbose=False)
    x = [data[0], bias]
    assert signal_to_noise(model(x), q(x, training=False)) > 25
    plain = np.asarray(q([data[0], data[1]]))
    assert signal_to_noise(model(x), plain) < 20  # the distances matter


def test_ranges_stay_in_training_and_in_another_process(tmp_path: Path) -> None:
    model = network()
    head = keras.Model(model.inputs, layers.Dense(2)(layers.Flatten()(model.output)))
    q, x = kquant.calibrate(kquant.quantize(head), fed(), verbose=False), fed()
    before = signal_to_noise(head(x), q(x, training=False))
    q.compile(keras.optimizers.Adam(1e-3), "mse")
    losses = q.fit(x, x[0][:, 0, :2], epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0] and before > 25
    q.save(tmp_path / "q.keras")
    np.savez(tmp_path / "x.npz", *x)
    code = (
        "import sys, keras, kquant, numpy as np; folder = sys.argv[1]; x = list(np.load(folder + '/x.npz').values())\n"
        "q = keras.models.load_model(folder + '/q.keras'); np.save(folder + '/y.npy', q(x))\n"
        "q.compile('sgd', 'mse'); q.fit(x, x[0][:, 0, :2], verbose=0)\n"
        "np.save(folder + '/low.npy', min(float(v.numpy().min()) for v in q.variables if v.name == 'low'))"
    )
    done = new_process.run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), q(x))
    assert float(np.load(tmp_path / "low.npy")) > -1e3


def test_files_take_the_mask_as_it_is(tmp_path: Path) -> None:
    model, x = network(), fed(count=16, seed=3)
    q = calibrated(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        kquant.export(q, path := tmp_path / "m.tflite", data=x)
        found = kquant.predict(path, x, "litert-reference")
    np.testing.assert_array_equal(found, q.predict(x, verbose=0))
    # any other number so far outside is doubted
    assert doubt(np.float32([[-2e4, -1e9, 0.0, 0.0]]), Expected("mask", -90.0, 0.0, "told")) is not None
    assert doubt(np.float32([[-1e9, -1e9, 0.0, 0.0]]), Expected("mask", -90.0, 0.0, "told")) is None


def told(model: keras.Model, data: list[np.ndarray]) -> list[str]:
    """What calibration says of minus infinity."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        kquant.calibrate(kquant.quantize(model), data, verbose=False)
    return [text for w in said if "minus infinity" in (text := str(w.message))]


@pytest.mark.parametrize("case", ["between", "beside"])
def test_what_reads_it_otherwise_is_told_with_what_helps(case: str) -> None:
    model = network(between=lambda y: ops.tanh(y * 0.5) * 4.0) if case == "between" else network(beside=True)
    (text,) = told(model, fed())
    assert text.startswith("calibrate: the data of mask reach") and "add (1.0 - mask) * -1e9 in the model" in text
    seen = keras.Input((STEPS,), name="seen")
    fixed = keras.Model([model.inputs[0], seen], model([model.inputs[0], (1.0 - seen) * -1e9]))
    assert not told(fixed, [fed()[0], np.float32(fed()[1] == 0)])


def test_sound_that_is_not_scaled_is_no_mask() -> None:
    model, data = network(), fed()
    sound = np.float32(np.random.default_rng(1).uniform(-32768, 32767, data[1].shape))
    assert not told(model, [data[0], sound])


def test_minus_infinity_itself_is_refused_with_what_helps() -> None:
    with pytest.raises(ValueError, match="input 'mask': minus infinity among the values of .* write -1e9"):
        calibrated(network(), -np.inf)
    calibrated(network(), -1e9)


@pytest.mark.parametrize(("target", "runtime"), REFERENCES)
def test_a_mask_of_fractions_hides_as_in_float(target: str, runtime: str) -> None:
    """`(1 - m) * -1e9` hides wherever m is not 1."""
    steps, told = keras.Input((STEPS, WIDTH)), keras.Input((STEPS,), name="told")
    logits = ops.matmul(steps, ops.swapaxes(steps, 1, 2)) * 0.2 + ((1.0 - told) * -1e9)[:, None, :]
    model = keras.Model([steps, told], ops.matmul(ops.softmax(logits), steps))
    data = fed()
    parts = np.random.default_rng(5).uniform(0.0, 0.99, data[1].shape).astype(np.float32)
    x = [data[0], np.where(data[1] < 0, parts, np.float32(1.0))]
    q = kquant.calibrate(kquant.quantize(model, target=target), x, verbose=False)
    assert signal_to_noise(model(x), q(x, training=False)) > 28
    assert contract.compare(q, contract.file_of(q), runtime, [a[:32] for a in x]) == contract.Parity(1.0, 0)


@pytest.mark.parametrize("low", [-1e4, -3e4, -1e9, -np.inf])
def test_one_number_is_minus_infinity_everywhere(low: float) -> None:
    steps, hidden = keras.Input((STEPS, WIDTH)), keras.Input((STEPS,), dtype="bool")
    logits = ops.where(hidden[:, None, :], low, ops.matmul(steps, ops.swapaxes(steps, 1, 2)) * 0.2)
    model = keras.Model([steps, hidden], ops.matmul(ops.softmax(logits), steps))
    data = fed()
    x = [data[0], data[1] < 0]
    q = kquant.calibrate(kquant.quantize(model), x, verbose=False)
    assert signal_to_noise(model(x), q(x, training=False)) > 28

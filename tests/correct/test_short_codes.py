"""Short codes: against numpy in float64, finite changes of weights, rounding to nearest at as many bytes, and TFLM."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import contract
import keras
import numpy as np
import pytest

import kquant
from kquant.correct import short_codes
from kquant.correct.code_bits import code_bits, stored_bytes
from kquant.correct.output_worth import output_worth
from kquant.correct.row_moments import kernel_of, row_sums
from kquant.correct.short_rounding import Task, round_short, solver, step_of
from kquant.correct.steps import parse_steps
from kquant.correct.sweep import Sweep
from kquant.tflite.huffman_format import Huffman
from kquant.views.step_places import every_place

QUIET: dict[str, Any] = {"verbose": False}


def samples(count: int, seed: int = 1) -> np.ndarray:
    """Few sources mixed into all channels."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(5).normal(size=(3, 8))
    return np.float32(rng.normal(0.3, 1.0, (count, 10, 10, 3)) @ mix)


def network() -> keras.Model:
    """Convolutions, a depthwise one, a Dense in front of a softmax."""
    keras.utils.set_random_seed(3)
    layers = keras.layers
    inputs = keras.Input((10, 10, 8), name="image")
    x = layers.Conv2D(24, 3, activation="relu", name="conv")(inputs)
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu6", name="depthwise")(x)
    x = layers.Conv2D(48, 1, activation="relu", name="wide")(x)
    x = layers.Conv2D(32, 3, activation="relu", name="deep")(x)
    x = layers.Dense(5, name="head")(layers.GlobalAveragePooling2D(name="pool")(x))
    return contract.randomise(keras.Model(inputs, layers.Softmax(name="soft")(x), name="network"))


MODEL = network()


def quantized(recipe: Any = "int8", target: str = "tflm") -> keras.Model:
    return kquant.calibrate(kquant.quantize(MODEL, recipe, target=target), samples(64), **QUIET)


def codes(qmodel: keras.Model) -> list[np.ndarray]:
    places = every_place(Sweep("test", qmodel, samples(1)).graph)
    return [np.rint(kernel_of_grid(place)) for place in places]


def kernel_of_grid(place: Any) -> np.ndarray:
    weights = place.layer.weights_as_used()
    return np.asarray(place.layer.weights_on_grid() / place.layer.scale_of(weights))


def error(qmodel: keras.Model) -> float:
    """Of the logarithms of probabilities, on samples that nothing was fitted to."""
    x = samples(64, seed=9)
    ours, theirs = (np.log(np.maximum(m.predict(x, verbose=0), 1 / 512)) for m in (qmodel, MODEL))
    return float(np.mean((ours - theirs) ** 2))


def test_bits_are_those_of_a_code_within_one_bit() -> None:
    rng = np.random.default_rng(0)
    drawn = np.int8(np.clip(np.rint(rng.laplace(0, 3, 20_000)), -127, 127))
    counts = np.bincount(drawn.astype(int) + 127, minlength=255).astype(float)
    stored = Huffman().store(drawn, None, np.array([0]))
    assert stored is not None
    estimated = float(counts @ code_bits(counts)) / 8
    # the decoder reads whole words, and ahead
    assert 0 <= stored.size_bytes + short_codes.DECODE_BYTES - stored_bytes(drawn) <= 8
    assert abs(estimated / stored.size_bytes - 1) < 0.03


def test_moments_are_those_of_rows() -> None:
    q = quantized()
    sweep = Sweep("test", q, samples(16))
    place = every_place(sweep.graph)[0]
    seen, held = row_sums(sweep, place, np.random.default_rng(0))
    assert (seen.count, held.count) == (14 * 64, 2 * 64)
    weights = kernel_of(place)
    wrong = np.random.default_rng(1).normal(size=weights.shape) * 0.01
    moments = (seen + held).moments(weights, centred=True)
    # the same in Keras: what a changed kernel makes of the quantized inputs, against the float model's sums
    layer = MODEL.get_layer("conv")
    x = np.concatenate([np.asarray(x) for (x,), _ in sweep.pairs(place.calls[0], [place.calls[0].inputs[0]], [])])
    kernel = np.asarray(layer.kernel) + wrong[0].reshape(layer.kernel.shape)
    ours = keras.ops.conv(x, np.float32(kernel), padding="valid")
    theirs = keras.ops.conv(samples(16), layer.kernel, padding="valid")
    off = np.asarray(ours - theirs, np.float64).reshape(-1, 24)
    still = np.asarray(keras.ops.conv(x, layer.kernel, padding="valid") - theirs, np.float64).reshape(-1, 24)
    expected = off.var(axis=0) - still.var(axis=0)
    assert np.allclose(moments.error(wrong)[0], expected, rtol=1e-3, atol=1e-6)


def test_worth_foretells_what_noise_in_weights_does() -> None:
    q = quantized()
    sweep = Sweep("test", q, samples(64))
    worth = output_worth(sweep.graph, every_place(sweep.graph), [samples(64)], np.random.default_rng(0))
    logits = keras.Model(MODEL.input, MODEL.get_layer("head").output)
    x = samples(64)
    plain = np.asarray(logits(x))
    rng = np.random.default_rng(2)
    for name in ("conv", "deep", "head"):
        layer = MODEL.get_layer(name)
        kernel = layer.kernel.numpy()
        before = keras.Model(MODEL.input, layer.input)
        rows = np.asarray(before(x))
        rows = np.asarray(keras.ops.image.extract_patches(rows, 3, padding="valid")) if rows.ndim == 4 else rows
        power = float(np.mean(np.sum(rows.reshape(-1, rows.shape[-1]) ** 2, axis=1)))
        found = []
        try:
            for _ in range(30):
                layer.kernel.assign(kernel + rng.normal(0, 1e-3, kernel.shape) * np.abs(kernel).max())
                found.append(np.mean(np.sum((np.asarray(logits(x)) - plain) ** 2, axis=1)))
        finally:
            layer.kernel.assign(kernel)
        expected = float(np.sum(worth[name])) * power * (1e-3 * np.abs(kernel).max()) ** 2
        assert 0.7 < np.mean(found) / plain.var(axis=0).sum() / expected < 1.4, name


def test_what_is_chosen_costs_less_than_rounding_to_nearest() -> None:
    q = quantized()
    sweep = Sweep("test", q, samples(64))
    place = next(place for place in every_place(sweep.graph) if place.name == "deep")
    weights, (seen, held) = kernel_of(place), row_sums(sweep, place, np.random.default_rng(0))
    moments = (seen + held).moments(weights, centred=True)
    task = Task(weights, np.full((1, 32), 1.0), -127, 127, True, np.ones(weights.shape, bool))
    strengths = (1e-6, 1e-4, 1e-2)
    sizes, errors = [], []
    for strength in strengths:
        made = solver(task, moments, 0.01)
        chosen = round_short(made, strength, step_of(made, strength))
        nearest = np.clip(np.rint(weights / chosen.scale), -127, 127)
        counts = np.bincount((nearest + 127).astype(int).ravel(), minlength=255).astype(float)
        theirs = np.sum(moments.error(nearest * chosen.scale - weights)) + strength * counts @ code_bits(counts)
        ours = np.sum(moments.error(chosen.weights - weights)) + strength * chosen.size_bits
        assert ours < theirs
        sizes.append(stored_bytes(chosen.codes))
        errors.append(float(np.sum(moments.error(chosen.weights - weights))))
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)


def test_a_file_of_so_many_bytes_better_than_four_bits(tmp_path: Path) -> None:
    four = kquant.adaround(quantized({"name": "w4", "weights": {"bits": 4}}), samples(64), iterations=200, **QUIET)
    size = kquant.export(four, tmp_path / "four.tflite", compression="auto").file_bytes
    q = kquant.shorten_codes(quantized(), samples(64), flash_bytes=size, **QUIET)
    made = kquant.export(q, tmp_path / "short.tflite", compression="auto", data=samples(8, seed=4))
    assert 0.97 * size < made.file_bytes <= size
    assert made.decoding is not None
    assert "huffman" in made.decoding.tensors
    assert [report.runtime for report in made.verification] == ["tflm"]
    assert all(report.ok for report in made.verification)
    assert error(q) < error(four)


def test_a_strength_that_is_higher_makes_a_smaller_file(tmp_path: Path) -> None:
    sizes = []
    for strength in (1e-7, 1e-4):
        q = kquant.shorten_codes(quantized(), samples(64), strength=strength, **QUIET)
        sizes.append(kquant.export(q, tmp_path / "m.tflite", compression="auto", check_runtimes=False).file_bytes)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.7 * sizes[0]
    assert min(len(np.unique(c)) for c in codes(q)) <= 16, "4 bits of levels, in int8"


def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = codes(kquant.shorten_codes(quantized(), samples(32), strength=1e-6, **QUIET))
    kept, done = short_codes._keep, []

    def stop(place: Any, made: np.ndarray) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(place.name)
        kept(place, made)

    monkeypatch.setattr(short_codes, "_keep", stop)
    with pytest.raises(KeyboardInterrupt):
        kquant.shorten_codes(quantized(), samples(32), strength=1e-6, folder=tmp_path, **QUIET)
    monkeypatch.setattr(short_codes, "_keep", kept)
    asked = []
    fit = short_codes.fit
    monkeypatch.setattr(short_codes, "fit", lambda *given: asked.append(1) or fit(*given))
    again = kquant.shorten_codes(quantized(), samples(32), strength=1e-6, folder=tmp_path, **QUIET)
    assert len(asked) == len(whole) - 3  # the third was made, and not yet kept in the model
    assert all(np.array_equal(a, b) for a, b in zip(whole, codes(again), strict=True))


def test_masked_weights_stay_zero() -> None:
    pruned = kquant.prune(MODEL, 0.6, depthwise=True)
    q = kquant.calibrate(kquant.quantize(pruned, target="tflm"), samples(32), **QUIET)
    before = [np.asarray(p.layer.weights_as_used()) == 0 for p in every_place(Sweep("test", q, samples(1)).graph)]
    kquant.shorten_codes(q, samples(32), strength=1e-8, **QUIET)
    assert all(np.all(c[zero] == 0) for c, zero in zip(codes(q), before, strict=True))
    assert sum(zero.sum() for zero in before) > 0


def test_shared_values_and_tables_keep_their_codes() -> None:
    clustered = kquant.cluster(MODEL, 8, layers=["deep"])
    q = kquant.calibrate(kquant.quantize(clustered, target="tflm"), samples(32), **QUIET)
    before = codes(q)
    with pytest.warns(UserWarning, match="shorten_codes: deep keep their codes"):
        kquant.shorten_codes(q, samples(32), strength=1e-5, **QUIET)
    same = [np.array_equal(a, b) for a, b in zip(before, codes(q), strict=True)]
    assert same == [False, False, False, True, False]


def test_refusals() -> None:
    with pytest.raises(ValueError, match="no codes of the weights make a file of 2,000 bytes. The smallest has"):
        kquant.shorten_codes(quantized(), samples(16), flash_bytes=2000, **QUIET)
    with pytest.raises(ValueError, match="'litert' decodes none. Quantize with target='tflm'"):
        kquant.shorten_codes(quantized(target="litert"), samples(16), flash_bytes=20_000, **QUIET)
    with pytest.raises(ValueError, match="strength must be a finite number above 0. Received: 0"):
        kquant.shorten_codes(quantized(), samples(16), strength=0.0, **QUIET)
    for options in ({"io": "float16"}, {"decode_budget": float("nan")}, {"decode_budget": -1}):
        with pytest.raises(ValueError, match=rf"shorten_codes: {next(iter(options))} must be .* Received: "):
            kquant.shorten_codes(quantized(), samples(16), flash_bytes=20_000, **options, **QUIET)
    with pytest.raises(ValueError, match="flash_bytes must be a whole number of bytes, 1 or more, .* Received: 0.5"):
        kquant.shorten_codes(quantized(), samples(16), flash_bytes=0.5, **QUIET)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="flash_bytes must be a whole number of bytes, 1 or more, .* Received: 0"):
        parse_steps("calibrate, shorten-codes:flash_bytes=0")


def test_where_nothing_decodes_the_outputs_still_hold(tmp_path: Path) -> None:
    q = kquant.shorten_codes(quantized(target="litert"), samples(32), strength=1e-6, **QUIET)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = kquant.export(q, tmp_path / "m.tflite", data=samples(8))
    assert all(check.ok for check in report.verification)


def test_a_search_over_shared_layers_ends_with_what_it_counted(tmp_path: Path) -> None:
    """What a shared layer is given depends on its own codes: each strength begins with those of the given model."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((24,), name="x")
    shared = keras.layers.Dense(32, activation="relu", name="shared")
    first = shared(inputs)
    second = shared(keras.layers.Dense(24, name="between")(first))
    outputs = {"one": keras.layers.Dense(3, name="one")(second), "two": keras.layers.Dense(5, name="two")(first)}
    model, x = keras.Model(inputs, outputs), np.random.default_rng(0).normal(size=(64, 24)).astype("float32")

    def fresh() -> keras.Model:
        return kquant.calibrate(kquant.quantize(model, target="tflm"), x, **QUIET)

    def run_of(qmodel: keras.Model) -> Any:
        return short_codes._Run(qmodel, x, None, 32, 0, None, every_place(Sweep("test", qmodel, x).graph))

    direct, searched = (kquant.equalize(fresh()) for _ in range(2))  # a range that was chosen before comes back, too
    run_of(direct).round_all(1e-4)
    again = run_of(searched)
    for strength in (1e-7, 1e-2, 1e-4):
        again.round_all(strength)
    for ours, theirs in zip(codes(searched), codes(direct), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    form: dict[str, Any] = {"strip_names": True, "io": "int8", "decode_budget": 0}
    plain = kquant.export(fresh(), tmp_path / "plain.tflite", check_runtimes=False).file_bytes
    for share in (0.7, 0.8):
        q = kquant.shorten_codes(fresh(), x, flash_bytes=int(share * plain), **form, **QUIET)
        written = kquant.export(q, tmp_path / "short.tflite", compression="auto", check_runtimes=False, **form)
        assert written.file_bytes <= int(share * plain)

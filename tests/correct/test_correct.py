"""Every step of a recipe alike: the float function stays, files equal the model, saved, repeated, refused by name."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import contract
import keras
import numpy as np
import pytest

import kquant
from kquant.analysis.try_steps import run_steps
from kquant.correct.steps import STEPS, apply_steps, check_steps
from kquant.graph.copies import copy_of
from kquant.layers.nodes import observing
from kquant.recipe.recipe import Step, load

X = np.float32(np.random.default_rng(0).normal(size=(32, 8, 8, 3)))
# What keeps a step short, and what it cannot do without.
OPTIONS: dict[str, dict[str, Any]] = {
    "adaround": {"iterations": 10},
    "data-free": {"input_range": [-3.0, 3.0]},
    "silence": {"codes": 1e6},  # none of its channels is near to dead
}
every_step = pytest.mark.parametrize("name", sorted(STEPS))
W4 = {"name": "w4", "weights": {"bits": 4, "per_axis": False}}
LIVE = {**W4, "training": {"batch_norm": "live"}}


# Steps that make Keras forget what it has traced; the others change variables, or (AdaRound) are asked in whole.
FORGET = ("bias", "data-free", "equalize", "sequential-mse")


def recipe_for(name: str) -> dict[str, Any]:
    """Batch norms can be re-estimated where they are not folded away."""
    return LIVE if name == "reestimate" else W4


def network() -> keras.Model:
    keras.utils.set_random_seed(3)
    x = inputs = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Conv2D(6, 3, use_bias=False, name="stem")(x)
    x = keras.layers.ReLU(name="relu")(keras.layers.BatchNormalization(name="norm")(x))
    x = keras.layers.Conv2D(8, 3, strides=2, activation="relu", name="body")(x)
    x = keras.layers.Flatten(name="flat")(x)
    return contract.randomise(keras.Model(inputs, keras.layers.Dense(4, name="head")(x), name="network"))


@cache
def plain(live: bool) -> keras.Model:
    """The network before any step; tests read it only."""
    return kquant.calibrate(kquant.quantize(network(), LIVE if live else W4), X, verbose=False)


def calibrated(name: str) -> keras.Model:
    return copy_of(plain(recipe_for(name) is LIVE))


def correct(q: keras.Model, name: str) -> keras.Model:
    apply_steps(q, [Step(name=name, **OPTIONS.get(name, {}))], X, verbose=False)
    return kquant.calibrate(q, X, verbose=False) if contract.unseen(q) else q


@cache
def corrected(name: str) -> keras.Model:
    """The network behind the step; tests read it only."""
    return correct(calibrated(name), name)


def in_float(q: keras.Model) -> np.ndarray:
    with observing(lambda *_: None):
        return np.asarray(q(X))


@pytest.mark.filterwarnings("ignore:equalize")
@every_step
def test_step(name: str, tmp_path: Path) -> None:
    model, q = network(), corrected(name)
    wanted = np.asarray(model(X))
    if name != "reestimate":  # which is there to change it
        np.testing.assert_allclose(in_float(q), wanted, atol=1e-5 * np.abs(wanted).max(), err_msg="the float function")
    q.save(tmp_path / "q.keras")
    again = keras.saving.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(again(X), q(X))
    content = contract.file_of(q)
    assert contract.compare(q, content, "litert-reference", [X]).equal == 1.0
    assert contract.file_of(again) == content
    again.compile(keras.optimizers.SGD(1e-3), "mse", run_eagerly=True)
    assert np.isfinite(again.fit(X, wanted, verbose=0).history["loss"][0])


@pytest.mark.filterwarnings("ignore:equalize")
@every_step
def test_a_graph_traced_before_knows_what_the_step_changed(name: str) -> None:
    q = calibrated(name)
    if name in FORGET:  # `predict` makes a graph anew, so nothing of the one before can be left
        before = np.asarray(q(X))
        q.make_predict_function()
        assert q.predict_function is not None
        correct(q, name)
        assert q.predict_function is None
        after = np.asarray(q(X))
    else:
        before = q.predict(X, verbose=0)
        correct(q, name)
        after = q.predict(X, verbose=0)
        np.testing.assert_array_equal(after, contract.simulate(q, [X])[0])
    assert np.any(before != after) or name == "calibrate"
    for a, b in zip(corrected(name).get_weights(), q.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b, err_msg="the same call gives the same numbers")


@pytest.mark.filterwarnings("ignore:equalize")
@every_step
def test_weights_alone_can_be_saved_and_loaded(name: str, tmp_path: Path) -> None:
    q = corrected(name)
    q.save_weights(tmp_path / "q.weights.h5")
    fresh = kquant.quantize(network(), recipe_for(name))
    fresh.load_weights(tmp_path / "q.weights.h5")
    np.testing.assert_array_equal(fresh(X), q(X))
    before = plain(recipe_for(name) is LIVE)
    before.save_weights(tmp_path / "plain.weights.h5")
    q = copy_of(q)
    q.load_weights(tmp_path / "plain.weights.h5")  # and back: what was corrected no longer is
    np.testing.assert_array_equal(q(X), before(X))


@pytest.mark.filterwarnings("ignore:equalize")
@every_step
def test_step_under_mixed_precision(name: str) -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        half = network()
    finally:
        keras.config.set_dtype_policy("float32")
    q = kquant.calibrate(kquant.quantize(half, recipe_for(name)), X, verbose=False)
    apply_steps(q, [Step(name=name, **OPTIONS.get(name, {}))], X, verbose=False)
    kquant.calibrate(q, X, verbose=False)
    assert np.all(np.isfinite(np.asarray(q(X), np.float32)))


def test_ranges_of_weights_follow_them_unless_data_chose_them() -> None:
    recipe = {"name": "w", "weights": {"bits": 4, "observer": "mse"}}
    q = kquant.calibrate(kquant.quantize(network(), recipe), X, verbose=False)
    layer = q.get_layer("body")
    before = layer.reach.numpy()
    layer.layer.kernel.assign(4.0 * layer.layer.kernel)
    kquant.calibrate(q, X, verbose=False)
    np.testing.assert_allclose(layer.reach.numpy(), 4.0 * before, rtol=1e-5)
    kquant.sequential_mse(q, X, verbose=False)
    chosen = layer.reach.numpy()
    np.testing.assert_array_equal(kquant.calibrate(q, X, verbose=False).get_layer("body").reach.numpy(), chosen)


def test_steps_of_a_recipe_run_in_order(tmp_path: Path) -> None:
    steps = ["equalize", "calibrate", {"name": "bias", "method": "empirical"}, {"name": "adaround", "iterations": 5}]
    recipe = load({**W4, "steps": steps})
    again = tmp_path / "again.toml"
    again.write_text(kquant.recipe_to_toml(recipe))
    assert load(again) == recipe
    result = kquant.compress(network(), X, again, path=tmp_path / "m.tflite", verbose=False)
    assert all("FLOAT" not in kind for kind in result.report.types)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("equalise", "no step 'equalise'. Did you mean 'equalize'"),
        ({"name": "adaround", "iteration": 5}, "'adaround' has no option 'iteration'. Did you mean 'iterations'"),
        ({"name": "calibrate", "verbose": True}, "'calibrate' has no option 'verbose'"),
    ],
)
def test_unknown_steps_and_options(step: Any, message: str, tmp_path: Path) -> None:
    recipe = load({"name": "mine", "steps": [step]})
    with pytest.raises(ValueError, match=message):
        check_steps(recipe.steps)
    with pytest.raises(ValueError, match=message):
        kquant.compress(network(), X, recipe, path=tmp_path / "m.tflite", verbose=False)


@pytest.mark.parametrize(
    ("name", "option", "value", "message"),
    [
        ("adaround", "iterations", "many", "iterations must be int. Received: 'many'."),
        ("adaround", "iterations", 1.5, "iterations must be int. Received: 1.5."),
        ("adaround", "iterations", True, "iterations must be int. Received: True."),
        ("adaround", "iterations", 0, "iterations must be 1 or more. Received: 0."),
        ("adaround", "batch_size", 0, "batch_size must be 1 or more. Received: 0."),
        ("adaround", "beta", 3, "beta must be tuple[float, float]. Received: 3."),
        ("adaround", "beta", [20.0, 2.0, 1.0], "beta must be tuple[float, float]. Received: [20.0, 2.0, 1.0]."),
        ("adaround", "warm_start", "x", "warm_start must be float. Received: 'x'."),
        ("adaround", "folder", 3, "folder must be str or Path or None. Received: 3."),
        ("bias", "limit", -1, "limit must be 1 or more. Received: -1."),
        ("bias", "method", "best", "method must be 'auto' or 'analytic' or 'empirical'. Received: 'best'."),
        ("calibrate", "limit", "all", "limit must be int or None. Received: 'all'."),
        ("equalize", "absorb", 1, "absorb must be bool. Received: 1."),
        ("sequential-mse", "candidates", 0, "candidates must be 1 or more. Received: 0."),
        ("gptq", "damping", -1, "damping must be a finite number above 0. Received: -1."),
        ("gptq", "damping", math.inf, "damping must be a finite number above 0. Received: inf."),
        ("gptq", "damping", "0.1", "damping must be float. Received: '0.1'."),
        ("adaround", "learning_rate", 0.0, "learning_rate must be a finite number above 0. Received: 0.0."),
        ("adaround", "warm_start", 1.0, "warm_start must be in 0..1, 1 left out. Received: 1.0."),
        ("adaround", "beta", [20.0, 0.0], "beta must be a finite number above 0. Received: (20.0, 0.0)."),
        ("adaround", "regularisation", -0.1, "regularisation must be a finite number of 0 or more. Received: -0.1."),
        ("shorten-codes", "strength", 0, "strength must be a finite number above 0. Received: 0."),
        ("silence", "codes", -0.5, "codes must be a finite number above 0. Received: -0.5."),
        ("silence", "sqnr_db", math.nan, "sqnr_db must be finite. Received: nan."),
        ("data-free", "sigmas", 0.0, "sigmas must be a finite number above 0. Received: 0.0."),
    ],
)
def test_values_of_options_are_checked_before_work(name: str, option: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError) as refused:
        check_steps(load({"name": "mine", "steps": [{"name": name, option: value}]}).steps)
    assert str(refused.value) == f"steps: '{name}': {message}"


def test_values_as_recipes_write_them_are_taken() -> None:
    lists = {"beta": [20, 2.0], "learning_rate": 1, "iterations": np.int64(5), "warm_start": np.float32(0.5)}
    check_steps([Step(name="adaround", **lists, limit=None, folder="here")])
    check_steps([Step(name="data-free", input_range=[0, 1]), Step(name="data-free", input_range={"image": [0, 1.0]})])


def test_no_step_asks_for_what_the_next_one_does(recwarn: pytest.WarningsRecorder) -> None:
    """Equalization forgets ranges; the steps behind it find them, or the result says that they are gone."""
    q = calibrated("equalize")

    def asked() -> list[str]:
        found = [str(w.message) for w in recwarn.list if "calibrate again" in str(w.message)]
        recwarn.clear()
        return found

    for steps in (["equalize", "calibrate"], ["equalize", "bias", "calibrate"], ["equalize", "equalize", "calibrate"]):
        apply_steps(copy_of(q), [Step(name=name) for name in steps], X, verbose=False)
        assert asked() == []
    kquant.dry_run(q, ["equalize", "bias", "calibrate"], X, verbose=False)
    assert asked() == []
    run_steps(copy_of(q), ["equalize"], X, verbose=False)  # its notes say it
    assert asked() == []
    apply_steps(copy_of(q), [Step(name="calibrate"), Step(name="equalize")], X, verbose=False)
    assert len(asked()) == 1
    kquant.equalize(q, verbose=False)
    assert len(asked()) == 1

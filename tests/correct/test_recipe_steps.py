"""A recipe's steps are run by one call or by hand, or who trains and exports without them is told."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import contract
import keras
import numpy as np
import pytest

import kquant
from kquant.correct.steps import STEPS, function_of
from kquant.views.recipe_steps import StepsLeft, remember_steps, steps_left

X = np.float32(np.random.default_rng(0).normal(size=(48, 6, 6, 2)))
ROUNDED = {
    "name": "rounded",
    "weights": {"bits": 4, "per_axis": False},
    "steps": ["equalize", "calibrate", {"name": "adaround", "iterations": 20}],
}
QUICK: dict[str, dict[str, Any]] = {"adaround": {"iterations": 5}, "data-free": {"input_range": [-3.0, 3.0]}}


def network() -> keras.Model:
    keras.utils.set_random_seed(5)
    x = inputs = keras.Input((6, 6, 2), name="image")
    x = keras.layers.Conv2D(4, 3, activation="relu", name="one")(x)
    x = keras.layers.BatchNormalization(name="norm")(keras.layers.Conv2D(4, 3, name="two")(x))
    model = keras.Model(inputs, keras.layers.Dense(3, name="head")(keras.layers.Flatten(name="flat")(x)), name="net")
    return contract.randomise(model)


@contextmanager
def silent() -> Iterator[None]:
    """Nothing is said of steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", StepsLeft)
        yield


def exported(q: keras.Model, folder: Path) -> bytes:
    kquant.export(q, folder / "q.tflite", check_runtimes=False)
    return (folder / "q.tflite").read_bytes()


def test_one_call_makes_what_compress_makes(tmp_path: Path) -> None:
    kquant.compress(network(), X, ROUNDED, path=tmp_path / "c.tflite", verbose=False)
    q = kquant.quantize(network(), ROUNDED)
    assert kquant.run_steps(q, X, verbose=False) is q
    with silent():
        assert exported(q, tmp_path) == (tmp_path / "c.tflite").read_bytes()
    only_calibrated = kquant.calibrate(kquant.quantize(network(), ROUNDED), X, verbose=False)
    with pytest.warns(StepsLeft):
        assert exported(only_calibrated, tmp_path) != (tmp_path / "c.tflite").read_bytes()


def test_export_names_what_was_not_run(tmp_path: Path) -> None:
    q = kquant.calibrate(kquant.quantize(network(), ROUNDED), X, verbose=False)
    said = r"^export: recipe 'rounded' has steps that were not run: equalize, adaround\. .*kquant\.run_steps\(qmodel, "
    q.save(tmp_path / "q.keras")
    for model in (q, keras.models.load_model(tmp_path / "q.keras")):
        with pytest.warns(StepsLeft, match=said):
            exported(model, tmp_path)
        kquant.run_steps(model, X, verbose=False)  # equalization forgets ranges: calibration comes again behind it
        with silent():
            exported(model, tmp_path)


@pytest.mark.parametrize("recipe", ["int8", {"name": "mine"}, {"name": "none", "steps": []}])
def test_nothing_is_said_of_calibration_alone(recipe: Any, tmp_path: Path) -> None:
    q = kquant.calibrate(kquant.quantize(network(), recipe), X, verbose=False)
    with silent():
        exported(q, tmp_path)
        made = kquant.quantize(network(), recipe, encodings=kquant.encodings(q))
        assert exported(made, tmp_path) == exported(q, tmp_path)
    assert steps_left(made) == ()


def test_nothing_is_said_where_steps_were_run_by_hand(tmp_path: Path) -> None:
    q = kquant.quantize(network(), ROUNDED)
    kquant.equalize(q, verbose=False)
    kquant.calibrate(q, X, verbose=False)
    kquant.adaround(q, X, iterations=5, verbose=False)
    with silent():
        before = exported(q, tmp_path)
    kquant.run_steps(q, X, verbose=False)
    assert exported(q, tmp_path) == before, "none was left to be run"


@pytest.mark.parametrize("name", sorted(STEPS))
def test_every_step_says_that_it_was_run(name: str) -> None:
    live = {"training": {"batch_norm": "live"}} if name == "reestimate" else {}
    q = kquant.quantize(network(), {"name": "w4", "weights": {"bits": 4, "per_axis": False}, **live})
    if name not in ("calibrate", "data-free", "equalize"):
        kquant.calibrate(q, X, verbose=False)
    remember_steps(q, [name, "other"])
    takes = [X] if "data" in inspect.signature(function_of(name)).parameters else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        function_of(name)(q, *takes, verbose=False, **QUICK.get(name, {}))
    assert steps_left(q) == ("other",)


@pytest.mark.parametrize("distills", [False, True])
def test_fit_tells_before_it_trains_and_export_not_again(distills: bool, tmp_path: Path) -> None:
    q = kquant.calibrate(kquant.quantize(network(), ROUNDED), X, verbose=False)
    trainer = kquant.distill(q, network(), alpha=0.5, outputs="regression") if distills else q
    trainer.compile("sgd", "mse")
    y = np.zeros((48, 3), "float32")
    with pytest.warns(StepsLeft, match=r"^fit: recipe 'rounded' .*equalize, adaround.*before `fit`"):
        trainer.fit(X, y, verbose=0)
    with silent():
        trainer.fit(X, y, verbose=0)
        exported(q, tmp_path)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (["adarond"], "no step 'adarond'.*Did you mean 'adaround'"),
        (["equalise", "calibrate"], "no step 'equalise'.*Did you mean 'equalize'"),
        ([{"name": "adaround", "iteration": 5}], "'adaround' has no option 'iteration'.*'iterations'"),
    ],
)
def test_a_wrong_step_is_refused_where_the_recipe_is_given(steps: list[Any], said: str) -> None:
    for verb in (kquant.quantize, kquant.check, kquant.estimate):
        with pytest.raises(ValueError, match=said):
            verb(network(), recipe={"name": "x", "steps": steps})


def test_run_steps_refuses_what_has_no_steps() -> None:
    with pytest.raises(ValueError, match="not a quantized model"):
        kquant.run_steps(network(), X)
    with pytest.raises(ValueError, match=r"run_steps: expected a keras\.Model"):
        kquant.run_steps(None, X)  # type: ignore[arg-type]

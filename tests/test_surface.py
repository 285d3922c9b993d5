"""One word for one thing, in every public signature and every command."""

from __future__ import annotations

import inspect
from functools import reduce, update_wrapper
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import kquant
from kquant import report, targets
from kquant.app import cli
from kquant.calibration.data import gather
from kquant.core import renamed
from kquant.correct.steps import apply_steps, check_steps
from kquant.recipe.recipe import Step

FUNCTIONS = {name: getattr(kquant, name) for name in kquant.__all__ if inspect.isfunction(getattr(kquant, name))}
ON_RAY = {name: f for name in kquant.on_ray.__all__ if inspect.isfunction(f := getattr(kquant.on_ray, name))}
COMMANDS = typer.main.get_command(cli.app).commands


def test_every_verb_and_command_has_the_same_target() -> None:
    parameters = {name: inspect.signature(f).parameters for name, f in {**FUNCTIONS, **ON_RAY}.items()}
    found = {name: p["target"].default for name, p in parameters.items() if "target" in p}
    options = {name: {p.name: p.default for p in command.params} for name, command in COMMANDS.items()}
    own = {"correct": "the model's, where it is quantized", "export": "that of the kind of project"}
    found |= {f"kquant {name}": p["target"] for name, p in options.items() if "target" in p and name not in own}
    assert len(found) > 7 and set(found.values()) == {targets.DEFAULT}, found


MODEL = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="head")], name="small")
# Of a verb that takes a target: how it is called, but for that.
TARGETED: dict[str, dict[str, Any]] = {
    "autotune": {"data": np.ones((8, 3)), "evaluate": lambda _: 1.0, "max_drop": 0.1},
    "check": {},
    "compress": {"data": np.ones((8, 3)), "path": "never.tflite"},
    "estimate": {},
    "mixed_precision": {"data": np.ones((8, 3)), "flash_bytes": 9999},
    "quantize": {},
}


@pytest.mark.parametrize("given", [None, 5, ["tflm"], Path("tflm")])
@pytest.mark.parametrize("name", TARGETED)
def test_a_target_that_is_no_name_is_refused(name: str, given: Any) -> None:
    assert {n for n, f in FUNCTIONS.items() if "target" in inspect.signature(f).parameters} == set(TARGETED)
    with pytest.raises(ValueError, match=r"^target: expected a name, one of .*litert.* Received: .* Leave target out"):
        FUNCTIONS[name](MODEL, **TARGETED[name], target=given)


@pytest.mark.parametrize("name", TARGETED)
def test_a_key_of_recipes_is_told_where_it_goes(name: str) -> None:
    assert "recipe" in inspect.signature(FUNCTIONS[name]).parameters
    told = {"bits": '{"weights": {"bits": 4}}', "fold": '{"fold": 4}', "sparsity": '{"pruning": {"sparsity": 4}}'}
    for key, recipe in told.items():
        with pytest.raises(TypeError, match=rf"{name}\(\) got an unexpected.*'{key}'.*key of recipes") as refused:
            FUNCTIONS[name](MODEL, **TARGETED[name], **{key: 4})
        assert f"recipe={recipe}" in str(refused.value)
    with pytest.raises(TypeError, match="unexpected keyword argument 'nobody'"):
        FUNCTIONS[name](MODEL, **TARGETED[name], nobody=4)


# What holds data, counts them or names a place, and is called otherwise: each with the reason.
OTHER_WORDS = {
    ("data_free_ranges", "samples"): "how many are made up: none are given",
}
SYNONYMS = {
    *("samples", "batches", "images", "inputs", "x", "xs", "clip", "frames", "dataset", "representative_dataset"),
    *("n", "num", "count", "max_samples", "most", "first"),
    *("out", "output", "output_path", "file", "filename", "file_path", "where", "destination", "path_or_bytes"),
    *("directory", "dir", "out_dir", "log_dir", "output_dir", "resume", "work", "recipe_or_schedule", "given", "skip"),
}


def test_no_synonyms() -> None:
    called = {name: set(inspect.signature(f).parameters) for name, f in FUNCTIONS.items()}
    called["Monitor"] = set(inspect.signature(kquant.callbacks.Monitor).parameters)
    called |= {name: set(inspect.signature(getattr(report, name)).parameters) for name in ("html", "pareto")}
    called |= {f"on_ray.{name}": set(inspect.signature(f).parameters) for name, f in ON_RAY.items()}
    found = {(name, word) for name, words in called.items() for word in words & SYNONYMS}
    assert found == set(OTHER_WORDS)
    options = {(name, option) for name, c in COMMANDS.items() for p in c.params for option in p.opts}
    assert not {(name, o) for name, o in options if o.startswith("--") and o[2:].replace("-", "_") in SYNONYMS}


def home(name: str) -> Any:
    """What `ARGUMENTS` names, as it is called."""
    first, *rest = name.split(".")
    return reduce(
        getattr, rest, next(getattr(m, first) for m in (kquant, kquant.callbacks, report) if hasattr(m, first))
    )


ARGUMENTS = [(name, old, new) for name, words in renamed.ARGUMENTS.items() for old, new in words.items()]


@pytest.mark.parametrize(("name", "old", "new"), ARGUMENTS)
def test_an_old_argument_is_taken_and_told(name: str, old: str, new: str) -> None:
    function = home(name)
    parameters = inspect.signature(function).parameters
    assert new in parameters and old not in parameters, "signatures show the new words only"
    reached = inspect.unwrap(function.__init__ if inspect.isclass(function) else function)
    others = {p.name: None for p in parameters.values() if p.default is p.empty and p.name not in (new, "self")}
    seen: dict[str, Any] = {}
    decorated = renamed.renamed(lookalike(reached, seen))
    with pytest.warns(DeprecationWarning, match=rf"`{old}` is called `{new}` now") as said:
        decorated(**others, **{old: 3})
    assert [w.filename for w in said] == [__file__] and seen == {**others, new: 3}
    with pytest.raises(TypeError, match=f"got `{new}` and `{old}`"):
        decorated(**others, **{old: 3, new: 4})


def lookalike(function: Any, seen: dict[str, Any]) -> Any:
    """A function of the same name and parameters that keeps what it is given."""

    def keeping(**given: Any) -> None:
        seen.update(given)

    return update_wrapper(keeping, function)


@pytest.mark.parametrize("name", renamed.ARGUMENTS)
def test_public_names_take_their_old_words(name: str) -> None:
    """The public function itself: what it says without its other arguments is about those."""
    for old, new in renamed.ARGUMENTS[name].items():
        said = ""
        with pytest.warns(DeprecationWarning, match=f"`{old}` is called `{new}` now"):
            try:
                home(name)(**{old: None})
            except Exception as error:
                said = str(error)
        assert "unexpected keyword" not in said


def test_batches_counts_batches_still() -> None:
    x = np.arange(210.0, dtype=np.float32).reshape(70, 3)
    q = kquant.quantize(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))
    with pytest.warns(DeprecationWarning, match="limit` now, and counts samples"):
        assert kquant.observe(q, x, batches=2, batch_size=20, verbose=False).samples == 40
    with pytest.warns(DeprecationWarning):
        assert kquant.observe(q, lambda: iter([x[:7], x[7:9], x]), batches=2, verbose=False).samples == 9
    assert kquant.observe(q, lambda: iter([x[:7], x[7:9], x]), limit=8, verbose=False).samples == 8
    with pytest.warns(DeprecationWarning):
        given = renamed.new_words(kquant.analyze, {"batches": np.int64(2), "samples": 5})
    assert [len(a) for a in gather(q, lambda: iter([x[:4], x[4:9], x]), given["limit"])] == [5]
    with pytest.warns(DeprecationWarning):
        assert renamed.new_words(kquant.analyze, {"batches": 2})["limit"].samples == 256


def test_steps_take_old_words() -> None:
    step = Step(name="calibrate", batches=1, batch_size=8)
    check_steps([step])
    q = kquant.quantize(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))
    with pytest.warns(DeprecationWarning, match="calibrate: `batches`"), pytest.warns(match="calibrate: 8 samples"):
        apply_steps(q, [step], np.random.default_rng(0).normal(size=(64, 3)), verbose=False)


@pytest.mark.parametrize("command", renamed.OPTIONS)
def test_an_old_option_is_taken_and_told(command: str) -> None:
    known = {option for p in COMMANDS[command].params for option in p.opts}
    for old, new in renamed.OPTIONS[command].items():
        assert new in known and old not in known
        with pytest.warns(DeprecationWarning, match=f"kquant {command}: {old} is called {new} now"):
            assert renamed.new_options(command, [old, "3", "--", old]) == [new, "3", "--", old]
        with pytest.warns(DeprecationWarning):
            assert renamed.new_options(command, [f"{old}=3"]) == [f"{new}=3"]


def test_the_command_tells_old_options(tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match="--out is called --path"):
        result = CliRunner().invoke(cli.app, ["predict", str(tmp_path / "m.tflite"), "--data", "x", "--out", "y"])
    assert result.exit_code == 1 and "no such file" in result.output

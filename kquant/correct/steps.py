"""Post-training corrections: each is one file, and one entry in `STEPS`, which recipes and the command line name.

    step(qmodel, data, *, verbose, **options) -> qmodel     changes the ranges, biases or rounding of the model in place

The float weights stay what they were, so that the model still knows its float function; equalization alone rescales
them, and leaves that function as it is. Re-estimation gives live batch norms new statistics, and so changes it.
"""

from __future__ import annotations

import inspect
import pkgutil
import re
import tomllib
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from kquant.core.checks import whole_budget
from kquant.core.messages import check_known, did_you_mean
from kquant.core.renamed import new_word, new_words
from kquant.correct.options import check_option
from kquant.recipe.recipe import Step

if TYPE_CHECKING:
    import keras

# A function, or where it is: imported when it is asked for, so that a command refuses a wrong name before TensorFlow
# has loaded.
STEPS: dict[str, str | Callable[..., keras.Model]] = {
    "calibrate": "kquant.calibration.ranges:calibrate",
    "data-free": "kquant.correct.data_free:data_free_ranges",
    "equalize": "kquant.correct.equalization:equalize",
    "bias": "kquant.correct.bias:correct_bias",
    "sequential-mse": "kquant.correct.range_search:sequential_mse",
    "adaround": "kquant.correct.adaptive_rounding:adaround",
    "gptq": "kquant.correct.error_feedback:gptq",
    "silence": "kquant.correct.silencing:silence",
    "shorten-codes": "kquant.correct.short_codes:shorten_codes",
    "reestimate": "kquant.correct.batch_norms:reestimate",
}
# Options that count something, in whatever step they are; and those that are budgets of bytes.
COUNTS = frozenset({"batch_size", "candidates", "iterations", "limit", "row_batch", "rows", "samples"})
BUDGETS = frozenset({"flash_bytes"})


def check_step(name: str) -> None:
    """Refuse a step that does not exist.

    Raises:
        ValueError: naming the nearest.
    """
    check_known(f"steps: no step '{name}'", name, STEPS)


def function_of(name: str) -> Callable[..., keras.Model]:
    """What a step does.

    Raises:
        ValueError: unknown; names the nearest.

    Example:
        >>> function_of("adaround") is kquant.adaround
        True
    """
    check_step(name)
    step = STEPS[name]
    return pkgutil.resolve_name(step) if isinstance(step, str) else step


def check_steps(steps: Sequence[Step]) -> None:
    """Refuse unknown steps and options, and values that an option cannot have, before any work is done.

    Raises:
        ValueError: naming the nearest that exists, or what the option takes.

    Example:
        >>> check_steps([Step(name="adaround", iterations="many")])
        Traceback (most recent call last):
        ValueError: steps: 'adaround': iterations must be int. Received: 'many'.
    """
    for step in steps:
        function = function_of(step.name)
        known = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        known = [name for name in known if name != "verbose"]
        hints = get_type_hints(function)
        for option, value in step.options.items():
            now = new_word(function, option)
            if now not in known:
                raise ValueError(
                    f"steps: '{step.name}' has no option '{option}'.{did_you_mean(option, known)} It has: "
                    f"{', '.join(known) or 'none'}."
                )
            if now in BUDGETS and value is not None:
                whole_budget(f"steps: '{step.name}'", option, value)
            else:
                _check_value(f"steps: '{step.name}': {option}", now, value, hints.get(now, Any))


def split_steps(text: str) -> list[tuple[str, list[str]]]:
    """Steps as a command line writes them: names in order, each with what stands behind its colons.

    Raises:
        ValueError: something that is no name.

    Example:
        >>> split_steps("calibrate, adaround:iterations=2000:beta=[20, 2]")
        [('calibrate', []), ('adaround', ['iterations=2000', 'beta=[20, 2]'])]
    """
    steps = []
    # At commas that no closing bracket follows before an opening one: those in a list or table stay.
    for part in re.split(r",(?![^\[{]*[\]}])", text):
        # At colons before `key=`.
        name, *given = (piece.strip() for piece in re.split(r":(?=\s*\w+\s*=)", part))
        if not name or not re.fullmatch(r"[\w-]+", name):
            raise ValueError(f"steps: expected names like calibrate or adaround:iterations=2000. Received: '{part}'.")
        steps.append((name, given))
    return steps


def parse_steps(text: str) -> tuple[Step, ...]:
    """Steps as a command line writes them: names in order, options behind colons, their values as in TOML.

    Args:
        text: like "equalize,calibrate,adaround:iterations=2000:beta=[20, 2]".

    Raises:
        ValueError: an option without a value, an unknown step or option, or a value that an option cannot have.

    Example:
        >>> [(step.name, step.options) for step in parse_steps("calibrate, adaround:iterations=2000")]
        [('calibrate', {}), ('adaround', {'iterations': 2000})]
    """
    steps = []
    for name, given in split_steps(text):
        pairs = [piece.partition("=") for piece in given]
        steps.append(Step(name=name, **{key.strip(): _value(value.strip()) for key, _, value in pairs}))
    check_steps(steps)
    return tuple(steps)


def _value(text: str) -> Any:
    """A TOML value; what is none is a string without its quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _check_value(what: str, option: str, value: Any, hint: Any) -> None:
    """Against the annotation, strictly: 1.5 is no int, and True no number; 1 is a float."""
    try:
        TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(_plain(value), strict=True)
    except ValidationError:
        raise ValueError(f"{what} must be {_said(hint)}. Received: {value!r}.") from None
    if option in COUNTS and value is not None and value < 1:
        raise ValueError(f"{what} must be 1 or more. Received: {value!r}.")
    check_option(f"{what.rpartition(': ')[0]}: ", option, _plain(value))


def _plain(value: Any) -> Any:
    """As Python has it: numbers of numpy, and the lists that recipes write for tuples."""
    if isinstance(value, list | tuple):
        return tuple(_plain(v) for v in value)
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _said(hint: Any) -> str:
    """An annotation for readers: `int | None` is "int or None"."""
    if isinstance(hint, type) and not get_args(hint):
        return hint.__name__
    if get_origin(hint) is Literal:
        return " or ".join(repr(v) for v in get_args(hint))
    return re.sub(r"\b(?:\w+\.)+", "", str(hint)).replace(" | ", " or ")


def apply_steps(qmodel: keras.Model, steps: Sequence[Step], data: Any, *, verbose: bool = True) -> keras.Model:
    """Run the steps of a recipe on a quantized model, in order.

    Args:
        qmodel: what `kquant.quantize` returned; changed in place.
        steps: of the recipe.
        data: see `kquant.calibrate`.
        verbose: show progress bars.

    Returns:
        `qmodel`.

    Raises:
        ValueError: an unknown step or option, or what a step refuses.
    """
    from kquant.correct.equalization import ForgottenRanges  # with which TensorFlow comes
    from kquant.views.recipe_steps import RANGES, step_done

    check_steps(steps)
    for number, step in enumerate(steps):
        with warnings.catch_warnings():
            if any(later.name in RANGES for later in steps[number + 1 :]):  # what the warning asks for comes next
                warnings.simplefilter("ignore", ForgottenRanges)
            function_of(step.name)(qmodel, data, verbose=verbose, **step.options)
            step_done(qmodel, step.name)  # those of somebody's own do not say so
    return qmodel


def run_steps(qmodel: keras.Model, data: Any, *, limit: int | None = None, verbose: bool = True) -> keras.Model:
    """Run the steps of a model's own recipe (calibration, corrections) that were not run yet, in its order.

    In place: changes `qmodel` and returns it.

    `kquant.quantize` runs no step, since it has no data, and `kquant.calibrate` is one of them. This runs what
    `kquant.compress` runs between `quantize` and `export`: all steps from the first one that was not run, since one
    that was run too early (`calibrate` before `equalize`) has to see what those before it made. Steps that were run by
    hand, with whatever options, and all those that `fit` was called without, count as run.

    Args:
        qmodel: what `kquant.quantize` returned.
        data: see `kquant.calibrate`.
        limit: use this many samples only, the first ones, in place of what a step says.
        verbose: show progress bars.

    Returns:
        `qmodel`.

    Raises:
        ValueError: not a quantized model, one whose recipe nobody knows any more, or what a step refuses.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> recipe = {"name": "rounded", "weights": {"bits": 4}, "steps": ["calibrate", "adaround"]}
        >>> q = kquant.quantize(model, recipe)
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> kquant.run_steps(q, x, verbose=False) is q
        True
    """
    from kquant.graph.given_model import layers_of
    from kquant.layers.provenance import provenance_of
    from kquant.views.quantized_model import read
    from kquant.views.recipe_steps import steps_left

    layers = layers_of(qmodel, "run_steps")
    read(qmodel)  # refuses what is not quantized
    recipe, left = provenance_of(layers).load_recipe(), steps_left(qmodel)
    if recipe is None:
        raise ValueError(
            f"run_steps: nobody knows the recipe of {qmodel.name} any more, an earlier kquant made it. Run its steps "
            "by hand (kquant.calibrate, kquant.adaround, ...), or quantize the float model again."
        )
    names = [step.name for step in recipe.steps]
    # of a model that remembers nothing: all
    first = 0 if left is None else min((names.index(name) for name in left), default=len(names))
    return apply_steps(qmodel, [limited(step, limit) for step in recipe.steps[first:]], data, verbose=verbose)


def limited(step: Step, limit: int | None) -> Step:
    """The step with the number of samples that the caller gave, which wins over its own.

    Args:
        step: of a recipe.
        limit: None leaves it.

    Example:
        >>> limited(Step(name="calibrate"), 50).options
        {'limit': 50}
    """
    function = function_of(step.name)
    if limit is None or "limit" not in inspect.signature(function).parameters:
        return step
    # its own may still go by its old name
    return Step(name=step.name, **{**new_words(function, step.options), "limit": limit})

"""Post-training corrections: each is one file, and one entry in `STEPS`, which recipes and the command line name.

    step(qmodel, data, *, verbose, **options) -> qmodel     changes the ranges, biases or rounding of the model in place

The float weights stay what they were, so that the model still knows its float function; equalization alone rescales
them, and leaves that function as it is.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import keras

from kquant.calibrate import calibrate
from kquant.core.recipe import Step
from kquant.correct.adaround import adaround
from kquant.correct.bias import correct_bias
from kquant.correct.data_free import data_free_ranges
from kquant.correct.equalize import equalize
from kquant.correct.sequential_mse import sequential_mse

STEPS: dict[str, Callable[..., keras.Model]] = {
    "calibrate": calibrate,
    "data-free": data_free_ranges,
    "equalize": equalize,
    "bias": correct_bias,
    "sequential-mse": sequential_mse,
    "adaround": adaround,
}


def check_steps(steps: Sequence[Step]) -> None:
    """Refuse unknown steps and options.

    Raises:
        ValueError: naming the nearest that exists.
    """
    for step in steps:
        if step.name not in STEPS:
            raise ValueError(f"steps: no step '{step.name}'.{_near(step.name, STEPS)} There are: {', '.join(STEPS)}.")
        known = [p.name for p in inspect.signature(STEPS[step.name]).parameters.values() if p.kind is p.KEYWORD_ONLY]
        known = [name for name in known if name != "verbose"]
        for option in step.options:
            if option not in known:
                raise ValueError(
                    f"steps: '{step.name}' has no option '{option}'.{_near(option, known)} It has: "
                    f"{', '.join(known) or 'none'}."
                )


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
    check_steps(steps)
    for step in steps:
        STEPS[step.name](qmodel, data, verbose=verbose, **step.options)
    return qmodel


def _near(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f" Did you mean '{near[0]}'?" if near else ""

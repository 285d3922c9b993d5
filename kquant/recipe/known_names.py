"""Names of observers and steps, to refuse a wrong one on the command line before TensorFlow loads.

What they do is in `calibration.observers.OBSERVERS` and `correct.steps.STEPS`; a test holds that the names are the
same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from kquant.core.messages import check_known
from kquant.recipe.recipe import Recipe

OBSERVERS = ("minmax", "moving-average", "percentile", "mse", "sqnr", "kl", "cross-entropy")
STEPS = ("calibrate", "data-free", "equalize", "bias", "sequential-mse", "adaround", "reestimate")


def check_observer(name: str, known: Iterable[str] = OBSERVERS) -> None:
    """Refuse an observer that does not exist.

    Raises:
        ValueError: naming the nearest.
    """
    check_known(f"observer '{name}' does not exist", name, known)


def check_step(name: str, known: Iterable[str] = STEPS) -> None:
    """Refuse a step that does not exist.

    Raises:
        ValueError: naming the nearest.
    """
    check_known(f"steps: no step '{name}'", name, known)


def check_names(recipe: Recipe) -> None:
    """Refuse a recipe with an observer or a step that does not exist.

    Raises:
        ValueError: naming the nearest.

    Example:
        >>> check_names(Recipe(name="mine", activations={"observer": "min-max"}))
        Traceback (most recent call last):
        ValueError: observer 'min-max' does not exist. Did you mean 'minmax'? There are: minmax, moving-average, ...
    """
    rules = [table for rule in recipe.rules for table in (rule.activations, rule.weights)]
    named = [recipe.activations.observer, recipe.weights.observer, *(t["observer"] for t in rules if "observer" in t)]
    for observer in named:
        check_observer(observer)
    for step in recipe.steps:
        check_step(step.name)


def split_steps(text: str) -> list[tuple[str, list[str]]]:
    """Steps as a command line writes them: names in order, each with what stands behind its colons.

    Raises:
        ValueError: something that is no name.

    Example:
        >>> split_steps("calibrate, adaround:iterations=2000:beta=[20, 2]")
        [('calibrate', []), ('adaround', ['iterations=2000', 'beta=[20, 2]'])]
    """
    found = []
    for part in re.split(r",(?![^\[{]*[\]}])", text):
        name, *given = (piece.strip() for piece in re.split(r":(?=\s*\w+\s*=)", part))
        if not name or not re.fullmatch(r"[\w-]+", name):
            raise ValueError(f"steps: expected names like calibrate or adaround:iterations=2000. Received: '{part}'.")
        found.append((name, given))
    return found

"""The recipes of a ladder's rungs: one with one thing changed."""

from __future__ import annotations

from collections.abc import Sequence

from kquant.recipe.recipe import Recipe, Step

OBSERVERS = ("mse", "percentile", "kl", "minmax")  # tried in this order; see docs/benchmarks.md
WIDE = {"bits": 16, "observer": "minmax"}  # 65,536 codes need no clipping


def others(base: Recipe) -> list[str]:
    """Observers that are left to be tried."""
    return [observer for observer in OBSERVERS if observer != base.activations.observer]


def observing(recipe: Recipe, observer: str) -> Recipe:
    """The recipe with another observer of activations."""
    chosen = recipe.activations.model_copy(update={"observer": observer})
    return recipe.model_copy(update={"activations": chosen})


def widened(recipe: Recipe, layers: Sequence[str], weights: bool) -> tuple[str, Recipe]:
    """More bits for the weights, or the output, of some layers."""
    setting, value = ("weights", {"bits": 8}) if weights else ("activations", WIDE)
    rules = [{"layer": name, setting: value} for name in layers]
    added = Recipe.model_validate({"name": "rules", "rules": rules}).rules
    width = "8-bit weights" if weights else "16-bit activations"
    plural = "layer" if len(layers) == 1 else f"{len(layers)} layers"
    name = f"{width} for the most sensitive {plural}"
    return name, recipe.model_copy(update={"rules": (*recipe.rules, *added)})


def whole(recipe: Recipe, few: bool, wide: bool) -> list[tuple[str, Recipe]]:
    """More bits everywhere."""
    eight = {"weights": recipe.weights.model_copy(update={"bits": 8})}
    sixteen = {"activations": recipe.activations.model_copy(update=WIDE)}
    given = [("8-bit weights", eight)] * few + [("16-bit activations", sixteen)] * wide
    return [(name, recipe.model_copy(update=update)) for name, update in given]


def with_steps(recipe: Recipe, name: str, before: tuple[str, ...] = ()) -> Recipe:
    """The recipe with one more step, at the end or before the first of some others."""
    names = [step.name for step in recipe.steps]
    if name in names:
        return recipe
    place = next((i for i, step in enumerate(names) if step in before), len(names))
    steps = (*recipe.steps[:place], Step(name=name), *recipe.steps[place:])
    return recipe.model_copy(update={"steps": steps})

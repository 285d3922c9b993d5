"""How a section of a recipe is carried out: a file of this folder that does it has a `METHOD`, which is found here."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import keras

from kquant import masking as folder
from kquant.recipe.recipe import Recipe
from kquant.recipe.section import Section, sections


@dataclass(frozen=True, eq=False)
class Method:
    """What is done to kernels where a recipe has a section for it.

    Attributes:
        section: its settings.
        name: of the stage, as `train` of `kquant.compress` hears it.
        verb: (float or quantized model, recipe) -> a new model with the transforms.
        put: (wrapped or quantized model, recipe) puts them in place.
        acts: model -> True where it has them already.
    """

    section: type[Section]
    name: str
    verb: Callable[[keras.Model, Recipe], keras.Model]
    put: Callable[[keras.Model, Recipe], None]
    acts: Callable[[keras.Model], bool]


def methods(recipe: Recipe) -> list[Method]:
    """The methods that a recipe has sections for, in the order in which they act.

    Example:
        >>> [method.name for method in methods(kquant.Recipe(name="mine", clustering={}, pruning={}))]
        ['prune', 'cluster']
    """
    return [known()[key] for key, section in sections().items() if recipe.section(section) is not None]


@cache
def known() -> dict[str, Method]:
    """Key of a section -> its method: every `METHOD` in a file of this folder."""
    modules = [
        importlib.import_module(f"{folder.__name__}.{info.name}") for info in pkgutil.iter_modules(folder.__path__)
    ]
    every = [module.METHOD for module in modules if hasattr(module, "METHOD")]
    return {method.section.key: method for method in every}

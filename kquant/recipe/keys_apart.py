"""A key of recipes that is given beside the recipe: refused with the recipe to write."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from kquant.core.messages import first_of
from kquant.recipe.recipe import SECTIONS, Recipe

P = ParamSpec("P")
R = TypeVar("R")


def takes_recipe(function: Callable[P, R]) -> Callable[P, R]:
    """Let a verb with an argument `recipe` say where a key of recipes goes that it is given as an argument.

    Args:
        function: the verb; what is decorated raises TypeError for such a key.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> kquant.quantize(model, bits=4)
        Traceback (most recent call last):
        TypeError: quantize() got an unexpected keyword argument 'bits', which is a key of recipes; write ...
    """

    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        for word in kwargs.keys() - known:
            refuse(name, word, kwargs[word])
        return function(*args, **kwargs)

    # Only what it closes over, no global of this module: so it can belong to the module of what it wraps, where doctest
    # and `inspect.getmodule` look for it.
    known, refuse, name = frozenset(inspect.signature(function).parameters), _refuse, function.__name__
    own = types.FunctionType(called.__code__, function.__globals__, function.__name__, None, called.__closure__)
    return functools.update_wrapper(own, function)


def _refuse(verb: str, word: str, value: Any) -> None:
    """Refuse what is a key of recipes; others are Python's to refuse."""
    at = [section for section, table in SECTIONS.items() if word in table.model_fields]
    said = repr(value) if isinstance(value, bool | int | float | str) else "..."
    if word in Recipe.model_fields:
        written = [f'recipe={{"{word}": {said}}}']
    elif at:
        written = [f'recipe={{"{section}": {{"{word}": {said}}}}}' for section in at]
    else:
        return
    raise TypeError(
        f"{verb}() got an unexpected keyword argument '{word}', which is a key of recipes; write "
        f"{first_of(written).replace(', recipe', ' or recipe')} (docs/recipes.md)."
    )

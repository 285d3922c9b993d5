"""Which of the user's layers a layer was made from: recipes speak of those, whatever they become."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase
from typing import Any

ATTRIBUTE = "_kquant_origin"


def mark(op: Any, made_of: tuple[tuple[str, str], ...]) -> None:
    """Remember (name, class) of what a layer was made from, outermost first."""
    # an attribute and not a table by id: it goes where the layer goes, and ids are given again
    setattr(op, ATTRIBUTE, tuple(dict.fromkeys((*origins(op), *made_of))))


def origins(op: Any) -> tuple[tuple[str, str], ...]:
    """(name, class) of the layers that a layer was made from."""
    return tuple(getattr(op, ATTRIBUTE, ()))


def identities(op: Any) -> tuple[tuple[str, str], ...]:
    """(name, class) under which a recipe may speak of a layer: its own, and those of what it was made from."""
    return tuple(dict.fromkeys(((op.name, type(op).__name__), *origins(op))))


def patterns_of(given: str | Collection[str]) -> tuple[str, ...]:
    """One pattern may be given as it is."""
    return (given,) if isinstance(given, str) else tuple(given)


def fits(name: str, pattern: str) -> bool:
    """True where a pattern of recipes and arguments means this name: the name itself, brackets and all, or with * ? [].

    Example:
        >>> fits("stem_1", "stem_*"), fits("dense[0]", "dense[0]"), fits("dense0", "dense[0]")
        (True, True, True)
    """
    return name == pattern or fnmatchcase(name, pattern)

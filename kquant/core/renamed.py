"""Words of version 0.1 that are others now: arguments of public functions, options of commands.

A public name takes data as `data`, how many samples of them as `limit`, a file to write as `path`, a folder as
`folder`; see docs/architecture.md. What was called otherwise goes on for now, and says its new name.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any, ParamSpec, TypeVar

from kquant.core.messages import warn

P = ParamSpec("P")
R = TypeVar("R")

# Of each function or class: old word, new word.
ARGUMENTS: dict[str, dict[str, str]] = {
    "Monitor": {"log_dir": "folder", "samples": "data"},
    "Stream": {"data": "content"},
    "Stream.run": {"clip": "data"},
    "Stream.step": {"frames": "data"},
    "adaround": {"batches": "limit", "resume": "folder"},
    "analyze": {"batches": "limit", "samples": "limit"},
    "bundle": {"samples": "data"},
    "calibrate": {"batches": "limit"},
    "cell_samples": {"x": "data"},
    "cluster": {"skip": "protect"},
    "compress": {"batches": "limit", "output": "path"},
    "correct_bias": {"batches": "limit"},
    "dry_run": {"samples": "limit"},
    "equalize": {"batches": "limit"},
    "export": {"samples": "data"},
    "html": {"analysis": "result"},
    "observe": {"batches": "limit"},
    "predict": {"path_or_bytes": "path", "x": "data"},
    "prune": {"recipe_or_schedule": "recipe"},
    "reestimate": {"batches": "limit"},
    "scan_sparsity": {"samples": "limit", "target": "sparsity"},
    "sequential_mse": {"batches": "limit", "resume": "folder"},
    "set_encodings": {"given": "encodings"},
    "verify": {"samples": "limit"},
}
# Of each command likewise.
OPTIONS: dict[str, dict[str, str]] = {
    "analyze": {"--out": "--path", "--samples": "--limit"},
    "autotune": {"--out": "--folder", "--samples": "--limit"},
    "compress": {"--out": "--folder", "--samples": "--limit"},
    "correct": {"--out": "--path", "--samples": "--limit"},
    "demo": {"--out": "--folder"},
    "export": {"--out": "--folder", "--samples": "--limit"},
    "migrate": {"--out": "--path"},
    "predict": {"--out": "--path", "--samples": "--limit"},
    "scan": {"--out": "--path", "--samples": "--limit"},
    "verify": {"--samples": "--limit"},
}


class Batches(int):
    """A `limit` that counts batches, as `batches` did.

    Attributes:
        samples: a limit of samples beside it, or None.
    """

    samples: int | None

    def __new__(cls, count: int, samples: int | None = None) -> Batches:
        """So many batches, and no more than so many samples."""
        made = super().__new__(cls, count)
        made.samples = samples
        return made


def renamed(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function take its old words too; its signature, and what a type checker sees, has the new ones only.

    Args:
        function: one that `ARGUMENTS` names; of a class its `__init__`.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as seen:
        ...     warnings.simplefilter("always")
        ...     kquant.recipe_to_toml  # not in the table: only those in it are decorated
        ...     words_now = new_words(kquant.verify, {"samples": 8})
        <function recipe_to_toml at ...>
        >>> words_now, str(seen[0].message)
        ({'limit': 8}, 'verify: `samples` is called `limit` now; write limit=8.')
    """

    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        return function(*args, **(kwargs if words.isdisjoint(kwargs) else translate(function, kwargs)))

    # Only what it closes over, no global of this module: so it can belong to the module of what it wraps, where doctest
    # and `inspect.getmodule` look for it.
    words, translate = frozenset(ARGUMENTS[_name(function)]), new_words
    own = types.FunctionType(called.__code__, function.__globals__, function.__name__, None, called.__closure__)
    return functools.update_wrapper(own, function)


def _name(function: Callable[..., Any]) -> str:
    return function.__qualname__.removesuffix(".__init__")


def new_words(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by their new names, with a warning for each that came by its old one.

    Args:
        function: that they are for.
        given: by name.

    Raises:
        TypeError: the same argument by both names.
    """
    name = _name(function)
    # in a copy: what a caller gave stays as it is
    table, named = ARGUMENTS.get(name, {}), dict(given)
    for old, new in sorted(table.items(), reverse=True):  # samples before batches: a limit of both is one of batches
        if old not in named:
            continue
        value = named.pop(old)
        if new in given:
            raise TypeError(f"{name}: got `{new}` and `{old}`, which is its old name; give the first.")
        counts = old == "batches" and value is not None
        said = f"{new}={value!r}" if not counts and isinstance(value, str | int | float) else f"{new}=..."
        warn(
            f"{name}: `{old}` is called `{new}` now{', and counts samples' if counts else ''}; write {said}.",
            DeprecationWarning,
        )
        if counts and not isinstance(value, bool) and isinstance(value, Integral):
            beside = named.get(new, inspect.signature(function).parameters[new].default)
            value = Batches(int(value), beside)
        named[new] = value
    return named


def new_word(function: Callable[..., Any], word: str) -> str:
    """What an argument is called now.

    Example:
        >>> new_word(kquant.verify, "samples"), new_word(kquant.verify, "runtime")
        ('limit', 'runtime')
    """
    return ARGUMENTS.get(_name(function), {}).get(word, word)


def new_options(command: str, given: Sequence[str]) -> list[str]:
    """A command line by the new names of its options, with a warning for each that came by its old one.

    Args:
        command: its name.
        given: what stands behind it.

    Example:
        >>> new_options("verify", ["q.keras", "m.tflite", "--limit=8"])
        ['q.keras', 'm.tflite', '--limit=8']
    """
    table, pieces = OPTIONS.get(command, {}), list(given)
    for place, piece in enumerate(pieces):
        if piece == "--":
            break
        option, equals, value = piece.partition("=")
        if option in table:
            warn(f"kquant {command}: {option} is called {table[option]} now.", DeprecationWarning)
            pieces[place] = table[option] + equals + value
    return pieces

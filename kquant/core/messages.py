"""What messages say of names: the nearest one that exists, and the first of many."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

SHOWN = 5
PACKAGE = str(Path(__file__).parents[1])  # frames of files in it are not the caller's


def did_you_mean(name: object, known: Iterable[str], cutoff: float = 0.6, most: int = 1) -> str:
    """A sentence for behind a full stop, with its space; nothing where no name is near.

    Args:
        name: what was given.
        known: what there is.
        cutoff: how alike they must be, 0 to 1.
        most: how many to name.

    Example:
        >>> did_you_mean("int9", ["int8", "float16"]), did_you_mean("x", ["int8"])
        (" Did you mean 'int8'?", '')
    """
    near = difflib.get_close_matches(str(name), list(known), most, cutoff)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def fault_in_words(fault: Mapping[str, Any], keys: Iterable[str]) -> str:
    """One fault that pydantic found: the place, what was expected, and the nearest key for an unknown one.

    Args:
        fault: of `ValidationError.errors()`.
        keys: that there are at its place.

    Example:
        >>> fault_in_words({"type": "extra_forbidden", "loc": ("ADD", "tyme"), "msg": "", "input": 1}, ["time", "unit"])
        "ADD.tyme: unknown key. Did you mean 'time'?"
    """
    place = ".".join(str(part) for part in fault["loc"])
    if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        hint = did_you_mean(fault["loc"][-1], keys) or f" Expected one of {', '.join(keys)}"
        return f"{place}: unknown key.{hint}"
    if fault["type"] == "value_error":  # of a check of our own, whose words say what came
        return f"{place}: {fault['msg']}".removeprefix(": ").replace("Value error, ", "", 1)
    return f"{place}: {fault['msg']}, received {fault['input']!r}"


def check_known(said: str, name: str, known: Iterable[str]) -> None:
    """Refuse a name that is none of those that there are.

    Args:
        said: what the message starts with.
        name: what was given.
        known: what there is.

    Raises:
        ValueError: naming the nearest, and all.

    Example:
        >>> check_known("no step 'x'", "x", ["calibrate", "bias"])
        Traceback (most recent call last):
        ValueError: no step 'x'. There are: calibrate, bias.
    """
    names = list(known)
    if name not in names:
        raise ValueError(f"{said}.{did_you_mean(name, names)} There are: {', '.join(names)}.")


def first_of(names: Iterable[str], most: int = SHOWN) -> str:
    """The first names, and whether there are more.

    Example:
        >>> first_of(["a", "b"]), first_of("abc", 2)
        ('a, b', 'a, b and others')
    """
    given = list(names)
    return ", ".join(given[:most]) + " and others" * (len(given) > most)


def shortened(text: str, width: int = 240) -> str:
    """A text of so many characters at most, cut between two words.

    Example:
        >>> shortened("a long story", 10), shortened("short", 10)
        ('a long ...', 'short')
    """
    if len(text) <= width:
        return text
    kept = text[: width - 3]
    return f"{kept.rsplit(' ', 1)[0] if ' ' in kept else kept[:-1]} ..."


def absent(path: str | Path) -> str:
    """Why there is no file to read.

    Example:
        >>> absent("nowhere.tflite"), absent(".")
        ('no such file', 'a folder, not a file')
    """
    given = Path(path)
    if given.is_dir():
        return "a folder, not a file"
    return "a pipe, a socket or a device, not a file" if given.exists() else "no such file"


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line that called into this package, however deep inside the cause is found.

    Args:
        message: what is to be known, and done.
        category: of the warning.

    Example:
        >>> with warnings.catch_warnings(record=True) as seen:
        ...     warnings.simplefilter("always")
        ...     warn("the data are few")
        >>> str(seen[0].message), seen[0].category.__name__
        ('the data are few', 'UserWarning')
    """
    warnings.warn(message, category, stacklevel=_frames_inside())


def _frames_inside() -> int:
    """The `stacklevel`, for `warn`, of whoever called into this package: verbs get here at many depths, through
    decorators, generators and progress bars.
    """
    frame, depth, level = inspect.currentframe(), 0, 1
    while frame is not None:
        # The outermost frame of ours, since verbs call each other. `warn` lies at depth 1 and is stacklevel 1, so
        # the frame behind depth d is d + 1.
        if frame.f_code.co_filename.startswith(PACKAGE):
            level = depth + 1
        frame, depth = frame.f_back, depth + 1
    return level

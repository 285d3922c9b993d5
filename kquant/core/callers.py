"""Functions of a caller that a verb calls while it tries things: what they give, and what they raise.

What they raise is the caller's to see. A search that goes on where something of kquant's cannot be made asks
`is_callers` of every error that it would pass over.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from kquant.core.checks import shown

Raised = TypeVar("Raised", bound=BaseException)
Value = TypeVar("Value")
MARK = "_raised_by_a_caller"


def of_caller(error: Raised) -> Raised:
    """The error, known from now on as that of a caller's function.

    Example:
        >>> is_callers(of_caller(ValueError("labels")))
        True
    """
    setattr(error, MARK, True)
    return error


def is_callers(error: BaseException) -> bool:
    """True of an error that a caller's function raised, or that tells what it gave.

    Example:
        >>> is_callers(ValueError("no kernel"))
        False
    """
    return getattr(error, MARK, False)


def telling(function: Any) -> Any:
    """The function, whose errors are known as a caller's; None stays None.

    Example:
        >>> telling(None) is None, telling(len)([1, 2])
        (True, 2)
    """
    if function is None:
        return None

    @functools.wraps(function, updated=())
    def called(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:
            of_caller(error)
            raise

    return called


def each_told(values: Iterable[Value]) -> Iterator[Value]:
    """What a caller's function yields, one after the other; errors on the way are known as the caller's.

    Args:
        values: what it gave, read once.

    Example:
        >>> list(each_told(iter([1, 2])))
        [1, 2]
    """
    rest = iter(values)
    while True:
        try:
            value = next(rest)
        except StopIteration:
            return
        except Exception as error:
            of_caller(error)
            raise
        yield value  # outside: an error thrown in here is the reader's


def number_of(given: Any) -> float | None:
    """A number of any type, also a tensor's; None for what is none.

    Example:
        >>> number_of(3), number_of("0.9"), number_of([1, 2])
        (3.0, None, None)
    """
    try:
        return None if isinstance(given, str | bytes | bytearray) else float(given)
    except (TypeError, ValueError):  # nothing was returned, or several
        return None


def score_given(verb: str, which: str, given: Any) -> float:
    """What `evaluate` gave for a model, as a number.

    Args:
        verb: who asked.
        which: what the model is called in an error.
        given: any number, also a tensor.

    Raises:
        ValueError: it is no finite number; `is_callers` knows it.

    Example:
        >>> score_given("autotune", "the float model", "0.9")
        Traceback (most recent call last):
        ValueError: autotune: evaluate must return a finite number, higher is better. For the float model it returned \
'0.9'.
    """
    score = number_of(given)
    if score is None or not math.isfinite(score):
        raise of_caller(
            ValueError(
                f"{verb}: evaluate must return a finite number, higher is better. For {which} it returned "
                f"{shown(given)}."
            )
        )
    return score

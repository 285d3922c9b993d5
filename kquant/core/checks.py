"""Checks of what callers give: refuse it by name, before numpy does."""

from __future__ import annotations

import math
import numbers
import re
from functools import partial
from typing import Any, TypeVar

import numpy as np

Value = TypeVar("Value")


def present(value: Value | None, said: str) -> Value:
    """What has to be there by now.

    Args:
        value: what was looked up.
        said: the message where nothing is there.

    Raises:
        ValueError: it is None.

    Example:
        >>> present(3, "three is missing")
        3
    """
    if value is None:
        raise ValueError(said)
    return value


def static_length(x: Any, axis: int) -> int:
    """Of a tensor along an axis whose length is static; TensorFlow's types hold that of every axis for open.

    Example:
        >>> static_length(np.zeros((2, 3)), -1)
        3
    """
    return int(x.shape[axis])


def array_of(where: str, x: Any) -> np.ndarray:
    """`x` as an array.

    Args:
        where: what the message starts with.
        x: array, or list of arrays or numbers of one shape.

    Raises:
        ValueError: the samples in it have different shapes.

    Example:
        >>> array_of("data", [[1, 2], [3]])
        Traceback (most recent call last):
        ValueError: data: expected samples of one shape. Received: (2,), (1,). Pad them, or cut them, to the model's.
    """
    try:
        return np.asarray(x)
    except ValueError as error:
        shapes = list(dict.fromkeys(_shape(sample) for sample in x))
        raise ValueError(
            f"{where}: expected samples of one shape. Received: {', '.join(shapes[:4])}. Pad them, or cut them, to the "
            "model's."
        ) from error


def _shape(sample: Any) -> str:
    try:
        return str(np.shape(sample))
    except ValueError:
        return "a sample that is uneven itself"


def check_kind(where: str, name: str, value: Any, wanted: type) -> None:
    """Refuse what is not of a class of kquant's.

    Args:
        where: what the message starts with.
        name: of the argument.
        value: given for it.
        wanted: the class, public as `kquant.<its name>`.

    Raises:
        TypeError: it is of another.
    """
    if not isinstance(value, wanted):
        raise TypeError(f"{where}: {name} must be a kquant.{wanted.__name__}. Received: {type(value).__name__}.")


def is_within(drop: float, max_drop: float) -> bool:
    """True where no more is lost than allowed; what is printed as equal is equal.

    A share of answers has no exact decimal: 0.90 - 0.89 is more than 0.01 in floats.

    Example:
        >>> 0.90 - 0.89 <= 0.01, is_within(0.90 - 0.89, 0.01), is_within(0.0101, 0.01)
        (False, True, False)
    """
    return drop <= max_drop + 1e-9 * max(1.0, abs(max_drop))


def check_count(where: str, name: str, value: Any) -> None:
    """Refuse what does not count anything.

    Args:
        where: what the message starts with.
        name: of the argument.
        value: given for it.

    Raises:
        ValueError: not a whole number, or less than 1.

    Example:
        >>> check_count("calibrate", "limit", 2.5)
        Traceback (most recent call last):
        ValueError: calibrate: limit must be 1 or more. Received: 2.5.
    """
    # True is an Integral to Python, and limit=True a mistake
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{where}: {name} must be 1 or more. Received: {value!r}.")


UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def bytes_of(text: str) -> int | None:
    """`256KB` -> 262144, as the memories of devices are counted; `1.5MB`, or bytes without a unit. None: no such size.

    Example:
        >>> bytes_of("256KB"), bytes_of("1.5 MiB"), bytes_of("4096"), bytes_of("0.5"), bytes_of("many")
        (262144, 1572864, 4096, None, None)
    """
    given = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kmg])i?b?|b)?", text.strip().lower())
    amount = 0.0 if given is None else float(given[1]) * UNITS[given[2] or ""]
    # a part of a byte is a slip; 1.3KB is 1,331 bytes
    return None if given is None or amount < 1.0 or (not given[2] and amount != int(amount)) else int(amount)


def whole_budget(where: str, name: str, value: Any, of: str = "bytes", least: int = 1) -> int:
    """A budget as an int: whole floats and the whole numbers of NumPy are taken, too; of bytes "64KB" as well.

    Args:
        where: what the message starts with.
        name: of the argument.
        value: given for it.
        of: what it counts.
        least: that it may be.

    Raises:
        ValueError: no whole number, or less than that.

    Example:
        >>> whole_budget("estimate", "flash_bytes", 64e3)
        64000
        >>> whole_budget("estimate", "flash_bytes", "64KB")
        65536
        >>> whole_budget("estimate", "flash_bytes", 0.5)
        Traceback (most recent call last):
        ValueError: estimate: flash_bytes must be a whole number of bytes, 1 or more, like "64KB". Received: 0.5.
    """
    given, counts_bytes = value, of.startswith("bytes")
    if isinstance(value, str) and counts_bytes:
        value = bytes_of(value)
    number = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
    if not math.isfinite(number) or number != int(number) or number < least:
        like = '"64KB"' if counts_bytes else "1_000_000"
        raise ValueError(
            f"{where}: {name} must be a whole number of {of}, {least} or more, like {like}. Received: {shown(given)}."
        )
    return int(number)


def check_score(who: str, evaluate: Any, name: str = "evaluate") -> None:
    """Refuse what cannot be called in the place of a function that judges models, before anything runs.

    Args:
        who: the verb that errors name.
        evaluate: what its caller gave; None where it may be left out, and was.
        name: of the argument.

    Raises:
        ValueError: it is no function.

    Example:
        >>> check_score("autotune", "accuracy")
        Traceback (most recent call last):
        ValueError: autotune: evaluate is a function of a Keras model that returns a number, higher is better, like \
lambda m: float(np.mean(m.predict(x, verbose=0).argmax(-1) == labels)). Received: 'accuracy'.
    """
    if not callable(evaluate):
        raise ValueError(
            f"{who}: {name} is a function of a Keras model that returns a number, higher is better, like lambda m: "
            f"float(np.mean(m.predict(x, verbose=0).argmax(-1) == labels)). Received: {shown(evaluate)}."
        )


def shown(value: Any) -> str:
    """A value in a message: arrays by their shape, the rest as Python writes it, cut.

    Example:
        >>> shown(np.zeros((540, 10))), shown("accuracy")
        ('an array of float64 (540, 10)', "'accuracy'")
    """
    if hasattr(value, "shape") and hasattr(value, "dtype") and tuple(value.shape):
        return f"an array of {np.dtype(getattr(value.dtype, 'as_numpy_dtype', value.dtype))} {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]} ..."


def has_shape(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    """True where a shape is the expected one; None may be any length."""
    return len(shape) == len(expected) and all(e is None or e == n for n, e in zip(shape, expected, strict=True))


def wrong_shape(given: tuple[int, ...], expected: tuple[int | None, ...]) -> str:
    """What samples should be and are, as sentences: of one, since how many come at once is no fault.

    Args:
        given: of an array that was given, samples along its first axis.
        expected: of one sample.

    Example:
        >>> wrong_shape((64, 3), (4,))
        'expected samples of shape (4,). Received: samples of shape (3,).'
        >>> wrong_shape((8, 4), (None, 4)).partition(" Put")[0]
        'expected samples of shape (None, 4). Received: one of them, no batch.'
    """
    received = "one of them, no batch" if has_shape(given, expected) else f"samples of shape {tuple(given[1:])}"
    return f"expected samples of shape {tuple(expected)}. Received: {received}.{shape_hint(given, expected)}"


def shape_hint(given: tuple[int, ...], expected: tuple[int | None, ...]) -> str:
    """A sentence for behind a full stop, with its space, where a usual slip explains a shape; else nothing.

    Args:
        given: of an array that was given.
        expected: of one sample.

    Example:
        >>> shape_hint((64, 28, 28), (28, 28, 1))
        ' Put the channel behind: x[..., None].'
        >>> shape_hint((64, 784), (28, 28, 1))
        ' Give samples their shape: x.reshape(-1, 28, 28, 1).'
        >>> shape_hint((64, 3), (4,))
        ''
    """
    fits = partial(has_shape, expected=expected)
    if fits(given):
        return " Put a batch axis in front: x[None], or dataset.batch(32)."
    sample = given[1:]
    if fits((*sample, 1)):
        return " Put the channel behind: x[..., None]."
    if fits(sample[:-1]) and sample[-1] == 1:
        return " Take the last axis away: x[..., 0]."
    if len(sample) > 2 and fits((*sample[1:], sample[0])):
        return " Channels come last: np.moveaxis(x, 1, -1)."
    if len(sample) > 2 and sample[-1] == 1 and fits((*sample[:-1], 3)):
        return " Grey images for a model of colours: np.repeat(x, 3, axis=-1)."
    if len(sample) == 2 and fits((*sample, 3)):
        return " Grey images for a model of colours: np.repeat(x[..., None], 3, axis=-1)."
    known = [n for n in expected if n is not None]
    without_ones = tuple(n for n in sample if n != 1) == tuple(n for n in expected if n != 1)
    if len(known) == len(expected) > 1 and np.prod(known) == np.prod(sample) and (len(sample) == 1 or without_ones):
        return f" Give samples their shape: x.reshape(-1, {', '.join(map(str, known))})."
    if len(expected) == 1 and fits((int(np.prod(sample)),)):
        return " Make each sample flat: x.reshape(len(x), -1)."
    return ""

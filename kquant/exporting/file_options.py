"""What a file may be told of its form: one list for all who hand it on to `kquant.export`, which explains it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from kquant.core.messages import did_you_mean
from kquant.exporting.asked_storing import Compression
from kquant.tflite.edges import IO
from kquant.tflite.states import States


class FileOptions(TypedDict, total=False):
    """Arguments of `kquant.export`, by its names and with its defaults."""

    io: IO
    streaming: bool | int
    states: States
    compression: Compression
    decode_budget: int | None
    strip_names: bool
    shrink: bool


def check_file_options(who: str, given: Mapping[str, Any]) -> None:
    """Refuse what is none of them, as Python refuses an unknown argument.

    Args:
        who: takes them, for the message.
        given: by name.

    Raises:
        TypeError: an unknown name, with the nearest.

    Example:
        >>> check_file_options("bundle", {"stream": True})
        Traceback (most recent call last):
        TypeError: bundle() got an unexpected keyword argument 'stream'. Did you mean 'streaming'?
    """
    known = FileOptions.__annotations__
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        hint = did_you_mean(unknown, known)
        raise TypeError(f"{who}() got an unexpected keyword argument {unknown!r}.{hint}")

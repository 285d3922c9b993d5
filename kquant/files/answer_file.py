"""What a model's outputs mean (`Detection`, `Ctc`) as a TOML file, for commands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from kquant.core.messages import check_known
from kquant.files.untrusted import MOST_SETTINGS_BYTES, parse_toml, read_text

Answer = TypeVar("Answer")


def read_answer(
    kind: type[Answer],
    path: str | Path,
    where: str,
    prepared: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> Answer:
    """A dataclass by the names of its fields.

    Args:
        kind: the dataclass.
        path: of the file.
        where: what errors begin with.
        prepared: makes its arguments of what the file holds.

    Raises:
        ValueError: no such file, another key, or what `kind` refuses.
    """
    given = parse_toml(read_text(path, where, MOST_SETTINGS_BYTES), where)
    for key in given:
        check_known(f"{where}: no key '{key}'", key, [field.name for field in fields(kind)])  # pyright: ignore[reportArgumentType]
    given = prepared(given)
    try:
        return kind(**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error

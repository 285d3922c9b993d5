"""Tables of facts, TOML files with a row for each thing that they tell of: read and checked."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType
from typing import TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from kquant.core.messages import fault_in_words

Row = TypeVar("Row", bound=BaseModel)


def shipped(file: str, row: type[Row]) -> Mapping[str, Row]:
    """A table of `kquant/core`.

    Args:
        file: its name.
        row: what each of its rows says.
    """
    return parsed((resources.files("kquant.core") / file).read_text(encoding="utf-8"), file, row)


def parsed(text: str, file: str, row: type[Row]) -> Mapping[str, Row]:
    """Check the text of a table.

    Raises:
        ValueError: naming, for every fault, the place in it and the nearest known key.
    """
    try:
        table: TypeAdapter[dict[str, Row]] = TypeAdapter(dict[str, row])  # pyright: ignore[reportInvalidTypeForm]
        return MappingProxyType(table.validate_python(tomllib.loads(text)))
    except ValidationError as error:
        keys = list(row.model_fields)
        faults = "; ".join(fault_in_words(fault, keys) for fault in error.errors())
        raise ValueError(f"{file} does not fit its schema: {faults}.") from error

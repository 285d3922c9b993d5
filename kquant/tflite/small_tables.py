"""Flatbuffers of a schema that nobody generated code for: tables as numbers of fields and values, written and read.

    write_table(Table({0: "name", 2: [Table({1: np.float32([1, 2])})]}), b"M001")
        ->  bytes  ->  read_table(bytes, b"M001").text(0)

Format: https://flatbuffers.dev/internals; a field that a table does not have is 0, "" or empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import flatbuffers  # pyright: ignore[reportMissingTypeStubs]
import numpy as np
from flatbuffers import number_types  # pyright: ignore[reportMissingTypeStubs]
from flatbuffers.table import Table as Stored  # pyright: ignore[reportMissingTypeStubs]

MOST_SHARED = 16  # as often may a flatbuffer tell of its own bytes: strings and vectors may be shared


@dataclass(frozen=True)
class Number:
    """A number that stands in a table itself.

    Attributes:
        value: of it.
        type: "uint8", "int32" or "uint32".
    """

    value: int
    type: Literal["uint8", "int32", "uint32"] = "uint8"


@dataclass(frozen=True)
class Table:
    """A table to be written.

    Attributes:
        fields: number of the field in the schema -> text, number, table, several tables, or a vector of float32 or
            uint32. Empty texts and vectors are left out.
    """

    fields: Mapping[int, str | Number | Table | Sequence[Table] | np.ndarray]


def write_table(root: Table, identifier: bytes) -> bytes:
    """A flatbuffer with this table as its root.

    Args:
        root: of it.
        identifier: four letters.

    Example:
        >>> read_table(write_table(Table({1: "b"}), b"TEST"), b"TEST").text(1)
        'b'
    """
    builder: Any = flatbuffers.Builder(256)
    builder.Finish(_put(builder, root), identifier)
    return bytes(builder.Output())


def _put(builder: Any, table: Table) -> int:
    """What fields point at lies in front of the table."""
    held = {n: value for n, value in table.fields.items() if isinstance(value, Number | Table) or len(value)}
    places = {n: _child(builder, value) for n, value in held.items() if not isinstance(value, Number)}
    builder.StartObject(max(held, default=-1) + 1)
    for number, value in held.items():
        if isinstance(value, Number):
            getattr(builder, f"Prepend{value.type.capitalize()}Slot")(number, value.value, 0)
        else:
            builder.PrependUOffsetTRelativeSlot(number, places[number], 0)
    return builder.EndObject()


def _child(builder: Any, value: Any) -> int:
    if isinstance(value, str):
        return builder.CreateString(value)
    if isinstance(value, Table):
        return _put(builder, value)
    if isinstance(value, np.ndarray):
        return builder.CreateNumpyVector(value)
    offsets = [_put(builder, one) for one in value]
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return builder.EndVector()


class Fields:
    """The fields of a table that lies in a flatbuffer; all tables of one share what may still be read of it.

    Args:
        stored: where it lies.
        left: bytes that may still be told of, in a list of one.
    """

    def __init__(self, stored: Any, left: list[int]) -> None:
        self._stored, self._left = stored, left

    def _at(self, number: int) -> int:
        offset = self._stored.Offset(4 + 2 * number)
        return offset and offset + self._stored.Pos

    def _count(self, size: int) -> None:
        self._left[0] -= size
        if self._left[0] < 0:
            raise ValueError("it tells of far more than it holds")

    def text(self, number: int) -> str:
        """A string."""
        at = self._at(number)
        raw: bytes = self._stored.String(at) if at else b""
        self._count(len(raw))
        return raw.decode("utf-8")

    def byte(self, number: int) -> int:
        """A number of one byte."""
        at = self._at(number)
        return int(self._stored.Get(number_types.Uint8Flags, at)) if at else 0

    def table(self, number: int) -> Fields | None:
        """A table; None where there is none."""
        at = self._at(number)
        return self._below(at) if at else None

    def tables(self, number: int) -> list[Fields]:
        """Several."""
        start, count = self._vector(number)
        self._count(4 * count)
        return [self._below(start + 4 * n) for n in range(count)]

    def floats(self, number: int) -> tuple[float, ...]:
        """A vector of float32."""
        start, count = self._vector(number)
        self._count(4 * count)
        return tuple(float(self._stored.Get(number_types.Float32Flags, start + 4 * n)) for n in range(count))

    def _vector(self, number: int) -> tuple[int, int]:
        offset = self._stored.Offset(4 + 2 * number)
        return (self._stored.Vector(offset), self._stored.VectorLen(offset)) if offset else (0, 0)

    def _below(self, at: int) -> Fields:
        return Fields(Stored(self._stored.Bytes, self._stored.Indirect(at)), self._left)


def read_table(content: bytes, identifier: bytes) -> Fields:
    """The root of a flatbuffer.

    Args:
        content: of it.
        identifier: that it has to have.

    Raises:
        ValueError: another identifier; damaged bytes raise what the flatbuffers library raises, see `reader.DAMAGE`.
    """
    if content[4:8] != identifier:
        raise ValueError(f"bytes 4 to 8 must read {identifier.decode()}. Received: {content[4:8]!r}")
    start = int.from_bytes(content[:4], "little")
    return Fields(Stored(bytearray(content), start), [MOST_SHARED * len(content)])

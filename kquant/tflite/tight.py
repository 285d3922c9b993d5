"""A flatbuffer in few bytes: what is equal is written once, and hardly anything lies idle between.

`Tight` stands in for the builder that the schema's generated code packs its objects with. It notes tables, vectors and
strings, equal ones as one, and lays them out when all of them are known:

    offset of the root | identifier | whatever the next place suits: tables, each behind those that lead to it, vectors,
                                      layouts of tables

A flatbuffer's offsets lead forward, to a table's layout either way, and a vector's contents lie at multiples of their
alignment, 16 bytes for those of tensors. So small things (quantization parameters, short vectors) wait until they fill
the gap in front of a tensor's contents; of the rest, the next is what leaves the least gap.

Format: https://flatbuffers.dev/internals. Readers find what they find in any other file: tables may be shared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

OFFSET = 4  # bytes of an offset, of a vector's length, of a table's way to its layout
BEGIN = 8  # where the root is, and the identifier
COARSE = 16  # alignment that is worth filling gaps for
FILLERS = 3  # things at once
SIZES = {"Bool": "?", "Int8": "i1", "Uint8": "u1", "Uint16": "u2", "Int32": "i4", "Uint32": "u4", "Float32": "f4"} | {
    "Int64": "i8",
    "Uint64": "u8",
}


@dataclass(frozen=True)
class _Piece:
    """Something that lies in the file as one.

    Attributes:
        content: its bytes; offsets are zeros in it.
        align: of the byte at `skip`.
        skip: bytes in front of what is aligned: a vector's length.
        links: place in it, and the piece that an offset there leads to; of a table, the first is its layout.
        is_table: the first link leads back.
    """

    content: bytes
    align: int
    skip: int = 0
    links: tuple[tuple[int, int], ...] = ()
    is_table: bool = False

    def gap(self, at: int) -> int:
        """Bytes to leave out from a place on."""
        return -(at + self.skip) % self.align

    def end(self, at: int) -> int:
        """Behind it, where it is written from a place on."""
        return at + self.gap(at) + len(self.content)


class Tight:
    """What the generated code asks of a builder, by the names that it has there.

    Example:
        >>> from kquant.tflite.tight import Tight
        >>> builder = Tight()
        >>> builder.CreateString("net") == builder.CreateString("net")
        True
    """

    def __init__(self) -> None:
        self.pieces: list[_Piece] = [_Piece(b"", 1)]  # numbers are offsets to the generated code, and 0 is none
        self.known: dict[_Piece, int] = {}
        self.fields: dict[int, bytes | int] = {}
        self.held: list[bytes | int] = []
        self.align = 1
        self.written = b""

    def _number(self, piece: _Piece) -> int:
        if piece not in self.known:
            self.known[piece] = len(self.pieces)
            self.pieces.append(piece)
        return self.known[piece]

    def CreateString(self, text: str | bytes) -> int:
        """Length, letters, a zero."""
        letters = text.encode() if isinstance(text, str) else text
        return self._number(_Piece(np.uint32(len(letters)).tobytes() + letters + b"\0", OFFSET))

    def CreateNumpyVector(self, x: np.ndarray) -> int:
        """Length and numbers."""
        return self._vector(x.tobytes(), x.size, x.itemsize)

    def contents(self, data: bytes, align: int) -> int:
        """A vector of bytes at a multiple of an alignment."""
        return self._vector(data, len(data), align)

    def _vector(self, data: bytes, count: int, align: int) -> int:
        return self._number(_Piece(np.uint32(count).tobytes() + data, max(align, OFFSET), OFFSET))

    def StartVector(self, size: int, count: int, align: int) -> None:
        """What follows are its elements, the last first."""
        self.held, self.align = [], max(size, align)

    def PrependUOffsetTRelative(self, to: int) -> None:
        """An element that lies elsewhere."""
        self.held.append(to)

    def EndVector(self) -> int:
        """Number of the vector."""
        elements = self.held[::-1]
        if all(isinstance(e, bytes) for e in elements):
            return self._vector(b"".join(e for e in elements if isinstance(e, bytes)), len(elements), self.align)
        links = tuple((OFFSET * (1 + i), e) for i, e in enumerate(elements) if isinstance(e, int))
        return self._number(
            _Piece(np.uint32(len(elements)).tobytes() + bytes(OFFSET * len(elements)), OFFSET, OFFSET, links)
        )

    def StartObject(self, count: int) -> None:
        """What follows are its fields."""
        self.fields = {}

    def PrependUOffsetTRelativeSlot(self, slot: int, to: int, default: int) -> None:
        """A field that lies elsewhere."""
        if to != default:
            self.fields[slot] = int(to)

    def __getattr__(self, name: str) -> Any:
        """`PrependInt32Slot(slot, value, default)` and `PrependInt32(value)`, and those of other types."""
        kind = name.removeprefix("Prepend").removesuffix("Slot")
        if not name.startswith("Prepend") or kind not in SIZES:
            raise AttributeError(name)
        number = np.dtype(SIZES[kind]).type

        def field(slot: int, value: Any, default: Any) -> None:
            if value != default:
                self.fields[slot] = number(value).tobytes()

        def element(value: Any) -> None:
            self.held.append(number(value).tobytes())

        return field if name.endswith("Slot") else element

    def EndObject(self) -> int:
        """Number of the table: its way to the layout, then its fields, wide ones first, so that none is between."""
        wide = {slot: OFFSET if isinstance(held, int) else len(held) for slot, held in self.fields.items()}
        order = sorted(wide, key=lambda slot: (-wide[slot], slot))
        align = max([OFFSET, *wide.values()])
        content, places, links = bytearray(OFFSET), [0] * (max(wide, default=-1) + 1), list[tuple[int, int]]()
        for slot in order:
            held = self.fields[slot]
            content += bytes(-len(content) % wide[slot])
            places[slot] = len(content)
            if isinstance(held, int):
                links.append((len(content), held))
            content += bytes(OFFSET) if isinstance(held, int) else held
        layout = np.array([2 * (2 + len(places)), len(content), *places], np.uint16).tobytes()
        first = (0, self._number(_Piece(layout, 2)))
        return self._number(_Piece(bytes(content), align, 0, (first, *links), is_table=True))

    def Finish(self, root: int, identifier: bytes) -> None:
        """Lay all of it out."""
        self.written = _laid_out(self.pieces, root, identifier)

    def Output(self) -> bytes:
        """The file."""
        return self.written


def _laid_out(pieces: Sequence[_Piece], root: int, identifier: bytes) -> bytes:
    """Every piece behind all that lead to it."""
    waits = Counter(to for number in _reached(pieces, root) for to in {to for _, to in _forward(pieces[number])})
    layouts = {piece.links[0][1] for number in _reached(pieces, root) if (piece := pieces[number]).is_table}
    ready, places = {root, *layouts}, dict[int, int]()
    written = bytearray(BEGIN)
    while ready:
        for number in _next(pieces, ready, len(written)):
            piece = pieces[number]
            written += bytes(piece.gap(len(written)))
            places[number] = len(written)
            written += piece.content
            ready.remove(number)
            for to in {to for _, to in _forward(piece)}:
                waits[to] -= 1
                if not waits[to]:
                    ready.add(to)
    _join(written, pieces, places)
    written[:BEGIN] = np.uint32(places[root]).tobytes() + identifier
    return bytes(written)


def _forward(piece: _Piece) -> tuple[tuple[int, int], ...]:
    return piece.links[1:] if piece.is_table else piece.links


def _reached(pieces: Sequence[_Piece], root: int) -> set[int]:
    reached, new = {root}, [root]
    while new:
        new = [to for number in new for _, to in _forward(pieces[number]) if to not in reached and not reached.add(to)]
    return reached


def _next(pieces: Sequence[_Piece], ready: Iterable[int], at: int) -> tuple[int, ...]:
    """What to write now: small things wait for the gaps in front of what has a coarse alignment."""

    def best(numbers: Sequence[int]) -> tuple[int, ...]:
        return (min(numbers, key=lambda n: (pieces[n].gap(at), pieces[n].end(at) % OFFSET, -pieces[n].align, n)),)

    coarse = [n for n in sorted(ready) if pieces[n].align >= COARSE]
    small = [n for n in sorted(ready) if _is_small(pieces, n)]
    rest = [n for n in sorted(ready) if n not in {*coarse, *small}]
    if rest or not coarse:
        return best(rest or small)
    # of each size and alignment one, as others do no better
    kinds = {(len(pieces[n].content), pieces[n].align, pieces[n].skip): n for n in small}.values()
    options = (few for count in range(FILLERS + 1) for few in combinations(kinds, count))
    fitting = next((few for few in options if _lost(pieces, (*few, coarse[0]), at) == 0), ())
    return (*fitting, coarse[0])


def _is_small(pieces: Sequence[_Piece], number: int) -> bool:
    """Fits into a gap, and hardly anything waits for it: vectors of numbers at most."""
    piece = pieces[number]
    waiting = [pieces[to] for _, to in _forward(piece)]
    return (
        piece.align == OFFSET
        and len(piece.content) <= COARSE - OFFSET
        and not len(piece.content) % OFFSET
        and not any(below.links or below.align >= COARSE for below in waiting)
    )


def _lost(pieces: Sequence[_Piece], order: Sequence[int], at: int) -> int:
    """Bytes between some things, one behind the other."""
    lost = 0
    for number in order:
        lost += pieces[number].gap(at)
        at = pieces[number].end(at)
    return lost


def _join(written: bytearray, pieces: Sequence[_Piece], places: dict[int, int]) -> None:
    """Write offsets: to a table's layout backwards, to all else forward."""
    for number, start in places.items():
        piece = pieces[number]
        for where, to in piece.links:
            at = start + where
            back = piece.is_table and not where
            value = np.int32(start - places[to]) if back else np.uint32(places[to] - at)
            written[at : at + OFFSET] = value.tobytes()

"""Weights as Huffman codes: the encoding that TensorFlow Lite Micro's DECODE operator reads as its kind 1.

A tensor becomes two. Its codes, one behind the other, the highest bit of a byte first; and a header of 16 bytes with
tables behind it, in which the decoder looks up as many bits as the first one takes, then as many as an entry says:

    entry of 16 bits   1 | bits used of this table (4) | symbol (11)     found; the bits not used are put back
                       0 | bits of the next, less one (4) | entries to go on by, from this one (11)
    of 32 bits         the same with 27 in place of 11; int16 needs it, int8 is written with 16

Byte 5 of the header: the bits of the first table less one in its upper half, in its lower one 1 for entries of 32 bits.
Source: `micro/kernels/decode_state_huffman.{h,cc}` and its test in tflite-micro, 90b983c (2026-08-20). Their Python
encoder (`micro/compression/huffman.py`) was not written then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from kquant.tflite.prefix_code import (
    Entry,
    Tables,
    canonical_codes,
    canonical_order,
    code_lengths,
    lay_out,
    plan_tables,
    tree_of,
)
from kquant.tflite.storage import HEADER_BYTES, Storage, Stored

LONGEST = 16  # code that is written
LOOKED_UP = 12  # bits that `load` takes at once; few weights have longer codes
WORD = 4  # the decoder reads words of so many bytes
CHUNK = 1 << 18  # weights that are packed at once


@dataclass(frozen=True)
class _Entries:
    """How a table's entries lie in bytes."""

    dtype: str
    leaf_bit: int
    shift: int

    @property
    def bytes(self) -> int:
        return np.dtype(self.dtype).itemsize

    @property
    def most(self) -> int:
        """The largest value: of a symbol, or of entries to go on by."""
        return (1 << self.shift) - 1


SMALL, LARGE = _Entries("<u2", 1 << 15, 11), _Entries("<u4", 1 << 31, 27)


@dataclass(frozen=True, eq=False)
class Code:
    """A Huffman code for a tensor.

    Attributes:
        symbols: the distinct codes of the tensor, rising.
        lengths: bits of each.
        tables: that read it; None for a single symbol, which takes one bit.
        body_bits: of all weights.
    """

    symbols: np.ndarray
    lengths: np.ndarray
    tables: Tables | None
    body_bits: int


def find_code(codes: np.ndarray) -> Code:
    """The code with the fewest bytes, tables included.

    Args:
        codes: int8 or int16, of any shape, at least one.

    Example:
        >>> from kquant.tflite.huffman_format import find_code
        >>> code = find_code(np.int8([0] * 12 + [1] * 3 + [-1]))
        >>> code.symbols.tolist(), code.lengths.tolist(), code.body_bits
        ([-1, 0, 1], [2, 1, 2], 20)
    """
    least = int(codes.min())
    histogram = np.bincount(codes.reshape(-1).astype(np.int32) - least)
    (places,) = np.nonzero(histogram)
    symbols, counts = places + least, histogram[places]
    if len(symbols) == 1:
        # The reference kernel would read a code of no bits; whether others do is not known.
        return Code(symbols, np.ones(1, np.int64), None, codes.size)
    entries = _entries(codes.dtype)
    shortest = max(1, (len(symbols) - 1).bit_length())
    priced: list[tuple[float, Code]] = []
    # A lower limit costs bits and saves tables.
    for limit in range(shortest, LONGEST + 1):
        lengths = code_lengths(counts, limit)
        tables = plan_tables(tree_of(lengths, counts), entries.bytes, entries.most)
        bits = int(lengths @ counts)
        cost = bits / 8 + tables.entries * entries.bytes + tables.lookups / 256
        priced.append((cost, Code(symbols, lengths, tables, bits)))
        if lengths.max() < limit:
            break  # the best code is not longer
    return min(priced, key=lambda pair: pair[0])[1]


def _entries(dtype: np.dtype) -> _Entries:
    return SMALL if dtype == np.int8 else LARGE


def table_bytes(code: Code, entries: _Entries) -> tuple[bytes, int, np.ndarray]:
    """The tables, the bits of the first one, and how far the decoder reads from where each symbol's code begins."""
    laid = [Entry(0, 1)] * 2 if code.tables is None else lay_out(code.tables)
    first = 1 if code.tables is None else int(code.tables.widths[0][0])
    order = canonical_order(code.lengths)
    written, reach = np.zeros(len(laid), entries.dtype), np.zeros(len(order), np.int64)
    # where tables begin -> their bits, and how far the decoder has read behind one
    begun = {0: (first, first)}
    here = (first, first)
    for place, entry in enumerate(laid):
        here = begun.get(place, here)
        if entry.leaf < 0:
            written[place] = (entry.bits - 1) << entries.shift | (entry.table - place)
            begun[entry.table] = (entry.bits, here[1] + entry.bits)
            continue
        symbol = int(code.symbols[order[entry.leaf]])
        mask = 0xFF if entries is SMALL else 0xFFFF
        written[place] = entries.leaf_bit | entry.bits << entries.shift | symbol & mask
        reach[order[entry.leaf]] = here[1]
    return written.tobytes(), first, reach


def _steps(code: Code) -> np.ndarray:
    """int64[symbols]: tables that the decoder goes through for each."""
    order, steps = canonical_order(code.lengths), np.ones(len(code.symbols), np.int64)
    begun, here = {0: 1}, 1  # where tables begin -> the how many-th they are
    for place, entry in enumerate([] if code.tables is None else lay_out(code.tables)):
        here = begun.get(place, here)
        if entry.leaf < 0:
            begun[entry.table] = here + 1
        else:
            steps[order[entry.leaf]] = here
    return steps


def pack_codes(codes: np.ndarray, code: Code, reach: np.ndarray) -> bytes:
    """The codes of all weights; padded to whole words, as far as the decoder reads ahead."""
    places = np.searchsorted(code.symbols, codes.reshape(-1))
    longest = int(code.lengths.max())
    column = np.arange(longest)
    # Each code at the left of a row; what is behind it is left out when rows are joined.
    aligned = canonical_codes(code.lengths) << (longest - code.lengths)
    bits = (aligned[:, None] >> (longest - 1 - column) & 1).astype(np.uint8)
    used = column < code.lengths[:, None]
    chunks = [places[i : i + CHUNK] for i in range(0, len(places), CHUNK)]
    stream = np.concatenate([bits[chunk][used[chunk]] for chunk in chunks])
    # Every code has a bit at least, so that no earlier one reads further than these.
    last = places[-2 * LONGEST :]
    starts = len(stream) - np.cumsum(code.lengths[last][::-1])[::-1]
    end = int((starts + reach[last]).max())
    return np.packbits(stream).tobytes().ljust(-(-end // (8 * WORD)) * WORD, b"\0")


@dataclass(frozen=True)
class Huffman(Storage):
    """Which weights `kquant.export` stores in Huffman codes."""

    key: ClassVar[str] = "huffman"
    title: ClassVar[str] = "Huffman codes"
    column: ClassVar[str] = "Huffman"
    kind: ClassVar[int] = 1
    remedy: ClassVar[str] = (
        "all codes occur about as often, or there are too few weights for a table. Weights of 4 bits, clustered or "
        "pruned ones get smaller; kquant.layer_bytes counts bytes of a plain export"
    )

    def store(self, codes: np.ndarray, axis: int | None, zero_points: np.ndarray) -> Stored | None:
        """One code for the whole tensor; int8 or int16."""
        if not codes.size:
            return None
        code, entries = find_code(codes), _entries(codes.dtype)
        tables, first, reach = table_bytes(code, entries)
        body = pack_codes(codes, code, reach)
        fields = bytes([(first - 1) << 4 | (entries is LARGE)])
        lookups = codes.size if code.tables is None else code.tables.lookups
        what = f"codes of {code.lengths.min()} to {code.lengths.max()} bits and tables of {len(tables)} bytes"
        return Stored(body, self.header(fields, tables), what, lookups)

    def store_together(self, tensors: Sequence[np.ndarray]) -> list[Stored] | None:
        """One code for all of them: longer than each one's own, and its tables are there once."""
        if not all(codes.size for codes in tensors):
            return None
        whole = np.concatenate([codes.reshape(-1) for codes in tensors])
        code, entries = find_code(whole), _entries(whole.dtype)
        tables, first, reach = table_bytes(code, entries)
        header = self.header(bytes([(first - 1) << 4 | (entries is LARGE)]), tables)
        steps, what = _steps(code), f"codes that share tables of {len(tables)} bytes with other weights"
        places = (np.searchsorted(code.symbols, codes.reshape(-1)) for codes in tensors)
        taken = [int(steps[at].sum()) for at in places]
        return [Stored(pack_codes(c, code, reach), header, what, n) for c, n in zip(tensors, taken, strict=True)]

    def refusal(self, codes: np.ndarray, axis: int | None) -> str:
        """Nothing to store."""
        return "has no weights"

    @classmethod
    def load(
        cls, body: bytes, header: bytes, shape: tuple[int, ...], dtype: str, zero_points: tuple[int, ...], axis: int
    ) -> np.ndarray:
        """Reads as the kernel does, table by table; codes of few bits are looked up at once."""
        if not cls.reads(header):
            raise ValueError(f"Huffman: not a header of Huffman codes, version 1. Received: {header[:16].hex()}.")
        count = int(np.prod(shape, dtype=np.int64))
        if count > 8 * len(body):
            raise ValueError(f"Huffman: {count} weights take a bit each. Received: {len(body)} bytes.")
        return np.array(_symbols(body, count, _Reader(header)), np.int64).astype(dtype).reshape(shape)

    @classmethod
    def layout(cls, header: bytes, shape: tuple[int, ...]) -> tuple[int, int]:
        """Bits differ; the number of tables is not told, they are one block."""
        return 0, 1


def _symbols(body: bytes, count: int, reader: _Reader) -> list[int]:
    windows = np.arange(1 << LOOKED_UP, dtype=np.uint64) << np.uint64(64 - LOOKED_UP)
    known, bits = (column.tolist() for column in reader.read(windows, LOOKED_UP))
    padded = np.frombuffer(body + bytes(16), np.uint8).astype(np.int64)
    # the three bytes from each on: as many bits from any bit of the first
    threes = (padded[:-2] << 16 | padded[1:-1] << 8 | padded[2:]).tolist()
    at, end = 0, 8 * len(body)
    symbols: list[int] = []
    for _ in range(count):
        window = threes[at >> 3] >> (24 - LOOKED_UP - (at & 7)) & (1 << LOOKED_UP) - 1
        symbol, length = known[window], bits[window]
        if not length:
            symbol, length = (int(a[0]) for a in reader.read(np.array([_window(body, at)], np.uint64), 64))
        at += length
        if not length or at > end:
            raise ValueError(f"Huffman: the codes of {count} weights do not end in {len(body)} bytes.")
        symbols.append(symbol)
    return symbols


def _window(body: bytes, at: int) -> int:
    """64 bits from a bit on; zeros behind the end."""
    nine = int.from_bytes(body[at >> 3 : (at >> 3) + 9].ljust(9, b"\0"), "big")
    return nine >> (8 - (at & 7)) & (1 << 64) - 1


class _Reader:
    """The tables of a header."""

    def __init__(self, header: bytes) -> None:
        self.form = LARGE if header[5] & 1 else SMALL
        self.first = (header[5] >> 4) + 1
        content = header[HEADER_BYTES:]
        if len(content) < self.form.bytes << self.first or len(content) % self.form.bytes:
            raise ValueError(
                f"Huffman: the first table has {1 << self.first} entries of {self.form.bytes} bytes. "
                f"Received: {len(content)} bytes."
            )
        self.table = np.frombuffer(content, self.form.dtype).astype(np.int64)

    def read(self, windows: np.ndarray, known: int) -> tuple[np.ndarray, np.ndarray]:
        """Symbol and bits of the code at the beginning of each window.

        Args:
            windows: uint64[n]; a code whose tables take more than 57 bits is not read.
            known: bits of a window that are there.

        Returns:
            int64[n] twice; 0 bits where tables lead nowhere, or where the code has more than the bits that are there.
        """
        width = np.full(len(windows), self.first)
        taken, place = np.zeros(len(windows), np.int64), np.zeros(len(windows), np.int64)
        symbols, lengths = np.zeros(len(windows), np.int64), np.zeros(len(windows), np.int64)
        open_ = np.arange(len(windows))
        while len(open_):
            shifts = (64 - taken[open_] - width[open_]).astype(np.uint64)
            place[open_] += (windows[open_] >> shifts).astype(np.int64) & ((1 << width[open_]) - 1)
            open_ = open_[place[open_] < len(self.table)]
            entry = self.table[place[open_]]
            bits, value = entry >> self.form.shift & 15, entry & self.form.most
            is_leaf = entry >= self.form.leaf_bit
            done = open_[is_leaf]
            used = taken[done] + np.minimum(bits[is_leaf], width[done])
            symbols[done], lengths[done] = value[is_leaf], np.where(used <= known, used, 0)
            bits, value, open_ = bits[~is_leaf], value[~is_leaf], open_[~is_leaf]
            taken[open_] += width[open_]
            width[open_], place[open_] = bits + 1, place[open_] + value
            open_ = open_[taken[open_] + width[open_] <= 57]
        return symbols, lengths

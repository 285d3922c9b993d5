"""Weights as indices into small tables: the encoding that TensorFlow Lite Micro's DECODE operator reads.

A tensor becomes two: its indices, 1 to 7 bits each, and a header of 16 bytes with the tables behind it. Each table
holds the distinct codes of the whole tensor or of one channel. Byte layout: `decode.py` and `lut.py` in
`tensorflow/lite/micro/compression` of tflite-micro, version 1 of both headers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from kquant.tflite.storage import HEADER_BYTES, Storage, Stored

MAX_BITS = 7
_ONE_TABLE = 15


@dataclass(frozen=True, eq=False)
class Lut:
    """A tensor behind tables.

    Attributes:
        bits: of one index.
        axis: of the channels that have a table each; None for one table.
        indices: uint8, in the shape of the tensor.
        tables: int8[tables, entries], shorter ones filled with zeros.
    """

    bits: int
    axis: int | None
    indices: np.ndarray
    tables: np.ndarray

    @property
    def size_bytes(self) -> int:
        """Bytes that both stored tensors take: `ceil(n bits / 8) + 16 + tables`."""
        return -(-self.indices.size * self.bits // 8) + HEADER_BYTES + self.tables.nbytes


def encode(codes: np.ndarray, axis: int | None = None) -> Lut | None:
    """Tables and indices of a tensor of codes.

    Args:
        codes: int8 of any shape.
        axis: one table for each position on this axis, the first or the last; None: one table.

    Returns:
        The encoding with the fewest bits, or None where a table would need more than 128 entries.

    Raises:
        ValueError: an axis that the kernel does not read.

    Example:
        >>> from kquant.tflite.lut_format import encode
        >>> lut = encode(np.int8([[5, 5, 9], [1, 2, 3]]), axis=0)
        >>> lut.bits, lut.tables.tolist(), lut.indices.tolist()
        (2, [[5, 9, 0], [1, 2, 3]], [[0, 0, 1], [0, 1, 2]])
    """
    if axis is not None and axis not in (0, codes.ndim - 1):
        raise ValueError(f"lut: tables follow the first or the last axis. Received: axis {axis} of {codes.ndim}.")
    rows = _rows(codes, axis)
    there = present(rows)
    entries = int(there.sum(axis=1).max())
    if entries > 1 << MAX_BITS:
        return None
    # One length for all tables, for the header tells a single stride.
    tables = np.zeros((len(rows), entries), np.int8)
    # Row by row in rising order of the codes, so that the rank of a code is its index in its table.
    table, code = np.nonzero(there)
    rank = np.cumsum(there, axis=1) - 1
    tables[table, rank[table, code]] = code - 128
    # int8 + 128 would wrap around.
    indices = rank[np.arange(len(rows))[:, None], rows + np.int16(128)].astype(np.uint8)
    if axis is not None:
        rest = [n for i, n in enumerate(codes.shape) if i != axis]
        indices = np.moveaxis(indices.reshape(codes.shape[axis], *rest), 0, axis)
    # A single code needs no bit, but the kernel reads at least one.
    return Lut(max(1, (entries - 1).bit_length()), axis, np.ascontiguousarray(indices.reshape(codes.shape)), tables)


def _rows(codes: np.ndarray, axis: int | None) -> np.ndarray:
    """[tables, codes of each]"""
    return codes.reshape(1, -1) if axis is None else np.moveaxis(codes, axis, 0).reshape(codes.shape[axis], -1)


def present(rows: np.ndarray) -> np.ndarray:
    """Which int8 codes occur in each row: bool[rows, 256], the code -128 first."""
    there = np.zeros((len(rows), 256), bool)
    there[np.arange(len(rows))[:, None], rows + np.int16(128)] = True
    return there


def distinct(codes: np.ndarray, axis: int | None = None) -> int:
    """The largest number of distinct int8 codes of a position on `axis`, or of the whole tensor.

    Example:
        >>> from kquant.tflite.lut_format import distinct
        >>> codes = np.int8([[5, 5, 9], [1, 2, 3]])
        >>> distinct(codes), distinct(codes, 0)
        (5, 3)
    """
    return int(present(_rows(codes, axis)).sum(axis=1).max(initial=0))


def smallest(codes: np.ndarray, axis: int | None) -> Lut | None:
    """The encoding with the fewest bytes: one table, or one for each channel on `axis`.

    Example:
        >>> from kquant.tflite.lut_format import smallest
        >>> smallest(np.tile(np.int8([-1, 0, 1, 1]), (8, 1)), axis=0).axis is None  # all rows have the same codes
        True
    """
    axes = (None,) if axis is None or axis not in (0, codes.ndim - 1) else (None, axis)
    encoded = [lut for lut in (encode(codes, a) for a in axes) if lut is not None]
    return min(encoded, key=lambda lut: lut.size_bytes, default=None)


def pack(indices: np.ndarray, bits: int) -> bytes:
    """Indices one behind the other, the highest bit first; the last byte ends in zeros.

    Example:
        >>> from kquant.tflite.lut_format import pack
        >>> pack(np.uint8([7, 0, 3, 2]), 3).hex()  # 111 000 011 010 0000
        'e1a0'
    """
    shifts = np.arange(bits - 1, -1, -1, dtype=np.uint8)
    return np.packbits((indices.reshape(-1, 1) >> shifts) & 1).tobytes()


def unpack(data: bytes, bits: int, count: int) -> np.ndarray:
    """`pack` back: uint8[count]."""
    if len(data) != -(-count * bits // 8):
        raise ValueError(
            f"lut: {count} indices of {bits} bits are {-(-count * bits // 8)} bytes. Received: {len(data)}."
        )
    taken = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits).reshape(count, bits)
    return taken @ (1 << np.arange(bits - 1, -1, -1)).astype(np.uint8)


def header(lut: Lut) -> bytes:
    """The second stored tensor: 16 bytes that tell the format, then the tables.

    Byte 5: axis (15: one table) and bits; 6: entries of a table. With one table the entries read 0: releases that take
    the number of tables from the scales then read the same one for every channel.
    """
    axis = _ONE_TABLE if lut.axis is None else lut.axis
    stride = 0 if lut.axis is None else lut.tables.shape[1]
    return LookUpTables.header(bytes([axis << 4 | lut.bits, stride]), lut.tables.tobytes())


def decode(indices: bytes, tables: bytes, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """The codes that both stored tensors stand for.

    Args:
        indices: as `pack` makes them.
        tables: as `header` makes them.
        shape: of the tensor.
        dtype: of the tensor, numpy's name.

    Returns:
        The codes.

    Raises:
        ValueError: not look-up tables, or lengths that do not fit.

    Example:
        >>> from kquant.tflite.lut_format import decode, encode, header, pack
        >>> lut = encode(np.int8([[5, 5, 9], [1, 2, 3]]), axis=0)
        >>> decode(pack(lut.indices, lut.bits), header(lut), (2, 3), "int8").tolist()
        [[5, 5, 9], [1, 2, 3]]
    """
    if not LookUpTables.reads(tables):
        raise ValueError(f"lut: not a header of look-up tables, version 1. Received: {tables[:HEADER_BYTES].hex()}.")
    axis, bits = tables[5] >> 4, tables[5] & 7
    taken = unpack(indices, bits, int(np.prod(shape, dtype=np.int64)))
    values = np.frombuffer(tables[HEADER_BYTES:], dtype)
    if axis == _ONE_TABLE:
        return values[taken].reshape(shape)
    rows = values.reshape(shape[axis], -1)
    # The number of its table for every position, broadcast along the other axes.
    channel = np.moveaxis(np.arange(shape[axis]).reshape(-1, *[1] * (len(shape) - 1)), 0, axis)
    return rows[channel, taken.reshape(shape)]


@dataclass(frozen=True)
class LookUpTables(Storage):
    """Which weights `kquant.export` stores in look-up tables.

    Attributes:
        max_bits: the widest index to write, 1 to 7: with 4, a table has 16 entries at most.
    """

    key: ClassVar[str] = "lut"
    title: ClassVar[str] = "look-up tables"
    column: ClassVar[str] = "tables"
    kind: ClassVar[int] = 0
    remedy: ClassVar[str] = (
        "too many distinct codes, or too few weights for a table. Cluster the weights first; kquant.layer_bytes counts "
        "codes and bytes of a plain export"
    )

    max_bits: int = MAX_BITS

    def __post_init__(self) -> None:
        super().__post_init__()
        bits: Any = self.max_bits
        whole = isinstance(bits, int | np.integer) and not isinstance(bits, bool)
        if not whole or not 1 <= bits <= MAX_BITS:
            raise ValueError(
                f"LookUpTables: max_bits must be a whole number, 1 to {MAX_BITS}. Received: {self.max_bits!r}."
            )

    def store(self, codes: np.ndarray, axis: int | None, zero_points: np.ndarray) -> Stored | None:
        """See `smallest`; scales along an axis allow tables along it."""
        lut = smallest(codes, axis) if codes.dtype == np.int8 else None
        if lut is None or lut.bits > self.max_bits:
            return None
        what = f"indices of {lut.bits} bits and tables"
        return Stored(pack(lut.indices, lut.bits), header(lut), what, codes.size)

    def refusal(self, codes: np.ndarray, axis: int | None) -> str:
        """Too many codes, or codes of 16 bits."""
        if codes.dtype != np.int8:
            return f"is {codes.dtype}, and tables are written of int8"
        return (
            f"has {distinct(codes, axis)} distinct codes in a table, and indices of {self.max_bits} bits tell "
            f"{1 << self.max_bits} apart. Cluster its weights first"
        )

    @classmethod
    def load(
        cls, body: bytes, header: bytes, shape: tuple[int, ...], dtype: str, zero_points: tuple[int, ...], axis: int
    ) -> np.ndarray:
        """See `decode`."""
        return decode(body, header, shape, dtype)

    @classmethod
    def layout(cls, header: bytes, shape: tuple[int, ...]) -> tuple[int, int]:
        """Of an index, and of the tables."""
        axis = header[5] >> 4
        return header[5] & 7, 1 if axis == _ONE_TABLE else shape[axis]

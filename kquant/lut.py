"""Weights as indices into small tables: the encoding that TensorFlow Lite Micro's DECODE operator reads.

A tensor becomes two: its indices, 1 to 7 bits each, and a header of 16 bytes with the tables behind it. Each table holds
the distinct codes of the whole tensor or of one channel. Byte layout: `tensorflow/lite/micro/compression/decode.py` and
`lut.py` of tflite-micro, version 1 of both headers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CODE = "TFLM_DECODE"
MAX_BITS = 7
HEADER_BYTES = 16
_LUT_TYPE, _VERSION, _ONE_TABLE = 0, 1, 15


@dataclass(frozen=True, eq=False)
class Lut:
    """A tensor behind tables.

    Attributes:
        bits: of one index.
        axis: of the channels that have a table each; None for one table.
        indices: uint8, in the shape of the tensor.
        tables: [tables, entries] in the tensor's type, shorter ones filled with zeros.
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
        codes: integers of any shape.
        axis: one table for each position on this axis, the first or the last; None: one table.

    Returns:
        The encoding with the fewest bits, or None where a table would need more than 128 entries.

    Raises:
        ValueError: an axis that the kernel does not read.

    Example:
        >>> from kquant.lut import encode
        >>> lut = encode(np.int8([[5, 5, 9], [1, 2, 3]]), axis=0)
        >>> lut.bits, lut.tables.tolist(), lut.indices.tolist()
        (2, [[5, 9, 0], [1, 2, 3]], [[0, 0, 1], [0, 1, 2]])
    """
    if axis is not None and axis not in (0, codes.ndim - 1):
        raise ValueError(f"lut: tables follow the first or the last axis of a tensor. Received: {axis} of {codes.ndim}.")
    rows = codes.reshape(1, -1) if axis is None else np.moveaxis(codes, axis, 0).reshape(codes.shape[axis], -1)
    found = [np.unique(row, return_inverse=True) for row in rows]
    entries = max(len(values) for values, _ in found)
    if entries > 1 << MAX_BITS:
        return None
    tables = np.zeros((len(rows), entries), codes.dtype)
    for table, (values, _) in zip(tables, found, strict=True):
        table[: len(values)] = values
    indices = np.stack([inverse.reshape(-1) for _, inverse in found]).astype(np.uint8)
    if axis is None:
        indices = indices.reshape(codes.shape)
    else:
        rest = tuple(n for i, n in enumerate(codes.shape) if i != axis)
        indices = np.moveaxis(indices.reshape(codes.shape[axis], *rest), 0, axis)
    return Lut(max(1, (entries - 1).bit_length()), axis, np.ascontiguousarray(indices), tables)


def smallest(codes: np.ndarray, axis: int | None) -> Lut | None:
    """The encoding with the fewest bytes: one table, or one for each channel on `axis`.

    Example:
        >>> from kquant.lut import smallest
        >>> smallest(np.tile(np.int8([-1, 0, 1, 1]), (8, 1)), axis=0).axis is None  # all rows have the same codes
        True
    """
    axes = (None,) if axis is None or axis not in (0, codes.ndim - 1) else (None, axis)
    found = [lut for lut in (encode(codes, a) for a in axes) if lut is not None]
    return min(found, key=lambda lut: lut.size_bytes, default=None)


def pack(indices: np.ndarray, bits: int) -> bytes:
    """Indices one behind the other, the highest bit first; the last byte ends in zeros.

    Example:
        >>> from kquant.lut import pack
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

    Bytes 0, 1: kind and version; 4: version of tables; 5: axis (15: one table) and bits; 6: entries of a table. With
    one table the entries read 0: releases that take the number of tables from the scales then read the same one for
    every channel.
    """
    axis = _ONE_TABLE if lut.axis is None else lut.axis
    stride = 0 if lut.axis is None else lut.tables.shape[1]
    fields = bytes([_LUT_TYPE, _VERSION, 0, 0, _VERSION, axis << 4 | lut.bits, stride])
    return fields.ljust(HEADER_BYTES, b"\0") + lut.tables.tobytes()


def decode(indices: bytes, tables: bytes, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """The codes that both stored tensors stand for.

    Args:
        indices: as `pack` makes them.
        tables: as `header` makes them.
        shape, dtype: of the tensor.

    Returns:
        The codes.

    Raises:
        ValueError: not look-up tables, or lengths that do not fit.

    Example:
        >>> from kquant.lut import decode, encode, header, pack
        >>> lut = encode(np.int8([[5, 5, 9], [1, 2, 3]]), axis=0)
        >>> decode(pack(lut.indices, lut.bits), header(lut), (2, 3), "int8").tolist()
        [[5, 5, 9], [1, 2, 3]]
    """
    if len(tables) < HEADER_BYTES or tables[0] != _LUT_TYPE or tables[1] != _VERSION or tables[4] != _VERSION:
        raise ValueError(f"lut: not a header of look-up tables, version 1. Received: {tables[:HEADER_BYTES].hex()}.")
    axis, bits = tables[5] >> 4, tables[5] & 7
    taken = unpack(indices, bits, int(np.prod(shape)))
    values = np.frombuffer(tables[HEADER_BYTES:], dtype)
    if axis == _ONE_TABLE:
        return values[taken].reshape(shape)
    rows = values.reshape(shape[axis], -1)
    channel = np.moveaxis(np.arange(shape[axis]).reshape(-1, *[1] * (len(shape) - 1)), 0, axis)
    return rows[channel, taken.reshape(shape)]

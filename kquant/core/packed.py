"""Weights of fewer than 8 bits, several to a byte: `packed.toml` has the types, and here they are packed and unpacked.

In the program, and wherever numpy computes, their codes are int8; only bytes of files hold them packed.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from kquant.core.fact_tables import shipped

FILE = "packed.toml"
BYTE = 8


class PackedType(BaseModel):
    """One type of packed weights.

    Attributes:
        bits: of a code, which is signed; a byte holds a whole number of them.
        number: of the type in the schema of TFLite.
        since: the first release of TensorFlow that has it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    bits: Annotated[int, Field(ge=1, lt=BYTE)]
    number: Annotated[int, Field(ge=0)]
    since: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def _whole(self) -> PackedType:
        if BYTE % self.bits:
            raise ValueError(f"bits = {self.bits}: a byte must hold a whole number of codes")
        return self

    @property
    def per_byte(self) -> int:
        """Codes in a byte."""
        return BYTE // self.bits

    @property
    def low(self) -> int:
        """The lowest code."""
        return -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        """The highest code."""
        return (1 << (self.bits - 1)) - 1


# The narrowest first.
PACKED = MappingProxyType(dict(sorted(shipped(FILE, PackedType).items(), key=lambda named: named[1].bits)))
MOST_BITS = max(each.bits for each in PACKED.values())  # weights of up to so many may be packed


def types_for(bits: int) -> tuple[str, ...]:
    """The packed types that hold codes of so many bits, the narrowest first; none where they take a byte each.

    Example:
        >>> types_for(4), types_for(8)
        (('int4',), ())
    """
    return tuple(name for name, each in PACKED.items() if each.bits >= bits)


def types_of(codes: np.ndarray) -> tuple[str, ...]:
    """The packed types that hold these very codes, the narrowest first.

    Args:
        codes: integers; none of them fit into any type.

    Example:
        >>> types_of(np.int8([-8, 7])), types_of(np.int8([8]))
        (('int4',), ())
    """
    if not codes.size:
        return ()
    low, high = int(codes.min()), int(codes.max())
    return tuple(name for name, each in PACKED.items() if each.low <= low and high <= each.high)


def numpy_type(dtype: str) -> str:
    """Numpy's name of the type in which a program holds what a file stores as `dtype`.

    Example:
        >>> numpy_type("int4"), numpy_type("int16")
        ('int8', 'int16')
    """
    return "int8" if dtype in PACKED else dtype


def bits_of(dtype: str) -> int:
    """Of a stored code: of a packed type, or any of numpy's.

    Example:
        >>> bits_of("int4"), bits_of("int16")
        (4, 16)
    """
    return PACKED[dtype].bits if dtype in PACKED else BYTE * np.dtype(dtype).itemsize


def size_bytes(count: int, dtype: str) -> int:
    """What so many codes take in a file.

    Example:
        >>> size_bytes(5, "int4"), size_bytes(5, "int16")
        (3, 10)
    """
    return -(-count * bits_of(dtype) // BYTE)


def pack(values: np.ndarray, dtype: str) -> bytes:
    """The bytes of a constant in a file.

    Args:
        values: of any shape; codes of a packed type as integers of another one.
        dtype: the type to store it in.

    Example:
        >>> pack(np.int8([1, -1, 2]), "int4").hex(), pack(np.int16([1]), "int16").hex()
        ('f102', '0100')
    """
    flat = np.ascontiguousarray(values).reshape(-1)
    if dtype not in PACKED:
        return flat.tobytes()
    kind = PACKED[dtype]
    codes = flat.astype(np.uint8) & ((1 << kind.bits) - 1)
    codes = np.append(codes, np.zeros(-codes.size % kind.per_byte, np.uint8)).reshape(-1, kind.per_byte)
    places = np.arange(kind.per_byte, dtype=np.uint8) * np.uint8(kind.bits)
    return np.bitwise_or.reduce(codes << places, axis=1).astype(np.uint8).tobytes()


def unpack(content: np.ndarray, dtype: str, count: int) -> np.ndarray:
    """The values of a constant in a file.

    Args:
        content: uint8[bytes].
        dtype: the type that it is stored in.
        count: how many there are.

    Returns:
        Flat; int8 of a packed type.

    Example:
        >>> unpack(np.uint8([0xF1, 0x02]), "int4", 3).tolist()
        [1, -1, 2]
    """
    if dtype not in PACKED:
        return np.frombuffer(content.tobytes(), dtype)
    kind = PACKED[dtype]
    places = np.arange(kind.per_byte, dtype=np.uint8) * np.uint8(kind.bits)
    codes = (content[:, None] >> places & ((1 << kind.bits) - 1)).reshape(-1)[:count]
    # two's complement: from half of the codes on they are negative
    half = np.uint8(1 << (kind.bits - 1))
    return ((codes ^ half).astype(np.int8) - np.int8(half)).astype(np.int8)

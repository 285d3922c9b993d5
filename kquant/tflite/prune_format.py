"""Weights as a bit each, and the codes of those that are not zero: the kind 2 of TensorFlow Lite Micro's DECODE.

A tensor becomes two: a mask, the highest bit of a byte first, 1 where a weight is not its zero point; and a header of
16 bytes with the other weights behind it, one after the other. The decoder takes the zero points of the tensor that it
writes, one or one for each channel, on its first or last axis.

Source: `micro/kernels/decode_state_prune.{h,cc}` and its test in tflite-micro, 90b983c (2026-08-20). Their Python
encoder (`micro/compression/pruning.py`) was not written then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from kquant.tflite.storage import HEADER_BYTES, Storage, Stored


@dataclass(frozen=True)
class BitMasks(Storage):
    """Which weights `kquant.export` stores without their zeros."""

    key: ClassVar[str] = "prune"
    title: ClassVar[str] = "bit masks"
    column: ClassVar[str] = "masked"
    kind: ClassVar[int] = 2
    remedy: ClassVar[str] = (
        "fewer than one weight in eight is zero, or there are too few of them. Prune the weights first; "
        "kquant.layer_bytes counts zeros and bytes of a plain export"
    )

    def store(self, codes: np.ndarray, axis: int | None, zero_points: np.ndarray) -> Stored | None:
        """Mask and values; int8 with any zero points, other types where all of them are 0."""
        if _unread(codes, axis) or (codes.dtype != np.int8 and np.any(zero_points)):
            return None
        there = codes != _zeros(zero_points, axis or 0, codes.ndim)
        values = np.ascontiguousarray(codes[there])
        body = np.packbits(there).tobytes()
        return Stored(body, self.header(b"", values.tobytes()), "a bit each and values", codes.size)

    def refusal(self, codes: np.ndarray, axis: int | None) -> str:
        """Scales along an axis in the middle, or zero points of a wide type."""
        if _unread(codes, axis):
            return (
                f"has {codes.shape[axis or 0]} scales on axis {axis} of {codes.ndim}; the kernel reads those on the "
                "first axis, and two or more on the last"
            )
        return f"is {codes.dtype} with zero points that are not 0, which the kernel does not read"

    @classmethod
    def load(
        cls, body: bytes, header: bytes, shape: tuple[int, ...], dtype: str, zero_points: tuple[int, ...], axis: int
    ) -> np.ndarray:
        """Zero points, and what is there."""
        if not cls.reads(header):
            raise ValueError(f"masks: not a header of bit masks, version 1. Received: {header[:HEADER_BYTES].hex()}.")
        count = int(np.prod(shape, dtype=np.int64))
        if len(body) < -(-count // 8):
            raise ValueError(f"masks: {count} weights take a bit each. Received: {len(body)} bytes.")
        there = np.unpackbits(np.frombuffer(body, np.uint8), count=count).astype(bool).reshape(shape)
        values = np.frombuffer(header[HEADER_BYTES:], dtype)
        if len(values) != np.count_nonzero(there):
            raise ValueError(f"masks: {np.count_nonzero(there)} weights are not zero. Received: {len(values)} values.")
        codes = np.broadcast_to(_zeros(np.array(zero_points), axis, len(shape)).astype(dtype), shape).copy()
        codes[there] = values
        return codes

    @classmethod
    def layout(cls, header: bytes, shape: tuple[int, ...]) -> tuple[int, int]:
        """The codes behind the header are one table."""
        return 1, 1


def _unread(codes: np.ndarray, axis: int | None) -> bool:
    # the kernel takes the last axis for one of channels where there are several
    return axis not in (None, 0) and (axis != codes.ndim - 1 or codes.shape[axis] == 1)


def _zeros(zero_points: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """Zero points that broadcast against the codes."""
    if len(zero_points) < 2:
        return zero_points.reshape(-1)[:1].reshape([1] * rank) if len(zero_points) else np.zeros([1] * rank, np.int64)
    return zero_points.reshape([-1 if i == axis else 1 for i in range(rank)])

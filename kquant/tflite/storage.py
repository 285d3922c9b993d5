"""`Storage`: how weights lie in a file in two tensors, out of which TensorFlow Lite Micro's DECODE writes the codes.

    codes  ->  `store`  ->  body, header  ->  TFLM_DECODE on the device, `load` here  ->  codes

The header tells the kind and what belongs to it (`HEADER_BYTES`, then tables of values), the body holds the weights.
`stored_weights` chooses, writes and takes out again, `reader` reads, `weight_bytes` counts, `runtime.decoding` and
`exporting.stored_check` run: none of them knows a storage by name. A new one is a subclass of `Storage` in a file of
its own, its entry in `STORAGES`, and its key in the TOML file of each target that decodes it.
"""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from kquant import targets
from kquant.targets import Target

CODE = "TFLM_DECODE"
HEADER_BYTES = 16
# Byte 0 of a header is the kind, byte 1 the version of what all kinds share, byte 4 that of the kind, of which there is
# one each (`micro/kernels/decode_state*.h`).
VERSION, FORMAT_VERSION = 1, 1
# What `kquant.export(compression=...)` names -> its class, which is imported when it is asked for.
STORAGES: dict[str, str] = {
    "lut": "kquant.tflite.lut_format:LookUpTables",
}


@dataclass(frozen=True)
class Stored:
    """A tensor as a DECODE reads it.

    Attributes:
        body: what stands for the weights, one behind the other.
        header: what tells the format, with tables of values behind it.
        what: the body in words, for messages: "indices of 3 bits and tables".
    """

    body: bytes
    header: bytes
    what: str

    @property
    def size_bytes(self) -> int:
        """Bytes of both."""
        return len(self.body) + len(self.header)


@dataclass(frozen=True)
class Storage(ABC):
    """One way to store weights, and which of them `kquant.export` stores so.

    Attributes:
        names: of layers or of tensors, like "conv2d_1" or "conv2d_1/kernel"; None: all that get smaller.
        key: its name in `STORAGES`, in target files (`decodes`) and as `compression`.
        title: in messages and reports, after "in".
        column: in tables of bytes.
        kind: byte 0 of its header: TFLM's number of the format.
        remedy: what to do where nothing gets smaller.
    """

    key: ClassVar[str]
    title: ClassVar[str]
    column: ClassVar[str]
    kind: ClassVar[int]
    remedy: ClassVar[str]

    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.names, str):
            raise ValueError(f"{type(self).__name__}: names is a tuple of names. Received: {self.names!r}.")

    @abstractmethod
    def store(self, codes: np.ndarray, axis: int | None, zero_points: np.ndarray) -> Stored | None:
        """The fewest bytes for a tensor of codes; None where this format cannot hold it.

        Args:
            codes: int8 of any shape.
            axis: of its scales, where there are several.
            zero_points: the codes that stand for zero: int64[1], or one for each scale.
        """

    @abstractmethod
    def refusal(self, codes: np.ndarray, axis: int | None) -> str:
        """Of weights that were asked for by name and cannot be held: what they are, and what to do."""

    @classmethod
    @abstractmethod
    def load(
        cls, body: bytes, header: bytes, shape: tuple[int, ...], dtype: str, zero_points: tuple[int, ...]
    ) -> np.ndarray:
        """What a DECODE writes into a tensor of that shape and type.

        Raises:
            ValueError: not this format, or lengths that do not fit.
        """

    @classmethod
    @abstractmethod
    def layout(cls, header: bytes, shape: tuple[int, ...]) -> tuple[int, int]:
        """Bits of the body for each weight, 0 where they differ; number of tables behind the header."""

    @classmethod
    def reads(cls, header: bytes) -> bool:
        """Whether a stored tensor begins like a header of this format."""
        return len(header) >= HEADER_BYTES and (*header[:2], header[4]) == (cls.kind, VERSION, FORMAT_VERSION)

    @classmethod
    def header(cls, fields: bytes, tables: bytes) -> bytes:
        """The second stored tensor: kind, versions, what belongs to the format (from byte 5 on), then tables."""
        return (bytes([cls.kind, VERSION, 0, 0, FORMAT_VERSION]) + fields).ljust(HEADER_BYTES, b"\0") + tables


def storages() -> Mapping[str, type[Storage]]:
    """The classes of `STORAGES`, by key.

    Example:
        >>> from kquant.tflite.storage import storages
        >>> storages()["lut"].title
        'look-up tables'
    """
    return {key: pkgutil.resolve_name(path) for key, path in STORAGES.items()}


def storage_of(header: bytes) -> type[Storage] | None:
    """The format that a header tells; None for one of a foreign file that kquant does not write."""
    return next((storage for storage in storages().values() if storage.reads(header)), None)


def titles(keys: list[str]) -> str:
    """Storages in words.

    Example:
        >>> from kquant.tflite.storage import titles
        >>> titles(["lut"])
        'look-up tables'
    """
    return " and ".join(storages()[key].title for key in keys)


def refuse_undecoded(target: Target, wanted: Sequence[Storage]) -> None:
    """A DECODE is for targets that have it, in this form.

    Args:
        target: of the file.
        wanted: forms of weights.

    Raises:
        ValueError: naming a target that has it.

    Example:
        >>> from kquant import targets
        >>> from kquant.tflite.lut_format import LookUpTables
        >>> refuse_undecoded(targets.load("tflm"), [LookUpTables()])
    """
    for storage in wanted:
        if storage.key not in target.decodes:
            able = [name for name in targets.names() if storage.key in targets.load(name).decodes]
            raise ValueError(
                f"export: {storage.title} are decoded by TensorFlow Lite Micro alone; quantize with "
                f"target='{able[0]}'. Received a model for '{target.name}'."
            )

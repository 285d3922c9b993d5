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
from typing import Any, ClassVar

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
    "prune": "kquant.tflite.prune_format:BitMasks",
    "huffman": "kquant.tflite.huffman_format:Huffman",
}


@dataclass(frozen=True)
class Stored:
    """A tensor as a DECODE reads it.

    Attributes:
        body: what stands for the weights, one behind the other.
        header: what tells the format, with tables of values behind it.
        what: the body in words, for messages: "indices of 3 bits and tables".
        lookups: steps that decode all of it: one for each weight, or as many as a code of several tables takes.
    """

    body: bytes
    header: bytes
    what: str
    lookups: int

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
        names: Any = self.names
        if names is None:
            return
        if type(names) not in (list, tuple) or not names or not all(isinstance(n, str) and n for n in names):
            raise ValueError(
                f"{type(self).__name__}: names is a tuple of names of layers or tensors, like ('head',); None is all "
                f"that get smaller. Received: {names!r}."
            )
        object.__setattr__(self, "names", tuple(names))  # of a list

    @abstractmethod
    def store(self, codes: np.ndarray, axis: int | None, zero_points: np.ndarray) -> Stored | None:
        """The fewest bytes for a tensor of codes; None where this format cannot hold it.

        Args:
            codes: int8 of any shape, or int16.
            axis: of its scales, where there are several.
            zero_points: the codes that stand for zero: int64[1], or one for each scale.
        """

    def store_together(self, tensors: Sequence[np.ndarray]) -> list[Stored] | None:
        """Several tensors with one header, which is in the file once; None where a format shares nothing.

        Args:
            tensors: int8 of any shapes, or int16.
        """
        return None

    @abstractmethod
    def refusal(self, codes: np.ndarray, axis: int | None) -> str:
        """Of weights that were asked for by name and cannot be held: what they are, and what to do."""

    @classmethod
    @abstractmethod
    def load(
        cls, body: bytes, header: bytes, shape: tuple[int, ...], dtype: str, zero_points: tuple[int, ...], axis: int
    ) -> np.ndarray:
        """What a DECODE writes into a tensor of that shape, type, and zero points along an axis.

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


@dataclass(frozen=True)
class Storing:
    """How the weights of a file may be stored.

    Attributes:
        storages: each tensor gets the form with the fewest bytes; none: they lie there as they are.
        free: where nothing gets smaller, the file stays as it is; and codes that fit into 4 bits are packed where the
            kernels take them so. Otherwise a file that gets no smaller is refused.
        budget_bytes: by which tensors may grow in memory at most; None: as they must.
    """

    storages: tuple[Storage, ...] = ()
    free: bool = False
    budget_bytes: int | None = None

    def __bool__(self) -> bool:
        return bool(self.storages)


@dataclass(frozen=True)
class Decoding:
    """What it costs that weights are decoded, as `kquant.export` tells it.

    Attributes:
        tensors: in each storage, by its key: names, in the order of the file.
        weights: that each call of the file decodes, once for each DECODE.
        lookups: steps that this takes: one for each weight, more where a Huffman code goes through several tables.
        arena_growth_bytes: by which the arena of TFLM grows at most: its plan of memory, and what it keeps for each
            DECODE and its tensors (168 to 208 bytes on a 64-bit host, less on a 32-bit device).
        saved_bytes: of the file against the one with its weights as they are.
    """

    tensors: Mapping[str, tuple[str, ...]]
    weights: int
    lookups: int
    arena_growth_bytes: int
    saved_bytes: int


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
            able = [target for target in map(targets.load, targets.names()) if storage.key in target.decodes]
            # the kernels of any board rather than those of one
            name = next((target.name for target in able if target.accelerator is None), able[0].name)
            raise ValueError(
                f"export: {storage.title} are decoded by TensorFlow Lite Micro alone; quantize with "
                f"target='{name}'. Received a model for '{target.name}'."
            )

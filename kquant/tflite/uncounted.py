"""Bytes of weights that are counted when somebody asks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from kquant.tflite.names import with_names
from kquant.tflite.reader import contents, read_model

if TYPE_CHECKING:
    from kquant.tflite.weight_bytes import FileBytes


@dataclass(frozen=True, eq=False)
class Uncounted:
    """A file whose weights are counted when somebody asks.

    To deflate them and to try each storage takes as long as all else that an export does to a large model.

    Attributes:
        content: of the file.
        named: the same file with names, where `content` has none.
        vela_bytes, vela_refusal: see `FileBytes`.
    """

    content: bytes
    named: bytes | None = None
    vela_bytes: int | None = None
    vela_refusal: str = ""

    @cached_property
    def counted(self) -> FileBytes:
        """`count_bytes` of the file."""
        from kquant.tflite.weight_bytes import count_bytes  # most exports end without it

        file, held = contents(self.content)
        file = file if self.named is None else with_names(file, read_model(self.named))
        told = {"vela_bytes": self.vela_bytes, "vela_refusal": self.vela_refusal}
        return replace(count_bytes(self.content, file, held), **told)

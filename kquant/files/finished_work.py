"""What a long search has finished, in a file that says what it was made for: a stopped search goes on from there."""

from __future__ import annotations

import hashlib
import json
import types
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from kquant.files.atomic import write_atomically
from kquant.files.destination import make_folder
from kquant.files.untrusted import read_json

Row = TypeVar("Row")


class Kept:
    """Rows of dataclasses, by the name of their list; every `store` is whole on the disk, or the one before it is.

    Args:
        path: of the JSON file; None keeps nothing.
        who: the verb that errors name.
        search: what the rows depend on, as JSON takes it.

    Raises:
        ValueError: the file is of another search, or damaged.
    """

    def __init__(self, path: Path | None, who: str, search: dict[str, Any]) -> None:
        self.path, self.who, self.search = path, who, search
        self.done: dict[str, list[Any]] = {}
        if path is not None:
            make_folder(path.parent, who)
            if path.is_file():
                self.done = self._read(path)

    def _read(self, path: Path) -> dict[str, list[Any]]:
        stored = read_json(path, f"{self.who}: {path}")
        if not isinstance(stored, dict) or stored.get("search") != self.search:
            search = stored.get("search") if isinstance(stored, dict) else "nothing"
            raise ValueError(
                f"{self.who}: {path} is of another search: {str(search)[:400]}. Expected: {self.search}. Give another "
                "folder, or delete it."
            )
        done = stored.get("done")
        if stored.get("digest") != _digest(done) or not isinstance(done, dict):
            raise self._damaged("its content is not what its digest tells of")
        return done

    def _damaged(self, why: str) -> ValueError:
        return ValueError(f"{self.who}: {self.path} is damaged: {why}. Delete it, and the search begins again.")

    def rows(self, name: str, kind: type[Row]) -> list[Row]:
        """A list that was stored; empty where there was none.

        Args:
            name: of the list.
            kind: the dataclass of its rows.

        Raises:
            ValueError: its rows are of another kind.
        """
        rows, hints = self.done.get(name, []), get_type_hints(kind)
        names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
        for row in rows if isinstance(rows, list) else [rows]:
            whole = isinstance(row, dict) and set(row) == names
            if not whole or not all(_fits(row[key], hints[key]) for key in names):
                raise self._damaged(f"{str(row)[:80]} is no {kind.__name__}")
        return [kind(**row) for row in rows]

    def store(self, **lists: Sequence[Any]) -> None:
        """Replace lists, and write all of them.

        Args:
            lists: dataclasses, by the name of their list.
        """
        if self.path is not None:
            self.done |= {name: [asdict(row) for row in rows] for name, rows in lists.items()}
            content = {"search": self.search, "digest": _digest(self.done), "done": self.done}
            write_atomically(self.path, json.dumps(content, indent=2).encode(), self.who)


def _digest(done: Any) -> str:
    """One changed digit of a score would be believed otherwise."""
    return hashlib.sha256(json.dumps(done, sort_keys=True).encode()).hexdigest()


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from JSON is of a type, as far as dataclasses of rows need."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if hint in (int, float):
        # a whole number may stand for a float, and True, an int to Python, for no number at all
        return isinstance(value, (int, float) if hint is float else int) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def fingerprint(arrays: Iterable[np.ndarray]) -> int:
    """A number that other weights or data do not have.

    Args:
        arrays: all of them, in order.

    Example:
        >>> fingerprint([np.zeros(3)]) == fingerprint([np.zeros(4)])
        False
    """
    checksum = 0
    for array in arrays:
        checksum = zlib.crc32(np.ascontiguousarray(array).tobytes(), checksum)
    return checksum

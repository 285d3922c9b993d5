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
SHOWN = 60  # characters of a value in an error


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
            search = stored.get("search") if isinstance(stored, dict) else None
            raise ValueError(
                f"{self.who}: {path} is of another search: {differing(search, self.search)}. Give another folder, or "
                "delete it."
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


def differing(there: Any, now: dict[str, Any]) -> str:
    """Which of two runs' settings differ, for an error.

    Args:
        there: what a file was made for, as JSON gave it; no table where it tells of nothing.
        now: what is asked for.

    Example:
        >>> differing({"limit": 9, "score": 0.625}, {"limit": 9, "score": 0.5, "samples": 64})
        'score: 0.625 there, 0.5 now; samples: not told there, 64 now'
    """
    known = there if isinstance(there, dict) else {}
    keys = [key for key in {**now, **known} if key not in known or key not in now or known[key] != now[key]]
    said = [_apart(*(repr(told[key]) if key in told else "not told" for told in (known, now))) for key in keys]
    return "; ".join(f"{key}: {one} there, {other} now" for key, (one, other) in zip(keys, said, strict=True))


def _apart(one: str, other: str) -> tuple[str, str]:
    """Two texts, short: from a little before where they part."""
    if max(len(one), len(other)) <= SHOWN:
        return one, other
    parts = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    start = max(0, parts - SHOWN // 3)
    one, other = (
        ("... " if start else "") + text[start : start + SHOWN] + (" ..." if len(text) > start + SHOWN else "")
        for text in (one, other)
    )
    return one, other


def judged_by(function: Any) -> dict[str, int]:
    """What a function that judges models says of the data and labels that it judges by; nothing where it does not.

    Args:
        function: of a caller; what `kquant.analysis.metrics` makes has a fingerprint as its attribute `judged_by`.

    Example:
        >>> judged_by(lambda model: 1.0)
        {}
    """
    told = getattr(function, "judged_by", None)
    return {} if told is None else {"judged_by": int(told)}


def fingerprint(arrays: Iterable[np.ndarray], checksum: int = 0) -> int:
    """A number that other weights or data do not have.

    Args:
        arrays: all of them, in order.
        checksum: of those before them.

    Example:
        >>> fingerprint([np.zeros(3)]) == fingerprint([np.zeros(4)])
        False
    """
    for array in arrays:
        checksum = zlib.crc32(np.ascontiguousarray(array).tobytes(), checksum)
    return checksum

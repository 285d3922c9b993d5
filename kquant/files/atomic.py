"""Files that are whole or not there, and sets of them that are all new or all old."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from kquant.files.destination import Destination, destination, refusal, system_error
from kquant.files.leftovers import (
    LEADER,
    Stage,
    decide,
    move_all,
    moving_into,
    settle,
    sync_folder,
    write_new,
)


def write_atomically(path: str | Path, content: bytes, who: str = "export") -> None:
    """Write beside the target and move: readers see the old file or the new one, never half of it.

    A new file gets its mode from the umask, a replaced one keeps mode and owner, a link stays one. Devices and pipes
    get the bytes.

    Args:
        path: of the file.
        content: of it.
        who: the verb that errors name.

    Raises:
        ValueError: the system refuses, with its reason.

    Example:
        >>> write_atomically("notes.txt", b"whole")
        >>> Path("notes.txt").read_bytes()
        b'whole'
    """
    with Outputs([path], who) as new:
        new.write(path, content)


class Outputs:
    """Results of one run that take their places together, at the end of a `with` block that ends well.

    Whatever ends the run before, an error, Ctrl-C or a kill, the old ones are whole; the next run in that folder clears
    or finishes what a killed one left (see `kquant.files.leftovers`). Other files in the folder are not touched.

    Args:
        paths: of the results, which need not all be written.
        who: the verb that errors name.

    Raises:
        ValueError: one of them cannot be written, or two are one file.

    Example:
        >>> with Outputs(["a.txt", "b.txt"]) as new:
        ...     new.write("a.txt", b"1")
        ...     new.write("b.txt", b"2")
        >>> Path("a.txt").read_bytes(), Path("b.txt").read_bytes()
        (b'1', b'2')
    """

    def __init__(self, paths: Sequence[str | Path], who: str = "export") -> None:
        self.who = who
        places = [(Path(path), destination(path, who)) for path in paths]
        real = [place.real.resolve() for _, place in places if not place.takes_bytes]
        twice = [path for path in real if real.count(path) > 1]
        if twice:
            raise ValueError(f"{who}: two results would be one file, {twice[0]}; give each its own.")
        self.places = dict(places)
        self.stages: dict[Path, Stage] = {}

    def __enter__(self) -> Outputs:
        try:
            for place in self.places.values():
                folder = _stage_folder(place)
                if folder not in self.stages:
                    settle(folder)
                    self._stage(folder, place)
        except BaseException:
            self._remove()
            raise
        return self

    def _stage(self, folder: Path, place: Destination) -> None:
        leader = next(iter(self.stages.values()), None)
        try:
            stage = self.stages[folder] = Stage(folder)
            if leader is not None:
                write_new(stage.path / LEADER, os.fsencode(os.path.relpath(leader.path, stage.path)))
        except OSError as error:
            raise ValueError(refusal(self.who, place.given, error)) from error

    def place(self, path: str | Path) -> Path:
        """Where to make a result, under its own name, before it takes its place.

        Args:
            path: one of those that were announced.
        """
        number = list(self.places).index(Path(path))
        folder = self.stages[_stage_folder(self.places[Path(path)])].path / str(number)
        folder.mkdir(exist_ok=True)
        return folder / Path(path).name

    def write(self, path: str | Path, content: bytes) -> None:
        """Give a result as bytes.

        Args:
            path: one of those that were announced.
            content: of the file.

        Raises:
            ValueError: the system refuses, with its reason.
        """
        with self.making(path, len(content)) as made:
            write_new(made, content)

    @contextlib.contextmanager
    def making(self, path: str | Path, size_bytes: int | None = None) -> Iterator[Path]:
        """Have a result made by code that takes a path, like `model.save`.

        Args:
            path: one of those that were announced.
            size_bytes: that it will need, for errors.

        Yields:
            Where to make it.

        Raises:
            ValueError: the system refuses, with its reason.
        """
        made: Path | None = None
        try:
            made = self.place(path)
            yield made
            _sync(made)
        except Exception as error:
            cause = system_error(error)
            if cause is None:
                raise
            if made is not None:
                made.unlink(missing_ok=True)  # so that what is free is told without the part that was written
            raise ValueError(refusal(self.who, Path(path), cause, size_bytes)) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._take_places()
        finally:
            self._remove()

    def _take_places(self) -> None:
        gone = [place.given for place in self.places.values() if not self.stages[_stage_folder(place)].path.is_dir()]
        if gone:
            lost = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            raise ValueError(refusal(self.who, gone[0], lost))
        made = [(self.place(path), place) for path, place in self.places.items()]
        made = [(source, place) for source, place in made if source.exists()]
        moves = [(source, place) for source, place in made if not place.takes_bytes]
        for source, place in moves:
            _dress(source, place.real)
        with moving_into(place.real.parent for _, place in moves if place.real.parent.is_dir()):
            self._move([(source, place.real) for source, place in moves])
        # pipes and devices last, as what they have taken cannot be taken back
        for source, place in made:
            if place.takes_bytes:
                self._pour(source, place)

    def _move(self, moves: list[tuple[Path, Path]]) -> None:
        """One file by its own move; of several the decision comes first, so that a kill between two can be mended."""
        together = len(moves) > 1
        if together:
            try:
                decide(next(iter(self.stages.values())), moves)
            except OSError as error:
                raise ValueError(refusal(self.who, moves[0][1], error)) from error
        try:
            failed = self._moved(moves)
        except BaseException:  # Ctrl-C between two moves: it is decided
            self._moved([move for move in moves if move[0].exists()])
            raise
        for folder in {target.parent for _, target in moves}:
            sync_folder(folder)
        if failed:
            others = [target.name for _, target in moves if target not in dict(failed)]
            raise ValueError(
                f"{self.who}: {'; '.join(f'{path} cannot be written: {reason}' for path, reason in failed)}"
                + (f". Replaced were {', '.join(others)}" if others else "")
                + "; choose another path."
            )

    def _moved(self, moves: list[tuple[Path, Path]]) -> list[tuple[Path, str]]:
        """Move the first alone: where that fails, as it does for a whole folder, nothing is replaced."""
        failed = move_all(moves[:1])
        return failed or move_all(moves[1:])

    def _pour(self, source: Path, place: Destination) -> None:
        """Write into a device or a pipe, which keeps no old content."""
        try:
            handle = _opened(place.real)
            try:
                view = memoryview(source.read_bytes())
                while view:
                    view = view[os.write(handle, view) :]
            finally:
                os.close(handle)
        except OSError as error:
            if error.errno == errno.ENXIO:
                raise ValueError(f"{self.who}: {place.given} is a pipe that nobody reads; start its reader.") from error
            raise ValueError(refusal(self.who, place.given, error)) from error

    def _remove(self) -> None:
        with contextlib.ExitStack() as removals:  # each, also where Ctrl-C ends one of them
            for stage in self.stages.values():
                removals.callback(stage.remove)
        self.stages.clear()


def _stage_folder(place: Destination) -> Path:
    """Beside the file, so that the move is one step of one file system."""
    return Path(tempfile.gettempdir()) if place.takes_bytes else place.real.parent


def _opened(path: Path) -> int:
    """A device, a pipe, or what is open already under a number: written into where it stands."""
    number = re.fullmatch(rf"/(?:proc/(?:self|{os.getpid()})|dev)/fd/(\d+)", str(path.absolute()))
    if number is not None:
        return os.dup(int(number[1]))
    handle = os.open(path, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe without a reader would wait for ever
    os.set_blocking(handle, True)
    return handle


def _sync(path: Path) -> None:
    """Content before names, see `write_new`; for files that others wrote."""
    if path.is_file():
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _dress(source: Path, target: Path) -> None:
    """Mode and owner of the file that will be replaced; a new one has those of the umask."""
    try:
        old = target.stat()
    except OSError:
        return
    new = source.stat()
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        with contextlib.suppress(OSError):  # only root gives files away; the content matters more
            os.chown(source, old.st_uid, old.st_gid)
    with contextlib.suppress(OSError):  # file systems without modes
        source.chmod(stat.S_IMODE(old.st_mode))

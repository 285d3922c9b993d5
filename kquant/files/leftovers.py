"""Folders in which new results are made, `.kquant-` and 16 digits, and what becomes of those of killed runs.

    made       the run holds a lock (flock) on the folder; the system drops it when the run ends, however it ends
    filled     files lie here under their own names, in a folder each
    decided    moves.json says which file goes where; from here on the new results are the right ones
    moved      each file takes its place; the folder goes

A folder that nobody holds is of a killed run. Without moves.json it is deleted: the old results are whole. With it the
moves are finished: the new ones are. Pids would not do to tell who is alive: they come again, and containers that share
a folder do not see each other's.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from kquant.core.messages import warn
from kquant.files.destination import STAGE

try:
    import fcntl
except ImportError:  # Windows: results are still whole, but nobody can tell whose folders are left over
    fcntl = None

DECISION = "moves.json"
LEADER = "leader"  # names the folder that holds the decision, where results go to several folders
MOST_BYTES = 1 << 20  # of a decision
PATIENCE_SECONDS = 60  # for another run that moves its files; it takes milliseconds


class Stage:
    """A folder for new results beside old ones, held by this run.

    Args:
        folder: of the results.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self._lock = _made(folder)

    def remove(self) -> None:
        """Delete it with all that is in it, and let it go."""
        try:
            shutil.rmtree(self.path, ignore_errors=True)
        except BaseException:  # Ctrl-C while it is being deleted
            shutil.rmtree(self.path, ignore_errors=True)
            raise
        finally:
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None


def _made(folder: Path) -> tuple[Path, int | None]:
    """A new folder and its lock, none where the system has no locks."""
    while True:
        path = folder / f".kquant-{secrets.token_hex(8)}"
        try:
            path.mkdir(mode=0o700)  # files in it get their own modes, and are seen when they are moved
            if fcntl is None:
                return path, None
            lock = os.open(path, os.O_RDONLY)
            with contextlib.suppress(OSError):  # a file system without locks; nobody can claim the folder either
                fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists():
                return path, lock
            os.close(lock)  # another run took it for a leftover before it was locked
        except FileNotFoundError:
            if not folder.is_dir():
                raise
        except BaseException:  # Ctrl-C between these lines
            shutil.rmtree(path, ignore_errors=True)
            raise


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for files that nobody keeps; those of killed runs are deleted on the way.

    Yields:
        The folder, in the system's one for temporary files.
    """
    settle(tempfile.gettempdir())
    stage = Stage(Path(tempfile.gettempdir()))
    try:
        yield stage.path
    finally:
        stage.remove()


def decide(leader: Stage, moves: Iterable[tuple[Path, Path]]) -> None:
    """Write down which file goes where, durably: after this the new results are the right ones.

    Args:
        leader: the folder that holds the decision.
        moves: from, to.
    """
    rows = [[os.path.relpath(path, leader.path) for path in move] for move in moves]
    # A copied or unpacked folder has another inode: nobody's archive may move files about here.
    content = json.dumps({"inode": leader.path.stat().st_ino, "moves": rows}).encode()
    draft = leader.path / "draft"
    write_new(draft, content)
    draft.replace(leader.path / DECISION)
    sync_folder(leader.path)


def write_new(path: Path, content: bytes) -> None:
    """Write a file that does not exist yet, on the disk and not only in its cache.

    Without that a machine that loses power after the move may come up with the new name and no content: file systems
    may write names first.

    Args:
        path: of the file; the umask decides its mode.
        content: of it.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(handle, view) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def moving_into(folders: Iterable[Path]) -> Iterator[None]:
    """Two runs in one folder move their results one after the other, so that those of one are there, not a mixture.

    Args:
        folders: of the results.

    Raises:
        ValueError: another run does not end its moves.
    """
    with contextlib.ExitStack() as held:
        # in one order everywhere, or two runs would wait for each other
        for folder in sorted({each.resolve() for each in folders}):
            with contextlib.suppress(OSError):  # no permission to list it, no locks there
                handle = os.open(folder, os.O_RDONLY)
                held.callback(os.close, handle)
                if fcntl is not None:
                    _wait_for(handle, folder)
        yield


def _wait_for(handle: int, folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    locks: Any = fcntl  # where there are none nobody waits
    while True:
        try:
            locks.flock(handle, locks.LOCK_EX | locks.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ValueError(
                    f"{folder}: another run has been moving its results there for {PATIENCE_SECONDS} s; end it, or "
                    "give another folder."
                ) from None
            time.sleep(0.005)


def settle(folder: str | Path) -> None:
    """Finish or clear what killed runs left in a folder; those of living runs stay.

    Args:
        folder: of results; nothing happens where there is none.
    """
    try:
        with os.scandir(folder) as entries:
            stages = [e.path for e in entries if STAGE.fullmatch(e.name) and e.is_dir(follow_symlinks=False)]
    except (OSError, ValueError):
        return  # no such folder, or it cannot be listed: nothing can be told of it
    for path in sorted(stages):
        _settle(Path(path))


def _settle(stage: Path) -> None:
    lock = _claimed(stage)
    if lock is None:
        return
    try:
        leader = _leader(stage)
        if leader is not None and leader.is_dir():
            _settle(leader)  # moves the files of all folders; the decision is gone when all are moved
            if leader.is_dir():
                return  # another run is about it
        decision = _decision(stage, os.fstat(lock).st_ino)
        if decision is not None:
            left = [move for move in decision if move[0].exists()]
            with moving_into(target.parent for _, target in decision if target.parent.is_dir()):
                failed = [f"{target} ({error})" for target, error in move_all(left)]
            _tell(stage.parent, left, failed)
        shutil.rmtree(stage, ignore_errors=True)
    finally:
        os.close(lock)


def _claimed(stage: Path) -> int | None:
    """A lock on a folder whose run is over; None for a run that is alive, and for what belongs to somebody else."""
    if fcntl is None:
        return None
    with contextlib.suppress(OSError):
        lock = os.open(stage, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            if os.fstat(lock).st_uid == os.geteuid():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
        except OSError:
            os.close(lock)
            return None
        os.close(lock)
    return None


def _leader(stage: Path) -> Path | None:
    with contextlib.suppress(OSError, ValueError):
        named = stage / (stage / LEADER).read_bytes()[: 1 << 14].decode()
        return named if STAGE.fullmatch(named.name) else None
    return None


def _decision(stage: Path, inode: int) -> list[tuple[Path, Path]] | None:
    """Which file goes where; None where the run was killed before it decided."""
    file = stage / DECISION
    if not file.is_file():
        return None
    try:
        with file.open("rb") as opened:
            stored: Any = json.loads(opened.read(MOST_BYTES))
        if stored["inode"] != inode:
            warn(f"{stage}: results of a run elsewhere, copied unfinished; deleted.")
            return None
        return [(Path(os.path.normpath(stage / a)), Path(os.path.normpath(stage / b))) for a, b in stored["moves"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        warn(f"{file} of a killed run is damaged ({error}); its results are lost, run it again.")
        return None


def move_all(moves: Iterable[tuple[Path, Path]]) -> list[tuple[Path, str]]:
    """Give files their places, all that can be moved.

    Args:
        moves: from, to.

    Returns:
        Of each file that could not be moved: its place, and why.
    """
    failed = []
    for source, target in moves:
        try:
            source.replace(target)
        except (OSError, ValueError) as error:  # a damaged decision may name no path at all
            failed.append((target, getattr(error, "strerror", None) or str(error)))
    return failed


def _tell(folder: Path, moves: list[tuple[Path, Path]], failed: list[str]) -> None:
    if not moves:
        return
    text = f"{folder}: a run that was killed while its results took their places left "
    text += f"{', '.join(target.name for _, target in moves)} undone; "
    text += f"lost are {', '.join(failed)}: run it again." if failed else "done now: all files are of that run."
    warn(text)

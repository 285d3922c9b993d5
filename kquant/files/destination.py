"""Where a result is to go: links followed, what could not be written refused before the work, errors in words."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

KERAS_FILES = (".keras", ".h5", ".hdf5")
MOST_LINKS = 40  # as Linux follows
OPENED = ("/proc/", "/dev/fd/")  # /dev/stdout leads there, to open files: they take bytes, and are never replaced
STAGE = re.compile(r"\.kquant-[0-9a-f]{16}")  # a folder beside results, in which new ones are made

# What to do where the system refuses; for everything else another path.
REMEDIES = {
    errno.ENOSPC: "free some space there, or choose another path",
    errno.EDQUOT: "your quota there is used up: delete something of yours, or choose another path",
    errno.EFBIG: "no file may be that large there: raise the limit (ulimit -f), or choose another path",
    errno.EROFS: "nothing can be written to that file system; choose another path",
    errno.EACCES: "give yourself the permission, or choose another path",
    errno.EPERM: "the file or its folder belongs to somebody else, or is protected; choose another path",
    errno.EPIPE: "its reader has stopped",
}


@dataclass(frozen=True)
class Destination:
    """Where a result goes.

    Attributes:
        given: the path as the caller wrote it.
        real: the file that it stands for, behind all symbolic links.
        takes_bytes: True for devices and pipes, which are written into; files are replaced.
    """

    given: Path
    real: Path
    takes_bytes: bool


def destination(path: str | Path, who: str = "export", example: str = "result") -> Destination:
    """Where the content for a path will go, and whether it can.

    Args:
        path: of a result; links are followed, as by `open(path, "wb")`.
        who: the verb that errors name.
        example: a name of a file that would fit, for where a folder was given.

    Returns:
        The destination.

    Raises:
        ValueError: it cannot be written, with the reason.

    Example:
        >>> destination("model.tflite").takes_bytes, destination("/dev/null").takes_bytes
        (False, True)
    """
    given = path_of(path, who, example)
    wanted = Path(example).suffix  # none: the caller does not say what it writes
    if wanted and given.suffix in KERAS_FILES and wanted not in KERAS_FILES:
        raise ValueError(
            f"{who}: {given} is a name of a Keras model, which would be lost, and this is none; give a name like "
            f"{given.with_suffix(wanted)}."
        )
    names_folder = isinstance(path, str) and path.endswith(("/", os.sep))  # which pathlib forgets
    try:
        real, device = _followed(given)
        if real.is_dir() or names_folder:
            raise ValueError(
                f"{who}: {given} cannot be written: it is a folder; give the name of the file, like {given / example}."
            )
        mode = real.stat().st_mode if device or real.exists() else None
        _check(given, real, mode, who)
    except OSError as error:  # a name that the system cannot even look up, a circle of links
        raise ValueError(refusal(who, given, error)) from error
    return Destination(given, real, device or not (mode is None or stat.S_ISREG(mode)))


def _followed(path: Path) -> tuple[Path, bool]:
    """The file behind links, which need not exist; stops at a device.

    A link in /proc/self/fd reads like a path, but stands for an open file: replacing that path would lose it.
    """
    for _ in range(MOST_LINKS):
        if str(path.absolute()).startswith(OPENED):
            return path, True
        if not path.is_symlink():
            return path, False
        path = path.parent / path.readlink()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def _check(given: Path, real: Path, mode: int | None, who: str) -> None:
    if mode is not None and stat.S_ISBLK(mode):
        raise ValueError(f"{who}: {given} cannot be written: it is a disk; choose another path.")
    if mode is not None and not stat.S_ISREG(mode):
        return  # a device or a pipe; whether it takes bytes shows when they come
    folder, link = real.parent, "" if real == given else f" ({given} is a link to it)"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{who}: {given} cannot be written: {folder} is no folder{link}; choose another path.")
    if not folder.is_dir():
        raise ValueError(f"{who}: the folder {folder} does not exist{link}; make it first.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{who}: the folder {folder} cannot be written to{link}; choose another path.")
    # as a shell's `>` would refuse; the mode itself, because root may write everywhere
    if mode is not None and not mode & stat.S_IWUSR:
        raise ValueError(f"{who}: {real} exists and is read-only{link}; remove it or choose another path.")


def path_of(path: object, who: str, example: str) -> Path:
    """What a caller gave for a path.

    Args:
        path: of a file or a folder.
        who: the verb that errors name.
        example: that would fit.

    Raises:
        ValueError: it is none, like None.

    Example:
        >>> path_of(None, "export", "model.tflite")
        Traceback (most recent call last):
        ValueError: export: expected a path, like 'model.tflite'. Received: None.
    """
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"{who}: expected a path, like '{example}'. Received: {path!r}.")
    return Path(path)


def make_folder(folder: Path, who: str) -> None:
    """Make a folder for what a verb keeps, where it is not there yet.

    Raises:
        ValueError: the system refuses it, or a file is in the way.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(refusal(who, folder, error)) from error


def check_folder(folder: str | Path | None, who: str, example: str) -> None:
    """Refuse a folder that nothing can be kept in, before the work that is to be kept; it is made where it is missing.

    Args:
        folder: for what a verb keeps; None keeps nothing.
        who: the verb that errors name.
        example: of a folder's name.

    Raises:
        ValueError: it is no path, a file is in the way, or the system refuses it.

    Example:
        >>> check_folder("/dev/null", "analyze", "analysis")
        Traceback (most recent call last):
        ValueError: analyze: /dev/null cannot be written: File exists; choose another path.
    """
    if folder is None:
        return
    path = path_of(folder, who, example)
    make_folder(path, who)
    if not os.access(path, os.W_OK | os.X_OK):
        raise ValueError(f"{who}: the folder {path} cannot be written to; choose another path.")


def refusal(who: str, path: Path, error: OSError, needed: int | None = None) -> str:
    """Why the system did not take a file, and what to do.

    Args:
        who: the verb.
        path: of the file.
        error: of the system.
        needed: bytes of the file, where they are known.
    """
    shown = shown_path(path)
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        sizes = [] if needed is None else [f"it needs at least {needed:,} bytes"]
        with contextlib.suppress(OSError):
            sizes += [f"{shutil.disk_usage(shown.parent).free:,} are free there"] if error.errno == errno.ENOSPC else []
        reason += f" ({', '.join(sizes)})" if sizes else ""
    remedy = REMEDIES.get(error.errno or 0, "choose another path")
    if error.errno == errno.ENOENT and not shown.parent.is_dir():
        remedy = f"the folder {shown.parent} is gone; make it again, and run this again"
    return f"{who}: {shown} cannot be written: {reason}; {remedy}."


def shown_path(path: Path) -> Path:
    """The path that a result will have, of the one that it is made under.

    Example:
        >>> str(shown_path(Path("out/.kquant-0123456789abcdef/0/net.tflite")))
        'out/net.tflite'
    """
    for folder in path.parents:
        if STAGE.fullmatch(folder.name):
            return folder.parent / path.name
    return path


def system_error(error: BaseException) -> OSError | None:
    """The system's own error at the root of another one: zip archives of Keras fail twice, the second time on closing.

    Args:
        error: what was caught.
    """
    seen: BaseException | None = error
    first = None
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno is not None:
            first = seen
        seen = seen.__cause__ or seen.__context__
    return first

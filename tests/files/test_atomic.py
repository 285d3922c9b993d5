"""Results take their places whole and together, whatever ends the run; links, modes, pipes, full disks."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kquant.files import leftovers
from kquant.files.atomic import Outputs, write_atomically
from kquant.files.destination import destination
from kquant.files.leftovers import settle

ROOT = Path(__file__).parents[2]
needs_user = pytest.mark.skipif(os.geteuid() == 0, reason="root may write to any folder")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away and mounts file systems")


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def test_killed_and_interrupted_at_every_call() -> None:
    """One file, three files, files of two folders behind a link; and the run that mends, killed as well."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    script = [sys.executable, str(ROOT / "tests/support/killed_writes.py")]
    done = subprocess.run(script, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout)
    assert len(table) == 7
    for scene, ends in table.items():
        assert ends["done"] == 1 and ends["new"] >= 10, scene
        assert "mending" in scene or ends["old"] >= 10, scene


def test_a_living_run_keeps_its_folder(tmp_path: Path) -> None:
    with Outputs([tmp_path / "a", tmp_path / "b"]) as new:
        new.write(tmp_path / "a", b"1")
        write_atomically(tmp_path / "c", b"other run")
        settle(tmp_path)
        new.write(tmp_path / "b", b"2")
    assert names(tmp_path) == ["a", "b", "c"]


def test_two_runs_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, go_on = threading.Event(), threading.Event()
    plain = leftovers.move_all

    def slow(moves: Any) -> Any:
        if threading.current_thread() is first:
            inside.set()
            go_on.wait(10)
        return plain(moves)

    def run(content: bytes) -> None:
        with Outputs([tmp_path / "a", tmp_path / "b"]) as new:
            new.write(tmp_path / "a", content)
            new.write(tmp_path / "b", content)

    monkeypatch.setattr("kquant.files.atomic.move_all", slow)
    first, second = threading.Thread(target=run, args=(b"1",)), threading.Thread(target=run, args=(b"2",))
    first.start()
    assert inside.wait(10)
    second.start()
    second.join(0.1)
    assert second.is_alive(), "it waits"
    go_on.set()
    first.join()
    second.join()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == b"2"
    assert names(tmp_path) == ["a", "b"]


def dead_run(folder: Path, moves: list[list[str]] | None, inode: int | None = None) -> Path:
    stage = folder / f".kquant-{'0' * 16}"
    (stage / "0").mkdir(parents=True)
    (stage / "0/new").write_bytes(b"new")
    if moves is not None:
        inode = stage.stat().st_ino if inode is None else inode
        (stage / "moves.json").write_text(json.dumps({"inode": inode, "moves": moves}))
    return stage


def test_the_next_run_names_what_it_finishes(tmp_path: Path) -> None:
    dead_run(tmp_path, [["0/new", "../a"]])
    with pytest.warns(UserWarning, match=r"a run that was killed while its results took their places left a undone"):
        write_atomically(tmp_path / "b", b"mine")
    assert names(tmp_path) == ["a", "b"] and (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize(
    ("moves", "inode", "said"),
    [
        ([["0/new", "../a"]], 1, "copied unfinished"),
        ({}, None, None),
        (["0/new"], None, "is damaged"),
        ([["0/new", "../a\0b"]], None, "lost are .*null byte"),
        ([["0/new", "../folder"]], None, "lost are .*folder"),
    ],
)
def test_decisions_that_cannot_be_followed(tmp_path: Path, moves: Any, inode: int | None, said: str | None) -> None:
    (tmp_path / "folder").mkdir()
    dead_run(tmp_path, moves, inode)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        settle(tmp_path)
    assert names(tmp_path) == ["folder"]
    assert len(caught) == (said is not None)
    if said is not None:
        with pytest.warns(UserWarning, match=said):
            warnings.warn(caught[0].message, stacklevel=1)


def test_what_only_looks_like_a_leftover_stays(tmp_path: Path) -> None:
    (tmp_path / ".kquant-notes").mkdir()
    (tmp_path / f".kquant-{'0' * 16}").write_bytes(b"a file")
    (tmp_path / f".kquant-{'1' * 16}").symlink_to(tmp_path / ".kquant-notes")
    before = names(tmp_path)
    settle(tmp_path)
    settle(tmp_path / "missing")
    assert names(tmp_path) == before


def test_scratch_is_gone_and_clears_that_of_killed_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers.tempfile, "tempdir", str(tmp_path))
    left = dead_run(tmp_path, None)
    with leftovers.scratch() as folder:
        assert folder.parent == tmp_path and folder.is_dir() and not left.exists()
        with leftovers.scratch() as other:
            assert other != folder and folder.is_dir()
    assert names(tmp_path) == []


def test_modes(tmp_path: Path, umask: Callable[[int], int]) -> None:
    for mask, mode in ((0o077, 0o600), (0o022, 0o644), (0o002, 0o664)):
        umask(mask)
        path = tmp_path / f"{mask:o}"
        write_atomically(path, b"1")
        assert stat.S_IMODE(path.stat().st_mode) == mode
    for mode in (0o600, 0o640, 0o755, 0o2664):
        path.chmod(mode)
        write_atomically(path, b"2")
        assert stat.S_IMODE(path.stat().st_mode) == mode


@needs_root
def test_a_replaced_file_keeps_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    os.chown(path, 12345, 23456)
    path.chmod(0o4640)
    write_atomically(path, b"new")
    assert (path.stat().st_uid, path.stat().st_gid, stat.S_IMODE(path.stat().st_mode)) == (12345, 23456, 0o4640)


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store/old").write_bytes(b"old")
    links = {"plain": "store/old", "dangling": "store/new", "twice": "plain", "whole": str(tmp_path / "store/third")}
    for link, target in links.items():
        (tmp_path / link).symlink_to(target)
        write_atomically(tmp_path / link, link.encode())
        assert (tmp_path / link).readlink() == Path(target)
        assert (tmp_path / link).read_bytes() == link.encode()
    (tmp_path / "folder").symlink_to("store")
    write_atomically(tmp_path / "folder/old", b"through a folder")
    assert (tmp_path / "twice").read_bytes() == b"through a folder"
    assert names(tmp_path / "store") == ["new", "old", "third"]
    assert names(tmp_path) == sorted([*links, "folder", "store"])


def test_two_results_in_one_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("a")
    for other in ("link", "a"):
        with pytest.raises(ValueError, match="correct: two results would be one file, .*a; give each its own"):
            Outputs([tmp_path / "a", tmp_path / other], "correct")


def circle(folder: Path) -> Path:
    (folder / "x").symlink_to("y")
    (folder / "y").symlink_to("x")
    return folder / "x"


def dangling(folder: Path) -> Path:
    (folder / "x").symlink_to("missing/x")
    return folder / "x"


def link_to_folder(folder: Path) -> Path:
    (folder / "x").symlink_to(".")
    return folder / "x"


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "x")
    return folder / "x"


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "circle of links": (circle, "x cannot be written: Too many levels of symbolic links; choose another path"),
    "link into a missing folder": (dangling, r"the folder .*missing does not exist \(.*x is a link to it\); make it"),
    "link to a folder": (link_to_folder, "x cannot be written: it is a folder; give the name of the file"),
    "pipe": (pipe, "x is a pipe that nobody reads; start its reader"),
    "name": (lambda folder: folder / ("x" * 256), "cannot be written: File name too long; choose another path"),
    "below a file": (lambda _: Path("/dev/null/x"), "x cannot be written: /dev/null is no folder; choose another"),
    "no device": (lambda _: Path("/proc/self/fd/987"), "/proc/self/fd/987 cannot be written: No such file"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_by_name(tmp_path: Path, kind: str) -> None:
    make, said = REFUSED[kind]
    path = make(tmp_path)
    before = names(tmp_path)
    with pytest.raises(ValueError, match=f"verb: .*{said}"):
        write_atomically(path, b"1", "verb")
    assert names(tmp_path) == before


@needs_user
def test_read_only_folder_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "x").symlink_to("store/x")
    (tmp_path / "store").chmod(0o555)
    with pytest.raises(ValueError, match=r"store cannot be written to \(.*x is a link to it\); choose another path"):
        write_atomically(tmp_path / "x", b"1")


COMMAND = """
import sys, time
sys.argv[0] = "kquant"
from kquant.app import cli
from kquant.files.atomic import Outputs
def app():
    with Outputs(["a", "b"]) as new:
        new.write("a", b"new")
        print("ready", flush=True)
        time.sleep(60)
cli.app = app
cli.main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_command_that_is_stopped_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "a").write_bytes(b"old")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # what runs in the background ignores SIGINT
    )
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    assert len(names(tmp_path)) == 2
    process.send_signal(number)
    said = process.communicate(timeout=60)[1].decode()
    if number != signal.SIGINT:  # typer's own words
        assert process.returncode == 128 + number and f"stopped by {number.name}; results of earlier runs" in said
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == b"old"


def test_longest_name(tmp_path: Path) -> None:
    write_atomically(tmp_path / ("x" * 255), b"1")
    assert names(tmp_path) == ["x" * 255]


def test_pipes_and_devices_get_the_bytes(tmp_path: Path) -> None:
    write_atomically("/dev/null", b"1" * 100_000)
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "x").read_bytes()))
    pipe(tmp_path)
    reader.start()
    for _ in range(200):  # until the reader has opened it
        try:
            write_atomically(tmp_path / "x", b"1" * 100_000)
            break
        except ValueError:
            reader.join(0.01)
    reader.join(10)
    assert got == [b"1" * 100_000] and stat.S_ISFIFO((tmp_path / "x").stat().st_mode)


def test_an_open_file_by_its_number_is_written_where_it_stands(tmp_path: Path) -> None:
    """As /dev/stdout is, where the shell sends it to a file."""
    with (tmp_path / "log").open("wb", buffering=0) as log:
        log.write(b"before ")
        (tmp_path / "out").symlink_to(f"/proc/self/fd/{log.fileno()}")
        write_atomically(tmp_path / "out", b"content")
        write_atomically(f"/dev/fd/{log.fileno()}", b" twice")
        log.write(b" after")
    assert (tmp_path / "log").read_bytes() == b"before content twice after"


def test_folder_removed_meanwhile(tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "out"
    for before in (True, False):
        folder.mkdir()
        with pytest.raises(ValueError, match="verb: .*a cannot be written: No such.*the folder .*out is gone; make it"):
            with Outputs([folder / "a"], "verb") as new:
                if before:
                    shutil.rmtree(folder)
                new.write(folder / "a", b"1")
                shutil.rmtree(folder)
        assert names(tmp_path) == []


REASONS = {
    errno.ENOSPC: r"No space left on device \(it needs at least 4,000 bytes, [\d,]+ are free there\); free some space",
    errno.EDQUOT: r"Disk quota exceeded \(it needs at least 4,000 bytes\); your quota there is used up",
    errno.EROFS: "Read-only file system; nothing can be written to that file system",
    errno.EACCES: "Permission denied; give yourself the permission",
    errno.EIO: "Input/output error; choose another path",
}


@pytest.mark.parametrize("number", REASONS)
@pytest.mark.parametrize("call", ["write", "fsync", "mkdir"])
def test_what_the_system_says_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_bytes(b"old")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    said = REASONS[number] if call != "mkdir" else os.strerror(number)
    with pytest.raises(ValueError, match=f"verb: .*a cannot be written: {said}"):
        with monkeypatch.context() as patched:
            patched.setattr(os, call, refuse)
            with Outputs(paths, "verb") as new:
                new.write(paths[0], b"new." * 1000)
    assert names(tmp_path) == ["a", "b"] and {p.read_bytes() for p in paths} == {b"old"}


def test_limit_on_the_size_of_files(tmp_path: Path) -> None:
    path, limits = tmp_path / "a", resource.getrlimit(resource.RLIMIT_FSIZE)
    path.write_bytes(b"old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(ValueError, match=r"File too large \(it needs at least 2,000 bytes\); .*raise the limit"):
            write_atomically(path, b"1" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["a"] and path.read_bytes() == b"old"


@needs_root
def test_full_disk(tmp_path: Path) -> None:
    """The second of two files does not fit: neither is replaced, and the room is free again."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine mounts no tmpfs")
    try:
        paths = [tmp_path / "a", tmp_path / "b"]
        for path in paths:
            path.write_bytes(b"old")
        free = os.statvfs(tmp_path).f_bfree
        with pytest.raises(ValueError, match=r"b cannot be written: No space .* least 60,000 bytes, 2\d,\d+ are free"):
            with Outputs(paths) as new:
                new.write(paths[0], b"1" * 30_000)
                new.write(paths[1], b"1" * 60_000)
        assert names(tmp_path) == ["a", "b"] and {p.read_bytes() for p in paths} == {b"old"}
        assert os.statvfs(tmp_path).f_bfree == free
        (tmp_path.parent / "link").symlink_to(tmp_path / "c")  # a result on another file system
        write_atomically(tmp_path.parent / "link", b"1")
        assert (tmp_path / "c").read_bytes() == b"1"
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_the_root_of_an_error_is_told(tmp_path: Path) -> None:
    """Keras' archives fail a second time when they are closed."""
    with pytest.raises(ValueError, match=r"a cannot be written: No space left on device \(it needs at least 9 bytes"):
        with Outputs([tmp_path / "a"]) as new, new.making(tmp_path / "a", 9) as made:
            try:
                made.write_bytes(b"half")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                raise ValueError("Can't close the ZIP file")
    assert names(tmp_path) == []


def test_a_move_that_fails_is_named(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "abc"]
    with pytest.raises(ValueError, match=r"verb: .*b cannot be written: Is a directory. Replaced were a, c; choose"):
        with Outputs(paths, "verb") as new:
            for path in paths:
                new.write(path, b"1")
            paths[1].mkdir()  # by somebody else, after the check
    assert names(tmp_path) == ["a", "b", "c"]
    (tmp_path / "a").unlink()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").rmdir()
    with pytest.raises(ValueError, match=r"a cannot be written: it is a folder"):
        Outputs(paths, "verb")


def test_results_that_were_not_written_leave_the_old_ones(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"old")
    with Outputs([tmp_path / "a", tmp_path / "b"]) as new:
        new.write(tmp_path / "a", b"1")
    assert (tmp_path / "b").read_bytes() == b"old" and names(tmp_path) == ["a", "b"]


def test_destination_names_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("store")
    found = destination(tmp_path / "link")
    assert (found.given, found.real, found.takes_bytes) == (tmp_path / "link", tmp_path / "store", False)
    assert destination("/dev/stdout").takes_bytes


def test_interrupted_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    from kquant.files.atomic import write_atomically

    (tmp_path / "m.tflite").mkdir()
    with pytest.raises(ValueError, match="cannot be written"):
        write_atomically(tmp_path / "m.tflite", b"bytes")
    assert [p.name for p in tmp_path.iterdir()] == ["m.tflite"]

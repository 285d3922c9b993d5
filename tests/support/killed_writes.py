"""Writers that end before their n-th call to the system, for every n: killed, or by Ctrl-C. A script of its own.

Prints for each scene and end how often the old files and how often the new ones were there afterwards. A fork for
each n: it costs a millisecond, because nothing here loads TensorFlow.
"""

import json
import os
import signal
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

sys.argv[0] = "kquant"  # the light import of the command

from kquant.files.atomic import Outputs, write_atomically  # noqa: E402
from kquant.files.leftovers import settle  # noqa: E402

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # what crashes of the machine keep is no subject
OLD, NEW = b"old " * 1000, b"new " * 1000
CALLS = ("open", "write", "fsync", "close", "mkdir", "rmdir", "scandir", "replace", "rename", "unlink", "chmod")


def one(folder):
    write_atomically(folder / "a.bin", NEW)


def three(folder):
    with Outputs([folder / name for name in ("a.bin", "b.bin", "c.bin")]) as new:
        for path in new.places:
            new.write(path, NEW)


def apart(folder):
    """Two folders, and a link."""
    paths = [folder / "a.bin", folder / "link.bin", folder / "elsewhere/b.bin"]
    with Outputs(paths) as new:
        for path in paths:
            new.write(path, NEW)


def files_of(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*.bin")) if not any(".kquant-" in x for x in p.parts)}


def begin(folder, names):
    (folder / "elsewhere").mkdir()
    for name in names:
        (folder / name).write_bytes(OLD)
    (folder / "notes.txt").write_bytes(b"mine")
    if "elsewhere/target.bin" in names:
        (folder / "link.bin").symlink_to("elsewhere/target.bin")


class Ends:
    """Counts calls to the system, and ends the process or the work before the n-th; a write is cut in two."""

    def __init__(self, number, how):
        self.left, self.how = number, how
        for name in CALLS:
            setattr(os, name, self.counted(name, getattr(os, name)))

    def counted(self, name, call):
        def counting(*args, **kwargs):
            self.left -= 1
            if self.left == 0:
                if name == "write":
                    call(args[0], args[1][: len(args[1]) // 2])
                self.end()
            return None if name == "fsync" else call(*args, **kwargs)

        return counting

    def end(self):
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise KeyboardInterrupt


def run(work, number, how):
    """The work in a process of its own; True where it came to its end."""
    child = os.fork()
    if child == 0:
        warnings.simplefilter("ignore")
        Ends(number, how)
        try:
            work()
        except KeyboardInterrupt:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def check(folder, before, clean, number=0):
    """Whole files at any time; after the next run all old or all new, and nothing else."""
    assert set(files_of(folder).values()) <= {OLD, NEW}, "half a file"
    if clean:
        assert not list(folder.rglob(".kquant-*")), "Ctrl-C left something"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for each in (folder, folder / "elsewhere")[:: 1 if number % 2 else -1]:  # whichever the next run looks into
            settle(each)
    content = set(files_of(folder).values())
    assert len(content) == 1, f"a mixture: {files_of(folder).keys()}"
    assert (folder / "notes.txt").read_bytes() == b"mine"
    assert sorted(p for p in folder.rglob("*") if not p.is_dir()) == before
    return "new" if content == {NEW} else "old"


SCENES = {
    "one": (one, ["a.bin"]),
    "three": (three, ["a.bin", "b.bin", "c.bin"]),
    "apart": (apart, ["a.bin", "elsewhere/target.bin", "elsewhere/b.bin"]),
}


def scene(work, names, how):
    """Of every n: what was there afterwards."""
    found, number, done = Counter(), 0, False
    while not done:
        number += 1
        with tempfile.TemporaryDirectory(dir=MEMORY) as made:
            folder = Path(made)
            begin(folder, names)
            before = sorted(p for p in folder.rglob("*") if not p.is_dir())
            done = run(lambda folder=folder: work(folder), number, how)
            found["done" if done else check(folder, before, how != "kill", number)] += 1
    return found


def mending():
    """The next run is killed before its n-th call too, while it finishes what a killed one had decided."""
    work, names = SCENES["apart"]
    found, number, killed_at, done = Counter(), 0, 1, False
    while not done:
        with tempfile.TemporaryDirectory(dir=MEMORY) as made:
            folder = Path(made)
            begin(folder, names)
            before = sorted(p for p in folder.rglob("*") if not p.is_dir())
            run(lambda folder=folder: work(folder), killed_at, "kill")
            if not list(folder.glob(".kquant-*/moves.json")):
                killed_at += 1  # not decided yet
                continue
            number += 1
            done = run(lambda folder=folder: settle(folder), number, "kill")
            state = check(folder, before, False, number)
            assert state == "new", "it was decided"
            found["done" if done else state] += 1
    return found


if __name__ == "__main__":
    table = {f"{name}, {how}": scene(*SCENES[name], how) for name in SCENES for how in ("kill", "Ctrl-C")}
    table["mending, kill"] = mending()
    print(json.dumps(table))

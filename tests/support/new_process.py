"""A process of its own that has TensorFlow and Keras imported and nothing else done, without waiting for the imports.

One server for each process of the tests imports both, makes nothing with them, and forks: no model, no device and no
module of ours is in a child before its first line. What is about the start itself (what the command prints, what is
imported when) needs `subprocess`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import tempfile
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tensorflow", "keras"])
ROOT = str(Path(__file__).parents[2])


def _child(code: str, arguments: list[str], folder: str | None, environment: dict[str, str], said: str) -> None:
    """What `python -c code *arguments` does, with both streams written to files."""
    for name, stream in (("out", sys.stdout), ("err", sys.stderr)):
        file = os.open(f"{said}/{name}", os.O_WRONLY | os.O_CREAT)
        os.dup2(file, 1 if name == "out" else 2)
        with contextlib.suppress(ValueError):  # a stream of the server that is closed
            stream.flush()
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.environ.update(environment)
    if folder:
        os.chdir(folder)
    sys.argv = ["-c", *arguments]
    sys.path[:] = [ROOT, *(p for p in sys.path if p != ROOT)]
    exec(compile(code, "-c", "exec"), {"__name__": "__main__"})


@dataclass
class Started:
    """One that runs: `wait` for it, or `kill` it."""

    process: BaseProcess
    said: tempfile.TemporaryDirectory = field(repr=False)

    def wait(self, seconds: float = 300) -> Done:
        self.process.join(seconds)
        late = self.process.exitcode is None
        self.kill()
        out, err = ((Path(self.said.name) / name).read_text(errors="replace") for name in ("out", "err"))
        self.said.cleanup()
        return Done(-1 if late else self.process.exitcode, out, err + f"\nnot done in {seconds} s" * late)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


@dataclass(frozen=True)
class Done:
    """What came of it."""

    returncode: int
    stdout: str
    stderr: str


def start(code: str, *arguments: object, folder: Path | None = None, **environment: str) -> Started:
    """Begin to run `code` in `folder`, with more variables of the environment."""
    said = tempfile.TemporaryDirectory()
    given = (code, [str(a) for a in arguments], folder and str(folder), environment, said.name)
    process = _SERVER.Process(target=_child, args=given)
    process.start()
    return Started(process, said)


def run(code: str, *arguments: object, folder: Path | None = None, **environment: str) -> Done:
    """What `code` prints, and how it ends."""
    return start(code, *arguments, folder=folder, **environment).wait()

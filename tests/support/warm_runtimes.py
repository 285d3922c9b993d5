"""Interpreters in processes of their own without waiting for their imports: each is forked from one that has done them.

One server for each process of the tests imports what the runtimes need and nothing else, and forks. How such a process
starts is what tests/runtime looks at; there it starts as it does for users.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

INTERPRETERS = Path(__file__).parents[2] / "kquant" / "runtime" / "interpreters.py"


# An object that is gone while its process runs warns of it, in whatever test that is.
_KEPT: list[subprocess.Popen] = []


@cache
def _server() -> socket.socket:
    """Where to ask for a process, in one message: its task, its streams, and where to tell what becomes of it."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    _KEPT.append(subprocess.Popen([sys.executable, "-P", __file__, str(there.fileno())], pass_fds=[there.fileno()]))
    there.close()
    return here


class Process:
    """As much of `subprocess.Popen` as `kquant.runtime.running` uses."""

    def __init__(self, command: list[str], *, stderr: IO[bytes], **_: Any) -> None:
        (its_input, to_it), (from_it, its_output), (self._told, tells) = (os.pipe() for _ in range(3))
        socket.send_fds(_server(), [command[-1].encode()], [its_input, its_output, stderr.fileno(), tells])
        for end in (its_input, its_output, tells):
            os.close(end)
        self.stdin, self.stdout = os.fdopen(to_it, "wb"), os.fdopen(from_it, "rb")
        self.returncode: int | None = None
        self.pid = self._number()

    def _number(self) -> int:
        told = os.read(self._told, 4)
        if not told:
            raise RuntimeError("the server of the runtimes has ended")
        return int.from_bytes(told, "little", signed=True)

    def kill(self) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = self._number()
            os.close(self._told)
        return self.returncode


def _run(command: list[str], *, input: bytes, **_: Any) -> subprocess.CompletedProcess[bytes]:
    with tempfile.TemporaryFile() as said:
        process = Process(command, stderr=said)
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(input)
        with process.stdout:
            printed = process.stdout.read()
        code = process.wait()
        said.seek(0)
        return subprocess.CompletedProcess(command, code, printed, said.read())


AS_SUBPROCESS = SimpleNamespace(Popen=Process, run=_run, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired)


def _serve(channel: socket.socket) -> None:
    """Fork for each message, until nobody can send any more; returns in every fork that has done its task, too."""
    spec = importlib.util.spec_from_file_location("interpreters", INTERPRETERS)
    assert spec is not None and spec.loader is not None
    interpreters = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(interpreters)
    with contextlib.suppress(ImportError):  # TFLM's interpreter exists for some systems only
        interpreters._load("tflm")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        task, ends, *_ = socket.recv_fds(channel, 64, 4)
        if not task:
            return
        if os.fork() == 0:
            break
        for end in ends:
            os.close(end)
    channel.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *streams, tells = ends
    process = os.fork()
    if process == 0:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        for end in ends:
            os.close(end)
        sys.argv[1:] = [task.decode()]
        interpreters.main()
        return
    for stream in streams:
        os.close(stream)
    os.write(tells, process.to_bytes(4, "little"))
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    os.write(tells, code.to_bytes(4, "little", signed=True))
    os._exit(0)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))

"""What a file takes on TFLM: the smallest arena, what TFLM says of it, and the time of a call on this machine."""

from __future__ import annotations

import io
import re
import subprocess

import numpy as np

from kquant import targets
from kquant.core.operators import facts
from kquant.runtime import interpreters, running
from kquant.runtime.running import ARENA, available
from kquant.targets import Target
from kquant.tflite.reader import FileModel, refuse_damaged

PARTS = ("total", "head", "tail")


def arena_bytes(data: bytes) -> int | None:
    """Bytes of the smallest arena in which TFLM prepares and runs a file on this 64-bit host; None without `micro`.

    By trial: what it says to have used is less where it needs more while it prepares the file.

    Args:
        data: a `.tflite` file.

    Raises:
        ValueError: TFLM does not prepare the file, with what it said.
    """
    if ARENA not in available():
        return None
    return _told("smallest", data, r"smallest arena (\d+) bytes")[0]


def host_ms(data: bytes) -> float | None:
    """Milliseconds of a call of TFLM on this machine, the fastest of 50 (or of 2 s), in time of its process; zeros in.

    TFLM's reference kernels on a PC: what decoding adds to a call, not what a microcontroller takes. None without
    `micro`.

    Args:
        data: a `.tflite` file.

    Raises:
        ValueError: TFLM does not run the file, with what it said.
    """
    if ARENA not in available():
        return None
    return _told("time", data, r"fastest call (\d+) ns")[0] / 1e6


def arena_of(data: bytes, file: FileModel, target: Target) -> int | None:
    """`arena_bytes` of a file for any target; None for one that TFLM does not run.

    Args:
        data: the file.
        file: what `read_model` says of it.
        target: that it was written for.

    Raises:
        ValueError: TFLM does not prepare it, and the target is one of those that run on it.
    """
    if not has_kernels(file):
        return None
    try:
        return arena_bytes(data)
    except ValueError:
        if ARENA in target.runtimes:
            raise
        return None  # beyond TFLM's limits, which do not concern this target


def has_kernels(file: FileModel) -> bool:
    """Whether TFLM has every operator of a file; one for another target may have further."""
    known = targets.load(ARENA)
    return all(known.supports(op.code) or facts(op.code).unlisted for op in file.operators)


def arena_parts(data: bytes) -> tuple[int, int, int]:
    """Bytes of tensor arena that TFLM says to use: all, those for tensors that share memory, and the rest.

    Args:
        data: a `.tflite` file.

    Raises:
        ValueError: TFLM does not prepare the file, with what it said.
    """
    total, head, tail = _told("arena", data, *(rf"Arena allocation {part} (\d+) bytes" for part in PARTS))
    return total, head, tail


def _told(task: str, data: bytes, *patterns: str) -> list[int]:
    """The numbers that a task prints, in a process of its own: a bad file cannot take this one along."""
    refuse_damaged(data)
    try:
        done = _asked(task, data, running.ANSWER_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"TFLM has not prepared this file after {running.ANSWER_SECONDS} s.") from error
    said = (done.stdout + done.stderr).decode(errors="replace")
    matches = [match for pattern in patterns if (match := re.search(pattern, said)) is not None]
    if len(matches) < len(patterns):
        raise ValueError(f"TFLM cannot prepare this file:\n{said[-800:]}")
    return [int(match[1]) for match in matches]


def _asked(task: str, data: bytes, seconds: float) -> subprocess.CompletedProcess[bytes]:
    request = io.BytesIO()
    interpreters.send(request, [np.frombuffer(data, np.uint8)])
    return running.subprocess.run(
        running.process_of(task), input=request.getvalue(), capture_output=True, check=False, timeout=seconds
    )

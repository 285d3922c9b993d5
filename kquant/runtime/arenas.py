"""What TFLM says of the arena of a file, and whether one of a given size is enough."""

from __future__ import annotations

import io
import re
import subprocess

import numpy as np

from kquant.runtime import interpreters, running
from kquant.runtime.running import ARENA, available
from kquant.tflite.reader import refuse_damaged

TRIAL_SECONDS = 60  # of one arena


def arena_bytes(data: bytes) -> int | None:
    """Bytes of tensor arena that TFLM uses on this 64-bit host; None without the `micro` extra.

    Args:
        data: a `.tflite` file.

    Raises:
        ValueError: TFLM does not prepare the file, with what it said.
    """
    return arena_parts(data)[0] if ARENA in available() else None


def arena_parts(data: bytes) -> tuple[int, int, int]:
    """Bytes of tensor arena that TFLM uses on this 64-bit host: all, those for tensors that share memory, and the rest.

    The interpreter only prints the figures, so it runs in a process of its own; a bad file cannot take this one along.

    Args:
        data: a `.tflite` file.

    Raises:
        ValueError: TFLM does not prepare the file, with what it said.
    """
    refuse_damaged(data)
    try:
        done = _asked("arena", data, [], running.ANSWER_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"TFLM has not prepared this file after {running.ANSWER_SECONDS} s.") from error
    said = (done.stdout + done.stderr).decode(errors="replace")
    told = [re.search(rf"Arena allocation {part} (\d+) bytes", said) for part in ("total", "head", "tail")]
    if told[0] is None or told[1] is None or told[2] is None:
        raise ValueError(f"TFLM cannot prepare this file:\n{said[-800:]}")
    return int(told[0][1]), int(told[1][1]), int(told[2][1])


def fits_arena(data: bytes, size: int) -> bool:
    """True where TFLM prepares and runs a file in an arena of that size, in a process of its own.

    Args:
        data: a `.tflite` file that TFLM runs.
        size: in bytes.
    """
    try:
        return _asked("fits", data, [np.array([size], np.int64)], TRIAL_SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _asked(task: str, data: bytes, more: list[np.ndarray], seconds: float) -> subprocess.CompletedProcess[bytes]:
    request = io.BytesIO()
    interpreters.send(request, [np.frombuffer(data, np.uint8)])
    if more:
        interpreters.send(request, more)
    return running.subprocess.run(
        running.process_of(task), input=request.getvalue(), capture_output=True, check=False, timeout=seconds
    )

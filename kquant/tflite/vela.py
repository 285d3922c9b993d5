"""Arm's compiler Vela, which stores the weights of an Ethos-U compressed: zeros and repeated values cost less."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kquant.files.leftovers import scratch, write_new
from kquant.tflite.reader import read_bytes

VELA_SECONDS = 600
NEEDED = "needs Arm's compiler Vela: pip install 'kquant[ethos-u]'."


def find_vela() -> str | None:
    """The command `vela` beside this Python or on the path; None where it is not installed."""
    return shutil.which("vela", path=str(Path(sys.executable).parent)) or shutil.which("vela")


def vela_bytes(path: str | Path | bytes, accelerator: str = "ethos-u55-128") -> int:
    """Bytes of all weights as Vela encodes them.

    Args:
        path: a full-integer `.tflite` file, or its bytes.
        accelerator: as Vela names it, "ethos-u55-32" to "ethos-u65-512".

    Returns:
        `total_npu_encoded_weights` of Vela's summary: weights and scales of what runs on the NPU.

    Raises:
        ValueError: without the `ethos-u` extra, or Vela refuses the file.

    Example:
        >>> kquant.vela_bytes(b"no model")
        Traceback (most recent call last):
        ValueError: vela_bytes...
    """
    vela = find_vela()
    if vela is None:
        raise ValueError(f"vela_bytes {NEEDED}")
    content = read_bytes(path)
    with scratch() as folder:
        try:
            said = _compiled(vela, content, accelerator, folder)
        except subprocess.TimeoutExpired as error:
            raise ValueError(f"vela_bytes: Vela was not done with this file after {VELA_SECONDS} s.") from error
        summary = next(folder.glob("*_summary_*.csv"), None)
        if said.returncode != 0 or summary is None:
            lines = [line for line in (said.stdout + said.stderr).splitlines() if line.strip()]
            raise ValueError(f"vela_bytes: Vela refuses the file: {' | '.join(lines[-3:])}")
        with summary.open(newline="") as rows:
            return int(float(next(csv.DictReader(rows))["total_npu_encoded_weights"]))


@dataclass(frozen=True)
class Left:
    """What Vela left to the processor.

    Attributes:
        version: of Vela, in words.
        left: name of an operator's first output -> why it stays there.
    """

    version: str
    left: Mapping[str, str]


def left_by_vela(content: bytes, accelerator: str) -> Left | None:
    """The operators of a file that Vela leaves to the processor, in its own words.

    Args:
        content: of a full-integer file.
        accelerator: see `vela_bytes`.

    Returns:
        None where Vela is not installed, or ends without an answer.

    Example:
        >>> left_by_vela(b"no model", "ethos-u55-128") is None
        True
    """
    vela = find_vela()
    if vela is None:
        return None
    with scratch() as folder:
        try:
            said = _compiled(vela, content, accelerator, folder, "--show-cpu-operations")
            version = _version(vela)
        except (subprocess.SubprocessError, OSError):
            return None
    if said.returncode != 0:
        return None
    text = said.stdout + said.stderr
    left = dict.fromkeys(re.findall(r"^\s*CPU: .+? = (\S+) \(outputs", text, re.M), "Vela leaves it to the processor")
    # what was split into several on the way is told by a name of Vela's own; its reason names the file's tensor
    reasons = re.findall(r"^Warning \(supported operators\) operator: \S+ ofm: '([^']*)'\s*\nReason: (.*)$", text, re.M)
    return Left(version, {**left, **dict(reasons)})


@cache
def _version(vela: str) -> str:
    """What the command calls itself; it does not change while a program runs."""
    said = subprocess.run([vela, "--version"], capture_output=True, text=True, check=True, timeout=60)
    return f"Vela {said.stdout.strip()}"


def _compiled(
    vela: str, content: bytes, accelerator: str, folder: Path, *more: str
) -> subprocess.CompletedProcess[str]:
    """What Vela says of a file; what it writes is in the folder."""
    file = folder / "model.tflite"
    write_new(file, content)  # the folder is held by this run: a move into it would wait for itself
    command = [vela, str(file), "--accelerator-config", accelerator, "--output-dir", str(folder), *more]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=VELA_SECONDS)

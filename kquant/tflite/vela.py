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

import numpy as np

from kquant.files.leftovers import scratch, write_new
from kquant.files.untrusted import read_file
from kquant.tflite.memory_plan import aligned_bytes
from kquant.tflite.reader import MOST_BYTES, SCHEMA, read_bytes, read_model

VELA_SECONDS = 600
PLAIN = "ethos-u55-128"  # where nobody names another accelerator
NPU = "ethos-u"  # the operator that Vela puts in place of what it compiles
WRITTEN = "model_vela.tflite"
NEEDED = "needs Arm's compiler Vela: pip install 'kquant[ethos-u]'."


def find_vela() -> str | None:
    """The command `vela` beside this Python or on the path; None where it is not installed."""
    return shutil.which("vela", path=str(Path(sys.executable).parent)) or shutil.which("vela")


@dataclass(frozen=True)
class Compiled:
    """What Vela made of a file.

    Attributes:
        version: of Vela, in words.
        content: the file that it wrote.
        left: name of an operator's first output -> why it stays on the processor.
        weight_bytes: of all weights and scales as the NPU reads them; None where nothing runs on it.
    """

    version: str
    content: bytes
    left: Mapping[str, str]
    weight_bytes: int | None


def vela_bytes(path: str | Path | bytes, accelerator: str = PLAIN) -> int:
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
    if find_vela() is None:
        raise ValueError(f"vela_bytes {NEEDED}")
    weight_bytes = compiled(read_bytes(path), accelerator, "vela_bytes").weight_bytes
    if weight_bytes is None:
        raise ValueError("vela_bytes: Vela wrote no summary of this file.")
    return weight_bytes


def left_by_vela(content: bytes, accelerator: str) -> Compiled | None:
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
    if find_vela() is None:
        return None
    try:
        return compiled(content, accelerator, "check")
    except ValueError:
        return None


def compiled(content: bytes, accelerator: str, who: str) -> Compiled:
    """A file as Vela compiles it.

    Args:
        content: of a full-integer file.
        accelerator: see `vela_bytes`.
        who: asks, for messages.

    Raises:
        ValueError: Vela is not installed, has no such accelerator, refuses the file, or does not end.

    Example:
        >>> compiled(b"no model", "ethos-u55-128", "bundle")
        Traceback (most recent call last):
        ValueError: bundle...
    """
    vela = find_vela()
    if vela is None:
        raise ValueError(f"{who} {NEEDED}")
    with scratch() as folder:
        try:
            said = _run(vela, content, accelerator, folder)
            version = _version(vela)
        except subprocess.TimeoutExpired as error:
            raise ValueError(f"{who}: Vela was not done with this file after {VELA_SECONDS} s.") from error
        except (subprocess.SubprocessError, OSError) as error:
            raise ValueError(f"{who}: Vela cannot be started: {error}. Install it anew.") from error
        text, made = said.stdout + said.stderr, folder / WRITTEN
        if said.returncode != 0 or not made.is_file():
            lines = [line for line in text.splitlines() if line.strip()]
            raise ValueError(f"{who}: Vela refuses the file: {' | '.join(lines[-3:])}")
        return Compiled(version, read_file(made, str(made), MOST_BYTES), _left(text), _weights(folder))


def planned_bytes(content: bytes) -> int:
    """Of a file that Vela wrote, the memory that its tensors share, where Vela laid them.

    Args:
        content: of the file, which tells the place of each tensor, or -1 (`OfflineMemoryAllocation`).
    """
    model = SCHEMA.Model.GetRootAs(content, 0)
    entries = [model.Metadata(n) for n in range(model.MetadataLength())]
    entry = next((e for e in entries if e.Name() == b"OfflineMemoryAllocation"), None)
    if entry is None:
        return 0
    # a version, the number of the subgraph, how many there are, and then the places, all int32
    starts = model.Buffers(entry.Buffer()).DataAsNumpy().tobytes()
    tensors = read_model(content).tensors
    laid = zip(tensors, np.frombuffer(starts, "<i4")[3:].tolist(), strict=False)
    return max((start + aligned_bytes(t) for t, start in laid if start >= 0), default=0)


def _left(text: str) -> dict[str, str]:
    """What stays on the processor, and why, as Vela prints it."""
    left = dict.fromkeys(re.findall(r"^\s*CPU: .+? = (\S+) \(outputs", text, re.M), "Vela leaves it to the processor")
    # what was split into several on the way is told by a name of Vela's own; its reason names the file's tensor
    reasons = re.findall(r"^Warning \(supported operators\) operator: \S+ ofm: '([^']*)'\s*\nReason: (.*)$", text, re.M)
    return {**left, **dict(reasons)}


def _weights(folder: Path) -> int | None:
    summary = next(folder.glob("*_summary_*.csv"), None)
    if summary is None:
        return None
    with summary.open(newline="") as rows:
        return int(float(next(csv.DictReader(rows))["total_npu_encoded_weights"]))


@cache
def _version(vela: str) -> str:
    """What the command calls itself; it does not change while a program runs."""
    said = subprocess.run([vela, "--version"], capture_output=True, text=True, check=True, timeout=60)
    return f"Vela {said.stdout.strip()}"


def _run(vela: str, content: bytes, accelerator: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What Vela says of a file; what it writes is in the folder."""
    file = folder / "model.tflite"
    write_new(file, content)  # the folder is held by this run: a move into it would wait for itself
    command = [vela, str(file), "--accelerator-config", accelerator, "--output-dir", str(folder)]
    command.append("--show-cpu-operations")
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=VELA_SECONDS)

"""Arm's compiler Vela, which stores the weights of an Ethos-U compressed: zeros and repeated values cost less."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from pathlib import Path

from kquant.files.atomic import write_atomically
from kquant.files.leftovers import scratch
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
        file = folder / "model.tflite"
        write_atomically(file, content, "vela_bytes")
        command = [vela, str(file), "--accelerator-config", accelerator, "--output-dir", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=VELA_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise ValueError(f"vela_bytes: Vela was not done with this file after {VELA_SECONDS} s.") from error
        summary = next(folder.glob("*_summary_*.csv"), None)
        if done.returncode != 0 or summary is None:
            lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            raise ValueError(f"vela_bytes: Vela refuses the file: {' | '.join(lines[-3:])}")
        with summary.open(newline="") as rows:
            return int(float(next(csv.DictReader(rows))["total_npu_encoded_weights"]))

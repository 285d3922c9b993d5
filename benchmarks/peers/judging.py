"""What a file is worth: accuracy and nearness to the float model on every runtime, bytes, arena, floats, parity."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np

import kquant
from benchmarks.latency import latencies_ms
from benchmarks.peers.tasks import loaded
from kquant.runtime.arenas import arena_bytes
from kquant.runtime.running import available
from kquant.tflite.file_model import float_operators
from kquant.tflite.reader import read_model

SOME = {"tflm": 500, "litert-reference": 2_000}  # samples, of interpreters that are slow


def judged(home: Path, out: Path, report: dict[str, Any]) -> dict[str, Any]:
    """A report with what its file, or its simulation where there is none, is worth."""
    reference, y = loaded(home, "float"), loaded(home, "y")
    row = {key: value for key, value in report.items() if key != "file"}
    simulated = loaded(out, "simulated")
    if simulated is not None:
        row["simulated"] = _worth(simulated, reference, y)
    if report.get("file"):
        path = out / report["file"]
        row |= _file(path, loaded(home, "x"), reference, y, simulated)
    return row


def _worth(outputs: np.ndarray, reference: np.ndarray, y: np.ndarray | None) -> dict[str, float]:
    """Accuracy in %, where there are labels, and dB of signal over the difference to the float model."""
    count = len(outputs)
    noise = float(np.mean((reference[:count].astype(np.float64) - outputs) ** 2))
    power = float(np.mean(reference[:count].astype(np.float64) ** 2))
    worth = {"sqnr_db": round(10 * float(np.log10(power / max(noise, 1e-30))), 2), "samples": count}
    if y is not None:
        worth["accuracy"] = round(100 * float(np.mean(outputs.argmax(-1) == y[:count])), 2)
    return worth


def _file(
    path: Path, x: np.ndarray, reference: np.ndarray, y: np.ndarray | None, simulated: np.ndarray | None
) -> dict[str, Any]:
    content = path.read_bytes()
    file = read_model(content)
    row: dict[str, Any] = {
        "bytes": len(content),
        "gzip_bytes": len(gzip.compress(content, 9, mtime=0)),
        "operators": len(file.operators),
        "float_operators": len(float_operators(file)),
        "runs": {},
    }
    for runtime in available():
        some = x[: SOME.get(runtime)]
        try:
            outputs = kquant.predict(content, some, runtime)
        except ValueError as error:
            row["runs"][runtime] = {"refused": str(error).splitlines()[0][:200]}
            continue
        row["runs"][runtime] = _worth(outputs, reference, y)
        if simulated is not None and file.outputs[0].scale is not None:
            row["runs"][runtime] |= _parity(outputs, simulated[: len(outputs)], file.outputs[0].scale[0])
    runs_there = "refused" not in row["runs"].get("tflm", {"refused": "not installed"})
    row["arena_bytes"] = arena_bytes(content) if runs_there else None
    return row


def _parity(outputs: np.ndarray, simulated: np.ndarray, step: float) -> dict[str, float]:
    """Share of output codes that are the simulation's, and the largest difference in steps."""
    apart = np.abs(np.rint(outputs / step) - np.rint(simulated / step))
    return {"equal": round(float(np.mean(apart == 0)), 4), "max_lsb": int(apart.max())}


def latencies(files: dict[str, Path]) -> dict[str, float]:
    """ms of an invocation of each file on LiteRT, one thread, by turns."""
    return dict(zip(files, (round(ms, 5) for ms in latencies_ms(list(files.values()), rounds=7)), strict=True))

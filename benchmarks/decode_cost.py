"""What decoding costs a call: instructions that TFLM executes, of files of MLPerf Tiny's models without and with codes.

    instructions of a call = (a process that calls 3 times - one that calls once) / 2

counted by Valgrind's cachegrind, which executes x86 instructions one by one: what else the machine does changes
nothing, and files with the same operators have the same count. The kernels are TFLM's reference ones, compiled for
x86: a microcontroller's take fewer instructions for a product, and decode with the same code as these.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import kquant
from benchmarks.assets import TASKS, task
from benchmarks.choice import one_of
from benchmarks.codes import quantized
from kquant.files.atomic import write_atomically

RESULTS = Path(__file__).parent / "results" / "decode_cost.json"
CALLS = (1, 3)
CALL = """
import sys
from tflite_micro import runtime
interpreter = runtime.Interpreter.from_bytes(open(sys.argv[1], "rb").read(), arena_size=1 << 20)
for _ in range(int(sys.argv[2])):
    interpreter.invoke()
"""
CODES = {"compression": "auto", "strip_names": True}
FORMS: dict[str, dict[str, dict[str, Any]]] = {
    "int8": {"all channels": {"shrink": False}, "shrunk": {}, "codes": CODES},
    "one scale": {"shrunk": {}, "codes": CODES},
}


def instructions(path: Path) -> int:
    """Of one call with whatever lies in the arena; a code takes no other way for another."""
    counts = [_counted(path, calls) for calls in CALLS]
    return round((counts[1] - counts[0]) / (CALLS[1] - CALLS[0]))


def _counted(path: Path, calls: int) -> int:
    tool = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    settings = {**os.environ, "PYTHONHASHSEED": "0"}
    made = subprocess.run(
        [*tool, sys.executable, "-c", CALL, str(path), str(calls)], capture_output=True, text=True, env=settings
    )
    found = re.search(r"I\s+refs:\s+([\d,]+)", made.stderr)
    if made.returncode or found is None:
        raise SystemExit(f"valgrind counted nothing for {path}: {made.stderr[-500:]}")
    return int(found[1].replace(",", ""))


def row(q: Any, path: Path, form: dict[str, Any]) -> dict[str, int]:
    """Bytes, instructions, and steps of decoding."""
    made = kquant.export(q, path, check_runtimes=False, **form)
    told = {"bytes": made.file_bytes, "instructions": instructions(path)}
    return told if made.decoding is None else {**told, "lookups": made.decoding.lookups}


def measured(name: str, folder: Path) -> dict[str, dict[str, int]]:
    """A row for each form of a model."""
    t, rows = task(name), {}
    for variant, forms in FORMS.items():
        q = quantized(t, variant)
        rows |= {f"{variant}, {key}": row(q, folder / "m.tflite", form) for key, form in forms.items()}
    return rows


def main() -> None:
    """Parse, count, print a row for each file and keep all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", type=one_of(TASKS), default=list(TASKS), help=f"of {', '.join(TASKS)}")
    args = parser.parse_args()
    if shutil.which("valgrind") is None:
        raise SystemExit("counting instructions takes Valgrind: install it (apt-get install valgrind).")
    for name in args.names:
        with tempfile.TemporaryDirectory() as folder:
            rows = measured(name, Path(folder))
        for form, told in rows.items():
            cells = (f"{told[key]:,}" if key in told else "-" for key in ("bytes", "instructions", "lookups"))
            print(f"| {name}, {form} | {' | '.join(cells)} |", flush=True)
        kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
        write_atomically(RESULTS, f"{json.dumps({**kept, name: rows}, indent=1)}\n".encode())


if __name__ == "__main__":
    main()

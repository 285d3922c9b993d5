"""Bytes, arena, multiplications and time of MLPerf Tiny's models without the channels that no output depends on.

Nothing is trained, and no code changes: outputs are compared with those of the whole file, on samples and random codes,
on TFLM and on LiteRT's reference kernels.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import kquant
from benchmarks.assets import TASKS, Task, task
from benchmarks.choice import one_of
from benchmarks.codes import inputs, milliseconds, quantized
from kquant.runtime.arenas import arena_bytes
from kquant.runtime.running import probe
from kquant.sizing.operator_figures import figures_of

RUNTIMES = ("tflm", "litert-reference")
FORMS = (None, "auto")


def rows(t: Task, folder: Path) -> Any:
    """A line of the table in docs/benchmarks.md for the whole file and for the narrow one, plain and in codes."""
    q, whole, expected = quantized(t, "int8"), 0, {}
    for shrink in (False, True):
        for form in FORMS:
            made = kquant.export(q, folder / "m.tflite", check_runtimes=False, shrink=shrink, compression=form)
            content = (folder / "m.tflite").read_bytes()
            codes = inputs(t, content)
            whole = whole or len(content)
            # LiteRT has no DECODE
            found = {name: probe(content, name, [codes])[0] for name in RUNTIMES if form is None or name == "tflm"}
            expected = expected or found
            same = all(np.array_equal(found[name], expected[name]) for name in found)
            arena = arena_bytes(content)
            yield (
                t.name,
                "no" if not shrink else f"{sum(r.channels - r.kept for r in made.removed):,} channels",
                form or "plain",
                f"{len(content):,}",
                f"{len(content) / whole:.3f}",
                f"{made.weights.totals['raw_bytes']:,}",
                f"{figures_of(folder / 'm.tflite').macs:,}",
                f"{arena:,}",
                f"{milliseconds(content, arena + 4096, codes[:1]):.2f}",
                f"equal on {', '.join(found)}" if same else "DIFFERENT",
            )


def main() -> None:
    """Parse, measure, print a row at a time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", type=one_of(TASKS), default=list(TASKS), help=f"of {', '.join(TASKS)}")
    args = parser.parse_args()
    columns = ("model", "left out", "weights", "bytes", "ratio", "codes", "MACs", "arena", "ms", "outputs")
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}", flush=True)
    for name in args.names:
        with tempfile.TemporaryDirectory() as folder:
            for row in rows(task(name), Path(folder)):
                print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()

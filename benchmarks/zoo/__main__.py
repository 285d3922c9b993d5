"""Detectors, segmenters, speech, transformers and signals through quantization: `python -m benchmarks.zoo`.

Each architecture (random weights, settled batch norms, made-up inputs) in a process of its own, by recipe and target,
TensorFlow's converter beside it. Rows that are there already are not measured again without `--again`. Writes
benchmarks/results/zoo.json and the table of docs/zoo.md. Random weights show coverage and noise, not accuracy.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from typing import Any

from tqdm import tqdm

from benchmarks.zoo import ZOO, table

PEER = "converter"


def child(name: str, ways: list[str]) -> None:
    """The rows of some ways, as JSON on the last line; `{"refused": why}` where kquant raised."""
    from benchmarks.zoo import measure

    rows: dict[str, Any] = {}
    for recipe, target in (way.split("/") for way in ways):
        if target == PEER:
            rows[f"{recipe}/{target}"] = measure.converted(name, recipe)
            continue
        try:
            rows[f"{recipe}/{target}"] = measure.measured(name, target, recipe)
        except ValueError as error:
            rows[f"{recipe}/{target}"] = {"refused": " ".join(line.strip() for line in str(error).splitlines()[:2])}
    print(json.dumps(rows))


def rows_of(name: str, ways: list[str]) -> dict[str, Any]:
    """Of a process of its own; the peer has one for each way, since it may crash."""
    rows: dict[str, Any] = {}
    own = [way for way in ways if not way.endswith(PEER)]
    for group in ([own] if own else []) + [[way] for way in ways if way.endswith(PEER)]:
        command = [sys.executable, "-m", "benchmarks.zoo", name, "--child", *group]
        rows |= answered(name, group, subprocess.run(command, capture_output=True, text=True, check=False))
    return rows


def answered(name: str, ways: list[str], done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What a process told: its rows, or of the peer that it was killed (the converter is, by LSTMs in a loop)."""
    if done.returncode < 0 and all(way.endswith(PEER) for way in ways):
        return {way: {"why": f"crashed: {signal.Signals(-done.returncode).name}"} for way in ways}
    if done.returncode != 0:
        raise RuntimeError(f"{name}: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure what is missing, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(ZOO), help=f"of {', '.join(ZOO)}")
    parser.add_argument("--again", action="store_true", help="measure rows that are there already")
    parser.add_argument("--child", nargs="+", metavar="WAY", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.names[0], arguments.child)
        return
    ways = [f"{recipe}/{target}" for recipe, target in (*table.WAYS, ("int8", PEER), ("int16x8", PEER))]
    rows = table.load()
    for name in tqdm(arguments.names, desc="zoo", unit="model"):
        missing = [way for way in ways if arguments.again or f"{name}/{way}" not in rows]
        if missing:
            rows |= {f"{name}/{way}": row for way, row in rows_of(name, missing).items()}
            table.store(rows)  # after each: a run can be interrupted and goes on
    table.write_page(table.tables(rows))


if __name__ == "__main__":
    main()

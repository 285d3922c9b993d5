"""Random models of every rule's examples, in every format, on both arithmetics: equal codes, or refused with a reason.

Each batch runs in a process of its own, so that an interpreter that dies is counted and named.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

BATCH = 10
SIDES = (("litert", "litert-reference"), ("tflm", "tflm"))


def child(first: int, last: int) -> None:
    """Some seeds; one JSON line for each verdict."""
    import random_models  # of the tests

    for seed in range(first, last):
        for target, runtime in SIDES:
            print("VERDICT", json.dumps(asdict(random_models.verdict(seed, target, runtime))), flush=True)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graphs", type=int, default=500)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--child", nargs=2, type=int)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child)
        return
    found: Counter[str] = Counter()
    for first in range(arguments.first, arguments.first + arguments.graphs, BATCH):
        last = min(first + BATCH, arguments.first + arguments.graphs)
        command = [sys.executable, "-m", "benchmarks.random_graphs", "--child", str(first), str(last)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        verdicts = [json.loads(line[8:]) for line in done.stdout.splitlines() if line.startswith("VERDICT ")]
        if done.returncode != 0:
            found["crashed"] += 1
            print(f"seeds {first} to {last}: the process ended with {done.returncode} after {len(verdicts)} verdicts")
        for verdict in verdicts:
            found[verdict["result"]] += 1
            if verdict["result"] != "equal":
                said = verdict["said"][:300]
                print(f"{verdict['seed']} {verdict['target']} {verdict['result']}: {said!r}", flush=True)
    print(f"{arguments.graphs} graphs on {len(SIDES)} targets: {dict(found)}", flush=True)


if __name__ == "__main__":
    main()

"""Accuracy of trained detectors, segmenters, speech and text in integers: `python -m benchmarks.zoo.trained`.

Trains each model in float once for each cache folder, then takes it through every format. Rows that are there already
are not measured again without `--again`. Writes benchmarks/results/zoo_trained.json and the table of docs/zoo.md. Data
that is not here is said, and its rows stay as they are.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.zoo.trained import TASKS, faces, measure, table
from benchmarks.zoo.trained.measure import FLOAT, WAYS
from benchmarks.zoo.trained.task import Trained


def main() -> None:
    """Measure what is missing, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(TASKS), help=f"of {', '.join(TASKS)}")
    parser.add_argument("--ways", nargs="*", default=[FLOAT, *WAYS], help=f"of {', '.join([FLOAT, *WAYS])}")
    parser.add_argument("--again", action="store_true", help="measure rows that are there already")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "kquant-zoo-trained")
    arguments = parser.parse_args()
    arguments.cache.mkdir(exist_ok=True, parents=True)
    rows = table.load()
    for name in arguments.names:
        task = TASKS[name]
        ways = [way for way in arguments.ways if arguments.again or f"{name}/{way}" not in rows]
        why = task.missing()
        if not ways or why:
            print(f"{name}: {f'not measured, {why}' if why else 'measured already'}", flush=True)
            continue
        measured = measure.rows if isinstance(task, Trained) else faces.rows
        for way, row in measured(task, arguments.cache, ways):
            rows[f"{name}/{way}"] = row
            print(name, way, row, flush=True)
            table.store(rows)  # after each: a run can be interrupted and goes on
    table.write_page(rows)


if __name__ == "__main__":
    main()

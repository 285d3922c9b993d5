"""kquant and its peers side by side: environments, files, figures, tables.

python -m benchmarks.peers                             # everything that is not there yet
python -m benchmarks.peers --tasks digits_cnn --tools kquant,converter --again
python -m benchmarks.peers --tables                    # docs/peers.md and the README's table, from the JSON alone
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.machine import processor
from benchmarks.peers import store, tables
from benchmarks.peers.environments import Missing, python_of, version_of
from benchmarks.peers.tools import Tool, Way, tools

SEEDS = (0, 1, 2)
SECONDS = 1800  # that a way may take


@dataclass(frozen=True)
class Cell:
    """One row to be filled: a way of a tool on a task, under a seed."""

    task: str
    tool: Tool
    key: str
    way: Way
    seed: int

    @property
    def name(self) -> str:
        """Of the row, in the JSON and as a folder."""
        return f"{self.tool.name}/{self.key}" + (f"/{self.seed}" if self.way.kind == "train" else "")


@dataclass(frozen=True)
class Wanted:
    """What of all there is to be measured in a run."""

    tasks: tuple[str, ...]
    tools: tuple[str, ...]
    kinds: tuple[str, ...]
    seeds: tuple[int, ...]
    again: bool
    times: bool


def cells(task: str, about: Any, wanted: Wanted) -> Iterator[Cell]:
    """What there is to do on a task."""
    for tool in tools().values():
        for key, way in tool.ways.items() if tool.name in wanted.tools else ():
            if way.kind not in wanted.kinds:
                continue
            if way.kind == "train" and not about.trains or way.needs == "matrix" and not about.matrix:
                continue
            for seed in wanted.seeds if way.kind == "train" else (0,):
                yield Cell(task, tool, key, way, seed)


def filled(cell: Cell, home: Path, out: Path, environments: Path) -> dict[str, Any]:
    """The row of a cell; why there is none, where the tool fails."""
    from benchmarks.peers.judging import judged

    try:
        python = python_of(cell.tool, environments)
    except Missing as error:
        return {"failed": f"cannot be installed here: {error}"}
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").unlink(missing_ok=True)
    command = [str(python), str(cell.tool.script), str(home), str(out), cell.key, str(cell.seed)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {SECONDS} s"}
    if not (out / "report.json").is_file():
        said = [line for line in done.stderr.strip().splitlines() if line.strip()]
        return {"failed": (said[-1] if said else f"exit code {done.returncode}")[:300]}
    row = judged(home, out, json.loads((out / "report.json").read_text()))
    return {**row, "tree": store.tree()} if cell.tool.name == "kquant" else row


def run(wanted: Wanted, folder: Path) -> None:
    """Fill what is missing, row by row."""
    from benchmarks.peers.tasks import loaded, prepared

    rows = store.read()
    rows["machine"] = {"processor": processor(), "cores": os.cpu_count(), "date": str(date.today())}
    ready = {name: prepared(name, folder / "tasks") for name in tqdm(wanted.tasks, desc="tasks", unit="task")}
    todo = [cell for name, (_, about) in ready.items() for cell in cells(name, about, wanted)]
    if wanted.times:
        todo = []
    elif not wanted.again:
        todo = [cell for cell in todo if cell.name not in rows["tasks"].get(cell.task, {}).get("rows", {})]
    for cell in (bar := tqdm(todo, unit="row")):
        bar.set_description(f"{cell.task} {cell.name}")
        home, about = ready[cell.task]
        entry = rows["tasks"].setdefault(cell.task, {"rows": {}})
        entry["about"] = {key: value for key, value in about.__dict__.items() if key != "legacy"}
        y, reference = loaded(home, "y"), loaded(home, "float")
        entry["float"] = None if y is None else round(100 * float((reference.argmax(-1) == y).mean()), 2)
        entry["rows"][cell.name] = filled(cell, home, folder / "files" / cell.task / cell.name, folder / "environments")
        if "failed" not in entry["rows"][cell.name]:
            python = python_of(cell.tool, folder / "environments")
            rows["versions"][cell.tool.name] = version_of(cell.tool, python)
        store.write(rows)
    for name in wanted.tasks if wanted.times else dict.fromkeys(cell.task for cell in todo):
        _timed(rows["tasks"][name]["rows"], folder / "files" / name)
        store.write(rows)


def _timed(rows: dict[str, Any], folder: Path) -> None:
    """Latency of the files of a task that were made without training, all by turns; not on a machine that is busy."""
    from benchmarks.peers.judging import latencies

    busy = os.getloadavg()[0]
    if busy > store.QUIET:
        tqdm.write(f"{folder.name}: no latencies, the load average is {busy:.1f}; on a quiet machine run --times")
        return
    files = {name: folder / name / "model.tflite" for name, row in rows.items() if "refused" not in _litert(row)}
    files = {name: path for name, path in files.items() if path.is_file() and name.count("/") == 1}
    for name, ms in latencies(files).items():
        rows[name]["latency_ms"] = ms


def _litert(row: dict[str, Any]) -> dict[str, Any]:
    return row.get("runs", {}).get("litert", {"refused": "no file"})


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", help="names, with commas between; all that can be made here")
    parser.add_argument("--tools", default=",".join(tools()), help="names, with commas between")
    parser.add_argument("--kinds", default="ptq,train", help="ptq, train or both")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="of training")
    parser.add_argument("--folder", type=Path, default=Path("build/peers"), help="of environments, tasks and files")
    parser.add_argument("--again", action="store_true", help="fill rows that are there already")
    parser.add_argument("--times", action="store_true", help="fill no rows; latencies of the files that lie there")
    parser.add_argument("--tables", action="store_true", help="write the tables and measure nothing")
    args = parser.parse_args()
    if not args.tables:
        from benchmarks.peers.tasks import available

        given = {"tasks": args.tasks or ",".join(available()), "tools": args.tools, "kinds": args.kinds}
        chosen = {what: tuple(names.split(",")) for what, names in given.items()}
        for what, known in (("tasks", available()), ("tools", tuple(tools())), ("kinds", ("ptq", "train"))):
            if unknown := set(chosen[what]) - set(known):
                parser.error(f"no such {what} here: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        seeds = tuple(int(seed) for seed in args.seeds.split(","))
        run(Wanted(seeds=seeds, again=args.again, times=args.times, **chosen), args.folder.resolve())
    tables.write(store.read())


if __name__ == "__main__":
    main()

"""Of how many models each tool makes a file of integers alone.

python -m benchmarks.peers.coverage                                     # what is missing of it; an hour
python -m benchmarks.peers.coverage --sets applications --tools kquant

A tool passes where its file has no float operator and LiteRT runs it; what it computes there is not asked. Writes
benchmarks/results/coverage.json and the table of docs/benchmarks.md. Goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import kquant
from benchmarks import tables
from benchmarks.machine import processor
from benchmarks.peers.coverage import models, table
from benchmarks.peers.environments import python_of, version_of
from benchmarks.peers.tools import tools
from kquant.files.atomic import write_atomically
from kquant.tflite.file_model import float_operators
from kquant.tflite.reader import read_model

RESTARTS = 50  # of a tool whose process ends


def measure(of: str, tool: str, folder: Path) -> dict[str, Any]:
    """What a tool makes of each model of a set, by name.

    Args:
        of: a key of `models.SETS`.
        tool: a name of tools.toml.
        folder: of the models, of environments and of the files that tools make.
    """
    home, out = folder / "covering" / of, folder / "covered" / of / tool
    out.mkdir(parents=True, exist_ok=True)
    names = models.prepared(of, home)
    script = tools()[tool].script
    command = [str(python_of(tools()[tool], folder / "environments")), str(script), str(home), str(out), "cover", "0"]
    for _ in range(RESTARTS):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            break
    return {name: verdict(out, name) for name in tqdm(names, desc=tool, unit="file")}


def verdict(out: Path, name: str) -> dict[str, Any]:
    """What came of one model: a file of integers, of floats, none, not asked; in Keras, how many kernels are integers.

    Args:
        out: where the tool left NAME.tflite, NAME.json or NAME.txt.
        name: of the model.
    """
    if (told := out / f"{name}.json").is_file():
        return {"verdict": "keras", **json.loads(told.read_text())}
    path = out / f"{name}.tflite"
    if not path.is_file():
        said = (out / f"{name}.txt").read_text() if (out / f"{name}.txt").is_file() else "the process ended"
        return {"verdict": "untried" if said.startswith("NotRebuilt") else "none", "why": _first_words(said)}
    content = path.read_bytes()
    file = read_model(content)
    try:
        kquant.predict(content, [np.zeros((1, *t.shape[1:]), np.float32) for t in file.inputs])
    except ValueError as error:
        return {"verdict": "none", "why": f"LiteRT: {' '.join(str(error).split())[:190]}"}
    floats = len(float_operators(file))
    counts = {"operators": len(file.operators), "float_operators": floats, "bytes": len(content)}
    return {"verdict": "float" if floats else "integer", **counts}


def _first_words(said: str) -> str:
    """How a message begins, files by their names: where they lie is this machine's."""
    return " ".join(re.sub(r"(?<![\w:/])/(?:[^\s/:]+/)+", "", said).split())[:200]


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=list(models.SETS), default=list(models.SETS))
    parser.add_argument("--tools", nargs="+", choices=table.COVERING, default=list(table.COVERING))
    parser.add_argument("--folder", type=Path, default=Path("build/peers"), help="of environments and files")
    parser.add_argument("--again", action="store_true", help="judge what is in the results already")
    args = parser.parse_args()
    folder = args.folder.resolve()
    for of in args.sets:
        for tool in args.tools:
            if tool in table.load()["sets"].get(of, {}) and not args.again:
                continue
            rows = measure(of, tool, folder)
            found = table.load()  # now: another run may have measured another tool meanwhile
            found["machine"] = {"processor": processor(), "cores": os.cpu_count(), "date": str(date.today())}
            about = tools()[tool]
            found["versions"][tool] = version_of(about, python_of(about, folder / "environments"))
            found["sets"].setdefault(of, {})[tool] = rows
            text = json.dumps(found, indent=1, sort_keys=True) + "\n"
            write_atomically(table.PATH, text.encode(), "benchmarks.peers.coverage")
    tables.put()


if __name__ == "__main__":
    main()

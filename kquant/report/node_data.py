"""The figures of a file as Model Explorer shows them on its graph: one file of node data for each figure.

Format: github.com/google-ai-edge/model-explorer, `src/server/package/src/model_explorer/node_data_builder.py`: for each
graph by its name the values of its nodes, each by the name of a tensor that it writes or by its number. Operators of a
subgraph are numbered in the file's order (`src/builtin-adapter/direct_flatbuffer_to_json_graph_convert.cc`).
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kquant.analysis.results import Analysis
from kquant.core.result import Result
from kquant.files.atomic import Outputs
from kquant.files.destination import path_of
from kquant.files.named_files import check_lite_file
from kquant.report.page import Page, page
from kquant.report.tables import Table
from kquant.sizing.operator_figures import FileFigures, OperatorFigures, figures_of

COMMAND = "model-explorer"
NEEDED = f"needs Model Explorer, the command {COMMAND}: pip install 'kquant[explorer]'."
PALE, RED = "#fff7ec", "#d7301f"
# Field of `OperatorFigures` -> ending of the file, what Model Explorer calls it, whether much of it is bad.
FIGURES = {
    "stored_bytes": ("bytes", "bytes stored", True),
    "macs": ("macs", "MACs", True),
    "arena_bytes": ("arena", "bytes alive in the arena", True),
    "sqnr_db": ("error", "SQNR against float in dB", False),
}


@dataclass(frozen=True, repr=False)
class View(Result):
    """What `kquant.view` wrote.

    Attributes:
        path: of the file.
        node_data: the files for Model Explorer.
        figures: what is in them.
    """

    path: str
    node_data: tuple[str, ...]
    figures: FileFigures

    def __repr__(self) -> str:
        told = f"{self.figures.size_bytes:,} bytes, {self.figures.macs:,} MACs"
        return f"View({self.path}: {told}, {len(self.node_data)} files of node data)"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "figures": self.figures.to_dict()}


def view(
    path: str | Path,
    *,
    analysis: Analysis | None = None,
    folder: str | Path | None = None,
    start: bool = False,
) -> View:
    """Write the figures of a file for Model Explorer: bytes, multiplications, arena and error of each operator.

    Model Explorer shows one figure at a time, so each has a file of its own. Its graph, like Netron's, shows the names
    of Keras' layers: tensors are called after what computes them, weights `layer/kernel`.

    Args:
        path: of a `.tflite` file, any.
        analysis: what `kquant.analyze` said of the model that the file was exported from; without it there is no error.
        folder: for the files; by default that of `path`.
        start: open the file with them in Model Explorer, and return when it has ended.

    Returns:
        The figures and where they are.

    Raises:
        ValueError: not a TFLite file, one of another model, or a folder that cannot be written.
        ImportError: `start` without Model Explorer; nothing is written then.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(32, name="first")])
        >>> q = kquant.calibrate(kquant.quantize(model), np.ones((64, 8), "float32"), verbose=False)
        >>> report = kquant.export(q, "dense.tflite", check_runtimes=False)
        >>> kquant.view("dense.tflite").node_data
        ('dense.bytes.json', 'dense.macs.json', 'dense.arena.json')
    """
    if start and find_explorer() is None:
        raise ImportError(f"view: start=True {NEEDED}")
    path = path_of(path, "view", "model.tflite")
    check_lite_file(path)
    figures = figures_of(path, analysis)
    place = path.parent if folder is None else path_of(folder, "view", "pages")
    chosen = [name for name in FIGURES if name != "sqnr_db" or analysis is not None]
    texts = {place / f"{path.stem}.{FIGURES[name][0]}.json": node_data(figures, name) for name in chosen}
    with Outputs(list(texts), "view") as new:
        for file, data in texts.items():
            new.write(file, f"{json.dumps(data, indent=1)}\n".encode())
    made = View(str(path), tuple(map(str, texts)), figures)
    if start:
        show(made)
    return made


def node_data(figures: FileFigures, name: str) -> dict[str, Any]:
    """One figure as node data, by graph and node.

    Args:
        figures: of a file.
        name: of the figure, of `FIGURES`.
    """
    _, title, much_is_bad = FIGURES[name]
    colours = (PALE, RED) if much_is_bad else (RED, PALE)
    counts = Counter((row.graph, row.output) for row in figures.operators)
    graphs: dict[str, dict[str, Any]] = {}
    for row in figures.operators:
        value = getattr(row, name)
        # nothing is known of it, or it is equal to float, for which JSON has no number
        if value is not None and math.isfinite(value):
            results = graphs.setdefault(row.graph, {})
            results[_key(row, counts)] = {"value": round(value, 2)}
    gradient = [{"stop": stop, "bgColor": colour} for stop, colour in enumerate(colours)]
    return {graph: {"name": title, "results": results, "gradient": gradient} for graph, results in graphs.items()}


def _key(row: OperatorFigures, counts: Counter[tuple[str, str]]) -> str:
    """The tensor that it writes, since converters number nodes in their own ways; without one, its number."""
    return row.output if row.output and counts[row.graph, row.output] == 1 else str(row.node)


def find_explorer() -> str | None:
    """The command of Model Explorer beside this Python or on the path; None where it is not installed."""
    return shutil.which(COMMAND, path=str(Path(sys.executable).parent)) or shutil.which(COMMAND)


def show(made: View) -> None:
    """Open a file with its node data in Model Explorer; returns when that has ended.

    Args:
        made: by `view`.

    Raises:
        ImportError: it is not installed.
        ValueError: a comma in a path, by which it tells its paths apart, or it does not start.
    """
    command = find_explorer()
    if command is None:
        raise ImportError(f"view {NEEDED}")
    torn = [path for path in (made.path, *made.node_data) if "," in path]
    if torn:
        raise ValueError(f"view: Model Explorer takes no comma in a path: {torn[0]}. Give the file another name.")
    done = subprocess.run([command, made.path, f"--node_data_paths={','.join(made.node_data)}"], check=False)
    if done.returncode > 0:
        raise ValueError(f"view: Model Explorer ended with code {done.returncode}; see what it said above.")


@page.register
def _view(report: View) -> Page:
    rows = tuple(
        (
            row.layer,
            row.code,
            f"{row.stored_bytes:,}",
            f"{row.macs:,}",
            f"{row.arena_bytes:,}",
            "" if row.sqnr_db is None else f"{row.sqnr_db:.1f}",
        )
        for row in report.figures.operators
    )
    columns = ("layer", "operator", "stored", "MACs", "alive", "dB")
    figures = report.figures
    return Page(
        headline=f"{report.path}: {figures.size_bytes:,} bytes, {figures.macs:,} MACs",
        ok=True,
        findings=(),
        facts=(f"node data for Model Explorer: {', '.join(report.node_data)}",),
        tables=(Table("Operators: bytes stored for each, and alive while it runs", columns, rows, columns[2:]),),
    )

"""The JSON as Markdown: docs/peers.md and the README's table. A test holds both against the JSON.

Where a peer's row is better than every one of kquant's, the table says so, and `WHY` says why: a loss without a reason
stops `make bench`.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from statistics import mean
from typing import Any

from benchmarks.peers.page import INTRODUCTION, TITLES
from benchmarks.peers.store import ROOT, is_quiet
from benchmarks.peers.tools import HERE, tools

PAGE, README = ROOT / "docs" / "peers.md", ROOT / "README.md"
MARK = "<!-- peers: {} -->"
RUNTIMES = {"litert": "LiteRT", "litert-reference": "LiteRT reference", "tflm": "TFLM"}
GROUPS = {
    "float": "Float",
    "int8": "int8 weights and activations",
    "int16x8": "int8 weights, int16 activations",
    "dynamic": "int8 weights, float activations",
    "w4a8": "4-bit weights, int8 activations",
    "qat": "Quantization-aware training",
    "prune": "50 % zeros, then int8",
    "cluster": "16 values a layer, then int8",
    "pqat": "50 % zeros in quantization-aware training",
    "cqat": "16 values in quantization-aware training",
    "pcqat": "50 % zeros and 16 values in quantization-aware training",
}
TRAINED = {way.group for tool in tools().values() for way in tool.ways.values() if way.kind == "train"}
README_TASK = "image_classification"
# of `benchmarks.train_time`, which measures them by turns; of a way that the first has not for both tools the second
STEPS = tuple(ROOT / "benchmarks" / "results" / name for name in ("train_time.json", "train_time_small.json"))
STEPPED = {"image_classification": "resnet8"}  # task -> what it is called there, where that is another name
STEP_WAYS = {"qat": "QAT", "prune": "pruning", "cluster": "clustering", "pcqat": "PCQAT"}
STEP_WAYS |= {"pqat": "QAT, masks", "cqat": "QAT, codebooks"}
UNMEASURED = (None, None)


@dataclass(frozen=True)
class Measure:
    """A column that is compared: how to read it from a row, which way is better, how far apart is more than noise."""

    title: str
    value: Callable[[Mapping[str, Any]], float | None]
    lower: bool
    noise: float  # of the better one's value, or absolute where `absolute`
    absolute: bool = False

    def beats(self, peer: float, ours: float) -> bool:
        """Whether a peer's value is better by more than noise."""
        gain = ours - peer if self.lower else peer - ours
        return gain > (self.noise if self.absolute else self.noise * abs(peer))


def _best(row: Mapping[str, Any], key: str) -> float | None:
    """On LiteRT; where there is no file, what the tool simulates."""
    runs = row.get("runs", {})
    held = runs.get("litert", {}) if runs else row.get("simulated", {})
    return held.get(key)


COMPARED = {
    "accuracy": Measure("accuracy", lambda row: _best(row, "accuracy"), lower=False, noise=0.5, absolute=True),
    "sqnr_db": Measure("SQNR", lambda row: _best(row, "sqnr_db"), lower=False, noise=0.5, absolute=True),
    "bytes": Measure("bytes", lambda row: row.get("bytes"), lower=True, noise=0.01),
    "gzip_bytes": Measure("compressed bytes", lambda row: row.get("gzip_bytes"), lower=True, noise=0.01),
    "arena_bytes": Measure("arena", lambda row: row.get("arena_bytes"), lower=True, noise=0.01),
    "latency_ms": Measure("latency", lambda row: row.get("latency_ms"), lower=True, noise=0.05),
}


@dataclass(frozen=True)
class Loss:
    """A peer's integer file that is better than all of kquant's of its group in one column."""

    task: str
    group: str
    column: str
    peer: str
    value: float
    ours: float

    @property
    def key(self) -> str:
        """In why.toml."""
        return f"{self.task}/{self.group}/{self.column}"


def grouped(task: Mapping[str, Any]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """group -> "tool/way" -> its rows, one for each seed, in the order of tools.toml."""
    groups: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for tool in tools().values():
        for key, way in tool.ways.items():
            rows = task["rows"].items()
            held = [{**row, "way": f"{tool.name}/{key}"} for n, row in rows if n.split("/")[:2] == [tool.name, key]]
            if held:
                groups.setdefault(way.group, {})[f"{tool.name}/{key}"] = held
    return groups


def summary(rows: list[dict[str, Any]], value: Callable[[Mapping[str, Any]], float | None]) -> float | None:
    """The mean over seeds; None where a seed has none."""
    values = [value(row) for row in rows]
    return None if any(v is None for v in values) else mean(v for v in values if v is not None)


def losses(results: Mapping[str, Any]) -> Iterator[Loss]:
    """Where kquant is not first or tied; files with float operators are no integer files, and not compared."""
    for name, task in results["tasks"].items():
        for group, ways in grouped(task).items():
            ours = {way: rows for way, rows in ways.items() if way.startswith("kquant/")}
            peers = {way: rows for way, rows in ways.items() if way not in ours}
            for column, measure in _compared(task, group) if ours else ():
                mine = [v for rows in ours.values() if (v := summary(rows, measure.value)) is not None]
                if not mine:
                    continue
                best = min(mine) if measure.lower else max(mine)
                for way, rows in peers.items():
                    if any("failed" in row or row.get("float_operators", 1) for row in rows):
                        continue
                    value = summary(rows, measure.value)
                    if value is not None and measure.beats(value, best):
                        yield Loss(name, group, column, way, value, best)


def _compared(task: Mapping[str, Any], group: str) -> list[tuple[str, Measure]]:
    """What is compared in a group: not how near to the float model a training that has labels stayed."""
    labelled = group in TRAINED and task["float"] is not None
    return [(column, measure) for column, measure in COMPARED.items() if not (labelled and column == "sqnr_db")]


def why() -> dict[str, str]:
    """task/group/column -> why a peer is better there."""
    return tomllib.loads((HERE / "why.toml").read_text())


def write(results: Mapping[str, Any]) -> None:
    """docs/peers.md and the README's table."""
    unexplained = sorted({loss.key for loss in losses(results)} - set(why()))
    PAGE.write_text(page(results))
    README.write_text(with_block(README.read_text(), "readme", readme_table(results)))
    if unexplained:
        raise SystemExit(f"a peer is better, and benchmarks/peers/why.toml has no reason: {', '.join(unexplained)}")


def with_block(text: str, name: str, block: str) -> str:
    """A page with another block between its two marks."""
    mark = re.escape(MARK.format(name))
    return re.sub(f"{mark}\n.*?{mark}", lambda _: f"{MARK.format(name)}\n{block}{MARK.format(name)}", text, flags=re.S)


def readme_table(results: Mapping[str, Any]) -> str:
    """The int8 files of one real model, beside the peers'."""
    task = results["tasks"].get(README_TASK)
    if task is None:
        return ""
    ways = {way: rows for way, rows in grouped(task).get("int8", {}).items() if all("bytes" in row for row in rows)}
    return f"{_about(task, frozenset())}\n\n{_table(task, ways, _readme_columns())}"


def page(results: Mapping[str, Any]) -> str:
    """docs/peers.md."""
    parts = [INTRODUCTION.format(versions=_versions(results), **results["machine"])]
    found = list(losses(results))
    for name, task in results["tasks"].items():
        parts.append(f"## {_title(name)}\n\n{_about(task, TRAINED)}\n")
        for group, ways in grouped(task).items():
            parts.append(f"### {GROUPS[group]}\n\n{_table(task, ways, _columns(task, group in TRAINED))}")
            told = [loss for loss in found if (loss.task, loss.group) == (name, group)]
            parts += [f"{_told(told)}\n"] if told else []
    return "\n".join(parts)


def _title(name: str) -> str:
    title = TITLES[name]
    return title[0].upper() + title[1:]


def _about(task: Mapping[str, Any], trained: Set[str]) -> str:
    """How many samples did what; of training, where a table shows it."""
    about = task["about"]
    score = "" if task["float"] is None else f" The float model: {task['float']:.2f} %."
    seeds = {len(rows) for group, ways in grouped(task).items() if group in trained for rows in ways.values()}
    training = f" {about['trained']:,} train, {about['epochs']} epochs a stage" if seeds else ""
    training += f", {'one seed' if max(seeds) == 1 else f'{max(seeds)} seeds'}." if seeds else ""
    return f"{about['calibrates']} samples calibrate, {about['judged']:,} judge.{training}{score}"


def _versions(results: Mapping[str, Any]) -> str:
    return ", ".join(f"{tools()[name].title} {version}" for name, version in sorted(results["versions"].items()))


def _told(found: list[Loss]) -> str:
    lines = []
    for column in dict.fromkeys(loss.column for loss in found):
        worst = [loss for loss in found if loss.column == column]
        most = max(worst, key=lambda loss: abs(loss.value - loss.ours))
        tool, way = most.peer.split("/")
        name = f"{tools()[tool].title} ({tools()[tool].ways[way].title})"
        reason = why().get(most.key, "no reason is known")
        lines.append(f"**{name} is better in {COMPARED[column].title}**: {reason}")
    return "\n\n".join(lines)


def _table(task: Mapping[str, Any], ways: Mapping[str, list[dict[str, Any]]], columns: list[Column]) -> str:
    """One group as a table."""
    lines = [f"| | {' | '.join(column.title for column in columns)} |", f"| --- |{' --- |' * len(columns)}"]
    for way, rows in ways.items():
        tool, key = way.split("/")
        failed = [row["failed"] for row in rows if "failed" in row]
        said = [f"fails: {failed[0][:120].replace('|', '/')}", *[""] * (len(columns) - 1)] if failed else None
        cells = said or [column.cell(rows) for column in columns]
        lines.append(f"| {tools()[tool].title}, {tools()[tool].ways[key].title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    title: str
    value: Callable[[Mapping[str, Any]], float | None]
    digits: int = 0

    def cell(self, rows: list[dict[str, Any]]) -> str:
        """The mean over seeds, with the smallest and the largest where they differ."""
        values = [self.value(row) for row in rows]
        known = [v for v in values if v is not None]
        if len(known) < len(values) or not known:
            return "-"
        middle, low, high = (f"{v:,.{self.digits}f}" for v in (mean(known), min(known), max(known)))
        return middle if low == high or not self.digits else f"{middle} ({low} to {high})"


@dataclass(frozen=True)
class OnRuntime(Column):
    """What a runtime makes of the file, which it may refuse."""

    runtime: str = ""

    def cell(self, rows: list[dict[str, Any]]) -> str:
        """See `Column`."""
        refused = any("refused" in row.get("runs", {}).get(self.runtime, {}) for row in rows)
        return "refused" if refused else super().cell(rows)


def _columns(task: Mapping[str, Any], training: bool) -> list[Column]:
    """All of docs/peers.md."""
    measure, unit = ("sqnr_db", "SQNR, dB") if task["float"] is None else ("accuracy", "accuracy, %")
    return [
        Column(unit, lambda row: row.get("simulated", {}).get(measure), 2),
        *(_on(runtime, measure) for runtime in RUNTIMES),
        Column("equal codes", _equal, 2),
        Column("LSB", _furthest),
        Column("bytes", lambda row: row.get("bytes")),
        Column("gzip", lambda row: row.get("gzip_bytes")),
        Column("arena", lambda row: row.get("arena_bytes")),
        Column("float operators", lambda row: row.get("float_operators")),
        *(_training(task) if training else [Column("ms", lambda row: row.get("latency_ms"), 4)]),
        Column("s", lambda row: row["seconds"] if is_quiet(row) else None, 1),
        Column("MB", lambda row: row["peak_mb"]),
    ]


def _training(task: Mapping[str, Any]) -> list[Column]:
    """Times of training; where a step was measured, over one of the tool's own float model, and over tfmot's."""
    steps = step_ratios(task["about"]["name"])
    titles = ("step, times float", "step, times tfmot's") if steps else ()
    ratios = [Column(t, lambda row, i=i: steps.get(row["way"], UNMEASURED)[i], 2) for i, t in enumerate(titles)]
    return [Column("epoch, s", lambda row: row.get("epoch_s") if is_quiet(row) else None, 2), *ratios]


def step_ratios(task: str) -> dict[str, tuple[float, float]]:
    """ "tool/way" -> a training step over a float one in the same Keras, and over tfmot's; of most tasks nothing.

    Args:
        task: its name.
    """
    found: dict[str, tuple[float, float]] = {}
    for path in STEPS:
        measured = json.loads(path.read_text())["models"].get(STEPPED.get(task, task), {})
        tools = [(tool, measured.get(tool, {})) for tool in ("kquant", "tfmot")]
        for key, title in STEP_WAYS.items():
            if f"kquant/{key}" not in found and all(title in ways for _, ways in tools):
                over = {"kquant": measured["of_tfmot"][title], "tfmot": 1.0}
                found |= {f"{tool}/{key}": (ways[title]["times float"], over[tool]) for tool, ways in tools}
    return found


def _readme_columns() -> list[Column]:
    """What somebody who chooses a tool asks first."""
    return [
        _on("litert", "accuracy", "accuracy, LiteRT"),
        _on("tflm", "accuracy", "TFLM (500)"),
        Column("flash, bytes", lambda row: row.get("bytes")),
        Column("arena, bytes", lambda row: row.get("arena_bytes")),
        Column("float operators", lambda row: row.get("float_operators")),
        Column("output codes equal to Keras, %", _equal, 2),
    ]


def _on(runtime: str, measure: str, title: str = "") -> OnRuntime:
    def value(row: Mapping[str, Any]) -> float | None:
        return row.get("runs", {}).get(runtime, {}).get(measure)

    return OnRuntime(title or RUNTIMES[runtime], value, 2, runtime)


def _equal(row: Mapping[str, Any]) -> float | None:
    """% of output codes that are the simulation's, on the reference kernels of LiteRT or TFLM: what it simulates."""
    found = [row.get("runs", {}).get(runtime, {}).get("equal") for runtime in ("litert-reference", "tflm")]
    known = [equal for equal in found if equal is not None]
    return 100 * max(known) if known else None


def _furthest(row: Mapping[str, Any]) -> float | None:
    """Steps of the output's grid by which a code is off at most, where `_equal` counts."""
    runs = [row.get("runs", {}).get(runtime, {}) for runtime in ("litert-reference", "tflm")]
    known = [(run["equal"], -run["max_lsb"]) for run in runs if "equal" in run]
    return -max(known)[1] if known else None

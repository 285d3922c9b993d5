"""The table of coverage in docs/benchmarks.md, out of benchmarks/results/coverage.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.peers.tools import tools

PATH = Path(__file__).parents[2] / "results" / "coverage.json"
COVERING = ("kquant", "converter", "litert-quantizer", "tfmot", "keras")
TITLES = {
    "applications": "keras.applications, a family each",
    "architectures": "the zoo's architectures",
    "layers": "keras.layers and keras.ops: the first example of each of kquant's rules",
}
ONE_BY_ONE = ("applications", "architectures")  # sets with a row for each model


def load() -> dict[str, Any]:
    """What was measured: set -> tool -> model -> verdict."""
    return json.loads(PATH.read_text()) if PATH.is_file() else {"machine": {}, "versions": {}, "sets": {}}


def coverage(found: Mapping[str, Any]) -> str:
    """How many of each set, then a row for each model of the sets that have few."""
    versions = ", ".join(f"{tools()[name].title} {version}" for name, version in sorted(found["versions"].items()))
    head = f"Measured on {found['machine']['processor']}, {found['machine']['date']}: {versions}."
    parts = [head, _totals(found["sets"])]
    parts += [_rows(of, found["sets"][of]) for of in ONE_BY_ONE if of in found["sets"]]
    return "\n\n".join(parts)


def _line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


def _head(first: str) -> list[str]:
    titles = tuple(tools()[tool].title for tool in COVERING)
    return [_line((first, *titles)), _line(("---",) * (len(titles) + 1))]


def _totals(sets: Mapping[str, Any]) -> str:
    lines = _head("models whose file has integers alone")
    for of, title in TITLES.items():
        if of in sets:
            count = max(len(rows) for rows in sets[of].values())
            lines.append(_line((f"{title} ({count})", *(_count(sets[of].get(tool)) for tool in COVERING))))
    return "\n".join(lines)


def _count(rows: Mapping[str, Any] | None) -> str:
    """Of Keras' quantize, which writes no file: how many models have no float kernel left in Keras."""
    if rows is None:
        return "-"
    if any(row["verdict"] == "keras" for row in rows.values()):
        return f"0; in Keras {sum(_in_keras(row) for row in rows.values())}"
    asked = [row["verdict"] for row in rows.values() if row["verdict"] != "untried"]
    return f"{asked.count('integer')}{'' if len(asked) == len(rows) else f' of {len(asked)}'}"


def _in_keras(row: Mapping[str, Any]) -> bool:
    return row["verdict"] == "keras" and 0 < row["kernels"] == row["quantized"]


def _rows(of: str, tested: Mapping[str, Any]) -> str:
    lines = _head(TITLES[of])
    for name in next(iter(tested.values())):
        lines.append(_line((name, *(_cell(tested.get(tool, {}).get(name)) for tool in COVERING))))
    return "\n".join(lines)


def _cell(row: Mapping[str, Any] | None) -> str:
    """The verdict of one tool on one model."""
    if row is None or row["verdict"] == "untried":
        return "-"
    if row["verdict"] == "integer":
        return f"{row['bytes']:,} bytes"
    if row["verdict"] == "float":
        return f"float in {row['float_operators']} of {row['operators']} operators"
    if row["verdict"] == "keras":
        return f"{row['quantized']} of {row['kernels']} kernels"
    return "no file"

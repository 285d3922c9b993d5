"""The tables of times in docs/benchmarks.md, made of the figures in `benchmarks/results`.

python -m benchmarks.tables
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.peers.coverage.table import coverage
from kquant.files.atomic import write_atomically

ROOT = Path(__file__).resolve().parents[1]
PAGE, RESULTS = ROOT / "docs" / "benchmarks.md", ROOT / "benchmarks" / "results"
TITLES = {
    "resnet8": "ResNet8",
    "image_classification": "ResNet8",
    "kws": "keyword spotting",
    "keyword_spotting": "keyword spotting",
    "vww": "visual wake words",
    "visual_wake_words": "visual wake words",
    "ad": "anomaly detection",
    "sww": "wake word",
    "mobilenetv2": "MobileNetV2",
    "lstm": "LSTM",
    "gru": "GRU",
}
Rows = Iterable[tuple[str, ...]]


def _table(head: tuple[str, ...], rows: Rows) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _where(measured: dict[str, Any]) -> str:
    """The machine, the load when it began (of some files three numbers), and what was installed."""
    load = measured["load"]
    versions = ", ".join(f"{name} {version}" for name, version in measured.get("versions", {}).items())
    first = load[0] if isinstance(load, list) else load
    return f"Measured on {measured['processor']}, {measured['cores']} cores, load {first:.1f}" + (
        f"; {versions}." if versions else "."
    )


def ptq(measured: dict[str, Any]) -> str:
    """Quantize, calibrate and write, against the converter."""
    head = ("", "kquant", "converter", "ratio", "of the processor", "with the file run on all runtimes")
    head += ("peak memory, MB", "converter's", "bytes", "ratio", "latency", "calibrate / predict")
    rows: list[tuple[str, ...]] = []
    for name, row in measured["models"].items():
        seconds, peak, size, latency = row["seconds"], row["peak_mb"], row["bytes"], row["latency_ms"]
        ours, theirs = seconds["unverified"], seconds["converter"]
        times = (f"{ours:.2f} s", f"{theirs:.2f} s", f"{row['ratio']:.2f}", f"{row['processor_ratio']:.2f}")
        memory = (f"{peak['unverified']:.0f}", f"{peak['converter']:.0f}")
        told = (f"{size['kquant']:,}", f"{size['kquant'] / size['converter']:.3f}")
        slower = f"{latency['kquant'] / latency['converter']:.3f}"
        again = f"{row['calibrate_to_predict']:.2f}" if "calibrate_to_predict" in row else ""
        rows.append((TITLES.get(name, name), *times, f"{seconds['kquant']:.2f} s", *memory, *told, slower, again))
    return f"{_where(measured)}\n\n{_table(head, rows)}"


def training(measured: dict[str, Any]) -> str:
    """A step of every way to train, beside the float model's and tfmot's."""
    head = ("ms", "times float", "quartiles apart", "times QAT", "times float without batch norms")
    head += ("tfmot, ms", "times its float", "kquant of tfmot")
    parts = [_where(measured)]
    for name, found in measured["models"].items():
        rows: list[tuple[str, ...]] = []
        for way, row in found["kquant"].items():
            peer = found.get("tfmot", {}).get(way)
            beside = ("", "", "")
            if peer is not None:
                beside = (f"{peer['ms']:.1f}", f"{peer['times float']:.2f}", f"{found['of_tfmot'][way]:.2f}")
            bare = row.get("times float, no batch norms", float("nan"))
            times = (f"{row['times float']:.2f}", f"{row['spread']:.2f}", f"{row['times QAT']:.2f}", f"{bare:.2f}")
            rows.append((way, f"{row['ms']:.1f}", *times, *beside))
        title = f"{TITLES[name]}, batches of {found['batch']}"
        parts.append(_table((title, *head), rows))
    return "\n\n".join(parts)


def predicting(measured: dict[str, Any]) -> str:
    """Samples a second."""
    head = ("", "Keras float", "kquant", "of float", "times TFLM", "`evaluate`", "of float", "times TFLM")
    head += ("LiteRT", "TFLM", "first `predict`, s", "float's")
    rows: list[tuple[str, ...]] = []
    for name, row in measured["models"].items():
        speed, first = row["per_second"], row["first_predict_s"]
        predict = (speed["float"], speed["kquant"], row["of_float"], row["times_tflm"])
        evaluate = (speed["kquant, evaluate"], row["evaluate_of_float"], row["evaluate_times_tflm"])
        cells = (*_speeds(*predict), *_speeds(*evaluate), f"{speed['litert']:,.0f}", f"{speed['tflm']:,.0f}")
        rows.append((TITLES.get(name, name), *cells, f"{first['kquant']:.1f}", f"{first['float']:.1f}"))
    return f"{_where(measured)}\n\n{_table(head, rows)}"


def _speeds(*numbers: float) -> Iterable[str]:
    """Samples a second, then the share of float's, then how many times TFLM's."""
    *speeds, share, times = numbers
    return (*(f"{n:,.0f}" for n in speeds), f"{share:.2f}", f"{times:.1f}")


def deep(measured: dict[str, Any]) -> str:
    """Seconds by depth, and what each doubling takes."""
    kinds = [kind for kind, value in measured.items() if isinstance(value, dict) and "without collector" in value]
    head = ("convolutions", *(f"{kind}, {part}" for kind in kinds for part in (*VERBS, "all", "doubled")))
    head = (*head, *(f"{kind}, with the collector, doubled" for kind in kinds))
    rows: list[tuple[str, ...]] = []
    depths = list(measured[kinds[0]]["without collector"])
    for before, depth in zip([None, *depths], depths, strict=False):
        cells: list[str] = []
        for kind in kinds:
            row = measured[kind]["without collector"][depth]
            cells += [f"{row[verb]:.2f}" for verb in (*VERBS, "all")] + [
                _grown(measured, kind, before, depth, "without")
            ]
        rows.append((depth, *cells, *(_grown(measured, kind, before, depth, "with") for kind in kinds)))
    return f"{_where(measured)}\n\n{_table(head, rows)}"


VERBS = ("quantize", "calibrate", "export")


def _grown(measured: dict[str, Any], kind: str, before: str | None, depth: str, way: str) -> str:
    rows = measured[kind][f"{way} collector"]
    return "" if before is None else f"{rows[depth]['all'] / rows[before]['all']:.2f}"


TABLES: dict[str, Callable[[Any], str]] = {
    "coverage": coverage,
    "ptq_time": ptq,
    "train_time": training,
    "predict_time": predicting,
    "depth": deep,
}


def marks(name: str) -> tuple[str, str]:
    """What stands around a table in the page."""
    return f"<!-- of benchmarks/results/{name}.json: python -m benchmarks.tables -->", "<!-- end -->"


def made(name: str) -> str:
    """The table of a file of figures."""
    return TABLES[name](json.loads((RESULTS / f"{name}.json").read_text()))


def put() -> None:
    """Put every table where its marks are."""
    page = PAGE.read_text()
    for name in TABLES:
        start, end = marks(name)
        before, rest = page.split(start)
        page = f"{before}{start}\n\n{made(name)}\n\n{end}{rest.split(end, 1)[1]}"
    write_atomically(PAGE, page.encode(), "benchmarks.tables")


def main() -> None:
    """Parse and run."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    put()


if __name__ == "__main__":
    main()

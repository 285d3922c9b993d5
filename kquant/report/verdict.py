"""One sentence for one result, or for several of one model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kquant import targets
from kquant.analysis.results import Analysis
from kquant.exporting.export_file import ExportReport
from kquant.exporting.model_card import ModelCard
from kquant.report.file_sections import float_bytes
from kquant.report.pages import figure, is_sqnr, part_or_figure
from kquant.report.tables import page
from kquant.tflite.box_choice import CODE


def name_of(results: Sequence[Any]) -> str:
    """What a page is about: the model, the file, or the kind of result.

    Args:
        results: of one model.
    """
    for key in ("folder", "path", "model"):
        for one in results:
            named = getattr(one, key, None)
            named = getattr(named, "name", named)  # a search holds the model itself
            if isinstance(named, str | Path):
                return str(named) if key == "model" else Path(named).stem
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(results[0]).__name__)


def verdict_of(results: Sequence[Any]) -> str:
    """The result in one sentence; of an export and an analysis together, one of both.

    Args:
        results: of one model.
    """
    exports = [one for one in results if isinstance(one, ExportReport)]
    if not exports:
        return page(results[0]).headline
    analyses = [one for one in results if isinstance(one, Analysis)]
    cards = [one for one in results if isinstance(one, ModelCard) and one.accuracies]
    cards += [one.card for one in exports if one.card.accuracies]
    lost = _right(cards[0]) if cards else _lost(analyses[0]) if analyses else ""
    return _exported(exports[0], lost, bool(cards and cards[0].loss))


def _exported(report: ExportReport, lost: str, worse: bool) -> str:
    where = targets.load(report.target).title.partition(" (")[0]
    bad = [v.runtime for v in report.verification if not v.ok]
    if bad:
        return f"{Path(report.path).name} is not the model on {', '.join(bad)}: see below what differs."
    integer = f"{', '.join(report.float_layers)} stay float" if report.float_layers else "every operator is integer"
    if "*" in report.float_layers:
        integer = "activations stay float"
    if report.choosing is not None:
        integer = f"{integer} but {CODE}, which chooses the boxes in float"
    equal = all(v.verdict == "equal" for v in report.verification)
    ran = "equal to the model in every code" if equal else "the model's but for roundings of the runtime"
    ran = ran if report.verification else "not run"
    whole = float_bytes(report.weights)
    share = f", weights {100 * report.weights.totals['stored_bytes'] / whole:.0f} % of float32" if whole else ""
    about = f"{where}: {integer}, {ran}, {report.file_bytes:,} bytes{share}"
    if worse:  # first of all, and nothing that sounds as if it were done
        return f"{Path(report.path).name} lost accuracy: {lost.removeprefix('accuracy ')}. It runs on {about}."
    said = f"{Path(report.path).name} is ready for {about}"
    return f"{said}; {lost}." if lost else f"{said}."


def _right(card: ModelCard) -> str:
    before, after = card.accuracies["float"], card.accuracies["file"]
    said = f"accuracy {100 * after:.1f} % after {100 * before:.1f} % in float"
    change = "nothing lost" if after >= before else f"{100 * (before - after):.1f} points lost"
    return f"{said}, {change} on {card.samples:,} samples"


def _lost(a: Analysis) -> str:
    if is_sqnr(a):
        return f"SQNR of the outputs {figure(a.value)} dB"
    drop = a.float_value - a.value
    before, after = (part_or_figure(a.metric, value) for value in (a.float_value, a.value))
    change = "nothing lost" if drop <= 0.0 else f"{100 * drop:.1f} points lost"
    said = f"{a.metric} {after} after {before} in float"
    return f"{said}, {change} on {a.samples:,} samples" if a.metric == "accuracy" else f"{said}, {a.samples:,} samples"

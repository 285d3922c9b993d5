"""Each report as a headline, findings and tables, not yet laid out on a page."""

from __future__ import annotations

import math
from collections.abc import Iterable

from kquant.core.messages import first_of
from kquant.exact.narrow import totals
from kquant.exporting.chosen_boxes import Choosing
from kquant.exporting.export_file import ExportReport, Port
from kquant.exporting.model_card import arena_in_words
from kquant.exporting.streams import StreamReport
from kquant.exporting.verification import VerifyReport, share_asked
from kquant.layers.provenance import ALL
from kquant.prepare.forecast import CheckReport
from kquant.report.page import Page, Table, page
from kquant.report.placement import placement_facts, placement_findings, placement_table, said_of
from kquant.report.weights import (
    decoding_facts,
    removed_facts,
    removed_table,
    tables_table,
    weight_facts,
    weight_findings,
    weights_table,
)
from kquant.tflite.box_choice import CODE
from kquant.tflite.file_content import SHRUNK
from kquant.tflite.file_model import CHOOSES, FileAbout, FileModel, FileOperator, FileSignature, FileTensor, by_nature

TENSORS_SHOWN = 3
UNREAD = ("streaming", SHRUNK, CHOOSES)  # of a file's metadata: what others tell of, or JSON for `kquant.Stream`


@page.register
def _export(report: ExportReport) -> Page:
    # what went wrong on each runtime first, then what is worth knowing
    lost = [report.card.loss] if report.card.loss else []
    findings = [*lost, *(line for v in report.verification for line in _verify_findings(v))]
    findings += [] if report.streaming is None else report.streaming.notes
    findings += weight_findings(report.weights)
    if not report.verification:
        findings.append("The file was not run: check_runtimes was off.")
    bytes_of, types = weights_table(report.weights), _counts("Tensors", "type", report.types)
    removed = removed_table(report.removed)
    kind = "every operator integer"
    if report.float_layers:
        kind = "float activations" if ALL in report.float_layers else f"float: {', '.join(report.float_layers)}"
    if report.choosing is not None:
        kind = f"{kind} but {CODE}" if not report.float_layers else f"{kind}, {CODE}"
    on_card = (
        f"file {report.file_bytes:,} bytes, of it weights {report.weight_bytes:,} bytes",
        f"arena {arena_in_words(report.arena_bytes)}",
        *([f"accuracy {report.card.said}"] if report.card.said else []),
        f"{report.macs:,} multiply-accumulates for one sample",
    )
    return Page(
        headline=f"{report.path}: recipe {report.recipe}, target {report.target}, {kind}",
        ok=all(v.ok for v in report.verification) and not lost,
        findings=tuple(findings),
        facts=(
            *on_card,
            *_first_roundings(report.verification),
            *weight_facts(report.weights),
            *removed_facts(totals(report.removed)),
            *decoding_facts(report.decoding),
            *_stream_facts(report.streaming),
            *_choosing_facts(report.choosing),
        ),
        tables=(
            _agreements(report.verification),
            bytes_of,
            removed,
            _states(report.streaming),
            _ports((("input", p) for p in report.inputs), (("output", p) for p in report.outputs)),
            _counts("Operators", "operator", report.operators),
            types,
        ),
        # the card stands above, where details are left out
        background=(*on_card, *weight_facts(report.weights), bytes_of, removed, types),
    )


def _choosing_facts(choosing: Choosing | None) -> Iterable[str]:
    """Which operators of a detector's file are float, and what they choose."""
    if choosing is None:
        return
    of = ", ".join(f"{code} x{n}" for code, n in choosing.operators.items())
    yield f"boxes are chosen in float32 ({of}), from anchors of {choosing.anchor_bytes:,} bytes"
    for check in choosing.checks:
        left = f"; {check.undecided} left out, where float32 decides on an overlap" if check.undecided else ""
        yield (
            f"{check.runtime}: the boxes of kquant.Detection, {check.boxes} in {check.samples} samples, corners within "
            f"{check.corner_err:.1g} of the image{left}"
        )


@page.register
def _verify(report: VerifyReport) -> Page:
    return Page(
        headline=f"{report.runtime}, {report.samples} samples: {_verdict(report)}",
        ok=report.ok,
        findings=tuple(_verify_findings(report)),
        facts=(*((report.note,) if report.note else ()), *_first_roundings((report,))),
        tables=(_agreements((report,)),),
    )


def _verdict(report: VerifyReport) -> str:
    """One of three, with the figures of the output that is furthest off."""
    if report.verdict == "equal":
        return "equal in every code: the file is the model"
    if report.verdict == "wrong":
        return "the file is NOT the model"
    # one verdict for all outputs: that of the output which suffers most
    worst = min(report.agreements, key=lambda a: a.sqnr_db)
    figures = f"{_percent(worst.equal)} of the codes equal, at most {worst.max_err_lsb} LSB off, {worst.sqnr_db:.1f} dB"
    asked = f"the {report.agreement:g} dB"
    if worst.positions:
        figures, asked = f"{_percent(worst.equal)} of the positions equal", f"the {_share(report)}"
    said = f"the model's encodings; this runtime rounds otherwise: {figures}"
    return said if report.agrees else f"{said}, below {asked} asked for"


def _share(report: VerifyReport) -> str:
    return f"{100 * share_asked(report.agreement):.4g} % of equal positions"


@page.register
def _check(report: CheckReport) -> Page:
    bad = [row for row in report.layers if row.status in ("no kernel", "refused")]
    verdict = f"{len(bad)} of {len(report.layers)} layers cannot be integer" if bad else "every layer can be integer"
    rows = tuple((row.layer, row.kind, row.status, ", ".join(row.operators)) for row in report.layers)
    columns = ("layer", "class", "status", "operators")
    if report.recipe:
        columns += ("weights",)
        rows = tuple((*cells, "; ".join(row.weights)) for cells, row in zip(rows, report.layers, strict=True))
    how = f" with recipe '{report.recipe}'" if report.recipe else ""
    findings = (*(f"{row.layer} ({row.kind}), {row.status}: {row.remedy}" for row in bad), *report.advice)
    facts, tables, placed = tuple(_folds(report)), (Table("Layers", columns, rows),), report.placement
    if placed is not None:
        verdict = f"{verdict}; {said_of(placed)}"
        findings, facts = (*placement_findings(placed), *findings), (*facts, *placement_facts(placed))
        tables = (*tables, placement_table(placed))
    facts = (*facts, *filter(None, (report.boxes, report.labels)))
    headline = f"{report.model} on {report.target}{how}: {verdict}"
    return Page(headline=headline, ok=report.ok, findings=findings, facts=facts, tables=tables)


def _folds(report: CheckReport) -> Iterable[str]:
    """Batch norms and constants that fold, those that stay, and why."""
    # a model with refused layers is not folded at all, so that no list would be right
    if not report.ok and any(row.kind == "BatchNormalization" for row in report.layers):
        yield "which batch norms fold is known once every layer has an integer form"
    gone = [fold for fold in report.folds if fold.into is not None]
    if gone:
        names = ", ".join(f"{fold.layer} into {fold.into}" for fold in gone)
        yield f"{len(gone)} of {len(report.folds)} batch norms and constant factors fold: {names}"
    for fold in report.folds:
        if fold.into is None:
            yield f"{fold.layer} ({fold.kind}) stays an operator of its own: {fold.reason}"


def _where(op: FileOperator) -> str:
    return f"{op.code} (subgraph {op.subgraph})" if op.subgraph else op.code


def _call(model: FileModel, signature: FileSignature) -> str:
    sides = (
        ", ".join(name if model.tensors[i].name == name else f"{name} ({model.tensors[i].name})" for name, i in side)
        for side in (signature.inputs.items(), signature.outputs.items())
    )
    return f"signature '{signature.key}': {' -> '.join(sides)}"


def _about(about: FileAbout) -> Iterable[str]:
    """What the file says of itself to tools of Android and MediaPipe."""
    words = (about.description, about.version and f"version {about.version}", about.author, about.license)
    yield f"says of itself: {', '.join(filter(None, (about.name, *words)))}"
    for tensor in (*about.inputs, *about.outputs):
        said = [tensor.description]
        if tensor.mean or tensor.std:
            mean, std = (", ".join(f"{v:g}" for v in row) for row in (tensor.mean, tensor.std))
            said.append(f"(raw - [{mean}]) / [{std}]")
        if tensor.labels:
            said.append(f"{len(tensor.labels)} labels: {first_of(tensor.labels)}")
        if any(said):
            yield f"of {tensor.name}: {'; '.join(filter(None, said))}"


def _integer(model: FileModel) -> str:
    ends, rest = by_nature(model)
    return "NOT all integer" if rest else f"all integer but {ends[-1].code}" if ends else "all integer"


@page.register
def _file(model: FileModel) -> Page:
    made_by = ", ".join(f"{key} {value}" for key, value in model.metadata.items() if key not in UNREAD)
    facts = [f"file {model.size_bytes:,} bytes, of it stored tensors {model.weight_bytes:,} bytes"]
    if made_by:
        facts.append(f"made by {made_by}")
    facts += removed_facts(model.metadata.get(SHRUNK))
    facts += [_call(model, signature) for signature in model.signatures]
    if model.about is not None:
        facts += _about(model.about)
    operators = tuple(
        (str(op.index), _where(op), str(op.version), _tensors(model, op.inputs), _tensors(model, op.outputs))
        for op in model.operators
    )
    return Page(
        headline=f"{len(model.operators)} operators, {_integer(model)}",
        ok=model.is_integer,
        findings=model.findings,
        facts=tuple(facts),
        tables=(
            _ports((("input", _port(t)) for t in model.inputs), (("output", _port(t)) for t in model.outputs)),
            tables_table(model),
            _counts("Operators", "operator", model.operator_counts),
            Table("In order", ("#", "operator", "version", "reads", "writes"), operators, ("#", "version")),
        ),
    )


def _verify_findings(report: VerifyReport) -> Iterable[str]:
    if report.float_operators:
        yield f"{report.runtime}: these operators compute in float: {', '.join(report.float_operators)}."
    if report.wrong_encodings:
        yield f"{report.runtime}: scale or zero point is not the model's at {', '.join(report.wrong_encodings)}."
    # only where nothing above explains it: other encodings give other codes, of course
    if report.follows and report.verdict == "wrong" and not (report.float_operators or report.wrong_encodings):
        yield f"{report.runtime}: codes differ on the runtime whose roundings the model computes."
    if report.verdict == "rounds otherwise" and not report.agrees:
        asked = [f"{report.agreement:g} dB"] if any(not a.positions for a in report.agreements) else []
        asked += [_share(report)] if any(a.positions for a in report.agreements) else []
        yield f"{report.runtime}: outputs are below the agreement of {' or '.join(asked)}."
    if report.first_difference and not (report.verdict == "rounds otherwise" and report.agrees):
        yield f"{report.runtime}: outputs first differ from the model at {report.first_difference}."


def _first_roundings(reports: Iterable[VerifyReport]) -> Iterable[str]:
    """Where another rounding begins, which nothing is to be done about."""
    for report in reports:
        if report.verdict == "rounds otherwise" and report.agrees and report.first_difference:
            yield f"{report.runtime} first rounds otherwise at {report.first_difference}"


def _agreements(reports: Iterable[VerifyReport]) -> Table:
    columns = ("runtime", "output", "samples", "equal codes", "max LSB", "same argmax", "SQNR")
    rows = tuple(
        (
            report.runtime,
            a.output,
            str(report.samples),
            _percent(a.equal),
            "-" if a.positions else str(a.max_err_lsb),
            "-" if a.positions else _percent(a.argmax),
            "equal" if math.isinf(a.sqnr_db) else "positions" if a.positions else f"{a.sqnr_db:.1f} dB",
        )
        for report in reports
        for a in report.agreements
    )
    return Table("File against model", columns, rows, columns[2:])


def _stream_facts(report: StreamReport | None) -> Iterable[str]:
    if report is None:
        return
    yield f"stream: {report.hop} frames a call, {report.state_bytes:,} bytes of states ({report.kept})"
    for check in report.checks:
        share = "no call ends with a clip: nothing compared"
        if check.equal is not None:
            share = f"{_percent(check.equal)} of the codes equal"
        yield f"{check.runtime}, stream against whole clips, {check.frames} frames: {share}"


def _states(report: StreamReport | None) -> Table:
    columns = ("state", "shape", "type", "scale", "zero point", "first code")
    rows = tuple(
        (s.name, "x".join(map(str, s.shape)), s.type.upper(), *_encoding(s.scale, s.zero_point), str(s.initial))
        for s in (report.states if report is not None else ())
    )
    return Table("States", columns, rows, columns[3:])


def _percent(share: float) -> str:
    """Never 100 % for a share that is not all: 99.996 % reads 99.99 %."""
    return f"{math.floor(share * 10_000) / 100:.2f} %"


def _ports(*groups: Iterable[tuple[str, Port]]) -> Table:
    rows = tuple(
        (kind, p.name, "x".join(map(str, p.shape)), p.type, *_encoding(p.scale, p.zero_point))
        for group in groups
        for kind, p in group
    )
    columns = ("", "name", "shape", "type", "scale", "zero point")
    return Table("Ports: real = scale * (code - zero point)", columns, rows)


def _port(t: FileTensor) -> Port:
    scale = None if t.scale is None else t.scale[0]
    return Port(t.name, t.shape, t.type, scale, None if scale is None else t.zero_point[0])


def _encoding(scale: float | None, zero_point: int | None) -> tuple[str, str]:
    return ("-", "-") if scale is None else (f"{scale:.9g}", str(zero_point))


def _counts(title: str, column: str, counts: dict[str, int]) -> Table:
    # most frequent first, equal ones by name: the same file always reads the same
    rows = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return Table(title, (column, "count"), tuple((name, str(n)) for name, n in rows), ("count",))


def _tensors(model: FileModel, indices: tuple[int, ...]) -> str:
    """Types and shapes of an operator's tensors: `INT8 1x8x8x16, INT8 32x3x3x16`."""
    # -1 stands for an input that is left out, such as a bias
    present = [model.tensors[i] for i in indices if i >= 0]
    parts = [f"{t.type} {'x'.join(map(str, t.shape)) or 'scalar'}" for t in present[:TENSORS_SHOWN]]
    more = len(present) - TENSORS_SHOWN
    return ", ".join(parts) + (f", {more} more" if more > 0 else "")

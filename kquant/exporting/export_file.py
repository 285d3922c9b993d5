"""A calibrated or trained model -> a full-integer `.tflite`, read back and run before it takes its place."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import keras
import numpy as np

from kquant import __version__, targets
from kquant.calibration.aimet_encodings import Version
from kquant.calibration.aimet_encodings import encodings as encodings_of
from kquant.calibration.data import gather
from kquant.core.operators import facts
from kquant.core.renamed import renamed
from kquant.core.spec import Encoding
from kquant.exporting.lut_check import in_tables, refuse_other_outputs, refuse_tables, tables_of
from kquant.exporting.streams import Stream, StreamReport, check_stream, describe_stream, stream_metadata
from kquant.exporting.verification import VerifyReport, compare
from kquant.files.atomic import Outputs
from kquant.files.destination import destination
from kquant.layers.provenance import ALL
from kquant.runtime.running import ARENA, FALLBACK, arena_bytes, available
from kquant.targets import Target
from kquant.tflite.aliases import keep_apart
from kquant.tflite.edges import IO, cast_edges
from kquant.tflite.flatbuffer import to_bytes
from kquant.tflite.lowering import Lowered, lower
from kquant.tflite.lut_program import LookUpTables
from kquant.tflite.reader import FileModel, contents, read_model
from kquant.tflite.states import States, keep_states
from kquant.tflite.streaming import Streamed, to_stream
from kquant.tflite.vela import find_vela, vela_bytes
from kquant.tflite.weight_bytes import FileBytes, count_bytes

RANDOM_SAMPLES = 8


@dataclass(frozen=True)
class Port:
    """An input or output of the file: `real = scale * (code - zero_point)`; scale None for float32."""

    name: str
    shape: tuple[int, ...]
    type: str
    scale: float | None
    zero_point: int | None


@dataclass(frozen=True)
class ExportReport:
    """What `kquant.export` wrote.

    Attributes:
        path: of the file.
        target, recipe: what it was made for.
        file_bytes: size of the file.
        weight_bytes: of it, stored tensors.
        arena_bytes: RAM that TFLM needs for tensors on a 64-bit host (a 32-bit device needs a little less); None
            without the `micro` extra, with check_runtimes=False, and for files that TFLM does not run.
        operators: code -> count.
        types: tensor type -> number of tensors.
        inputs, outputs: what the application feeds and reads.
        float_layers: those that the recipe leaves float ("*": all).
        verification: one report for each runtime of the target that is installed; of the file over whole clips, where
            this is a streaming file; none with check_runtimes=False.
        weights: bytes, zeros and distinct codes of the weights, layer by layer.
        streaming: what a streaming file needs of the application; None for others.
    """

    path: str
    target: str
    recipe: str
    file_bytes: int
    weight_bytes: int
    arena_bytes: int | None
    operators: dict[str, int]
    types: dict[str, int]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    float_layers: tuple[str, ...]
    verification: tuple[VerifyReport, ...]
    weights: FileBytes
    streaming: StreamReport | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        verification = [v.to_dict() for v in self.verification]
        return {**asdict(self), "verification": verification, "weights": self.weights.to_dict()}


@renamed
def export(
    qmodel: keras.Model,
    path: str | Path,
    *,
    data: Any = None,
    io: IO = "model",
    check_runtimes: bool = True,
    streaming: bool | int = False,
    states: States = "io",
    encodings: str | Path | None = None,
    encodings_version: Version = "0.6.1",
    compression: Literal["lut"] | LookUpTables | None = None,
) -> ExportReport:
    """Write a full-integer TFLite file, static batch 1.

    Reads: `qmodel` stays as it was.

    The file is verified before it takes its place: every operator integer, every scale the model's own, and run on the
    target's interpreters in a process of their own. A failed export leaves an older file as it was.

    Args:
        qmodel: quantized and calibrated or trained.
        path: of the `.tflite` file.
        data: representative data to verify the file with, see `kquant.calibrate`; random codes by default.
        io: type of inputs and outputs: what the model computes with (int8, or int16 with 16-bit activations), or
            another one behind a QUANTIZE or DEQUANTIZE at the edges.
        check_runtimes: run the file before returning.
        streaming: True or a number: the file takes the newest frames only, and gives that many results in time for
            each call. The network must be causal in time, axis 1 of its inputs; see docs/streaming.md.
        states: where a streaming file keeps older frames: "io", in inputs and outputs that the application copies, or
            "variables", in the interpreter.
        encodings: also write the scales and zero points to this path, as AIMET's JSON; see docs/encodings.md.
        encodings_version: "0.6.1" or "1.0.0".
        compression: "lut" stores weights as indices into tables of their codes, where that saves bytes, and gives the
            same outputs; target "tflm" only. `kquant.LookUpTables` names layers or limits the indices' bits. See
            docs/bytes.md.

    Returns:
        The report.

    Raises:
        ValueError: not calibrated, float layers left, an interpreter refuses the file, a layer that cannot be streamed,
            weights that look-up tables do not make smaller, or the path cannot be written.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> q = kquant.calibrate(kquant.quantize(model), np.ones((64, 4), "float32"), verbose=False)
        >>> kquant.export(q, "dense.tflite").operators
        {'FULLY_CONNECTED': 1}
    """
    _check_options(io, states, streaming)
    tables = tables_of(compression)
    target_path = destination(path, "export", "model.tflite").given
    results = Outputs([target_path] if encodings is None else [target_path, encodings], "export")
    beside = None if encodings is None else encodings_of(qmodel, encodings_version)
    lowered = lower(qmodel)
    refuse_tables(lowered, tables, check_runtimes)
    if streaming:
        made = _streaming(qmodel, lowered, data, io, int(streaming), states, check_runtimes, tables)
    else:
        made = _over_clips(qmodel, lowered, data, io, check_runtimes, tables)
    content, reports, arena, streamed = made
    file, held = contents(content)
    with results as new:
        new.write(target_path, content)
        if encodings is not None:
            new.write(encodings, f"{json.dumps(beside, indent=1)}\n".encode())
    return ExportReport(
        path=str(target_path),
        target=lowered.target.name,
        recipe=lowered.recipe,
        file_bytes=len(content),
        weight_bytes=file.weight_bytes,
        arena_bytes=arena,
        operators=file.operator_counts,
        types=dict(Counter(t.type for t in file.tensors)),
        inputs=tuple(_port(t) for t in file.inputs),
        outputs=tuple(_port(t) for t in file.outputs),
        float_layers=tuple(sorted(lowered.floats)),
        verification=reports,
        weights=_weights(lowered, content, count_bytes(content, file, held), check_runtimes),
        streaming=streamed,
    )


def _check_options(io: Any, states: Any, streaming: Any) -> None:
    """Refuse values that `export` does not know."""
    if io not in get_args(IO):
        raise ValueError(f"export: io must be one of {', '.join(map(repr, get_args(IO)))}. Received: {io!r}.")
    if states not in ("io", "variables") or isinstance(streaming, float) or streaming < 0:
        raise ValueError(
            "export: streaming must be False, True or a number of results for each call, and states 'io' or "
            f"'variables'. Received: streaming={streaming!r}, states={states!r}."
        )


# The file, what was checked, the arena, and what a streaming file needs.
_Made = tuple[bytes, tuple[VerifyReport, ...], int | None, StreamReport | None]


def file_content(lowered: Lowered) -> bytes:
    """The file that `export` writes with io="model", without checking it: what searches measure.

    Args:
        lowered: of a quantized model.

    Returns:
        The bytes, metadata with them.
    """
    keep_apart(lowered.program, lowered.target)
    return to_bytes(lowered.program, lowered.target, _metadata(lowered))


def _metadata(lowered: Lowered) -> dict[str, Any]:
    return {"kquant": __version__, "recipe": lowered.recipe, "target": lowered.target.name}


def _over_clips(
    qmodel: keras.Model, lowered: Lowered, data: Any, io: IO, check: bool, tables: LookUpTables | None
) -> _Made:
    """The file as the model is: whole samples in, whole results out."""
    cast_edges(lowered.program, io)
    plain = file_content(lowered)
    content = plain if tables is None else in_tables(lowered.program, lowered, _metadata(lowered), tables)
    if not check:
        return content, (), None, None
    reports, arena = _tried(qmodel, lowered, content, read_model(content), data)
    if tables is not None:
        refuse_other_outputs(plain, content, _random(lowered))
    return content, reports, arena, None


def _streaming(
    qmodel: keras.Model,
    lowered: Lowered,
    data: Any,
    io: IO,
    frames: int,
    states: States,
    check: bool,
    tables: LookUpTables | None,
) -> _Made:
    """The streaming file; the file over whole clips is compared with the model, then the stream with that file."""

    def written(edges: IO) -> tuple[bytes, Streamed]:
        streamed = to_stream(lowered.program, frames)
        cast_edges(streamed.program, edges)
        keep_states(streamed, states)
        keep_apart(streamed.program, lowered.target)
        metadata = {**_metadata(lowered), "streaming": stream_metadata(streamed, states)}
        if tables is not None:
            return in_tables(streamed.program, lowered, metadata, tables), streamed
        return to_bytes(streamed.program, lowered.target, metadata), streamed

    if ALL in lowered.floats:
        raise ValueError(
            f"export: streaming files compute with integers, and the recipe '{lowered.recipe}' leaves all activations "
            "float. Quantize with recipe 'int8' or 'int16x8', or export without streaming."
        )
    content, streamed = written(io)
    if not check:
        return content, (), None, describe_stream(streamed, states, ())
    plain = file_content(lowered)
    reports = _verified(qmodel, lowered, plain, read_model(plain), data)
    clips = _random(lowered) if data is None else gather(qmodel, data, 2)
    inner = content if io == "model" else written("int8")[0]
    checks = [check_stream(plain, inner, streamed.outputs, clips, report.runtime) for report in reports]
    if io != "model":
        for report in reports:
            Stream(content, report.runtime)
    return content, reports, _arena(lowered, content), describe_stream(streamed, states, checks)


def _weights(lowered: Lowered, content: bytes, counted: FileBytes, check: bool) -> FileBytes:
    """Bytes of the weights; Vela's too, where it compiles the target's files and is installed."""
    if not check or lowered.target.compiler is None or find_vela() is None:
        return counted
    try:
        return replace(counted, vela_bytes=vela_bytes(content))
    except ValueError as error:
        return replace(counted, vela_refusal=str(error))


def _arena(lowered: Lowered, content: bytes) -> int | None:
    """Arena size, where the file is for TFLM or happens to fit it."""
    if not _fits(read_model(content), targets.load(ARENA)):
        return None
    try:
        return arena_bytes(content)
    except ValueError:
        if ARENA in lowered.target.runtimes:
            raise
        return None  # beyond TFLM's limits, which do not concern this target


def _tried(
    qmodel: keras.Model, lowered: Lowered, content: bytes, file: FileModel, data: Any
) -> tuple[tuple[VerifyReport, ...], int | None]:
    """Verification and arena size, side by side."""
    with ThreadPoolExecutor() as pool:
        arena = pool.submit(_arena, lowered, content)
        reports = _verified(qmodel, lowered, content, file, data)
        return reports, arena.result()


def _verified(
    qmodel: keras.Model, lowered: Lowered, content: bytes, file: FileModel, data: Any
) -> tuple[VerifyReport, ...]:
    x = _random(lowered) if data is None else gather(qmodel, data, 64)
    names = [name for name in lowered.target.runtimes if name in available()] or [FALLBACK]
    reports = compare(lowered, content, file, x, names, locate=False)
    for report in reports:
        if report.float_operators:
            raise ValueError(f"export: the file would compute in float: {', '.join(report.float_operators)}.")
        if report.wrong_encodings:
            raise ValueError(f"export: scales differ from the model's at {', '.join(report.wrong_encodings)}.")
    return reports


def _fits(file: FileModel, target: Target) -> bool:
    """Files for another target may use operators that this one lacks; they have no arena."""
    return all(target.supports(code) or facts(code).unlisted for code in file.operator_counts)


def _random(lowered: Lowered) -> list[np.ndarray]:
    """Values all over the inputs' ranges."""
    rng = np.random.default_rng(0)
    arrays = []
    for t in keras.tree.flatten(lowered.graph.inputs):
        rows = _rows(lowered, t)
        if rows is not None:  # positions in a table
            arrays.append(rng.integers(0, rows, (RANDOM_SAMPLES, *t.shape[1:])).astype(np.int32))
            continue
        encoding = next(iter(_input_encodings(lowered, t)), None)
        ref = lowered.refs.get(id(t))
        if encoding is None and ref is not None and ref.dtype == "float32":
            arrays.append(rng.normal(size=(RANDOM_SAMPLES, *t.shape[1:])).astype(np.float32))
            continue
        if encoding is None:  # no output depends on this input
            arrays.append(np.zeros((RANDOM_SAMPLES, *t.shape[1:]), np.float32))
            continue
        codes = rng.integers(encoding.spec.low, encoding.spec.high + 1, (RANDOM_SAMPLES, *t.shape[1:]))
        arrays.append(encoding.dequantize(codes))
    return arrays


def _rows(lowered: Lowered, t: Any) -> int | None:
    """Length of the shortest table that an input of positions is looked up in; None for other inputs."""
    ref = lowered.refs.get(id(t))
    if ref is None or ref.dtype != "int32":
        return None
    tables = [op.inputs[0] for op in lowered.program.operators if op.code == "GATHER" and op.inputs[1] is ref]
    lengths = [table.shape[0] for table in tables if table is not None]
    return min(lengths, default=1)


def _input_encodings(lowered: Lowered, t: Any) -> list[Encoding]:
    readers = lowered.graph.consumers().get(id(t), [])
    refs = [lowered.refs[id(node.outputs[0])] for node in readers if id(node.outputs[0]) in lowered.refs]
    return [ref.encoding for ref in refs if ref.encoding is not None]


def _port(t: Any) -> Port:
    scale = None if t.scale is None else t.scale[0]
    return Port(t.name, t.shape, t.type, scale, None if scale is None else t.zero_point[0])

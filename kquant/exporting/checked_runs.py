"""A file that `export` wrote, run on the target's interpreters before it takes its place."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from kquant.calibration.data import gather
from kquant.core.spec import Encoding
from kquant.exporting.stored_check import check_runtime, refuse_other_outputs
from kquant.exporting.verification import VerifyReport, compare
from kquant.runtime.arenas import arena_of
from kquant.runtime.running import FALLBACK, available
from kquant.targets import Target
from kquant.tflite.file_content import Files
from kquant.tflite.lowering import Lowered
from kquant.tflite.reader import FileModel, read_model

if TYPE_CHECKING:
    from kquant.detecting.spec import Detection
    from kquant.exporting.chosen_boxes import BoxCheck
    from kquant.exporting.streams import StreamCheck
    from kquant.tflite.streaming import Streamed

RANDOM_SAMPLES = 8
CHECKED_SAMPLES = 64


def checked(
    qmodel: keras.Model, lowered: Lowered, files: Files, file: FileModel, data: Any, detection: Detection | None
) -> tuple[tuple[VerifyReport, ...], int | None, tuple[StreamCheck, ...], tuple[BoxCheck, ...]]:
    """Run what was written: against the model, a stream against its clips, stored weights against plain ones, boxes.

    Args:
        qmodel: the model.
        lowered: what became of it.
        files: what was written.
        file: what `files.content` holds.
        data: to run it on, or None for random codes.
        detection: what a file that chooses boxes chooses.

    Returns:
        One report for each runtime of the target, the arena in bytes, and what was seen of streams and boxes.

    Raises:
        ValueError: a runtime refuses the file, or computes something else.
    """
    # first: whoever lacks the runtime for decoded weights hears how to get it, and nothing has run in vain
    check_runtime(() if files.decoding is None else files.decoding.tensors)
    x = random_values(lowered) if data is None else gather(qmodel, data, CHECKED_SAMPLES)
    # the model computes whole clips: a stream is compared with their file, and that one with the model
    compared = file if files.compared is files.content else read_model(files.compared)
    # the arena is found by trial in other processes while the model computes here
    with ThreadPoolExecutor() as pool:
        arena = pool.submit(arena_of, files.content, file, lowered.target)
        reports = _verified(lowered, files.compared, compared, x)
        streams = () if files.streamed is None else _streams(files, files.streamed, compared, x, reports)
        boxes = () if detection is None else _boxes(detection, files, file, x, reports)
        seen = reports, arena.result(), streams, boxes
    # boxes were compared with those of the plain file already
    if files.decoding is not None and files.streamed is None and not files.chooses:
        refuse_other_outputs(files.over_clips, files.content, file, random_values(lowered))
    return seen


def _verified(lowered: Lowered, content: bytes, file: FileModel, x: list[np.ndarray]) -> tuple[VerifyReport, ...]:
    """The reports of the target's runtimes; a file that they find wrong is refused."""
    # a runtime that lacks an operator cannot check the file; another one of the target can
    able = [
        name
        for name in lowered.target.runtimes
        if all(runs(lowered.target, op.code, name) for op in file.operators) and reads_blocks(lowered, name)
    ]
    names = [name for name in able if name in available()] or [FALLBACK]
    reports = compare(lowered, content, file, x, names, locate=False)
    for report in reports:
        if report.float_operators:
            raise ValueError(f"export: the file would compute in float: {', '.join(report.float_operators)}.")
        if report.wrong_encodings:
            raise ValueError(f"export: scales differ from the model's at {', '.join(report.wrong_encodings)}.")
    return reports


def runs(target: Target, code: str, runtime: str) -> bool:
    """Whether a runtime of a target has an operator, and computes it as the device does.

    Args:
        target: that the operator was written for.
        code: of it.
        runtime: one of the target's.
    """
    return code not in target.ops or runtime in target.runtimes_for(code)


def reads_blocks(lowered: Lowered, runtime: str) -> bool:
    """Whether a runtime reads the weights in blocks that a program has, or it has none."""
    readers = {op.code for op in lowered.program.operators for ref in op.inputs if ref is not None and ref.block_scales}
    return not any(runtime in lowered.target.ops[code].blocks_unread for code in readers)


def _streams(
    files: Files, streamed: Streamed, file: FileModel, x: list[np.ndarray], reports: tuple[VerifyReport, ...]
) -> tuple[StreamCheck, ...]:
    """A streaming file on each runtime: equal to the file over whole clips, and taken with the types at its edges."""
    from kquant.exporting.streams import Stream, check_stream  # few files are streams

    names = [report.runtime for report in reports]
    checks = [check_stream(files.over_clips, file, files.frames, streamed.outputs, x, name) for name in names]
    # what was run has the model's own types at its edges; the file with others has to be taken, too
    if files.frames != files.content:
        for name in names:
            Stream(files.content, name)
    return tuple(checks)


def _boxes(
    detection: Detection, files: Files, file: FileModel, x: list[np.ndarray], reports: tuple[VerifyReport, ...]
) -> tuple[BoxCheck, ...]:
    """The boxes of a file that chooses them itself, on each runtime."""
    from kquant.exporting.chosen_boxes import check_boxes  # few files are

    return tuple(check_boxes(detection, files, file, x, report.runtime) for report in reports)


def random_values(lowered: Lowered) -> list[np.ndarray]:
    """Values all over the inputs' ranges."""
    rng = np.random.default_rng(0)
    arrays = []
    for t in lowered.graph.input_tensors:
        rows = _rows(lowered, t)
        if rows is not None:  # positions in a table
            arrays.append(rng.integers(0, rows, (RANDOM_SAMPLES, *t.shape[1:])).astype(np.int32))
            continue
        encoding = next(iter(_input_encodings(lowered, t)), None)
        ref = lowered.refs.get(id(t))
        # an input that stays float has no codes to draw
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
    readers = lowered.graph.consumers.get(id(t), [])
    refs = [lowered.refs[id(node.outputs[0])] for node in readers if id(node.outputs[0]) in lowered.refs]
    return [ref.encoding for ref in refs if ref.encoding is not None]

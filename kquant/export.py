"""A calibrated or trained model -> a full-integer `.tflite`, read back and run before it takes its place."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from kquant import __version__, targets
from kquant.core.program import Operator, Program, Ref
from kquant.core.spec import Encoding
from kquant.inspect import FileModel, read_model
from kquant.lower import Lowered, lower, to_bytes
from kquant.runtimes import arena_bytes, available
from kquant.verify import VerifyReport, compare, gather

IO = Literal["int8", "uint8", "float32"]
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
            without the `micro` extra.
        operators: code -> count.
        types: tensor type -> number of tensors.
        inputs, outputs: what the application feeds and reads.
        verification: one report for each runtime of the target that is installed.
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
    verification: tuple[VerifyReport, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "verification": [v.to_dict() for v in self.verification]}


def export(
    qmodel: keras.Model, path: str | Path, *, samples: Any = None, io: IO = "int8", check_runtimes: bool = True
) -> ExportReport:
    """Write a full-integer TFLite file, static batch 1.

    The file is verified before it takes its place: every operator integer, every scale the model's own, and run on the
    target's interpreters in a process of their own. A failed export leaves an older file as it was.

    Args:
        qmodel: quantized and calibrated or trained; it is not changed.
        path: of the `.tflite` file.
        samples: data for the verification, like for `kquant.calibrate`; random codes by default.
        io: type of inputs and outputs; "float32" adds one QUANTIZE and DEQUANTIZE at the edges.
        check_runtimes: run the file before returning.

    Returns:
        The report.

    Raises:
        ValueError: not calibrated, float layers left, an interpreter refuses the file, or the path cannot be written.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> q = kquant.calibrate(kquant.quantize(model), np.ones((64, 4), "float32"), verbose=False)
        >>> kquant.export(q, "dense.tflite").operators
        {'FULLY_CONNECTED': 1}
    """
    if io not in ("int8", "uint8", "float32"):
        raise ValueError(f"export: io must be 'int8', 'uint8' or 'float32'. Received: {io!r}.")
    target_path = _writable(Path(path))
    lowered = lower(qmodel)
    if io != "int8":
        _edges(lowered.program, io)
    content = to_bytes(
        lowered.program,
        lowered.target,
        {"kquant": __version__, "recipe": lowered.recipe, "target": lowered.target.name},
    )
    file = read_model(content)
    reports, arena = _tried(qmodel, lowered, content, file, samples) if check_runtimes else ((), None)
    write_atomically(target_path, content)
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
        verification=reports,
    )


def _tried(
    qmodel: keras.Model, lowered: Lowered, content: bytes, file: FileModel, samples: Any
) -> tuple[tuple[VerifyReport, ...], int | None]:
    """Verification and arena size, side by side."""
    with ThreadPoolExecutor() as pool:
        arena = pool.submit(arena_bytes, content) if _fits_tflm(file) else None
        reports = _verified(qmodel, lowered, content, file, samples)
        try:
            return reports, None if arena is None else arena.result()
        except ValueError:
            if "tflm" in lowered.target.runtimes:
                raise
            return reports, None  # beyond TFLM's limits, which do not concern this target


def _verified(
    qmodel: keras.Model, lowered: Lowered, content: bytes, file: FileModel, samples: Any
) -> tuple[VerifyReport, ...]:
    x = _random(lowered) if samples is None else gather(qmodel, samples, 64)
    names = [name for name in lowered.target.runtimes if name in available()] or ["litert-reference"]
    reports = compare(lowered, content, file, x, names)
    for report in reports:
        if report.float_operators:
            raise ValueError(f"export: the file would compute in float: {', '.join(report.float_operators)}.")
        if report.wrong_encodings:
            raise ValueError(f"export: scales differ from the model's at {', '.join(report.wrong_encodings)}.")
    return reports


def _fits_tflm(file: FileModel) -> bool:
    """Files for another target may use operators that TFLM lacks; they have no arena."""
    tflm = targets.load("tflm")
    return all(tflm.supports(code) for code in file.operator_counts)


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
        if encoding is None:  # no output depends on this input
            arrays.append(np.zeros((RANDOM_SAMPLES, *t.shape[1:]), np.float32))
            continue
        codes = rng.integers(encoding.spec.low, encoding.spec.high + 1, (RANDOM_SAMPLES, *t.shape[1:]))
        arrays.append(encoding.dequantize(codes))
    return arrays


def _rows(lowered: Lowered, t: Any) -> int | None:
    """Length of the shortest table that an input of positions is looked up in; None for other inputs."""
    ref = lowered.refs.get(id(t))
    tables = [op.inputs[0] for op in lowered.program.operators if op.code == "GATHER" and op.inputs[1] is ref]
    lengths = [table.shape[0] for table in tables if table is not None]
    return min(lengths, default=1) if ref is not None else None


def _input_encodings(lowered: Lowered, t: Any) -> list[Encoding]:
    readers = lowered.graph.consumers().get(id(t), [])
    refs = [lowered.refs[id(node.outputs[0])] for node in readers if id(node.outputs[0]) in lowered.refs]
    return [ref.encoding for ref in refs if ref.encoding is not None]


def _edges(program: Program, io: IO) -> None:
    """Casts at the edges: float32 or uint8 outside, int8 inside."""
    for i, inner in enumerate(program.inputs):
        if inner.dtype == "int32":  # positions are what the application has
            continue
        outer = _outer(program, inner, io)
        program.operators.insert(0, Operator("QUANTIZE", [outer], [inner]))
        inner.name, outer.name = f"{inner.name}/int8", inner.name
        program.inputs[i] = outer
    for i, inner in enumerate(program.outputs):
        outer = _outer(program, inner, io)
        program.operators.append(Operator("DEQUANTIZE" if io == "float32" else "QUANTIZE", [inner], [outer]))
        inner.name, outer.name = f"{inner.name}/int8", inner.name
        program.outputs[i] = outer


def _outer(program: Program, inner: Ref, io: IO) -> Ref:
    if io == "float32" or inner.encoding is None:
        return program.value(inner.name, inner.shape, None, "float32")
    encoding = Encoding(inner.encoding.scale, inner.encoding.zero_point + 128, inner.encoding.spec)
    return program.value(inner.name, inner.shape, encoding, "uint8")


def _port(t: Any) -> Port:
    scale = None if t.scale is None else t.scale[0]
    return Port(t.name, t.shape, t.type, scale, None if scale is None else t.zero_point[0])


def _writable(path: Path) -> Path:
    """Refuse early what could not be written late."""
    try:
        return _checked(path)
    except OSError as error:  # a name that the system cannot even look up
        raise ValueError(f"export: {path} cannot be written: {error.strerror}; choose another path.") from error


def _checked(path: Path) -> Path:
    if path.is_dir():
        raise ValueError(f"export: {path} is a folder; give the name of the file, like {path / 'model.tflite'}.")
    parent = path.parent
    if not parent.is_dir():
        raise ValueError(f"export: the folder {parent} does not exist; make it first.")
    if not os.access(parent, os.W_OK):
        raise ValueError(f"export: the folder {parent} cannot be written to; choose another path.")
    # as a shell's `>` would refuse; the mode itself, because root may write everywhere
    if path.exists() and not path.stat().st_mode & stat.S_IWUSR:
        raise ValueError(f"export: {path} exists and is read-only; remove it or choose another path.")
    return path


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside the target and move: readers see the old file or the new one, never half of it.

    Raises:
        ValueError: the system refuses, with its reason.
    """
    name = ""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".kquant-")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException as error:
        if name:
            with contextlib.suppress(FileNotFoundError):
                Path(name).unlink()
        if isinstance(error, OSError):
            raise ValueError(f"export: {path} cannot be written: {error.strerror}; choose another path.") from error
        raise

"""All that the text of a project says, as frozen data: templates compute nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kquant import __version__
from kquant.core.operators import facts
from kquant.exporting.verification import AGREEMENT_DB, Agreement, VerifyReport
from kquant.projects.arena import Arena
from kquant.projects.boxes import Boxes
from kquant.projects.ctc_labels import Labels
from kquant.projects.golden import Golden, starts_anew
from kquant.projects.languages import LANGUAGES
from kquant.projects.layer_names import layer_of, written_by
from kquant.projects.names import class_name, distinct, identifier
from kquant.projects.npu import Compiled
from kquant.runtime.running import dequantize_output, quantize_input
from kquant.tflite.file_positions import positions_in
from kquant.tflite.raw_values import Normalization
from kquant.tflite.reader import FileModel, FileTensor, places

BYTES_PER_LINE, NUMBERS_PER_LINE = 12, 16
PART_DIGEST = 4


@dataclass(frozen=True)
class Probe:
    """A real number, the nearest code, and what that code stands for; for a unit test."""

    real: float
    code: int
    back: float


@dataclass(frozen=True)
class Port:
    """An input or output.

    Attributes:
        name: the tensor's, as the user wrote it.
        layer: that it belongs to; of an output, what computes it.
        id: a legal name in the language, distinct among the ports.
        index: among the inputs, or the outputs.
        shape: without batch axis.
        elements: how many values that is.
        type: of its values in the language.
        scale, zero_point: of codes; None for floats and positions in a table.
        low, high: the smallest and the largest code.
        channels: length of the last axis; 1 without axes.
        positions: how many it tells apart; 0 of quantities.
        probes: of codes: real numbers and what codes they become.
    """

    name: str
    layer: str
    id: str
    index: int
    shape: tuple[int, ...]
    elements: int
    type: str
    scale: float | None
    zero_point: int | None
    low: int
    high: int
    channels: int
    probes: tuple[Probe, ...]
    positions: int = 0


@dataclass(frozen=True)
class State:
    """What a program keeps from one call of a stream to the next.

    Attributes:
        input, output: that the program copies the one from the other.
        initial: each of its codes before the first call.
    """

    input: Port
    output: Port
    initial: int


@dataclass(frozen=True)
class Registered:
    """An operator that the file uses.

    Attributes:
        code: of it.
        method: that registers it.
        count: how often it is used.
        layers: where, the first three.
    """

    code: str
    method: str
    count: int
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Vector:
    """The values of one port in one call, as lines of C."""

    port: Port
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Call:
    """One golden call."""

    inputs: tuple[Vector, ...]
    outputs: tuple[Vector, ...]


@dataclass(frozen=True)
class Part:
    """A stretch of the array that one tensor is stored in.

    Attributes:
        name: of the tensor: its layer, and what it is of it.
        offset, size: where it lies in the array, in bytes.
        digest: the first bytes of its SHA-256, as lines of C.
    """

    name: str
    offset: int
    size: int
    digest: tuple[str, ...]


@dataclass(frozen=True)
class Described:
    """What a project is about; see the attributes of `Port`, `Registered` and `Arena` for its parts.

    Attributes:
        title: the model's name, as the user wrote it.
        id: a legal name in the language; in C in front of every symbol.
        class_name: what a class for it is called, where the language has classes.
        version: of kquant.
        recipe, target: what the file was made for.
        sha256: of the file, in hexadecimal digits.
        digest: the same as lines of C; none for other languages.
        size: of the file in bytes.
        array: its bytes as lines of C; none for other languages, whose projects hold the file itself.
        parts: what is stored in the array, in order, so that a test tells what of it has changed.
        operators: each once, by code; none where no program registers any.
        variables: how many states the interpreter keeps.
        alone: each call is one of its own, though operators remember: the interpreter is reset before it.
        estimating: a stream in which an operator keeps numbers of its own, too, until the interpreter is reset.
        arena: see there; None where the interpreter asks the system for memory.
        inputs, outputs: in the file's order.
        labels: names of the classes; none where none were given.
        normalization: of raw values of the first input; None where none was given.
        calls: golden vectors as lines of C; none for other languages, whose projects hold them as JSON.
        agreements: what `kquant.verify` found of the file on the runtimes of its target, in words.
        asked_db: what a test asks of a device, as `kquant.verify` does of a runtime that rounds otherwise.
        card: rows of what there is to know, in words.
        compiled: what the compiler of an NPU made of the file; None for targets without one.
        detection: how boxes are chosen from the outputs; None of models that are no detectors.
        ctc: how labels are read from an output; None of models that are not trained with CTC.
        states: of a stream whose program keeps them; the last inputs and outputs.
    """

    title: str
    id: str
    class_name: str
    version: str
    recipe: str
    target: str
    sha256: str
    digest: tuple[str, ...]
    size: int
    array: tuple[str, ...]
    parts: tuple[Part, ...]
    operators: tuple[Registered, ...]
    variables: int
    alone: bool
    estimating: bool
    arena: Arena | None
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    labels: tuple[str, ...]
    normalization: Normalization | None
    calls: tuple[Call, ...]
    agreements: tuple[str, ...]
    asked_db: float
    card: tuple[tuple[str, str], ...]
    compiled: Compiled | None = None
    detection: Boxes | None = None
    ctc: Labels | None = None
    states: tuple[State, ...] = ()

    @property
    def guard(self) -> str:
        """`id` in capitals, for the guards of C's headers."""
        return self.id.upper()

    @property
    def asked(self) -> tuple[str, ...]:
        """What reads the outputs, by the argument of `bundle` that asks for it."""
        return tuple(name for name in ("detection", "ctc") if getattr(self, name) is not None)


def described(
    content: bytes,
    file: FileModel,
    *,
    title: str,
    arena: Arena | None,
    golden: Golden,
    labels: Sequence[str],
    normalization: Normalization | None,
    card: Sequence[tuple[str, str]],
    language: str = "c",
    verified: Sequence[VerifyReport] = (),
    compiled: Compiled | None = None,
    detection: Boxes | None = None,
    ctc: Labels | None = None,
) -> Described:
    """Put together what a project says.

    Args:
        content: of the file.
        file: what it holds.
        title: the model's name.
        arena: of the file; None where a program neither gives one nor registers operators.
        golden: of the file.
        labels: names of classes.
        normalization: of raw values.
        card: rows of what there is to know.
        language: of the project.
        verified: what is known of the file on the runtimes of its target.
        compiled: what the compiler of an NPU made of it.
        detection: how boxes are chosen from its outputs.
        ctc: how labels are read from an output.

    Raises:
        ValueError: an operator that TFLM has no registration for, by layer.
    """
    inputs, outputs = ports(file.inputs, language), _outputs(file, language)
    digest = hashlib.sha256(content).digest()
    one, in_c = identifier(title, language), language == "c"
    return Described(
        title=title,
        id=one,
        class_name=class_name(title, language),
        version=__version__,
        recipe=str(file.metadata.get("recipe", "")),
        target=str(file.metadata.get("target", "")),
        sha256=digest.hex(),
        digest=_lines([f"0x{b:02x}" for b in digest], BYTES_PER_LINE) if in_c else (),
        size=len(content),
        array=_lines([f"0x{b:02x}" for b in content], BYTES_PER_LINE) if in_c else (),
        parts=parts(content, file) if in_c else (),
        operators=() if arena is None else registered(file),
        variables=sum(op.code == "VAR_HANDLE" and op.subgraph == 0 for op in file.operators),
        alone=starts_anew(file),
        estimating=_estimating(file),
        arena=arena,
        inputs=inputs,
        outputs=outputs,
        states=_states(file, inputs, outputs),
        labels=tuple(labels),
        normalization=normalization,
        calls=_calls(golden, inputs, outputs) if in_c else (),
        agreements=tuple(_agreement(report.runtime, a) for report in verified for a in report.agreements),
        asked_db=max((report.agreement for report in verified), default=AGREEMENT_DB),
        card=tuple(card),
        compiled=compiled,
        detection=detection,
        ctc=ctc,
    )


def _calls(golden: Golden, inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> tuple[Call, ...]:
    numbers = range(golden.calls)
    return tuple(Call(_vectors(inputs, golden.inputs, n), _vectors(outputs, golden.outputs, n)) for n in numbers)


def _agreement(runtime: str, a: Agreement) -> str:
    if a.positions:
        return f"{layer_of(a.output)} on {runtime}: {a.equal:.1%} of positions equal"
    noise = "no noise" if np.isinf(a.sqnr_db) else f"{a.sqnr_db:.1f} dB"
    return f"{layer_of(a.output)} on {runtime}: {a.equal:.1%} of codes equal, {a.max_err_lsb} steps at most, {noise}"


def ports(
    tensors: Sequence[FileTensor], language: str = "c", writers: Mapping[int, str] | None = None
) -> tuple[Port, ...]:
    """The inputs or the outputs of a file.

    Args:
        tensors: in order.
        language: of the project.
        writers: what computes a tensor, by its index; otherwise the layer that the tensor is named after.

    Raises:
        ValueError: a type that cannot be handed over in that language.
    """
    spoken = LANGUAGES[language]
    for t in tensors:
        if t.dtype not in spoken.types:
            raise ValueError(
                f"bundle: '{t.name}' is {t.dtype}, and {spoken.title} takes {', '.join(spoken.types)}. Give "
                "io='float32', and the file converts real numbers itself."
            )
    ids = distinct((layer_of(t.name) for t in tensors), language)
    layers = [(writers or {}).get(t.index, layer_of(t.name)) for t in tensors]
    rows = enumerate(zip(tensors, layers, ids, strict=True))
    return tuple(_port(t, layer, one, n, spoken.types) for n, (t, layer, one) in rows)


def _outputs(file: FileModel, language: str) -> tuple[Port, ...]:
    made = zip(file.outputs, ports(file.outputs, language, written_by(file)), strict=True)
    return tuple(replace(port, positions=positions_in(file, t)) for t, port in made)


def _estimating(file: FileModel) -> bool:
    return "streaming" in file.metadata and any(facts(op.code).remembers for op in file.operators)


def _states(file: FileModel, inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> tuple[State, ...]:
    """Behind what a stream is given and gives, in the same order; none where the interpreter keeps them."""
    codes: list[int] = file.metadata.get("streaming", {}).get("states", [])
    count = len(codes)
    return tuple(map(State, inputs[len(inputs) - count :], outputs[len(outputs) - count :], codes))


def parts(content: bytes, file: FileModel) -> tuple[Part, ...]:
    """What is stored in a file: weights, biases, and whatever else its operators read, in the tensors' order.

    Args:
        content: of the file.
        file: what it holds.
    """
    names = {t.index: t.name for t in file.tensors}
    held: dict[range, str] = {}
    for index, place in places(content).items():
        held.setdefault(place, names[index])  # tensors of the same content share it
    return tuple(
        Part(name, at.start, len(at), _start_of_digest(content[at.start : at.stop])) for at, name in held.items()
    )


def _start_of_digest(content: bytes) -> tuple[str, ...]:
    """Enough to tell that something changed; that nothing did is what the digest of the whole file is for."""
    return _lines([f"0x{b:02x}" for b in hashlib.sha256(content).digest()[:PART_DIGEST]], BYTES_PER_LINE)


def _port(t: FileTensor, layer: str, one: str, index: int, types: Mapping[str, str]) -> Port:
    shape = tuple(t.shape[1:])
    limits = np.iinfo(t.dtype) if np.dtype(t.dtype).kind in "iu" else None
    grid = None if t.scale is None else (float(t.scale[0]), int(t.zero_point[0]))
    return Port(
        name=t.name,
        layer=layer,
        id=one,
        index=index,
        shape=shape,
        elements=int(np.prod(shape, dtype=np.int64)),
        type=types[t.dtype],
        scale=None if grid is None else grid[0],
        zero_point=None if grid is None else grid[1],
        low=0 if limits is None else int(limits.min),
        high=0 if limits is None else int(limits.max),
        channels=shape[-1] if shape else 1,
        probes=() if grid is None else _probes(t, *grid),
    )


def _probes(t: FileTensor, scale: float, zero: int) -> tuple[Probe, ...]:
    """The ends of a grid, what lies beyond them, and what lies on, beside and halfway between codes."""
    info = np.iinfo(t.dtype)
    codes = [info.min, info.min + 1, zero, (info.min + info.max) // 2, info.max]
    steps = np.array([c - zero + offset for c in codes for offset in (-0.5, -0.25, 0.0, 0.25, 0.5)], np.float32)
    reals = np.append(np.float32(scale) * steps, np.array([1e30, -1e30], np.float32))
    made = quantize_input(reals, t)
    rows = zip(reals, made, dequantize_output(made, t), strict=True)
    return tuple(Probe(float(real), int(code), float(back)) for real, code, back in rows)


def registered(file: FileModel) -> tuple[Registered, ...]:
    """The operators that a file uses, and how TFLM registers them.

    Args:
        file: what it holds.

    Raises:
        ValueError: TFLM has no registration for one, by layer.
    """
    rows = []
    for code, count in sorted(file.operator_counts.items()):
        made = [op for op in file.operators if op.code == code]
        names = {t.index: t.name for t in file.tensors}
        layers = tuple(dict.fromkeys(layer_of(names[op.outputs[0]]) for op in made if op.outputs))[:3]
        method = facts(code).resolver_of(code)
        if method is None:
            raise ValueError(
                f"bundle: {', '.join(layers)} ({code}): TensorFlow Lite Micro has no kernel to register for it. "
                "Quantize for target='tflm', which refuses the layer with a remedy."
            )
        rows.append(Registered(code, method, count, layers))
    return tuple(rows)


def _vectors(of: tuple[Port, ...], arrays: tuple[np.ndarray, ...], n: int) -> tuple[Vector, ...]:
    return tuple(Vector(port, _numbers(a[n])) for port, a in zip(of, arrays, strict=True))


def _numbers(values: Any) -> tuple[str, ...]:
    flat = np.ravel(values)
    floats = flat.dtype.kind == "f"
    return _lines([c_float(v) if floats else str(int(v)) for v in flat], NUMBERS_PER_LINE)


def c_float(value: float) -> str:
    """A float32 of C with the same bits.

    Example:
        >>> c_float(0.1), c_float(2.0)
        ('0.1f', '2.0f')
    """
    return f"{np.float32(value)!s}f"


def _lines(words: list[str], count: int) -> tuple[str, ...]:
    return tuple(", ".join(words[i : i + count]) + "," for i in range(0, len(words), count))

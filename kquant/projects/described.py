"""All that the text of a project says, as frozen data: templates compute nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kquant import __version__
from kquant.core.operators import facts
from kquant.projects.arena import Arena, layer_of
from kquant.projects.golden import Golden
from kquant.projects.names import distinct, identifier
from kquant.tflite.reader import FileModel, FileTensor, places

BYTES_PER_LINE, NUMBERS_PER_LINE = 12, 16
PART_DIGEST = 4
C_TYPES = {
    "int8": "int8_t",
    "uint8": "uint8_t",
    "int16": "int16_t",
    "int32": "int32_t",
    "int64": "int64_t",
    "float32": "float",
    "bool": "bool",
}


@dataclass(frozen=True)
class Port:
    """An input or output.

    Attributes:
        name: the tensor's, as the user wrote it.
        layer: that it belongs to; of an output, what computes it.
        id: a legal name in C, distinct among the ports.
        index: among the inputs, or the outputs.
        shape: without batch axis.
        elements: how many values that is.
        type: of C.
        scale, zero_point: of codes; None for floats and positions in a table.
        low, high: the smallest and the largest code.
        channels: length of the last axis; 1 without axes.
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
class Normalization:
    """What becomes of a raw value: `(raw * scale - mean[channel]) / std[channel]`."""

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


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
        id: a legal name in C, in front of every symbol.
        guard: the same in capitals.
        version: of kquant.
        recipe, target: what the file was made for.
        sha256: of the file, in hexadecimal digits.
        digest: the same as lines of C.
        size: of the file in bytes.
        array: its bytes as lines of C.
        parts: what is stored in the array, in order, so that a test tells what of it has changed.
        operators: each once, by code.
        variables: how many states the interpreter keeps.
        arena: see there.
        inputs, outputs: in the file's order.
        labels: names of the classes; none where none were given.
        normalization: of raw values of the first input; None where none was given.
        calls: golden vectors.
        card: rows of what there is to know, in words.
    """

    title: str
    id: str
    guard: str
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
    arena: Arena
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    labels: tuple[str, ...]
    normalization: Normalization | None
    calls: tuple[Call, ...]
    card: tuple[tuple[str, str], ...]


def described(
    content: bytes,
    file: FileModel,
    *,
    title: str,
    arena: Arena,
    golden: Golden,
    labels: Sequence[str],
    normalization: Normalization | None,
    card: Sequence[tuple[str, str]],
) -> Described:
    """Put together what a project says.

    Args:
        content: of the file.
        file: what it holds.
        title: the model's name.
        arena: of the file.
        golden: of the file.
        labels: names of classes.
        normalization: of raw values.
        card: rows of what there is to know.

    Raises:
        ValueError: an operator that TFLM has no registration for, by layer.
    """
    inputs, outputs = ports(file.inputs), ports(file.outputs, written_by(file))
    digest = hashlib.sha256(content).digest()
    one = identifier(title)
    return Described(
        title=title,
        id=one,
        guard=one.upper(),
        version=__version__,
        recipe=str(file.metadata.get("recipe", "")),
        target=str(file.metadata.get("target", "")),
        sha256=digest.hex(),
        digest=_lines([f"0x{b:02x}" for b in digest], BYTES_PER_LINE),
        size=len(content),
        array=_lines([f"0x{b:02x}" for b in content], BYTES_PER_LINE),
        parts=parts(content, file),
        operators=registered(file),
        variables=sum(op.code == "VAR_HANDLE" for op in file.operators),
        arena=arena,
        inputs=inputs,
        outputs=outputs,
        labels=tuple(labels),
        normalization=normalization,
        calls=tuple(
            Call(_vectors(inputs, golden.inputs, n), _vectors(outputs, golden.outputs, n)) for n in range(golden.calls)
        ),
        card=tuple(card),
    )


def ports(tensors: Sequence[FileTensor], writers: Mapping[int, str] | None = None) -> tuple[Port, ...]:
    """The inputs or the outputs of a file.

    Args:
        tensors: in order.
        writers: what computes a tensor, by its index; otherwise the layer that the tensor is named after.
    """
    ids = distinct(layer_of(t.name) for t in tensors)
    layers = [(writers or {}).get(t.index, layer_of(t.name)) for t in tensors]
    return tuple(_port(t, layer, one, n) for n, (t, layer, one) in enumerate(zip(tensors, layers, ids, strict=True)))


def written_by(file: FileModel) -> dict[int, str]:
    """What computes each tensor, by its index: the layer whose weights the operator reads, and the one that it is named
    after in brackets, where a batch norm or an activation became part of the operator.

    Args:
        file: what it holds.
    """
    tensors = {t.index: t for t in file.tensors}
    found: dict[int, str] = {}
    for op in file.operators:
        read = [tensors[i].name for i in op.inputs if i in tensors and tensors[i].size_bytes]
        owners = [name.rpartition("/")[0] for name in read if "/" in name]
        for i in op.outputs:
            layer = layer_of(tensors[i].name)
            found[i] = layer if not owners or owners[0] == layer else f"{owners[0]} ({layer})"
    return found


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


def _port(t: FileTensor, layer: str, one: str, index: int) -> Port:
    shape = tuple(t.shape[1:])
    limits = np.iinfo(t.dtype) if np.dtype(t.dtype).kind in "iu" else None
    coded = t.scale is not None
    return Port(
        name=t.name,
        layer=layer,
        id=one,
        index=index,
        shape=shape,
        elements=int(np.prod(shape, dtype=np.int64)),
        type=C_TYPES[t.dtype],
        scale=None if t.scale is None else float(t.scale[0]),
        zero_point=int(t.zero_point[0]) if coded else None,
        low=0 if limits is None else int(limits.min),
        high=0 if limits is None else int(limits.max),
        channels=shape[-1] if shape else 1,
    )


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

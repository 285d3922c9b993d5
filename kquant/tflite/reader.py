"""Read any `.tflite` file; damaged ones are refused."""

from __future__ import annotations

import contextlib
import os
import struct
import zipfile
from collections.abc import Generator, Iterator, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from ai_edge_litert import schema_py_generated as schema  # pyright: ignore[reportMissingTypeStubs]

from kquant.core.packed import PACKED, unpack
from kquant.files.named_files import check_lite_file
from kquant.files.untrusted import parse_json, read_file
from kquant.tflite.file_about import ENTRY, read_about
from kquant.tflite.file_model import (
    NUMPY,
    FileAbout,
    FileModel,
    FileOperator,
    FileSignature,
    FileTable,
    FileTensor,
    findings_of,
)
from kquant.tflite.storage import CODE, storage_of, storages

# The schema's code is generated without types.
SCHEMA: Any = schema
# An older schema may lack a packed type that the table has.
TYPES = {
    **{name: number for name, number in vars(schema.TensorType).items() if not name.startswith("_")},
    **{name.upper(): each.number for name, each in PACKED.items()},
}
NAMES = {number: name for name, number in TYPES.items()}
OPERATORS = {v: k for k, v in vars(schema.BuiltinOperator).items() if not k.startswith("_")}
# What the generated schema code raises when offsets lead out of the file or into other data: it checks nothing itself.
DAMAGE = (
    *(ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError),
    struct.error,
)


# What a file may tell of in all: its own bytes so many times, as tensors may share contents and names.
MOST_SHARED, OFFSET_BYTES = 16, 4
MOST_BYTES = (1 << 31) - 1  # offsets in a flatbuffer reach no further


def inspect(path: str | Path | bytes) -> FileModel:
    """The tensors and operators of a `.tflite` file, and what in it is not integer.

    Args:
        path: the file, or its bytes.

    Returns:
        A `FileModel`; print it with `kquant.report`.

    Raises:
        ValueError: no such file, or not a TFLite file.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> x = np.random.default_rng(0).random((64, 4), np.float32)
        >>> q = kquant.calibrate(kquant.quantize(model), x, verbose=False)
        >>> report = kquant.export(q, "dense.tflite", check_runtimes=False)
        >>> kquant.inspect("dense.tflite").operator_counts
        {'FULLY_CONNECTED': 1}
    """
    return read_model(read_bytes(path), label(path))


def read_bytes(path_or_bytes: str | Path | bytes) -> bytes:
    """Contents of a file given by path or as bytes.

    Raises:
        ValueError: no such file, or neither path nor bytes.
    """
    if isinstance(path_or_bytes, bytes | bytearray):
        return bytes(path_or_bytes)
    path = _path(path_or_bytes)
    check_lite_file(path)
    return read_file(path, str(path), MOST_BYTES)


def _path(given: Any) -> Path:
    """Whatever a user passes, which need not be what the types say."""
    if not isinstance(given, str | os.PathLike):
        hint = " That is a Keras model, which runs itself: model.predict(x)." if hasattr(given, "predict") else ""
        raise ValueError(f"file: expected the path of a .tflite file, or its bytes. Received: {given!r}.{hint}")
    return Path(cast("str | os.PathLike[str]", given))


def label(path_or_bytes: str | Path | bytes) -> str:
    """What messages call a file."""
    return "the file" if isinstance(path_or_bytes, bytes | bytearray) else str(path_or_bytes)


def read_model(data: bytes, where: str = "the file") -> FileModel:
    """`inspect` of bytes."""
    parts = _Parts(data, where)
    with parts.reading():
        return _read(parts)


def refuse_damaged(data: bytes, where: str = "the file") -> None:
    """Whether a file tells of no more than it holds, for what reads it without `read_model`.

    Raises:
        ValueError: not a TFLite file, or a damaged one.
    """
    _Parts(data, where)


class _Parts:
    """A file's tables as the generated schema code finds them in its bytes, none of them unpacked.

    That code checks nothing, and tables may be shared: a vector of 5,000 offsets to one subgraph with 5,000 offsets to
    one tensor takes 40 KB and tells of 25 million tensors. So what is told is counted before objects are made of it.
    """

    def __init__(self, data: bytes, where: str) -> None:
        if len(data) < 8 or data[4:8] != b"TFL3":
            from kquant.files.keras_files import is_keras  # which imports Keras; a TFLite file is read without it

            raise ValueError(
                f"{where} is not a TFLite file: bytes 4 to 8 must read TFL3. "
                f"Received: {data[4:8]!r} in {len(data)} bytes."
                + " That is a Keras model; kquant.export or kquant compress makes a file of it."
                # a ZIP file is one where it has what Keras writes; another may be arrays (.npz)
                * (is_keras(data[:9]) and (data[:2] != b"PK" or b"config.json" in data))
            )
        # `left` is how much may still be told of; every count below takes its part of it.
        self.where, self.data, self.size, self.left = where, data, len(data), MOST_SHARED * len(data)
        with self.reading():
            self.model = SCHEMA.Model.GetRootAs(data, 0)
            self.graphs = self._tables(self.model, "Subgraphs")
            for graph in self.graphs:
                self._count(OFFSET_BYTES * (graph.TensorsLength() + graph.OperatorsLength()))
            for graph in self.graphs:  # names are copied, wherever the tables are unpacked
                self._count(sum(len(graph.Tensors(i).Name() or b"") for i in range(graph.TensorsLength())))
            self.signatures = self._tables(self.model, "SignatureDefs")
            for signature in self.signatures:
                self._count(OFFSET_BYTES * (signature.InputsLength() + signature.OutputsLength()))
            self.graph = self.graphs[0]
            held = [self._tables(graph, "Tensors") for graph in self.graphs]
            self.stored = [t for tensors in held for t in tensors]
            # Tensors are numbered in each subgraph; here, those of the second go on where the first one's end.
            sizes = [len(tensors) for tensors in held]
            self.ranges = [range(sum(sizes[:n]), sum(sizes[: n + 1])) for n in range(len(sizes))]
            self.operators = [(n, op) for n, graph in enumerate(self.graphs) for op in self._tables(graph, "Operators")]
            self.codes, self.buffers = self._tables(self.model, "OperatorCodes"), self._tables(self.model, "Buffers")
            self.metadata = self._tables(self.model, "Metadata")

    @contextlib.contextmanager
    def reading(self) -> Generator[None]:
        """What the schema's code raises at damaged bytes becomes an error that names the file."""
        try:
            yield
        except DAMAGE as error:
            raise ValueError(f"{self.where} is damaged: {type(error).__name__}: {error}. Export it again.") from error

    def _count(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise ValueError(f"it tells of far more than its {self.size:,} bytes can hold")

    def _tables(self, table: Any, name: str) -> list[Any]:
        count = getattr(table, f"{name}Length")()
        self._count(OFFSET_BYTES * count)
        return [getattr(table, name)(i) for i in range(count)]

    def numbers(self, table: Any, name: str) -> tuple[Any, ...]:
        """A vector of numbers as a tuple."""
        values = self.array(table, name)
        return () if values is None else tuple(values.tolist())

    def array(self, table: Any, name: str) -> np.ndarray | None:
        """A vector of numbers where it lies; None where there is none."""
        if getattr(table, f"{name}IsNone")():
            return None
        values = getattr(table, f"{name}AsNumpy")()
        self._count(values.nbytes)
        return values

    def text(self, value: bytes | None) -> str:
        """A string."""
        self._count(len(value or b""))
        return (value or b"").decode()

    def content(self, index: int) -> np.ndarray | None:
        """uint8[n] that a tensor holds: in the flatbuffer, or behind it, where other tools put what is large."""
        buffer = self.buffers[_within(index, self.buffers)]
        if not is_behind(buffer):
            return self.array(buffer, "Data")
        start, size = buffer.Offset(), buffer.Size()
        if start + size > self.size:
            raise IndexError(f"{size} bytes from {start} on of {self.size}")
        self._count(size)
        return np.frombuffer(self.data, np.uint8, size, start)


def is_behind(buffer: Any) -> bool:
    """The contents lie behind the flatbuffer (schema.fbs: Buffer.offset is no 0 or 1 then)."""
    return buffer.Offset() > 1 and buffer.Size() > 0


def _within(index: int, held: Sized, least: int = 0) -> int:
    if not least <= index < len(held):
        raise IndexError(f"index {index} of {len(held)}")
    return index


def _read(parts: _Parts) -> FileModel:
    tensors = tuple(_tensor(i, t, parts) for i, t in enumerate(parts.stored))
    operators = tuple(_operator(i, *op, parts) for i, op in enumerate(parts.operators))
    own = tensors[: len(parts.ranges[0])]
    inputs = tuple(own[_within(i, own)] for i in parts.numbers(parts.graph, "Inputs"))
    outputs = tuple(own[_within(i, own)] for i in parts.numbers(parts.graph, "Outputs"))
    contents = [parts.content(t.Buffer()) for t in parts.stored]
    told: dict[int, int] = {}  # header -> body of the first that it is of
    tables = tuple(t for op in operators if op.code == CODE for t in _tables(op, tensors, contents, told))
    about, fault = _about(parts)
    calls = tuple(_signature(s, parts) for s in parts.signatures)
    graphs = tuple(_graph_name(n, graph, calls, parts) for n, graph in enumerate(parts.graphs))
    one = any(_has_one_zero_point(t) for t in parts.stored)
    behind = any(map(is_behind, parts.buffers))
    blocks = {n for n, t in enumerate(parts.stored) if _in_blocks(t)}
    multiplied = any(op.code == "FULLY_CONNECTED" and blocks & {*op.inputs} for op in operators)
    bare = FileModel(
        parts.size, tensors, operators, inputs, outputs, _metadata(parts), (), tables, graphs, calls, about, one, behind
    )
    bare = replace(bare, multiplies_blocks=multiplied)
    return replace(bare, findings=(*findings_of(bare), *fault))


def _signature(signature: Any, parts: _Parts) -> FileSignature:
    number = _within(signature.SubgraphIndex(), parts.graphs)
    held = parts.ranges[number]

    def named(side: str) -> dict[str, int]:
        maps = [getattr(signature, side)(i) for i in range(getattr(signature, f"{side}Length")())]
        return {parts.text(m.Name()): held[_within(m.TensorIndex(), held)] for m in maps}

    return FileSignature(parts.text(signature.SignatureKey()), named("Inputs"), named("Outputs"), number)


def _graph_name(number: int, graph: Any, calls: tuple[FileSignature, ...], parts: _Parts) -> str:
    """Its own; else that of its first signature; else the one that tools show."""
    key = next((call.key for call in calls if call.subgraph == number), "")
    return parts.text(graph.Name()) or key or (f"subgraph_{number}" if number else "main")


def _tables(
    op: FileOperator, tensors: tuple[FileTensor, ...], contents: list[Any], told: dict[int, int]
) -> Iterator[FileTable]:
    """What a DECODE writes out of a form that kquant knows."""
    # It reads pairs, what stands for the weights and their header, and writes a tensor for each. A header of several
    # counts at the first.
    for output, indices, header in zip(op.outputs, op.inputs[::2], op.inputs[1::2], strict=True):
        t, content = tensors[_within(output, tensors)], contents[_within(header, tensors)]
        stored = b"" if content is None else content.tobytes()
        storage = storage_of(stored)
        if storage is None:
            continue
        size = np.dtype(t.dtype).itemsize
        bits, count = storage.layout(stored, t.shape)
        own = told.setdefault(header, indices) == indices
        yield FileTable(
            name=t.name,
            output=output,
            indices=indices,
            tables=header,
            bits=bits,
            count=count,
            raw_bytes=int(np.prod(t.shape, dtype=np.int64)) * size,
            stored_bytes=tensors[indices].size_bytes + (tensors[header].size_bytes if own else 0),
            storage=storage.key,
        )


def _tensor(index: int, t: Any, parts: _Parts) -> FileTensor:
    q = t.Quantization()
    scales = () if q is None else parts.numbers(q, "Scale")
    points = () if q is None else parts.numbers(q, "ZeroPoint")
    content = parts.content(t.Buffer())
    return FileTensor(
        index=index,
        name=parts.text(t.Name()),
        shape=parts.numbers(t, "Shape"),
        type=NAMES[t.Type()],
        scale=scales or None,
        # one for all channels is read by TFLM as often as it takes
        zero_point=(points * len(scales) if len(points) == 1 else points) if scales and points else (0,),
        axis=int(q.QuantizedDimension()) if q is not None and scales else 0,
        size_bytes=0 if content is None else len(content),
        variable=bool(t.IsVariable()),
    )


def _has_one_zero_point(t: Any) -> bool:
    q = t.Quantization()
    return q is not None and q.ZeroPointLength() == 1 < q.ScaleLength()


def _in_blocks(t: Any) -> bool:
    q = t.Quantization()
    return q is not None and q.DetailsType() == SCHEMA.QuantizationDetails.BlockwiseQuantization


def contents(data: bytes, where: str = "the file") -> tuple[FileModel, dict[int, np.ndarray]]:
    """`read_model` and `constants` of one file, read once."""
    parts = _Parts(data, where)
    with parts.reading():
        file = _read(parts)
        return file, _constants(file, parts)


def constants(data: bytes) -> dict[int, np.ndarray]:
    """Stored contents by index of their tensor, in its shape; packed codes as int8, what a DECODE reads decoded.

    Args:
        data: a `.tflite` file that `read_model` takes.

    Returns:
        Arrays; of what a DECODE reads under the index of what it writes.
    """
    return contents(data)[1]


def places(data: bytes) -> dict[int, range]:
    """Where in a file the contents of its tensors are stored, by index of the tensor: the bytes from `start` to `stop`.

    Args:
        data: a `.tflite` file that `read_model` takes.
    """
    parts = _Parts(data, "the file")
    begin = np.frombuffer(data, np.uint8).ctypes.data
    with parts.reading():
        tensors = zip(_read(parts).tensors, parts.stored, strict=True)
        held = ((t.index, parts.content(stored.Buffer())) for t, stored in tensors)
        starts = ((index, a.ctypes.data - begin, len(a)) for index, a in held if a is not None and len(a))
        return {index: range(start, start + size) for index, start, size in starts}


def _constants(file: FileModel, parts: _Parts) -> dict[int, np.ndarray]:
    constants: dict[int, np.ndarray] = {}
    for t, stored in zip(file.tensors, parts.stored, strict=True):
        content = parts.content(stored.Buffer())
        if content is None or t.dtype not in (*PACKED, *NUMPY.values(), "float16"):
            continue
        count = int(np.prod(t.shape, dtype=np.int64))
        constants[t.index] = unpack(content, t.dtype, count).reshape(t.shape)
    for table in file.tables:
        t = file.tensors[table.output]
        pair = constants[table.indices].tobytes(), constants[table.tables].tobytes()
        constants[t.index] = storages()[table.storage].load(*pair, t.shape, t.dtype, t.zero_point, t.axis)
    return constants


def _operator(index: int, subgraph: int, op: Any, parts: _Parts) -> FileOperator:
    code = parts.codes[_within(op.OpcodeIndex(), parts.codes)]
    # Older files have the code in the old field alone; newer ones write 127 there where it needs more than 7 bits.
    number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    name = parts.text(code.CustomCode()) or OPERATORS[number]
    held = parts.ranges[subgraph]

    def numbered(side: str) -> tuple[int, ...]:
        given = [_within(i, held, -1) for i in parts.numbers(op, side)]
        return tuple(i if i < 0 else held[i] for i in given)

    return FileOperator(index, name, int(code.Version()), numbered("Inputs"), numbered("Outputs"), subgraph)


def _about(parts: _Parts) -> tuple[FileAbout | None, tuple[str, ...]]:
    """What the file says of itself; a runtime does without, so that a damaged one is told and no more."""
    entry = next((e for e in parts.metadata if e.Name() == ENTRY.encode()), None)
    content = None if entry is None else parts.content(entry.Buffer())
    if content is None:
        return None, ()
    try:
        return read_about(content.tobytes(), parts.data), ()
    except (*DAMAGE, zipfile.BadZipFile, NotImplementedError, EOFError, OSError) as error:
        return None, (f"its {ENTRY} cannot be read: {error}. Tools of Android and MediaPipe will not take it.",)


def _metadata(parts: _Parts) -> dict[str, Any]:
    for entry in parts.metadata:
        if entry.Name() == b"kquant":
            content = parts.content(entry.Buffer())
            fields = parse_json(b"" if content is None else content.tobytes(), "its metadata")
            if not isinstance(fields, dict):
                raise ValueError("its metadata are no object")
            return cast("dict[str, Any]", fields)
    return {}

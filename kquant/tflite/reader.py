"""Read any `.tflite` file: its tensors and operators, what is not integer, and why that matters."""

from __future__ import annotations

import contextlib
import os
import struct
from collections import Counter
from collections.abc import Generator, Iterator, Sized
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from ai_edge_litert import schema_py_generated as schema  # pyright: ignore[reportMissingTypeStubs]

from kquant.files.named_files import check_lite_file
from kquant.files.untrusted import parse_json, read_file
from kquant.tflite.storage import CODE, storage_of, storages, titles

# The schema's code is generated without types.
SCHEMA: Any = schema
NAMES = {v: k for k, v in vars(schema.TensorType).items() if not k.startswith("_")}
OPERATORS = {v: k for k, v in vars(schema.BuiltinOperator).items() if not k.startswith("_")}
FLOATS = frozenset({"FLOAT32", "FLOAT16", "FLOAT64", "BFLOAT16"})
NUMPY = {
    "FLOAT32": "float32",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
_NIBBLES = ("int4",)
EDGES = ("QUANTIZE", "DEQUANTIZE")
# What the generated schema code raises when offsets lead out of the file or into other data: it checks nothing itself.
DAMAGE = (
    *(ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError),
    struct.error,
)


# What a file may tell of in all: its own bytes so many times, as tensors may share contents and names.
MOST_SHARED, OFFSET_BYTES = 16, 4
MOST_BYTES = (1 << 31) - 1  # offsets in a flatbuffer reach no further


@dataclass(frozen=True)
class FileTensor:
    """One tensor of a file.

    Attributes:
        index: position in the file.
        name, shape: as stored.
        type: the schema's name, "INT8".
        scale, zero_point: None where the tensor has no quantization.
        axis: of the scales, where there are several.
        size_bytes: of stored contents, 0 for computed tensors.
        variable: state that outlives a call.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    type: str
    scale: tuple[float, ...] | None
    zero_point: tuple[int, ...]
    axis: int
    size_bytes: int
    variable: bool = False

    @property
    def dtype(self) -> str:
        """Numpy's name of the type."""
        return NUMPY.get(self.type, self.type.lower())


@dataclass(frozen=True)
class FileOperator:
    """One operator: its code, version, and the indices of its tensors (-1: absent); the number of its subgraph."""

    index: int
    code: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    subgraph: int = 0


@dataclass(frozen=True)
class FileTable:
    """Weights that are stored as indices and tables, say; a DECODE writes them where their reader finds them.

    Attributes:
        name: of the weights, once for each DECODE that writes them.
        output, indices, tables: of their tensors in the file: what is written, what stands for the weights, the header.
        bits: of what stands for a weight; 0 where that differs.
        count: how many tables there are.
        raw_bytes: of the weights.
        stored_bytes: of indices and tables.
        storage: in what form, of `kquant.tflite.storage.STORAGES`.
    """

    name: str
    output: int
    indices: int
    tables: int
    bits: int
    count: int
    raw_bytes: int
    stored_bytes: int
    storage: str = "lut"


@dataclass(frozen=True)
class FileModel:
    """What a file holds, as `kquant.inspect` returns it.

    Attributes:
        size_bytes: of the file.
        tensors, operators: of all subgraphs, the main one first; the others are what its operators run (loops).
        inputs, outputs: of the main one, in order.
        metadata: kquant's entry, empty for other files.
        findings: what is not integer, and why it matters.
        tables: weights that a DECODE writes, which TensorFlow Lite Micro alone has.
    """

    size_bytes: int
    tensors: tuple[FileTensor, ...]
    operators: tuple[FileOperator, ...]
    inputs: tuple[FileTensor, ...]
    outputs: tuple[FileTensor, ...]
    metadata: dict[str, Any]
    findings: tuple[str, ...]
    tables: tuple[FileTable, ...] = ()

    @property
    def weight_bytes(self) -> int:
        """Bytes of stored tensors."""
        return sum(t.size_bytes for t in self.tensors)

    @property
    def operator_counts(self) -> dict[str, int]:
        """Operators by code."""
        return dict(Counter(op.code for op in self.operators))

    @property
    def is_integer(self) -> bool:
        """True where no operator but a QUANTIZE or DEQUANTIZE at the edge touches a float."""
        return not float_operators(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "weight_bytes": self.weight_bytes, "operator_counts": self.operator_counts}


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
        raise ValueError(f"file: expected the path of a .tflite file, or its bytes. Received: {given!r}.")
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
            raise ValueError(
                f"{where} is not a TFLite file: bytes 4 to 8 must read TFL3. "
                f"Received: {data[4:8]!r} in {len(data)} bytes."
            )
        # `left` is how much may still be told of; every count below takes its part of it.
        self.where, self.size, self.left = where, len(data), MOST_SHARED * len(data)
        with self.reading():
            self.model = SCHEMA.Model.GetRootAs(data, 0)
            self.graphs = self._tables(self.model, "Subgraphs")
            for graph in self.graphs:
                self._count(OFFSET_BYTES * (graph.TensorsLength() + graph.OperatorsLength()))
            for graph in self.graphs:  # names are copied, wherever the tables are unpacked
                self._count(sum(len(graph.Tensors(i).Name() or b"") for i in range(graph.TensorsLength())))
            for signature in self._tables(self.model, "SignatureDefs"):
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
        """uint8[n] that a tensor holds."""
        return self.array(self.buffers[_within(index, self.buffers)], "Data")


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
    tables = tuple(t for op in operators if op.code == CODE for t in _tables(op, tensors, contents))
    bare = FileModel(parts.size, tensors, operators, inputs, outputs, _metadata(parts), (), tables)
    return replace(bare, findings=_findings(bare))


def _tables(op: FileOperator, tensors: tuple[FileTensor, ...], contents: list[Any]) -> Iterator[FileTable]:
    """What a DECODE writes out of a form that kquant knows."""
    # It reads pairs, what stands for the weights and their header, and writes a tensor for each.
    for output, indices, header in zip(op.outputs, op.inputs[::2], op.inputs[1::2], strict=True):
        t, content = tensors[_within(output, tensors)], contents[_within(header, tensors)]
        stored = b"" if content is None else content.tobytes()
        storage = storage_of(stored)
        if storage is None:
            continue
        size = np.dtype(t.dtype).itemsize
        bits, count = storage.layout(stored, t.shape)
        yield FileTable(
            name=t.name,
            output=output,
            indices=indices,
            tables=header,
            bits=bits,
            count=count,
            raw_bytes=int(np.prod(t.shape, dtype=np.int64)) * size,
            stored_bytes=tensors[indices].size_bytes + tensors[header].size_bytes,
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
        zero_point=points if scales and points else (0,),
        axis=int(q.QuantizedDimension()) if q is not None and scales else 0,
        size_bytes=0 if content is None else len(content),
        variable=bool(t.IsVariable()),
    )


def contents(data: bytes, where: str = "the file") -> tuple[FileModel, dict[int, np.ndarray]]:
    """`read_model` and `constants` of one file, read once."""
    parts = _Parts(data, where)
    with parts.reading():
        file = _read(parts)
        return file, _constants(file, parts)


def constants(data: bytes) -> dict[int, np.ndarray]:
    """Stored contents by index of their tensor, in its shape; 4-bit codes unpacked, what a DECODE reads decoded.

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
    found: dict[int, np.ndarray] = {}
    for t, stored in zip(file.tensors, parts.stored, strict=True):
        content = parts.content(stored.Buffer())
        if content is None or t.dtype not in (*_NIBBLES, *NUMPY.values(), "float16"):
            continue
        flat = _nibbles(content, t.shape) if t.dtype in _NIBBLES else np.frombuffer(content.tobytes(), t.dtype)
        found[t.index] = flat.reshape(t.shape)
    for table in file.tables:
        t = file.tensors[table.output]
        pair = found[table.indices].tobytes(), found[table.tables].tobytes()
        found[t.index] = storages()[table.storage].load(*pair, t.shape, t.dtype, t.zero_point)
    return found


def _nibbles(pairs: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """4-bit codes, the first in the low half of a byte."""
    codes = np.stack([pairs & 15, pairs >> 4], axis=1).reshape(-1)[: int(np.prod(shape, dtype=np.int64))]
    # The sign of four bits: 8 to 15 become -8 to -1.
    return ((codes ^ 8).astype(np.int8) - 8).astype(np.int8)


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


def _metadata(parts: _Parts) -> dict[str, Any]:
    for entry in parts.metadata:
        if entry.Name() == b"kquant":
            content = parts.content(entry.Buffer())
            found = parse_json(b"" if content is None else content.tobytes(), "its metadata")
            if not isinstance(found, dict):
                raise ValueError("its metadata are no object")
            return cast("dict[str, Any]", found)
    return {}


def decoded_from(model: FileModel) -> str:
    """The storages of a file that needs a DECODE, in words."""
    return titles(sorted({table.storage for table in model.tables}))


def float_operators(model: FileModel) -> list[FileOperator]:
    """Operators that touch a float tensor, the casts of float inputs and outputs left out."""
    edge = {t.index for t in (*model.inputs, *model.outputs)}
    found: list[FileOperator] = []
    for op in model.operators:
        floats = {i for i in (*op.inputs, *op.outputs) if i >= 0 and model.tensors[i].type in FLOATS}
        # A cast between tensors inside the model is no cast at the edge.
        if floats and not (op.code in EDGES and floats <= edge):
            found.append(op)
    return found


def _findings(model: FileModel) -> tuple[str, ...]:
    found: list[str] = []
    floats = float_operators(model)
    if floats:
        names = ", ".join(f"{code} x{n}" for code, n in Counter(op.code for op in floats).items())
        found.append(
            f"{len(floats)} of {len(model.operators)} operators compute in float ({names}): slow or impossible on "
            "microcontrollers without an FPU, and refused by NPUs."
        )
    for t in (*model.inputs, *model.outputs):
        if t.type in FLOATS:
            found.append(
                f"'{t.name}' is {t.type}: the application converts nothing, the file spends an operator on it."
            )
    dynamic = [t.name for t in model.tensors if any(n < 0 for n in t.shape)]
    if dynamic:
        found.append(f"open shapes ({', '.join(dynamic[:3])}): TFLM and NPUs need static ones.")
    hybrid = [
        op
        for op in floats
        if any(i >= 0 and model.tensors[i].type == "INT8" and model.tensors[i].size_bytes for i in op.inputs)
    ]
    if hybrid:
        found.append(f"{len(hybrid)} operators are hybrid (int8 weights, float activations): TFLM refuses them.")
    if model.tables:
        found.append(
            f"{len(model.tables)} weights lie in {decoded_from(model)}: TensorFlow Lite Micro decodes them, LiteRT "
            "refuses the file."
        )
    return tuple(found)

"""Read any `.tflite` file: its tensors and operators, what is not integer, and why that matters."""

from __future__ import annotations

import json
import os
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from kquant.core.wording import absent
from kquant.lut import CODE, decode, is_header, layout

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
DAMAGE = (AttributeError, LookupError, MemoryError, OverflowError, RecursionError, TypeError, ValueError, struct.error)


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
    """One operator: its code, version, and the indices of its tensors (-1: absent)."""

    index: int
    code: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class FileTable:
    """Weights that are stored in look-up tables; a DECODE writes them where their reader finds them.

    Attributes:
        name: of the weights, once for each DECODE that writes them.
        output, indices, tables: of their tensors in the file.
        bits: of an index.
        count: how many tables there are.
        raw_bytes: of the weights.
        stored_bytes: of indices and tables.
    """

    name: str
    output: int
    indices: int
    tables: int
    bits: int
    count: int
    raw_bytes: int
    stored_bytes: int


@dataclass(frozen=True)
class FileModel:
    """What a file holds, as `kquant.inspect` returns it.

    Attributes:
        size_bytes: of the file.
        tensors, operators: of the main subgraph.
        inputs, outputs: in order.
        metadata: kquant's entry, empty for other files.
        findings: what is not integer, and why it matters.
        tables: weights in look-up tables, which TensorFlow Lite Micro alone decodes.
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
    if not isinstance(path_or_bytes, str | os.PathLike):
        raise ValueError(f"file: expected the path of a .tflite file, or its bytes. Received: {path_or_bytes!r}.")
    path = Path(path_or_bytes)
    if not path.is_file():
        raise ValueError(f"{path}: {absent(path)}; give the path of a .tflite file or its bytes.")
    return path.read_bytes()


def label(path_or_bytes: str | Path | bytes) -> str:
    """What messages call a file."""
    return "the file" if isinstance(path_or_bytes, bytes | bytearray) else str(path_or_bytes)


def read_model(data: bytes, where: str = "the file") -> FileModel:
    """`inspect` of bytes."""
    return _unpacked(data, where)[0]


def _unpacked(data: bytes, where: str = "the file") -> tuple[FileModel, Any]:
    """What a file says of itself, and the schema's objects that say it."""
    if len(data) < 8 or data[4:8] != b"TFL3":
        raise ValueError(
            f"{where} is not a TFLite file: bytes 4 to 8 must read TFL3. Received: {data[4:8]!r} in {len(data)} bytes."
        )
    try:
        model = schema.ModelT.InitFromPackedBuf(data, 0)
        return _read(model, len(data)), model
    except DAMAGE as error:
        raise ValueError(f"{where} is damaged: {type(error).__name__}: {error}. Export it again.") from error


def _read(model: Any, size: int) -> FileModel:
    graph = model.subgraphs[0]
    tensors = tuple(_tensor(i, t, model.buffers) for i, t in enumerate(graph.tensors))
    operators = tuple(_operator(i, op, model.operatorCodes) for i, op in enumerate(graph.operators))
    inputs = tuple(tensors[i] for i in graph.inputs)
    outputs = tuple(tensors[i] for i in graph.outputs)
    contents = [model.buffers[t.buffer].data for t in graph.tensors]
    tables = tuple(t for op in operators if op.code == CODE for t in _tables(op, tensors, contents))
    bare = FileModel(size, tensors, operators, inputs, outputs, _metadata(model), (), tables)
    return replace(bare, findings=_findings(bare, len(model.subgraphs)))


def _tables(op: FileOperator, tensors: tuple[FileTensor, ...], contents: list[Any]) -> Iterator[FileTable]:
    """What a DECODE of look-up tables writes; other encodings (pruning, Huffman) have no tables to tell of."""
    for output, indices, header in zip(op.outputs, op.inputs[::2], op.inputs[1::2], strict=True):
        stored, t = np.asarray(contents[header], np.uint8).tobytes(), tensors[output]
        if not is_header(stored):
            continue
        size = np.dtype(t.dtype).itemsize
        bits, count = layout(stored, t.shape)
        yield FileTable(
            name=t.name,
            output=output,
            indices=indices,
            tables=header,
            bits=bits,
            count=count,
            raw_bytes=int(np.prod(t.shape, dtype=np.int64)) * size,
            stored_bytes=tensors[indices].size_bytes + tensors[header].size_bytes,
        )


def _tensor(index: int, t: Any, buffers: list[Any]) -> FileTensor:
    q = t.quantization
    scales = () if q is None or q.scale is None else tuple(float(s) for s in q.scale)
    points = (0,) if q is None or q.zeroPoint is None else tuple(int(z) for z in q.zeroPoint)
    data = buffers[t.buffer].data
    return FileTensor(
        index=index,
        name=t.name.decode() if t.name else "",
        shape=tuple(int(n) for n in (t.shape if t.shape is not None else ())),
        type=NAMES[t.type],
        scale=scales or None,
        zero_point=points if scales else (0,),
        axis=int(q.quantizedDimension) if scales else 0,
        size_bytes=0 if data is None else len(data),
        variable=bool(t.isVariable),
    )


def contents(data: bytes) -> tuple[FileModel, dict[int, np.ndarray]]:
    """`read_model` and `constants` of one file, read once."""
    file, model = _unpacked(data)
    return file, _constants(file, model)


def constants(data: bytes) -> dict[int, np.ndarray]:
    """Stored contents by index of their tensor, in its shape; 4-bit codes unpacked, look-up tables decoded.

    Args:
        data: a `.tflite` file that `read_model` takes.

    Returns:
        Arrays; of what is stored in look-up tables under the index of what the DECODE writes.
    """
    return contents(data)[1]


def _constants(file: FileModel, model: Any) -> dict[int, np.ndarray]:
    found: dict[int, np.ndarray] = {}
    for t, stored in zip(file.tensors, model.subgraphs[0].tensors, strict=True):
        content = model.buffers[stored.buffer].data
        if content is None or t.dtype not in (*_NIBBLES, *NUMPY.values(), "float16"):
            continue
        raw = np.asarray(content, np.uint8).tobytes()
        flat = _nibbles(raw, t.shape) if t.dtype in _NIBBLES else np.frombuffer(raw, t.dtype)
        found[t.index] = flat.reshape(t.shape)
    for table in file.tables:
        t = file.tensors[table.output]
        found[t.index] = decode(found[table.indices].tobytes(), found[table.tables].tobytes(), t.shape, t.dtype)
    return found


def _nibbles(raw: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """4-bit codes, the first in the low half of a byte."""
    pairs = np.frombuffer(raw, np.uint8)
    codes = np.stack([pairs & 15, pairs >> 4], axis=1).reshape(-1)[: int(np.prod(shape, dtype=np.int64))]
    return ((codes ^ 8).astype(np.int8) - 8).astype(np.int8)


def _operator(index: int, op: Any, codes: list[Any]) -> FileOperator:
    code = codes[op.opcodeIndex]
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    name = code.customCode.decode() if code.customCode else OPERATORS[number]
    return FileOperator(index, name, int(code.version), tuple(map(int, op.inputs)), tuple(map(int, op.outputs)))


def _metadata(model: Any) -> dict[str, Any]:
    for entry in model.metadata or []:
        if entry.name == b"kquant":
            return json.loads(np.asarray(model.buffers[entry.buffer].data, np.uint8).tobytes())
    return {}


def float_operators(model: FileModel) -> list[FileOperator]:
    """Operators that touch a float tensor, the casts of float inputs and outputs left out."""
    edge = {t.index for t in (*model.inputs, *model.outputs)}
    found = []
    for op in model.operators:
        floats = {i for i in (*op.inputs, *op.outputs) if i >= 0 and model.tensors[i].type in FLOATS}
        if floats and not (op.code in EDGES and floats <= edge):
            found.append(op)
    return found


def _findings(model: FileModel, subgraphs: int) -> tuple[str, ...]:
    found = []
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
            f"{len(model.tables)} weights lie in look-up tables: TensorFlow Lite Micro decodes them, LiteRT refuses "
            "the file."
        )
    if subgraphs > 1:
        found.append(f"{subgraphs} subgraphs (control flow); only the first is shown.")
    return tuple(found)

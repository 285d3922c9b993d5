"""A program -> TFLite bytes, through the official schema's object API (`ai_edge_litert.schema_py_generated`).

Equal constants share a buffer, equal vectors (zero points, scales, shapes) are written once, equal tensors are one,
unused tensors are not written, operator codes carry the version of the target file, and a metadata entry "kquant" says
which version and recipe made the file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import flatbuffers  # pyright: ignore[reportMissingTypeStubs]
import numpy as np

from kquant.core.operators import facts
from kquant.core.packed import pack
from kquant.core.program import Operator, Program, Ref
from kquant.targets import Target
from kquant.tflite.reader import SCHEMA, TYPES
from kquant.tflite.tight import Tight

# Code without types, like the schema's.
BUILDER: Any = flatbuffers.Builder
ALIGNMENT = 16  # of buffers, from the schema's `force_align`
SHRUNK = "shrunk"  # key of the metadata that says what is not in the file


def to_bytes(program: Program, target: Target, metadata: dict[str, Any], bare: bool = False) -> bytes:
    """The file.

    Args:
        program: tidied.
        target: tells operator versions.
        metadata: written as JSON under "kquant".
        bare: without what no kernel reads: names, signatures, metadata but for what `kquant.verify` needs, and, where
            the target's kernels do without, scales of biases for each channel and equal zero points.

    Returns:
        Bytes with the identifier TFL3.
    """
    return _Writer(program, target, bare).pack(metadata)


def with_outputs(content: bytes, tensors: Sequence[int]) -> bytes:
    """The file with these tensors of its main graph as outputs, in that order, and without signatures.

    Args:
        content: a `.tflite` file.
        tensors: their indices.
    """
    model = unpacked(content)
    model.subgraphs[0].outputs = list(tensors)
    # They would name outputs that there are no more.
    model.signatureDefs = []
    return packed(model)


def with_zero_points(content: bytes) -> bytes:
    """The file with a zero point for each scale, as LiteRT wants them, where it has one for several.

    Args:
        content: a `.tflite` file.
    """
    model = unpacked(content)
    for tensor in (tensor for graph in model.subgraphs for tensor in graph.tensors):
        grid = tensor.quantization
        if grid is not None and grid.scale is not None and grid.zeroPoint is not None and len(grid.zeroPoint) == 1:
            grid.zeroPoint = np.repeat(np.int64(grid.zeroPoint), len(grid.scale))
    return packed(model)


def unpacked(content: bytes) -> Any:
    """A file as the schema's objects, its tables unpacked; contents behind the flatbuffer are taken into it."""
    model = SCHEMA.ModelT.InitFromPackedBuf(content, 0)
    for buffer in model.buffers:
        if buffer.offset > 1 and buffer.size:
            buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    model.buffers = [buffer if buffer.data is None else Buffer.of(buffer.data) for buffer in model.buffers]
    return model


def packed(model: Any, tight: bool = False) -> bytes:
    """The file of a schema's `ModelT`; in as few bytes as it can be where it is to be tight."""
    builder = Tight() if tight else _Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


class _Writer:
    def __init__(self, program: Program, target: Target, bare: bool) -> None:
        self.program, self.target, self.bare = program, target, bare
        self.model = SCHEMA.ModelT()
        self.model.version = 3
        self.model.description = None if bare else "kquant"
        # Buffer 0 is empty by convention: tensors without contents refer to it.
        self.model.buffers = [SCHEMA.BufferT()]
        self.model.operatorCodes = []
        self.graphs: list[Any] = []
        self.tensors: list[Any] = []
        self.index: dict[int, int] = {}
        self.constants: dict[Any, int] = {}
        self.blobs: dict[bytes, int] = {}
        self.codes: dict[tuple[str, int], int] = {}
        self.names: set[str] = set()

    def pack(self, metadata: dict[str, Any]) -> bytes:
        self.model.subgraphs = self.graphs
        self.subgraph("main", self.program)
        self.model.signatureDefs = None if self.bare else [self.signature(self.graphs[0])]
        told = {key: value for key, value in metadata.items() if key == SHRUNK or not self.bare}
        if told or not self.bare:
            entry = SCHEMA.MetadataT()
            entry.name = "kquant"
            entry.buffer = self.blob(json.dumps(told, sort_keys=True).encode())
            self.model.metadata = [entry]
        return packed(self.model, self.bare)

    def subgraph(self, name: str, program: Program) -> int:
        """Number of a new subgraph; those that its operators run come behind it."""
        graph = SCHEMA.SubGraphT()
        graph.name = None if self.bare else name
        self.graphs.append(graph)
        number = len(self.graphs) - 1
        # Tensors and their names belong to a subgraph; buffers and operator codes, which stay, to the file.
        outer = self.tensors, self.index, self.constants, self.names
        self.tensors, self.index, self.constants, self.names = [], {}, {}, set()
        graph.inputs = [self.tensor(ref) for ref in program.inputs]
        graph.operators = [self.operator(op) for op in program.operators]
        graph.outputs = [self.tensor(ref) for ref in program.outputs]
        graph.tensors = self.tensors
        self.tensors, self.index, self.constants, self.names = outer
        return number

    def signature(self, graph: Any) -> Any:
        """Inputs and outputs by the names that Keras has for them, so that files are called like SavedModels."""
        signature = SCHEMA.SignatureDefT()
        signature.signatureKey = "serving_default"
        signature.subgraphIndex = 0
        signature.inputs = [_named(graph, i) for i in graph.inputs]
        signature.outputs = [_named(graph, i) for i in graph.outputs]
        names = [entry.name for entry in signature.outputs]
        names[: len(self.program.output_names)] = self.program.output_names
        if len(set(names)) == len(signature.outputs):
            for entry, name in zip(signature.outputs, names, strict=True):
                entry.name = name
        return signature

    def blob(self, data: bytes) -> int:
        """Index of a buffer with these bytes."""
        if data not in self.blobs:
            self.model.buffers.append(Buffer.of(np.frombuffer(data, np.uint8)))
            self.blobs[data] = len(self.model.buffers) - 1
        return self.blobs[data]

    def tensor(self, ref: Ref | None) -> int:
        """Index of a tensor, written at its first use; equal constants are one tensor."""
        if ref is None:
            return -1
        if id(ref) in self.index:
            return self.index[id(ref)]
        # Equal contents in equal encodings are one tensor, which keeps the name of the first.
        key = constant_key(ref)
        if key is not None and key in self.constants:
            return self.constants[key]
        tensor = SCHEMA.TensorT()
        if ref.name and not self.bare:
            tensor.name = self.unique(ref.name).encode()
        tensor.shape = np.array(ref.shape, np.int32)
        tensor.type = TYPES[ref.dtype.upper()]
        tensor.buffer = 0 if ref.data is None else self.blob(pack(ref.data, ref.dtype))
        # Without it the empty shape of a scalar would read as an unknown one.
        tensor.hasRank = True
        tensor.isVariable = ref.variable
        if ref.encoding is not None and ref.dtype != "float32" and not (self.bare and self.is_unread(ref)):
            tensor.quantization = _quantization(ref, self.bare and not self.target.zero_points)
        if ref.block_scales is not None:
            tensor.quantization = _blockwise(self.tensor(ref.block_scales), ref.shape[-1] // ref.block_scales.shape[-1])
        self.tensors.append(tensor)
        self.index[id(ref)] = len(self.tensors) - 1
        if key is not None:
            self.constants[key] = self.index[id(ref)]
        return self.index[id(ref)]

    def is_unread(self, ref: Ref) -> bool:
        """Scales of a bias for each channel, which are products of those of the data and of the weights."""
        several = ref.encoding is not None and ref.encoding.scale.size > 1
        return several and not self.target.bias_scales and ref.data is not None and ref.dtype in ("int32", "int64")

    def unique(self, name: str) -> str:
        wanted, n = name, 1
        while name in self.names:
            name = f"{wanted}_{n}"
            n += 1
        self.names.add(name)
        return name

    def operator(self, op: Operator) -> Any:
        written = SCHEMA.OperatorT()
        written.opcodeIndex = self.code(op)
        written.inputs = [self.tensor(ref) for ref in op.inputs]
        written.outputs = [self.tensor(ref) for ref in op.outputs]
        if op.intermediates:
            written.intermediates = [self.tensor(ref) for ref in op.intermediates]
        if facts(op.code).flexible:
            from flatbuffers import flexbuffers  # pyright: ignore[reportMissingTypeStubs]  few files have any

            options = bytes(flexbuffers.Dumps(op.options))  # pyright: ignore[reportUnknownMemberType]
            written.customOptions = np.frombuffer(options, np.uint8)
        name = facts(op.code).options_of(op.code)
        if name is not None:
            options = getattr(SCHEMA, f"{name}T")()
            known = self.target.ops.get(op.code)
            fields = {**op.options, **{field: self.subgraph(run.name, run) for field, run in op.graphs.items()}}
            # A target's kernels want more in 16 bits: ADD without `potScaleInt16 = false` would round in another way.
            if known is not None and op.type == "int16x8":
                fields |= known.options_int16
            for field, value in fields.items():
                if not hasattr(options, field):
                    raise ValueError(f"{op.code}: the schema's {name} has no field '{field}'.")
                setattr(options, field, _option(field, value))
            written.builtinOptions = options
            written.builtinOptionsType = getattr(SCHEMA.BuiltinOptions, name)
        return written

    def code(self, op: Operator) -> int:
        version = self.target.ops[op.code].version_for(op.type) if op.code in self.target.ops else 1
        key = (op.code, version)
        if key not in self.codes:
            entry = SCHEMA.OperatorCodeT()
            entry.builtinCode = getattr(SCHEMA.BuiltinOperator, op.code, SCHEMA.BuiltinOperator.CUSTOM)
            if entry.builtinCode == SCHEMA.BuiltinOperator.CUSTOM:
                entry.customCode = op.code.encode()
            # The old field has 8 bits; 127 sends readers to the new one.
            entry.deprecatedBuiltinCode = min(entry.builtinCode, 127)
            entry.version = version
            self.model.operatorCodes.append(entry)
            self.codes[key] = len(self.model.operatorCodes) - 1
        return self.codes[key]


def _named(graph: Any, index: int) -> Any:
    entry = SCHEMA.TensorMapT()
    entry.name, entry.tensorIndex = graph.tensors[index].name.decode(), index
    return entry


def constant_key(ref: Ref) -> Any:
    """What two constants have in common that are one tensor of the file; None where a tensor is one of its own."""
    if ref.data is None or ref.block_scales is not None:
        return None
    encoding = None if ref.encoding is None else (ref.encoding.scale.tobytes(), ref.encoding.zero_point.tobytes())
    return ref.dtype, ref.shape, ref.data.tobytes(), encoding


class _Builder(BUILDER):
    """Writes equal vectors once: zero points of symmetric weights, shapes, scales of what shares an encoding."""

    def __init__(self, size: int) -> None:
        super().__init__(size)  # pyright: ignore[reportUnknownMemberType]
        self.vectors: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, x: np.ndarray) -> int:
        """Offset of a vector with these contents."""
        key = (x.dtype.str, x.tobytes())
        if key not in self.vectors:
            self.vectors[key] = super().CreateNumpyVector(x)  # pyright: ignore[reportUnknownMemberType]
        return self.vectors[key]

    def contents(self, data: bytes, align: int) -> int:
        """Offset of a vector of bytes at a multiple of an alignment."""
        builder: Any = self
        builder.StartVector(1, len(data), align)
        # A flatbuffer grows towards its front: the contents end where its head was.
        builder.head -= len(data)
        builder.Bytes[builder.head : builder.head + len(data)] = data
        return builder.EndVector()


class Buffer(SCHEMA.BufferT):
    """Contents of a tensor on the alignment that the schema asks for; the generated Python code forgets it."""

    @classmethod
    def of(cls, data: np.ndarray) -> Any:
        """With these contents, uint8."""
        buffer: Any = cls()
        buffer.data = data
        return buffer

    def Pack(self, builder: Any) -> int:
        """Offset of the table."""
        data = builder.contents(self.data.tobytes(), ALIGNMENT)
        SCHEMA.BufferStart(builder)
        SCHEMA.BufferAddData(builder, data)
        return SCHEMA.BufferEnd(builder)


def _quantization(ref: Ref, one: bool) -> Any:
    """The table of an encoding; `one`: a single zero point where all are equal."""
    quantization = SCHEMA.QuantizationParametersT()
    encoding = ref.encoding
    if encoding is None:
        return None
    quantization.scale = encoding.scale.astype(np.float32)
    points = encoding.zero_point.astype(np.int64)
    quantization.zeroPoint = points[:1] if one and np.all(points == points[0]) else points
    # LiteRT refuses an axis beyond the rank, also where there is one scale only.
    quantization.quantizedDimension = encoding.axis or 0
    return quantization


def _blockwise(scales: int, size: int) -> Any:
    """The table of codes in blocks, whose scales are a tensor; no zero points."""
    details = SCHEMA.BlockwiseQuantizationT()
    details.scales, details.zeroPoints, details.blockSize = scales, -1, size
    quantization = SCHEMA.QuantizationParametersT()
    quantization.details = details
    quantization.detailsType = SCHEMA.QuantizationDetails.BlockwiseQuantization
    return quantization


def _option(field: str, value: Any) -> Any:
    if field == "padding":
        return getattr(SCHEMA.Padding, value)
    if field == "fusedActivationFunction":
        return getattr(SCHEMA.ActivationFunctionType, value)
    if field in ("inDataType", "outDataType", "outputType"):
        return getattr(SCHEMA.TensorType, value)
    return value

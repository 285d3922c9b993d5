"""What a `.tflite` file holds, as frozen data: its tensors and operators, what is not integer, and why that matters."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from kquant.core.operators import facts
from kquant.core.result import Result
from kquant.tflite.storage import titles

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
EDGES = ("QUANTIZE", "DEQUANTIZE")
CHOOSES = "chooses"  # key of the metadata of a detector's file that ends in boxes: what it would end in otherwise
BRINGING = ("DEQUANTIZE", "GATHER")


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
class FileSignature:
    """Names by which an application calls a file.

    Attributes:
        key: of the signature.
        inputs, outputs: name -> index of the tensor.
        subgraph: that it calls.
    """

    key: str
    inputs: dict[str, int]
    outputs: dict[str, int]
    subgraph: int = 0


@dataclass(frozen=True)
class TensorAbout:
    """What a file says of an input or output.

    Attributes:
        name, description: of it.
        mean, std: what becomes of raw values, `(raw - mean) / std`; one number for all channels, or one for each.
        labels: of its last axis, or of its values where they are positions.
    """

    name: str
    description: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class FileAbout:
    """What a file says of itself to tools of Android and MediaPipe (TFLite metadata).

    Attributes:
        name, description, version, author, license: of the model.
        inputs, outputs: in order.
        files: names of those that are packed with it.
    """

    name: str
    description: str
    version: str
    author: str
    license: str
    inputs: tuple[TensorAbout, ...]
    outputs: tuple[TensorAbout, ...]
    files: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class FileModel(Result):
    """What a file holds, as `kquant.inspect` returns it.

    Attributes:
        size_bytes: of the file.
        tensors, operators: of all subgraphs, the main one first; the others are what its operators run (loops).
        inputs, outputs: of the main one, in order.
        metadata: kquant's entry, empty for other files.
        findings: what is not integer, and why it matters.
        tables: weights that a DECODE writes, which TensorFlow Lite Micro alone has.
        graphs: the names of the subgraphs.
        signatures: by which an application calls the file.
        about: what it says of itself to tools of Android and MediaPipe; None where it says nothing.
        behind: weights lie behind the flatbuffer, where TensorFlow Lite Micro does not look.
        multiplies_blocks: a FULLY_CONNECTED has weights in blocks, which LiteRT's default kernels alone read.
        one_zero_point: tensors with several scales have one zero point, as TensorFlow Lite Micro alone reads them.
    """

    size_bytes: int
    tensors: tuple[FileTensor, ...]
    operators: tuple[FileOperator, ...]
    inputs: tuple[FileTensor, ...]
    outputs: tuple[FileTensor, ...]
    metadata: dict[str, Any]
    findings: tuple[str, ...]
    tables: tuple[FileTable, ...] = ()
    graphs: tuple[str, ...] = ()
    signatures: tuple[FileSignature, ...] = ()
    about: FileAbout | None = None
    one_zero_point: bool = False
    behind: bool = False
    multiplies_blocks: bool = False

    def __repr__(self) -> str:
        ends, rest = by_nature(self)
        kind = "NOT all integer" if rest else f"integer but for {ends[-1].code}" if ends else "integer"
        return f"FileModel({len(self.operators)} operators, {kind}, {self.size_bytes:,} bytes)"

    @property
    def weight_bytes(self) -> int:
        """Bytes of stored tensors."""
        return sum(t.size_bytes for t in self.tensors)

    @property
    def operator_counts(self) -> dict[str, int]:
        """Operators by code."""
        return dict(Counter(op.code for op in self.operators))

    @property
    def named_outputs(self) -> dict[str, FileTensor]:
        """Outputs in order, by what an application calls them: the signature's names, or else the tensors'."""
        called = {index: name for one in self.signatures[:1] for name, index in one.outputs.items()}
        names = [called.get(t.index, t.name) for t in self.outputs]
        distinct = len(set(names)) == len(names) and all(names)
        return {
            name if distinct else f"output {i}": t for i, (name, t) in enumerate(zip(names, self.outputs, strict=True))
        }

    @property
    def is_integer(self) -> bool:
        """True where no operator but a QUANTIZE or DEQUANTIZE at the edge touches a float."""
        return not float_operators(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "weight_bytes": self.weight_bytes, "operator_counts": self.operator_counts}


def decoded_from(model: FileModel) -> str:
    """The storages of a file that needs a DECODE, in words."""
    return titles(sorted({table.storage for table in model.tables}))


def float_operators(model: FileModel) -> list[FileOperator]:
    """Operators that touch a float tensor, the casts of float inputs and outputs left out."""
    edge = {t.index for t in (*model.inputs, *model.outputs)}
    in_float: list[FileOperator] = []
    for op in model.operators:
        floats = {i for i in (*op.inputs, *op.outputs) if i >= 0 and model.tensors[i].type in FLOATS}
        # A cast between tensors inside the model is no cast at the edge.
        if floats and not (op.code in EDGES and floats <= edge):
            in_float.append(op)
    return in_float


def by_nature(model: FileModel) -> tuple[list[FileOperator], list[FileOperator]]:
    """Of `float_operators` those that are there for an operator which knows nothing else, itself the last; and others.

    What brings it real numbers, casts and where these change places, is there for it.
    """
    floats = float_operators(model)
    ends = [op for op in floats if facts(op.code).in_float]
    wanted = {index for op in ends for index in op.inputs}
    for op in reversed(floats):
        if op.code in BRINGING and wanted.issuperset(op.outputs):
            ends.insert(0, op)
            wanted.update(op.inputs)
    return ends, [op for op in floats if op not in ends]


def _counted(operators: list[FileOperator]) -> str:
    return ", ".join(f"{code} x{n}" for code, n in Counter(op.code for op in operators).items())


def findings_of(model: FileModel) -> tuple[str, ...]:
    """What in a file is not integer, and why it matters."""
    findings: list[str] = []
    ends, floats = by_nature(model)
    if floats:
        findings.append(
            f"{len(floats)} of {len(model.operators)} operators compute in float ({_counted(floats)}): slow or "
            "impossible on microcontrollers without an FPU, and refused by NPUs."
        )
    if ends:
        findings.append(
            f"it ends in {ends[-1].code}, which computes in float by its nature ({_counted(ends)}): slow on "
            f"microcontrollers without an FPU{'' if floats else '; every other operator is integer'}."
        )
    for t in (*model.inputs, *model.outputs):
        if t.type in FLOATS and not any(t.index in op.outputs for op in ends):
            findings.append(
                f"'{t.name}' is {t.type}: the application converts nothing, the file spends an operator on it."
            )
    dynamic = [t.name for t in model.tensors if any(n < 0 for n in t.shape)]
    if dynamic:
        findings.append(f"open shapes ({', '.join(dynamic[:3])}): TFLM and NPUs need static ones.")
    hybrid = [
        op
        for op in floats
        if any(i >= 0 and model.tensors[i].type == "INT8" and model.tensors[i].size_bytes for i in op.inputs)
    ]
    if hybrid:
        findings.append(f"{len(hybrid)} operators are hybrid (int8 weights, float activations): TFLM refuses them.")
    if model.tables:
        findings.append(
            f"{len(model.tables)} weights lie in {decoded_from(model)}: TensorFlow Lite Micro decodes them, LiteRT "
            "refuses the file."
        )
    return tuple(findings)

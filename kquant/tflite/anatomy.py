"""What every byte of a `.tflite` file is: weights, what kernels need beside them, names, and what a flatbuffer adds.

A flatbuffer is tables, each with a layout of its fields in front of it that others may share, vectors and strings, with
padding between. All that can be reached from the root is walked, field by field, as the official schema's generated
code has them; each byte belongs to the first that claims it, and what nobody claims is padding. So the parts add up to
the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import flatbuffers  # pyright: ignore[reportMissingTypeStubs]
import numpy as np
from flatbuffers import number_types  # pyright: ignore[reportMissingTypeStubs]

from kquant.core.operators import facts
from kquant.core.packed import PACKED
from kquant.tflite.file_model import FileModel
from kquant.tflite.reader import SCHEMA, is_behind
from kquant.tflite.storage import CODE, storages

# Code without types, like the schema's.
_NUMBERS: Any = number_types
_TABLE: Any = flatbuffers.Table
_INT32, _UINT16, _UINT32 = _NUMBERS.Int32Flags, _NUMBERS.Uint16Flags, _NUMBERS.Uint32Flags
ROOT_BYTES = 8  # where the root is, and the file's identifier
WEIGHTS, BUFFERS, METADATA, PADDING = "weights", "buffers", "metadata", "padding"
# Part of the file -> what it says, by the schema's table and field; a table's own bytes stand under "".
PARTS: dict[str, dict[str, str]] = {
    "Model": {"": "the model", "Description": "names"},
    "SubGraph": {"": "the graph", "Name": "names"},
    "Tensor": {"": "tensors", "Name": "names", "Shape": "shapes", "ShapeSignature": "shapes"},
    "QuantizationParameters": {
        "": "quantization parameters",
        "Scale": "scales",
        "ZeroPoint": "zero points",
        "Min": "ranges",
        "Max": "ranges",
    },
    "Operator": {"": "operators"},
    "OperatorCode": {"": "operator codes"},
    "Buffer": {"": BUFFERS},
    "Metadata": {"": METADATA},
    "SignatureDef": {"": "signatures"},
    "TensorMap": {"": "signatures"},
}
OPTIONS, LAYOUTS, BEHIND = "operators' options", "layouts of tables", "behind the flatbuffer"


@dataclass(frozen=True)
class Part:
    """Some of a file.

    Attributes:
        name: what it is.
        bytes: how many.
    """

    name: str
    bytes: int

    @property
    def is_weights(self) -> bool:
        """Whether it is weights, in whatever form, with what decodes them."""
        return self.name.startswith(WEIGHTS)


def file_parts(data: bytes, file: FileModel) -> tuple[Part, ...]:
    """Every byte of a file, once.

    Args:
        data: a `.tflite` file.
        file: what `read_model` says of it.

    Returns:
        What it is made of, the largest part first; they add up to its size.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
        >>> q = kquant.calibrate(kquant.quantize(model), np.ones((64, 4), "float32"), verbose=False)
        >>> report = kquant.export(q, "dense.tflite")
        >>> with open("dense.tflite", "rb") as file:
        ...     parts = file_parts(file.read(), kquant.inspect("dense.tflite"))
        >>> sum(part.bytes for part in parts) == report.file_bytes
        True
        >>> {part.name: part.bytes for part in parts}["weights, plain"]  # 4 x 2 codes, and how many they are
        12
    """
    sizes = {name: size for name, size in _claimed(data, file).items() if size}
    return tuple(Part(name, size) for name, size in sorted(sizes.items(), key=lambda part: (-part[1], part[0])))


def _claimed(data: bytes, file: FileModel) -> dict[str, int]:
    """Bytes of each part."""
    known = [PADDING]
    owner = np.zeros(len(data), np.int32)

    def claim(name: str, start: int, size: int) -> None:
        if start < 0 or size < 0 or start + size > len(data):
            raise ValueError(f"bytes {start} to {start + size} of {len(data)}")
        if name not in known:
            known.append(name)
        place = owner[start : start + size]
        place[place == 0] = known.index(name)

    model = SCHEMA.Model.GetRootAs(data, 0)
    claim("the model", 0, ROOT_BYTES)
    root = _TABLE(data, int.from_bytes(data[:4], "little"))
    contents = _contents(model, root, file)
    for name, start, size in _walk("Model", root, contents, set()):
        claim(name, start, size)
    end = int(owner.nonzero()[0][-1]) + 1
    buffers = (SCHEMA.Buffer() for _ in contents)
    for (place, name), buffer in zip(contents.items(), buffers, strict=True):
        buffer.Init(data, place)
        if is_behind(buffer):
            claim(name, buffer.Offset(), buffer.Size())
    counted = np.bincount(owner[owner > 0], minlength=len(known))
    counted[0] = np.count_nonzero(owner[:end] == 0)
    # what is left there, some readers keep: labels in a ZIP archive
    rest = int(np.count_nonzero(owner[end:] == 0))
    return {**dict(zip(known, counted.tolist(), strict=True)), BEHIND: rest}


# Part, first byte, size.
_Claims = Iterator[tuple[str, int, int]]


def _walk(kind: str, tab: Any, contents: dict[int, str], seen: set[tuple[str, int]]) -> _Claims:
    """Part, first byte and size of a table and of all that it leads to."""
    if (kind, tab.Pos) in seen:
        return
    seen.add((kind, tab.Pos))
    parts = PARTS.get(kind, {"": OPTIONS})
    own = contents.get(tab.Pos, parts[""])  # of a buffer, what lies in it
    layout = tab.Pos - tab.Get(_INT32, tab.Pos)
    yield parts[""], tab.Pos, tab.Get(_UINT16, layout + 2)
    yield LAYOUTS, layout, tab.Get(_UINT16, layout)
    for field, slot in _fields(kind).items():
        offset = tab.Offset(slot)
        if offset:
            name = own if kind == "Buffer" else parts.get(field, parts[""])
            yield from _content(kind, tab, (field, offset), name, contents, seen)


def _content(
    kind: str,
    tab: Any,
    where: tuple[str, int],
    name: str,
    contents: dict[int, str],
    seen: set[tuple[str, int]],
) -> _Claims:
    """What one field of a table leads to."""
    field, offset = where
    table = getattr(SCHEMA, kind)()
    table.Init(tab.Bytes, tab.Pos)
    if hasattr(table, f"{field}AsNumpy"):
        yield name, tab.Vector(offset) - 4, 4 + getattr(table, f"{field}AsNumpy")().nbytes
        return
    if hasattr(table, f"{field}Length"):
        count, start = getattr(table, f"{field}Length")(), tab.Vector(offset)
        yield name, start - 4, 4 + 4 * count
        held = [(getattr(table, field)(i), start + 4 * i) for i in range(count)]
    else:
        held = [(getattr(table, field)(), tab.Pos + offset)]
    for below, place in held:
        if isinstance(below, bytes):
            yield _text(name, tab, place)
        elif below is not None:
            inner = _TABLE(tab.Bytes, tab.Indirect(place))
            yield from _walk(_kind(table, field, below), inner, contents, seen)


def _text(name: str, tab: Any, place: int) -> tuple[str, int, int]:
    """A string: its length, itself, and the zero behind it."""
    start = tab.Indirect(place)
    return name, start, 4 + tab.Get(_UINT32, start) + 1


def _kind(table: Any, field: str, below: Any) -> str:
    """The schema's name of a table; of one that may be of several kinds, another field tells which."""
    if not isinstance(below, _TABLE):
        return type(below).__name__
    types = cast("dict[str, Any]", vars(getattr(SCHEMA, field)))
    number = getattr(table, f"{field}Type")()
    return next(name for name, value in types.items() if value == number and not name.startswith("_"))


def _nothing(*_: Any) -> None:
    """In place of what a builder would do."""


class _Recorder:
    """Stands in for a builder: notes which slot a generated `Add` function fills with an offset."""

    def __init__(self) -> None:
        self.slot: int | None = None

    def __getattr__(self, name: str) -> Any:
        return _nothing

    def PrependUOffsetTRelativeSlot(self, slot: int, *_: Any) -> None:
        """As the builder's."""
        self.slot = slot


@cache
def _fields(kind: str) -> dict[str, int]:
    """Fields of a table that lead elsewhere -> their place in its layout."""
    places: dict[str, int] = {}
    generated = cast("dict[str, Any]", vars(SCHEMA))
    for name, add in generated.items():
        field = name.removeprefix(f"{kind}Add")
        if field != name and hasattr(getattr(SCHEMA, kind), field):
            recorder = _Recorder()
            add(recorder, 0)
            if recorder.slot is not None:
                places[field] = 4 + 2 * recorder.slot
    return places


def _contents(model: Any, root: Any, file: FileModel) -> dict[int, str]:
    """What the contents of each buffer are, by where its table lies."""
    roles = _roles(file)
    graphs = [model.Subgraphs(i) for i in range(model.SubgraphsLength())]
    stored = [graph.Tensors(i) for graph in graphs for i in range(graph.TensorsLength())]
    start = root.Vector(root.Offset(_fields("Model")["Buffers"])) if model.BuffersLength() else 0
    places = [root.Indirect(start + 4 * i) for i in range(model.BuffersLength())]
    contents: dict[int, str] = {}
    for t, tensor in zip(file.tensors, stored, strict=True):
        if t.size_bytes:
            contents.setdefault(places[tensor.Buffer()], roles.get(t.index, "other constants"))
    for i in range(model.MetadataLength()):
        contents[places[model.Metadata(i).Buffer()]] = METADATA
    return contents


def _roles(file: FileModel) -> dict[int, str]:
    """Tensor -> what it holds, for those that an operator reads as weights or bias."""
    known = storages()
    roles: dict[int, str] = {}
    for table in file.tables:
        title = known[table.storage].title
        roles[table.indices], roles[table.tables] = f"{WEIGHTS}, {title}", f"{WEIGHTS}, {title}: headers and tables"
    for op in file.operators:
        if op.code == CODE:
            continue
        for position, index in enumerate(op.inputs):
            if position in facts(op.code).weights:
                packed = PACKED.get(file.tensors[index].dtype) if index >= 0 else None
                roles.setdefault(index, f"{WEIGHTS}, plain" if packed is None else f"{WEIGHTS}, {packed.bits} bits")
            elif position == facts(op.code).bias:
                roles.setdefault(index, "biases")
    return roles

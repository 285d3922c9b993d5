"""Which operator of a file an interpreter cannot run: prefixes of the file, each tried by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flatbuffers
from ai_edge_litert import schema_py_generated as schema


@dataclass(frozen=True)
class Place:
    """One operator of a file.

    Attributes:
        number, count: the how manieth of how many, from 1.
        code: its name in the schema.
        name: of the tensor that it makes, which is that of the Keras layer.
    """

    number: int
    count: int
    code: str
    name: str

    def __str__(self) -> str:
        return f"{self.number} of {self.count}, {self.code}, which makes '{self.name}'"


def place_of(data: bytes, index: int) -> Place | None:
    """What stands at a position of the main subgraph; None where the file has no such operator.

    Args:
        data: a `.tflite` file.
        index: from 0.
    """
    model = _unpacked(data)
    return None if model is None else _place(model, index)


def first_that_ends(data: bytes, ends: Callable[[bytes], bool]) -> Place | None:
    """The first operator whose file, cut off right behind it, does not run.

    Halving finds it in the logarithm of the number of operators; each file is written with that operator's outputs as
    its own.

    Args:
        data: a `.tflite` file.
        ends: `(file) -> True` where an interpreter does not get through it; it is to use a process of its own.

    Returns:
        The place; None where the file cannot be cut, or where its whole runs now.
    """
    model = _unpacked(data)
    if model is None or not model.subgraphs or not model.subgraphs[0].operators:
        return None
    low, high = 0, len(model.subgraphs[0].operators) - 1
    if not ends(_cut(data, high)):
        return None
    while low < high:
        middle = (low + high) // 2
        if ends(_cut(data, middle)):
            high = middle
        else:
            low = middle + 1
    return _place(model, low)


def _unpacked(data: bytes) -> Any:
    """The file as objects; None for one that is damaged in a way that the schema's reader does not bear."""
    try:
        return schema.ModelT.InitFromPackedBuf(data, 0)
    except Exception:  # whatever the generated code raises on bytes that are no tables
        return None


def _place(model: Any, index: int) -> Place | None:
    graph = model.subgraphs[0]
    if not 0 <= index < len(graph.operators):
        return None
    op = graph.operators[index]
    entry = model.operatorCodes[op.opcodeIndex]
    code = max(entry.builtinCode, entry.deprecatedBuiltinCode)
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    made = graph.tensors[op.outputs[0]].name if len(op.outputs) else b""
    name = made.decode(errors="replace") if isinstance(made, bytes) else str(made)
    return Place(index + 1, len(graph.operators), names.get(code, str(code)), name)


def _cut(data: bytes, last: int) -> bytes:
    """The file up to an operator, whose outputs become those of the file."""
    model: Any = schema.ModelT.InitFromPackedBuf(data, 0)  # its fields may be None; the reader has looked at them
    graph = model.subgraphs[0]
    graph.operators = graph.operators[: last + 1]
    graph.outputs = list(graph.operators[-1].outputs)
    model.signatureDefs = []
    builder = flatbuffers.Builder(len(data) + 4096)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())

"""Constants of a program -> look-up tables, with a DECODE in front of each operator that reads them (TFLM only)."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kquant.core.program import Operator, Program, Ref
from kquant.lut import CODE, MAX_BITS, Lut, header, pack, smallest

# What one more tensor behind tables costs beside its bytes: 3 tensors for 1, 2 buffers for 1, an operator. Measured.
TABLE_BYTES = 192
# Operators and the input that may be decoded: kernels that read it when they run, not before. UNIDIRECTIONAL_SEQUENCE_LSTM
# and SVDF are not here: their CMSIS-NN kernels add up the weights while the model is prepared.
READERS = {"CONV_2D": 1, "DEPTHWISE_CONV_2D": 1, "TRANSPOSE_CONV": 1, "FULLY_CONNECTED": 1, "GATHER": 0}


@dataclass(frozen=True)
class Tabled:
    """One constant that is stored behind tables.

    Attributes:
        name: of the tensor.
        bits, tables: of an index, and how many tables there are.
        raw_bytes, stored_bytes: without and with tables.
    """

    name: str
    bits: int
    tables: int
    raw_bytes: int
    stored_bytes: int


def store_in_tables(program: Program, names: Sequence[str] | None = None, max_bits: int = MAX_BITS) -> list[Tabled]:
    """Store constants as indices and tables; each reader gets a DECODE of its own, right in front of it.

    Args:
        program: of the file; it is changed.
        names: of the tensors; None: all that get smaller.
        max_bits: the widest index to write, 1 to 7.

    Returns:
        What is stored in tables, in the order of the file.

    Raises:
        ValueError: a tensor of `names` is not there, has too many distinct codes, or gets no smaller.

    Example:
        >>> from kquant.core.program import Program
        >>> from kquant.lower.decodes import store_in_tables
        >>> program = Program("tiny")
        >>> x, y = program.value("x", (1, 64), None, "int8"), program.value("y", (1, 64), None, "int8")
        >>> weights = program.constant("w", np.tile(np.int8([3, 7]), (64, 32)))
        >>> program.emit("FULLY_CONNECTED", [x, weights, None], y).name
        'y'
        >>> store_in_tables(program)
        [Tabled(name='w', bits=1, tables=1, raw_bytes=4096, stored_bytes=530)]
        >>> [op.code for op in program.operators]
        ['TFLM_DECODE', 'FULLY_CONNECTED']
    """
    readable = _readable(program)
    if names is not None:
        _refuse_unreadable(names, readable, program)
    chosen: dict[int, Lut] = {}
    for ref in readable:
        lut = _lut(ref, max_bits, required=names is not None and ref.name in names)
        if lut is not None and (names is None or ref.name in names):
            chosen[id(ref)] = lut
    _insert(program, chosen)
    return [_tabled(ref, chosen[id(ref)]) for ref in readable if id(ref) in chosen]


def _insert(program: Program, chosen: dict[int, Lut]) -> None:
    """One DECODE in front of each reader: what it writes lives until the next operator only."""
    stored: dict[int, tuple[Ref, Ref]] = {}
    written: list[Operator] = []
    for op in program.operators:
        found = {id(ref): ref for ref in op.inputs if ref is not None and id(ref) in chosen}
        decoded = {key: Ref(ref.name, ref.shape, ref.dtype, ref.encoding) for key, ref in found.items()}
        if found:
            pairs = [stored.setdefault(key, _stored(chosen[key])) for key in found]
            written.append(Operator(CODE, [part for pair in pairs for part in pair], list(decoded.values())))
            op.inputs = [decoded.get(id(ref), ref) for ref in op.inputs]
        written.append(op)
    program.operators = written


def _stored(lut: Lut) -> tuple[Ref, Ref]:
    """Indices and tables as they lie in the file; nobody asks for their names."""
    parts = (pack(lut.indices, lut.bits), header(lut))
    indices, tables = (Ref("", (len(part),), "uint8", None, np.frombuffer(part, np.uint8)) for part in parts)
    return indices, tables


def _readable(program: Program) -> list[Ref]:
    """Stored int8 codes that only operators read which take them decoded, each once."""
    found: dict[int, Ref] = {}
    barred = {id(ref) for ref in program.outputs}
    for op in program.operators:
        for i, ref in enumerate(op.inputs):
            if ref is None or ref.data is None or ref.dtype != "int8":
                continue
            found[id(ref)] = ref
            if READERS.get(op.code) != i:
                barred.add(id(ref))
    return [ref for key, ref in found.items() if key not in barred]


def _lut(ref: Ref, max_bits: int, required: bool) -> Lut | None:
    """Tables for a tensor, where they save bytes; scales along an axis allow tables along it."""
    codes = np.asarray(ref.data)
    axis = ref.encoding.axis if ref.encoding is not None else None
    lut = smallest(codes, axis)
    if required and (lut is None or lut.bits > max_bits):
        raise ValueError(
            f"export: '{ref.name}' has {distinct(codes, axis)} distinct codes in a table, and indices of {max_bits} "
            f"bits tell {1 << max_bits} apart. Cluster its weights first, or leave it out of the tensors to compress."
        )
    if lut is None or lut.bits > max_bits:
        return None
    smaller = lut.size_bytes + TABLE_BYTES < codes.nbytes
    if required and not smaller:
        raise ValueError(
            f"export: '{ref.name}' gets no smaller: {codes.nbytes} bytes as it is, {lut.size_bytes} as indices of "
            f"{lut.bits} bits and tables, and about {TABLE_BYTES} for the operator that decodes them. Leave it out."
        )
    return lut if smaller else None


def distinct(codes: np.ndarray, axis: int | None) -> int:
    """Distinct codes: the largest count of a channel, or of the whole tensor where it has no axis."""
    rows = [codes] if axis is None else np.moveaxis(codes, axis, 0)
    return max(len(np.unique(row)) for row in rows)


def _refuse_unreadable(names: Sequence[str], readable: list[Ref], program: Program) -> None:
    known = [ref.name for ref in readable]
    for name in names:
        if name in known:
            continue
        readers = sorted({op.code for op in program.operators for ref in op.inputs if ref and ref.name == name})
        if readers:
            raise ValueError(
                f"export: '{name}' cannot be stored in tables: TFLM decodes int8 weights of {', '.join(READERS)}. "
                f"It is read by {', '.join(readers)}; leave it out."
            )
        near = difflib.get_close_matches(name, known, 1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"export: the file has no weights '{name}'.{hint} There are: {', '.join(known)}.")


def _tabled(ref: Ref, lut: Lut) -> Tabled:
    count = 1 if lut.axis is None else len(lut.tables)
    return Tabled(ref.name, lut.bits, count, np.asarray(ref.data).nbytes, lut.size_bytes)

"""Constants of a program -> look-up tables, with a DECODE in front of each operator that reads them (TFLM only)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kquant.core.messages import did_you_mean
from kquant.core.operators import OPERATORS, facts
from kquant.core.program import Operator, Program, Ref
from kquant.targets import Target
from kquant.tflite.flatbuffer import packed, to_bytes, unpacked
from kquant.tflite.lut_format import CODE, MAX_BITS, Lut, distinct, header, pack, smallest
from kquant.tflite.reader import SCHEMA, constants, read_model

# What one more tensor behind tables costs beside its bytes: 3 tensors for 1, 2 buffers for 1, an operator. Measured.
TABLE_BYTES = 128


@dataclass(frozen=True)
class LookUpTables:
    """Which weights `kquant.export` stores in look-up tables.

    Attributes:
        names: of layers or of tensors, like "conv2d_1" or "conv2d_1/kernel"; None: all that get smaller.
        max_bits: the widest index to write, 1 to 7: with 4, a table has 16 entries at most.
    """

    names: tuple[str, ...] | None = None
    max_bits: int = MAX_BITS

    def __post_init__(self) -> None:
        if isinstance(self.names, str):
            raise ValueError(f"LookUpTables: names is a tuple of names. Received: {self.names!r}.")
        if not 1 <= self.max_bits <= MAX_BITS:
            raise ValueError(f"LookUpTables: max_bits must be 1 to {MAX_BITS}. Received: {self.max_bits!r}.")


def store_in_tables(program: Program, wanted: LookUpTables = LookUpTables()) -> list[str]:  # noqa: B008  frozen
    """Store weights as indices and tables; each reader gets a DECODE of its own, right in front of it.

    Args:
        program: of the file; its list of operators is replaced.
        wanted: which weights.

    Returns:
        Names of the tensors that are stored in tables, in the order of the file.

    Raises:
        ValueError: a name that is not there, or weights that were named and have too many distinct codes or get no
            smaller.

    Example:
        >>> from kquant.core.program import Program
        >>> from kquant.tflite.lut_program import store_in_tables
        >>> program = Program("tiny")
        >>> x, y = program.value("x", (1, 64), None, "int8"), program.value("y", (1, 64), None, "int8")
        >>> weights = program.constant("w", np.tile(np.int8([3, 7]), (64, 32)))
        >>> program.emit("FULLY_CONNECTED", [x, weights, None], y).name
        'y'
        >>> store_in_tables(program)
        ['w']
        >>> [op.code for op in program.operators]
        ['TFLM_DECODE', 'FULLY_CONNECTED']
    """
    readable = _readable(program)
    if wanted.names is not None:
        _refuse_unreadable(wanted.names, readable, program)
    chosen: dict[int, Lut] = {}
    for ref in readable:
        named = wanted.names is not None and any(_is_of(ref, name) for name in wanted.names)
        lut = _lut(ref, wanted.max_bits, named) if named or wanted.names is None else None
        if lut is not None:
            chosen[id(ref)] = lut
    _insert(program, chosen)
    return [ref.name for ref in readable if id(ref) in chosen]


def without_tables(content: bytes) -> bytes:
    """The file with its weights as they are: what kernels that decode nothing can run.

    Args:
        content: a `.tflite` file with look-up tables.

    Returns:
        A file without them, and without the operators that decode them.
    """
    held, tables = constants(content), read_model(content).tables
    model = unpacked(content)
    graph = model.subgraphs[0]
    # Into buffers of their own: an old one may be shared, and buffer 0 is that of all computed tensors.
    for table in tables:
        buffer = SCHEMA.BufferT()
        buffer.data = held[table.output].reshape(-1).view(np.uint8)
        graph.tensors[table.output].buffer = len(model.buffers)
        model.buffers.append(buffer)
    decoded = {table.output for table in tables}
    graph.operators = [op for op in graph.operators if not decoded.issuperset(map(int, op.outputs))]
    return packed(model)


def _is_of(ref: Ref, name: str) -> bool:
    """The tensor of that name, or one of the layer of that name."""
    return ref.name == name or ref.name.startswith(f"{name}/")


def _insert(program: Program, chosen: dict[int, Lut]) -> None:
    """One DECODE in front of each reader: what it writes lives until the next operator only."""
    stored: dict[int, tuple[Ref, Ref]] = {}
    written: list[Operator] = []
    for op in program.operators:
        # By identity: two tensors with equal codes have names and scales of their own.
        found = {id(ref): ref for ref in op.inputs if ref is not None and id(ref) in chosen}
        # packed codes come back as int8, which the kernels compute with anyway
        decoded = {key: Ref(ref.name, ref.shape, "int8", ref.encoding) for key, ref in found.items()}
        if found:
            # What is stored is there once, however many operators decode it.
            pairs = [stored.setdefault(key, _stored(chosen[key])) for key in found]
            written.append(Operator(CODE, [part for pair in pairs for part in pair], list(decoded.values())))
            op = replace(op, inputs=[decoded.get(id(ref), ref) for ref in op.inputs])
        written.append(op)
    program.operators = written


def _stored(lut: Lut) -> tuple[Ref, Ref]:
    """Indices and tables as they lie in the file; nobody asks for their names."""
    parts = (pack(lut.indices, lut.bits), header(lut))
    indices, tables = (Ref("", (len(part),), "uint8", None, np.frombuffer(part, np.uint8)) for part in parts)
    return indices, tables


def _readable(program: Program) -> list[Ref]:
    """Stored codes of 8 or 4 bits that only operators read which take them decoded, each once."""
    found: dict[int, Ref] = {}
    # One reader that cannot bars a tensor for all: it would have to be stored both ways.
    barred = {id(ref) for ref in program.outputs}
    for op in program.operators:
        for i, ref in enumerate(op.inputs):
            if ref is None or ref.data is None or ref.dtype not in ("int8", "int4"):
                continue
            found[id(ref)] = ref
            if not (facts(op.code).reads_tables and i in facts(op.code).weights):
                barred.add(id(ref))
    return [ref for key, ref in found.items() if key not in barred]


def _lut(ref: Ref, max_bits: int, required: bool) -> Lut | None:
    """Tables for a tensor, where they save bytes; scales along an axis allow tables along it."""
    codes = np.asarray(ref.data).astype(np.int8)
    # int4 lies in the file as two codes to a byte.
    raw = codes.size if ref.dtype == "int8" else -(-codes.size // 2)
    axis = ref.encoding.axis if ref.encoding is not None else None
    lut = smallest(codes, axis)
    if required and (lut is None or lut.bits > max_bits):
        raise ValueError(
            f"export: '{ref.name}' has {distinct(codes, axis)} distinct codes in a table, and indices of {max_bits} "
            f"bits tell {1 << max_bits} apart. Cluster its weights first, or leave it out of the tensors to compress."
        )
    if lut is None or lut.bits > max_bits:
        return None
    smaller = lut.size_bytes + TABLE_BYTES < raw
    if required and not smaller:
        raise ValueError(
            f"export: '{ref.name}' gets no smaller: {raw} bytes as it is, {lut.size_bytes} as indices of "
            f"{lut.bits} bits and tables, and about {TABLE_BYTES} for the operator that decodes them. Leave it out."
        )
    return lut if smaller else None


def _refuse_unreadable(names: Sequence[str], readable: list[Ref], program: Program) -> None:
    for name in names:
        if any(_is_of(ref, name) for ref in readable):
            continue
        able = [code for code, kind in OPERATORS.items() if kind.reads_tables]
        stored = [(op.code, ref) for op in program.operators for ref in op.inputs if ref is not None]
        readers = sorted({code for code, ref in stored if ref.data is not None and _is_of(ref, name)})
        if readers:
            raise ValueError(
                f"export: '{name}' cannot be stored in look-up tables: TFLM decodes the integer weights of "
                f"{', '.join(able)}. It is read by {', '.join(readers)}; leave it out."
            )
        known = [ref.name for ref in readable]
        hint = did_you_mean(name, [*known, *(name.rpartition("/")[0] for name in known)])
        raise ValueError(f"export: the file has no weights '{name}'.{hint} There are: {', '.join(known)}.")


def in_tables(program: Program, target: Target, metadata: dict[str, Any], tables: LookUpTables) -> bytes:
    """The file of a program with its weights in look-up tables; the program stays as it is.

    Raises:
        ValueError: no weights get smaller, or see `store_in_tables`.
    """
    copy = replace(program)
    names = store_in_tables(copy, tables)
    plain, content = (to_bytes(p, target, metadata) for p in (program, copy))
    if not names or len(content) >= len(plain):
        raise ValueError(
            "export: no weights get smaller in look-up tables: too many distinct codes, or too few weights for a "
            "table. Cluster the weights first; kquant.layer_bytes counts codes and bytes of a plain export."
        )
    _refuse_other_codes(plain, content)
    return content


def _refuse_other_codes(plain: bytes, content: bytes) -> None:
    """Every constant of the plain file, decoded from the other one by name."""
    before, after = read_model(plain).tensors, read_model(content).tensors
    written = {after[i].name: array for i, array in constants(content).items()}
    for i, expected in constants(plain).items():
        name = before[i].name
        if name not in written or not np.array_equal(written[name], expected):
            raise ValueError(f"export: '{name}' does not come back from its look-up tables; please report this.")

"""Constants of a program -> pairs of tensors, a DECODE in front of each operator that reads them (TFLM only)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from kquant.core.messages import did_you_mean
from kquant.core.operators import OPERATORS, facts
from kquant.core.program import Operator, Program, Ref
from kquant.targets import Target
from kquant.tflite.flatbuffer import packed, to_bytes, unpacked
from kquant.tflite.reader import SCHEMA, constants, read_model
from kquant.tflite.storage import CODE, Storage, Stored

# What one more tensor behind a DECODE costs beside its bytes: 3 tensors for 1, 2 buffers for 1, an operator. Measured.
DECODE_BYTES = 128


def store_weights(program: Program, wanted: Sequence[Storage]) -> list[str]:
    """Store weights in the smallest of some forms; each reader gets a DECODE of its own, right in front of it.

    Args:
        program: of the file; its list of operators is replaced.
        wanted: forms, and which weights each may take.

    Returns:
        Names of the tensors that are stored so, in the order of the file.

    Raises:
        ValueError: a name that is not there, or weights that were named and cannot be stored so or get no smaller.

    Example:
        >>> from kquant.core.program import Program
        >>> from kquant.tflite.lut_format import LookUpTables
        >>> from kquant.tflite.stored_weights import store_weights
        >>> program = Program("tiny")
        >>> x, y = program.value("x", (1, 64), None, "int8"), program.value("y", (1, 64), None, "int8")
        >>> weights = program.constant("w", np.tile(np.int8([3, 7]), (64, 32)))
        >>> program.emit("FULLY_CONNECTED", [x, weights, None], y).name
        'y'
        >>> store_weights(program, [LookUpTables()])
        ['w']
        >>> [op.code for op in program.operators]
        ['TFLM_DECODE', 'FULLY_CONNECTED']
    """
    readable = _readable(program)
    for storage in wanted:
        _refuse_unreadable(storage, readable, program)
    chosen: dict[int, Stored] = {}
    for ref in readable:
        found = [stored for storage in wanted if (stored := _stored(ref, storage)) is not None]
        if found:
            chosen[id(ref)] = min(found, key=lambda stored: stored.size_bytes)
    _insert(program, chosen)
    return [ref.name for ref in readable if id(ref) in chosen]


def without_decodes(content: bytes) -> bytes:
    """The file with its weights as they are: what kernels that decode nothing can run.

    Args:
        content: a `.tflite` file with some that a DECODE writes.

    Returns:
        A file without the operators that decode them.
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


def _insert(program: Program, chosen: dict[int, Stored]) -> None:
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
            pairs = [stored.setdefault(key, _pair(chosen[key])) for key in found]
            written.append(Operator(CODE, [part for pair in pairs for part in pair], list(decoded.values())))
            op = replace(op, inputs=[decoded.get(id(ref), ref) for ref in op.inputs])
        written.append(op)
    program.operators = written


def _pair(stored: Stored) -> tuple[Ref, Ref]:
    """Body and header as they lie in the file; nobody asks for their names."""
    parts = (stored.body, stored.header)
    body, header = (Ref("", (len(part),), "uint8", None, np.frombuffer(part, np.uint8)) for part in parts)
    return body, header


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


def _stored(ref: Ref, storage: Storage) -> Stored | None:
    """A tensor in this form, where it saves bytes."""
    required = storage.names is not None
    if storage.names is not None and not any(_is_of(ref, name) for name in storage.names):
        return None
    codes = np.asarray(ref.data).astype(np.int8)
    # int4 lies in the file as two codes to a byte.
    raw = codes.size if ref.dtype == "int8" else -(-codes.size // 2)
    axis, zeros = (None, np.array([0])) if ref.encoding is None else (ref.encoding.axis, ref.encoding.zero_point)
    stored = storage.store(codes, axis, zeros)
    if stored is None:
        if required:
            why = storage.refusal(codes, axis)
            raise ValueError(f"export: '{ref.name}' {why}, or leave it out of the tensors to compress.")
        return None
    smaller = stored.size_bytes + DECODE_BYTES < raw
    if required and not smaller:
        raise ValueError(
            f"export: '{ref.name}' gets no smaller: {raw} bytes as it is, {stored.size_bytes} as {stored.what}, and "
            f"about {DECODE_BYTES} for the operator that decodes them. Leave it out."
        )
    return stored if smaller else None


def _refuse_unreadable(storage: Storage, readable: list[Ref], program: Program) -> None:
    for name in storage.names or ():
        if any(_is_of(ref, name) for ref in readable):
            continue
        able = [code for code, kind in OPERATORS.items() if kind.reads_tables]
        stored = [(op.code, ref) for op in program.operators for ref in op.inputs if ref is not None]
        readers = sorted({code for code, ref in stored if ref.data is not None and _is_of(ref, name)})
        if readers:
            raise ValueError(
                f"export: '{name}' cannot be stored in {storage.title}: TFLM decodes the integer weights of "
                f"{', '.join(able)}. It is read by {', '.join(readers)}; leave it out."
            )
        known = [ref.name for ref in readable]
        hint = did_you_mean(name, [*known, *(name.rpartition("/")[0] for name in known)])
        raise ValueError(f"export: the file has no weights '{name}'.{hint} There are: {', '.join(known)}.")


def smaller_file(program: Program, target: Target, metadata: dict[str, Any], wanted: Sequence[Storage]) -> bytes:
    """The file of a program with its weights behind a DECODE; the program stays as it is.

    Raises:
        ValueError: no weights get smaller, or see `store_weights`.
    """
    copy = replace(program)
    names = store_weights(copy, wanted)
    plain, content = (to_bytes(p, target, metadata) for p in (program, copy))
    if not names or len(content) >= len(plain):
        why = "; ".join(f"in {storage.title}: {storage.remedy}" for storage in wanted)
        raise ValueError(f"export: no weights get smaller {why}.")
    _refuse_other_codes(plain, content)
    return content


def _refuse_other_codes(plain: bytes, content: bytes) -> None:
    """Every constant of the plain file, decoded from the other one by name."""
    before, after = read_model(plain).tensors, read_model(content).tensors
    written = {after[i].name: array for i, array in constants(content).items()}
    for i, expected in constants(plain).items():
        name = before[i].name
        if name not in written or not np.array_equal(written[name], expected):
            raise ValueError(f"export: '{name}' does not come back from what stores it; please report this.")

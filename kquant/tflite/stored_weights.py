"""Constants of a program -> pairs of tensors, a DECODE in front of each operator that reads them (TFLM only).

In the body of a loop too: its operators run at every step, and so does the DECODE in front of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kquant.core.messages import did_you_mean, first_of
from kquant.core.operators import OPERATORS, facts
from kquant.core.packed import PACKED, numpy_type, size_bytes, types_of
from kquant.core.program import Operator, Program, Ref
from kquant.targets import Target
from kquant.tflite.flatbuffer import Buffer, constant_key, packed, to_bytes, unpacked
from kquant.tflite.memory_plan import MemoryPlan, memory_plan
from kquant.tflite.reader import FileModel, constants, read_model
from kquant.tflite.storage import CODE, Decoding, Storage, Stored, Storing
from kquant.tflite.subgraphs import subgraphs

# What one more tensor behind a DECODE costs beside its bytes: 3 tensors for 1, 2 buffers for 1, an operator. Measured.
DECODE_BYTES = 128
# What TFLM keeps in the arena of a 64-bit host for a DECODE (Huffman: 144) and for a tensor, and what it needs for both
# while it plans memory, before any tensor lies there. Measured; see tests/tflite/test_stored_arena.py.
DECODE_ARENA, TENSOR_ARENA = 160, 24
DECODE_PLANNED, TENSOR_PLANNED = 40, 32
WORTH = 1024  # bytes of weights that are worth a word


def store_weights(program: Program, wanted: Sequence[Storage]) -> list[str]:
    """Store weights in the smallest of some forms; a DECODE stands right in front of each reader.

    Two operators, one behind the other, that read equal weights in equal encodings share one DECODE.

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
    chosen = _chosen(program, wanted)
    _insert(program, chosen)
    return [one.ref.name for one in chosen.values()]


@dataclass(frozen=True)
class _Chosen:
    """A tensor, the form that it takes, and whether somebody asked for it by name."""

    ref: Ref
    storage: Storage
    stored: Stored


def _chosen(program: Program, wanted: Sequence[Storage]) -> dict[int, _Chosen]:
    """The smallest form of each tensor that gets smaller, by the identity of the tensor."""
    readable = _readable(program)
    for storage in wanted:
        _refuse_unreadable(storage, readable, program)
    chosen: dict[int, _Chosen] = {}
    groups = _groups(readable)
    for group in groups:
        forms = ((storage, _stored(group, storage)) for storage in wanted)
        smaller = [(storage, stored) for storage, stored in forms if stored is not None]
        if smaller:
            storage, stored = min(smaller, key=lambda one: one[1].size_bytes)
            chosen |= {id(ref): _Chosen(ref, storage, stored) for ref in group}
    firsts = {id(group[0]): group for group in groups}
    for storage in wanted:
        for dtype in (np.int8, np.int16):
            shared = _together([group[0] for group in groups if _codes(group[0]).dtype == dtype], storage, chosen)
            for key, one in shared.items():
                chosen |= {id(ref): replace(one, ref=ref) for ref in firsts[key]}
    return chosen


def _groups(refs: Sequence[Ref]) -> list[list[Ref]]:
    """What is one tensor of the file: a layer that is called twice has the same weights under two names."""
    groups: dict[Any, list[Ref]] = {}
    for ref in refs:
        groups.setdefault(constant_key(ref) or id(ref), []).append(ref)
    return list(groups.values())


def _together(refs: list[Ref], storage: Storage, chosen: Mapping[int, _Chosen]) -> dict[int, _Chosen]:
    """Tensors that take less with one header for all than each in the form that it has; what was named stays."""
    if storage.names is not None:
        return {}
    now = {id(ref): size_bytes(ref.size, ref.dtype) for ref in refs}
    now |= {key: one.stored.size_bytes + DECODE_BYTES for key, one in chosen.items() if key in now}
    refs = [ref for ref in refs if id(ref) not in chosen or chosen[id(ref)].storage.names is None]
    while len(refs) > 1:
        forms = storage.store_together([_codes(ref) for ref in refs])
        if forms is None:
            break
        sizes = [len(form.body) + DECODE_BYTES for form in forms]
        kept = [ref for ref, size in zip(refs, sizes, strict=True) if size < now[id(ref)]]
        if len(kept) == len(refs):
            gained = sum(now[id(ref)] for ref in refs) - sum(sizes) - len(forms[0].header)
            pairs = zip(refs, forms, strict=True)
            return {id(ref): _Chosen(ref, storage, form) for ref, form in pairs} if gained > 0 else {}
        refs = kept
    return {}


def without_decodes(content: bytes) -> bytes:
    """The file with its weights as they are: what kernels that decode nothing can run.

    Args:
        content: a `.tflite` file with some that a DECODE writes.

    Returns:
        A file without the operators that decode them.
    """
    held, tables = constants(content), read_model(content).tables
    model = unpacked(content)
    first = 0  # tensors are numbered on from one subgraph to the next, as the reader does
    for graph in model.subgraphs:
        decoded = {table.output - first for table in tables if 0 <= table.output - first < len(graph.tensors)}
        # Into buffers of their own: an old one may be shared, and buffer 0 is that of all computed tensors.
        for number in sorted(decoded):
            graph.tensors[number].buffer = len(model.buffers)
            model.buffers.append(Buffer.of(held[first + number].reshape(-1).view(np.uint8)))
        graph.operators = [op for op in graph.operators if not decoded.issuperset(map(int, op.outputs))]
        first += len(graph.tensors)
    return packed(model)


def _is_of(ref: Ref, name: str) -> bool:
    """The tensor of that name, or one of the layer of that name."""
    return ref.name == name or ref.name.startswith(f"{name}/")


def _insert(program: Program, chosen: Mapping[int, _Chosen]) -> list[_Chosen]:
    """One DECODE in front of each reader: what it writes lives until its last reader, which stands right behind.

    Returns:
        What is decoded, in the order of the file.
    """
    pairs: dict[Any, tuple[Ref, Ref]] = {}
    decoded: list[_Chosen] = []
    same = {id(one.ref): constant_key(one.ref) or id(one.ref) for one in chosen.values()}

    def written(operators: list[Operator]) -> list[Operator]:
        made: list[Operator] = []
        held: dict[Any, Ref] = {}  # what the operator before reads decoded
        for op in operators:
            coded = {id(ref): ref for ref in op.inputs if ref is not None and id(ref) in chosen}
            # packed codes come back as int8, which the kernels compute with anyway
            new = {
                same[key]: Ref(ref.name, ref.shape, numpy_type(ref.dtype), ref.encoding)
                for key, ref in coded.items()
                if same[key] not in held
            }
            if new:
                read = {same[key]: chosen[key] for key in coded if same[key] in new}
                # What is stored is there once, however many operators decode it.
                stored = [pairs.setdefault(key, _pair(one.stored)) for key, one in read.items()]
                made.append(Operator(CODE, [part for pair in stored for part in pair], list(new.values())))
                decoded.extend(read.values())
            held = {same[key]: new.get(same[key]) or held[same[key]] for key in coded}
            made.append(_reading(op, {key: held[same[key]] for key in coded}) if coded else op)
        return made

    program.operators = _changed(program, written)
    return decoded


def _operators(program: Program) -> list[Operator]:
    """Those of a program and of its loops."""
    return [op for part in subgraphs(program) for op in part.operators]


def _changed(program: Program, change: Callable[[list[Operator]], list[Operator]]) -> list[Operator]:
    """The operators of a program after a change, which those of its loops went through too; the program stays."""
    operators: list[Operator] = []
    for op in program.operators:
        graphs = {key: replace(graph, operators=_changed(graph, change)) for key, graph in op.graphs.items()}
        operators.append(replace(op, graphs=graphs) if graphs else op)
    return change(operators)


def _reading(op: Operator, instead: Mapping[int, Ref]) -> Operator:
    """The operator with other tensors in the places of some that it reads."""
    return replace(op, inputs=[instead.get(id(ref), ref) for ref in op.inputs])


def _pair(stored: Stored) -> tuple[Ref, Ref]:
    """Body and header as they lie in the file; nobody asks for their names."""
    parts = (stored.body, stored.header)
    body, header = (Ref("", (len(part),), "uint8", None, np.frombuffer(part, np.uint8)) for part in parts)
    return body, header


def _readable(program: Program) -> list[Ref]:
    """Stored codes of up to 16 bits that only operators read which take them decoded, each once."""
    refs: dict[int, Ref] = {}
    # One reader that cannot bars a tensor for all: it would have to be stored both ways.
    barred = {id(ref) for ref in program.outputs}
    for op in _operators(program):
        for i, ref in enumerate(op.inputs):
            if ref is None or ref.data is None or ref.dtype not in ("int8", "int16", *PACKED):
                continue
            refs[id(ref)] = ref
            if not (facts(op.code).reads_tables and i in facts(op.code).weights):
                barred.add(id(ref))
    return [ref for group in _groups(list(refs.values())) if not barred & set(map(id, group)) for ref in group]


def barred(program: Program) -> str:
    """Weights of some size that lie in the file as they are whatever is asked for, as a sentence; "" for none."""
    readable = set(map(id, _readable(program)))
    readers: dict[str, set[str]] = {}
    for op in _operators(program):
        for ref in op.inputs:
            if ref is None or ref.data is None or ref.dtype not in ("int8", *PACKED) or id(ref) in readable:
                continue
            if size_bytes(ref.size, ref.dtype) >= WORTH:
                readers.setdefault(ref.name, set()).add(op.code)
    if not readers:
        return ""
    codes = ", ".join(sorted({code for several in readers.values() for code in several}))
    return f"{first_of([repr(name) for name in readers])} stay as they are: {codes} reads them, and not decoded."


def _codes(ref: Ref) -> np.ndarray:
    return np.asarray(ref.data).astype(np.int16 if ref.dtype == "int16" else np.int8)


def _form(ref: Ref, storage: Storage) -> Stored | None:
    axis, zeros = (None, np.array([0])) if ref.encoding is None else (ref.encoding.axis, ref.encoding.zero_point)
    return storage.store(_codes(ref), axis, zeros)


def _stored(group: Sequence[Ref], storage: Storage) -> Stored | None:
    """A tensor in this form, where it saves bytes; it may have several names."""
    ref, required = group[0], storage.names is not None
    if storage.names is not None:
        named = (one for one in group if any(_is_of(one, name) for name in storage.names))
        ref = next(named, None)
        if ref is None:
            return None
    stored, raw = _form(ref, storage), size_bytes(ref.size, ref.dtype)
    if stored is None:
        if required:
            why = storage.refusal(_codes(ref), None if ref.encoding is None else ref.encoding.axis)
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
        stored = [(op.code, ref) for op in _operators(program) for ref in op.inputs if ref is not None]
        readers = sorted({code for code, ref in stored if ref.data is not None and _is_of(ref, name)})
        if readers:
            raise ValueError(
                f"export: '{name}' cannot be stored in {storage.title}: TFLM decodes the integer weights of "
                f"{', '.join(able)}. It is read by {', '.join(readers)}; leave it out."
            )
        known = [ref.name for ref in readable]
        hint = did_you_mean(name, [*known, *(name.rpartition("/")[0] for name in known)])
        raise ValueError(f"export: the file has no weights '{name}'.{hint} There are: {', '.join(known)}.")


def smaller_file(
    program: Program, target: Target, metadata: dict[str, Any], storing: Storing, bare: bool = False
) -> tuple[bytes, Decoding | None]:
    """The file of a program with its weights behind a DECODE; the program stays as it is.

    Args:
        program: of the file.
        target: of the file.
        metadata: of the file.
        storing: what its weights may be stored in.
        bare: see `to_bytes`; what is chosen is the same.

    Returns:
        The file, and what decoding costs; None where it decodes nothing.

    Raises:
        ValueError: no weights get smaller though they have to, a name that the budget leaves out, or see
            `store_weights`.
    """
    plain = to_bytes(program, target, metadata)
    base = replace(program)
    if storing.free:
        _pack(base, target)
    chosen = _chosen(base, storing.storages)
    before = read_model(plain)
    last = ""
    while True:
        copy = replace(base)
        decoded = _insert(copy, chosen)
        content = to_bytes(copy, target, metadata)
        after = read_model(content)
        grown = arena_growth(before, after)
        if not decoded or storing.budget_bytes is None or grown <= storing.budget_bytes:
            break
        plan = memory_plan(after)
        last = _leave_out(chosen, decoded, content, plan, storing.budget_bytes)
    if len(content) >= len(plain):
        if not storing.free:
            raise ValueError(f"export: no weights get smaller {_why(base, storing, last)}.")
        return to_bytes(program, target, metadata, bare), None
    _refuse_other_codes(plain, content)
    made = to_bytes(copy, target, metadata, bare)
    if not decoded:
        return made, None
    keys = [one.storage.key for one in chosen.values()]
    names = {key: tuple(one.ref.name for one in chosen.values() if one.storage.key == key) for key in sorted({*keys})}
    weights, lookups = (sum(column) for column in zip(*((o.ref.size, o.stored.lookups) for o in decoded), strict=True))
    return made, Decoding(names, weights, lookups, grown, len(plain) - len(content))


def arena_growth(before: FileModel, after: FileModel) -> int:
    """Bytes of arena that TFLM takes more on a 64-bit host for a file whose weights are decoded, at most.

        each DECODE's and tensor's own   +   max(growth of the plan of memory, growth of what planning takes)

    for of `a = kept + max(planned, planning)` neither part grows by more. On 32-bit devices the own part is smaller.

    Args:
        before: with weights as they are.
        after: the same network.
    """
    decodes = after.operator_counts.get(CODE, 0)
    tensors = len(after.tensors) - len(before.tensors)
    planned = memory_plan(after).size_bytes - memory_plan(before).size_bytes
    planning = decodes * DECODE_PLANNED + tensors * TENSOR_PLANNED
    return decodes * DECODE_ARENA + tensors * TENSOR_ARENA + max(planned, planning) if decodes else max(planned, 0)


def _why(program: Program, storing: Storing, last: str) -> str:
    """What stands in the way: of the budget the tensor that it left out last, else the one that is nearest."""
    if last:
        return f"within decode_budget={storing.budget_bytes:,} bytes of arena: {last}. Give more"
    said = "; ".join(f"in {storage.title}: {storage.remedy}" for storage in storing.storages)
    kept = barred(program)
    if kept:
        said = f"{said}. {kept}" if _readable(program) else f"in any form: {kept}"
    forms = ((ref, _form(ref, storage)) for ref in _readable(program) for storage in storing.storages)
    candidates = [(size_bytes(ref.size, ref.dtype), form, ref) for ref, form in forms if form is not None]
    if not candidates:
        return said.removesuffix(".")
    raw, form, ref = min(candidates, key=lambda one: one[1].size_bytes / one[0])
    return (
        f"{said.removesuffix('.')}. Nearest is '{ref.name}': {raw:,} bytes as it is, {form.size_bytes:,} as "
        f"{form.what}, and about {DECODE_BYTES} for what decodes them"
    )


def _leave_out(
    chosen: dict[int, _Chosen], decoded: Sequence[_Chosen], content: bytes, plan: MemoryPlan, budget: int
) -> str:
    """Take away the largest of those that are alive where memory is filled to its end; of all, where none is.

    Returns:
        What it is.
    """
    tables = {table.output: table.name for table in read_model(content).tables}
    at = plan.spans[plan.peak][0]
    alive = {tables[t.index] for t in plan.tensors if t.index in tables and t.is_alive(at)}
    candidates = [one for one in decoded if one.ref.name in alive] or list(decoded)
    largest = max(candidates, key=lambda one: one.ref.size)
    if largest.storage.names is not None:
        raise ValueError(
            f"export: '{largest.ref.name}' takes {largest.ref.size:,} bytes of arena where it is decoded, and with it "
            f"tensors grow by more than decode_budget={budget:,}. Give more, or leave it out of the names."
        )
    for key in [key for key, one in chosen.items() if one.stored is largest.stored]:  # under all of its names
        del chosen[key]
    return f"'{largest.ref.name}' alone takes {largest.ref.size:,} where it is decoded"


def _pack(program: Program, target: Target) -> None:
    """Codes of 8 bits that fit into fewer, several to a byte, where every reader's kernel takes them so."""
    readers: dict[int, list[Operator]] = {}
    for op in _operators(program):
        for ref in op.inputs:
            readers.setdefault(id(ref), []).append(op)
    packed: dict[int, Ref] = {}
    for group in _groups(_readable(program)):
        names = types_of(group[0].data) if group[0].dtype == "int8" and group[0].data is not None else ()
        reading = [(op, ref) for ref in group for op in readers[id(ref)]]
        name = next((n for n in names if all(_takes_packed(op, ref, target, n) for op, ref in reading)), None)
        if name is not None:
            packed |= {id(ref): Ref(ref.name, ref.shape, name, ref.encoding, ref.data) for ref in group}
    program.operators = _changed(program, lambda operators: [_reading(op, packed) for op in operators])


def _takes_packed(op: Operator, ref: Ref, target: Target, name: str) -> bool:
    kernels = target.ops.get(op.code)
    if kernels is None or op.type != "int8" or not kernels.packs(name):
        return False
    several = ref.encoding is not None and ref.encoding.scale.size > 1
    bias = facts(op.code).bias
    has_bias = bias is None or (bias < len(op.inputs) and op.inputs[bias] is not None)
    return (kernels.per_axis_for(name) or not several) and (has_bias or name in kernels.optional_bias)


def _refuse_other_codes(plain: bytes, content: bytes) -> None:
    """Every constant of the plain file, decoded from the other one by name."""
    before, after = read_model(plain).tensors, read_model(content).tensors
    written = {after[i].name: array for i, array in constants(content).items()}
    for i, expected in constants(plain).items():
        name = before[i].name
        if name not in written or not np.array_equal(written[name], expected):
            raise ValueError(f"export: '{name}' does not come back from what stores it; please report this.")

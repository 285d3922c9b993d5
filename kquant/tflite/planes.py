"""Chains of one-dimensional layers stay in the four dimensions that their convolutions compute in.

A Conv1D is written between two RESHAPEs, `[1, length, channels]` to `[1, 1, length, channels]` and back. Two that meet
are one or none already (`passes`); what stands between two convolutions and minds no further axis of length 1 computes
in four dimensions as well, so that a chain keeps one RESHAPE at its beginning and one at its end:

    conv -> RESHAPE -> ADD -> PAD -> RESHAPE -> conv     =>     conv -> ADD -> PAD -> conv

What reduces over axes by their numbers (MEAN) keeps its form, as kernels round differently over others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kquant.core.operators import facts
from kquant.core.program import Operator, Program, Ref

RANK = 4


@dataclass(frozen=True, eq=False)
class _Form:
    """A tensor with one axis of length 1 more, which holds the same values."""

    ref: Ref
    axes: frozenset[int]


def stay_in_four_dimensions(program: Program) -> None:
    """Move RESHAPEs behind the operators that do not need them, where that leaves fewer.

    Args:
        program: tidied; changed in place.
    """
    # First what costs no RESHAPE more, then what needs one in front and may save several behind.
    for create in (False, True):
        _sink_all(program, create)


def _sink_all(program: Program, create: bool) -> None:
    """Every operator that can; `create`: with a RESHAPE more in front of it, where an input has none yet."""
    count = _needed(program)
    # Operators are changed in place, and only the end shows whether it was worth it: so that they can be put back.
    before = [(op, list(op.inputs), list(op.outputs), dict(op.options)) for op in program.operators]
    while _sink_one(program, create):
        pass
    # Each step inserts a RESHAPE, so equal lengths mean that nothing was done.
    if len(before) != len(program.operators) and _needed(program) >= count:
        for op, inputs, outputs, options in before:
            op.inputs, op.outputs, op.options = inputs, outputs, options
        program.operators = [op for op, *_ in before]


def _needed(program: Program) -> int:
    """RESHAPEs that are left when those that meet are merged, and those that nobody reads are gone."""
    producers = {id(ref): op for op in program.operators for ref in op.outputs}
    shapes: set[tuple[int, tuple[int, ...]]] = set()
    ends = {id(ref) for ref in program.outputs}
    read = [ref for op in program.operators if op.code != "RESHAPE" for ref in op.inputs if ref is not None]
    for ref in (*read, *program.outputs):
        source = ref
        while (maker := producers.get(id(source))) is not None and maker.code == "RESHAPE":
            source = maker.inputs[0] or source
        if source is not ref and (source.shape != ref.shape or id(ref) in ends):
            shapes.add((id(source), ref.shape))
    return len(shapes)


def _sink_one(program: Program, create: bool) -> bool:
    """The first operator that reads RESHAPEs, or is read by them, computes before them."""
    producers = {id(ref): op for op in program.operators for ref in op.outputs}
    wanted = {id(op.inputs[0]) for op in program.operators if op.code == "RESHAPE" and _is_wider(op)}
    views: dict[int, Ref] = {}  # id(tensor) -> what a RESHAPE further up made of it
    for at, op in enumerate(program.operators):
        if op.code == "RESHAPE" and op.inputs[0] is not None:
            if _is_wider(op):
                views.setdefault(id(op.inputs[0]), op.outputs[0])
            continue
        data = _data(op)
        if not data or len(op.outputs) != 1 or len(op.outputs[0].shape) != RANK - 1:
            continue
        forms = {id(ref): _form(ref, producers, views) for ref in data}
        made = any(id(ref) in producers and producers[id(ref)].code == "RESHAPE" for ref in data)
        missing = [ref for ref in {id(ref): ref for ref in data}.values() if forms[id(ref)] is None]
        able = all(len(ref.shape) == RANK - 1 for ref in missing)
        # Without `create`, where an input comes out of a RESHAPE and all have a wide form already; with it also where
        # the output goes into one, for the price of a RESHAPE more for each input that has none.
        if not (able and (made or id(op.outputs[0]) in wanted) if create else made and not missing):
            continue
        common = _axes_for(op).intersection(*(form.axes for form in forms.values() if form is not None))
        if not common:
            continue
        # One axis for all inputs: beside other axes of length 1, the new one may stand in several places.
        axis = min(common)
        refs = {key: form.ref for key, form in forms.items() if form is not None}
        for ref in missing:
            refs[id(ref)] = _widened(program, at, ref, axis)
            # What was inserted in front pushes the operator back.
            at += 1
        _sink(program, at, refs, axis)
        return True
    return False


def _is_wider(op: Operator) -> bool:
    """A RESHAPE that only puts in an axis."""
    source, result = op.inputs[0], op.outputs[0]
    return source is not None and len(source.shape) == RANK - 1 and bool(_axes(source, result))


def _axes(ref: Ref, wider: Ref) -> frozenset[int]:
    """Where the axis of length 1 may be that the wider tensor has more."""
    if len(wider.shape) != RANK:
        return frozenset()
    # Never before the samples, nor behind the channels.
    inner = range(1, RANK - 1)
    return frozenset(a for a in inner if wider.shape == (*ref.shape[:a], 1, *ref.shape[a:]))


def _widened(program: Program, at: int, ref: Ref, axis: int) -> Ref:
    """A new RESHAPE in front of an operator."""
    shape = (*ref.shape[:axis], 1, *ref.shape[axis:])
    made = program.value(f"{ref.name}/2d", shape, ref.encoding, ref.dtype)
    program.operators.insert(at, _reshape(program, ref, made))
    return made


def _reshape(program: Program, source: Ref, result: Ref) -> Operator:
    shape = program.constant("shape", np.array(result.shape, np.int32))
    return Operator("RESHAPE", [source, shape], [result], {"newShape": list(result.shape)})


def _data(op: Operator) -> list[Ref]:
    """The tensors that an operator computes with, constants left out; none where it must stay as it is."""
    stored = [ref.data for ref in op.inputs if ref is not None and ref.data is not None]
    one_row = op.code == "GATHER" and any(data.ndim == 1 for data in stored)  # a table, or positions along an axis
    if not one_row and not _any_rank(op) and not facts(op.code).axis_rows and op.code != "CONCATENATION":
        return []
    computed = [ref for ref in op.inputs if ref is not None and ref.data is None]
    constants = [ref for ref in op.inputs if ref is not None and ref.data is not None]
    if op.code == "CONCATENATION" and constants:
        return []
    return computed


def _any_rank(op: Operator) -> bool:
    """It computes with a further axis as it is: element by element, or over the last axis."""
    return facts(op.code).any_rank or facts(op.code).time == "local"


def _axes_for(op: Operator) -> frozenset[int]:
    """Where the further axis may stand: a stored operand of full rank wants it in front of its own axes."""
    stored = [ref for ref in op.inputs if ref is not None and ref.data is not None]
    if _any_rank(op) and any(len(ref.shape) > 1 for ref in stored):
        return frozenset([1])
    return frozenset(range(1, RANK - 1))


def _form(ref: Ref, producers: dict[int, Operator], views: dict[int, Ref]) -> _Form | None:
    """The tensor in four dimensions, where there is one already."""
    maker = producers.get(id(ref))
    other = maker.inputs[0] if maker is not None and maker.code == "RESHAPE" else views.get(id(ref))
    if other is None or len(ref.shape) != RANK - 1:
        return None
    axes = _axes(ref, other)
    return _Form(other, axes) if axes else None


def _sink(program: Program, at: int, forms: dict[int, Ref], axis: int) -> None:
    """One operator on the forms of its inputs, and a RESHAPE behind it."""
    op = program.operators[at]
    output = op.outputs[0]
    shape = (*output.shape[:axis], 1, *output.shape[axis:])
    made = program.value(f"{output.name}/2d", shape, output.encoding, output.dtype)
    op.inputs = [forms.get(id(ref), ref) for ref in op.inputs]
    for number, row in facts(op.code).axis_rows.items():
        # An operand with an entry for each axis (paddings, begin, size) gets the one that leaves the new axis alone.
        given = op.inputs[number]
        if given is not None and given.data is not None:
            op.inputs[number] = program.constant(given.name, np.insert(given.data, axis, row, axis=0))
    if op.code == "CONCATENATION" or (op.code == "GATHER" and id(op.inputs[0]) in map(id, forms.values())):
        along = op.options["axis"] % (RANK - 1)
        # Axes from the new one on count one more.
        op.options = {**op.options, "axis": along + (along >= axis)}
    op.outputs = [made]
    program.operators.insert(at + 1, _reshape(program, made, output))

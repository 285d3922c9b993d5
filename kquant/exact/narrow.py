"""A program without the channels that nobody reads: weights, biases and scales of what is left, constants in biases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from kquant.core.operators import facts
from kquant.core.program import Operator, Program, Ref
from kquant.core.spec import Encoding, QuantSpec
from kquant.exact.flow import Need, constant_sums
from kquant.exact.unread import Reading, reading_of

BIAS_TYPES = {"int8": "int32", "int16": "int64"}


@dataclass(frozen=True)
class Removed:
    """What went of one layer.

    Attributes:
        layer: name of the tensor that it writes.
        channels: of its output, before.
        kept: of them, after; 0: the whole layer is gone.
        constant: of those that went, how many hold one code whatever the input is.
        weights, weights_kept: how many codes of its kernel there were and are.
    """

    layer: str
    channels: int
    kept: int
    constant: int
    weights: int
    weights_kept: int


@dataclass(frozen=True, eq=False)
class Narrowed:
    """What became of a program; False where nothing did.

    Attributes:
        removed: one for each layer with weights that has become smaller, in order.
        kept: id(tensor) -> int64[channels that are left], of each tensor that has become narrower; empty: it is gone.
    """

    removed: tuple[Removed, ...] = ()
    kept: dict[int, np.ndarray] = field(default_factory=dict[int, np.ndarray])

    def __bool__(self) -> bool:
        return bool(self.kept)


def totals(removed: Sequence[Removed]) -> dict[str, int]:
    """Layers that became smaller, channels and weights that went; empty where nothing did.

    Example:
        >>> totals([Removed("conv", 8, 5, 1, 72, 45)])
        {'layers': 1, 'channels': 3, 'weights': 27}
    """
    channels = sum(row.channels - row.kept for row in removed)
    weights = sum(row.weights - row.weights_kept for row in removed)
    return {"layers": len(removed), "channels": channels, "weights": weights} if removed else {}


def drop_unread(program: Program, ranged: bool = True) -> Narrowed:
    """Take out every channel that no output code depends on.

    Args:
        program: tidied; changed in place. What its operators run inside (loops) stays as it is.
        ranged: see `spans_of`.

    Returns:
        What went.
    """
    if not any(facts(op.code).unit == "weights" for op in program.operators):
        return Narrowed()
    reading = reading_of(program, ranged)
    gone = {key: kept for key, kept in reading.kept.items() if not kept.all()}
    before = {id(op): _weights(op) for op in program.operators}
    if not gone:
        return Narrowed()
    for op in program.operators:
        # Before anything is cut: it puts whole kernels back, as `need` knows them.
        _silence(program, op, reading)
    operators, removed = list(program.operators), []
    widths = {id(ref): ref.shape[-1] for op in operators for ref in op.outputs if ref.shape}
    # What writes nothing that is read goes as a whole.
    program.operators = [op for op in operators if any(reading.kept[id(ref)].any() for ref in op.outputs)]
    for op in program.operators:
        _narrow(program, op, reading)
    # Not earlier: operands are cut by the shapes that tensors had.
    for ref in [ref for op in operators for ref in op.outputs]:
        if id(ref) in gone:
            ref.shape = (*ref.shape[:-1], int(gone[id(ref)].sum()))
    for op in program.operators:
        if reading.flows[id(op)] is not None:
            _state_shape(program, op)
    staying = {id(op) for op in program.operators}
    for op in operators:
        removed += _told(op, reading, before[id(op)], widths, id(op) in staying)
    return Narrowed(tuple(removed), {key: np.flatnonzero(kept) for key, kept in gone.items()})


def _weights(op: Operator) -> int:
    refs = [op.inputs[n] for n in facts(op.code).weights if n < len(op.inputs)]
    return sum(ref.size for ref in refs if ref is not None and ref.data is not None)


def _told(op: Operator, reading: Reading, before: int, widths: dict[int, int], stays: bool) -> list[Removed]:
    """The row of one operator with weights."""
    output = op.outputs[0]
    after = _weights(op) if stays else 0
    if not before or after == before:
        return []
    gone, span = ~reading.kept[id(output)], reading.spans.get(id(output))
    constant = 0 if span is None else int((gone & span.constant).sum())
    channels = widths[id(output)]
    return [Removed(output.name, channels, channels - int(gone.sum()), constant, before, after)]


def _silence(program: Program, op: Operator, reading: Reading) -> None:
    """Outputs that stay and are constant: their weights become zeros and their bias what gives that code."""
    flow = reading.flows[id(op)]
    if flow is None or flow.need is None or not (loud := _loud(flow.need, reading, op)).any():
        return
    number = facts(op.code).weights[0]
    weights = flow.need.sums.weights
    data = np.array(weights.data)
    data[loud] = 0
    # A tensor of its own: another operator may read the same weights.
    op.inputs[number] = replace(weights, data=data)
    _set_bias(program, op, flow.need, np.where(loud, constant_sums(flow.need, reading.spans), flow.need.sums.offsets))


def _loud(need: Need, reading: Reading, op: Operator) -> np.ndarray:
    """bool[outputs]: constant, kept, and with weights that are not zero."""
    return need.constant & reading.kept[id(op.outputs[0])] & need.sums.codes.any(axis=(1, 2))


def _set_bias(program: Program, op: Operator, need: Need, values: np.ndarray) -> None:
    """Put a bias in the place of the old one, or where there was none."""
    at, sums, old = facts(op.code).bias, need.sums, need.sums.bias
    if at is None or (old is None and not values.any()):
        return
    if old is None:
        # Kernels add the bias to the sum as it is, so that its unit is that of the products.
        scale = (sums.weights.grid.scale * sums.source.grid.scale[0]).astype(np.float32)
        grid = Encoding(scale, np.zeros(scale.size, np.int64), QuantSpec(16, symmetric=True), _axis(scale))
        new = program.constant(f"{op.outputs[0].name}/bias", values.astype(BIAS_TYPES[sums.source.dtype]), grid)
    else:
        new = replace(old, data=values.astype(old.dtype))
    op.inputs[at:] = [new]


def _axis(scale: np.ndarray) -> int | None:
    return 0 if scale.size > 1 else None


def _narrow(program: Program, op: Operator, reading: Reading) -> None:
    """Stored operands of one operator that stays."""
    flow, kept = reading.flows[id(op)], reading.kept[id(op.outputs[0])]
    if flow is None:
        return
    if flow.need is not None:
        _narrow_sums(program, op, flow.need, reading)
    elif facts(op.code).unit == "weights":
        _narrow_depthwise(op, kept)
    elif op.code == "CONCATENATION":
        _narrow_concatenation(op, reading)
    elif op.code == "GATHER" or facts(op.code).time == "local":
        count = kept.size
        stored = [ref is not None and ref.data is not None and ref.shape[-1:] == (count,) for ref in op.inputs]
        where = [n for n, is_stored in enumerate(stored) if is_stored and (op.code != "GATHER" or n == 0)]
        for n in where if count > 1 else ():
            op.inputs[n] = _part(op.inputs[n], -1, kept)


def _narrow_sums(program: Program, op: Operator, need: Need, reading: Reading) -> None:
    source, output = reading.kept[id(need.sums.source)], reading.kept[id(op.outputs[0])]
    at, number = facts(op.code).bias, facts(op.code).weights[0]
    there = op.inputs[at] if at is not None and len(op.inputs) > at else None
    offsets = np.zeros(len(output), np.int64) if there is None or there.data is None else there.data.astype(np.int64)
    # what is silenced reads nothing any more
    added = np.where(need.constant, 0, need.folded[:, ~source].sum(axis=1))
    if added[output].any():
        # `_silence` may have put a bias there since `need` was made.
        current = replace(need, sums=replace(need.sums, bias=there))
        _set_bias(program, op, current, offsets + added)
    weights = op.inputs[number]
    op.inputs[number] = _part(_part(weights, -1, source), 0, output)
    if at is not None and len(op.inputs) > at:
        op.inputs[at] = _part(op.inputs[at], 0, output)


def _narrow_depthwise(op: Operator, kept: np.ndarray) -> None:
    at, number = facts(op.code).bias, facts(op.code).weights[0]
    op.inputs[number] = _part(op.inputs[number], -1, kept)
    if at is not None and len(op.inputs) > at:
        op.inputs[at] = _part(op.inputs[at], 0, kept)


def _narrow_concatenation(op: Operator, reading: Reading) -> None:
    """Operands of which nothing is left go; stored ones lose what the output loses."""
    kept, rank, begin, inputs = reading.kept[id(op.outputs[0])], len(op.outputs[0].shape), 0, list[Ref | None]()
    along = op.options["axis"] % rank == rank - 1
    for ref in op.inputs:
        width = 0 if ref is None else ref.shape[-1]
        held = kept[begin : begin + width] if along else kept
        if held.any():
            inputs.append(_part(ref, -1, held) if ref is not None and ref.data is not None else ref)
        begin += width if along else 0
    op.inputs = inputs


def _part(ref: Ref | None, axis: int, kept: np.ndarray) -> Ref | None:
    """A stored tensor without some rows; the same where all stay."""
    if ref is None or ref.data is None or kept.all():
        return ref
    data = np.ascontiguousarray(np.compress(kept, ref.data, axis=axis))
    grid = ref.encoding
    # Scales go with their channels, where it is those that are cut.
    if grid is not None and grid.axis is not None and grid.axis % ref.data.ndim == axis % ref.data.ndim:
        grid = replace(grid, scale=grid.scale[kept], zero_point=grid.zero_point[kept])
    return replace(ref, shape=tuple(data.shape), data=data, encoding=grid)


def _state_shape(program: Program, op: Operator) -> None:
    """Operators whose shape is an operand or an option."""
    output, source = op.outputs[0], op.inputs[0] if op.inputs else None
    if op.code == "RESHAPE" and op.options.get("newShape") != list(output.shape):
        op.inputs[1] = program.constant("shape", np.array(output.shape, np.int32))
        op.options = {**op.options, "newShape": list(output.shape)}
    elif op.code == "SLICE" and source is not None:
        # SLICE is told sizes, which are the output's; STRIDED_SLICE ends, which are places in its source.
        op.inputs[2] = _with_last(op.inputs[2], output.shape[-1])
    elif op.code == "STRIDED_SLICE" and source is not None:
        op.inputs[2] = _with_last(op.inputs[2], source.shape[-1])
    elif op.code == "TRANSPOSE_CONV":
        op.inputs[0] = _with_last(op.inputs[0], output.shape[-1])


def _with_last(ref: Ref | None, length: int) -> Ref | None:
    if ref is None or ref.data is None or int(ref.data[-1]) == length:
        return ref
    data = np.array(ref.data)
    data[-1] = length
    return replace(ref, data=data)

"""Loops of a stream: a WHILE that goes on in each call where the call before has left it.

    over clips     states of zeros             all steps of a clip       states behind the last one
    in a stream    what the last call left     the steps of this call    what the next call finds

A call of one step needs no WHILE: the operators of its body stand in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from kquant.core.operators import facts
from kquant.core.program import Operator, Program, Ref

BODY, CONDITION = "bodySubgraphIndex", "condSubgraphIndex"


@dataclass(frozen=True)
class Parts:
    """What goes round in a WHILE, by its number among the inputs; the first one counts the steps.

    Attributes:
        sequences: read step by step, and handed on as they are.
        states: from step to step.
        results: sequences into which each step writes its row.
    """

    sequences: tuple[int, ...]
    states: tuple[int, ...]
    results: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Continued:
    """A loop as it stands in a stream.

    Attributes:
        operators: in its place.
        outputs: of each output of the WHILE that is a state or a result, by its number.
        states: (what a call finds, what it leaves), in the order of the loop.
    """

    operators: list[Operator]
    outputs: dict[int, Ref]
    states: list[tuple[Ref, Ref]]


def parts_of(loop: Operator) -> Parts:
    """What each input of a WHILE that `tflite.loops` wrote is."""
    body = loop.graphs[BODY]
    writers = {id(op.outputs[0]): op for op in body.operators}
    sequences: list[int] = []
    states: list[int] = []
    results: list[int] = []
    for number in range(1, len(body.inputs)):
        before, after = body.inputs[number], body.outputs[number]
        writer = writers.get(id(after))
        if before is after:
            sequences.append(number)
        elif writer is not None and writer.code == "DYNAMIC_UPDATE_SLICE" and writer.inputs[0] is before:
            results.append(number)
        else:
            states.append(number)
    return Parts(tuple(sequences), tuple(states), tuple(results))


def goes_on(op: Operator) -> bool:
    """True where an operator steps through a sequence with a state, which a stream keeps from call to call."""
    return op.code == "WHILE" or op.code.endswith("LSTM")


def frames_of(loop: Operator) -> tuple[int, int] | None:
    """Length and stride of the frames that a loop cuts out of a waveform by itself, in samples; None of other loops.

    The operators of a runtime's own library make features of them (`ops.micro_frontend`).
    """
    if loop.code != "WHILE":
        return None
    body = loop.graphs[BODY]
    if not any(facts(op.code).flexible for op in body.operators):
        return None
    writers = {id(op.outputs[0]): op for op in body.operators}
    cut = next(op for op in body.operators if op.code == "SLICE" and op.inputs[0] is body.inputs[1])
    at = cut.inputs[1]
    stride = None if at is None else writers[id(at)].inputs[1]
    if stride is None or stride.data is None:
        raise ValueError("stream: a loop of frames without a stride; kquant wrote it otherwise.")
    return cut.outputs[0].shape[1], int(stride.data[-1])


def remembers(op: Operator) -> bool:
    """True for a loop over frames in which an operator keeps an estimate from frame to frame, in itself."""
    return op.code == "WHILE" and any(facts(inner.code).remembers for inner in op.graphs[BODY].operators)


def going_on(program: Program) -> list[Operator]:
    """The operators without those that let layers with a state begin anew in each run.

    They write the zeros that the results of a loop begin as, and those into the variables of an LSTM.
    """
    loops = [op for op in program.operators if op.code == "WHILE"]
    zeros = {id(loop.inputs[number]) for loop in loops for number in parts_of(loop).results}
    left = [op for op in program.operators if not any(ref.variable or id(ref) in zeros for ref in op.outputs)]
    return left if len(left) == len(program.operators) else _needed(left, program.outputs)


def continued(loop: Operator, name: str, sequences: Sequence[Ref], results: Sequence[Ref], steps: int) -> Continued:
    """A loop over the steps of one call.

    Args:
        loop: a WHILE over whole clips; it is not changed.
        name: of the layer.
        sequences: the blocks that it reads, [1, steps, features] each; of a loop that cuts out frames the samples.
        results: tensors of the stream for its results, [1, steps, units] each.
        steps: of a call.
    """
    parts, body = parts_of(loop), loop.graphs[BODY]
    reads = [replace(body.inputs[n], name=f"{name}/state") for n in parts.states]
    if steps == 1:
        return _inlined(body, parts, sequences, results, reads)
    return _shorter(loop, parts, sequences, results, reads, steps)


def _inlined(
    body: Program, parts: Parts, sequences: Sequence[Ref], results: Sequence[Ref], reads: list[Ref]
) -> Continued:
    """The operators of the body on the only step of a call."""
    place = {id(body.inputs[n]): ref for n, ref in zip(parts.sequences, sequences, strict=True)}
    place |= {id(body.inputs[n]): ref for n, ref in zip(parts.states, reads, strict=True)}
    writers = {id(op.outputs[0]): op for op in body.operators}
    rows = [writers[id(body.outputs[n])].inputs[1] for n in parts.results]
    for row, result in zip(rows, results, strict=True):
        place.setdefault(id(row), result)
    for number, read in zip(parts.states, reads, strict=True):
        after = body.outputs[number]
        place.setdefault(id(after), replace(after, name=f"{read.name}_out"))
    operators: list[Operator] = []
    for op in body.operators:
        source = op.inputs[0]
        if (
            op.code in ("GATHER", "SLICE")
            and source is not None
            and any(source is body.inputs[n] for n in parts.sequences)
        ):
            place[id(op.outputs[0])] = place[id(source)]  # the only row that there is
        else:
            operators.append(_moved(op, place))
    written = [place[id(body.outputs[n])] for n in parts.states]
    outputs = dict(zip(parts.states, written, strict=True))
    outputs |= {n: place[id(row)] for n, row in zip(parts.results, rows, strict=True)}
    return Continued(_needed(operators, list(outputs.values())), outputs, list(zip(reads, written, strict=True)))


def _shorter(
    loop: Operator, parts: Parts, sequences: Sequence[Ref], results: Sequence[Ref], reads: list[Ref], steps: int
) -> Continued:
    """The WHILE over fewer steps, from states that are given."""
    given, ended, outputs = list(loop.inputs), [replace(ref) for ref in loop.outputs], dict[int, Ref]()
    lengths: dict[int, tuple[int, ...]] = {}  # number of what has another length now -> its shape
    for number, sequence in zip(parts.sequences, sequences, strict=True):
        given[number], lengths[number] = sequence, sequence.shape
        ended[number] = replace(ended[number], shape=sequence.shape)
    for number, result in zip(parts.results, results, strict=True):
        point = 0 if result.encoding is None else int(result.encoding.zero_point[0])
        zeros = np.full(result.shape, point, np.dtype(result.dtype))
        given[number] = replace(result, name=f"{result.name}/begin", data=zeros)
        lengths[number] = result.shape
        ended[number] = result
    for number, read in zip(parts.states, reads, strict=True):
        given[number] = read
        ended[number] = replace(ended[number], name=f"{read.name}_out")
    outputs = {number: ended[number] for number in (*parts.states, *parts.results)}
    graphs = {key: _of_length(graph, lengths, steps) for key, graph in loop.graphs.items()}
    made = Operator("WHILE", given, ended, dict(loop.options), graphs=graphs)
    states = [(read, ended[number]) for number, read in zip(parts.states, reads, strict=True)]
    return Continued([made], outputs, states)


def _of_length(graph: Program, lengths: dict[int, tuple[int, ...]], steps: int) -> Program:
    """A copy of the condition or the body, for sequences of another length."""
    place: dict[int, Ref] = {}
    for refs in (graph.inputs, graph.outputs if len(graph.outputs) == len(graph.inputs) else []):
        for number, shape in lengths.items():
            if refs:
                place.setdefault(id(refs[number]), replace(refs[number], shape=shape))
    inputs = [place.setdefault(id(ref), replace(ref)) for ref in graph.inputs]
    operators = [_moved(op, place) for op in graph.operators]
    for op in operators:
        if op.code == "LESS" and op.inputs[1] is not None:
            op.inputs[1] = replace(op.inputs[1], data=np.array([steps], np.int32))
    return Program(graph.name, operators, inputs, [place[id(ref)] for ref in graph.outputs])


def _moved(op: Operator, place: dict[int, Ref]) -> Operator:
    """A copy of an operator on the tensors that stand for its own; what nothing stands for yet gets a copy."""
    inputs = [None if ref is None else place.get(id(ref), ref) for ref in op.inputs]
    outputs = [place.setdefault(id(ref), replace(ref)) for ref in op.outputs]
    return replace(op, inputs=inputs, outputs=outputs, options=dict(op.options))


def _needed(operators: list[Operator], wanted: list[Ref]) -> list[Operator]:
    """Those that what is wanted depends on: nobody counts steps here, or writes rows."""
    alive = {id(ref) for ref in wanted}
    kept: list[Operator] = []
    for op in reversed(operators):
        if any(id(ref) in alive for ref in op.outputs):
            alive |= {id(ref) for ref in op.inputs if ref is not None}
            kept.append(op)
    return kept[::-1]

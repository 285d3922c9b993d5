"""Loops of a model as WHILE: the ports of an opened graph become inputs and outputs of the body.

    inputs of condition and body    the number of the step, the sequences, the states, the results so far
    condition                       LESS: the number is below the number of steps
    body                            SLICE or GATHER a step of each sequence, compute the states after it, write rows of
                                    the results (DYNAMIC_UPDATE_SLICE), add 1

Weights are constants of the body. Sequences go round as they are; a row of a result means nothing before its step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kquant.core.program import Operator, Program, Ref
from kquant.core.spec import Encoding
from kquant.targets import Target


@dataclass
class Body:
    """A loop whose step is being written.

    Attributes:
        name: of the layer.
        steps: how many.
        program: its body.
        given: what enters the WHILE, in the order of the body's inputs.
        states: those of the step, before it.
        begin: int32[3], of the row of this step; made where something needs it.
    """

    name: str
    steps: int
    target: Target
    program: Program = field(default_factory=lambda: Program("body"))
    given: list[Ref] = field(default_factory=list[Ref])
    states: list[Ref] = field(default_factory=list[Ref])
    begin: Ref | None = None

    def __post_init__(self) -> None:
        self.number = self._enter(self.program.constant(f"{self.name}/first", np.array([0], np.int32)))

    def step_of(self, sequence: Ref) -> Ref:
        """This step of a sequence: [1, 1, features]."""
        x, program = self._enter(sequence), self.program
        row = program.value(f"{x.name}/step", (1, 1, *x.shape[2:]), x.encoding, x.dtype)
        # Where there is a choice, GATHER: LiteRT takes the shape of a SLICE whose begin is computed for an open one.
        if self.target.supports("GATHER", "int16x8" if x.dtype == "int16" else "int8"):
            return program.emit("GATHER", [x, self.number], row, axis=1, batchDims=0)
        size = program.constant("size", np.array(row.shape, np.int32))
        return program.emit("SLICE", [x, self._begin(), size], row)

    def state(self, name: str, shape: tuple[int, ...], encoding: Encoding | None) -> Ref:
        """A state before the step; zeros before the first."""
        ref = self._enter(_zeros(self.program, f"{name}/zeros", shape, encoding), name)
        self.states.append(ref)
        return ref

    def close(self, outer: Program, after: list[Ref], every: list[tuple[int, str]]) -> tuple[list[Ref], list[Ref]]:
        """Write the WHILE.

        Args:
            outer: the program that it stands in.
            after: the states after the step.
            every: (state, name) of those that are kept for every step.

        Returns:
            The states after the last step, and those of every step, as asked for.
        """
        program, kept = self.program, len(self.given) - len(after)
        results = [self._row_written(outer, after[n], name) for n, name in every]
        one = program.constant("one", np.array([1], np.int32))
        number = program.value(f"{self.name}/next", (1,), None, "int32")
        program.emit("ADD", [self.number, one], number, fusedActivationFunction="NONE")
        program.outputs = [number, *program.inputs[1:kept], *after, *results]
        made = [outer.value(f"{ref.name}/end", ref.shape, ref.encoding, ref.dtype) for ref in program.inputs]
        graphs = {"condSubgraphIndex": self._condition(), "bodySubgraphIndex": program}
        outer.operators.append(Operator("WHILE", list(self.given), made, graphs=graphs))
        last = kept + len(after)
        return made[kept:last], made[last:]

    def _enter(self, given: Ref, name: str | None = None) -> Ref:
        """A further input of the body."""
        ref = self.program.value(name or given.name, given.shape, given.encoding, given.dtype)
        self.given.append(given)
        self.program.inputs.append(ref)
        return ref

    def _begin(self) -> Ref:
        """Where the row of this step begins."""
        if self.begin is None:
            zero = self.program.constant("zero", np.array([0], np.int32))
            self.begin = self.program.value(f"{self.name}/begin", (3,), None, "int32")
            options = {"axis": 0, "fusedActivationFunction": "NONE"}
            self.program.emit("CONCATENATION", [zero, self.number, zero], self.begin, **options)
        return self.begin

    def _row_written(self, outer: Program, row: Ref, name: str) -> Ref:
        """A result with the row of this step in its place."""
        shape = (1, self.steps, *row.shape[2:])
        zeros = _zeros(outer, f"{name}/zero", (1, 1, *row.shape[2:]), row.encoding)
        begun = outer.value(f"{name}/begin", shape, row.encoding, row.dtype)
        outer.emit("BROADCAST_TO", [zeros, outer.constant("shape", np.array(shape, np.int32))], begun)
        before = self._enter(begun, name)
        after = self.program.value(f"{name}/written", shape, row.encoding, row.dtype)
        return self.program.emit("DYNAMIC_UPDATE_SLICE", [before, row, self._begin()], after)

    def _condition(self) -> Program:
        """There is a step left."""
        condition = Program("condition")
        values = [condition.value(ref.name, ref.shape, ref.encoding, ref.dtype) for ref in self.program.inputs]
        go_on = condition.value(f"{self.name}/go_on", (1,), None, "bool")
        condition.inputs, condition.outputs = values, [go_on]
        condition.emit("LESS", [values[0], condition.constant("steps", np.array([self.steps], np.int32))], go_on)
        return condition


def _zeros(program: Program, name: str, shape: tuple[int, ...], encoding: Encoding | None) -> Ref:
    if encoding is None:
        return program.constant(name, np.zeros(shape, np.float32))
    return program.codes(name, np.full(shape, encoding.zero_point[0]), encoding)


def static(t: Any) -> tuple[int, ...]:
    """The shape of a tensor of the model in a file: batch 1."""
    return (1, *t.shape[1:])


def take_products_in(program: Program, target: Target) -> None:
    """Compute a loop's sequences step by step inside of it, where what they are products of is smaller.

    A GRU's sequences are three products of its input. TFLM copies what goes round at each step and keeps it several
    times over; one row of a FULLY_CONNECTED has the same codes alone.

    Args:
        program: tidied; changed in place.
        target: one whose RAM is told (`arena`); elsewhere the products of all steps at once are faster.
    """
    for op in [op for op in program.operators if op.code == "WHILE" and target.arena is not None]:
        for source in {id(p.inputs[0]): p.inputs[0] for p in _products(program, op)}.values():
            products = [p for p in _products(program, op) if p.inputs[0] is source]
            if source is not None and source.size < sum(p.outputs[0].size for p in products):
                _take_in(program, op, source, products)


def _products(program: Program, loop: Operator) -> list[Operator]:
    """The products of whole sequences that nobody but this loop reads."""
    read = [ref for op in program.operators for ref in op.inputs] + list(program.outputs)
    makers = {id(op.outputs[0]): op for op in program.operators if op.code == "FULLY_CONNECTED"}
    made = [makers[id(ref)] for ref in loop.inputs if id(ref) in makers]
    alone = [op for op in made if sum(ref is op.outputs[0] for ref in read) == 1]
    stored = [op for op in alone if all(ref is None or ref.data is not None for ref in op.inputs[1:])]
    return [op for op in stored if len(op.outputs[0].shape) == 3 and op.inputs[0] is not None]


def _take_in(program: Program, loop: Operator, source: Ref, products: list[Operator]) -> None:
    """Let the source of the products go round in their places, and make them of its rows."""
    condition, body = loop.graphs["condSubgraphIndex"], loop.graphs["bodySubgraphIndex"]
    at = [next(i for i, ref in enumerate(loop.inputs) if ref is p.outputs[0]) for p in products]
    inside, told = (part.value(source.name, source.shape, source.encoding, source.dtype) for part in (body, condition))
    row: Ref | None = None
    for place, product in zip(at, products, strict=True):
        picks = next(i for i, op in enumerate(body.operators) if op.inputs[0] is body.inputs[place])
        pick = body.operators[picks]
        made = pick.outputs[0]
        product.outputs = [made]
        if row is None:
            row = body.value(f"{source.name}/step", (1, 1, *source.shape[2:]), source.encoding, source.dtype)
            pick.inputs[0], pick.outputs = inside, [row]
            if pick.code == "SLICE":
                pick.inputs[2] = body.constant("size", np.array(row.shape, np.int32))
            body.operators.insert(picks + 1, product)
        else:
            body.operators[picks] = product
        product.inputs = [row, *product.inputs[1:]]
    ended = program.value(f"{source.name}/end", source.shape, source.encoding, source.dtype)
    lists: list[tuple[list[Any], Ref]] = [(loop.inputs, source), (loop.outputs, ended), (condition.inputs, told)]
    for refs, new in [*lists, (body.inputs, inside), (body.outputs, inside)]:
        refs[at[0]] = new
        for place in sorted(at[1:], reverse=True):
            del refs[place]
    program.operators = [op for op in program.operators if all(op is not p for p in products)]

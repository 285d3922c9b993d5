"""A loop in a file: WHILE, with what stands in its body.

    inputs of condition and body    the number of the step, the sequences, the states, the results so far
    condition                       LESS: the number is below the number of steps
    body                            SLICE or GATHER a step of each sequence, compute the states after it, write rows of
                                    the results (DYNAMIC_UPDATE_SLICE), add 1

Weights are constants of the body. Sequences go round as they are; a row of a result means nothing before its step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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
    program: Program = field(default_factory=lambda: Program("body"))
    given: list[Ref] = field(default_factory=list[Ref])
    states: list[Ref] = field(default_factory=list[Ref])
    begin: Ref | None = None

    def __post_init__(self) -> None:
        self.number = self.enter(self.program.constant(f"{self.name}/first", np.array([0], np.int32)))

    def step_of(self, sequence: Ref, target: Target) -> Ref:
        """This step of a sequence, [1, 1, features], as a target can take it."""
        x, program = self.enter(sequence), self.program
        row = program.value(f"{x.name}/step", (1, 1, *x.shape[2:]), x.encoding, x.dtype)
        # Where there is a choice, GATHER: LiteRT takes the shape of a SLICE whose begin is computed for an open one.
        if target.supports("GATHER", "int16x8" if x.dtype == "int16" else "int8"):
            return program.emit("GATHER", [x, self.number], row, axis=1, batchDims=0)
        size = program.constant("size", np.array(row.shape, np.int32))
        return program.emit("SLICE", [x, self._begin(), size], row)

    def state(self, name: str, shape: tuple[int, ...], encoding: Encoding | None) -> Ref:
        """A state before the step; zeros before the first."""
        ref = self.enter(_zeros(self.program, f"{name}/zeros", shape, encoding), name)
        self.states.append(ref)
        return ref

    def close(self, outer: Program, after: list[Ref], every: list[tuple[Ref, str]]) -> tuple[list[Ref], list[Ref]]:
        """Write the WHILE.

        Args:
            outer: the program that it stands in.
            after: the states after the step.
            every: (row, name) of what is kept for every step, [1, 1, ...] each.

        Returns:
            The states after the last step, and the rows of every step.
        """
        program, kept = self.program, len(self.given) - len(after)
        results = [self._row_written(outer, row, name) for row, name in every]
        one = program.constant("one", np.array([1], np.int32))
        number = program.value(f"{self.name}/next", (1,), None, "int32")
        program.emit("ADD", [self.number, one], number, fusedActivationFunction="NONE")
        program.outputs = [number, *program.inputs[1:kept], *after, *results]
        made = [outer.value(f"{ref.name}/end", ref.shape, ref.encoding, ref.dtype) for ref in program.inputs]
        graphs = {"condSubgraphIndex": self._condition(), "bodySubgraphIndex": program}
        outer.operators.append(Operator("WHILE", list(self.given), made, graphs=graphs))
        last = kept + len(after)
        return made[kept:last], made[last:]

    def enter(self, given: Ref, name: str | None = None) -> Ref:
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
        before = self.enter(begun, name)
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

"""Two homes for the states of a stream: inputs and outputs that the application copies, or variables.

Variables are VAR_HANDLE, READ_VARIABLE and ASSIGN_VARIABLE. LiteRT wants them assigned before they are read, so a
CALL_ONCE runs a subgraph that assigns the initial codes; TFLM fills a new variable with the zero point of what is first
assigned to it and takes the CALL_ONCE too (sources: tflite/core/subgraph and kernels/read_variable.cc of LiteRT,
micro/micro_resource_variable.cc of TFLM).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from kquant.core.program import Operator, Program, Ref

if TYPE_CHECKING:  # every export takes `States`, and few are of streams
    from kquant.tflite.streaming import State, Streamed

States = Literal["io", "variables"]


def keep_states(streamed: Streamed, states: States) -> None:
    """Give the states of a streaming program a home.

    Args:
        streamed: its program is completed in place.
        states: "io" adds an input and an output for each state, behind those of the frames; "variables" adds none.
    """
    program = streamed.program
    _distinct(streamed.states)
    if states == "io":
        program.inputs += [state.read for state in streamed.states]
        program.outputs += [state.written for state in streamed.states]
        return
    if not streamed.states:
        return
    initial = Program("once")
    reads: list[Operator] = []
    writes: list[Operator] = []
    for state in streamed.states:
        handle = _handle(program, state)
        reads += [handle, Operator("READ_VARIABLE", [handle.outputs[0]], [state.read])]
        writes.append(Operator("ASSIGN_VARIABLE", [handle.outputs[0], state.written], []))
        _initial(initial, state)
    once = Operator("CALL_ONCE", [], [], graphs={"initSubgraphIndex": initial})
    # Reads first and writes last, so that all operators of a call see the states as they were before it.
    program.operators = [once, *reads, *program.operators, *writes]


def _distinct(states: list[State]) -> None:
    """Two states of a layer must not become one variable."""
    taken: dict[str, int] = {}
    for state in states:
        n = taken[state.read.name] = taken.get(state.read.name, -1) + 1
        if n:
            state.read.name, state.written.name = f"{state.read.name}_{n}", f"{state.written.name}_{n}"


def _handle(program: Program, state: State) -> Operator:
    """VAR_HANDLE: the variable by name."""
    handle = Ref(f"{state.read.name}/handle", (), "resource")
    return Operator("VAR_HANDLE", [], [handle], {"container": "", "sharedName": state.read.name})


def _initial(once: Program, state: State) -> None:
    """Assign the initial codes."""
    handle = _handle(once, state)
    codes = np.full(state.read.shape, state.code, np.dtype(state.read.dtype))
    value = Ref(f"{state.read.name}/initial", codes.shape, str(codes.dtype), state.read.encoding, codes)
    once.operators += [handle, Operator("ASSIGN_VARIABLE", [handle.outputs[0], value], [])]

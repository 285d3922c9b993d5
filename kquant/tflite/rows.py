"""A matrix product reads its input as rows, whatever its shape: a RESHAPE in front of it moves nothing, and goes.

    x [1, 8, 8, 64] -> RESHAPE [1, 4096] -> FULLY_CONNECTED    =>    x [1, 8, 8, 64] -> FULLY_CONNECTED

The codes are the same; an operator, a tensor, and a copy of what is read are not there. Only where the target's kernels
do so (`any_shape`), and in the last step before bytes: a stream has to know which axis is time.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from kquant.core.program import Operator, Program, Ref
from kquant.targets import Target


def read_as_rows(program: Program, target: Target) -> Program:
    """The program without RESHAPEs that nobody but such operators reads; the given one stays as it was.

    Args:
        program: tidied.
        target: whose operators say `any_shape`.
    """
    able = {code for code, known in target.ops.items() if known.any_shape}
    readers: dict[int, list[Operator]] = defaultdict(list)
    for op in program.operators:
        for ref in op.inputs:
            if ref is not None:
                readers[id(ref)].append(op)
    given_out = {id(ref) for ref in program.outputs}
    sources: dict[int, Ref | None] = {}
    for op in program.operators:
        made = op.outputs[0] if op.code == "RESHAPE" else None
        if made is None or id(made) in given_out or not all(_flattens(r, made, able) for r in readers[id(made)]):
            continue
        sources[id(made)] = op.inputs[0]
    operators = [
        replace(op, inputs=[sources.get(id(ref), ref) for ref in op.inputs])
        for op in program.operators
        if not (op.code == "RESHAPE" and id(op.outputs[0]) in sources)
    ]
    return replace(program, operators=operators) if sources else program


def _flattens(reader: Operator, made: Ref, able: set[str]) -> bool:
    """Whether an operator reads a tensor as rows, and writes the same shape whatever that of the tensor."""
    data, *others = reader.inputs
    keeps = bool(reader.options.get("keepNumDims"))
    return reader.code in able and data is made and all(ref is not made for ref in others) and not keeps

"""Sums and products with what leaves every code as it is: a branch of zeros, a gate of ones.

ADD, SUB, MUL where one operand holds one code in each channel, whatever the input is, and the kernel then writes the
code that it was given by the other one: for all codes that this one can hold, on every runtime. Its readers read that
operand in its place, and what made the constant is read by nobody.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kquant.core.program import Operator, Program, Ref
from kquant.exact.spans import Span, grids_alike, runs_of, spans_of, whole

# Operators by which of their operands may be the one that stays.
CODES = {"ADD": (0, 1), "MUL": (0, 1), "SUB": (0,)}
MOST_TRIED = 1 << 20  # pairs of codes of one operator


def take_neutral(program: Program) -> int:
    """Take them out.

    Args:
        program: with the ranges that the model has; changed in place. Its inputs and outputs stay tensors of their own.

    Returns:
        How many operators went.
    """
    spans, ends = spans_of(program), {id(ref) for ref in program.outputs}
    instead: dict[int, Ref] = {}
    staying: list[Operator] = []
    for op in program.operators:
        op.inputs = [ref if ref is None else instead.get(id(ref), ref) for ref in op.inputs]
        source = None if op.code not in CODES or id(op.outputs[0]) in ends else _staying(op, spans)
        if source is None:
            staying.append(op)
        else:
            instead[id(op.outputs[0])] = source
    program.operators = staying
    return len(instead)


def _staying(op: Operator, spans: Mapping[int, Span]) -> Ref | None:
    """The operand whose codes the operator writes."""
    for place in CODES[op.code]:
        source, other = op.inputs[place], op.inputs[1 - place]
        if source is None or other is None or source.data is not None or source.shape != op.outputs[0].shape:
            continue
        given = [spans.get(id(ref)) if ref.data is None else whole(ref) for ref in (source, other)]
        if source.dtype == op.outputs[0].dtype and _gives_back(op, place, given):
            return source
    return None


def _gives_back(op: Operator, place: int, given: list[Span | None]) -> bool:
    """The kernel, on every code that the one operand can hold, and those of the other."""
    source, other = given
    operand = op.inputs[place]
    if operand is None or source is None or other is None or not other.constant.all():
        return False
    if not grids_alike(operand, op.outputs[0]):
        return False
    codes, held = np.arange(source.low.min(), source.high.max() + 1), np.unique(other.low)
    if codes.size * held.size > MOST_TRIED:
        return False
    pairs = np.meshgrid(codes, held)
    activation = op.options.get("fusedActivationFunction")
    made = runs_of(op, op.inputs, pairs[:: -1 if place else 1], activation=None if activation == "NONE" else activation)
    return all(np.array_equal(run, pairs[0]) for run in made)

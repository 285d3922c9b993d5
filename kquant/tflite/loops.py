"""Loops of a model as WHILE: the ports of an opened graph become inputs and outputs of the body (`ops.loop_body`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from kquant.core.program import Operator, Program, Ref
from kquant.targets import Target


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

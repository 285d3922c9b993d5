"""The subgraphs of a file: a program, and those that its operators run (the condition and body of a WHILE)."""

from __future__ import annotations

from collections.abc import Iterator

from kquant.core.program import Program


def subgraphs(program: Program) -> Iterator[Program]:
    """The program itself and those that its operators run, at any depth, in the order of the file."""
    yield program
    for op in program.operators:
        for inner in op.graphs.values():
            yield from subgraphs(inner)


def distinct_names(program: Program) -> None:
    """Number the tensors that share a name, in the order of the file; a shared layer makes several.

    Args:
        program: with all that it runs; its tensors are renamed in place.
    """
    taken: set[str] = set()
    seen: set[int] = set()
    for part in subgraphs(program):
        # inputs first, outputs last: the user's names stay where they can, and helpers get the numbers
        used = [ref for op in part.operators for ref in (*op.inputs, *op.outputs) if ref is not None]
        for ref in (*part.inputs, *used, *part.outputs):
            if id(ref) in seen:
                continue
            seen.add(id(ref))
            wanted, n = ref.name, 1
            while ref.name in taken:
                ref.name = f"{wanted}_{n}"
                n += 1
            taken.add(ref.name)

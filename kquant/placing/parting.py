"""The parts of a graph that an accelerator takes: sets of operators that run without the processor in between.

LiteRT goes through the operators in order, again and again: a part takes all of one kind whose inputs are there, then
the other kind's turn comes. So operators on a branch of their own join a part although others stand between them in the
file (tflite/graph_info.cc, PartitionGraphIntoIndependentNodeSubsets, greedily, of f674577).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Step:
    """One operator: the tensors that it reads and writes, by any number that tells them apart."""

    reads: tuple[int, ...]
    writes: tuple[int, ...]


def parts_of(steps: Sequence[Step], taken: Sequence[bool]) -> list[list[int]]:
    """The operators of each part, by their numbers.

    Args:
        steps: in the order of the file.
        taken: of each, whether the accelerator takes it.

    Example:
        >>> chain = [Step((0,), (1,)), Step((1,), (2,)), Step((2,), (3,))]
        >>> parts_of(chain, [True, False, True]), parts_of(chain, [True, True, True])
        ([[0], [2]], [[0, 1, 2]])
    """
    # what no operator writes, inputs of the model, is there from the start
    made = {tensor for step in steps for tensor in step.writes}
    left, parts = list(range(len(steps))), list[list[int]]()
    while left:
        kind, part = None, list[int]()
        grown = True
        while grown:
            grown = False
            for number in list(left):
                ready = not any(tensor in made for tensor in steps[number].reads)
                # the first operator that is ready says whose turn it is
                if ready and kind in (None, taken[number]):
                    kind, grown = taken[number], True
                    part.append(number)
                    left.remove(number)
                    made -= set(steps[number].writes)
        if not part:
            raise ValueError("parts_of: an operator reads what none before it writes; the operators are not in order.")
        # turns of the processor make no part; they are taken for what they leave to the next one
        if kind:
            parts.append(part)
    return parts


def running(
    steps: Sequence[Step], taken: Sequence[bool], cuts: Literal["graph", "rest", "nothing"], most: int | None
) -> tuple[list[list[int]], set[int]]:
    """The parts that an accelerator is offered, and the operators that it runs in the end.

    Args:
        steps: in the order of the file.
        taken: of each, whether the accelerator takes it.
        cuts: what an operator that it leaves does to the others, see `kquant.targets.accelerator.Accelerator`.
        most: parts that it runs, the largest first.

    Example:
        >>> chain = [Step((n,), (n + 1,)) for n in range(4)]
        >>> running(chain, [True, False, True, True], "graph", 1)
        ([[0], [2, 3]], {2, 3})
        >>> running(chain, [True, False, True, True], "rest", None)[1]
        {0}
    """
    if cuts == "nothing":
        return [], {number for number, took in enumerate(taken) if took}
    parts = parts_of(steps, taken)
    if cuts == "rest":
        first = next((number for number, took in enumerate(taken) if not took), len(steps))
        return parts, set(range(first))
    # of parts of one length the earlier one is kept, as `sorted` is stable
    kept = sorted(parts, key=len, reverse=True)[:most]
    return parts, {number for part in kept for number in part}


def between(steps: Sequence[Step], taken: Sequence[bool]) -> list[int]:
    """The operators that are left although the accelerator takes one that leads to them, and one that they lead to.

    Example:
        >>> chain = [Step((n,), (n + 1,)) for n in range(4)]
        >>> between(chain, [False, True, False, True])
        [2]
    """
    return sorted(_led(steps, taken, True) & _led(steps, taken, False) - {n for n, took in enumerate(taken) if took})


def _led(steps: Sequence[Step], taken: Sequence[bool], forward: bool) -> set[int]:
    """The operators with a taken one before them, or behind them where not `forward`."""
    reached, tensors = set[int](), set[int]()
    numbers = range(len(steps)) if forward else reversed(range(len(steps)))
    for number in numbers:
        step = steps[number]
        ins, outs = (step.reads, step.writes) if forward else (step.writes, step.reads)
        if any(tensor in tensors for tensor in ins):
            reached.add(number)
        # operators that are left hand it on: a taken one may be any number of them away
        if taken[number] or number in reached:
            tensors.update(outs)
    return reached

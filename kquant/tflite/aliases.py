"""Keep tensors apart that an interpreter would lay over each other, though one of them is still read.

LiteRT computes some operators over their input where nobody else reads it, and gives the output of a RESHAPE the memory
of its source. Who else reads is counted for each tensor by itself and for the first tensor in that memory, not for the
ones between: where a sum lies over its input, and the sum is read by a RESHAPE and by something later, an operator
behind the RESHAPE is computed over what is still to be read (LiteRT 2.3, `ArenaPlanner::IdentifyInPlaceTensors`).

    sum -> RESHAPE a -> MUL          sum -> RESHAPE a -> MUL
        -> RESHAPE b -> MUL    =>               a -> RESHAPE b -> MUL
        -> later reader                                     b -> RESHAPE c -> later reader

In a chain every RESHAPE but the last is read twice, so that nothing is computed over it, and the last one is read last.
A RESHAPE moves no data there.
"""

from __future__ import annotations

import numpy as np

from kquant.core.program import Operator, Program, Ref
from kquant.targets import Target
from kquant.tflite.subgraphs import distinct_names, subgraphs


def keep_apart(program: Program, target: Target) -> None:
    """Chain the RESHAPEs of one tensor, where the target's interpreter needs it.

    Args:
        program: tidied; changed in place.
        target: whose operators say `in_place`.
    """
    in_place = {code for code, known in target.ops.items() if known.in_place}
    for part in subgraphs(program):
        for producer in list(part.operators):
            if producer.code in in_place:
                _chain(part, producer, in_place)
    distinct_names(program)


def _chain(program: Program, producer: Operator, in_place: set[str]) -> None:
    """The RESHAPEs of what `producer` writes, one behind the other in the order in which they are last read."""
    # An output of the model gets memory of its own there (`InputTensorCanBeShared`), a RESHAPE that is one as well.
    source, ends = producer.outputs[0], {id(ref) for ref in program.outputs}
    views = [
        op
        for op in program.operators
        if op.code == "RESHAPE" and op.inputs[0] is source and id(op.outputs[0]) not in ends
    ]
    shared = [view for view in views if _computed_over(program, view.outputs[0], in_place)]
    # Nothing is lost where the source is an output, as that counts as one more reader for each check; where no view is
    # computed over; or where a single reader is all there is.
    if id(source) in ends or not shared or len(_readers(program, source)) < 2:
        return
    views.sort(key=lambda view: max(_readers(program, view.outputs[0]), default=-1))
    # All of them right behind the producer: each reads the one before it, and none may come after its own readers.
    program.operators = [op for op in program.operators if all(op is not view for view in views)]
    at = next(i for i, op in enumerate(program.operators) if op is producer) + 1
    program.operators[at:at] = views
    for before, view in zip(views, views[1:], strict=False):
        view.inputs[0] = before.outputs[0]
    # The last of the chain is read once, so it is computed over after all; that must not come before a late reader.
    if _computed_over(program, views[-1].outputs[0], in_place):
        _read_again(program, source, views[-1], at + len(views))


def _read_again(program: Program, source: Ref, last: Operator, at: int) -> None:
    """Who reads the source itself later than the last view is read, reads it from one view more."""
    seen = max(_readers(program, last.outputs[0]))
    late = [op for op in program.operators[seen + 1 :] if any(ref is source for ref in op.inputs)]
    if not late:
        return
    again = Ref(f"{source.name}/again", source.shape, source.dtype, source.encoding)
    shape = Ref("shape", (len(source.shape),), "int32", data=np.array(source.shape, np.int32))
    view = Operator("RESHAPE", [last.outputs[0], shape], [again], {"newShape": list(source.shape)})
    program.operators.insert(at, view)
    for op in late:
        op.inputs = [again if ref is source else ref for ref in op.inputs]


def _readers(program: Program, ref: Ref) -> list[int]:
    """Numbers of the operators that read a tensor, each as often as it does."""
    return [i for i, op in enumerate(program.operators) for given in op.inputs if given is ref]


def _computed_over(program: Program, ref: Ref, in_place: set[str]) -> bool:
    """Read once, by an operator that may write over it."""
    readers = _readers(program, ref)
    return len(readers) == 1 and program.operators[readers[0]].code in in_place

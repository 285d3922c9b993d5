"""Tidy a program: what costs bytes or time and computes nothing goes.

RESHAPE of RESHAPE     one RESHAPE
RESHAPE to same shape  nothing
two RESHAPEs alike     one
RESHAPEs in a chain    one before and one behind (`planes`)
PAD + VALID conv       SAME conv, where TFLite's SAME pads exactly those pixels
float op, then RELU    the operator with its activation (integers were fused when they were quantized)
dead operators         nothing
CONCATENATION of many  several, where the target takes only so many inputs
bias of zeros          none, where the target's kernel does without
RELU6 of tiny steps    RELU, whose bound kernels need no number for
"""

from __future__ import annotations

import numpy as np

from kquant.core.operators import facts
from kquant.core.program import Operator, Program, Ref
from kquant.targets import Target
from kquant.tflite.planes import stay_in_four_dimensions

# Fused activation -> its bound, and what does the same where no code reaches that.
BOUNDS = {"RELU6": (6.0, "RELU"), "RELU_N1_TO_1": (1.0, "NONE")}
MOST_STEPS = 2.0**30  # kernels refuse a bound that int32 does not hold (kernel_util.cc, Quantize)


def tidy(program: Program, target: Target) -> Program:
    """Apply every pass, until none changes anything; what operators run is tidied first."""
    for op in program.operators:
        for inner in op.graphs.values():
            tidy(inner, target)
    _split_concatenations(program, target)
    _drop_zero_biases(program, target)
    _drop_far_bounds(program)
    passes = (_merge_reshapes, _drop_empty_reshapes, _share_reshapes, _fold_padding, _fuse_relus, _drop_dead)
    # A list, not a generator: every pass has its turn in every round.
    while any([change(program) for change in passes]):
        pass
    # That leaves RESHAPEs that meet and operators that nobody reads, so all passes go once more.
    stay_in_four_dimensions(program)
    while any([change(program) for change in passes]):
        pass
    return program


def _producers(program: Program) -> dict[int, Operator]:
    return {id(ref): op for op in program.operators for ref in op.outputs}


def _readers(program: Program) -> dict[int, int]:
    counts: dict[int, int] = {}
    for op in program.operators:
        for ref in op.inputs:
            if ref is not None:
                counts[id(ref)] = counts.get(id(ref), 0) + 1
    for ref in program.outputs:
        counts[id(ref)] = counts.get(id(ref), 0) + 1
    return counts


def _merge_reshapes(program: Program) -> bool:
    """A RESHAPE reads the source of the RESHAPE before it."""
    producers, changed = _producers(program), False
    for op in program.operators:
        before = producers.get(id(op.inputs[0])) if op.code == "RESHAPE" else None
        if before is not None and before.code == "RESHAPE":
            op.inputs[0] = before.inputs[0]
            changed = True
    return changed


def _drop_empty_reshapes(program: Program) -> bool:
    """Readers of a RESHAPE that changes nothing read its source."""
    outputs = {id(ref) for ref in program.outputs}
    for op in program.operators:
        if op.code != "RESHAPE" or op.inputs[0] is None or op.inputs[0].shape != op.outputs[0].shape:
            continue
        source, result = op.inputs[0], op.outputs[0]
        if id(result) in outputs and (id(source) in outputs or any(source is ref for ref in program.inputs)):
            continue  # a model output must be a tensor of its own
        # The application asks for the name of the output.
        if id(result) in outputs:
            source.name = result.name
        program.operators.remove(op)
        _redirect(program, result, source)
        return True
    return False


def _share_reshapes(program: Program) -> bool:
    """Two RESHAPEs of one tensor to one shape are one; `aliases` keeps apart what two to different shapes are."""
    outputs = {id(ref) for ref in program.outputs}
    first: dict[tuple[int, tuple[int, ...]], Ref] = {}
    for op in program.operators:
        if op.code != "RESHAPE" or id(op.outputs[0]) in outputs:
            continue
        known = first.setdefault((id(op.inputs[0]), tuple(op.outputs[0].shape)), op.outputs[0])
        if known is not op.outputs[0]:
            program.operators.remove(op)
            _redirect(program, op.outputs[0], known)
            # The list that the loop runs over has changed; `tidy` comes back for the rest.
            return True
    return False


def _redirect(program: Program, old: Ref, new: Ref) -> None:
    for op in program.operators:
        op.inputs = [new if ref is old else ref for ref in op.inputs]
    program.outputs = [new if ref is old else ref for ref in program.outputs]


def _fold_padding(program: Program) -> bool:
    """PAD in front of a VALID convolution that pads as SAME would."""
    producers, readers = _producers(program), _readers(program)
    for op in program.operators:
        if op.code not in ("CONV_2D", "DEPTHWISE_CONV_2D") or op.options["padding"] != "VALID":
            continue
        x = op.inputs[0]
        pad = producers.get(id(x))
        if x is None or pad is None or pad.code != "PAD" or readers[id(x)] != 1 or not _pads_as_same(op, pad):
            continue
        op.inputs[0] = pad.inputs[0]
        op.options["padding"] = "SAME"
        return True
    return False


def _drop_far_bounds(program: Program) -> None:
    """Fused bounds that lie billions of steps above the highest code."""
    for op in program.operators:
        activation, encoding = op.options.get("fusedActivationFunction"), op.outputs[0].encoding
        if activation in BOUNDS and encoding is not None:
            bound, other = BOUNDS[activation]
            if bound / float(encoding.scale[0]) >= MOST_STEPS:
                op.options["fusedActivationFunction"] = other


def _fuse_relus(program: Program) -> bool:
    """RELU and RELU6 of a float tensor that nobody else reads."""
    producers, readers = _producers(program), _readers(program)
    for op in program.operators:
        before = producers.get(id(op.inputs[0])) if op.code in ("RELU", "RELU6") else None
        if before is None or before.outputs[0].dtype != "float32" or readers[id(before.outputs[0])] != 1:
            continue
        # CONCATENATION has the field, and kernels that refuse anything but NONE in it (concatenation.cc, Prepare).
        # of weights in blocks LiteRT's kernel without XNNPACK leaves it out
        in_blocks = any(ref is not None and ref.block_scales is not None for ref in before.inputs)
        if before.options.get("fusedActivationFunction") == "NONE" and before.code != "CONCATENATION" and not in_blocks:
            before.options["fusedActivationFunction"] = op.code
            before.outputs[0] = op.outputs[0]
            program.operators.remove(op)
            return True
    return False


def _pads_as_same(op: Operator, pad: Operator) -> bool:
    """SAME: `out = ceil(in / stride)`, `total = max((out - 1) * stride + reach - in, 0)`, `total // 2` of it first."""
    source, weights, result, paddings = pad.inputs[0], op.inputs[1], op.outputs[0], pad.inputs[1]
    if source is None or weights is None or paddings is None or paddings.data is None:
        return False
    # SAME pads neither samples nor channels.
    if np.any(paddings.data[[0, 3]]):
        return False
    for axis, letter in ((1, "H"), (2, "W")):
        stride, dilation = op.options[f"stride{letter}"], op.options[f"dilation{letter}Factor"]
        reach = (weights.shape[axis] - 1) * dilation + 1
        out = -(-source.shape[axis] // stride)
        total = max((out - 1) * stride + reach - source.shape[axis], 0)
        if out != result.shape[axis] or int(paddings.data[axis][0]) != total // 2:
            return False
    return True


def _split_concatenations(program: Program, target: Target) -> None:
    """No more inputs than the target takes: parts first, then their concatenation, all in the same encoding."""
    known = target.ops.get("CONCATENATION")
    limit = known.max_inputs if known is not None else None
    written: list[Operator] = []
    for op in program.operators:
        # Again, until the parts themselves are few enough.
        while limit is not None and op.code == "CONCATENATION" and len(op.inputs) > limit:
            parts = [op.inputs[i : i + limit] for i in range(0, len(op.inputs), limit)]
            for i, part in enumerate(parts):
                if len(part) > 1:
                    made = _part(part, op, i)
                    written.append(Operator(op.code, part, [made], dict(op.options)))
                    parts[i] = [made]
            op.inputs = [ref for part in parts for ref in part]
        written.append(op)
    program.operators = written


def _part(inputs: list[Ref | None], op: Operator, number: int) -> Ref:
    """The tensor that a part of a concatenation makes."""
    output = op.outputs[0]
    axis: int = op.options["axis"]
    shape = list(output.shape)
    shape[axis] = sum(ref.shape[axis] for ref in inputs if ref is not None)
    return Ref(f"{output.name}/part{number}", tuple(shape), output.dtype, output.encoding)


def _drop_zero_biases(program: Program, target: Target) -> None:
    """A bias that adds nothing, where the kernel adds none for a missing input: 12 bytes a channel."""
    for op in program.operators:
        at, known = facts(op.code).bias, target.ops.get(op.code)
        if at is None or known is None or len(op.inputs) <= at or op.type not in known.optional_bias:
            continue
        bias = op.inputs[at]
        if bias is not None and bias.data is not None and not np.any(bias.data):
            # A bias is the last input, so that no other one changes its number.
            del op.inputs[at]


def _drop_dead(program: Program) -> bool:
    """Operators that nobody reads."""
    readers = _readers(program)
    alive = [op for op in program.operators if any(readers.get(id(ref)) for ref in op.outputs)]
    changed = len(alive) != len(program.operators)
    program.operators = alive
    return changed

"""Types at the edges of a file: what the application feeds and reads, where the model computes in another one."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np

from kquant.core.program import Operator, Program, Ref
from kquant.core.spec import Encoding, QuantSpec

IO = Literal["model", "int8", "uint8", "int16", "float32"]


def check_io(who: str, io: Any) -> None:
    """Refuse a type that no edge has.

    Args:
        who: the verb that errors name.
        io: what its caller gave.

    Raises:
        ValueError: naming those that there are.
    """
    if io not in get_args(IO):
        raise ValueError(f"{who}: io must be one of {', '.join(map(repr, get_args(IO)))}. Received: {io!r}.")


def cast_edges(program: Program, io: IO, outputs: bool = True) -> None:
    """Casts at the edges, where the type outside is not the one inside.

    Args:
        program: of the file; it is changed.
        io: type of the inputs and outputs that have codes; "model" changes nothing.
        outputs: False where these stay as they are.
    """
    if io == "model":
        return
    # The application keeps the names of the model's inputs and outputs; the tensors inside get their type behind it.
    for i, inner in enumerate(program.inputs):
        if inner.encoding is None or inner.dtype == io:
            continue
        outer = _outer(program, inner, io)
        program.operators[:0] = _cast(program, outer, inner)
        inner.name, outer.name = f"{inner.name}/{inner.dtype}", inner.name
        program.inputs[i] = outer
    for i, inner in enumerate(program.outputs if outputs else ()):
        if inner.encoding is None or inner.dtype == io:
            continue
        outer = _outer(program, inner, io)
        program.operators += _cast(program, inner, outer)
        inner.name, outer.name = f"{inner.name}/{inner.dtype}", inner.name
        program.outputs[i] = outer


def _cast(program: Program, source: Ref, result: Ref) -> list[Operator]:
    """From one type to another; there is no kernel between uint8 and int16, so int8 stands between them."""
    if {source.dtype, result.dtype} != {"uint8", "int16"}:
        return [Operator("DEQUANTIZE" if result.dtype == "float32" else "QUANTIZE", [source], [result])]
    unsigned = source if source.dtype == "uint8" else result
    between = _outer(program, unsigned, "int8")
    between.name = f"{result.name}/signed"
    return [Operator("QUANTIZE", [source], [between]), Operator("QUANTIZE", [between], [result])]


def _outer(program: Program, inner: Ref, io: IO) -> Ref:
    if io == "float32" or inner.encoding is None:
        return program.value(inner.name, inner.shape, None, "float32")
    narrow, wide = QuantSpec(8, inner.encoding.spec.symmetric), QuantSpec(16, symmetric=True)
    if io == "int16":  # the largest real number of the 8-bit grid becomes the last code
        low, high = inner.encoding.dequantize(np.array([-128, 127]))
        scale = np.array([max(-low, high) / wide.high], np.float32)
        return program.value(inner.name, inner.shape, Encoding(scale, np.array([0], np.int64), wide))
    # The same real numbers: uint8 is int8 with all codes raised by 128, and int8 for int16 has coarser steps.
    scale, zero_point = inner.encoding.scale, inner.encoding.zero_point
    if inner.dtype == "int16":
        scale = np.asarray(scale * (wide.high / narrow.high), np.float32)
    shift = {"uint8": 128, "int8": -128 if inner.dtype == "uint8" else 0}[io]
    return program.value(inner.name, inner.shape, Encoding(scale, zero_point + shift, narrow), io)

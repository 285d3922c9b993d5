"""Operators whose codes are there already: what goes, and what only looks like it."""

from __future__ import annotations

import numpy as np
import pytest

from kquant import targets
from kquant.core.program import Program, Ref
from kquant.core.spec import Encoding, QuantSpec
from kquant.exact.simplify import simplify
from kquant.runtime.running import available, probe
from kquant.tflite.flatbuffer import to_bytes

SHAPE = (1, 4, 4, 3)
POOL = {"strideH": 1, "strideW": 1, "filterHeight": 1, "filterWidth": 1, "padding": "VALID"}


def grid(scale: float, zero: int = 0) -> Encoding:
    return Encoding(np.float32([scale]), np.int64([zero]), QuantSpec())


def begun() -> tuple[Program, Ref]:
    program = Program("p")
    x = program.value("x", SHAPE, grid(0.1, 5))
    program.inputs.append(x)
    return program, program.emit("TANH", [x], program.value("tanh", SHAPE, grid(1 / 128)))


def ended(program: Program, *read: Ref) -> None:
    """Each is added to the first, and that is the output."""
    total = read[0]
    for n, ref in enumerate(read[1:]):
        made = program.value(f"sum{n}", SHAPE, grid(0.03, n))
        total = program.emit("ADD", [total, ref], made, fusedActivationFunction="NONE")
    program.outputs.append(total)


def there_and_back(middle: float) -> Program:
    program, y = begun()
    other = program.emit("QUANTIZE", [y], program.value("other", SHAPE, grid(middle)))
    ended(program, y, program.emit("QUANTIZE", [other], program.value("back", SHAPE, y.grid)))
    return program


def idle() -> Program:
    """A QUANTIZE to the same grid, a pool of one position, a CONCATENATION of one operand."""
    program, y = begun()
    same = program.emit("QUANTIZE", [y], program.value("same", SHAPE, y.grid))
    pool = program.value("pool", SHAPE, y.grid)
    pool = program.emit("MAX_POOL_2D", [same], pool, fusedActivationFunction="NONE", **POOL)
    one = program.value("one", SHAPE, y.grid)
    ended(program, y, program.emit("CONCATENATION", [pool], one, axis=3, fusedActivationFunction="NONE"))
    return program


def twice(second: float) -> Program:
    """The same constant is added two times, to one scale or to two."""
    program, y = begun()
    made = []
    for n, scale in enumerate((0.05, second)):
        by = program.codes(f"by{n}", np.full((1, 1, 1, 3), 7), grid(0.01))
        value = program.value(f"more{n}", SHAPE, grid(scale))
        made.append(program.emit("ADD", [y, by], value, fusedActivationFunction="NONE"))
    ended(program, *made)
    return program


CASES = {
    "back from the same scale": (lambda: there_and_back(1 / 128), 2),
    "back from a coarser scale": (lambda: there_and_back(1 / 64), 0),
    "idle": (idle, 3),
    "twice": (lambda: twice(0.05), 1),
    "to other scales": (lambda: twice(0.06), 0),
}


@pytest.mark.parametrize("name", CASES)
def test_what_goes_changes_no_code(name: str) -> None:
    build, count = CASES[name]
    whole, small = build(), build()
    assert simplify(small) == count
    files = [to_bytes(program, targets.load("tflm"), {}) for program in (whole, small)]
    codes = np.random.default_rng(0).integers(-128, 128, (20, *SHAPE[1:])).astype("int8")
    for runtime in {"litert-reference", "tflm"} & set(available()):
        a, b = (probe(content, runtime, [codes])[0] for content in files)
        np.testing.assert_array_equal(a, b)


def test_outputs_stay_tensors_of_their_own() -> None:
    program, y = begun()
    same = program.emit("QUANTIZE", [y], program.value("same", SHAPE, y.grid))
    program.outputs += [y, same]
    assert simplify(program) == 0


def test_a_grid_where_codes_meet_is_no_way_back() -> None:
    """Ends that saturate are told from the table, not from the scales: zero point 100 cuts the highest codes off."""
    program, y = begun()
    other = program.emit("QUANTIZE", [y], program.value("other", SHAPE, grid(1 / 128, 100)))
    ended(program, y, program.emit("QUANTIZE", [other], program.value("back", SHAPE, y.grid)))
    assert simplify(program) == 0

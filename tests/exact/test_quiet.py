"""Bounds on what a channel adds, held against TFLM and LiteRT: no input moves a code further."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_unread import GRID, kernels, pair, stored

from kquant import targets
from kquant.core.program import Operator, Program
from kquant.exact.quiet import Quiet, quiet_channels
from kquant.exact.spans import spans_of
from kquant.runtime.running import available, probe
from kquant.tflite.flatbuffer import to_bytes

TFLM = targets.load("tflm")
UNIT = 0.1 * 0.01 / 0.1  # codes of an output that a unit of a sum is worth, in `pair`


def always(op: Operator) -> bool:
    return True


def silenced(program: Program, found: tuple[Quiet, ...]) -> Program:
    """The program with zeros where those channels are read."""
    operators = []
    for op in program.operators:
        data = np.array(op.inputs[1].data)
        for name, channel in (read for quiet in found for read in quiet.reads):
            if name == op.inputs[1].name:
                data[..., channel] = 0
        operators.append(replace(op, inputs=[op.inputs[0], replace(op.inputs[1], data=data), *op.inputs[2:]]))
    return replace(program, operators=operators)


def moved(program: Program, found: tuple[Quiet, ...], runtime: str) -> int:
    """By how many codes an output differs, at most, over random inputs and the extremes."""
    rng = np.random.default_rng(1)
    shape = program.inputs[0].shape[1:]
    x = np.concatenate([rng.integers(-128, 128, (200, *shape)), rng.choice([-128, 127], (200, *shape))]).astype(np.int8)
    a, b = (probe(to_bytes(p, TFLM, {}), runtime, [x])[0].astype(int) for p in (program, silenced(program, found)))
    return int(np.abs(a - b).max())


def test_the_bound_is_the_formula() -> None:
    first, second = kernels(3, 2), np.zeros((2, 1, 1, 3), int)
    second[0, 0, 0] = [100, -2, 0]
    second[1, 0, 0] = [-90, 1, 3]
    program, _ = pair(first, second, np.zeros(3))
    found = {q.reads[0][1]: q for q in quiet_channels(program, always, np.inf)}
    # behind the ReLU codes lie between real 0, which is -10, and what the first kernel's sums reach
    assert sorted(found) == [0, 1, 2] and all(q.channels == 1 for q in found.values())
    reach = [found[channel].codes / weight / UNIT for channel, weight in ((0, 100), (1, 2), (2, 3))]
    program, _ = pair(first, np.eye(3, dtype=int).reshape(3, 1, 1, 3), np.zeros(3))
    span = spans_of(program)[id(program.operators[0].outputs[0])]
    np.testing.assert_allclose(reach, span.high - GRID.zero_point[0], rtol=1e-6)
    assert list(span.low) == [-10] * 3


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
@pytest.mark.parametrize("runtime", sorted({"tflm", "litert-reference"} & set(available())))
def test_below_half_a_code_no_code_moves_by_more_than_one(padding: str, runtime: str) -> None:
    rng = np.random.default_rng(3)
    second = rng.integers(-100, 100, (4, 3, 3, 6))
    second[..., 1:5] = 0
    for channel in range(1, 5):
        second[:, 1, channel % 3, channel] = rng.choice([-1, 1], 4)
    # each unit is a hundredth of a code, 137 steps of an input more than one: a tenth of that scale
    program, last = pair(kernels(6, 2), second, rng.integers(-40, 40, 6) * 10, padding)
    fine = replace(GRID, scale=np.float32([1.3]))
    last.outputs[0].encoding = fine
    found = quiet_channels(program, always, 0.5)
    assert {channel for q in found for _, channel in q.reads} <= {1, 2, 3, 4} and len(found) in (2, 3, 4)
    # together they stay below: four of them would not
    assert sum(q.codes for q in found) < 0.5 <= sum(q.codes for q in found) + found[-1].codes or len(found) == 4
    assert moved(program, found, runtime) <= 1
    assert moved(program, (Quiet(0.0, (("second/kernel", 0),), 1),), runtime) > 1  # the check can fail


def test_what_somebody_else_needs_stays() -> None:
    first, second = kernels(3, 2), kernels(2, 3)
    second[..., 0] = 0
    second[0, 0, 0, 0] = 1
    program, _ = pair(first, second, np.zeros(3))
    assert [q.reads[0][1] for q in quiet_channels(program, always, 2.0)] == [0]
    assert quiet_channels(program, lambda op: op.outputs[0].name != "end", 2.0) == ()
    middle = program.operators[0].outputs[0]
    both = replace(program, outputs=[*program.outputs, middle])
    assert quiet_channels(both, always, 2.0) == ()


def test_channels_that_go_together_count_at_all_readers() -> None:
    program = Program("branches")
    x = program.value("x", (1, 2, 2, 2), GRID)
    program.inputs.append(x)
    options = {"strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1}
    options |= {"fusedActivationFunction": "NONE", "padding": "VALID"}
    tensors = [
        program.emit("CONV_2D", [x, *stored(program, f"in{n}", kernels(3, 2), np.zeros(3))], given, **options)
        for n in range(2)
        for given in [program.value(f"t{n}", (1, 2, 2, 3), GRID)]
    ]
    total = program.value("sum", (1, 2, 2, 3), GRID)
    program.emit("ADD", tensors, total, fusedActivationFunction="NONE")
    for n, weight in enumerate((1, 2)):
        codes = kernels(2, 3)
        codes[..., 1] = weight
        end = program.value(f"end{n}", (1, 2, 2, 2), GRID)
        program.emit("CONV_2D", [total, *stored(program, f"out{n}", codes, np.zeros(2))], end, **options)
        program.outputs.append(end)
    (found,) = quiet_channels(program, always, 6.0)
    assert sorted(found.reads) == [("out0/kernel", 1), ("out1/kernel", 1)] and found.channels == 3
    np.testing.assert_allclose(found.codes, 2 * 137 * UNIT, rtol=1e-6)

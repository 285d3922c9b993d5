"""Programs without the channels that nobody reads give the codes of the whole ones, on every interpreter."""

from __future__ import annotations

import integer_programs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kquant import targets
from kquant.core.program import Program
from kquant.exact.narrow import Narrowed, drop_unread
from kquant.runtime.running import available, probe
from kquant.tflite.flatbuffer import to_bytes
from kquant.tflite.reader import read_model

SAMPLES = 12
RUNTIMES = ("litert-reference", "tflm")


def both(seed: int, *, wide: bool = False, target: str = "tflm") -> tuple[bytes, bytes, Narrowed, Program]:
    """The file of a random program, that of the narrow one, and what went."""
    whole, narrow = (integer_programs.random_program(seed, wide=wide) for _ in range(2))
    goal = targets.load(target)
    content = to_bytes(whole, goal, {})
    narrowed = drop_unread(narrow)
    return content, to_bytes(narrow, goal, {}), narrowed, whole


def codes_for(program: Program, seed: int) -> list[np.ndarray]:
    """Random codes, the extremes among them."""
    rng, given = np.random.default_rng(seed), []
    for ref in program.inputs:
        ends = np.iinfo(ref.dtype)
        codes = rng.integers(ends.min, ends.max + 1, (SAMPLES, *ref.shape[1:])).astype(ref.dtype)
        codes[0], codes[1] = ends.min, ends.max
        codes[2] = ref.grid.zero_point[0]
        given.append(codes)
    return given


def runtimes() -> list[str]:
    return [name for name in RUNTIMES if name in available()]


def check(seed: int, *, wide: bool) -> Narrowed:
    whole, narrow, narrowed, program = both(seed, wide=wide)
    for runtime in runtimes():
        given = codes_for(program, seed)
        for a, b in zip(probe(whole, runtime, given), probe(narrow, runtime, given), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=f"seed {seed}, {runtime}")
    stored = [read_model(content).weight_bytes for content in (whole, narrow)]
    assert stored[1] < stored[0] if narrowed.removed else stored[1] == stored[0]
    return narrowed


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_codes_stay_the_same(seed: int) -> None:
    check(seed, wide=False)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32))
def test_codes_of_sixteen_bits_stay_the_same(seed: int) -> None:
    check(seed, wide=True)


def test_most_random_programs_become_narrower() -> None:
    """Else the two tests above would compare files with themselves."""
    went = [drop_unread(integer_programs.random_program(seed)) for seed in range(40)]
    assert sum(bool(n.removed) for n in went) > 20
    assert sum(row.constant > 0 for n in went for row in n.removed) > 10


def test_what_is_done_twice_is_done_once() -> None:
    for seed in range(20):
        program = integer_programs.random_program(seed)
        drop_unread(program)
        assert not drop_unread(program).removed, seed


@pytest.mark.parametrize("seed", range(4))
def test_inputs_and_outputs_stay_whole(seed: int) -> None:
    program = integer_programs.random_program(seed)
    before = [(ref.name, ref.shape) for ref in (*program.inputs, *program.outputs)]
    drop_unread(program)
    assert [(ref.name, ref.shape) for ref in (*program.inputs, *program.outputs)] == before

"""What a DECODE takes of the arena, counted, against TFLM's own words and the smallest arena that it runs in."""

from __future__ import annotations

import numpy as np
import pytest

from kquant import targets
from kquant.core.program import Program
from kquant.core.spec import Encoding, QuantSpec
from kquant.exporting.asked_storing import storing_of
from kquant.runtime.arenas import arena_bytes, arena_parts
from kquant.runtime.running import available
from kquant.tflite.flatbuffer import to_bytes
from kquant.tflite.reader import read_model
from kquant.tflite.stored_weights import DECODE_ARENA, TENSOR_ARENA, smaller_file

TFLM = targets.load("tflm")
pytestmark = pytest.mark.skipif("tflm" not in available(), reason="needs the micro extra")


def chain(layers: int, side: int) -> Program:
    """Layers with 85 % of zeros, each with weights and biases of its own."""
    rng = np.random.default_rng(0)
    spec = QuantSpec(8, symmetric=True, narrow=True)
    grids = [Encoding(np.float32([s]), np.int64([0]), spec, None) for s in (3.0, 0.05, 0.15)]
    made = Program("chain")
    made.inputs = x = [made.value("x", (1, side), grids[0])]
    for n in range(layers):
        codes = (rng.integers(-6, 7, (side, side)) * (rng.random((side, side)) < 0.15)).astype(np.int8)
        kernel = made.constant(f"l{n}/kernel", codes, grids[1])
        bias = made.constant(f"l{n}/bias", rng.integers(-9, 9, side).astype(np.int32), grids[2])
        y = made.value(f"l{n}", (1, side), grids[0])
        x = [made.emit("FULLY_CONNECTED", [x[0], kernel, bias], y, fusedActivationFunction="NONE")]
    made.outputs = x
    return made


@pytest.mark.parametrize("layers", [1, 8, 24])
@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("key", ["prune", "huffman", "lut"])
def test_the_arena_grows_by_no_more_than_is_counted(layers: int, side: int, key: str) -> None:
    made = chain(layers, side)
    plain = to_bytes(made, TFLM, {})
    content, decoding = smaller_file(made, TFLM, {}, storing_of(key))
    assert decoding is not None
    grown = (arena_bytes(content) or 0) - (arena_bytes(plain) or 0)
    # of small networks planning takes the most, before and after
    assert 0.7 * decoding.arena_growth_bytes - 100 * layers < grown <= decoding.arena_growth_bytes
    # what TFLM keeps for good, by its own words
    kept = arena_parts(content)[2] - arena_parts(plain)[2]
    file = read_model(content)
    decodes = file.operator_counts["TFLM_DECODE"]
    counted = decodes * DECODE_ARENA + (len(file.tensors) - len(read_model(plain).tensors)) * TENSOR_ARENA
    assert counted - 16 * (decodes + 1) <= kept <= counted


def test_a_budget_of_arena_holds_on_tflm() -> None:
    """Counted by the plan of memory alone, 4,096 bytes for eight layers of 4,096 weights became 5,104."""
    made = chain(8, 64)
    before = arena_bytes(to_bytes(made, TFLM, {})) or 0
    sizes = []
    for budget in (4096, 4400, 4700, 5200, 6000):
        content, decoding = smaller_file(made, TFLM, {}, storing_of("auto", budget))
        assert (arena_bytes(content) or 0) - before <= budget
        assert decoding is None or decoding.arena_growth_bytes <= budget
        sizes.append(len(content))
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1]

"""The rows of the Ethos-U targets are true of Vela: each operator's file compiled, and placed where the row says."""

from __future__ import annotations

import pytest
from one_op import build, variants

from kquant import targets
from kquant.tflite.vela import find_vela, left_by_vela

pytestmark = pytest.mark.skipif(find_vela() is None, reason="needs Arm's compiler Vela: pip install 'kquant[ethos-u]'")
SUFFIXES = {"int8": "", "int16x8": " int16"}
# It places these too, but no reference here computes what it does: the rows of the files say so in words.
MORE = {
    "ethos-u55": {
        "NEG",
        "REDUCE_MAX",
        "REDUCE_MIN",
        "MIRROR_PAD",
        "TILE",
        "RESIZE_BILINEAR",
        "RELU_N1_TO_1",
        "RELU_0_TO_1",
        "EXP",
        "PRELU",
        "LOG",
        "UNIDIRECTIONAL_SEQUENCE_LSTM",
    },
}
MORE["ethos-u85"] = MORE["ethos-u55"] | {"DIV", "WHILE"}


@pytest.mark.one_in(4)
@pytest.mark.parametrize("type", SUFFIXES)
@pytest.mark.parametrize("name", MORE)
@pytest.mark.parametrize("op", sorted(targets.load("litert").ops))
def test_claim_holds(op: str, name: str, type: str) -> None:
    beside = targets.load(name).accelerator
    assert beside is not None and beside.compiled_for is not None
    case = variants().get(f"{op}{SUFFIXES[type]}")
    claimed = beside.fact(op, type)
    if case is None:
        assert claimed is not True, f"{op} has no file in {type}"
        return
    said = left_by_vela(build(case), beside.compiled_for)
    if said is None:  # it ends without an answer, which is no place on the NPU that anybody could use
        assert claimed is not True, f"Vela ends on {op} in {type}, the file says {claimed}"
        return
    placed = not said.left
    assert placed == claimed or claimed == "unknown" or (placed and op in MORE[name]), f"{op}: Vela leaves {said.left}"

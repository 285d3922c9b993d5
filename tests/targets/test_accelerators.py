"""What accelerators take: sourced, of operators that there are, three-valued, and read as the files say."""

from __future__ import annotations

from pathlib import Path

import pytest

from kquant import targets
from kquant.targets.accelerator import Accelerator, Use

WITH = [name for name in targets.names() if targets.load(name).accelerator is not None]
HEAD = 'name = "a"\ntitle = "t"\nruntimes = ["tflm"]\nrounding = "tflm"\nops_of = "tflm"\n'
BESIDE = f'{HEAD}[accelerator]\ntitle = "the NPU"\ncuts = "graph"\nunlisted = "unknown"\nint8 = true\nsource = "a.md"\n'
CLAIM = '[[accelerator.claims]]\nops = ["CONV_2D", "ADD"]\nsource = "b.md"\n'


def taken(name: str) -> Accelerator:
    found = targets.load(name).accelerator
    assert found is not None
    return found


def parsed(text: str) -> Accelerator:
    found = targets.parse(text, "a.toml").accelerator
    assert found is not None
    return found


@pytest.mark.parametrize("name", WITH)
def test_every_claim_has_a_source_and_every_operator_a_row(name: str) -> None:
    target, beside = targets.load(name), taken(name)
    assert beside.source and all(claim.source for claim in beside.claims)
    assert set(beside.by_code) <= set(target.ops)
    for code in target.ops:
        facts = [beside.fact(code, field) for field in ("int8", "int16x8", "int4", "float", "per_axis")]
        assert all(fact in (True, False, "unknown") for fact in facts)
    # what the processor runs, the accelerator can but leave: it takes nothing that no runtime could check
    for code, row in target.ops.items():
        if not row.int8:
            assert beside.fact(code, "int8") is not True or row.notes


def test_a_use_is_judged_by_every_limit() -> None:
    beside = parsed(f"{BESIDE}{CLAIM}per_axis = false\nfused = false\ndilated = false\nmax_rank = 4\nmax_version = 3\n")
    assert beside.takes(Use("ADD", "int8", 3, 4)) == (True, "")
    assert beside.takes(Use("ADD", per_axis=True)) == (False, "ADD with a scale for each channel of the weights")
    assert beside.takes(Use("ADD", fused=True)) == (False, "ADD with an activation in it")
    assert beside.takes(Use("ADD", dilated=True)) == (False, "ADD with a dilated kernel")
    assert beside.takes(Use("ADD", rank=5)) == (False, "ADD of rank 5, 4 is the most")
    assert beside.takes(Use("ADD", version=4)) == (False, "ADD of version 4, 3 is the newest")
    inner = parsed(f"{BESIDE}{CLAIM}max_inner_rank = 3\n")
    assert inner.takes(Use("ADD", rank=4, inner_rank=3)) == (True, "")
    assert inner.takes(Use("ADD", rank=4, inner_rank=4))[0] is False


def test_what_is_unknown_is_said_and_never_guessed() -> None:
    beside = parsed(f'{BESIDE}{CLAIM}int16x8 = "unknown"\n')
    assert beside.takes(Use("SOFTMAX")) == ("unknown", "SOFTMAX")
    assert beside.takes(Use("ADD", "int16x8")) == ("unknown", "ADD with 16-bit activations")
    assert beside.takes(Use("ADD", "int4")) == ("unknown", "ADD with 4-bit weights")
    # one thing that is known to be refused settles it
    assert parsed(f"{BESIDE}{CLAIM}max_rank = 4\n").takes(Use("ADD", "int16x8", rank=5))[0] is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{BESIDE}{CLAIM}{CLAIM}", "two claims name CONV_2D"),
        (f"{BESIDE}{CLAIM}".replace("ADD", "ADDD"), "a claim: TFLite has no operator 'ADDD'.*Did you mean 'ADD'"),
        (f"{BESIDE}{CLAIM}max_ranks = 3\n", "accelerator.claims.0.max_ranks: unknown key. Did you mean 'max_rank'"),
        (BESIDE.replace('source = "a.md"\n', ""), "accelerator.source: Field required"),
        (f"{BESIDE}{CLAIM}".replace('source = "b.md"\n', ""), "accelerator.claims.0.source: Field required"),
        (f'{BESIDE}int4 = "perhaps"\n', "accelerator.packed.int4"),
        (f'{BESIDE}cutz = "x"\n', "accelerator.cutz: unknown key. Did you mean 'cuts'"),
    ],
)
def test_faults_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        targets.parse(text, "a.toml")


def test_a_target_that_extends_another_says_the_differences_only() -> None:
    tflm, cmsis = targets.load("tflm"), targets.load("cmsis-nn")
    assert (cmsis.ops, cmsis.runtimes, cmsis.decodes, cmsis.arena) == (
        tflm.ops,
        tflm.runtimes,
        tflm.decodes,
        tflm.arena,
    )
    assert tflm.accelerator is None and cmsis.name == "cmsis-nn"
    npu, strict = targets.load("ethos-u55"), targets.load("ethos-u")
    assert npu.compiler == strict.compiler and npu.fallback == "tflm"
    # what the NPU leaves is the processor's: the row of the fallback, and no claim that the NPU takes it
    assert not strict.supports("SPACE_TO_DEPTH") and npu.ops["SPACE_TO_DEPTH"] == tflm.ops["SPACE_TO_DEPTH"]
    assert npu.takes("SPACE_TO_DEPTH") is False and npu.takes("CONV_2D") is True
    assert [targets.load(name).takes("CAST") for name in ("ethos-u55", "ethos-u85")] == [False, True]


def test_the_page_has_what_the_files_say() -> None:
    page = (Path(__file__).parents[2] / "docs" / "targets.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    head = next(row for row in rows if row[0] == "int8")
    assert head[1:] == WITH
    said = {True: "yes", False: "", "unknown": "?"}
    listed = [row for row in rows if row[0] in targets.load("litert").ops]
    assert len(listed) > 20
    for code, *cells in listed:
        assert cells == [said[targets.load(name).takes(code)] for name in WITH], code
    for name in WITH:
        assert f"`{name}`" in page

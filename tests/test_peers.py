"""The pages that `make bench` writes are those of the JSON; where a peer is better they say why."""

from __future__ import annotations

import ast
import copy
import json
from typing import Any

import pytest

from benchmarks.peers import store, tables
from benchmarks.peers.tools import tools

RESULTS = store.read()


def ways_in(script: str) -> set[str]:
    """The keys of what a script hands to `main`, itself or by the name WAYS; without its tool it cannot be imported."""
    nodes = list(ast.walk(ast.parse(script)))
    given = [n.args[0] for n in nodes if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "main"]
    given += [n.value for n in nodes if isinstance(n, ast.AugAssign) and getattr(n.target, "id", "") == "WAYS"]
    given += [n.value for n in nodes if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "WAYS"]
    keys = [key for node in given if isinstance(node, ast.Dict) for key in node.keys if key is not None]
    keys += [n for node in given if isinstance(node, ast.DictComp) for n in ast.walk(node.generators[0].iter)]
    return {key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)}


@pytest.mark.parametrize("name", tools())
def test_every_way_of_a_tool_is_in_its_script(name: str) -> None:
    tool = tools()[name]
    assert set(tool.ways) <= ways_in(tool.script.read_text())
    assert {way.group for way in tool.ways.values()} <= set(tables.GROUPS)


def test_the_page_is_that_of_the_results() -> None:
    assert tables.PAGE.read_text() == tables.page(RESULTS), "python -m benchmarks.peers --tables"


def test_a_step_is_told_beside_tfmots() -> None:
    told = [t for t in RESULTS["tasks"] if tables.step_ratios(t)]
    small = json.loads(tables.STEPS[1].read_text())["models"]["digits_dense"]["of_tfmot"]
    assert tables.step_ratios("digits_dense")["kquant/qat"][1] == small["QAT"] > 1 and "digits_dense" in told
    assert tables.step_ratios("digits_dense")["tfmot/qat"][1] == 1
    page = tables.page(RESULTS)
    assert page.count("| step, times float | step, times tfmot's |") == page.count("| step, times float |") > len(told)


def test_the_table_in_the_readme_is_that_of_the_results() -> None:
    text = tables.README.read_text()
    assert text.count(tables.MARK.format("readme")) == 2
    assert text == tables.with_block(text, "readme", tables.readme_table(RESULTS)), (
        "python -m benchmarks.peers --tables"
    )


def test_every_row_of_kquant_is_integer_and_its_codes_are_those_of_the_simulation() -> None:
    rows = [(t, n, row) for t, task in RESULTS["tasks"].items() for n, row in task["rows"].items() if "kquant" in n]
    assert rows
    for task, name, row in rows:
        assert row.get("float_operators") == 0, (task, name, row)
        runtime = "tflm" if name.endswith("tflm") else "litert-reference"
        assert row["runs"][runtime]["equal"] >= 0.999, (task, name)


def test_where_a_peer_is_better_there_is_a_reason() -> None:
    keys = {loss.key for loss in tables.losses(RESULTS)}
    assert keys <= set(tables.why()), "benchmarks/peers/why.toml says why"
    assert set(tables.why()) <= keys, "a reason for a loss that is none any more"


def test_a_better_peer_is_found() -> None:
    better: dict[str, Any] = copy.deepcopy(RESULTS)
    rows = better["tasks"]["digits_cnn"]["rows"]
    before = {loss.key for loss in tables.losses(RESULTS)}
    rows["converter/int8"]["bytes"] = rows["kquant/int8"]["bytes"] // 2
    rows["litert-quantizer/int8"]["runs"]["litert"]["accuracy"] = 100.5
    rows["litert-quantizer/int8-mse"]["float_operators"] = 3
    rows["litert-quantizer/int8-mse"]["latency_ms"] = 1e-9
    found = {loss.key for loss in tables.losses(better)} - before
    assert found == {"digits_cnn/int8/bytes", "digits_cnn/int8/accuracy"}

"""The table of operators: checked when it is read, complete, true of the schema, and the only one."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import get_args

import keras
import pytest
from ai_edge_litert import schema_py_generated as schema

import kquant
from kquant import targets
from kquant.arithmetic import KERNELS, ROUNDING
from kquant.core.operators import OPERATORS, Along, facts, parse
from kquant.ops import RULES
from kquant.tflite.timeline import HANDLERS

PACKAGE = Path(kquant.__file__).parent
FOREIGN = {"CONV_3D", "SVDF"}  # of files that others wrote, whose weights `layer_bytes` counts
HEAD = 'name = "a"\ntitle = "t"\nruntimes = ["tflm"]\nrounding = "tflm"\n'
# Rules and arithmetic are what an operator does; so is what it makes of channels and codes, and what a device's kernel
# asks for. Another tool's names of operators are not TFLite's.
ELSEWHERE = ("ops/", "arithmetic/", "exact/", "tflite/device_kernels.py", "recipe/litert_quantizer.py")


def test_every_operator_that_is_named_has_an_entry() -> None:
    listed = {code for name in targets.names() for code in targets.load(name).ops}
    written = {code for rule in RULES for code in (*rule.operators, *rule.helpers)}
    computed = set(KERNELS) | {code for kernels in ROUNDING.values() for code in kernels}
    assert listed | written | computed <= set(OPERATORS)
    unlisted = {code for code, kind in OPERATORS.items() if kind.unlisted}
    assert set(OPERATORS) - listed - unlisted == FOREIGN | {"SQUARE"}
    assert not unlisted & listed


@pytest.mark.parametrize("code", OPERATORS)
def test_an_entry_is_true_of_the_schema(code: str) -> None:
    kind, options = OPERATORS[code], facts(code).options_of(code)
    assert hasattr(schema.BuiltinOperator, code) or kind.unlisted or kind.flexible
    assert options is None or hasattr(schema.BuiltinOptions, options)
    if options is None:
        lowered = {name.lower() for name in vars(schema.BuiltinOptions)}
        assert f"{code.replace('_', '').lower()}options" not in lowered
    assert kind.unit != "weights" or (kind.bias is not None and len(kind.weights) == 1)
    assert not kind.reads_tables or len(kind.weights) == 1


def test_every_way_along_time_is_a_function_and_is_used() -> None:
    assert set(HANDLERS) == set(get_args(Along)) == {kind.time for kind in OPERATORS.values()} - {None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[ADD]\ntyme = 'local'", "ADD.tyme: unknown key. Did you mean 'time'"),
        ("[ADD]\ntime = 'lokal'", "ADD.time: Input should be 'local'.*received 'lokal'"),
        ("[ADD]\ndata = true", "ADD.data: Input should be a valid integer, received True"),
        ("[PAD]\naxis_rows = { first = 0 }", "PAD.axis_rows.first"),
    ],
)
def test_faults_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_operators_that_there_are_not_are_refused() -> None:
    row = "int8 = true\nversion = 1\nsource = 'a.cc'"
    with pytest.raises(ValueError, match="no operator 'CONV2D', or kquant does not know it. Did you mean 'CONV_2D'"):
        targets.parse(f"{HEAD}[ops.CONV2D]\n{row}\n", "a.toml")
    with pytest.raises(ValueError, match="Halve: TFLite has no operator 'MULL'.*Did you mean 'MUL'"):

        @kquant.register_rule
        class Halve:
            layers = (keras.layers.Identity,)
            operators = ("MULL",)
            lower = print


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_there_is_no_second_table(path: Path) -> None:
    """Three operators or more in one collection are a fact about operators: a field of the table."""
    if str(path.relative_to(PACKAGE)).startswith(ELSEWHERE):
        return
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict | ast.Set | ast.Tuple | ast.List):
            parts = node.keys if isinstance(node, ast.Dict) else node.elts
            named = [part.value for part in parts if isinstance(part, ast.Constant) and part.value in OPERATORS]
            assert len(named) < 3, f"{path.name}:{node.lineno}: {', '.join(named)}"

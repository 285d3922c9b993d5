"""The target files: strict to read, sourced, and true of the interpreters that can be run here."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from one_op import build, feeds, variants
from one_op_types import WEIGHTED, as_packed

from kquant import targets
from kquant.arithmetic import grid
from kquant.core.operators import facts
from kquant.core.packed import PACKED
from kquant.runtime import running
from kquant.runtime.interpreters import litert_interpreter

RUNTIMES = {"litert": "litert", "litert-reference": "litert", "tflm": "tflm"}  # runtime: the target that describes it
# In int16 the tables that kernels interpolate are off by a few steps; a step is a 256th of one in int8.
TOLERANCE_LSB = {"int8": 1.01, "int16": 4.0, "int32": 1.01, "float32": 1e-5, "bool": 0.0}
PROGRAM = Path(__file__).parents[1] / "support" / "one_op.py"
# LiteRT looks tanh up in a table and so takes any output encoding; the specification still prescribes one.
LENIENT = {("litert", "TANH", "int8")}


def judge(case, outputs):
    """'right', or what is wrong with the outputs of a case."""
    if outputs is None:
        return "refused"
    given = iter(feeds(case))
    values = [spec.real(next(given) if spec.data is None else spec.data) for spec in case.given]
    expected = case.expected(*values)
    for spec, codes, real in zip(
        case.outputs, outputs, expected if isinstance(expected, list) else [expected], strict=True
    ):
        codes = np.asarray(codes)
        wanted = real / spec.scale[0] + spec.zero_point if spec.scale else real
        if spec.dtype in ("int8", "int16"):
            wanted = np.clip(wanted, np.iinfo(spec.dtype).min, np.iinfo(spec.dtype).max)
        tolerance = TOLERANCE_LSB[spec.dtype]
        if spec.dtype == "int16" and case.op == "UNIDIRECTIONAL_SEQUENCE_LSTM":
            tolerance = 8.0  # one step of its cell state, 2^-12
        if codes.shape != wanted.shape or np.max(np.abs(codes.astype(float) - wanted)) > tolerance:
            return "wrong"
    return "right"


@pytest.fixture(scope="module")
def verdicts():
    """(runtime, file): 'right', 'wrong', 'refused', or 'missing' where the process ended before."""
    found = {}
    # the tree of this test comes first, whatever is installed
    paths = os.pathsep.join(str(folder) for folder in PROGRAM.parents[1:3])
    environment = {**os.environ, "PYTHONPATH": paths}
    for runtime in RUNTIMES:
        answers = _answers(runtime, environment)
        for name, case in variants().items():
            found[runtime, name] = judge(case, answers[name]) if name in answers else "missing"
    return found


def _answers(runtime, environment):
    """Raw outputs of every file by name; a file that ends the process is left out, and the rest run without it."""
    answers, first = {}, 0
    while first < len(variants()):
        command = [sys.executable, PROGRAM, runtime, str(first)]
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
        got = dict(json.loads(line) for line in run.stdout.splitlines() if line.startswith("["))
        answers.update(got)
        first += len(got) + 1
    return answers


OPERATORS = sorted(targets.load("litert").ops)


# Files of a type by what an operator's name is followed by.
SUFFIXES = {"int8": "", "int16x8": " int16"}
OTHER_TYPES = ("CAST", "DEQUANTIZE", "ARG_MAX", "ARG_MIN", "NOT_EQUAL", "LESS", "WHILE")  # come in, or go out


@pytest.mark.parametrize("type", SUFFIXES)
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("op", OPERATORS)
def test_claim_holds(op, runtime, type, verdicts):
    target = targets.load(RUNTIMES[runtime])
    claimed = target.supports(op, type) and runtime in target.runtimes_for(op)
    verdict = verdicts[runtime, op + SUFFIXES[type]]
    assert (verdict == "right") == claimed, f"{runtime} is {verdict} on {op}, the file says {type} = {claimed}"


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("op", WEIGHTED)
def test_claims_of_scales_hold(op, runtime, verdicts):
    """One scale runs wherever the type does; one for each channel where the file says so."""
    target = targets.load(RUNTIMES[runtime])
    for type, name in (("int16x8", f"{op} int16"), *((name, f"{op} {name}") for name in PACKED)):
        assert (verdicts[runtime, f"{name} per tensor"] == "right") == target.supports(op, type)
        # TFLM's portable kernel takes more than the one of CMSIS-NN, which cannot be run here.
        takes = target.ops[op].per_axis_for(type) or (runtime, name) == ("tflm", "FULLY_CONNECTED int16")
        assert (verdicts[runtime, name] == "right") == takes


TAKEN = [(op, name) for name in PACKED for op in WEIGHTED if targets.load("litert").supports(op, name)]


def cut(case, depth):
    """A FULLY_CONNECTED case with so many inputs."""
    x, w, *rest = case.inputs
    data = w.data[..., :depth]
    shorter = [replace(x, shape=(x.shape[0], depth)), replace(w, shape=data.shape, data=data)]
    return replace(case, inputs=[*shorter, *rest])


@pytest.mark.parametrize(("op", "name"), TAKEN)
def test_packed_weights_are_slow_where_xnnpack_leaves_them(op, name):
    """It takes every operator with 8-bit weights; what it leaves with packed ones, LiteRT's own kernels unpack."""
    row, files = targets.load("litert").ops[op], variants()
    cases = [cut(files[op], n) for n in (8, 12, 13, 14, 15)] if op == "FULLY_CONNECTED" else [files[op]]
    said = []
    for case in cases:
        shape = case.inputs[1].shape
        depth = int(np.prod([n for axis, n in enumerate(shape) if axis != facts(op).channel_axis]))
        said.append(row.slowdown(name, "litert", depth) is None)
        assert delegated(case)
        assert delegated(as_packed(case, name)) == said[-1]
    assert op != "FULLY_CONNECTED" or set(said) == {True, False}


def delegated(case):
    """Whether XNNPACK runs the one operator of a case."""
    interpreter = litert_interpreter(build(case), reference=False)
    return any(op["op_name"] == "DELEGATE" for op in interpreter._get_ops_details())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_quantize_changes_types(runtime, verdicts):
    for change in ("int8 to int16", "int16 to int8", "float32 to int16"):
        assert verdicts[runtime, f"QUANTIZE {change}"] == "right"


@pytest.mark.parametrize("type", SUFFIXES)
@pytest.mark.parametrize("name", ["litert", "tflm"])
@pytest.mark.parametrize("op", OPERATORS)
def test_encoding_claim_holds(op, name, type, verdicts):
    target = targets.load(name)
    runtimes = target.runtimes_for(op)
    file = f"{op}{SUFFIXES[type]} shifted"
    if not target.supports(op, type) or (runtimes[0], file) not in verdicts:
        assert not target.supports(op, type) or op in OTHER_TYPES
        return
    all_right = all(verdicts[runtime, file] == "right" for runtime in runtimes)
    bound = target.ops[op].equal_encodings or target.ops[op].fixed_for(type) is not None
    assert all_right == (not bound or (name, op, type) in LENIENT)


@pytest.mark.parametrize("type", SUFFIXES)
@pytest.mark.parametrize("op", [op for op in OPERATORS if targets.load("litert").ops[op].fuses])
def test_fused_activations_are_right(op, type, verdicts):
    for runtime in RUNTIMES:
        assert [verdicts[runtime, f"{op}{SUFFIXES[type]} fused {code}"] for code in (1, 2, 3)] == ["right"] * 3


def test_limits_in_numbers(verdicts):
    assert targets.load("tflm").ops["CONCATENATION"].max_inputs == 10
    assert [verdicts["tflm", f"{count} inputs"] for count in (10, 11)] == ["right", "refused"]
    assert targets.load("litert").ops["FULLY_CONNECTED"].max_rescale == 256
    assert [verdicts["litert", f"rescale {value}"] for value in (255, 256)] == ["right", "refused"]


def test_runtimes_and_roundings_are_those_that_there_are():
    fields = targets.Target.model_fields
    assert get_args(get_args(fields["runtimes"].annotation)[0]) == running.RUNTIMES
    assert get_args(fields["rounding"].annotation) == grid.RUNTIMES == tuple(targets.FOLLOWED)
    assert set(get_args(get_args(fields["arena"].annotation)[0])) == {running.ARENA}


def test_names_are_the_files():
    assert targets.names() == sorted(file.stem for file in Path(targets.__file__).parent.glob("*.toml"))


@pytest.mark.parametrize("name", targets.names())
def test_file_is_consistent(name):
    target = targets.load(name)
    assert target.name == name
    assert set(target.runtimes) <= set(RUNTIMES)
    assert target.fallback is None or target.fallback in targets.names()
    # those outside of the schema are TFLM's alone: tests/arithmetic/test_signal_steps.py runs each
    builtin = {op: row for op, row in target.ops.items() if not facts(op).flexible}
    assert sorted(builtin) == OPERATORS
    for op, row in builtin.items():
        assert hasattr(schema.BuiltinOperator, op)
        assert row.source.endswith(".cc") or row.source.startswith("Vela 5.2.0")
        assert row.version == targets.load("litert").ops[op].version, "one file runs on every target"
        for type in targets.TYPES:
            both = target.supports(op, type) and targets.load("litert").supports(op, type)
            assert not both or row.version_for(type) == targets.load("litert").ops[op].version_for(type)
        assert not row.per_axis or facts(op).weights
        assert row.int16x8 or not (row.version_int16 or row.per_axis_int16 or row.fixed_int16 or row.options_int16)
        for packed in row.packed.values():
            assert packed.taken or (op == "DEQUANTIZE" and not (packed.version or packed.per_axis or packed.under))
            assert packed.slow or packed.fast_depth is None
            assert set(packed.slow) <= set(target.runtimes)
        assert set(row.broken_on) < set(target.runtimes)
        assert row.int8 or row.notes or name == "ethos-u"


def test_frozen_and_closed():
    target = targets.load("tflm")
    with pytest.raises(ValueError, match="frozen"):
        target.name = "other"
    with pytest.raises(TypeError):
        target.ops["ADD"] = None
    assert not target.supports("TILE") and not target.supports("NO_SUCH_OPERATOR")
    assert targets.load("litert").runtimes_for("SUM") == ("litert",)
    with pytest.raises(
        ValueError, match=f"records the types int8, int16x8, {', '.join(PACKED)}. Received: type='int16'"
    ):
        target.supports("ADD", "int16")


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="ethos-u85, .*litert, .*tflm. Did you mean 'tflm'"):
        targets.load("tfml")


HEAD = 'name = "bad"\ntitle = "t"\nruntimes = ["tflm"]\nrounding = "tflm"\n'


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "int8 = true\nversion = 1\nsource = 'a.cc'\nper_axes = true",
            "ops.ADD.per_axes: unknown key. Did you mean 'per_axis'",
        ),
        ("int8 = true\nversion = 1", "ops.ADD.source: Field required"),
        ("int8 = 1\nversion = 1\nsource = 'a.cc'", "ops.ADD.int8: Input should be a valid boolean, received 1"),
        ("int8 = ", "bad.toml is not TOML"),
    ],
)
def test_faults_are_named(row, message):
    with pytest.raises(ValueError, match=message):
        targets.parse(f"{HEAD}[ops.ADD]\n{row}\n", "bad.toml")

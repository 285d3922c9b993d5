"""Each packed type of the table: packed and unpacked, read by the interpreter, counted in bytes, named by targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flatbuffers
import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from one_op_types import bits_of, packed

import kquant
from kquant import targets
from kquant.core import packed as table
from kquant.core.fact_tables import parsed
from kquant.core.packed import PACKED

RNG = np.random.default_rng(0)
X = np.float32(RNG.normal(size=(40, 21)))
OLD = """
name = "mine"
title = "Mine"
runtimes = ["litert", "litert-reference"]
rounding = "litert"
[ops.CONV_2D]
int8 = true
version = 3
source = "conv.cc"
"""


def codes(name: str, count: int) -> np.ndarray:
    each = PACKED[name]
    return RNG.integers(each.low, each.high + 1, count).astype(np.int8)


def dense() -> keras.Model:
    """Two layers of so many weights that the last byte of each is not full."""
    keras.utils.set_random_seed(0)
    body, head = keras.layers.Dense(7, "relu", name="body"), keras.layers.Dense(5, name="head")
    return keras.Sequential([keras.Input((21,), name="x"), body, head], name="net")


def in_bytes(content: bytes, name: str) -> bytes:
    """The file with its packed weights in a byte each, by the schema's own code."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    width = bits_of(name)
    signed = np.int8([1 << n for n in range(width - 1)] + [-1 << (width - 1)])
    for t in model.subgraphs[0].tensors:
        if t.type == getattr(schema.TensorType, name.upper()):
            buffer = model.buffers[t.buffer]
            bits = np.unpackbits(np.uint8(buffer.data), bitorder="little")[: int(np.prod(t.shape)) * width]
            buffer.data = (bits.astype(np.int8).reshape(-1, width) @ signed).view(np.uint8)
            t.type = schema.TensorType.INT8
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def recipe(name: str, **changes: Any) -> dict[str, Any]:
    return {"name": "packed", "weights": {"bits": PACKED[name].bits}, **changes}


@pytest.mark.quick
@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("count", range(10))
def test_codes_come_back(name: str, count: int) -> None:
    given = codes(name, count)
    content = table.pack(given, name)
    assert content == packed(given, name).tobytes() and len(content) == table.size_bytes(count, name)
    assert np.array_equal(table.unpack(np.frombuffer(content, np.uint8), name, count), given)


@pytest.mark.quick
@pytest.mark.parametrize("name", PACKED)
def test_the_type_is_that_of_the_schema(name: str) -> None:
    assert getattr(schema.TensorType, name.upper()) == PACKED[name].number
    assert int(name.removeprefix("int")) == PACKED[name].bits == 8 // PACKED[name].per_byte


@pytest.mark.quick
def test_the_narrowest_type_comes_first() -> None:
    widths = [PACKED[name].bits for name in table.types_for(1)]
    assert widths == sorted(each.bits for each in PACKED.values())
    for name, each in PACKED.items():
        assert table.types_for(each.bits)[0] == name
        assert table.types_of(np.int8([each.low, each.high]))[0] == name
        assert name not in table.types_of(np.int8([each.high + 1])) + table.types_for(each.bits + 1)
    assert table.types_of(np.int8([])) == ()


@pytest.mark.quick
def test_faults_of_the_table_are_named() -> None:
    row = '[int3]\nnumber = 99\nsince = "9"\n'
    for text, message in (
        (row + "bits = 3\n", r"int3.*bits = 3: a byte must hold a whole number of codes"),
        (row + "bits = 2\nsinse = 1\n", r"int3\.sinse: unknown key. Did you mean 'since'"),
        (row, r"int3\.bits: Field required"),
    ):
        with pytest.raises(ValueError, match=message):
            parsed(text, table.FILE, table.PackedType)


@pytest.mark.parametrize("runtime", ["litert-reference", "litert"])
@pytest.mark.parametrize("name", PACKED)
def test_the_interpreter_reads_the_codes(name: str, runtime: str, tmp_path: Path) -> None:
    """It computes what it does with the same codes in a byte each, and what the model says."""
    q = kquant.calibrate(kquant.quantize(dense(), recipe(name)), X, verbose=False)
    path = tmp_path / "m.tflite"
    report = kquant.export(q, path, data=X)
    file = kquant.inspect(path)
    weights = [t for t in file.tensors if t.type == name.upper()]
    assert {t.name.split("/")[0] for t in weights} == {"head", "body"}
    assert [t.size_bytes for t in weights] == [-(-int(np.prod(t.shape)) * PACKED[name].bits // 8) for t in weights]
    counted = {layer.name: layer.raw_bytes for layer in report.weights.layers}
    assert all(counted[t.name] == t.size_bytes for t in weights)
    (tmp_path / "wide.tflite").write_bytes(in_bytes(path.read_bytes(), name))
    got, wide = (kquant.predict(tmp_path / f"{made}.tflite", X, runtime=runtime) for made in ("m", "wide"))
    step = float(q.get_layer("head_quant").grid()[0])
    assert np.ptp(got) > 20 * step
    if runtime == "litert-reference":
        np.testing.assert_array_equal(got, wide)
        np.testing.assert_array_equal(got, q.predict(X, verbose=0))
    # XNNPACK rounds in a way of its own, by a step in each of the two layers at most
    assert np.abs(got - wide).max() <= 2.001 * step


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("changes", [{"mode": "dynamic"}, {"mode": "weight-only"}, {"activations": {"bits": 16}}])
def test_other_activations_take_them(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    q = kquant.quantize(dense(), recipe(name, **changes))
    if "mode" not in changes:
        kquant.calibrate(q, X, verbose=False)
    kquant.export(q, tmp_path / "m.tflite", data=X)
    types = {t.type for t in kquant.inspect(tmp_path / "m.tflite").tensors}
    assert name.upper() in types
    got = kquant.predict(tmp_path / "m.tflite", X, runtime="litert-reference")
    np.testing.assert_allclose(got, q.predict(X, verbose=0), atol=0.02 * np.abs(got).max())


@pytest.mark.quick
@pytest.mark.parametrize("name", PACKED)
def test_keys_of_old_target_files_still_load(name: str) -> None:
    lines = f'{name}_weights = true\nversion_{name} = 7\nper_axis_{name} = true\n{name}_with = ["float"]\n'
    lines += f"slow_{name} = {{ litert = 2.5 }}\nfast_{name}_depth = 4\n"
    row = 'version = 7, per_axis = true, under = ["float"], slow = { litert = 2.5 }, fast_depth = 4'
    new = f"packed.{name} = {{ {row} }}\n"
    old, written = (targets.parse(OLD + text, "a.toml").ops["CONV_2D"] for text in (lines, new))
    assert old == written and old.packs(name) and old.packs(name, "float") and not old.packs(name, "int16x8")
    assert (old.version_for(name), old.per_axis_for(name)) == (7, True)
    assert (old.slowdown(name, "litert", 5), old.slowdown(name, "litert", 8)) == (2.5, None)
    slow = targets.parse(f"{OLD}slow_{name} = {{ litert = 2.5 }}\n", "a.toml").ops["CONV_2D"]
    assert not slow.packs(name) and slow.slowdown(name, "litert", 5) == 2.5
    with pytest.raises(ValueError, match=f"CONV_2D.version_{name}: unknown key"):
        targets.parse(f"{OLD}version_{name} = 7\n{new}", "a.toml")


@pytest.mark.quick
def test_a_target_names_packed_types_that_there_are() -> None:
    with pytest.raises(ValueError, match="no packed type 'int3'; there are .*int4"):
        targets.parse(f"{OLD}packed.int3 = {{ version = 7 }}\n", "a.toml")
    with pytest.raises(ValueError, match="no type 'int3'; there are int8"):
        targets.parse(f'{OLD}optional_bias = ["int3"]\n', "a.toml")
    with pytest.raises(ValueError, match="packed.int4.versoin: unknown key"):
        targets.parse(f"{OLD}packed.int4 = {{ versoin = 7 }}\n", "a.toml")


@pytest.mark.parametrize(("depth", "type"), [(24, "INT2"), (22, "INT4"), (21, "INT8")])
def test_where_latency_counts_the_narrowest_type_that_costs_none_is_taken(
    depth: int, type: str, tmp_path: Path
) -> None:
    """XNNPACK has kernels of int2 for multiples of 4, of int4 for even numbers; what is wider gets all its bits."""
    model = keras.Sequential([keras.Input((depth,), name="x"), keras.layers.Dense(5, name="head")], name="net")
    two = {"name": "two", "weights": {"bits": 2}, "prefer": "latency"}
    if type == "INT2":
        q = kquant.quantize(model, two)
    else:
        with pytest.warns(UserWarning, match="packed 2-bit ones would cost 5 times the latency"):
            q = kquant.quantize(model, two)
    assert q.get_layer("head").spec.bits == int(type.removeprefix("INT"))
    assert [row.weights for row in kquant.check(model, recipe=two).layers] == [
        (f"{type.removeprefix('INT')} bits" + ", packed" * (type != "INT8"),)
    ]
    kquant.calibrate(q, np.float32(RNG.normal(size=(100, depth))), verbose=False)
    kquant.export(q, tmp_path / "m.tflite", check_runtimes=False)
    assert [t.type for t in kquant.inspect(tmp_path / "m.tflite").tensors if t.name == "head/kernel"] == [type]

"""Weights in look-up tables: TFLM computes the same codes from fewer bytes, and what cannot be stored so is refused."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import kquant
from kquant import report, targets
from kquant.core.program import Program
from kquant.core.spec import Encoding, QuantSpec
from kquant.projects.c_array import save_c_array
from kquant.runtime import interpreters
from kquant.runtime.running import available
from kquant.tflite.flatbuffer import to_bytes
from kquant.tflite.lut_format import LookUpTables, decode, encode, header, pack, smallest, unpack
from kquant.tflite.reader import constants, read_model
from kquant.tflite.stored_weights import store_weights, without_decodes

layers = keras.layers
RNG = np.random.default_rng(3)
needs_tflm = pytest.mark.skipif("tflm" not in available(), reason="needs the micro extra")
CODES = hnp.arrays(np.int8, hnp.array_shapes(min_dims=1, max_dims=4, max_side=6), elements=st.integers(-8, 8))


def encoding(axis: int | None = None, channels: int = 1, scale: float = 0.05) -> Encoding:
    spec = QuantSpec(8, symmetric=axis is not None, narrow=axis is not None, per_axis=axis is not None)
    scales = np.float32(scale * (1 + np.arange(channels) / 7))
    return Encoding(scales, np.zeros(channels, np.int64), spec, axis)


def one_operator(code: str, codes: np.ndarray, axis: int | None, dtype: str = "int8") -> Program:
    """A program that reads `codes` as its weights."""
    program = Program("one")
    weights = encoding(axis, 1 if axis is None else codes.shape[axis])
    kernel = program.constant("layer/kernel", codes, weights, dtype)
    conv = {"strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1, "padding": "VALID"}
    if code == "FULLY_CONNECTED":
        x = program.value("x", (1, codes.shape[1]), encoding())
        y = program.value("y", (1, codes.shape[0]), encoding(scale=0.7))
        program.emit(code, [x, kernel, None], y, fusedActivationFunction="NONE", keepNumDims=True)
    elif code == "GATHER":
        x = program.value("x", (1, 4), None, "int32")
        y = program.value("y", (1, 4, codes.shape[1]), encoding())
        program.emit(code, [kernel, x], y, axis=0)
    elif code == "TRANSPOSE_CONV":
        out = (1, 3 + codes.shape[1], 3 + codes.shape[2], codes.shape[0])
        x, y = program.value("x", (1, 4, 4, codes.shape[3]), encoding()), program.value("y", out, encoding(scale=0.7))
        shape = program.constant("shape", np.int32(out))
        program.emit(code, [shape, kernel, x], y, strideH=1, strideW=1, padding="VALID")
    else:
        channels = codes.shape[3]
        out = codes.shape[0] if code == "CONV_2D" else channels
        x = program.value("x", (1, 6, 6, channels), encoding())
        y = program.value("y", (1, 7 - codes.shape[1], 7 - codes.shape[2], out), encoding(scale=0.7))
        bias = program.constant("layer/bias", np.zeros(out, np.int32))
        more = {} if code == "CONV_2D" else {"depthMultiplier": 1}
        program.emit(code, [x, kernel, bias], y, fusedActivationFunction="NONE", **conv, **more)
    program.inputs, program.outputs = [x], [y]
    return program


def files_of(program: Program, wanted: LookUpTables = LookUpTables()) -> tuple[bytes, bytes]:  # noqa: B008
    tflm = targets.load("tflm")
    plain = to_bytes(program, tflm, {})
    store_weights(program, [wanted])
    return plain, to_bytes(program, tflm, {})


def outputs(content: bytes, runtime: str = "tflm", samples: int = 3) -> list[np.ndarray]:
    """Outputs for random codes, the same ones for every file with these inputs."""
    rng, invoke = np.random.default_rng(0), interpreters.open_runtime(content, runtime)
    found = []
    for _ in range(samples):
        codes = [
            rng.integers(0, 4, t.shape, np.int32) if t.type == "INT32" else rng.integers(-128, 128, t.shape, np.int8)
            for t in read_model(content).inputs
        ]
        found.append(invoke(codes)[0])
    return found


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.uint8, st.integers(0, 70), elements=st.integers(0, 127)), st.integers(1, 7))
def test_packed_indices_are_the_bits_written_one_behind_the_other(indices, bits):
    indices = indices & ((1 << bits) - 1)
    text = "".join(f"{i:0{bits}b}" for i in indices)
    text += "0" * (-len(text) % 8)
    data = pack(indices, bits)
    assert data == bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    assert np.array_equal(unpack(data, bits, len(indices)), indices)


@settings(max_examples=60, deadline=None)
@given(CODES, st.sampled_from([None, "first", "last"]))
def test_tables_give_every_code_back(codes, side):
    axis = {None: None, "first": 0, "last": codes.ndim - 1}[side]
    lut = encode(codes, axis)
    rows = [codes] if axis is None else np.moveaxis(codes, axis, 0)
    most = max(len(np.unique(row)) for row in rows)
    assert lut.tables.shape == (len(rows), most) and lut.bits == max(1, int(np.ceil(np.log2(most))))
    stored = pack(lut.indices, lut.bits), header(lut)
    assert lut.size_bytes == sum(map(len, stored))
    assert np.array_equal(decode(*stored, codes.shape, "int8"), codes)


def test_one_table_where_channels_share_their_codes():
    shared = RNG.integers(-1, 2, (16, 40)).astype(np.int8)
    assert smallest(shared, 0).axis is None and smallest(shared, None).axis is None
    own = shared + np.arange(0, 64, 4, dtype=np.int8)[:, None]
    assert smallest(own, 0).axis == 0
    assert encode(np.arange(-100, 100, dtype=np.int8)) is None
    with pytest.raises(ValueError, match="first or the last axis"):
        encode(np.zeros((2, 2, 2), np.int8), 1)
    with pytest.raises(ValueError, match="not a header"):
        decode(b"", bytes(20), (0,), "int8")


@needs_tflm
@pytest.mark.parametrize("values", [1, 2, 3, 7, 16, 31, 60, 128])
@pytest.mark.parametrize("axis", [None, 0])
def test_tflm_decodes_every_width(values, axis):
    levels = np.int8(RNG.permutation(np.arange(-127, 127))[:values])
    codes = RNG.choice(levels, (24, 99 if values < 128 else 299))
    if axis is not None and values < 10:
        codes = codes // 2 + np.arange(24, dtype=np.int8)[:, None]  # tables of their own
    plain, tabled = files_of(one_operator("FULLY_CONNECTED", codes.astype(np.int8), axis))
    file = read_model(tabled)
    assert file.operator_counts == {"TFLM_DECODE": 1, "FULLY_CONNECTED": 1}
    assert len(tabled) < len(plain)
    assert all(np.array_equal(a, b) for a, b in zip(outputs(plain), outputs(tabled), strict=True))
    assert np.array_equal(constants(tabled)[file.tables[0].output], codes)
    with pytest.raises((ValueError, RuntimeError), match="TFLM_DECODE"):
        interpreters.open_runtime(tabled, "litert")


@needs_tflm
@pytest.mark.parametrize(
    ("code", "shape", "axis"),
    [
        ("CONV_2D", (16, 3, 3, 8), 0),
        ("CONV_2D", (5, 3, 3, 21), None),
        ("DEPTHWISE_CONV_2D", (1, 5, 5, 33), 3),
        ("TRANSPOSE_CONV", (12, 3, 3, 12), 0),
        ("GATHER", (40, 30), None),
    ],
)
def test_operators_read_decoded_weights(code, shape, axis):
    codes = RNG.integers(-2, 2, shape).astype(np.int8)
    if axis is not None:
        channel = np.moveaxis(np.arange(shape[axis]).reshape(-1, 1, 1, 1), 0, axis).astype(np.int8)
        codes = codes + 3 * channel
    plain, tabled = files_of(one_operator(code, codes, axis))
    assert len(read_model(tabled).tables) == 1
    assert all(np.array_equal(a, b) for a, b in zip(outputs(plain), outputs(tabled), strict=True))


@needs_tflm
@pytest.mark.parametrize(
    ("code", "shape", "axis"), [("FULLY_CONNECTED", (32, 128), None), ("CONV_2D", (16, 3, 3, 24), 0)]
)
def test_packed_weights_of_two_bits_take_two_bits(code, shape, axis):
    plain, tabled = files_of(one_operator(code, RNG.integers(-2, 2, shape).astype(np.int8), axis, "int4"))
    stored = read_model(tabled).tables[0].stored_bytes
    assert stored == int(np.prod(shape)) // 4 + 16 + 4
    assert len(tabled) < len(plain) - int(np.prod(shape)) // 4 + 260
    assert all(np.array_equal(a, b) for a, b in zip(outputs(plain), outputs(tabled), strict=True))


def shared_kernel(between: bool = False) -> Program:
    """Two layers that read one kernel, one behind the other or with a third between."""
    program = Program("shared")
    kernel = program.constant("layer/kernel", RNG.integers(-2, 2, (64, 64)).astype(np.int8), encoding())
    x = program.inputs = [program.value("x", (1, 64), encoding())]
    for name in ("a", "between", "b") if between else ("a", "b"):
        y = program.value(name, (1, 64), encoding(scale=1.0))
        x = [
            program.emit("RELU", x, y)
            if name == "between"
            else program.emit("FULLY_CONNECTED", [x[0], kernel, None], y)
        ]
    program.outputs = x
    return program


def test_weights_that_two_layers_share_count_once():
    plain, tabled = (kquant.layer_bytes(content).layers for content in files_of(shared_kernel()))
    assert [(layer.name, layer.raw_bytes) for layer in plain] == [("layer/kernel", 64 * 64)]
    assert [(layer.name, layer.raw_bytes) for layer in tabled] == [("layer/kernel", 64 * 64)]
    assert tabled[0].stored_bytes < plain[0].stored_bytes


@needs_tflm
def test_weights_that_two_layers_share_are_stored_once():
    plain, tabled = files_of(shared_kernel(between=True))
    file = read_model(tabled)
    # what is decoded does not wait in the arena for a reader that comes later
    assert [op.code for op in file.operators] == [
        *("TFLM_DECODE", "FULLY_CONNECTED"),
        "RELU",
        *("TFLM_DECODE", "FULLY_CONNECTED"),
    ]
    assert len({t.indices for t in file.tables}) == 1
    assert all(np.array_equal(a, b) for a, b in zip(outputs(plain), outputs(tabled), strict=True))


@needs_tflm
def test_layers_one_behind_the_other_share_what_is_decoded():
    plain, tabled = files_of(shared_kernel())
    assert [op.code for op in read_model(tabled).operators] == ["TFLM_DECODE", "FULLY_CONNECTED", "FULLY_CONNECTED"]
    assert all(np.array_equal(a, b) for a, b in zip(outputs(plain), outputs(tabled), strict=True))


@needs_tflm
def test_a_layer_that_is_called_twice_in_a_row_is_decoded_once(tmp_path: Path):
    inputs = keras.Input((64,))
    twice = keras.layers.Dense(64, activation="relu", name="twice")
    net = keras.Model(inputs, keras.layers.Dense(4, name="head")(twice(twice(inputs))))
    twice.kernel.assign(twice.kernel.numpy() * (RNG.random((64, 64)) < 0.2))
    q = kquant.quantize(net, target="tflm")
    kquant.calibrate(q, RNG.normal(size=(64, 64)).astype(np.float32), verbose=False)
    made = kquant.export(q, tmp_path / "m.tflite", compression="prune")  # runs both files, and compares their codes
    file = read_model((tmp_path / "m.tflite").read_bytes())
    assert [op.code for op in file.operators] == ["TFLM_DECODE", *["FULLY_CONNECTED"] * 3]
    assert made.decoding is not None
    assert made.decoding.lookups == 64 * 64


@needs_tflm
def test_tflms_own_compressor_stores_the_same_bytes():
    compression = pytest.importorskip("tflite_micro").compression
    codes = (RNG.integers(0, 16, (16, 3, 3, 16)) * 3 + np.arange(16).reshape(-1, 1, 1, 1)).astype(np.int8)
    plain, tabled = files_of(one_operator("CONV_2D", codes, 0))
    index = next(t.index for t in read_model(plain).tensors if t.name == "layer/kernel")
    spec = compression.SpecBuilder().add_tensor(subgraph=0, tensor=index)
    spec = spec.with_lut(index_bitwidth=4, mode=compression.spec.PerChannel(axis=0))
    theirs = bytes(compression.compress(plain, spec.build()))
    a, b = read_model(theirs), read_model(tabled)
    assert a.operator_counts == b.operator_counts
    for field in ("indices", "tables"):
        mine, other = getattr(b.tables[0], field), getattr(a.tables[0], field)
        assert np.array_equal(constants(tabled)[mine], constants(theirs)[other])
    assert len(tabled) <= len(theirs)


def test_buffers_are_aligned_and_equal_vectors_are_written_once():
    content, _ = files_of(one_operator("CONV_2D", RNG.integers(-9, 9, (64, 3, 3, 8)).astype(np.int8), 0))
    model = schema.Model.GetRootAs(content, 0)
    buffers = [model.Buffers(i) for i in range(model.BuffersLength())]
    starts = [buffer._tab.Vector(buffer._tab.Offset(4)) for buffer in buffers if buffer.DataLength()]
    assert starts and all(start % 16 == 0 for start in starts)
    assert content.count(np.zeros(64, np.int64).tobytes()) <= 1
    assert content.count(np.int32([64, 3, 3, 8]).tobytes()) == 1


# --- whole models


def clustered(target: str = "tflm", levels: int = 16) -> keras.Model:
    """A convolution, a depthwise one and a dense layer, `levels` values a channel that int8 represents exactly."""
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input((8, 8, 8), name="x")
    x = layers.Conv2D(24, 3, activation="relu", name="conv")(x)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    model = keras.Model(inputs, layers.Dense(12, name="head")(layers.Flatten()(x)))
    for layer, axis in (("conv", 3), ("head", 1)):
        kernel = model.get_layer(layer).kernel
        chosen = np.zeros(kernel.shape)
        for c in range(kernel.shape[axis]):
            chosen[..., c] = RNG.choice(RNG.permutation(np.arange(-126, 127))[: levels - 1], kernel.shape[:-1])
        chosen[(0,) * (chosen.ndim - 1)] = 127  # the largest code, so that the scale is what it was chosen with
        kernel.assign(np.float32(chosen / 1024) * (1 + np.arange(kernel.shape[axis], dtype="float32") / 50))
    data = RNG.normal(size=(32, 8, 8, 8)).astype("float32")
    return kquant.calibrate(kquant.quantize(model, target=target), data, verbose=False)


@pytest.fixture(scope="module")
def qmodel():
    return clustered()


@pytest.fixture(scope="module")
def exports(qmodel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lut")
    plain = kquant.export(qmodel, folder / "plain.tflite")
    return plain, kquant.export(qmodel, folder / "lut.tflite", compression="lut")


@needs_tflm
def test_outputs_stay_and_bytes_go(exports):
    plain, lut = (Path(r.path).read_bytes() for r in exports)
    assert all(np.array_equal(a, b) for a, b in zip(outputs(plain), outputs(lut), strict=True))
    assert len(lut) < 0.85 * len(plain)
    assert exports[1].verification[0].runtime == "tflm" and exports[1].verification[0].ok
    assert all(a.equal == 1.0 for a in exports[1].verification[0].agreements)
    assert exports[1].arena_bytes and exports[1].operators["TFLM_DECODE"] == 2


@needs_tflm
def test_report_counts_what_numpy_counts(exports):
    plain = Path(exports[0].path).read_bytes()
    held, tensors = constants(plain), {t.name: t for t in read_model(plain).tensors}
    before, after = exports[0].weights, exports[1].weights
    assert [w.name for w in before.layers] == ["conv/kernel", "depthwise/kernel", "head/kernel"]
    for layer, tabled in zip(before.layers, after.layers, strict=True):
        t = tensors[layer.name]
        codes = held[t.index]
        assert layer.raw_bytes == layer.stored_bytes == codes.size == t.size_bytes
        assert layer.sparsity == pytest.approx(np.mean(codes == 0))
        assert layer.unique == len(np.unique(codes))
        assert layer.unique_per_channel == max(len(np.unique(c)) for c in np.moveaxis(codes, t.axis, 0))
        assert (layer.lut_bytes, tabled.raw_bytes) == (tabled.lut_bytes, layer.raw_bytes)
        assert tabled.stored_bytes == (layer.raw_bytes if "depthwise" in layer.name else layer.lut_bytes)
    conv = before.layers[0]
    assert conv.lut_bytes == 24 * 9 * 8 // 2 + 16 + 24 * conv.unique_per_channel
    assert before.totals["raw_bytes"] == sum(held[tensors[w.name].index].size for w in before.layers)
    assert after.totals["stored_bytes"] < before.totals["stored_bytes"] == before.totals["raw_bytes"]
    assert before.deflated_file_bytes < before.file_bytes == len(plain)


@needs_tflm
def test_reports_show_tables(exports, tmp_path):
    text = report.render(exports[1])
    assert "stored in" in text and "conv/kernel" in text and len(text.splitlines()) < 60
    text = report.render(kquant.inspect(exports[1].path))
    assert "2 weights lie in look-up tables" in text and "TFLM_DECODE" in text
    assert "tensors of weights" in report.render(kquant.layer_bytes(exports[1].path))
    assert '"lut_bytes"' in report.to_json(exports[1])
    content = Path(exports[1].path).read_bytes()
    _, source = save_c_array(content, tmp_path, "net")
    assert f"net_model_len = {len(content)};" in source.read_text()


@needs_tflm
def test_verify_takes_the_file(qmodel, exports):
    data = RNG.normal(size=(4, 8, 8, 8)).astype("float32")
    assert kquant.verify(qmodel, exports[1].path, data, "tflm").agreements[0].equal == 1.0
    with pytest.raises(ValueError, match="look-up tables.*runtime='tflm'"):
        kquant.verify(qmodel, exports[1].path, data, "litert")
    other = clustered(levels=9)
    found = kquant.verify(other, exports[1].path, data, "tflm")
    assert not found.ok and found.first_difference


@needs_tflm
def test_named_layers_only(qmodel, tmp_path):
    wanted = kquant.LookUpTables(names=("head",), max_bits=4)
    made = kquant.export(qmodel, tmp_path / "m.tflite", compression=wanted, io="float32")
    assert [t.name for t in kquant.inspect(made.path).tables] == ["head/kernel"]


def test_what_cannot_be_is_refused_with_the_way_out(qmodel, tmp_path, monkeypatch):
    path = tmp_path / "m.tflite"
    path.write_bytes(b"older")

    def refused(match, compression, model=qmodel):
        with pytest.raises(ValueError, match=match):
            kquant.export(model, path, compression=compression, check_runtimes=False)
        assert path.read_bytes() == b"older"

    refused("compression must be None, 'auto', 'lut', 'prune', 'huffman' or", "gzip")
    refused("no weights 'haed'. Did you mean 'head'", kquant.LookUpTables(("haed",)))
    refused("distinct codes.*Cluster its weights first", kquant.LookUpTables(("conv",), max_bits=3))
    refused("'depthwise/kernel' gets no smaller", kquant.LookUpTables(("depthwise",)))
    refused("quantize with target='tflm'", "lut", clustered("litert"))
    refused("no weights get smaller", kquant.LookUpTables(max_bits=1))
    with pytest.raises(ValueError, match="max_bits must be a whole number, 1 to 7"):
        kquant.LookUpTables(max_bits=8)
    monkeypatch.setattr("kquant.exporting.stored_check.available", lambda: ["litert"])
    with pytest.raises(ValueError, match=r"pip install 'kquant\[micro\]'"):
        kquant.export(qmodel, path, compression="lut")
    assert path.read_bytes() == b"older"


def test_weights_that_no_kernel_reads_decoded_are_refused():
    program = Program("sum")
    x, y = program.value("x", (1, 512), encoding()), program.value("y", (1, 512), encoding())
    program.emit("ADD", [x, program.constant("offset/value", np.zeros((1, 512), np.int8), encoding())], y)
    with pytest.raises(ValueError, match="'offset' cannot be stored in look-up tables.*read by ADD"):
        store_weights(program, [LookUpTables(("offset",))])
    assert store_weights(program, [LookUpTables()]) == []


@needs_tflm
def test_a_stream_keeps_its_tables(tmp_path):
    x = keras.Input((12, 16), name="x")
    y = layers.Conv1D(32, 3, padding="causal", name="conv")(x)
    model = keras.Model(x, layers.Conv1D(32, 3, padding="causal", name="second")(y))
    for layer in model.layers[1:]:
        layer.kernel.assign(np.sign(layer.kernel))
    data = RNG.normal(size=(32, 12, 16)).astype("float32")
    q = kquant.calibrate(kquant.quantize(model, target="tflm"), data, verbose=False)
    made = kquant.export(q, tmp_path / "s.tflite", data=data[:4], streaming=True, compression="lut")
    assert made.operators["TFLM_DECODE"] == 2 and all(c.equal == 1.0 for c in made.streaming.checks)


def test_plain_again():
    codes = RNG.integers(-2, 2, (16, 3, 3, 8)).astype(np.int8)
    plain, tabled = files_of(one_operator("CONV_2D", codes, None))
    again = without_decodes(tabled)
    assert read_model(again).operator_counts == {"CONV_2D": 1} and not read_model(again).tables
    for runtime in ("litert", "litert-reference"):
        both = zip(outputs(plain, runtime), outputs(again, runtime), strict=True)
        assert all(np.array_equal(a, b) for a, b in both)


@needs_tflm
def test_the_command_writes_and_counts(exports, tmp_path):
    from typer.testing import CliRunner

    from kquant.app.cli import app

    model = keras.Sequential([keras.Input((48,)), layers.Dense(48, name="head")])
    model.layers[0].kernel.assign(np.sign(model.layers[0].kernel))
    model.save(tmp_path / "net.keras")
    np.save(tmp_path / "x.npy", RNG.random((32, 48), np.float32))
    options = ["--data", tmp_path / "x.npy", "--target", "tflm", "--folder", tmp_path / "out", "--compression", "lut"]
    options += ["--recipe", "int16x8", "--details"]
    done = CliRunner().invoke(app, [str(a) for a in ("compress", tmp_path / "net.keras", *options)])
    assert done.exit_code == 0, done.output
    assert "stored in" in done.stdout
    done = CliRunner().invoke(app, ["bytes", str(tmp_path / "out" / "net.tflite")])
    assert done.exit_code == 0 and "head/kernel" in done.stdout

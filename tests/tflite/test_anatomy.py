"""Every byte of a file is counted once: the parts add up, and each is what another reader finds."""

from __future__ import annotations

import json

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from typer.testing import CliRunner

import kquant
from benchmarks import assets
from kquant import targets
from kquant.core.program import Program
from kquant.core.spec import Encoding, QuantSpec
from kquant.exporting.asked_storing import storing_of
from kquant.tflite.flatbuffer import packed, to_bytes, unpacked
from kquant.tflite.reader import places, read_model
from kquant.tflite.stored_weights import smaller_file

RNG = np.random.default_rng(2)
TFLM = targets.load("tflm")


def program() -> Program:
    made = Program("two")
    grid = Encoding(np.float32([0.1]), np.int64([0]), QuantSpec(8))
    made.inputs = x = [made.value("x", (1, 64), grid)]
    for name, side in (("few", 64), ("even", 24)):
        codes = RNG.integers(-127, 128, (side, x[0].shape[1]))
        codes = codes * (RNG.random(codes.shape) < 0.1) if name == "few" else codes
        spec = QuantSpec(8, symmetric=True, per_axis=True)
        scales = np.float32(RNG.uniform(0.01, 0.02, side))
        kernel = made.constant(
            f"{name}/kernel", codes.astype(np.int8), Encoding(scales, np.zeros(side, np.int64), spec, 0)
        )
        bias = made.constant(f"{name}/bias", RNG.integers(-9, 9, side).astype(np.int32))
        y = made.value(name, (1, side), grid)
        x = [made.emit("FULLY_CONNECTED", [x[0], kernel, bias], y, fusedActivationFunction="NONE")]
    made.outputs = x
    return made


def parts_of(content: bytes) -> dict[str, int]:
    counted = kquant.layer_bytes(content)
    found = {part.name: part.bytes for part in counted.parts}
    assert sum(found.values()) == counted.file_bytes == len(content)
    weights = sum(size for name, size in found.items() if name.startswith("weights"))
    assert counted.overhead_bytes == len(content) - weights
    return found


def test_parts_are_what_numpy_counts():
    content = to_bytes(program(), TFLM, {"recipe": "int8"})
    found = parts_of(content)
    assert found["weights, plain"] == 64 * 64 + 24 * 64 + 2 * 4  # and how long each is
    assert found["biases"] == 4 * (64 + 24) + 2 * 4
    assert found["scales"] == 4 * (64 + 24 + 1) + 3 * 4
    # 64 and 24 zeros, and one: of the tensors between
    assert found["zero points"] == 8 * (64 + 24 + 1) + 3 * 4
    file = read_model(content)
    names = {*(t.name for t in file.tensors), "main"}
    assert found["names"] == sum(len(name) + 5 for name in names) + len("kquant") + 5
    text = json.dumps({"recipe": "int8"}, sort_keys=True)
    assert found["metadata"] >= len(text) + 4
    assert found["padding"] < 16 * 8


def test_codes_are_told_apart():
    content, decoding = smaller_file(program(), TFLM, {}, storing_of("auto"))
    assert decoding is not None and dict(decoding.tensors) == {"prune": ("few/kernel",)}
    found, table = parts_of(content), read_model(content).tables[0]
    both = found["weights, bit masks"] + found["weights, bit masks: headers and tables"]
    assert both == table.stored_bytes + 2 * 4
    assert found["weights, plain"] == 24 * 64 + 4


def test_what_stands_behind_is_told():
    content = to_bytes(program(), TFLM, {})
    found, more = parts_of(content), parts_of(content + bytes(1000))
    assert more == {**found, "behind the flatbuffer": found.get("behind the flatbuffer", 0) + 1000}


def test_a_shared_table_counts_once():
    model = unpacked(to_bytes(program(), TFLM, {}))
    again = packed(model)
    found = parts_of(again)
    # unpacked and packed by the schema's own code: other padding, and metadata as a plain buffer
    assert found["scales"] == parts_of(to_bytes(program(), TFLM, {}))["scales"]
    count = schema.Model.GetRootAs(again, 0).BuffersLength()
    assert found["buffers"] <= 12 * count + 4


FILES = sorted((assets.FOLDER / "mlperf_tiny").glob("*/*.tflite"))


@pytest.mark.skipif(not FILES, reason="the models are not part of the repository; set KQUANT_ASSETS")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_foreign_files_add_up(path):
    content = path.read_bytes()
    found = parts_of(content)
    held = sum(len(place) for place in {*places(content).values()})  # tensors may share contents
    contents = [size for name, size in found.items() if name.startswith(("weights", "biases", "other constants"))]
    assert held <= sum(contents) <= held + 8 * len(read_model(content).tensors)
    assert found["padding"] < 0.02 * len(content) + 64


def test_the_command_tells_all(tmp_path):
    path = tmp_path / "m.tflite"
    path.write_bytes(to_bytes(program(), TFLM, {}))
    done = CliRunner().invoke(_app(), ["bytes", str(path)])
    assert done.exit_code == 0 and "weights, plain" in done.stdout and "layouts of tables" in done.stdout
    done = CliRunner().invoke(_app(), ["bytes", str(path), "--json"])
    told = json.loads(done.stdout)
    assert sum(part["bytes"] for part in told["parts"]) == told["file_bytes"] == path.stat().st_size


def _app():
    from kquant.app.cli import app

    return app


def test_damaged_files_are_refused_or_add_up():
    content = bytearray(to_bytes(program(), TFLM, {}))
    rng = np.random.default_rng(1)
    for _ in range(200):
        damaged = bytearray(content)
        for at in rng.integers(8, len(content), 4):
            damaged[at] = rng.integers(256)
        try:
            parts_of(bytes(damaged))
        except ValueError as error:
            assert "damaged" in str(error) or "not a TFLite file" in str(error)


@pytest.mark.skipif(not FILES, reason="the models are not part of the repository; set KQUANT_ASSETS")
def test_what_the_keyword_model_has_beside_its_weights(tmp_path):
    """6 KB with one scale for each kernel; with one for each channel the scales and biases alone are 4.9."""
    t = assets.task("keyword_spotting")
    found = {}
    for per_axis in (True, False):
        recipe = {"name": "int8", "weights": {"per_axis": per_axis}}
        q = kquant.calibrate(kquant.quantize(t.model, recipe, target="tflm"), t.calibration, verbose=False)
        kquant.export(q, tmp_path / "m.tflite", strip_names=True, check_runtimes=False)
        found[per_axis] = kquant.layer_bytes(tmp_path / "m.tflite")
    assert found[False].overhead_bytes <= 6 * 1024 and found[False].file_bytes <= 0.82 * 34_448
    assert found[True].overhead_bytes <= 7_600
    parts = {part.name: part.bytes for part in found[True].parts}
    assert parts["biases"] + parts["scales"] > 0.6 * found[True].overhead_bytes and parts["padding"] < 200

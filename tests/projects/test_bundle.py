"""Projects for microcontrollers: the report, the arena, every kind, debug models, streams; they appear whole or not."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from small_project import X, compiled, small_bundle, small_model  # noqa: F401

import kquant
from kquant.exporting.streams import Stream
from kquant.projects import project
from kquant.projects.arena import peak_of
from kquant.projects.kinds import kinds
from kquant.report.page import page
from kquant.runtime.arenas import arena_parts
from kquant.runtime.running import available, quantize_input
from kquant.tflite.memory_plan import ALIGNMENT

pytestmark = [
    pytest.mark.skipif("tflm" not in available(), reason="runs on TFLM: pip install 'kquant[micro]' (Linux only)"),
    pytest.mark.filterwarnings("ignore:calibrate. .* carry hardly any signal"),
]
layers = keras.layers


def test_the_report_tells_what_was_written(made: kquant.BundleReport) -> None:
    folder = Path(made.folder)
    assert sorted(made.files) == sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    content = (folder / "model.tflite").read_bytes()
    assert made.flash_bytes == len(content) == made.export.file_bytes
    assert made.macs == 6 * 6 * 4 * 9 * 2 + 144 * 3
    assert made.operators == kquant.inspect(content).operator_counts
    assert json.loads(json.dumps(made.to_dict()))["arena"]["bytes"] == made.arena.bytes
    assert f"{made.arena.bytes:,}" in repr(made)
    card = page(made).tables[0]
    assert dict(zip(card.columns, card.rows[0], strict=True))["arena to reserve"] == f"{made.arena.bytes:,}"
    manifest = json.loads((folder / "bundle.json").read_text())
    assert set(manifest["files"]) == set(made.files) - {"bundle.json"}


IN_AN_ARENA = """
import sys
from tflite_micro import runtime
content = open(sys.argv[1], "rb").read()
runtime.Interpreter.from_bytes(content, arena_size=int(sys.argv[2])).invoke()
"""


def _starts(path: Path, arena: int) -> bool:
    """Whether TFLM's own interpreter runs a file in so many bytes."""
    command = [sys.executable, "-c", IN_AN_ARENA, str(path), str(arena)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_the_arena_is_the_smallest(made: kquant.BundleReport) -> None:
    folder = Path(made.folder)
    content = (folder / "model.tflite").read_bytes()
    assert _starts(folder / "model.tflite", made.arena.smallest_bytes)
    assert not _starts(folder / "model.tflite", made.arena.smallest_bytes - ALIGNMENT)
    # the convolution reads and writes; its input is that of the network
    assert made.arena.peak_bytes == made.arena.activation_bytes == 8 * 8 * 2 + 6 * 6 * 4
    assert made.arena.smallest_bytes > made.arena.activation_bytes + made.arena.persistent_bytes
    assert made.arena.scratch_bytes == 0  # no kernel of it asks for any
    assert f"#define NET_ARENA_SIZE {made.arena.bytes}\n" in (Path(made.folder) / "arena.h").read_text()
    assert peak_of(kquant.inspect(content)) == ("conv_relu", made.arena.peak_bytes)


def test_the_arena_to_reserve_is_told_before(q: keras.Model, made: kquant.BundleReport) -> None:
    told = kquant.estimate(kquant.strip(q), target="tflm")
    assert told.arena_bytes is not None and told.reserve_bytes is not None
    # biases that are not trained count as such that are not 0
    assert 0 <= told.arena_bytes - made.arena.smallest_bytes < 200
    assert told.reserve_bytes - told.arena_bytes == made.arena.margin_bytes


def test_of_what_the_arena_consists(tmp_path: Path) -> None:
    """MEAN asks for 4 bytes a sum, behind the tensors, which fill their plan while it runs."""
    x = keras.Input((6, 6, 20))
    model = keras.Model(x, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)), name="mean")
    data = np.random.default_rng(0).normal(size=(64, 6, 6, 20)).astype("float32")
    q = kquant.calibrate(kquant.quantize(model, target="tflm"), data, verbose=False)
    arena = kquant.bundle(q, tmp_path / "mean", data=data, golden=1).arena
    told = arena_parts((tmp_path / "mean" / "model.tflite").read_bytes())
    assert (arena.activation_bytes + arena.scratch_bytes, arena.persistent_bytes) == told[1:]
    assert arena.activation_bytes == 6 * 6 * 20 + 32  # 20 codes take 32 bytes
    assert arena.scratch_bytes == 20 * 4 + 16 + 16  # and the places of an axis and of an index
    header = (tmp_path / "mean" / "arena.h").read_text()
    readme = (tmp_path / "mean" / "README.md").read_text()
    for part, size in (("activations", arena.activation_bytes), ("persistent", arena.persistent_bytes)):
        assert re.search(rf"//   {part}, .*: {size} bytes", header) and f"{part} {size:,}" in readme
    assert f"it: {arena.scratch_bytes} bytes" in header and f"scratch of kernels {arena.scratch_bytes:,}, " in readme


@pytest.mark.parametrize("kind", sorted(name for name, kind in kinds().items() if kind.arena))
def test_every_kind_is_whole(q: keras.Model, kind: str, tmp_path: Path) -> None:
    made = kquant.bundle(q, tmp_path / kind, data=X, kind=kind, name="my net", golden=1)
    folder = tmp_path / kind
    assert made.name == "my_net"
    texts = {name: (folder / name).read_text() for name in made.files if not name.endswith(".tflite")}
    assert all(text.strip() and "{{" not in text and "{%" not in text for text in texts.values())
    sources = {Path(name).name for name in texts if name.endswith((".cc", ".cpp", ".c"))}
    assert {"io.c", *(f"{name}{kinds()[kind].cpp}" for name in ("model", "golden", "self_test"))} <= sources
    others = (".cc", ".cpp", ".c", ".h", ".md", ".json", ".ino")
    told = "\n".join(text for name, text in texts.items() if not name.endswith(others))
    if kind != "arduino":  # which compiles all of `src`
        assert all(source in told for source in sources), told
    if kind == "zephyr":
        assert "config MY_NET\n" in texts["zephyr/Kconfig"]
        assert "CONFIG_MY_NET" in texts["zephyr/CMakeLists.txt"]


def test_cmake_takes_the_project(made: kquant.BundleReport, tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("no cmake here")
    subprocess.run(["cmake", "-S", made.folder, "-B", str(tmp_path / "build")], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", str(tmp_path / "build")], check=True, capture_output=True)
    assert list((tmp_path / "build").glob("libnet_model.a"))


def test_scales_of_units_are_told_where_they_take_much(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    stack = [layers.Dense(200, activation="relu"), layers.Dense(4)]
    model = keras.Sequential([keras.Input((8,)), *stack], name="wide")
    arenas = {}
    for per_axis in (True, False):
        recipe = {"name": "one", "weights": {"per_axis": per_axis}}
        q = kquant.calibrate(kquant.quantize(model, recipe, target="tflm"), x, verbose=False)
        made = kquant.bundle(q, tmp_path / str(per_axis), data=x, golden=1)
        arenas[per_axis] = made.arena
        told = "scales of single units | 1,632 bytes" in (tmp_path / str(per_axis) / "README.md").read_text()
        assert told == per_axis
    assert arenas[True].persistent_bytes - arenas[False].persistent_bytes == 8 * 204


def test_debug_tells_layers_in_order(q: keras.Model, tmp_path: Path) -> None:
    made = kquant.bundle(q, tmp_path / "all", data=X, name="net", golden=2, debug=True)
    text = (tmp_path / "all" / "debug" / "golden.cc").read_text()
    named = re.findall(r'{"([^"]*)", output_0_\d+', text)
    assert named == ["conv (conv_relu)", "flatten", "score", "score_softmax"]
    # the same arithmetic as in the file: its last output is that of the first golden vector
    last = re.search(r"output_0_3\[\] = {\s*([^}]*)}", text)
    whole = re.search(r"output_0_0\[\] = {\s*([^}]*)}", (tmp_path / "all" / "golden.cc").read_text())
    assert last is not None and whole is not None and last[1] == whole[1]
    (tmp_path / "main.cc").write_text("int main() { return 0; }\n")
    compiled(tmp_path / "all" / "debug", "model.cc", "golden.cc", "io.c", tmp_path / "main.cc", program=tmp_path / "p")
    assert "net_debug_self_test" in (tmp_path / "all" / "CMakeLists.txt").read_text()
    assert {"debug/model.cc", "debug/main.cc"} <= set(made.files)
    with pytest.raises(ValueError, match="debug=True is for models over whole clips"):
        kquant.bundle(q, tmp_path / "no", data=X, debug=True, streaming=True)


def test_streams_are_called_in_order(tmp_path: Path) -> None:
    x = keras.Input((16, 4), name="frames")
    y = layers.Conv1D(6, 3, padding="causal", activation="relu")(x)
    model = keras.Model(x, layers.Conv1D(2, 3, padding="causal", name="score")(y))
    data = np.random.default_rng(1).normal(size=(64, 16, 4)).astype("float32")
    q = kquant.calibrate(kquant.quantize(model, target="tflm"), data, verbose=False)
    for states in ("io", "variables"):
        made = kquant.bundle(q, tmp_path / states, data=data, streaming=True, states=states, golden=5)
        content = (tmp_path / states / "model.tflite").read_bytes()
        stream = Stream(content, "tflm")
        codes = quantize_input(data[:1], stream.file.inputs[0])
        wanted = [stream.step_codes([codes[:, n : n + 1]])[0].ravel().tolist() for n in range(5)]
        text = (tmp_path / states / "golden.cc").read_text()
        told = [re.search(rf"output_{n}_0\[\] = {{\s*([^}}]*)}}", text) for n in range(5)]
        assert [[int(v) for v in row[1].split(",") if v.strip()] for row in told if row] == wanted
        variables = "MicroResourceVariables" in (tmp_path / states / "self_test.cc").read_text()
        assert variables == (states == "variables") == ("VAR_HANDLE" in made.operators)


def test_an_earlier_bundle_gives_way_whole(q: keras.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "firmware"
    kquant.bundle(q, folder, data=X, kind="arduino", golden=1)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    def fails(*_: Any) -> dict[str, str]:
        raise ValueError("no room")

    with monkeypatch.context() as patch, pytest.raises(ValueError, match="no room"):
        patch.setattr(project.Outputs, "_take_places", fails)
        kquant.bundle(q, folder, data=X, golden=1)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    made = kquant.bundle(q, folder, data=X, golden=1)
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == set(made.files)
    assert "src/model.cpp" in {str(p.relative_to(folder)) for p in before} and "src/model.cpp" not in made.files

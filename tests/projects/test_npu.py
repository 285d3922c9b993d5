"""Projects for a Cortex-M with an Ethos-U: what Vela compiled is in the array, and what it leaves is told by layer."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest

import kquant
from kquant import report
from kquant.projects import npu
from kquant.projects.rendering import templates
from kquant.runtime.running import available
from kquant.tflite import vela
from kquant.tflite.reader import read_model

pytestmark = pytest.mark.skipif(
    "tflm" not in available(), reason="runs on TFLM: pip install 'kquant[micro]' (Linux only)"
)
layers = keras.layers
X = np.random.default_rng(0).normal(size=(64, 16, 16, 3)).astype("float32")


@pytest.fixture(scope="module")
def q() -> keras.Model:
    x = keras.Input((16, 16, 3), name="image")
    y = layers.Conv2D(4, 3, strides=2, activation="relu", name="stem")(x)
    y = layers.Activation("elu", name="soft")(y)  # a table, which Vela leaves on an Ethos-U55
    model = keras.Model(x, layers.Dense(3, name="score")(layers.Flatten(name="flat")(y)), name="net")
    return kquant.calibrate(kquant.quantize(model, target="ethos-u55"), X, verbose=False)


def test_without_vela_the_file_stays_and_the_install_line_is_told(
    q: keras.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vela, "find_vela", lambda: None)
    made = kquant.bundle(q, tmp_path / "fw", data=X, golden=1)
    assert made.compiled is not None and not made.compiled.compiler and "model_vela.tflite" not in made.files
    assert made.flash_bytes == made.export.file_bytes
    for said in ((tmp_path / "fw" / "README.md").read_text(), report.render(made)):
        assert "not compiled" in said and "pip install 'kquant[ethos-u]'" in " ".join(said.split())
    assert "AddEthosU" not in (tmp_path / "fw" / "op_resolver.h").read_text()


def test_other_targets_compile_nothing(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="score")], name="net")
    x = np.random.default_rng(0).random((64, 4), np.float32)
    plain = kquant.calibrate(kquant.quantize(model, target="tflm"), x, verbose=False)
    assert kquant.bundle(plain, tmp_path / "fw", data=x, golden=1).compiled is None
    with pytest.raises(ValueError, match="nothing compiles files for target 'tflm'; leave accelerator='ethos-u55-64'"):
        kquant.bundle(plain, tmp_path / "no", data=x, accelerator="ethos-u55-64")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(("compiler", "told"), [("Vela 0", "builds nothing"), ("", "runs it on QEMU"), (None, "QEMU")])
def test_the_readme_tells_of_the_emulator_where_it_runs_the_project(compiler: str | None, told: str) -> None:
    compiled = None if compiler is None else SimpleNamespace(compiler=compiler)
    about = SimpleNamespace(id="net", compiled=compiled, detection=None, ctc=None)
    install, cmake = (
        " ".join(templates().get_template(f"tflm/{name}.jinja").render(about=about, debug=None).split())
        for name in ("install.md", "emulated/CMakeLists.txt")
    )
    assert told in install and ("without a board" in install) != bool(compiler)
    assert ("holds what was compiled for an NPU" in cmake) == bool(compiler)


def test_ports_of_others_are_refused(q: keras.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kquant.export(q, tmp_path / "net.tflite", check_runtimes=False)
    content = (tmp_path / "net.tflite").read_bytes()
    other = keras.Sequential([keras.Input((4,), name="image"), layers.Dense(3, name="score")], name="net")
    x = np.random.default_rng(0).random((64, 4), np.float32)
    kquant.export(kquant.calibrate(kquant.quantize(other), x, verbose=False), tmp_path / "other.tflite")
    wrong = vela.Compiled("Vela 0", (tmp_path / "other.tflite").read_bytes(), {}, None)
    monkeypatch.setattr(vela, "find_vela", lambda: "vela")
    monkeypatch.setattr(vela, "compiled", lambda *_: wrong)
    with pytest.raises(ValueError, match="Vela 0 wrote other inputs than the file's"):
        npu.compiled_for(content, read_model(content), "ethos-u55-128")


@pytest.mark.skipif(vela.find_vela() is None, reason="needs Arm's compiler Vela: pip install 'kquant[ethos-u]'")
class TestWithVela:
    """Compiled for good."""

    def test_the_array_is_compiled_and_what_stays_is_told_by_layer(self, q: keras.Model, tmp_path: Path) -> None:
        made = kquant.bundle(q, tmp_path / "fw", data=X, golden=2, debug=True)
        folder = tmp_path / "fw"
        assert made.compiled is not None and re.match(r"Vela \d", made.compiled.compiler)
        assert made.compiled.accelerator == "ethos-u55-128"
        assert {(one.layer, one.code) for one in made.compiled.stays} == {("soft", "CAST"), ("soft", "GATHER")}
        assert all(one.reason for one in made.compiled.stays)
        compiled = (folder / "model_vela.tflite").read_bytes()
        assert made.flash_bytes == len(compiled) and made.export.file_bytes == len(
            (folder / "model.tflite").read_bytes()
        )
        words = re.findall("0x[0-9a-f]{2}", (folder / "model.cc").read_text().split("};")[0])
        assert bytes(int(word, 16) for word in words) == compiled
        called = re.findall(r"resolver\.(\w+)\(\)", (folder / "op_resolver.h").read_text())
        assert called == ["AddCast", "AddGather", "AddEthosU"]
        assert "AddEthosU" in (folder / "debug" / "op_resolver.h").read_text()
        text = (folder / "README.md").read_text()
        assert "| soft | GATHER |" in text and "CO_PROCESSOR=ethos_u" in text and made.compiled.compiler in text
        assert "not tried" in (folder / "arena.h").read_text()
        assert "On the processor" in report.render(made)

    def test_the_golden_vectors_are_those_of_the_file(self, q: keras.Model, tmp_path: Path) -> None:
        kquant.bundle(q, tmp_path / "fw", data=X, golden=2)
        wanted = kquant.predict(tmp_path / "fw" / "model.tflite", X[[0, 63]], runtime="tflm")
        (out,) = kquant.inspect(tmp_path / "fw" / "model.tflite").outputs
        text = (tmp_path / "fw" / "golden.cc").read_text()
        rows = [re.search(rf"output_{n}_0\[\] = {{\s*([^}}]*)}}", text) for n in range(2)]
        codes = np.array([[int(v) for v in row[1].split(",") if v.strip()] for row in rows if row])
        assert out.scale is not None
        steps = (codes - out.zero_point[0]).astype(np.float32)
        np.testing.assert_array_equal(steps * np.float32(out.scale[0]), wanted)

    def test_the_arena_holds_what_vela_planned(self, q: keras.Model, tmp_path: Path) -> None:
        made = kquant.bundle(q, tmp_path / "fw", data=X, golden=1, accelerator="ethos-u55-64", strip_names=True)
        arena, file = made.arena, kquant.inspect(tmp_path / "fw" / "model_vela.tflite")
        assert made.compiled is not None and made.compiled.accelerator == "ethos-u55-64"
        assert {one.layer for one in made.compiled.stays} == {"soft"}  # the file on the desk has no names
        assert arena is not None and not arena.tried and arena.smallest_bytes % 16 == 0
        scratch = max(int(np.prod(t.shape)) for t in file.tensors if t.name.startswith("scratch"))
        assert arena.activation_bytes >= scratch > 0
        assert arena.bytes > arena.smallest_bytes > arena.activation_bytes

    def test_its_refusals_are_told(self, q: keras.Model, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="invalid choice: 'ethos-u55-99'"):
            kquant.bundle(q, tmp_path / "no", data=X, accelerator="ethos-u55-99")
        assert not (tmp_path / "no").exists()

"""Projects for microcontrollers: they compile without a warning, say what TFLM computes, and appear whole or not."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kquant
from kquant import targets
from kquant.core.operators import OPERATORS, facts
from kquant.exporting.streams import Stream
from kquant.projects import project
from kquant.projects.arena import peak_of
from kquant.projects.described import described
from kquant.projects.golden import golden_vectors
from kquant.projects.kinds import kinds
from kquant.projects.languages import LANGUAGES
from kquant.projects.names import LONGEST, distinct, identifier
from kquant.projects.rendering import c_comment, c_string, rendered
from kquant.runtime.arenas import fits_arena
from kquant.runtime.running import available, quantize_input
from kquant.tflite.memory_plan import ALIGNMENT
from kquant.tflite.reader import contents, places

pytestmark = [
    pytest.mark.skipif("tflm" not in available(), reason="runs on TFLM: pip install 'kquant[micro]' (Linux only)"),
    pytest.mark.filterwarnings("ignore:calibrate. .* carry hardly any signal"),
]
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")
layers = keras.layers
X = np.random.default_rng(0).uniform(-1, 1, (64, 8, 8, 2)).astype("float32")


def _quantized(name: str = "net", target: str = "tflm", recipe: str = "int8", layer: str = "score") -> keras.Model:
    x = keras.Input((8, 8, 2), name="image")
    y = layers.Conv2D(4, 3, activation="relu", name="conv")(x)
    y = layers.Dense(3, activation="softmax", name=layer)(layers.Flatten()(y))
    return kquant.calibrate(kquant.quantize(keras.Model(x, y, name=name), recipe, target=target), X, verbose=False)


@pytest.fixture(scope="module")
def q() -> keras.Model:
    return _quantized()


@pytest.fixture(scope="module")
def made(q: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> kquant.BundleReport:
    folder = tmp_path_factory.mktemp("bundle") / "firmware"
    more: dict[str, Any] = {"labels": ["left", 'the "right"', "é"], "scale": 1 / 255, "mean": [0.5, 0.25], "std": 0.5}
    return kquant.bundle(q, folder, data=X, golden=3, **more)


def _compiled(folder: Path, *sources: str | Path, program: Path, flags: tuple[str, ...] = ()) -> str:
    """Compile and link as C11 and C++17 with every warning an error, run, and return what was printed."""
    objects = []
    for source in map(Path, sources):
        path = source if source.is_absolute() else folder / source
        one = program.parent / f"{path.stem}.o"
        compiler = ("gcc", "-std=c11") if path.suffix == ".c" else ("g++", "-std=c++17")
        command = [*compiler, *WARNINGS, f"-I{folder}", *flags, "-c", str(path), "-o", str(one)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        objects.append(str(one))
    subprocess.run(["g++", *objects, "-o", str(program), "-lm"], check=True)
    return subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout


def test_the_report_tells_what_was_written(made: kquant.BundleReport) -> None:
    folder = Path(made.folder)
    assert sorted(made.files) == sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    content = (folder / "model.tflite").read_bytes()
    assert made.flash_bytes == len(content) == made.export.file_bytes
    assert made.macs == 6 * 6 * 4 * 9 * 2 + 144 * 3
    assert made.operators == kquant.inspect(content).operator_counts
    assert json.loads(json.dumps(made.to_dict()))["arena"]["bytes"] == made.arena.bytes
    assert f"{made.arena.bytes:,}" in repr(made)
    manifest = json.loads((folder / "bundle.json").read_text())
    assert set(manifest["files"]) == set(made.files) - {"bundle.json"}


def test_the_arena_is_the_smallest(made: kquant.BundleReport) -> None:
    content = (Path(made.folder) / "model.tflite").read_bytes()
    assert fits_arena(content, made.arena.smallest_bytes)
    assert not fits_arena(content, made.arena.smallest_bytes - ALIGNMENT)
    # the RESHAPE reads as much as it writes; the tensors that TFLM plans for come to the same
    assert made.arena.peak_bytes == made.arena.activation_bytes == 2 * 6 * 6 * 4
    assert made.arena.smallest_bytes > made.arena.activation_bytes + made.arena.persistent_bytes
    assert f"#define NET_ARENA_SIZE {made.arena.bytes}\n" in (Path(made.folder) / "arena.h").read_text()
    assert peak_of(kquant.inspect(content)) == ("flatten", made.arena.peak_bytes)


MAIN = """
#include <math.h>
#include <stdio.h>
#include "golden.h"
#include "io.h"
#include "model.h"
int main() {
  for (size_t i = 0; i < net_model_size; ++i) printf("%02x", net_model[i]);
  printf("\\n");
  for (size_t c = 0; c < NET_GOLDEN_CALLS; ++c) {
    const signed char* x = static_cast<const signed char*>(net_golden_inputs[c][0].values);
    const signed char* y = static_cast<const signed char*>(net_golden_outputs[c][0].values);
    for (size_t i = 0; i < net_golden_inputs[c][0].bytes; ++i) printf("%d ", x[i]);
    for (size_t i = 0; i < net_golden_outputs[c][0].bytes; ++i) printf("%d ", y[i]);
  }
  printf("\\n");
  for (int i = -4000; i <= 4000; ++i) printf("%d ", net_input_image_code(0.001f * static_cast<float>(i)));
  const float odd[] = {INFINITY, -INFINITY, NAN};
  for (float v : odd) printf("%d ", net_input_image_code(v));
  printf("\\n");
  for (int i = -128; i <= 127; ++i) {
    printf("%.9g ", static_cast<double>(net_output_score_softmax_real(static_cast<int8_t>(i))));
  }
  printf("\\n%d %d\\n", net_input_image_code_of_raw(255.0f, 0), net_input_image_code_of_raw(0.0f, 1));
  printf("%s|%s|%s\\n", net_labels[0], net_labels[1], net_labels[2]);
  return 0;
}
"""


def test_the_sources_say_what_python_says(made: kquant.BundleReport, tmp_path: Path) -> None:
    folder = Path(made.folder)
    (tmp_path / "said.cc").write_text(MAIN)
    printed = _compiled(folder, "model.cc", "golden.cc", "io.c", tmp_path / "said.cc", program=tmp_path / "said")
    array, golden, codes, reals, raw, labels = printed.splitlines()
    content = (folder / "model.tflite").read_bytes()
    assert bytes.fromhex(array) == content
    file = kquant.inspect(content)
    picked = X[[0, 32, 63]]  # spread over all
    wanted = kquant.predict(content, picked, runtime="tflm")
    rows = np.array(golden.split(), int).reshape(3, -1)
    np.testing.assert_array_equal(rows[:, :128], quantize_input(picked, file.inputs[0]).reshape(3, -1))
    (scale,), (zero,) = file.outputs[0].scale or (), file.outputs[0].zero_point
    np.testing.assert_array_equal((rows[:, 128:] - zero) * np.float32(scale), wanted)
    values = np.float32(0.001) * np.arange(-4000, 4001, dtype=np.float32)
    expected = quantize_input(values, file.inputs[0])
    got = np.array(codes.split(), int)
    np.testing.assert_array_equal(got[:-3], expected)
    assert got[-3:].tolist() == [127, -128, -128]
    of_codes = (np.arange(-128, 128) - zero) * np.float32(scale)
    np.testing.assert_array_equal(np.array(reals.split(), np.float32), of_codes)
    real = np.array([(255 / 255 - 0.5) / 0.5, (0 - 0.25) / 0.5], np.float32)
    assert [int(v) for v in raw.split()] == quantize_input(real, file.inputs[0]).tolist()
    assert labels == 'left|the "right"|é'


CORES = {
    "M0+": ("-mcpu=cortex-m0plus", "-mthumb"),
    "M4F": ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"),
    "M55": ("-mcpu=cortex-m55", "-mthumb", "-mfloat-abi=hard"),
}


@pytest.mark.skipif(shutil.which("arm-none-eabi-g++") is None, reason="needs Debian's gcc-arm-none-eabi")
@pytest.mark.parametrize("core", CORES)
def test_it_compiles_for_a_core(made: kquant.BundleReport, core: str, tmp_path: Path) -> None:
    for source in ("model.cc", "golden.cc", "io.c"):
        compiler = ("gcc", "-std=c11") if source.endswith(".c") else ("g++", "-std=c++17")
        command = [f"arm-none-eabi-{compiler[0]}", compiler[1], *WARNINGS, *CORES[core], "-Os", "-c"]
        command += [str(Path(made.folder) / source), "-o", str(tmp_path / "x.o")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_operators_are_registered_once(made: kquant.BundleReport) -> None:
    text = (Path(made.folder) / "op_resolver.h").read_text()
    called = re.findall(r"resolver\.(\w+)\(\)", text)
    assert called == ["AddConv2D", "AddFullyConnected", "AddReshape", "AddSoftmax"]
    assert "kOperators = 4;" in text


def test_every_operator_of_tflm_has_a_registration_or_is_known_to_have_none() -> None:
    lacking = [code for code in targets.load("tflm").ops if facts(code).resolver_of(code) is None]
    assert all(OPERATORS[code].resolver == "" for code in lacking)
    # what is no camel case in tensorflow/lite/micro/micro_mutable_op_resolver.h
    named = {"BATCH_MATMUL": "AddBatchMatMul", "PADV2": "AddPadV2", "TFLM_DECODE": "AddDecode"}
    named |= {"SPACE_TO_BATCH_ND": "AddSpaceToBatchNd", "LEAKY_RELU": "AddLeakyRelu", "RELU6": "AddRelu6"}
    named |= {"UNIDIRECTIONAL_SEQUENCE_LSTM": "AddUnidirectionalSequenceLSTM", "SELECT_V2": "AddSelectV2"}
    assert {code: facts(code).resolver_of(code) for code in named} == named


@pytest.mark.parametrize("kind", sorted(name for name, kind in kinds().items() if kind.arena))
def test_every_kind_is_whole(q: keras.Model, kind: str, tmp_path: Path) -> None:
    made = kquant.bundle(q, tmp_path / kind, data=X, kind=kind, name="my net", golden=1)
    folder = tmp_path / kind
    assert made.name == "my_net"
    texts = {name: (folder / name).read_text() for name in made.files if not name.endswith(".tflite")}
    assert all(text.strip() and "{{" not in text and "{%" not in text for text in texts.values())
    sources = {Path(name).name for name in texts if name.endswith((".cc", ".c"))}
    assert {"model.cc", "io.c", "golden.cc", "self_test.cc"} <= sources
    others = (".cc", ".c", ".h", ".md", ".json", ".ino")
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


# As much of TensorFlow Lite Micro as the self-test names; its interpreter has no room for any model.
STANDS_FOR_TFLM = """
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#define MicroPrintf(...) (printf(__VA_ARGS__), printf("\\n"))
#define TFLITE_SCHEMA_VERSION 3
enum TfLiteStatus { kTfLiteOk, kTfLiteError };
struct TfLiteTensor { union { void* data; } data; size_t bytes; };
namespace tflite {
struct Model { unsigned version() const { return 3; } };
inline const Model* GetModel(const void* data) { return static_cast<const Model*>(data); }
template <unsigned n> struct MicroMutableOpResolver {
  TfLiteStatus AddConv2D() { return kTfLiteOk; }
  TfLiteStatus AddFullyConnected() { return kTfLiteOk; }
  TfLiteStatus AddReshape() { return kTfLiteOk; }
  TfLiteStatus AddSoftmax() { return kTfLiteOk; }
};
struct MicroInterpreter {
  template <class R> MicroInterpreter(const Model*, const R&, uint8_t*, size_t) {}
  TfLiteStatus AllocateTensors() { return kTfLiteError; }
  TfLiteStatus Invoke() { return kTfLiteError; }
  TfLiteTensor* input(size_t) { return nullptr; }
  TfLiteTensor* output(size_t) { return nullptr; }
  size_t arena_used_bytes() const { return 0; }
};
}  // namespace tflite
"""


def _flipped(folder: Path, name: str) -> None:
    """One bit in the middle of a tensor in `model.cc`."""
    content = (folder / "model.tflite").read_bytes()
    index = next(t.index for t in kquant.inspect(content).tensors if t.name == name)
    place = places(content)[index]
    assert content[place.start : place.stop] == np.ascontiguousarray(contents(content)[1][index]).tobytes()
    _turned(folder, place.start + len(place) // 2)


def _turned(folder: Path, at: int) -> None:
    """The sixth bit of a byte of the array in `model.cc`."""
    path = folder / "model.cc"
    before, words = path.read_text().split(" = {\n", 1)
    word = list(re.finditer("0x[0-9a-f]{2}", words))[at]
    path.write_text(f"{before} = {{\n{words[: word.start()]}0x{int(word[0], 16) ^ 0x40:02x}{words[word.end() :]}")


@pytest.mark.parametrize("debug", [False, True])
def test_a_flipped_bit_is_told_by_layer(q: keras.Model, debug: bool, tmp_path: Path) -> None:
    made = kquant.bundle(q, tmp_path / "net", data=X, name="net", debug=True)
    folder, one = (tmp_path / "net" / "debug", "net_debug") if debug else (tmp_path / "net", "net")
    (folder / "model.tflite").write_bytes(_array(folder))
    for header in ("micro_interpreter", "micro_log", "micro_mutable_op_resolver"):
        path = tmp_path / "tflm" / "tensorflow" / "lite" / "micro" / f"{header}.h"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('#include "../schema/schema_generated.h"\n')
    (path.parents[1] / "schema").mkdir()
    (path.parents[1] / "schema" / "schema_generated.h").write_text(STANDS_FOR_TFLM)
    (tmp_path / "said.cc").write_text(
        f'#include <stdio.h>\n#include "self_test.h"\nint main() {{ printf("%d", {one}_self_test()); }}\n'
    )

    def said() -> str:
        sources = ("model.cc", "golden.cc", "io.c", "self_test.cc", tmp_path / "said.cc")
        include = ("-isystem", str(tmp_path / "tflm"))
        return _compiled(folder, *sources, program=tmp_path / "said", flags=include)

    assert re.fullmatch(r"FAIL: the model cannot be prepared in \d+ bytes\n2", said())
    _flipped(folder, "score/kernel")
    assert said() == "FAIL: score/kernel is not what was written\n1"
    _flipped(folder, "conv/bias")
    assert said() == "FAIL: conv/bias is not what was written\nFAIL: score/kernel is not what was written\n1"
    for name in ("score/kernel", "conv/bias"):
        _flipped(folder, name)
    _turned(folder, 4)  # the first letter of the file's identifier, which no tensor holds
    assert said() == "FAIL: the model's array is not the one that was written, outside of its weights\n1"
    assert made.golden == 4


def _array(folder: Path) -> bytes:
    text, *_ = (folder / "model.cc").read_text().split("};")
    return bytes(int(word, 16) for word in re.findall("0x[0-9a-f]{2}", text))


def test_the_self_test_passes_and_fails(made: kquant.BundleReport, tmp_path: Path) -> None:
    include, library = os.environ.get("TFLM_INCLUDE"), os.environ.get("TFLM_LIBRARY")
    if not include or not library:
        pytest.skip("needs TensorFlow Lite Micro, built: TFLM_INCLUDE, its include folders, and TFLM_LIBRARY")
    options = [f"-DTFLM_INCLUDE={include}", f"-DTFLM_LIBRARY={library}", "-DCMAKE_CXX_FLAGS=-Werror"]
    folder = tmp_path / "copy"
    shutil.copytree(made.folder, folder)
    golden = (folder / "golden.cc").read_text()
    first = re.search(r"output_1_0\[\] = {\s*(-?\d+)", golden)
    assert first is not None
    other = golden[: first.start(1)] + ("1" if first[1] != "1" else "2") + golden[first.end(1) :]
    cases = [("", 0, "PASS"), ("golden", 3, "FAIL: the output of score_softmax differs, golden call 1, byte 0")]
    for what, code, text in [*cases, ("array", 1, "FAIL: score/kernel is not what was written")]:
        (folder / "golden.cc").write_text(other if what == "golden" else golden)
        if what == "array":
            _flipped(folder, "score/kernel")
        build = tmp_path / f"build{code}"
        subprocess.run(["cmake", "-S", str(folder), "-B", str(build), *options], check=True, capture_output=True)
        subprocess.run(["cmake", "--build", str(build)], check=True, capture_output=True)
        done = subprocess.run([str(build / "net_self_test")], capture_output=True, text=True, check=False)
        assert done.returncode == code, done
        assert text in done.stdout + done.stderr


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
    _compiled(tmp_path / "all" / "debug", "model.cc", "golden.cc", "io.c", tmp_path / "main.cc", program=tmp_path / "p")
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
    assert "src/model.cc" not in made.files


def _refusals() -> dict[str, tuple[dict[str, Any], str]]:
    wrong = np.zeros((4, 5, 5, 2), np.float32)
    return {
        "kind": ({"kind": "arduinos"}, "kind 'arduinos' does not exist. Did you mean 'arduino'"),
        "labels": ({"labels": ["a", "b"]}, "2 labels for an output of 3 values"),
        "mean": ({"mean": [1.0, 2.0, 3.0]}, "mean has 3 numbers; the first input, image, has 2 channels"),
        "std": ({"std": 0.0}, "std must be above 0"),
        "golden": ({"golden": 0}, "golden"),
        "data": ({"data": wrong}, "image"),
    }


@pytest.mark.parametrize("case", sorted(_refusals()))
def test_what_does_not_fit_is_refused(q: keras.Model, case: str, tmp_path: Path) -> None:
    options, said = _refusals()[case]
    with pytest.raises(ValueError, match=re.escape(said)):
        kquant.bundle(q, tmp_path / "new", **{"data": X, **options})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("recipe", ["int8", "float16"])
def test_models_for_other_targets_are_refused(recipe: str, tmp_path: Path) -> None:
    said = "quantized for target 'litert'.*Expected: kquant.quantize.model, target='tflm'"
    with pytest.raises(ValueError, match=said):
        kquant.bundle(_quantized(target="litert", recipe=recipe), tmp_path / "new", data=X)
    with pytest.raises(ValueError, match="not a quantized model"):
        kquant.bundle(keras.Sequential([keras.Input((4,)), layers.Dense(2)]), tmp_path / "new", data=X)
    assert not (tmp_path / "new").exists()


def test_a_folder_of_somebody_else_is_left_alone(q: keras.Model, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds other files: notes.txt. Give a new folder"):
        kquant.bundle(q, tmp_path, data=X)
    with pytest.raises(ValueError, match="is a file; give a folder"):
        kquant.bundle(q, tmp_path / "notes.txt", data=X)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


ODD = ["../x", "*/ int main(){}", "\U0001f600", "class", "a" * 300, 'say "hi"\\', "??/"]


def test_names_of_users_cannot_leave_their_places(made: kquant.BundleReport, tmp_path: Path) -> None:
    (tmp_path / "main.cc").write_text("int main() { return 0; }\n")
    content = (Path(made.folder) / "model.tflite").read_bytes()
    file = kquant.inspect(content)
    golden = golden_vectors(content, file, [quantize_input(X[:1], file.inputs[0])], "tflm")
    for n, name in enumerate(ODD):
        parts = {"arena": made.arena, "golden": golden, "normalization": None, "card": [("a", "b")]}
        about = described(content, file, title=name, labels=[name, name, "c"], **parts)
        files = rendered(kinds()["arduino"], about)
        for place, text in files.items():
            path = tmp_path / str(n) / place
            assert path.resolve().is_relative_to(tmp_path / str(n))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        source = tmp_path / str(n) / "src"
        _compiled(source, "model.cc", "golden.cc", "io.c", tmp_path / "main.cc", program=tmp_path / "odd")


@given(st.lists(st.text(max_size=70), max_size=8))
@settings(max_examples=200, deadline=None)
def test_names_are_legal_and_distinct(names: list[str]) -> None:
    made = distinct(names)
    assert len(set(made)) == len(names)
    for name in made:
        assert re.fullmatch("[a-z][a-z0-9_]*", name)
        assert "__" not in name
        assert name not in LANGUAGES["c"].reserved
        assert len(name) <= LONGEST + 8
        assert len(name) > LONGEST or identifier(name) == name


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_words_stay_inside_comments_and_quotes(text: str) -> None:
    comment = c_comment(text)
    assert "*/" not in comment
    assert "\n" not in comment
    assert not comment.endswith("\\")
    quoted = c_string(text)
    assert quoted.isascii()
    assert re.fullmatch(r'(?:[^"\\?\n]|\\["\\?]|\\[0-7]{3})*', quoted)

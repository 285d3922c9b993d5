"""What templates make compiles for every kind without a warning, the README's program too; two projects get along."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from small_project import WARNINGS, X, compiled, small_model  # noqa: F401
from stand_in_tflm import stands_for_tflm

import kquant
from kquant.projects.kinds import kinds
from kquant.runtime.running import available

pytestmark = [
    pytest.mark.skipif("tflm" not in available(), reason="runs on TFLM: pip install 'kquant[micro]' (Linux only)"),
    pytest.mark.filterwarnings("ignore:calibrate. .* carry hardly any signal"),
]
layers = keras.layers
RUNS = {
    "tflm": "run.cc",
    "arduino": "examples/Run/Run.ino",
    "esp-idf": "examples/run/main/main.cc",
    "zephyr": "samples/run/src/main.cc",
}
IN_C = sorted(name for name, kind in kinds().items() if kind.arena)


def _program(readme: str) -> str:
    """What the README shows in C++."""
    return "\n".join(re.findall("```cpp\n(.*?)```", readme, re.DOTALL))


def _checked(folder: Path, stand_in: Path) -> set[str]:
    """Compile all sources of a project, and the program of its README; returns their names."""
    source = folder / "src" if (folder / "src").is_dir() else folder
    (source / "readme.cc").write_text(_program((folder / "README.md").read_text()))
    found = [path for path in folder.rglob("*") if path.suffix in (".cc", ".cpp", ".c", ".ino")]
    for path in found:
        compiler = ("gcc", "-std=c11") if path.suffix == ".c" else ("g++", "-std=c++17", "-x", "c++")
        # a program has its public folder alone among those to include
        command = [*compiler, *WARNINGS, f"-I{source}", "-isystem", str(stand_in), "-fsyntax-only", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return {str(path.relative_to(source if path.is_relative_to(source) else folder)) for path in found}


@pytest.mark.parametrize("kind", IN_C)
def test_all_sources_and_the_readme_compile(q: keras.Model, kind: str, tmp_path: Path) -> None:
    more = {"labels": ["a", "b", "c"], "scale": 1 / 255, "mean": [0.5, 0.25], "std": 0.5}
    made = kquant.bundle(q, tmp_path / "net", data=X, kind=kind, name="net", golden=1, debug=True, **more)
    folder = tmp_path / "net"
    names = _checked(folder, stands_for_tflm(tmp_path / "tflm"))
    end = kinds()[kind].cpp
    assert {f"self_test{end}", f"debug/self_test{end}", "readme.cc"} <= names
    assert RUNS[kind] in names  # a whole program
    readme = (folder / "README.md").read_text()
    assert kinds()[kind].static_memory in readme
    assert "net_input_image_code_of_raw(input_image[i], i % NET_INPUT_IMAGE_CHANNELS)" in readme
    # what is written of the debug model is built, and called where there is a program
    texts = {name: (folder / name).read_text() for name in made.files if not name.endswith((".tflite", ".md", ".json"))}
    built = "".join(text for name, text in texts.items() if name.endswith("CMakeLists.txt"))
    for source in ("model.cc", "golden.cc", "self_test.cc"):
        assert kind == "arduino" or f"debug/{source}" in built
    if kind == "zephyr":
        options = set(re.findall(r"^CONFIG_(NET\w*)=y$", readme, re.MULTILINE))
        assert options == set(re.findall(r"^config (\w+)$", texts["zephyr/Kconfig"], re.MULTILINE))
        assert "CONFIG_NET_DEBUG_SELF_TEST" in built and "config NET_DEBUG_SELF_TEST\n" in texts["zephyr/Kconfig"]
    if kind == "arduino":
        assert "net_debug_self_test()" in texts["examples/DebugSelfTest/DebugSelfTest.ino"]


def test_the_static_memory_is_told_for_every_kind_in_c() -> None:
    assert all(kinds()[name].static_memory and kinds()[name].install for name in IN_C)


@pytest.mark.parametrize("kind", IN_C)
def test_two_projects_are_reached_by_their_headers(kind: str, q: keras.Model, tmp_path: Path) -> None:
    places = []
    for name in ("one", "model"):  # the second would be called like the array's header
        kquant.bundle(q, tmp_path / name, data=X, kind=kind, name=name, golden=1)
        places.append(tmp_path / name / ("src" if (tmp_path / name / "src").is_dir() else ""))
    (tmp_path / "main.cc").write_text(
        "#include <stdio.h>\n#include <one.h>\n#include <model_model.h>\n"
        'int main() { printf("%d %d %d", ONE_ARENA_SIZE, MODEL_ARENA_SIZE, ONE_INPUTS + MODEL_INPUTS); }\n'
    )
    include = (f"-I{places[0]}", f"-I{places[1]}", "-isystem", str(stands_for_tflm(tmp_path / "tflm")))
    said = compiled(places[0], tmp_path / "main.cc", program=tmp_path / "said", flags=include)
    sizes = [re.findall(r"ARENA_SIZE (\d+)", (place / "arena.h").read_text())[0] for place in places]
    assert said.split() == [*sizes, "2"]


def test_a_long_name_leaves_the_debug_model_another_one(q: keras.Model, tmp_path: Path) -> None:
    made = kquant.bundle(q, tmp_path / "long", data=X, name="n" * 60, golden=1, debug=True)
    assert {f"{'n' * 48}.h", f"{'n' * 40}_debug.h"} <= set(made.files)


def test_the_readme_takes_all_inputs_and_gives_all_outputs(tmp_path: Path) -> None:
    a, b = keras.Input((4,), name="left"), keras.Input((3,), name="right")
    y = layers.Add(name="sum")([layers.Dense(2, name="of_left")(a), layers.Dense(2, name="of_right")(b)])
    x = [np.random.default_rng(n).normal(size=(64, size)).astype("float32") for n, size in enumerate((4, 3))]
    model = keras.Model([a, b], [y, layers.Dense(5, name="more")(y)], name="both")
    q = kquant.calibrate(kquant.quantize(model, target="tflm"), x, verbose=False)
    kquant.bundle(q, tmp_path / "both", data=x, golden=1)
    _checked(tmp_path / "both", stands_for_tflm(tmp_path / "tflm"))
    readme = (tmp_path / "both" / "README.md").read_text()
    for call in ("input_left_code(", "input_right_code(", "output_sum_real(", "output_more_real("):
        assert f"both_{call}" in readme


@pytest.mark.parametrize(("io", "call"), [("float32", "normalized"), ("uint8", "code_of_raw")])
def test_the_readme_normalizes_raw_values_for_every_type(q: keras.Model, io: Any, call: str, tmp_path: Path) -> None:
    kquant.bundle(q, tmp_path / "net", data=X, name="net", golden=1, scale=1 / 255, mean=0.5, std=0.5, io=io)
    _checked(tmp_path / "net", stands_for_tflm(tmp_path / "tflm"))
    assert f"= net_input_image_{call}(input_image[i]" in (tmp_path / "net" / "README.md").read_text()


@pytest.mark.parametrize("kind", IN_C)
def test_the_readme_of_a_detector_chooses_boxes(kind: str, tmp_path: Path) -> None:
    x = keras.Input((8, 8, 2), name="image")
    y = layers.Conv2D(4, 3, strides=2, activation="relu")(x)
    boxes = layers.Reshape((9, 4), name="boxes")(layers.Conv2D(4, 1, name="at")(y))
    scores = layers.Activation("sigmoid", name="scores")(layers.Reshape((9, 3))(layers.Conv2D(3, 1)(y)))
    model = keras.Model(x, {"boxes": boxes, "scores": scores}, name="net")
    q = kquant.calibrate(kquant.quantize(model, target="tflm"), X, verbose=False)
    kquant.bundle(q, tmp_path / "net", data=X, kind=kind, golden=1, detection=kquant.Detection(form="corners"))
    names = _checked(tmp_path / "net", stands_for_tflm(tmp_path / "tflm"))
    assert {"detect.c", "readme.cc"} <= names
    assert "return net_detect(" in _program((tmp_path / "net" / "README.md").read_text())


@pytest.mark.parametrize("states", ["io", "variables"])
def test_the_readme_keeps_the_states_of_a_stream(states: str, tmp_path: Path) -> None:
    x = keras.Input((16, 4), name="frames")
    y = layers.Conv1D(6, 3, padding="causal", activation="relu")(x)
    model = keras.Model(x, layers.Conv1D(2, 3, padding="causal", name="score")(y), name="net")
    data = np.random.default_rng(1).normal(size=(64, 16, 4)).astype("float32")
    q = kquant.calibrate(kquant.quantize(model, target="tflm"), data, verbose=False)
    made = kquant.bundle(q, tmp_path / "net", data=data, streaming=True, states=states, golden=2)
    _checked(tmp_path / "net", stands_for_tflm(tmp_path / "tflm"))
    readme, io = ((tmp_path / "net" / name).read_text() for name in ("README.md", "io.h"))
    assert made.export.streaming is not None
    wanted = [str(state.initial) for state in made.export.streaming.states]
    assert len(set(wanted)) == 2  # so that the order is checked
    assert re.findall(r"_INITIAL \((-?\d+)\)", io) == (wanted if states == "io" else [])
    copied = re.findall(r"memcpy\((state_\d), interpreter->output\((\d)\)", readme)
    assert copied == ([("state_0", "1"), ("state_1", "2")] if states == "io" else [])
    assert ("interpreter->Reset()" in readme) == (states == "variables")

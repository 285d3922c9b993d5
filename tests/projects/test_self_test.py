"""A project tests itself: it passes on TFLM, and says which weights changed and which layer differs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import keras
import numpy as np
import pytest
from small_project import X, compiled, small_bundle, small_model  # noqa: F401
from stand_in_tflm import stands_for_tflm

import kquant
from kquant.runtime.running import available
from kquant.tflite.reader import contents, places

pytestmark = [
    pytest.mark.skipif("tflm" not in available(), reason="runs on TFLM: pip install 'kquant[micro]' (Linux only)"),
    pytest.mark.filterwarnings("ignore:calibrate. .* carry hardly any signal"),
]


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
    stand_in = stands_for_tflm(tmp_path / "tflm")
    (tmp_path / "said.cc").write_text(
        f'#include <stdio.h>\n#include "self_test.h"\nint main() {{ printf("%d", {one}_self_test()); }}\n'
    )

    def said() -> str:
        sources = ("model.cc", "golden.cc", "io.c", "self_test.cc", tmp_path / "said.cc")
        include = ("-isystem", str(stand_in))
        return compiled(folder, *sources, program=tmp_path / "said", flags=include)

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

"""Labels from scores of time steps: against TensorFlow's decoder, and the C that a project gets."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

import kquant
from kquant.projects.ctc_labels import labels_of
from kquant.projects.golden import Golden
from kquant.projects.rendering import templates
from kquant.runtime.running import available
from kquant.tflite.reader import FileTensor
from kquant.transcribing.best_path import best_path

STEPS, CLASSES = 24, 5
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror")


@given(seed=st.integers(0, 2**32 - 1), blank=st.integers(0, CLASSES - 1))
@settings(max_examples=25, deadline=None)
def test_labels_are_those_of_tensorflow(seed: int, blank: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(STEPS, CLASSES)).astype(np.float32)
    scores[:, blank] += rng.uniform(0, 2)
    scores[1::2] = np.where(rng.random((STEPS // 2, 1)) < 0.6, scores[::2], scores[1::2])  # repeats
    (wanted,), _ = tf.nn.ctc_greedy_decoder(scores[:, None], [STEPS], blank_index=blank)
    labels, steps = best_path(scores, blank)
    assert labels.tolist() == wanted.values.numpy().tolist()
    assert np.array_equal(np.argmax(scores[steps], 1), labels) and np.all(np.diff(steps) > 0)


def test_nothing_is_said_by_blanks_and_by_no_steps() -> None:
    assert len(best_path(np.eye(3)[[0, 0, 0]], 0)[0]) == 0
    assert len(best_path(np.zeros((0, 3)), 0)[0]) == 0


@pytest.mark.parametrize("dtype", ["int8", "int16"])
@pytest.mark.parametrize("blank", [0, -1, 2])
def test_the_c_of_a_project_reads_the_same(dtype: str, blank: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(blank + 2)
    codes = rng.integers(-3, 4, (9, STEPS, CLASSES)).astype(dtype)  # many ties
    codes[3:, 1::2] = codes[3:, ::2]
    outputs = [
        FileTensor(0, "other", (1, 3), "INT8", (0.1,), (0,), 0, 0),
        FileTensor(1, "letters", (1, STEPS, CLASSES), dtype.upper(), (0.1,), (0,), 0, 0),
    ]
    golden = Golden((np.zeros((9, 1), np.int8),), (np.zeros((9, 3), np.int8), codes))
    made = labels_of(kquant.Ctc("letters", blank), {t.name: t for t in outputs}, golden)
    ports = [SimpleNamespace(name=t.name, type=f"{t.dtype}_t") for t in outputs]
    about = SimpleNamespace(id="net", guard="NET", outputs=ports, ctc=made)
    for name in ("ctc.h", "ctc.c"):
        (tmp_path / name).write_text(templates().get_template(f"{name}.jinja").render(about=about))
    codes.tofile(tmp_path / "codes.bin")
    # once in one piece, once in two, which go on where the first ended
    (tmp_path / "main.c").write_text(f"""
#include <stdio.h>
#include "ctc.h"
int main(void) {{
  static {ports[1].type} scores[NET_STEPS * {CLASSES}];
  FILE* file = fopen("codes.bin", "rb");
  while (fread(scores, sizeof(scores), 1, file) == 1) {{
    uint16_t labels[NET_STEPS], pieces[NET_STEPS];
    int32_t last = NET_BLANK;
    const size_t count = net_transcribe(scores, NET_STEPS, &last, labels);
    last = NET_BLANK;
    size_t other = net_transcribe(scores, 7, &last, pieces);
    other += net_transcribe(scores + 7 * {CLASSES}, NET_STEPS - 7, &last, pieces + other);
    for (size_t i = 0; i < count; ++i) {{
      printf("%d ", i < other && other == count && pieces[i] == labels[i] ? labels[i] : -1);
    }}
    printf("\\n");
  }}
  return 0;
}}
""")
    command = ["gcc", "-std=c11", "-O2", "-fsanitize=undefined", *WARNINGS, "ctc.c", "main.c", "-o", "ctc"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = subprocess.run(["./ctc"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [tuple(map(int, line.split())) for line in said] == list(made.calls)
    assert sum(map(len, made.calls)) > 40, "hardly any label: the case shows nothing"


@pytest.fixture(scope="module")
def speller(tmp_path_factory: pytest.TempPathFactory) -> tuple[keras.Model, Path, np.ndarray]:
    keras.utils.set_random_seed(0)
    frames = keras.Input((2 * STEPS, 6), name="frames")
    x = layers.Conv1D(8, 5, 2, padding="same", activation="relu")(frames)
    letters = layers.Dense(CLASSES, activation="softmax", name="letters")(x)
    loud = layers.Dense(1, name="loud")(layers.GlobalAveragePooling1D()(x))
    model = keras.Model(frames, {"loud": loud, "letters": letters}, name="speller")
    data = np.random.default_rng(0).normal(size=(64, 2 * STEPS, 6)).astype(np.float32)
    q = kquant.calibrate(kquant.quantize(model, target="tflm"), data, verbose=False)
    path = tmp_path_factory.mktemp("speller") / "net.tflite"
    kquant.export(q, path, data=data[:8])
    return q, path, data


def test_model_and_file_say_the_same(speller: tuple[keras.Model, Path, np.ndarray]) -> None:
    q, path, data = speller
    ctc = kquant.Ctc("letters", alphabet=["", "a", "b", "c", "d"])
    simulated = kquant.transcribe(q, data[:8], ctc)
    measured = kquant.transcribe(path, data[:8], ctc, runtime="litert-reference")
    assert [t.text for t in simulated] == [t.text for t in measured]
    assert len({t.text for t in simulated}) > 4 and all(len(t) == len(t.text) for t in simulated)
    assert repr(simulated[0]) == f"Transcript({simulated[0].text!r})"
    lengths = np.arange(8)
    cut = kquant.transcribe(q, data[:8], ctc, lengths=lengths)
    for whole, short, length in zip(simulated, cut, lengths, strict=True):
        assert short.labels.tolist() == whole.labels[whole.steps < length].tolist()


@pytest.mark.skipif("tflm" not in available(), reason="runs on TFLM: pip install 'kquant[micro]' (Linux only)")
def test_a_project_knows_the_labels_of_its_golden_vectors(speller, tmp_path: Path) -> None:
    q, path, data = speller
    ctc = kquant.Ctc("letters", alphabet="_abcd")
    kquant.bundle(
        q, tmp_path / "net", data=data, ctc=ctc, golden=3, labels=list(ctc.alphabet), name="net", strip_names=True
    )
    folder = tmp_path / "net"
    (folder / "said.cc").write_text("""
#include <stdio.h>
#include <string.h>
#include "golden.h"
int main() {
  for (size_t call = 0; call < NET_GOLDEN_CALLS; ++call) {
    uint16_t labels[NET_STEPS];
    int32_t last = NET_BLANK;
    const size_t count = net_transcribe(static_cast<const int8_t*>(net_golden_outputs[call][OUTPUT].values), NET_STEPS,
                                        &last, labels);
    printf("%d\\n", count == net_golden_labels_count[call] &&
                       memcmp(labels, net_golden_labels[call], count * sizeof(labels[0])) == 0);
  }
}
""")
    number = list(kquant.inspect(path).named_outputs).index("letters")
    for source in ("ctc.c", "golden.cc", "said.cc"):
        compiler = ["gcc", "-std=c11"] if source.endswith(".c") else ["g++", "-std=c++17", f"-DOUTPUT={number}"]
        subprocess.run([*compiler, *WARNINGS, "-c", source], cwd=folder, check=True)
    subprocess.run(["g++", "ctc.o", "golden.o", "said.o", "-o", "said"], cwd=folder, check=True)
    said = subprocess.run(["./said"], cwd=folder, capture_output=True, text=True, check=True).stdout.split()
    assert said == ["1"] * 3
    assert "ctc.c" in (folder / "CMakeLists.txt").read_text()
    assert "LabelsAreRight" in (folder / "self_test.cc").read_text()
    assert "net_transcribe" in (folder / "README.md").read_text()
    with pytest.raises(TypeError, match="ctc must be a kquant.Ctc. Received: dict"):
        kquant.bundle(q, tmp_path / "plain", data=data, ctc={})  # type: ignore[arg-type]


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "output": ({"output": 1.5}, TypeError, "output is an output's name or number. Received: 1.5"),
    "blank": ({"blank": "_"}, TypeError, "blank is the number of a class. Received: '_'"),
    "alphabet": ({"alphabet": [1, 2]}, TypeError, "alphabet is a text, or texts, one for each class"),
    "no alphabet": ({"alphabet": None}, TypeError, "alphabet is a text, or texts, .* Received: None"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused(case: str) -> None:
    arguments, kind, why = REFUSED[case]
    with pytest.raises(kind, match=why):
        kquant.Ctc(**arguments)


def test_outputs_that_do_not_fit_are_refused(speller) -> None:
    q, _, data = speller
    for ctc, why in (
        (kquant.Ctc("letter"), "speller: no output 'letter'. Did you mean 'letters'"),
        (
            kquant.Ctc("loud"),
            r"output 'loud' must be \[steps, classes\], a label and a blank at least. Received: \(1,\)",
        ),
        (kquant.Ctc("letters", blank=5), "blank 5 is none of the 5 classes of output 'letters'"),
        (kquant.Ctc("letters", alphabet="abc"), "3 names for the 5 classes of output 'letters'; the blank has one too"),
    ):
        with pytest.raises(ValueError, match=why):
            kquant.transcribe(q, data[:2], ctc)
    with pytest.raises(TypeError, match="transcribe: ctc must be a kquant.Ctc. Received: str"):
        kquant.transcribe(q, data[:2], "letters")  # type: ignore[arg-type]
    for lengths in ([3], [3, 25], [1.5, 2.5], [-1, 2]):
        with pytest.raises(ValueError, match="lengths must be 2 whole numbers of 0 to 24 steps"):
            kquant.transcribe(q, data[:2], kquant.Ctc("letters"), lengths=lengths)

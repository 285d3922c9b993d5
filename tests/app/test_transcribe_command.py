"""`kquant transcribe`, and what scores of CTC mean as a TOML file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from typer.testing import CliRunner

import kquant
from kquant.app.cli import app
from kquant.transcribing.ctc_file import read_ctc

STEPS, LETTERS = 12, "_abc"
LENGTHS = np.arange(64) % (STEPS + 1)


def kq(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of steps, its quantized model and file, samples, and what its scores mean."""
    folder = tmp_path_factory.mktemp("transcribe")
    keras.utils.set_random_seed(0)
    frames = keras.Input((STEPS, 6), name="frames")
    model = keras.Model(frames, layers.Dense(len(LETTERS), name="letters")(frames), name="net")
    data = np.random.default_rng(0).normal(size=(64, STEPS, 6)).astype(np.float32)
    model.save(folder / "net.keras")
    q = kquant.calibrate(kquant.quantize(model, target="tflm"), data, verbose=False)
    q.save(folder / "q.keras")
    kquant.export(q, folder / "net.tflite", data=data[:8])
    np.save(folder / "x.npy", data)
    np.save(folder / "lengths.npy", LENGTHS)
    (folder / "ctc.toml").write_text(f'output = "letters"\nblank = -4\nalphabet = "{LETTERS}"\n')
    return folder


def test_the_command_reads_what_python_reads(work: Path, tmp_path: Path) -> None:
    asked = kquant.Ctc("letters", alphabet=LETTERS)
    options = ("--data", work / "x.npy", "--limit", 3, "--ctc", work / "ctc.toml", "--lengths", work / "lengths.npy")
    done = kq("transcribe", work / "net.tflite", *options, "--runtime", "litert-reference", "--json")
    assert done.exit_code == 0, done.output
    kept = [0, 32, 63]  # spread over all, as every command takes them: lengths like samples
    data = np.load(work / "x.npy")[kept]
    wanted = kquant.transcribe(work / "net.tflite", data, asked, lengths=LENGTHS[kept], runtime="litert-reference")
    told = [{"text": one.text, "labels": one.labels.tolist(), "steps": one.steps.tolist()} for one in wanted]
    assert json.loads(done.stdout) == told and sum(map(len, wanted)) > 3
    path = tmp_path / "said.json"
    shown = kq("transcribe", work / "q.keras", *options, "--path", path)
    assert shown.exit_code == 0 and "labels in 3 samples" in shown.stdout, shown.output
    float_ones = kquant.transcribe(keras.models.load_model(work / "q.keras"), data, asked, lengths=LENGTHS[kept])
    assert [row["text"] for row in json.loads(path.read_text())] == [one.text for one in float_ones]


def test_check_tells_what_is_read_and_a_project_reads_it(work: Path, tmp_path: Path) -> None:
    done = kq("check", work / "net.keras", "--target", "tflm", "--ctc", work / "ctc.toml")
    assert done.exit_code == 0 and "of output 'letters', 12 steps of 4 classes" in " ".join(done.output.split())
    given = ("--data", work / "x.npy", "--ctc", work / "ctc.toml", "--golden", 1)
    done = kq("export", work / "q.keras", *given, "--folder", tmp_path / "net", "--json")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "net" / "ctc.c").is_file()


def test_an_alphabet_of_another_number_is_told_before_training(work: Path, tmp_path: Path) -> None:
    (tmp_path / "short.toml").write_text("alphabet = 'abc'")
    said = "3 names for the 4 classes of output 'letters'; the blank has one too"
    done = kq("check", work / "net.keras", "--ctc", tmp_path / "short.toml")
    assert done.exit_code == 1 and said in " ".join(done.output.split()), done.output
    model = keras.models.load_model(work / "net.keras")
    with pytest.raises(ValueError, match=said):
        kquant.check(model, ctc=kquant.Ctc(alphabet="abc"))
    assert kquant.check(model, ctc=kquant.Ctc(alphabet=LETTERS)).ok
    with pytest.raises(TypeError, match="ctc"):
        kquant.check(model, ctc=LETTERS)  # pyright: ignore[reportArgumentType]


def test_open_steps_are_those_of_the_input_shape() -> None:
    frames = keras.Input((None, 6))
    model = keras.Model(frames, layers.Dense(4)(frames))
    assert "steps of 4 classes" in kquant.check(model, ctc=kquant.Ctc(), input_shape=(1, 9, 6)).labels
    assert "9 steps" in kquant.check(model, ctc=kquant.Ctc(), input_shape=(1, 9, 6)).labels


REFUSED = {
    "absent": (None, "no such file"),
    "key": ("alphabt = 'abc'", "no key 'alphabt'. Did you mean 'alphabet'?"),
    "kind": ("blank = 'x'", "ctc.toml: Ctc: blank is the number of a class"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_meaning_is_refused_before_the_model_loads(case: str, work: Path, tmp_path: Path) -> None:
    text, why = REFUSED[case]
    ctc = tmp_path / "ctc.toml"
    if text is not None:
        ctc.write_text(text)
    (tmp_path / "net.keras").write_bytes(b"")  # no model: what is told comes before it is read
    done = kq("transcribe", tmp_path / "net.keras", "--data", work / "x.npy", "--ctc", ctc)
    assert done.exit_code == 1 and why in done.stderr and not done.stdout, done.output
    with pytest.raises(ValueError, match="--ctc .*ctc.toml"):
        read_ctc(ctc)


def test_a_runtime_of_a_keras_model_is_refused(work: Path) -> None:
    done = kq("transcribe", work / "q.keras", "--data", work / "x.npy", "--runtime", "tflm")
    assert done.exit_code == 1 and "--runtime tflm: runs TFLite files" in " ".join(done.output.split()), done.output

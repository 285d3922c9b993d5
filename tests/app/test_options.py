"""What is wrong with a command is told before TensorFlow loads."""

import inspect
import subprocess
import sys
import typing
from pathlib import Path

import keras
import pytest
import typer

import kquant
from kquant.app import cli
from kquant.app.options import FORM
from kquant.exporting.export_file import export
from kquant.exporting.file_options import FileOptions

CODE = """
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name in ("tensorflow", "keras"):
            raise SystemExit(f"{name} was asked for")

sys.argv = ["kquant"]
sys.meta_path.insert(0, Refused())
from typer.testing import CliRunner
from kquant.app.cli import app

for arguments, code, wanted in CASES:
    found = CliRunner().invoke(app, arguments)
    said = (found.stdout + found.stderr).replace("\\n", " ")
    assert found.exit_code == code and wanted in said, (arguments, found.exit_code, said, found.exception)
"""


def test_wrong_arguments_are_told_at_once(tmp_path: Path) -> None:
    model, data, file = (tmp_path / name for name in ("m.keras", "x.npz", "m.tflite"))
    for path in (model, data, file):
        path.write_bytes(b"")
    absent = str(tmp_path / "absent")
    model, data, file = str(model), str(data), str(file)
    out = ["--folder", str(tmp_path / "build")]

    def recipe(text: str) -> str:
        path = tmp_path / f"{len(text)}.toml"
        path.write_text(f"name = 'mine'\n{text}\n")
        return str(path)

    taken = [model, "--data", data, "--dry-run", "--recipe"]
    cases = [
        (["recipes"], 0, "int4-weights"),
        (["recipes", "--json"], 0, '"int8"'),
        (["check", absent], 1, "no such file; give a Keras model"),
        (["check", model, "--target", "tflmm"], 1, "Did you mean 'tflm'?"),
        (["compress", model, "--data", absent, *out], 1, "no such file or folder; give .npz"),
        (["compress", model, "--data", data, "--recipe", "int9", *out], 1, "Did you mean 'int8'?"),
        (["compress", model, "--data", data, "--recipe", absent + ".toml", *out], 1, "no file"),
        (["compress", model, "--data", data, "--target", "litertt", *out], 1, "Did you mean 'litert'?"),
        (["compress", model, "--data", data, "--limit", "0", *out], 2, "--limit"),
        (["compress", model, "--data", data, "--scale", "1/x", *out], 2, "1/255"),
        (["autotune", model, "--data", data, "--labels", absent, *out], 1, "give .npy or .npz"),
        (["verify", model, file, "--data", data, "--runtime", "tflmm"], 1, "Did you mean 'tflm'?"),
        (["verify", model, absent, "--data", data], 1, "give the path of a .tflite file"),
        (["predict", absent, "--data", data], 1, "give the path of a .tflite file"),
        (["detect", file, "--data", data, "--detection", recipe("form = 'corners'")], 1, "no key 'name'"),
        (["transcribe", file, "--data", data, "--ctc", recipe("blank = 0")], 1, "no key 'name'"),
        (["transcribe", file, "--data", data, "--lengths", absent], 1, "give .npy or .npz"),
        (["inspect", absent], 1, "give the path of a .tflite file"),
        (["correct", model, "--data", data, "--recipe", "int9", "--dry-run"], 1, "Did you mean 'int8'?"),
        (["correct", model, "--data", data, "--steps", "equalise", "--dry-run"], 1, "Did you mean 'equalize'?"),
        (["correct", model, "--data", data, "--path", absent + "/m.keras"], 1, "make it first"),
        (["scan", model, "--data", data, "--sparsity", "1.5"], 2, "--sparsity"),
        (["size", model, "--flash", "64 parsecs"], 2, "expected a size like 256KB"),
        (["size", model, "--flash", "4200.7"], 2, "Received: 4200.7"),
        (["size", model, "--target", "tflmm"], 1, "Did you mean 'tflm'?"),
        (["scan", model, "--data", data, "--path", absent + ".json"], 1, "expected a file .toml"),
        (["analyze", model, "--data", data, "--apply", absent + ".json"], 1, "expected a file .toml"),
        (["autotune", model, "--data", data, "--labels", data, "--max-drop", "-1", *out], 2, "--max-drop"),
        (["correct", *taken, recipe("steps = ['calibrat']")], 1, "Did you mean 'calibrate'?"),
        (["correct", *taken, recipe("[weights]\nobserver = 'min-max'")], 1, "Did you mean 'minmax'?"),
    ]
    done = subprocess.run([sys.executable, "-c", f"CASES = {cases!r}\n{CODE}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_form_of_a_file_is_one_list() -> None:
    exported = inspect.signature(export).parameters
    assert set(FORM) == set(FileOptions.__annotations__) <= set(exported)
    hints = typing.get_type_hints(FileOptions)
    said = typing.get_type_hints(inspect.unwrap(export))
    assert {name: hints[name] for name in FORM} == {name: said[name] for name in FORM}
    defaults = {name: getattr(default, "value", default) for name, (_, default) in FORM.items()}
    assert defaults == {name: exported[name].default for name in FORM}
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    for name in ("compress", "export"):
        assert set(FORM) <= {p.name for p in commands[name].params}, name


@pytest.mark.parametrize("verb", [kquant.bundle, kquant.compress])
def test_an_unknown_argument_is_refused_at_once(verb: typing.Any, tmp_path: Path) -> None:
    given = {"folder": tmp_path / "x"} if verb is kquant.bundle else {"path": tmp_path / "x.tflite"}
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'strip_name'. Did you mean 'strip_names'"):
        verb(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]), data=None, strip_name=True, **given)

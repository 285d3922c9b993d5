"""Layers of the user's own on the command line: `--code` wherever a model is loaded."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from kquant.app import cli
from kquant.app.code_files import definitions

COMMANDS = typer.main.get_command(cli.app).commands
LAYER = """import keras

class Twice(keras.layers.Layer):
    def call(self, x):
        return keras.ops.multiply(x, 2.0)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delitem(sys.modules, "mine", raising=False)  # of another test, from its own folder
    (tmp_path / "mine.py").write_text(LAYER)
    twice = definitions(tmp_path / "mine.py", "--code")["Twice"]
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="head"), twice(name="own")], name="net")
    model.save(tmp_path / "net.keras")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32))
    return tmp_path


def run(folder: Path, *words: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, [w.replace("@", str(folder)) for w in words])
    return result.exit_code, result.output


def test_every_command_that_loads_a_model_takes_code() -> None:
    names = {name: {p.name for p in command.params} for name, command in COMMANDS.items()}
    takes = {name for name, params in names.items() if "model" in params}
    assert {"analyze", "autotune", "check", "compress", "correct", "detect", "export", "scan", "size", "split"} < takes
    assert {name for name, params in names.items() if "code" in params} == takes | {"migrate"}


@pytest.mark.parametrize("words", [("check", "@/net.keras"), ("size", "@/net.keras")])
def test_without_the_code_the_option_is_told(folder: Path, words: tuple[str, ...]) -> None:
    code, said = run(folder, *words)
    assert code == 1 and "Could not locate class 'Twice'. Custom layers need their code: give --code FILE.py" in said
    code, said = run(folder, *words, "--code", "@/mine.py")
    assert code == 0 and "own" in said


def test_compress_and_what_follows(folder: Path) -> None:
    code, said = run(
        folder, "compress", "@/net.keras", "--data", "@/x.npy", "--folder", "@/build", "--code", "@/mine.py"
    )
    assert code == 0, said
    files = ("@/build/net.keras", "@/build/net.tflite")
    code, said = run(folder, "verify", *files, "--data", "@/x.npy", "--code", "@/mine.py", "--json")
    assert code == 0 and json.loads(said)["ok"]


def test_layers_may_be_imported_or_registered(folder: Path) -> None:
    (folder / "named.py").write_text("from mine import Twice\n")  # from beside it
    assert run(folder, "check", "@/net.keras", "--code", "@/named.py")[0] == 0
    (folder / "mapped.py").write_text(
        "import keras, mine\nkeras.saving.get_custom_objects()['Twice'] = mine.Twice\nfrom keras.layers import Dense\n"
    )
    try:
        assert set(definitions(folder / "mapped.py", "--code")) == set()
        assert run(folder, "check", "@/net.keras")[0] == 0
    finally:
        keras.saving.get_custom_objects().pop("Twice")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, r"--code .*mine\.py: no such file"),
        ("1 / 0\n", r"running it raised ZeroDivisionError"),
        ("import keras\n", "it defines no class and no function"),
    ],
)
def test_wrong_code_is_refused(folder: Path, text: str | None, said: str) -> None:
    (folder / "mine.py").unlink()
    if text is not None:
        (folder / "mine.py").write_text(text)
    code, told = run(folder, "check", "@/net.keras", "--code", "@/mine.py")
    assert code == 1
    with pytest.raises(ValueError, match=said):
        definitions(folder / "mine.py", "--code")
    assert "--code" in told

"""`kquant migrate`."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

from kquant.app import cli, migrate_command

GOLDEN = Path(__file__).parents[1] / "migrate/golden"
PYTHON = os.environ.get("KQUANT_OLD_PYTHON") or (sys.executable if importlib.util.find_spec("tf_keras") else "")


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, ["migrate", *map(str, arguments)])
    return result.exit_code, result.output


def test_an_old_file_becomes_a_new_one(tmp_path: Path) -> None:
    code, said = run(GOLDEN / "sequential.h5", "--path", tmp_path / "new.keras", "--no-compare")
    assert code == 0 and "as a Keras 3 model" in said and "outputs were not compared" in said
    assert keras.models.load_model(tmp_path / "new.keras").count_params() == 174
    assert [path.name for path in tmp_path.iterdir()] == ["new.keras"]


def test_json_and_nothing_else(tmp_path: Path) -> None:
    code, said = run(GOLDEN / "qat.h5", "--path", tmp_path / "q.keras", "--no-compare", "--json")
    told = json.loads(said)
    assert code == 0 and (told["kind"], told["kernels"], told["distance"]) == ("quantized", 3, None)


def test_the_old_word_for_the_path(tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match="--out is called --path"):
        code, _ = run(GOLDEN / "sequential.h5", "--out", tmp_path / "new.keras", "--no-compare")
    assert code == 0


NEW_CODE = """
import keras

class Mine(keras.layers.Layer):
    def __init__(self, units=3, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, shape):
        self.w = self.add_weight(name="w", shape=(shape[-1], self.units))

    def call(self, x):
        return keras.ops.matmul(x, self.w)
"""
OLD_CODE = NEW_CODE.replace("import keras", "from tensorflow import keras").replace(
    "keras.ops.matmul(x, self.w)", "x @ self.w"
)


def test_custom_layers_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine3.py").write_text(NEW_CODE)
    ways = ("--no-compare", "--new-code", tmp_path / "mine3.py")
    code, said = run(GOLDEN / "custom.h5", "--path", tmp_path / "new.keras", *ways)
    assert code == 0 and f"with custom_objects= of what {tmp_path / 'mine3.py'} defines" in said
    held = migrate_command.definitions(tmp_path / "mine3.py", "migrate: --new-code")
    known = np.load(GOLDEN / "custom.npz")
    made = keras.models.load_model(tmp_path / "new.keras", custom_objects=held)
    np.testing.assert_allclose(made.predict(known["x"], verbose=0), known["y"], atol=1e-6)


@pytest.mark.skipif(not PYTHON, reason="tf_keras is in no environment here: pip install 'kquant[migrate]'")
@pytest.mark.slow
def test_their_old_code_lets_both_be_compared(tmp_path: Path) -> None:
    (tmp_path / "mine2.py").write_text(OLD_CODE)
    (tmp_path / "mine3.py").write_text(NEW_CODE)
    ways = ("--code", tmp_path / "mine2.py", "--new-code", tmp_path / "mine3.py", "--python", PYTHON, "--json")
    code, said = run(GOLDEN / "custom.h5", "--path", tmp_path / "new.keras", *ways)
    assert code == 0 and json.loads(said)["distance"]["float_error"] <= 1e-6


BAD_CODE = {
    "nowhere.py": (None, "no such file"),
    "raises.py": ("1 / 0", "running it raised ZeroDivisionError"),
    "imports.py": ("from collections import Counter", "it defines no class and no function"),
}


@pytest.mark.parametrize("name", BAD_CODE)
def test_code_that_gives_no_layers_is_refused(name: str, tmp_path: Path) -> None:
    content, message = BAD_CODE[name]
    if content is not None:
        (tmp_path / name).write_text(content)
    code, said = run(GOLDEN / "custom.h5", "--path", tmp_path / "new.keras", "--new-code", tmp_path / name)
    assert code == 1 and message in said and not (tmp_path / "new.keras").exists()


REFUSED = {
    "lambda": (("lambda.h5", "--path", "new.keras", "--no-compare"), "is a Lambda"),
    "suffix": (("sequential.h5", "--path", "new.h5"), "expected a file .keras"),
    "python": (("sequential.h5", "--path", "new.keras", "--python", "nowhere"), "no such file"),
    "code": (("sequential.h5", "--path", "new.keras", "--code", "old.py"), "code='old.py': no such file"),
    "file": (("nothing.h5", "--path", "new.keras", "--no-compare"), "no such file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_write_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (file, *rest), message = REFUSED[name]
    code, said = run(GOLDEN / file, *rest)
    assert code == 1 and message in said and list(tmp_path.iterdir()) == []

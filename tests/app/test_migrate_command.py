"""`kquant migrate`."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import pytest
from typer.testing import CliRunner

from kquant.app import cli

GOLDEN = Path(__file__).parents[1] / "migrate/golden"


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


REFUSED = {
    "lambda": (("lambda.h5", "--path", "new.keras", "--no-compare"), "is a Lambda"),
    "suffix": (("sequential.h5", "--path", "new.h5"), "expected a file .keras"),
    "python": (("sequential.h5", "--path", "new.keras", "--python", "nowhere"), "no such file"),
    "file": (("nothing.h5", "--path", "new.keras", "--no-compare"), "no such file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_write_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (file, *rest), message = REFUSED[name]
    code, said = run(GOLDEN / file, *rest)
    assert code == 1 and message in said and list(tmp_path.iterdir()) == []

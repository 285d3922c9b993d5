"""What a command refuses, warns of and is stopped at, in words of the command line."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import kquant
from kquant.app import cli
from kquant.app.options import refusing
from kquant.app.remedies_typed import typed


def test_an_open_shape_is_told_as_an_option(tmp_path: Path) -> None:
    inputs = keras.Input((None, None, 1))
    outputs = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(2, 3)(inputs))
    keras.Model(inputs, outputs, name="dyn").save(tmp_path / "dyn.keras")
    asked = CliRunner().invoke(cli.app, ["size", str(tmp_path / "dyn.keras")])
    assert asked.exit_code == 1
    _, _, shape = asked.stderr.partition("without the batch axis: --input-shape ")
    assert shape.strip() == "96,96,1."
    again = CliRunner().invoke(cli.app, ["size", str(tmp_path / "dyn.keras"), "--input-shape", shape.strip(" .\n")])
    assert "--input-shape" not in again.stderr
    assert "kquant.quantize(model, input_shape=" in typed(
        "with the batch axis: kquant.quantize(model, input_shape=(None, 9))"
    )


def test_a_float_model_in_the_place_of_a_quantized_one(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)], name="net")
    model.save(tmp_path / "net.keras")
    x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    kquant.export(kquant.calibrate(kquant.quantize(model), x, verbose=False), tmp_path / "net.tflite")
    files = [str(tmp_path / name) for name in ("net.keras", "net.tflite")]
    asked = CliRunner().invoke(cli.app, ["verify", *files, "--data", str(tmp_path / "x.npy")])
    assert asked.exit_code == 1
    assert "give the quantized .keras file that kquant compress left in its --folder" in asked.stderr


def test_verbs_still_say_what_is_replaced() -> None:
    package = Path(kquant.__file__).parent
    said = "".join(path.read_text() for path in package.rglob("*.py") if path.name != "remedies_typed.py")
    assert "pass what kquant.quantize returned" in said
    assert "`kquant.equalize(q, data)` before calibrating" in said
    assert said.count("with the batch axis: kquant.quantize(model, input_shape=") == 2


def test_a_warning_is_told_once() -> None:
    cli.TOLD.clear()
    assert [cli._once("few samples"), cli._once("few samples"), cli._once("others")] == [
        "warning: few samples\n",
        "",
        "warning: others\n",
    ]
    assert "kquant correct --steps" in cli._once("`kquant.equalize(q, data)` before calibrating")
    cli.TOLD.clear()


def test_a_stopped_command_says_what_it_has_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    @refusing
    def search(**_: object) -> None:
        raise KeyboardInterrupt

    for options in ({}, {"folder": tmp_path, "flash_bytes": 1000}):
        with pytest.raises(typer.Exit) as stopped:
            search(**options)
        assert stopped.value.exit_code == 130
        assert capsys.readouterr().err == "\nkquant: stopped by Ctrl-C; no file is half written.\n"
    (tmp_path / "rungs").mkdir()
    (tmp_path / "rungs" / "rungs.json").write_text("{}")
    with pytest.raises(typer.Exit):
        search(folder=tmp_path, flash_bytes=1000)
    assert f"the same command goes on from {tmp_path / 'rungs' / 'rungs.json'}" in capsys.readouterr().err

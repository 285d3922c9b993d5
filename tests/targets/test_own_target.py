"""A target of one's own: one TOML file in the folder that `KQUANT_TARGETS` names, and nothing else."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import keras
import numpy as np
import pytest

import kquant
from kquant import targets
from kquant.runtime.running import available

HEAD = 'title = "Our board"\nruntimes = ["tflm"]\nrounding = "tflm"\n'
# As long as "tflm", so that files of both have one length.
SAME = (resources.files("kquant.targets") / "tflm.toml").read_text("utf-8").replace('name = "tflm"', 'name = "mine"')


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = tmp_path / "targets"
    found.mkdir()
    monkeypatch.setenv(targets.FOLDER, str(found))
    return found


def model_where_they_differ() -> keras.Model:
    """Functions whose roundings differ between LiteRT and TFLM: FULLY_CONNECTED, LOGISTIC, LEAKY_RELU, MUL; an LSTM."""
    keras.utils.set_random_seed(5)
    inputs = keras.Input((2, 8), name="x")
    x = keras.layers.LSTM(8, name="lstm")(inputs)
    gate = keras.layers.Dense(64, activation="sigmoid", name="gate")(x)
    value = keras.layers.LeakyReLU(0.3, name="leaky")(keras.layers.Dense(64, name="value")(x))
    return keras.Model(inputs, keras.layers.Multiply(name="product")([gate, value]), name="differing")


@pytest.mark.skipif("tflm" not in available(), reason="needs the micro extra")
def test_a_target_like_tflm_rounds_and_writes_as_tflm_does(folder: Path, tmp_path: Path) -> None:
    (folder / "mine.toml").write_text(SAME)
    data = np.random.default_rng(0).normal(0, 2, (64, 2, 8)).astype(np.float32)
    codes, files, model = {}, {}, model_where_they_differ()
    for name in ("tflm", "mine", "litert"):
        q = kquant.calibrate(kquant.quantize(model, target=name), data, verbose=False)
        report = kquant.export(q, tmp_path / f"{name}.tflite", data=data, check_runtimes=name == "mine")
        codes[name], files[name] = np.asarray(q(data)), Path(report.path).read_bytes()
        if name == "mine":
            assert report.target == "mine" and report.arena_bytes
            assert [(v.runtime, v.verdict) for v in report.verification] == [("tflm", "equal")]
            q.save(tmp_path / "mine.keras")
            again = keras.models.load_model(tmp_path / "mine.keras")
            np.testing.assert_array_equal(np.asarray(again(data)), codes["mine"])
    np.testing.assert_array_equal(codes["mine"], codes["tflm"])
    assert np.any(codes["mine"] != codes["litert"]), "else this model could not tell whose rounding is followed"
    assert files["mine"].count(b'"target": "mine"') == 1
    assert files["mine"].replace(b'"target": "mine"', b'"target": "tflm"') == files["tflm"]


def test_it_decodes_tables_and_has_an_arena_where_its_file_says_so(folder: Path, tmp_path: Path) -> None:
    (folder / "mine.toml").write_text(SAME)
    (folder / "bare.toml").write_text(f'name = "bare"\n{HEAD}ops_of = "tflm"\n')
    inputs = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, name="wide")])
    for name in ("mine", "bare"):
        q = kquant.calibrate(kquant.quantize(kquant.cluster(model, 4), target=name), inputs, verbose=False)
        if name == "mine":
            report = kquant.export(q, tmp_path / "lut.tflite", compression="lut", check_runtimes=False)
            assert "TFLM_DECODE" in report.operators
        else:
            with pytest.raises(ValueError, match="Received a model for 'bare'"):
                kquant.export(q, tmp_path / "lut.tflite", compression="lut", check_runtimes=False)
    with pytest.raises(ValueError, match="arena_bytes is measured by TFLM"):
        kquant.mixed_precision(model, inputs, arena_bytes=1000, target="bare", verbose=False)


def test_it_has_the_operators_of_another_but_for_its_own(folder: Path) -> None:
    row = '[ops.TRANSPOSE_CONV]\nint8 = false\nversion = 3\nnotes = "not built in"\nsource = "ours.cc"\n'
    (folder / "board.toml").write_text(f'name = "board"\n{HEAD}ops_of = "tflm"\n{row}')
    assert {"board", "litert", "tflm"} <= set(targets.names())
    board, tflm = targets.load("board"), targets.load("tflm")
    assert set(board.ops) == set(tflm.ops) and board.ops["CONV_2D"] == tflm.ops["CONV_2D"]
    assert tflm.supports("TRANSPOSE_CONV") and not board.supports("TRANSPOSE_CONV")
    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Conv2DTranspose(2, 3, name="up")])
    with pytest.raises(ValueError, match="up.*Our board has no int8 kernel TRANSPOSE_CONV"):
        kquant.quantize(model, target="board")


def test_models_of_an_unknown_target_say_so(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "board.toml").write_text(f'name = "board"\n{HEAD}ops_of = "tflm"\n')
    q = kquant.quantize(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]), target="board")
    q.save(tmp_path / "board.keras")
    assert keras.models.load_model(tmp_path / "board.keras").layers
    monkeypatch.delenv(targets.FOLDER)
    with pytest.raises((ValueError, TypeError), match="Unknown target 'board'.*environment variable KQUANT_TARGETS"):
        keras.models.load_model(tmp_path / "board.keras")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("tflm.toml", f'name = "tflm"\n{HEAD}', "has the name of one of kquant's own targets"),
        (
            "board.toml",
            f'name = "bord"\n{HEAD}ops_of = "tflm"\n',
            "must be that of the file, 'board'. Received: 'bord'",
        ),
        ("board.toml", f'name = "board"\n{HEAD}ops_of = "tfml"\n', "Unknown target 'tfml'.*Did you mean 'tflm'"),
        ("board.toml", f'name = "board"\n{HEAD}ops_off = "tflm"\n', "ops_off: unknown key. Did you mean 'ops_of'"),
        (
            "board.toml",
            'name = "board"\ntitle = "t"\nruntimes = ["tflm"]\nops_of = "tflm"\n',
            "rounding: Field required",
        ),
        (
            "board.toml",
            'name = "board"\ntitle = "t"\nruntimes = ["litert"]\nrounding = "tflm"\nops_of = "tflm"\n',
            "does not fit the schema: rounding = 'tflm' needs 'tflm' among the runtimes\\.$",
        ),
        (
            "board.toml",
            'name = "board"\ntitle = "t"\nruntimes = ["micro"]\nrounding = "tflm"\nops_of = "tflm"\n',
            "runtimes.0: Input should be 'litert', 'litert-reference' or 'tflm', received 'micro'",
        ),
    ],
)
def test_faults_of_its_file_are_named(folder: Path, file: str, text: str, message: str) -> None:
    (folder / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        targets.load(file.removesuffix(".toml"))


def test_a_folder_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(targets.FOLDER, "nowhere")
    with pytest.raises(ValueError, match="KQUANT_TARGETS.*no folder 'nowhere'"):
        targets.load("tflm")

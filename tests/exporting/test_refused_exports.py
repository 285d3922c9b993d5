"""What `export` refuses, and that the old file stays."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import keras
import pytest
from keras import ops
from one_layer import X, calibrated, dense

import kquant


def test_export_before_calibration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"export: 2 nodes have no range yet \(head_quant, x_quant\). Run kquant.calibrate"
    ):
        kquant.export(kquant.quantize(dense()), tmp_path / "m.tflite")
    assert list(tmp_path.iterdir()) == []


def test_export_of_a_float_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="net: not a quantized model; pass what kquant.quantize returned"):
        kquant.export(dense(), tmp_path / "m.tflite")


def test_wrong_io_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"io must be one of 'model', .*'float32'. Received: 'int4'"):
        kquant.export(calibrated(), tmp_path / "m.tflite", io="int4")


def read_only_file(folder: Path) -> Path:
    path = folder / "m.tflite"
    path.write_bytes(b"precious")
    path.chmod(0o444)
    return path


PATHS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing folder": (lambda folder: folder / "no" / "m.tflite", r"the folder .*no does not exist; make it first"),
    "folder": (lambda folder: folder, r"is a folder; give the name of the file, like .*model.tflite"),
    "read-only file": (read_only_file, "m.tflite exists and is read-only; remove it or choose another path"),
    "name too long": (
        lambda folder: folder / f"{'m' * 300}.tflite",
        "cannot be written: File name too long; choose another path",
    ),
}


@pytest.mark.parametrize("kind", PATHS)
def test_path_that_cannot_be_written_is_refused(kind: str, tmp_path: Path) -> None:
    make, message = PATHS[kind]
    path = make(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=message):
        kquant.export(calibrated(), path)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to any folder")
def test_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(ValueError, match="cannot be written to; choose another path"):
        kquant.export(calibrated(), tmp_path / "m.tflite")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_folder_that_takes_no_files_is_refused() -> None:
    with pytest.raises(ValueError, match="export: .*/proc.* cannot be written"):
        kquant.export(calibrated(), "/proc/m.tflite", check_runtimes=False)


def test_failed_export_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    kquant.export(calibrated(), path)
    before = path.read_bytes()
    for failing in (
        lambda: kquant.export(kquant.quantize(dense()), path),
        lambda: kquant.export(calibrated(), path, data=X[:, :5]),
        lambda: kquant.export(calibrated(), path, data=X[:0]),
        lambda: kquant.export(calibrated(), path, io="float64"),
    ):
        with pytest.raises(ValueError):
            failing()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_other_outputs_of_a_quantized_model_are_named(tmp_path: Path) -> None:
    q = calibrated()
    behind = keras.Model(q.input, ops.softmax(q.output), name="behind")
    inside = keras.Model(q.input, q.get_layer("head_quant").output, name="inside")
    for model, maker in ((behind, "softmax"), (inside, "head_quant")):
        with pytest.raises(ValueError, match=rf"^export: {model.name} gives out what '{maker}.*no quantized tensor"):
            kquant.export(model, tmp_path / "m.tflite")

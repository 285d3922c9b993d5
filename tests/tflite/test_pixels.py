"""Bytes of a camera as codes: where dark images calibrated, `export` says that they are none."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType

import kquant

layers = keras.layers
DARK = np.float32(np.random.default_rng(0).integers(4, 140, (64, 12, 12, 3)))


def _network(*first: Any) -> keras.Model:
    keras.utils.set_random_seed(0)
    camera = x = keras.Input((12, 12, 3), name="camera")
    for layer in first:
        x = layer(x)
    x = layers.Conv2D(4, 3, name="conv")(x)
    return keras.Model(camera, layers.Dense(2, name="seen")(layers.GlobalAveragePooling2D()(x)), name="net")


def _run(path: Path, codes: np.ndarray) -> np.ndarray:
    """What the file gives for codes of its input, by the reference kernels: as real numbers."""
    reference = OpResolverType.BUILTIN_REF
    interpreter = Interpreter(str(path), experimental_op_resolver_type=reference)
    interpreter.allocate_tensors()
    port, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    interpreter.set_tensor(port["index"], codes)
    interpreter.invoke()
    scale, zero = result["quantization"]
    return (interpreter.get_tensor(result["index"]).astype(np.float32) - zero) * np.float32(scale)


def _calibrated(model: keras.Model, data: np.ndarray, recipe: str = "int8") -> keras.Model:
    return kquant.calibrate(kquant.quantize(model, recipe, target="tflm"), data, verbose=False)


def _exported(q: keras.Model, data: np.ndarray, path: Path) -> tuple[float, int, list[str]]:
    """Scale and zero point of the file's input, and what was said."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        kquant.export(q, path, io="uint8", data=data[:4])
    port = kquant.inspect(path).inputs[0]
    return port.scale[0], port.zero_point[0], [text for w in said if "io='uint8'" in (text := str(w.message))]


def test_bytes_that_would_come_out_wrong_are_told_and_the_remedies_help(tmp_path: Path) -> None:
    path, unit = tmp_path / "net.tflite", layers.Rescaling(1 / 255.0)
    scale, zero, said = _exported(_calibrated(_network(unit), DARK), DARK, path)
    assert scale == pytest.approx(139 / 255, rel=0.01) and zero == 0
    (told,) = said
    assert f"'camera' (scale {scale:.6g}, zero point 0)" in told and "round(byte / scale) + zero point" in told
    # what the message says of an application: codes of bytes, by that formula, are those that the model means
    frame = np.random.default_rng(1).integers(4, 140, (1, 12, 12, 3)).astype(np.uint8)
    q = _calibrated(_network(unit), DARK)
    wanted = q.predict(np.float32(frame), verbose=0)
    np.testing.assert_array_equal(_run(path, np.uint8(np.rint(frame / np.float32(scale)) + zero)), wanted)
    assert np.abs(_run(path, frame) - wanted).max() > 0.1 * np.abs(wanted).max()  # wrong indeed
    with_ends = DARK.copy()
    with_ends[-1, :4, :4], with_ends[-1, -4:, -4:] = 0, 255
    q = _calibrated(_network(unit), with_ends)
    assert _exported(q, DARK, path) == (1.0, 0, [])
    np.testing.assert_array_equal(_run(path, frame), q.predict(np.float32(frame), verbose=0))


def test_symmetric_codes_are_told_too(tmp_path: Path) -> None:
    """Half of the codes are for levels below 0."""
    _, zero, said = _exported(_calibrated(_network(), DARK, "int16x8"), DARK, tmp_path / "net.tflite")
    assert zero == 128 and len(said) == 1


@pytest.mark.parametrize("data", [DARK / 255, DARK / 127.5 - 1, DARK - 110], ids=["unit", "centred", "less the mean"])
def test_images_that_are_no_bytes_are_not_told_of(data: np.ndarray, tmp_path: Path) -> None:
    assert _exported(_calibrated(_network(), data), data, tmp_path / "net.tflite")[2] == []

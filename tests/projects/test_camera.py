"""Bytes of a camera: in the file from the crop to the class, and RGB565 in C, equal to the golden vectors."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from small_project import compiled

import kquant
from kquant.runtime.running import available

layers = keras.layers
needs_tflm = pytest.mark.skipif("tflm" not in available(), reason="needs the micro extra")
MAIN = """
#include <stdio.h>
#include "golden.h"
#include "io.h"
static const uint16_t frames[] = {FRAMES};
int main() {
  int8_t codes[NET_INPUT_CAMERA_ELEMENTS];
  for (size_t c = 0; c < NET_GOLDEN_CALLS; ++c) {
    const int8_t* wanted = static_cast<const int8_t*>(net_golden_inputs[c][0].values);
    net_input_camera_from_rgb565(frames + c * (NET_INPUT_CAMERA_ELEMENTS / 3), codes);
    int wrong = 0;
    for (size_t i = 0; i < NET_INPUT_CAMERA_ELEMENTS; ++i) wrong += codes[i] != wanted[i];
    printf("%d ", wrong);
  }
  return 0;
}
"""


def frames(count: int = 128, seed: int = 0) -> np.ndarray:
    """uint16[count, 20, 24]: RGB565, all parts from nothing to full."""
    return np.random.default_rng(seed).integers(0, 2**16, (count, 20, 24)).astype(np.uint16)


def as_bytes(words: np.ndarray) -> np.ndarray:
    """Each part widened to 0 .. 255 by its own upper bits behind it."""
    red, green, blue = words >> 11, (words >> 5) & 63, words & 31
    return np.stack([(red << 3) | (red >> 2), (green << 2) | (green >> 4), (blue << 3) | (blue >> 2)], -1)


def network(scaled: bool = True) -> keras.Model:
    inputs = keras.Input((20, 24, 3), name="camera")
    x = layers.CenterCrop(16, 20, name="crop")(inputs)
    x = layers.Resizing(8, 10, name="smaller")(x)
    x = layers.Lambda(keras.ops.image.rgb_to_grayscale, name="gray")(x)
    x = layers.Rescaling(1 / 127.5, -1, name="scaled")(x) if scaled else x
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(x)
    return keras.Model(inputs, layers.Dense(3, name="seen")(layers.Flatten(name="flat")(x)), name="net")


@pytest.mark.parametrize("target", ["litert", pytest.param("tflm", marks=needs_tflm)])
def test_crop_size_and_brightness_are_in_the_file(target: str, tmp_path: Path) -> None:
    model, x = network(), np.float32(as_bytes(frames()))
    q = kquant.calibrate(kquant.quantize(model, target=target), x, verbose=False)
    report = kquant.export(q, tmp_path / "m.tflite", data=x[:16], io="uint8")
    camera = kquant.inspect(tmp_path / "m.tflite").inputs[0]
    assert (camera.type, camera.scale, camera.zero_point) == ("UINT8", (1.0,), (0,))  # bytes go in as they are
    assert report.operators["RESIZE_BILINEAR"] == 1
    got = kquant.predict(tmp_path / "m.tflite", x, "litert-reference" if target == "litert" else target)
    wanted, floats = q.predict(x, verbose=0), model.predict(x, verbose=0)
    assert np.mean(np.abs(got - wanted) > 1e-6) < 0.001
    assert np.abs(wanted - floats).max() < 0.05 * np.abs(floats).max()


@needs_tflm
@pytest.mark.parametrize("raw", [False, True])
def test_rgb565_gives_the_codes_of_the_golden_vectors(raw: bool, tmp_path: Path) -> None:
    words, change = frames(), {"scale": 1 / 255, "mean": [0.5, 0.4, 0.3], "std": 0.25} if raw else {}
    x = np.float32(as_bytes(words))
    if raw:  # the network was trained on what the bundle is told of
        x = (x * np.float32(1 / 255) - np.float32([0.5, 0.4, 0.3])) / np.float32(0.25)
    q = kquant.calibrate(kquant.quantize(network(scaled=not raw), target="tflm"), x, verbose=False)
    made = kquant.bundle(q, tmp_path / "net", data=x, golden=3, **change)
    picked = words[[0, 64, 127]]  # spread over all
    (tmp_path / "said.cc").write_text(MAIN.replace("FRAMES", ", ".join(map(str, picked.ravel()))))
    folder = Path(made.folder)
    printed = compiled(folder, "golden.cc", "io.c", tmp_path / "said.cc", program=tmp_path / "said")
    assert printed.split() == ["0", "0", "0"]


@needs_tflm
def test_networks_of_other_inputs_have_no_such_conversion(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((128, 20, 24, 1), np.float32)
    model = keras.Sequential([keras.Input((20, 24, 1)), layers.Flatten(), layers.Dense(2)])
    q = kquant.calibrate(kquant.quantize(model, target="tflm"), x, verbose=False)
    kquant.bundle(q, tmp_path / "net", data=x)
    assert "rgb565" not in (tmp_path / "net" / "io.h").read_text()


def test_grayscale_of_other_images_is_refused() -> None:
    inputs = keras.Input((3, 8, 8))
    gray = keras.ops.image.rgb_to_grayscale(inputs, data_format="channels_first")
    with pytest.raises(ValueError, match=r"RGBToGrayscale.*channels_first"):
        kquant.quantize(keras.Model(inputs, layers.Flatten()(gray)))

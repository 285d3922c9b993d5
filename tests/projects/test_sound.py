"""Projects of models that hear: TFLM's operators for sound are registered, and each clip is one of its own."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from small_project import compiled
from stand_in_tflm import stands_for_tflm

import kquant
from kquant.projects.golden import golden_stream, golden_vectors
from kquant.runtime.running import available

layers = keras.layers
pytestmark = pytest.mark.skipif("tflm" not in available(), reason="golden vectors need an extra: 'kquant[micro]'")
CLIPS = np.float32(0.1 * np.random.default_rng(0).normal(size=(64, 800)).clip(-9, 9))
# of micro_mutable_op_resolver.h (tflite-micro 90b983c)
METHODS = (
    "Window",
    "FftAutoScale",
    "Rfft",
    "Energy",
    "FilterBank",
    "FilterBankSquareRoot",
    "PCAN",
    "FilterBankLog",
    "While",
)


@pytest.mark.parametrize("reduced", [True, False])
def test_operators_are_registered_and_clips_begin_anew(reduced: bool, tmp_path: Path) -> None:
    sound = keras.Input((800,), name="sound")
    settings = {
        "sampling_rate": 8000,
        "sequence_length": 200,
        "sequence_stride": 100,
        "num_mel_bins": 8,
        "max_freq": 3500.0,
    }
    x = kquant.MicroFrontend(**settings, noise_reduction=reduced, pcan=reduced, name="front")(sound)
    model = keras.Model(sound, layers.Dense(3, name="score")(layers.Flatten()(x)), name="net")
    q = kquant.calibrate(kquant.quantize(model, target="tflm"), CLIPS, verbose=False)
    kquant.bundle(q, tmp_path / "net", data=CLIPS, name="net", golden=3)
    folder = tmp_path / "net"

    registered = (folder / "op_resolver.h").read_text()
    noise = {"PCAN", "FilterBankSpectralSubtraction"}
    wanted = {*METHODS, *noise} if reduced else set(METHODS) - noise
    assert {method for method in {*METHODS, *noise} if f"resolver.Add{method}()" in registered} == wanted
    for name in ("self_test.cc", "README.md"):
        assert ("Reset() != kTfLiteOk" in (folder / name).read_text()) == reduced, name
    (tmp_path / "said.cc").write_text('#include "self_test.h"\nint main() { return net_self_test() == 2 ? 0 : 1; }\n')
    sources = ("model.cc", "golden.cc", "io.c", "self_test.cc", tmp_path / "said.cc")
    flags = ("-isystem", str(stands_for_tflm(tmp_path / "tflm")))
    assert "cannot be prepared" in compiled(folder, *sources, program=tmp_path / "said", flags=flags)


def test_golden_vectors_are_of_clips_alone(tmp_path: Path) -> None:
    sound = keras.Input((800,), name="sound")
    x = kquant.MicroFrontend(8000, 200, 100, num_mel_bins=8, max_freq=3500.0, name="front")(sound)
    model = keras.Model(sound, layers.Dense(3, name="score")(layers.Flatten()(x)), name="net")
    q = kquant.calibrate(kquant.quantize(model, target="tflm"), CLIPS, verbose=False)
    kquant.export(q, tmp_path / "m.tflite", check_runtimes=False)
    content = (tmp_path / "m.tflite").read_bytes()
    file = kquant.inspect(content)
    codes = np.int16(np.rint(CLIPS[:4] * 32768).clip(-32768, 32767))
    golden = json.loads(golden_vectors(content, file, [codes], "tflm").to_json())["calls"]
    (alone,) = golden_vectors(content, file, [codes[2:3]], "tflm").outputs
    assert golden[2]["outputs"][0] == alone.ravel().tolist()
    assert golden[1]["outputs"][0] != golden[2]["outputs"][0]


@pytest.mark.parametrize("states", ["io", "variables"])
def test_a_stream_goes_on_from_call_to_call_and_begins_with_a_reset(states: str, tmp_path: Path) -> None:
    sound = keras.Input((800,), name="sound")
    settings = {"num_mel_bins": 8, "max_freq": 3500.0, "padding": "causal"}
    x = kquant.MicroFrontend(8000, 200, 100, **settings, name="front")(sound)
    model = keras.Model(sound, layers.Dense(3, name="score")(x), name="net")
    q = kquant.calibrate(kquant.quantize(model, target="tflm"), CLIPS, verbose=False)
    kquant.bundle(q, tmp_path / "net", data=CLIPS, name="net", golden=8, streaming=True, states=states)
    told, test = ((tmp_path / "net" / name).read_text() for name in ("README.md", "self_test.cc"))
    assert "Reset() != kTfLiteOk" not in told + test and "`interpreter->Reset()`" in told
    kquant.export(q, tmp_path / "s.tflite", streaming=True, states=states, check_runtimes=False)
    content = (tmp_path / "s.tflite").read_bytes()
    codes = np.int16(np.rint(CLIPS[:1] * 32768).clip(-32768, 32767))
    made, grid = golden_stream(content, [codes], 8, "tflm").outputs[0], kquant.inspect(content).outputs[0]
    found = (made.reshape(8, 3).astype(np.float32) - grid.zero_point[0]) * np.float32(grid.scale[0])
    np.testing.assert_array_equal(found, q.predict(CLIPS[:1], verbose=0)[0])

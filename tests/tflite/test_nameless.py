"""`strip_names=True`: the same network in fewer bytes, run by every interpreter and verified by position."""

from __future__ import annotations

from dataclasses import replace

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

import kquant
from kquant.exporting import checked_runs, verification
from kquant.runtime.running import available, probe
from kquant.tflite.flatbuffer import packed, unpacked, with_zero_points
from kquant.tflite.names import is_nameless, with_names
from kquant.tflite.reader import read_model

layers = keras.layers
RNG = np.random.default_rng(4)
X = RNG.normal(size=(32, 6, 6, 8)).astype("float32")


def quantized(target: str, seed: int = 1, dead: bool = False) -> keras.Model:
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((6, 6, 8), name="x")
    x = layers.Conv2D(32, 3, activation="relu", name="conv")(x)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.Flatten()(x)
    model = keras.Model(inputs, [layers.Dense(24, name="head")(x), layers.Dense(3, name="side")(x)])
    kernel = model.get_layer("head").kernel
    kernel.assign(kernel * (RNG.random(kernel.shape) < 0.1))
    if dead:  # half of the channels are read by nobody
        for name in ("head", "side"):
            kernel = model.get_layer(name).kernel
            kernel.assign(kernel * np.tile(np.arange(32) < 16, kernel.shape[0] // 32)[:, None])
    return kquant.calibrate(kquant.quantize(model, target=target), X, verbose=False)


@pytest.fixture(scope="module", params=["tflm", "litert"])
def qmodel(request):
    return request.param, quantized(request.param)


@pytest.mark.parametrize("io", ["model", "float32", "uint8"])
def test_the_file_is_smaller_and_the_same(qmodel, io, tmp_path):
    target, q = qmodel
    plain = kquant.export(q, tmp_path / "plain.tflite", data=X, io=io)
    made = kquant.export(q, tmp_path / "bare.tflite", data=X, io=io, strip_names=True)
    content = (tmp_path / "bare.tflite").read_bytes()
    file = kquant.inspect(content)
    assert is_nameless(file) and not file.signatures and b"conv" not in content
    # of 35 channels of biases with a scale each, target tflm has none
    spared = 4 * (32 + 32 + 24 + 3) if target == "tflm" else 0
    assert made.file_bytes < plain.file_bytes - spared - 200
    assert [v.verdict for v in made.verification] == [v.verdict for v in plain.verification]
    assert {w.name for w in made.weights.layers} == {w.name for w in plain.weights.layers}
    # a function of one kind of numbers: the same codes on all interpreters but XNNPACK, which takes other kernels
    bare = with_zero_points(content) if file.one_zero_point else content
    assert file.one_zero_point == (target == "tflm")
    for runtime in set(available()) - {"litert"}:
        expected, found = (kquant.predict(given, X, runtime) for given in (tmp_path / "plain.tflite", bare))
        assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))
    assert kquant.predict(bare, X, "litert")[0].shape == (32, 24)
    assert kquant.verify(q, tmp_path / "bare.tflite", X).ok


@pytest.mark.skipif("tflm" not in available(), reason="needs the micro extra")
def test_with_codes_besides(tmp_path):
    q = quantized("tflm")
    named = kquant.export(q, tmp_path / "named.tflite", data=X, compression="auto")
    made = kquant.export(q, tmp_path / "bare.tflite", data=X, compression="auto", strip_names=True)
    assert made.file_bytes < named.file_bytes
    assert named.decoding is not None and made.decoding == replace(named.decoding)
    assert "head/kernel" in {name for names in made.decoding.tensors.values() for name in names}
    found = kquant.verify(q, tmp_path / "bare.tflite", X, "tflm")
    assert found.verdict == "equal" and all(a.output for a in found.agreements)


def test_a_wrong_number_is_found_without_names(tmp_path):
    q = quantized("litert")
    kquant.export(q, tmp_path / "bare.tflite", data=X, strip_names=True)
    model = unpacked((tmp_path / "bare.tflite").read_bytes())
    [kernel] = [t for t in model.subgraphs[0].tensors if list(t.shape) == [32, 3, 3, 8]]
    kernel.quantization.scale = kernel.quantization.scale * np.float32(1.01)
    found = kquant.verify(q, packed(model), X, "litert-reference")
    assert found.verdict == "wrong" and found.wrong_encodings == ("conv/kernel",)


def test_another_models_file_is_refused_or_found_wrong(tmp_path):
    q = quantized("litert")
    kquant.export(q, tmp_path / "bare.tflite", data=X, strip_names=True)
    assert not kquant.verify(quantized("litert", seed=2), tmp_path / "bare.tflite", X, "litert-reference").ok
    x = keras.Input((6, 6, 8), name="x")
    y = layers.Flatten()(layers.Conv2D(32, 3, name="conv")(x))
    other = keras.Model(x, [layers.Dense(24)(y), layers.Dense(3)(y)])
    q = kquant.calibrate(kquant.quantize(other, target="tflm"), X, verbose=False)
    with pytest.raises(ValueError, match="verify: this file has no names, and its 5 operators are not the 3 of"):
        kquant.verify(q, tmp_path / "bare.tflite", X, "litert-reference")


def test_names_are_those_of_the_other_file(tmp_path):
    q = quantized("tflm")
    for name, bare in (("named", False), ("bare", True)):
        kquant.export(q, tmp_path / f"{name}.tflite", data=X, strip_names=bare, io="float32")
    named, bare = (read_model((tmp_path / f"{name}.tflite").read_bytes()) for name in ("named", "bare"))
    again = with_names(bare, named)
    assert [t.name for t in again.tensors] == [t.name for t in named.tensors]
    assert [t.scale for t in again.tensors] == [t.scale for t in named.tensors]
    assert is_nameless(bare) and not is_nameless(again)


def test_target_tflm_has_one_zero_point_for_all_channels(tmp_path):
    q, path = quantized("tflm"), tmp_path / "bare.tflite"
    made = kquant.export(q, path, data=X, strip_names=True)
    [kernel] = [t for t in unpacked(path.read_bytes()).subgraphs[0].tensors if list(t.shape) == [32, 3, 3, 8]]
    assert len(kernel.quantization.scale) == 32 and list(kernel.quantization.zeroPoint) == [0]
    file = kquant.inspect(path)
    assert file.one_zero_point and {t.zero_point for t in file.tensors if t.shape == (32, 3, 3, 8)} == {(0,) * 32}
    # LiteRT itself refuses it, and every verb says so
    with pytest.raises(ValueError, match="QuantizationParam has 1 zero_point values and 32 scale values"):
        probe(path.read_bytes(), "litert", [np.zeros((1, 6, 6, 8), np.int8)])
    for verb in (lambda: kquant.predict(path, X), lambda: kquant.verify(q, path, X, "litert-reference")):
        with pytest.raises(ValueError, match="one zero point for all channels of its weights.*runtime='tflm'"):
            verb()
    long = kquant.inspect(with_zero_points(path.read_bytes()))
    assert not long.one_zero_point and [t.zero_point for t in long.tensors] == [t.zero_point for t in file.tensors]
    assert made.file_bytes <= long.size_bytes - 8 * (31 + 23 + 2)


def test_verified_where_tflm_is_not_installed(tmp_path, monkeypatch):
    q, path = quantized("tflm"), tmp_path / "bare.tflite"
    for module in (verification, checked_runs):
        monkeypatch.setattr(module, "available", lambda: ["litert", "litert-reference"])
    made = kquant.export(q, path, data=X, strip_names=True)
    assert [v.runtime for v in made.verification] == ["litert-reference"] and made.verification[0].ok
    assert kquant.verify(q, path, X).ok


def test_what_no_kernel_reads_is_not_there(tmp_path):
    q = quantized("tflm")
    kquant.export(q, tmp_path / "bare.tflite", data=X, strip_names=True)
    assert kquant.inspect(tmp_path / "bare.tflite").metadata == {}
    dead = quantized("tflm", dead=True)
    made = kquant.export(dead, tmp_path / "dead.tflite", data=X, strip_names=True)
    # without the note `verify` would look for channels that are not in the file
    assert made.removed and list(kquant.inspect(tmp_path / "dead.tflite").metadata) == ["shrunk"]
    assert kquant.verify(dead, tmp_path / "dead.tflite", X).ok


def test_streams_keep_their_names(tmp_path):
    x = keras.Input((12, 4), name="x")
    model = keras.Model(x, layers.Conv1D(4, 3, padding="causal", name="conv")(x))
    data = RNG.normal(size=(64, 12, 4)).astype("float32")
    q = kquant.calibrate(kquant.quantize(model), data, verbose=False)
    with pytest.raises(ValueError, match="a stream finds its states by their names"):
        kquant.export(q, tmp_path / "s.tflite", streaming=True, strip_names=True)


def test_the_command(tmp_path):
    from kquant.app.cli import app

    model = keras.Sequential([keras.Input((48,)), layers.Dense(8, name="head")])
    model.save(tmp_path / "net.keras")
    np.save(tmp_path / "x.npy", RNG.random((64, 48), np.float32))
    options = ["--data", tmp_path / "x.npy", "--folder", tmp_path / "out", "--strip-names"]
    done = CliRunner().invoke(app, [str(a) for a in ("compress", tmp_path / "net.keras", *options)])
    assert done.exit_code == 0, done.output
    assert is_nameless(kquant.inspect(tmp_path / "out" / "net.tflite"))

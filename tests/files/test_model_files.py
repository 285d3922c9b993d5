"""Keras models from files: what is in them counts, not their names; damaged and foreign ones tell the way."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

import kquant
from kquant.app import command_files
from kquant.files import keras_files, untrusted


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one model as `.keras` and as HDF5."""
    folder = tmp_path_factory.mktemp("models")
    x = keras.Input((6, 3), name="x")
    model = keras.Model(x, keras.layers.Dense(2, name="head")(keras.layers.LSTM(4, name="lstm")(x)), name="net")
    for name in ("net.keras", "net.h5"):
        model.save(folder / name)
    model.save_weights(folder / "only.weights.h5")
    np.savez(folder / "weights.npz", *model.get_weights())
    return folder


def rezipped(source: Path, target: Path, **entries: bytes) -> Path:
    """A `.keras` file with other entries, by the first part of their names."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, entries.get(name.split(".")[0], old.read(name)))
    return target


def with_config(source: Path, target: Path, change: Callable[[dict], Any], version: str = "3.0.0") -> Path:
    """A file whose configuration was edited, of either format."""
    if source.suffix == ".keras":
        with zipfile.ZipFile(source) as old:
            config = json.loads(old.read("config.json"))
        change(config)
        about = json.dumps({"keras_version": version}).encode()
        return rezipped(source, target, config=json.dumps(config).encode(), metadata=about)
    shutil.copy(source, target)
    with h5py.File(target, "r+") as file:
        config = json.loads(str(file.attrs["model_config"]))
        change(config)
        file.attrs["model_config"], file.attrs["keras_version"] = json.dumps(config), version
    return target


def layer(config: dict, position: int) -> dict:
    return config["config"]["layers"][position]["config"]


def has_weights_of(model: keras.Model, saved: Path) -> bool:
    with np.load(saved / "weights.npz") as expected:
        return all(map(np.array_equal, model.get_weights(), expected.values()))


@pytest.mark.parametrize("name", ["net.keras", "keras.bin", "hdf5.model"])
def test_the_content_says_what_a_file_is(name: str, saved: Path, tmp_path: Path) -> None:
    source = saved / name if (saved / name).exists() else saved / ("net.keras" if "keras" in name else "net.h5")
    shutil.copy(source, tmp_path / name)
    assert has_weights_of(command_files.load_model(tmp_path / name), saved)


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".model"])
def test_a_model_of_keras_2_tells_the_way(suffix: str, saved: Path, tmp_path: Path) -> None:
    source = saved / ("net.keras" if suffix == ".keras" else "net.h5")
    old = with_config(source, tmp_path / f"old{suffix}", lambda c: layer(c, 1).update(time_major=False), "2.14.0")
    with pytest.raises(ValueError, match="Keras 2.14.0 .tf_keras. saved it; docs/migrate.md .*time_major") as caught:
        command_files.load_model(old)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="time_major") as caught:
        changed = with_config(source, tmp_path / f"new{suffix}", lambda c: layer(c, 1).update(time_major=False))
        command_files.load_model(changed)
    assert "migrate" not in str(caught.value)


def test_what_keras_3_can_load_of_keras_2_is_loaded(saved: Path, tmp_path: Path) -> None:
    old = with_config(saved / "net.h5", tmp_path / "old.h5", lambda _: None, "2.15.0")
    assert has_weights_of(command_files.load_model(old), saved)


OTHERS: dict[str, tuple[bytes, str]] = {
    "model.tflite": (b"\x1c\0\0\0TFL3" + bytes(40), "a TFLite file, which has no layers any more"),
    "model.keras": (b"\x1c\0\0\0TFL3" + bytes(40), "a .keras file is a zip archive"),
    "model.json": (b'{"class_name": "Sequential", "config": {}}', "without weights; keras.models.model_from_json"),
    "old.json": (
        b'{"keras_version": "2.9.0", "config": {}}',
        "of Keras 2.9.0 .JSON., without weights; docs/migrate.md",
    ),
    "model.onnx": (b"\x08\x07\x12\x07pytorch", "an ONNX model; build the network in Keras"),
    "model.pth": (b"\x80\x02}q\0.", "a pickle, as PyTorch writes them"),
    "frozen.pb": (b"\n\x05abc", "a TensorFlow graph .*docs/migrate.md"),
    "model.index": (b"\0\1", "a TensorFlow checkpoint: weights without a model; docs/migrate.md"),
    "model.safetensors": (b"\x40" + bytes(7) + b'{"a":{}}', "weights of another framework"),
    "model.h5": (b"", "an empty file"),
    "noise.h5": (bytes(range(256)), "neither a .keras nor an HDF5 file"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_files_of_other_formats_tell_what_they_are(name: str, tmp_path: Path) -> None:
    content, message = OTHERS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
        command_files.load_model(tmp_path / name)


def test_folders_and_archives_of_other_formats_tell_what_they_are(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "graph").mkdir()
    (tmp_path / "graph/saved_model.pb").write_bytes(b"\x08\x01\x12")
    with pytest.raises(ValueError, match="graph: .*a SavedModel folder of TensorFlow; docs/migrate.md"):
        command_files.load_model(tmp_path / "graph")
    (tmp_path / "graph/keras_metadata.pb").write_bytes(b"")
    with pytest.raises(ValueError, match="a SavedModel folder of tf_keras; docs/migrate.md"):
        command_files.load_model(tmp_path / "graph")
    with zipfile.ZipFile(saved / "net.keras") as archive:
        archive.extractall(tmp_path / "open")
    with pytest.raises(ValueError, match="an unpacked .keras archive; keras.models.load_model"):
        command_files.load_model(tmp_path / "open")
    with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
        archive.writestr("net/data.pkl", b"")
    with pytest.raises(ValueError, match="a PyTorch file"):
        command_files.load_model(tmp_path / "net.pt")
    with pytest.raises(
        ValueError, match=r"only.weights.h5: .*weights without their model .*model.load_weights\(file\)"
    ):
        command_files.load_model(saved / "only.weights.h5")


def other_place(path: Path, link: Any) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = "{}"
        file["away"] = link
    return path


def bomb(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("a", (10**6, 10**6), chunks=(1000, 1000), compression="gzip")
    return path


def outside(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("a", (4,), "f4", external=[(str(path.with_suffix(".raw")), 0, 16)])
    return path


def circle(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file.create_group("a")
        file["a/b"] = file["a"]
    return path


def cut(source: Path, target: Path) -> Path:
    target.write_bytes(source.read_bytes()[:3000])
    return target


HUGE = {"units": 10**9}
DAMAGED: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "a huge Dense": (
        lambda s, t: with_config(s / "net.keras", t / "a.keras", lambda c: layer(c, 2).update(HUGE)),
        r"layer 'head' has a weight \(4, 1000000000\), more than the file holds",
    ),
    "a huge LSTM in HDF5": (
        lambda s, t: with_config(s / "net.h5", t / "a.h5", lambda c: layer(c, 1).update(units=30000)),
        "more than the file holds",
    ),
    "a huge input": (
        lambda s, t: with_config(
            s / "net.keras", t / "a.keras", lambda c: layer(c, 0).update(batch_shape=[None, 10**9, 3])
        ),
        "layer 'x' gives",
    ),
    "a list": (lambda s, t: rezipped(s / "net.keras", t / "a.keras", config=b"[]"), "is no object"),
    "metadata of a list": (lambda s, t: rezipped(s / "net.keras", t / "a.keras", metadata=b"[]"), "is no object"),
    "deep": (lambda s, t: rezipped(s / "net.keras", t / "a.keras", config=b"[" * 10**5), "100,000 levels deep"),
    "weights of zeros": (lambda s, t: rezipped(s / "net.keras", t / "a.keras", model=bytes(1 << 24)), "that unpack to"),
    "weights of noise": (lambda s, t: rezipped(s / "net.keras", t / "a.keras", model=b"noise"), "damaged HDF5"),
    "shapes without data": (lambda _, t: bomb(t / "a.h5"), "is of 4,000,000,000,000 bytes"),
    "another file's data": (lambda _, t: outside(t / "a.h5"), "lies outside the file"),
    "another file": (lambda _, t: other_place(t / "a.h5", h5py.ExternalLink("/etc/passwd", "/a")), "to another place"),
    "another name": (lambda _, t: other_place(t / "a.h5", h5py.SoftLink("/b")), "to another place"),
    "a circle": (lambda _, t: circle(t / "a.h5"), "64 levels deep"),
    "cut off": (lambda s, t: cut(s / "net.h5", t / "a.h5"), "damaged HDF5"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_models_are_refused(kind: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrusted, "FREE_BYTES", 1 << 20)  # so that a small bomb is one
    make, message = DAMAGED[kind]
    path = make(saved, tmp_path)
    with pytest.raises(ValueError, match=f"{path.name}.*{message}") as caught:
        command_files.load_model(path)
    assert "\n" not in str(caught.value)


def test_a_reader_of_hdf5_cannot_fill_the_machine() -> None:
    lines = "from kquant.files.hdf5_copy import _limit; import numpy; _limit(1000); numpy.empty(1 << 30, numpy.uint8)"
    said = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True)
    assert said.returncode and "Unable to allocate" in said.stderr


def test_a_checksum_that_is_wrong_is_damage(saved: Path, tmp_path: Path) -> None:
    content = bytearray((saved / "net.keras").read_bytes())
    content[content.find(b"keras_version")] ^= 1
    (tmp_path / "a.keras").write_bytes(content)
    with pytest.raises(ValueError, match="a.keras: a damaged zip archive: Bad CRC-32 for file 'metadata.json'"):
        command_files.load_model(tmp_path / "a.keras")


@pytest.mark.parametrize("ending", ["keras", "h5"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_code_in_a_file_does_not_run(ending: str, tmp_path: Path) -> None:
    path, x = tmp_path / f"code.{ending}", keras.Input((4,))
    twice = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda y: y * 2, name="twice")], name="inner")
    keras.Model(x, keras.layers.Dense(2)(twice(x))).save(path)
    with pytest.raises(ValueError, match=rf"code.{ending}: .*'twice' \(Lambda\) holds code.*Rescaling") as caught:
        command_files.load_model(path)
    assert "safe_mode=False" in str(caught.value) and "..." not in str(caught.value)
    # the way that the error names
    model = keras.models.load_model(path, safe_mode=False, compile=False)
    data = np.random.default_rng(0).random((64, 4), np.float32)
    assert kquant.check(model).ok
    q = kquant.calibrate(kquant.quantize(model), data, verbose=False)
    np.testing.assert_allclose(q.predict(data, verbose=0), model.predict(data, verbose=0), atol=0.1)


def test_the_limit_on_weights_ends_with_the_loading() -> None:
    before = keras.layers.Layer.add_weight
    with pytest.raises(ValueError, match="more than the file holds"), keras_files._weights_within(10):
        keras.layers.Dense(3).build((None, 4))
    assert keras.layers.Layer.add_weight is before
    keras.layers.Dense(3).build((None, 4))

"""An old file of any kind -> its configuration, and a checked copy that another process may load.

    .h5, .hdf5, .model     HDF5 with `model_config`
    .keras of Keras 2      a zip archive with config.json and model.weights.h5
    SavedModel             a folder with saved_model.pb, keras_metadata.pb and variables; its graph is not looked at

Files are counted and measured by the readers of `kquant.files` first, and told apart by what is in them.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from kquant.core.messages import absent
from kquant.files import keras_files
from kquant.files.destination import path_of
from kquant.files.untrusted import Archive, parse_json, read_file
from kquant.migrate.old_model import OldModel, Weights
from kquant.migrate.tfmot_wrappers import INPUT, WRAPPERS

METADATA, GRAPH = "keras_metadata.pb", "saved_model.pb"
TFMOT = (INPUT, *WRAPPERS)
MODELS = ("Sequential", "Functional", "Model")
MOST_NODES = 100_000


@dataclass(frozen=True, eq=False)
class OldFile:
    """An old file that was looked at.

    Attributes:
        path: as the caller gave it.
        kind: "h5", "keras" or "saved".
        version: of Keras, "" where the file does not tell.
        class_name: of the model.
        config: of the model.
        copy: what tf_keras may load: a file, or the folder.
        stored_bytes: of its values.
    """

    path: Path
    kind: str
    version: str
    class_name: str
    config: Any
    copy: Path
    stored_bytes: int

    @property
    def where(self) -> str:
        """For messages."""
        return str(self.path)

    @property
    def is_subclassed(self) -> bool:
        """True where how the model computes is in its code alone."""
        return self.class_name not in MODELS


def open_file(path: str | Path, folder: Path) -> OldFile:
    """Look at an old file.

    Args:
        path: of a file, or of a SavedModel folder.
        folder: for the copy.

    Raises:
        ValueError: nothing there, another kind of file with the way out, damaged, or of Keras 3 already.
    """
    given = path_of(path, "migrate", "old.h5")
    if given.is_dir():
        return _saved(given, folder)
    if not given.is_file():
        raise ValueError(f"{given}: {absent(given)}; give a .h5 or .keras file of Keras 2, or a SavedModel folder.")
    with given.open("rb") as opened:
        start = opened.read(keras_files.MOST_HDF5_OFFSET)
    if start[:4] == keras_files.ZIP:
        return _archive(given, folder)
    if keras_files.is_hdf5(start):
        return _hdf5(given, folder)
    raise ValueError(f"{given}: expected a model of Keras 2. Received: {keras_files.kind_of(given, start)}.")


def _checked(file: OldFile) -> OldFile:
    if file.version and not keras_files.is_old(file.version):
        raise ValueError(
            f"{file.path}: Keras {file.version} saved it, so there is nothing to migrate: keras.models.load_model, and "
            "every command of kquant, reads it as it is."
        )
    if file.is_subclassed and file.kind == "saved":
        return file
    listed = file.config if isinstance(file.config, list) else (file.config or {}).get("layers")
    if not isinstance(listed, list) or not all(
        isinstance(e, dict) and isinstance(e.get("config"), dict | list) for e in listed
    ):
        raise ValueError(f"{file.path}: damaged: its configuration has no list of layers. Save it again.")
    return file


def check_described(file: OldFile) -> None:
    """Refuse a model that is not described by its file.

    Raises:
        ValueError: with the way out.
    """
    if file.is_subclassed:
        raise ValueError(
            f"{file.path}: a model of the class {file.class_name}: how it computes is in its code, not in the "
            "file. Write the class for Keras 3 (`import keras` in place of `from tensorflow import keras`), call it on "
            "one sample, and give it, in Python: kquant.migrate.from_tf_keras(path, into=model) gives it the old "
            "weights."
        )


def _hdf5(file: Path, folder: Path) -> OldFile:
    whole = folder / "model.h5"
    stored = keras_files.copy_hdf5(file, whole, str(file))
    with h5py.File(whole, "r") as opened:
        version, text = (keras_files.as_text(opened.attrs.get(n, "")) for n in ("keras_version", "model_config"))
        if not text:
            raise ValueError(f"{file}: {keras_files.weights_only(opened, version)}")
    told = parse_json(text, f"{file}, model_config", keras_files.MOST_DEPTH)
    return _checked(OldFile(file, "h5", version, *_class_of(told, file), whole, stored))


def _class_of(told: Any, file: Path) -> tuple[str, Any]:
    if not isinstance(told, dict) or not isinstance(told.get("class_name"), str):
        raise ValueError(f"{file}: damaged: its configuration is no model. Save it again.")
    return told["class_name"], told.get("config")


def _archive(file: Path, folder: Path) -> OldFile:
    with file.open("rb") as opened:
        archive = Archive(opened, str(file))
        if keras_files.CONFIG not in archive.sizes or keras_files.WEIGHTS not in archive.sizes:
            raise ValueError(
                f"{file}: a zip archive, but no model of Keras 2: config.json or model.weights.h5 is missing."
            )
        told = parse_json(
            bytes(archive.read(keras_files.CONFIG)), f"{file}, {keras_files.CONFIG}", keras_files.MOST_DEPTH
        )
        name = keras_files.METADATA
        about = parse_json(bytes(archive.read(name)), f"{file}, {name}") if name in archive.sizes else {}
        content, stored = keras_files.copy_weights(bytes(archive.read(keras_files.WEIGHTS)), folder, str(file))
    class_name, config = _class_of(told, file)
    version = str(about.get("keras_version", "")) if isinstance(about, dict) else ""
    # three members that were read within limits: what else lies in the user's archive is left there
    whole = folder / "model.keras"
    with zipfile.ZipFile(whole, "w") as copy:
        copy.writestr(keras_files.CONFIG, json.dumps(_built_once(told)))
        copy.writestr(keras_files.METADATA, json.dumps(about))
        copy.writestr(keras_files.WEIGHTS, content)
    return _checked(OldFile(file, "keras", version, class_name, config, whole, stored))


def _built_once(value: Any) -> Any:
    """Without what makes tf_keras build tfmot's wrappers twice, and then miss weights for the second set.

    "Layer 'quantize_layer' expected 5 variables, but received 3 variables during loading" is what it says of every
    quantized model otherwise (tf_keras 2.21, tfmot 0.8.1).
    """
    if isinstance(value, list):
        return [_built_once(each) for each in value]
    if not isinstance(value, dict):
        return value
    dropped = {"build_config"} if value.get("class_name") in TFMOT else set()
    if value.get("class_name") in TFMOT and isinstance(value["config"].get("layer"), dict):
        inner = {k: v for k, v in value["config"]["layer"].items() if k != "build_config"}
        value = {**value, "config": {**value["config"], "layer": inner}}
    return {key: _built_once(each) for key, each in value.items() if key not in dropped}


def _saved(path: Path, folder: Path) -> OldFile:
    if not (path / GRAPH).is_file():
        raise ValueError(f"{path}: a folder, but no SavedModel: {GRAPH} is missing. Give a .h5 or .keras file.")
    if not (path / METADATA).is_file():
        raise ValueError(
            f"{path}: a SavedModel without Keras' {METADATA}: no layers are left in it. Build the network in Keras 3 "
            "from its code; its weights are [v.numpy() for v in tf.saved_model.load(folder).variables]."
        )
    nodes = metadata(read_file(path / METADATA, str(path / METADATA)), str(path))
    told = nodes.get("root")
    if told is None:
        raise ValueError(f"{path}: {METADATA} tells of no model; damaged. Save it again.")
    version = str(told.get("keras_version", "2"))
    # configuration and variables alone: what the graph computes, and may do, is left behind
    copy = folder / "saved"
    copy.mkdir()
    variables = path / "variables"
    for file in sorted(variables.glob("variables.*")) if variables.is_dir() else ():
        if not file.is_file():
            raise ValueError(f"{file}: {absent(file)}.")
        (copy / "variables").mkdir(exist_ok=True)
        shutil.copyfile(file, copy / "variables" / file.name)
    class_name, config = _class_of(_lists(told), path)
    (copy / "config.json").write_text(json.dumps({"class_name": class_name, "config": config}))
    stored = sum(file.stat().st_size for file in copy.rglob("*.data*"))
    if class_name == "Functional" or told.get("is_graph_network"):
        class_name = "Sequential" if class_name == "Sequential" else "Functional"
    return _checked(OldFile(path, "saved", version, class_name, config, copy, stored))


def _lists(value: Any) -> Any:
    """Plain lists where this JSON tells of tuples."""
    if isinstance(value, list):
        return [_lists(each) for each in value]
    if isinstance(value, dict):
        items = value.get("items")
        if value.get("class_name") in ("__tuple__", "TensorShape") and isinstance(items, list):
            return _lists(items)
        return {key: _lists(each) for key, each in value.items()}
    return value


def metadata(content: bytes, where: str) -> dict[str, Any]:
    """What `keras_metadata.pb` says of each object, by its path in the model ("root" is the model).

    The message: `SavedMetadata {repeated SavedObject nodes = 1}`, `SavedObject {string node_path = 3, string metadata =
    5}`. Source: tf_keras, `saved_metadata.proto`, `versions.proto`.

    Args:
        content: of the file.
        where: names it in errors.

    Raises:
        ValueError: damaged.
    """
    objects: dict[str, Any] = {}
    for number, node in _fields(content, where):
        if number != 1 or not isinstance(node, bytes):
            continue
        told = dict(_fields(node, where))
        path, text = told.get(3), told.get(5)
        if isinstance(path, bytes) and isinstance(text, bytes):
            name = path.decode("utf-8", "replace")
            objects[name] = parse_json(text or b"{}", f"{where}, {name}", keras_files.MOST_DEPTH)
        if len(objects) > MOST_NODES:
            raise ValueError(f"{where}: more than {MOST_NODES:,} objects.")
    return {name: told for name, told in objects.items() if isinstance(told, dict)}


def _fields(content: bytes, where: str) -> Iterator[tuple[int, int | bytes]]:
    """Fields of a protobuf message: number and value."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at, where)
        kind = key & 7
        if kind == 0:
            value, at = _varint(content, at, where)
            yield key >> 3, value
            continue
        # protobuf's wire types: 0 a varint, 1 eight bytes, 5 four, 2 a length and so many bytes
        size, at = (8, at) if kind == 1 else (4, at) if kind == 5 else _varint(content, at, where)
        if kind not in (1, 2, 5) or at + size > len(content):
            raise ValueError(f"{where}: {METADATA} is damaged at byte {at}. Save the model again.")
        yield key >> 3, content[at : at + size]
        at += size


def _varint(content: bytes, at: int, where: str) -> tuple[int, int]:
    value = 0
    # 64 bits lie in ten bytes at most, seven in each
    for shift in range(0, 70, 7):
        if at >= len(content):
            break
        byte = content[at]
        value, at = value | (byte & 127) << shift, at + 1
        if byte < 128:
            return value, at
    raise ValueError(f"{where}: {METADATA} is damaged at byte {at}. Save the model again.")


def weights_of(file: OldFile) -> dict[str, Weights]:
    """Weights of an HDF5 file, by layer, without tf_keras.

    Raises:
        ValueError: another kind of file, or a list of names without its arrays.
    """
    if file.kind != "h5":
        raise ValueError(
            f"{file.path}: only HDF5 files tell which weight is which; load it in tf_keras, model.save('old.h5'), and "
            "migrate that file."
        )
    with h5py.File(file.copy, "r") as opened:
        group: Any = opened["model_weights"] if "model_weights" in opened else opened
        return {name: tuple(_named(group[name], file.where)) for name in group if isinstance(group[name], h5py.Group)}


def _named(group: Any, where: str) -> Iterator[tuple[str, Any]]:
    # a long list is in parts, as an attribute has a largest size
    listed = [key for key in group.attrs if key.startswith("weight_names")]
    for key in sorted(listed, key=lambda key: int(key.removeprefix("weight_names") or 0)):
        for name in group.attrs[key]:
            path = keras_files.as_text(name)
            if path not in group:
                raise ValueError(f"{where}: '{group.name}' lists a weight '{path}' that is not there; damaged.")
            yield path.split(":")[0], group[path][()]


def unread(file: OldFile, why: str) -> OldModel:
    """What an HDF5 file holds, read without tf_keras.

    Args:
        file: of kind "h5".
        why: the old model was not run.

    Raises:
        ValueError: see `weights_of`.
    """
    return OldModel(
        file.where, file.class_name, file.config, weights_of(file), versions={"keras": file.version}, untried=why
    )

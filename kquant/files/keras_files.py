"""Keras models from files that anyone may have written, told apart by what is in them and not by their names.

A `.keras` file is a zip archive with a configuration and an HDF5 file of weights; a `.h5` file is HDF5 with both.
Either is counted and measured first (`untrusted`), its HDF5 part is read by another process (`hdf5_copy`), and
while Keras builds the model no weight may be larger than what is stored.
"""

from __future__ import annotations

import contextlib
import math
import re
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import keras

from kquant.core.messages import absent, shortened
from kquant.files import hdf5_copy
from kquant.files.leftovers import scratch
from kquant.files.untrusted import Archive, parse_json

ZIP, HDF5, EXPECTED = b"PK\3\4", b"\x89HDF\r\n\x1a\n", "expected a Keras model (.keras)"
CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
MOST_HDF5_OFFSET = 1 << 20  # a user block may come before the signature, at 512, 1024, 2048, ...
MOST_DEPTH = 256  # of a configuration: models in models take six levels each
FREE_VALUES = 1 << 20  # that weights may have beyond what is stored
MOST_VALUES = 1 << 28  # of one sample in one tensor: 1 GB
SECONDS = 300
_ONE = threading.Lock()
MIGRATE = "docs/migrate.md shows how to bring it over"
COMMAND = f"{MIGRATE} with kquant migrate"


def load(path: str | Path) -> keras.Model:
    """A Keras model from a `.keras` or HDF5 file, whatever its name.

    Args:
        path: of the file.

    Raises:
        ValueError: no such file, another kind of file with the way to a Keras model, damaged, or Keras cannot rebuild
            it.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(_no_file(file))
    with file.open("rb") as opened:
        start = opened.read(MOST_HDF5_OFFSET)
    if start[:4] == ZIP:
        return _from_zip(file)
    if is_hdf5(start):
        return _from_hdf5(file)
    if file.suffix.lower() == ".keras":
        raise ValueError(f"{file}: damaged, or no Keras 3 model: a .keras file is a zip archive. Save it again.")
    raise ValueError(f"{file}: {EXPECTED}. Received: {kind_of(file, start)}.")


def _no_file(path: Path) -> str:
    """A folder may be a model of another format."""
    if (path / "saved_model.pb").is_file():
        by, way = ("tf_keras", COMMAND) if (path / "keras_metadata.pb").is_file() else ("TensorFlow", MIGRATE)
        return f"{path}: {EXPECTED}. Received: a SavedModel folder of {by}; {way}."
    if (path / CONFIG).is_file() and (path / WEIGHTS).is_file():
        way = "keras.models.load_model(folder).save('name.keras') packs it"
        return f"{path}: {EXPECTED}. Received: an unpacked .keras archive; {way}."
    return f"{path}: {absent(path)}; give a Keras model saved with model.save('name.keras')."


def is_keras(start: bytes) -> bool:
    """Whether a file begins as a Keras model does, of any version.

    Args:
        start: its first bytes.
    """
    return start[:4] == ZIP or start[:8] == HDF5


def is_hdf5(start: bytes) -> bool:
    """Whether a file begins like HDF5, behind a user block or not.

    Args:
        start: its first `MOST_HDF5_OFFSET` bytes and 8 more.
    """
    return start[:8] == HDF5 or any(start[at : at + 8] == HDF5 for at in (512 << i for i in range(11)))


def kind_of(file: Path, start: bytes) -> str:
    """What a file is that holds no Keras model, and the way to one.

    Args:
        file: its path, whose suffix tells too.
        start: its first bytes.
    """
    suffix, name = file.suffix.lower(), file.name.lower()
    if not start:
        return "an empty file; save the model again"
    if start[4:8] == b"TFL3":
        return (
            "a TFLite file, which has no layers any more; give the Keras model that it came from, or look at it "
            "with kquant inspect"
        )
    if start.lstrip()[:1] == b"{":
        version = re.search(rb'"keras_version": *"(\d[^"]{0,20})"', start)
        by = f" of Keras {version[1].decode(errors='replace')}" if version else ""
        way = (
            MIGRATE
            if version and version[1][:1] in b"12"
            else ("keras.models.model_from_json builds it, load_weights and model.save('name.keras') make a file")
        )
        return f"a model's configuration{by} (JSON), without weights; {way}"
    if suffix == ".pb" or start[:3] == b"\x08\x01\x12":
        return f"a TensorFlow graph (.pb); {MIGRATE}"
    if suffix == ".onnx" or (start[:1] == b"\x08" and b"onnx" in start[:200].lower()):
        return "an ONNX model; build the network in Keras and set its weights, as docs/migrate.md shows"
    if suffix in (".pt", ".pth", ".pkl") or start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return (
            "a pickle, as PyTorch writes them; build the network in Keras and set its weights, as docs/migrate.md shows"
        )
    if suffix == ".safetensors":
        return "weights of another framework; build the network in Keras and set its weights, as docs/migrate.md shows"
    if suffix in (".index", ".ckpt") or ".data-0" in name or name == "checkpoint":
        return f"a TensorFlow checkpoint: weights without a model; {MIGRATE}"
    return f"'{file.suffix}', which is neither a .keras nor an HDF5 file"


def _from_zip(file: Path) -> keras.Model:
    with file.open("rb") as opened:
        archive = Archive(opened, str(file))
        if CONFIG not in archive.sizes:
            raise ValueError(f"{file}: {_no_model(archive)}")
        config = parse_json(bytes(archive.read(CONFIG)), f"{file}, {CONFIG}", MOST_DEPTH)
        about = parse_json(bytes(archive.read(METADATA)), f"{file}, {METADATA}") if METADATA in archive.sizes else {}
        if not isinstance(config, dict) or not isinstance(about, dict):
            raise ValueError(f"{file}: damaged: its configuration is no object. Save it again.")
        with scratch() as folder:
            whole, stored = folder / "model.keras", 0
            with zipfile.ZipFile(whole, "w") as copy:
                for name in archive.sizes:
                    content: Any = archive.read(name)
                    if name == WEIGHTS:
                        content, stored = copy_weights(bytes(content), folder, str(file))
                    copy.writestr(name, bytes(content))
            return _rebuilt(file, whole, stored, str(about.get("keras_version", "")), config)


def _no_model(archive: Archive) -> str:
    """Why a zip archive is no Keras model."""
    names = list(archive.sizes)
    if any(name.endswith("data.pkl") for name in names):
        kind = "a PyTorch file; build the network in Keras and set its weights, as docs/migrate.md shows"
    elif any(name.endswith("saved_model.pb") for name in names):
        kind = f"a packed SavedModel; {MIGRATE}"
    elif names and all(name.endswith(".npy") for name in names):
        kind = "arrays (.npz)"
    else:
        return "it is a zip archive, but no Keras model. Save one with model.save('name.keras')."
    return f"{EXPECTED}. Received: {kind}."


def _from_hdf5(file: Path) -> keras.Model:
    with scratch() as folder:
        whole = folder / "model.h5"
        stored = copy_hdf5(file, whole, str(file))
        with h5py.File(whole, "r") as opened:
            version, config = (as_text(opened.attrs.get(name, "")) for name in ("keras_version", "model_config"))
            if not config:
                raise ValueError(f"{file}: {weights_only(opened, version)}")
        made_of = parse_json(config, f"{file}, model_config", MOST_DEPTH)
        return _rebuilt(file, whole, stored, version, made_of)


def as_text(value: Any) -> str:
    """An attribute of HDF5, which may be bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def weights_only(opened: h5py.File, version: str) -> str:
    """What an HDF5 file without a configuration is.

    Args:
        opened: the file.
        version: of Keras, where it tells.
    """
    if not ("layer_names" in opened.attrs or "layers" in opened or "vars" in opened or "model_weights" in opened):
        return f"{EXPECTED}. Received: an HDF5 file without a model."
    by = f" of Keras {version}" if version else ""
    return (
        f"{EXPECTED}. Received: weights{by} without their model (save_weights wrote them). Build the model with its "
        "code, then model.load_weights(file) and model.save('name.keras')"
        + (f"; {MIGRATE}." if is_old(version) else ".")
    )


def copy_weights(content: bytes, folder: Path, where: str) -> tuple[bytes, int]:
    """The weights of a `.keras` archive written anew, and the bytes of their values.

    Args:
        content: of the HDF5 file.
        folder: for temporary files.
        where: the archive, for errors.

    Raises:
        ValueError: damaged.
    """
    source, target = folder / "source.h5", folder / "target.h5"
    source.write_bytes(content)
    stored = copy_hdf5(source, target, f"{where}, {WEIGHTS}")
    return target.read_bytes(), stored


def copy_hdf5(source: Path, target: Path, where: str) -> int:
    """An HDF5 file written anew by a process of its own, value by value.

    Args:
        source: anything.
        target: to write.
        where: names the file in errors.

    Returns:
        Bytes of its values.

    Raises:
        ValueError: damaged, or it takes too long.
    """
    command = [sys.executable, "-P", str(Path(hdf5_copy.__file__)), str(source), str(target)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace", timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"{where}: not read after {SECONDS} s: damaged, or too large.") from error
    if done.returncode == 0:
        return int(done.stdout)
    ends = (
        "it keeps its reader busy without end"
        if done.returncode == -getattr(signal, "SIGXCPU", 1 << 16)
        else "it ends its reader"
    )
    said = next((line.strip() for line in reversed(done.stderr.splitlines()) if line.strip()), ends)
    raise ValueError(f"{where}: a damaged HDF5 file: {shortened(said)}. Save it again.")


def _rebuilt(file: Path, whole: Path, stored: int, version: str, config: Any) -> keras.Model:
    """The model, from a file that has been read and written anew."""
    try:
        with _weights_within(stored + FREE_VALUES):
            model = keras.models.load_model(whole, compile=False)
    # Configurations name any class with any arguments: this ends in whatever their constructors raise.
    except Exception as error:
        reason = _reason(error).replace(str(whole), str(file))
        way = _way_out(reason, version, config)
        raise ValueError(f"{file}: Keras {keras.__version__} cannot load it: {way}") from error
    if not isinstance(model, keras.Model):
        raise ValueError(f"{file}: holds a {type(model).__name__}, not a model.")
    for layer in model.layers:
        _check_tensors(file, layer)
    return model


def _reason(error: Exception) -> str:
    """The line of Keras' message that says why; around it stands the whole configuration of a layer."""
    said = str(error).rsplit("Exception encountered:", 1)[-1]
    return next((line.strip() for line in said.splitlines() if line.strip()), type(error).__name__)


def _way_out(reason: str, version: str, config: Any) -> str:
    """Why Keras could not rebuild a model, and what to do."""
    if is_old(version):
        return f"Keras {version} (tf_keras) saved it; {COMMAND}. Keras' reason: {shortened(reason)}"
    if "`Lambda` layer" in reason and "Python lambda" in reason:
        named = ", ".join(f"'{name}'" for name in _lambdas(config))
        return (
            f"{named or 'a layer'} (Lambda) holds code of Python, which is not run from a file. Replace it by a layer "
            "(Rescaling, Activation, Reshape, or keras.ops in a functional model), or load the model in Python where "
            "you trust it, keras.models.load_model(path, safe_mode=False), and call kquant.check(model) and "
            "kquant.compress(model, data) there."
        )
    if "Could not locate" in reason:
        # of Keras' advice, which is for who writes Python, no more than what is missing
        return (
            f"{reason.split('. ')[0]}. Custom layers need their code: give --code FILE.py, a file of yours that "
            "defines or imports them; or import it in Python and call kquant.compress there."
        )
    return shortened(reason)


def _lambdas(config: Any) -> list[str]:
    """Names of the Lambda layers in a model's configuration, those inside of other models too."""
    if isinstance(config, list):
        return [name for each in config for name in _lambdas(each)]
    if not isinstance(config, dict):
        return []
    own, inside = config.get("config"), [name for each in config.values() for name in _lambdas(each)]
    if config.get("class_name") != "Lambda" or not isinstance(own, dict):
        return inside
    return [str(own.get("name", "")), *inside]


def is_old(version: str) -> bool:
    """True for Keras 1 and 2.

    Example:
        >>> is_old("2.15.0"), is_old("3.4.1")
        (True, False)
    """
    return version[:2] in ("1.", "2.")


@contextlib.contextmanager
def _weights_within(most: int) -> Iterator[None]:
    """While a model is built: refuse weights that have more values than a file can fill.

    Keras makes all weights from the configuration before it reads one, and an edited configuration may say
    Dense(10**9). `add_weight` is where every layer asks for them.
    """
    made, original = 0, keras.layers.Layer.add_weight

    def add_weight(self: keras.layers.Layer, shape: Any = None, *args: Any, **kwargs: Any) -> Any:
        nonlocal made
        made += math.prod(int(n) for n in (shape or ()))
        if made > most:
            raise ValueError(f"layer '{self.name}' has a weight {tuple(shape)}, more than the file holds.")
        return original(self, shape, *args, **kwargs)

    with _ONE:
        keras.layers.Layer.add_weight = add_weight
        try:
            yield
        finally:
            keras.layers.Layer.add_weight = original


def _check_tensors(file: Path, layer: keras.layers.Layer) -> None:
    try:
        outputs = keras.tree.flatten(layer.output)
    except (AttributeError, ValueError):  # called several times, or never
        return
    for t in outputs:
        if math.prod(n or 1 for n in t.shape[1:]) > MOST_VALUES:
            raise ValueError(
                f"{file}: layer '{layer.name}' gives {tuple(t.shape)}; one sample has at most {MOST_VALUES:,}."
            )

"""Files that commands read and write: Keras models, samples (.npz, .npy, image folders), arrays."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

import kquant.layers.nodes
import kquant.ops  # noqa: F401  both register kquant's layers with Keras, which `load_model` needs
from kquant.app import collector
from kquant.core.messages import absent, first_of, shortened, warn
from kquant.exporting.export_file import export
from kquant.files import keras_files
from kquant.files.atomic import Outputs, write_atomically
from kquant.files.destination import destination
from kquant.files.leftovers import settle
from kquant.files.named_files import check_data, check_labels_file
from kquant.files.untrusted import read_arrays, read_text
from kquant.graph import inputs
from kquant.graph.keras_private import deep_graphs
from kquant.tflite.reader import FileModel, inspect

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".pgm", ".ppm")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM")
MOST_PIXELS = 1 << 26  # that one image may have before it is resized: 256 MB


@dataclass(frozen=True)
class Input:
    """Name and shape, without the batch axis, of what a model takes."""

    name: str
    shape: tuple[int | None, ...]


def inputs_of(model: keras.Model | FileModel, input_shape: Any = None) -> tuple[Input, ...]:
    """What a Keras model or a `.tflite` file takes, in order; inputs in a dict go by their keys.

    Args:
        model: or file.
        input_shape: of a model with open dimensions, batch axis included.
    """
    if isinstance(model, FileModel):
        return tuple(Input(t.name, tuple(t.shape[1:])) for t in model.inputs)
    struct = inputs.inputs_of(model, input_shape)
    tensors = keras.tree.flatten(struct)  # a dict by sorted keys
    names = sorted(struct) if isinstance(struct, dict) else [t.name for t in tensors]
    return tuple(Input(name, tuple(t.shape[1:])) for name, t in zip(names, tensors, strict=True))


def load_model(path: str | Path) -> keras.Model:
    """A Keras model from a `.keras` or HDF5 file; quantized ones too.

    Raises:
        ValueError: no such file, another kind of file, or Keras cannot rebuild it; with the way where there is one.
    """
    settle(Path(path).parent)  # a model and its file may be of two runs where one was killed
    with deep_graphs():
        model = keras_files.load(path)
    collector.go_on()
    return model


def subject_of(path: Path) -> tuple[Any, tuple[Input, ...]]:
    """A file by its path, or a Keras model, and what it takes."""
    if path.suffix == ".tflite":
        return path, inputs_of(inspect(path))
    model = load_model(path)
    return model, inputs_of(model)


def load_data(path: str | Path, takes: Sequence[Input], *, scale: float = 1.0, limit: int | None = None) -> Any:
    """Samples for a model.

    Args:
        path: `.npy` (one array), `.npz` (the array `x`, the only array, or one for each input by name) or a folder of
            images, which are resized to the model's input.
        takes: what the model takes, see `inputs_of`.
        scale: factor for every value, 1/255 where the model was trained on [0, 1].
        limit: take this many samples, spread evenly over all.

    Returns:
        float32[samples, ...], or a list of them for several inputs.

    Raises:
        ValueError: no such file, arrays that do not fit the inputs, no images, or a limit below 1.
    """
    source = Path(path)
    if limit is not None and limit < 1:
        raise ValueError(f"{source}: the number of samples must be at least 1. Received: {limit}.")
    if source.is_dir():
        return _images(source, takes, scale, limit)
    check_data(source)
    stored = _arrays(source)
    named = _chosen(stored, takes, source)
    ready = [_scaled(_taken(array, limit), scale, f"{source}, array '{name}'") for name, array in named.items()]
    return ready if len(takes) > 1 else ready[0]


def load_labels(path: str | Path, *, limit: int | None = None) -> np.ndarray:
    """Class numbers of samples.

    Args:
        path: `.npy` file, or `.npz` with one array or an array `y`: int[samples], or one-hot [samples, classes].
        limit: take this many, spread as `load_data` spreads the samples.

    Returns:
        int64[samples].

    Raises:
        ValueError: no such file, or no class numbers.
    """
    source = Path(path)
    check_labels_file(source)
    stored = _arrays(source)
    if "y" not in stored and len(stored) != 1:
        raise ValueError(f"{source}: which array holds the labels? Name it 'y'. It holds: {', '.join(stored)}.")
    labels = _taken(stored["y"] if "y" in stored else next(iter(stored.values())), limit)
    # one-hot; a column [samples, 1] holds class numbers
    if labels.ndim == 2 and labels.shape[1] > 1 and labels.dtype.kind in "fiub":
        labels = labels.argmax(axis=1)
    if not (labels.ndim and labels.size == len(labels) and labels.dtype.kind in "fiub" and _whole(labels)):
        raise ValueError(f"{source}: expected a class number for each sample. Received: {labels.dtype} {labels.shape}.")
    return labels.reshape(-1).astype(np.int64)


def _whole(labels: np.ndarray) -> bool:
    """Whether all are integers that int64 holds: no NaN, no fractions."""
    return bool(np.all(np.abs(labels.astype(np.float64)) < 2.0**53) and np.all(labels == np.rint(labels)))


def _arrays(source: Path) -> dict[str, np.ndarray]:
    if source.suffix.lower() not in (".npy", ".npz"):
        raise ValueError(f"{source}: expected .npz, .npy or a folder of images. Received: '{source.suffix}'.")
    return read_arrays(source, str(source))


def _chosen(stored: dict[str, np.ndarray], takes: Sequence[Input], source: Path) -> dict[str, np.ndarray]:
    """The arrays that feed the inputs."""
    has = ", ".join(f"{name} {array.shape}" for name, array in stored.items()) or "nothing"
    names = [i.name for i in takes]
    if len(takes) == 1:
        # x before the input's name, which Keras may have made up
        for key in ("x", names[0]):
            if key in stored:
                return {names[0]: stored[key]}
        if len(stored) == 1:
            return {names[0]: next(iter(stored.values()))}
        raise ValueError(f"{source}: which array feeds the model? Name it 'x'. It holds: {has}.")
    missing = [name for name in names if name not in stored]
    if missing:
        raise ValueError(
            f"{source}: the model takes {len(names)} inputs; the file needs one array for each. Missing: "
            f"{', '.join(missing)}. It holds: {has}."
        )
    return {name: stored[name] for name in names}


def _taken(array: np.ndarray, limit: int | None) -> np.ndarray:
    return array if limit is None or array.ndim == 0 else array[_spread(len(array), limit)]


def _spread(count: int, limit: int | None) -> np.ndarray:
    """Indices spread evenly: the first ones of a sorted set would all be of one class."""
    return np.arange(count) if limit is None or limit >= count else np.linspace(0, count - 1, limit).round().astype(int)


def _scaled(array: np.ndarray, scale: float, where: str) -> np.ndarray:
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise ValueError(f"{where}: expected numbers. Received: dtype {array.dtype}.")
    return array.astype(np.float32) * np.float32(scale)


def _images(folder: Path, takes: Sequence[Input], scale: float, limit: int | None) -> np.ndarray:
    if importlib.util.find_spec("PIL") is None:
        raise ValueError("a folder of images needs an extra: pip install 'kquant[images]'")
    shape = takes[0].shape
    if len(takes) != 1 or len(shape) != 3 or None in shape or shape[2] not in (1, 3, 4):
        wanted = ", ".join(f"{i.name} {i.shape}" for i in takes)
        raise ValueError(f"{folder}: images feed one input [height, width, 1, 3 or 4]. The model takes: {wanted}.")
    # sorted: file systems list in any order, and the same command should take the same samples
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in IMAGES and not f.is_dir())
    if not files:
        raise ValueError(f"{folder}: no images in it; known are {', '.join(IMAGES)}.")
    chosen = [files[i] for i in _spread(len(files), limit)]
    sizes: Counter[tuple[int, ...]] = Counter()
    pixels = np.stack([_image(file, shape, sizes) for file in chosen]) * np.float32(scale)
    others = {size: count for size, count in sizes.items() if size != shape[:2]}
    if others:
        largest = first_of((f"{h} x {w}" for h, w in sorted(others, key=lambda size: -others[size])), 3)
        warn(
            f"{folder}: {sum(others.values())} of {len(chosen)} images were resized, the whole of each, to the model's "
            f"{shape[0]} x {shape[1]} pixels (height x width) from {largest}. Where training cropped or padded, give "
            "files that are prepared so."
        )
    return pixels


def _image(file: Path, shape: tuple[Any, ...], sizes: Counter[tuple[int, ...]]) -> np.ndarray:
    """Pixels of a file in the size that is wanted; its own is counted."""
    from PIL import Image  # optional extra

    if not file.is_file():
        raise ValueError(f"{file}: {absent(file)}.")
    height, width, channels = shape
    try:
        # a suffix says little: among what Pillow opens by content are formats that start other programs
        with warnings.catch_warnings(), Image.open(file, formats=FORMATS) as image:
            # Pillow warns from other sizes on; the bound is the one below
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if math.prod(image.size) > MOST_PIXELS:
                raise ValueError(f"{image.size[0]} x {image.size[1]} pixels; at most {MOST_PIXELS:,} in all")
            sizes[image.size[::-1]] += 1
            mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
            resized = image.convert(mode).resize((width, height), Image.Resampling.BILINEAR)
    # Pillow's readers let through what struct, zlib and their own parsers raise at damaged bytes
    except Exception as error:
        raise ValueError(f"{file}: not an image that can be read ({shortened(str(error))}).") from error
    return np.asarray(resized, np.float32).reshape(height, width, channels)


def named_outputs(file: FileModel, outputs: Any) -> dict[str, np.ndarray]:
    """What `kquant.predict` returned, by the names of the file's outputs."""
    arrays = outputs if isinstance(outputs, list) else [outputs]
    return {t.name: array for t, array in zip(file.outputs, arrays, strict=True)}


def check_arrays_file(path: str | Path) -> Path:
    """Refuse a file for arrays that could not be written, before any work is done.

    Raises:
        ValueError: another suffix, or no such folder.
    """
    target = Path(path)
    if target.suffix != ".npz":
        raise ValueError(f"--path {target}: arrays go to a .npz file. Received: '{target.suffix}'.")
    destination(target, "--path", "outputs.npz")
    return target


def save_arrays(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays by name to a `.npz` file.

    Raises:
        ValueError: see `check_arrays_file`.
    """
    write_atomically(check_arrays_file(path), arrays_file(arrays), "--path")


def arrays_file(arrays: dict[str, np.ndarray]) -> bytes:
    """Arrays by name, as a `.npz` file holds them."""
    content = io.BytesIO()
    # what `np.savez(content, **arrays)` writes, whose own arguments are names of outputs, too ("file")
    with zipfile.ZipFile(content, "w") as archive:
        for name, array in arrays.items():
            entry = io.BytesIO()
            np.lib.format.write_array(entry, np.asanyarray(array), allow_pickle=False)
            archive.writestr(f"{name}.npy", entry.getvalue())
    return content.getvalue()


def save_results(qmodel: keras.Model, paths: Sequence[Path], data: Any) -> None:
    """A quantized model as `.keras`, as a verified `.tflite` file, or both; older files stay until all are whole.

    Args:
        qmodel: the model.
        paths: of the results.
        data: see `kquant.export`.

    Raises:
        ValueError: what `kquant.export` refuses.
    """
    with Outputs(paths, "--path") as new:
        for path in paths:
            if path.suffix == ".tflite":
                export(qmodel, new.place(path), data=data)
            else:
                save_model(qmodel, path, new)


def save_model(model: keras.Model, path: Path, new: Outputs) -> None:
    """A Keras model as one of the results of a run.

    Args:
        model: the model.
        path: of its file.
        new: the results.

    Raises:
        ValueError: the system refuses, with its reason.
    """
    # about what the weights take in float32: what the error of a full disk names
    with new.making(path, 4 * sum(int(np.prod(w.shape)) for w in model.weights)) as made:
        model.save(made)


@contextlib.contextmanager
def output_folder(folder: str | Path, model_path: str | Path) -> Iterator[Path]:
    """The folder for results, made where it is missing, and gone again where nothing was written into it.

    Raises:
        ValueError: it is a file, cannot be made, or the results would overwrite the model they come from.
    """
    folder, model = Path(folder), Path(model_path)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--folder {folder}: a file of that name is there; give a folder.")
    if folder.resolve() == model.resolve().parent:
        raise ValueError(f"--folder {folder}: the quantized model would overwrite {model}; give another folder.")
    # the innermost first: a folder is empty once the one in it is gone
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--folder {folder}: cannot make this folder: {error.strerror}.") from error
    try:
        yield folder
    finally:
        for each in made:
            if not any(each.iterdir()):
                each.rmdir()


def load_names(path: str | Path) -> list[str]:
    """Names of classes, one in a line.

    Raises:
        ValueError: no such file, no text, or a name that is empty.
    """
    names = read_text(path, f"--classes {path}").splitlines()
    if not names or not all(name.strip() for name in names):
        raise ValueError(f"--classes {path}: expected one name in each line. Received: {len(names)} lines, some empty.")
    return [name.strip() for name in names]

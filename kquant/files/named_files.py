"""Files that a caller names are looked at before anything loads; each absence has one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kquant.core.messages import absent
from kquant.files.destination import destination

RESULTS = (".keras", ".tflite")


def check_model_file(path: str | Path) -> None:
    """Refuse a model that is not there.

    Raises:
        ValueError: nothing is there.
    """
    if not Path(path).exists():  # what else it may be is told by who reads it
        raise ValueError(f"{path}: {absent(path)}; give a Keras model saved with model.save('name.keras').")


def check_data(path: str | Path) -> None:
    """Refuse samples that are not there.

    Raises:
        ValueError: neither a file nor a folder.
    """
    if not Path(path).exists():
        raise ValueError(f"{path}: {absent(path)} or folder; give .npz, .npy or a folder of images.")


def check_labels_file(path: str | Path) -> None:
    """Refuse labels that are not there.

    Raises:
        ValueError: no such file, or a folder.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: {absent(path)}; give .npy or .npz.")


def check_lite_file(path: str | Path) -> None:
    """Refuse a TFLite file that is not there.

    Raises:
        ValueError: no such file, or a folder.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: {absent(path)}; give the path of a .tflite file or its bytes.")


def check_results(paths: Sequence[Path], model_path: Path, kinds: Sequence[str] = RESULTS) -> None:
    """Refuse files for results that could not be written, before any work is done.

    Args:
        paths: of the results.
        model_path: of the model that they come from.
        kinds: suffixes of which each has one.

    Raises:
        ValueError: another suffix, no such folder, or the model that the results come from.
    """
    for path in paths:
        if path.suffix not in kinds:
            raise ValueError(f"--path {path}: expected a file {' or '.join(kinds)}. Received: '{path.suffix}'.")
        destination(path, "--path")
        if path.resolve() == model_path.resolve():
            raise ValueError(f"--path {path}: would overwrite the model it comes from; give another file.")

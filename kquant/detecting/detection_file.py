"""`Detection` as a TOML file, for commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kquant.detecting.spec import Detection
from kquant.files.answer_file import read_answer
from kquant.files.untrusted import read_arrays

ARRAYS = ("anchors", "cells")  # too long for such a file: names of others beside it


def read_detection(path: str | Path) -> Detection:
    r"""What the outputs of a detector mean, by the names of `Detection`.

    Args:
        path: of a TOML file; `anchors` and `cells` are lists of rows, or names of .npy files beside it.

    Raises:
        ValueError: no such file, another key, or what `Detection` refuses.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "head.toml").write_text('form = "corners"\nthreshold = 0.4')
        ...     read_detection(Path(folder) / "head.toml").threshold
        0.4
    """
    where = f"--detection {path}"

    def prepared(given: dict[str, Any]) -> dict[str, Any]:
        beside = {key: given[key] for key in ARRAYS if isinstance(given.get(key), str)}
        arrays = {key: _array(Path(path).parent / name, f"{where}: {key}") for key, name in beside.items()}
        scales = {"scales": tuple(given["scales"])} if isinstance(given.get("scales"), list) else {}
        return {**given, **arrays, **scales}

    return read_answer(Detection, path, where, prepared)


def _array(path: Path, where: str) -> np.ndarray:
    stored: dict[str, Any] = read_arrays(path, f"{where} '{path.name}'")
    if len(stored) != 1:
        raise ValueError(f"{where} '{path.name}': one array is wanted, as np.save writes it. It holds {len(stored)}.")
    return next(iter(stored.values()))

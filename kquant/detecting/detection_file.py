"""`Detection` as a TOML file, for commands."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from kquant.core.messages import check_known
from kquant.detecting.spec import Detection
from kquant.files.untrusted import MOST_SETTINGS_BYTES, parse_toml, read_arrays, read_text

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
    given = parse_toml(read_text(path, where, MOST_SETTINGS_BYTES), where)
    for key in given:
        check_known(f"{where}: no key '{key}'", key, [field.name for field in fields(Detection)])
    for key in ARRAYS:
        if isinstance(given.get(key), str):
            given[key] = _array(Path(path).parent / given[key], f"{where}: {key}")
    if isinstance(given.get("scales"), list):
        given["scales"] = tuple(given["scales"])
    try:
        return Detection(**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def _array(path: Path, where: str) -> np.ndarray:
    stored: dict[str, Any] = read_arrays(path, f"{where} '{path.name}'")
    if len(stored) != 1:
        raise ValueError(f"{where} '{path.name}': one array is wanted, as np.save writes it. It holds {len(stored)}.")
    return next(iter(stored.values()))

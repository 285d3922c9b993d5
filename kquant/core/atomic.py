"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def write_atomically(path: Path, content: bytes, who: str = "export") -> None:
    """Write beside the target and move: readers see the old file or the new one, never half of it.

    Args:
        path: of the file.
        content: of it.
        who: the verb that errors name.

    Raises:
        ValueError: the system refuses, with its reason.
    """
    name = ""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".kquant-")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException as error:
        if name:
            with contextlib.suppress(FileNotFoundError):
                Path(name).unlink()
        if isinstance(error, OSError):
            raise ValueError(f"{who}: {path} cannot be written: {error.strerror}; choose another path.") from error
        raise

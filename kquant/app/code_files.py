"""A user's own layers: a file of Python that is run, and what it defines, by the names that a model's file has."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any


def definitions(path: Path, option: str) -> dict[str, Any]:
    """Classes and functions that a file of Python defines, and classes that it imports from others, by name.

    The file is run, with its folder first where it imports from. What it registers with Keras
    (`keras.saving.register_keras_serializable`) is known from then on as well.

    Args:
        path: of the file.
        option: that it was given by, for errors.

    Raises:
        ValueError: no such file, what running it raised, or nothing is defined in it.
    """
    where = f"{option} {path}"
    if not path.is_file():
        raise ValueError(f"{where}: no such file; give the file of Python that defines the layers for Keras 3.")
    import keras

    known = dict(keras.saving.get_custom_objects())
    sys.path.insert(0, str(path.resolve().parent))
    try:
        held = runpy.run_path(str(path), run_name=path.stem)
    except Exception as error:  # whatever the caller's code raises
        raise ValueError(f"{where}: running it raised {type(error).__name__}: {error}.") from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    own = {name: value for name, value in held.items() if _is_own(value, path.stem)}
    if not own and known == keras.saving.get_custom_objects():
        raise ValueError(f"{where}: it defines no class and no function; the layers have to be in the file itself.")
    return own


def _is_own(value: Any, name: str) -> bool:
    """Defined in the file of this name, or a class that it imported: a function may have the name of one of Keras'."""
    home = str(getattr(value, "__module__", None))
    return home == name or (isinstance(value, type) and home.split(".")[0] not in LIBRARIES)


LIBRARIES = {*sys.stdlib_module_names, "keras", "tensorflow", "numpy", "kquant", "builtins"}

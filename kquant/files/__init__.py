"""Files on disk: what comes in is checked before it is trusted, what goes out is whole or not there.

`untrusted` reads what anyone may have written, within limits; `keras_files` and `hdf5_copy` do so for models;
`atomic` writes single files and sets of them beside and moves them, `leftovers` clears up after killed runs,
`finished_work` lets a stopped search go on. Paths and bytes come in, checked data or whole files go out. A new kind
of file gets a reader with limits of its own here.
"""

import importlib
import importlib.util
from typing import Any


def __getattr__(name: str) -> Any:
    """What stood in the module of this name before it was a folder: see `kquant.moved`."""
    if name.startswith("__") or importlib.util.find_spec(f"{__name__}.{name}") is not None:  # a module of today
        raise AttributeError(f"module 'kquant.files' has no attribute '{name}'")
    return getattr(importlib.import_module("kquant.app.command_files"), name)

"""Files on disk: what comes in is checked before it is trusted, what goes out is whole or not there.

`untrusted` reads what anyone may have written, within limits; `keras_files` and `hdf5_copy` do so for models;
`atomic` writes single files and sets of them beside and moves them, `leftovers` clears up after killed runs,
`finished_work` lets a stopped search go on. Paths and bytes come in, checked data or whole files go out. A new kind
of file gets a reader with limits of its own here.
"""

from typing import Any

from kquant import moved


def __getattr__(name: str) -> Any:
    """What stood in the module of this name before it was a folder."""
    return moved.held(__name__, name, ("kquant.app.command_files",))

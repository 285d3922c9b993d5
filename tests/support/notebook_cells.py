"""Runs a notebook from top to bottom, as its kernel does, in the folder where this is: without starting a kernel."""

from __future__ import annotations

import os

import keras
import nbformat
import traced_once

os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # what a kernel sets


def run(path: str) -> None:
    """Raise what a cell raises."""
    from IPython.core.interactiveshell import InteractiveShell  # after the backend is said

    keras.Model.make_train_function = traced_once.make_train_function
    shell = InteractiveShell.instance()
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            shell.run_cell(cell.source, store_history=True).raise_error()

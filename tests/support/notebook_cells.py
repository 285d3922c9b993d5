"""Runs notebooks from top to bottom: without a kernel, as one does (`run`), or with one, to save what comes (`save`).

`python tests/support/notebook_cells.py notebooks/*.ipynb` saves; `make notebooks` does.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat

os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # what a kernel sets


def _take_data(path: str | Path, folder: str) -> None:
    """What lies beside a notebook, for it to read."""
    for file in Path(path).parent.iterdir():
        if file.suffix in (".h5", ".npy"):
            shutil.copy(file, folder)


def run(path: str) -> None:
    """Raise what a cell raises; in the folder where this is."""
    import keras
    import traced_once
    from IPython.core.interactiveshell import InteractiveShell  # after the backend is said

    _take_data(path, ".")
    keras.Model.make_train_function = traced_once.make_train_function
    shell = InteractiveShell.instance()
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            shell.run_cell(cell.source, store_history=True).raise_error()


def save(path: str | Path) -> None:
    """Run it in a folder that is removed, and write its outputs into it."""
    from nbclient import NotebookClient  # of the `site` extra

    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        _take_data(path, folder)
        client = NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": folder}})
        client.extra_arguments = ["--IPKernelApp.capture_fd_output=False"]  # TensorFlow's log goes where it always does
        client.execute()
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        save(name)

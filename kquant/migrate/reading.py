"""An old file that was looked at -> what is in it, read by tf_keras in a process of its own.

The caller's Keras is never asked, and stays what it is: importing tfmot, or tf_keras beside TensorFlow, may turn
`tf.keras` of a whole process into Keras 2.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from kquant.files.keras_files import FREE_VALUES
from kquant.files.leftovers import scratch
from kquant.migrate.old_files import OldFile, unread
from kquant.migrate.old_model import OldModel, read

READER = Path(__file__).with_name("tf_keras_reader.py")
SECONDS = 900
MISSING = 3  # how the reader ends where there is no Keras 2
INSTALL = "pip install 'kquant[migrate]'"


def check_python(python: str | Path | None) -> str:
    """The interpreter that has tf_keras.

    Args:
        python: of another environment; None: this one.

    Raises:
        ValueError: none there, with the line that installs it.
    """
    if python is None:
        if importlib.util.find_spec("tf_keras") is None:
            raise ValueError(
                f"migrate: reading files of Keras 2 needs an extra: {INSTALL}. Or name the Python of an environment "
                "that has tf_keras (python=, --python), or read a .h5 file without comparing outputs (compare=False, "
                "--no-compare)."
            )
        return sys.executable
    if not Path(python).is_file():
        raise ValueError(f"--python {python}: no such file; give the path of an interpreter, like old-env/bin/python.")
    return str(python)


def check_code(code: str | Path | None) -> Path | None:
    """The file with an old model's own classes.

    Args:
        code: its path; None: there is none.

    Raises:
        ValueError: no such file.
    """
    if code is not None and not Path(code).is_file():
        raise ValueError(
            f"migrate: code={str(code)!r}: no such file; give the file of Python that defines the old layers."
        )
    return None if code is None else Path(code).resolve()


def read_by_tf_keras(file: OldFile, python: str, code: Path | None = None) -> OldModel:
    """What is in an old file.

    Args:
        file: looked at.
        python: see `check_python`.
        code: see `check_code`; it is run.

    Raises:
        ValueError: tf_keras cannot load it either, and it is no HDF5 file.
    """
    with scratch() as folder:
        kind = "file" if file.kind != "saved" else "variables" if file.is_subclassed else "saved"
        command = [python, str(READER), kind, str(file.copy), str(folder), str(file.stored_bytes + FREE_VALUES)]
        command += [] if code is None else [str(code)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, errors="replace", timeout=SECONDS
            )
        except subprocess.TimeoutExpired as error:
            raise ValueError(f"{file.path}: tf_keras did not load it in {SECONDS} s: damaged, or too large.") from error
        if done.returncode == 0:
            return read(folder, file.where)
    said = _reason(done.stderr)
    if done.returncode == MISSING or "No module named 'tensorflow'" in said:
        raise ValueError(
            f"--python {python}: it has no Keras 2; run {python} -m pip install tf_keras, or {INSTALL} here."
        )
    if file.kind == "h5":
        return unread(file, f"tf_keras cannot load it: {said}")
    raise ValueError(
        f"{file.path}: tf_keras cannot load it: {said}. What tf_keras saves as .h5 is read without loading: save it so "
        "in the process that trained it."
    )


def _reason(text: str) -> str:
    """The last line of a traceback that says why."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if ": " in line and line[:1].isupper()), (lines or ["it ended"])[-1])
    return said[:240].rstrip(".")

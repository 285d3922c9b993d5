"""The file of a project: as it was exported, as a debug model, and as a program on the device holds it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kquant.exporting.export_file import ExportReport, export
from kquant.exporting.file_options import FileOptions
from kquant.projects.arena import Arena, smallest_arena
from kquant.projects.npu import Compiled, compiled_for, planned_arena, runs_on_npu
from kquant.tflite.file_about import About
from kquant.tflite.file_content import debug_content
from kquant.tflite.lowering import lower
from kquant.tflite.names import with_names
from kquant.tflite.reader import FileModel, read_model

FILE = "model.tflite"


@dataclass(frozen=True, eq=False)
class Exported:
    """A file of a model.

    Attributes:
        content: its bytes.
        named: the same file with all names; `content` where none were left out.
        file: what it holds, with all names.
    """

    content: bytes
    named: bytes
    file: FileModel


@dataclass(frozen=True, eq=False)
class Array:
    """The file that a program holds.

    Attributes:
        content: its bytes.
        file: what it holds.
        arena: that the program gives the interpreter; None where that asks the system.
        compiled: what the compiler of an NPU made of the model's file; None for targets without one.
    """

    content: bytes
    file: FileModel
    arena: Arena | None = None
    compiled: Compiled | None = None


def exported(
    qmodel: keras.Model,
    x: list[np.ndarray],
    form: FileOptions,
    about: About | None,
    test: tuple[Any, Any] | None = None,
) -> tuple[Exported, ExportReport]:
    """The verified file, which lies in a temporary folder meanwhile.

    Args:
        qmodel: the model.
        x: samples for each input.
        form: of the file.
        about: what it says to tools of phones.
        test: samples and classes that tell its accuracy; None without.

    Raises:
        ValueError: see `kquant.export`.
    """
    data: Any = x[0] if len(x) == 1 else x
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / FILE
        report = export(qmodel, path, data=data, about=about, test=test, **form)
        content = path.read_bytes()
        if not form.get("strip_names"):
            return Exported(content, content, read_model(content)), report
        # a project is about layers: the same file with their names tells
        export(qmodel, path, check_runtimes=False, **{**form, "strip_names": False})
        named = path.read_bytes()
        return Exported(content, named, with_names(read_model(content), read_model(named))), report


def layer_by_layer(qmodel: keras.Model, form: FileOptions) -> Exported:
    """The file with what every layer computes among its outputs.

    Args:
        qmodel: the model.
        form: of the other file.
    """
    content = debug_content(lower(qmodel, shrink=form.get("shrink", True)))
    return Exported(content, content, read_model(content))


def array_of(made: Exported, accelerator: str | None) -> Array:
    """The file as a microcontroller holds it: as it is, or as the compiler of an NPU makes it; with its arena.

    Args:
        made: of the model.
        accelerator: what it is compiled for; None where nothing compiles it.

    Raises:
        ValueError: the compiler refuses it, or TFLM does.
    """
    if accelerator is None:
        return Array(made.content, made.file, smallest_arena(made.content, made.file))
    content, compiled = compiled_for(made.named, made.file, accelerator)
    if not compiled.compiler:
        content = made.content
    file = read_model(content) if compiled.compiler else made.file
    # what has an operator of the NPU runs there alone
    arena = planned_arena(content, file) if runs_on_npu(file) else smallest_arena(content, file)
    return Array(content, file, arena, compiled)

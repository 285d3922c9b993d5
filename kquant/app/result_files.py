"""The files that `kquant compress` and `kquant autotune` leave in a folder: all of one run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from kquant import report
from kquant.app.command_files import save_model
from kquant.app.pipeline import CompressResult
from kquant.exporting.export_file import export
from kquant.files.atomic import Outputs
from kquant.projects.c_array import c_array
from kquant.projects.names import identifier
from kquant.recipe.recipe import recipe_to_toml
from kquant.search.ladder import Tuned


class CompressFiles:
    """Of `kquant compress`: .tflite, quantized .keras, C array and reports.

    Args:
        folder: for them.
        name: of the model.

    Example:
        >>> [path.name for path in CompressFiles(".", "net").paths]
        ['net.tflite', 'net.keras', 'net_model.h', 'net_model.cc', 'report.json', 'report.txt']
    """

    def __init__(self, folder: str | Path, name: str) -> None:
        self.folder, self.name = Path(folder), name
        symbol = f"{identifier(name)}_model"
        self.lite, self.model = self.folder / f"{name}.tflite", self.folder / f"{name}.keras"
        others = (f"{symbol}.h", f"{symbol}.cc", "report.json", "report.txt")
        self.paths = (self.lite, self.model, *(self.folder / other for other in others))

    def write(self, made: CompressResult, new: Outputs) -> CompressResult:
        """Put the other files beside the `.tflite` one.

        Args:
            made: by `kquant.compress`, with its output at `new.place(self.lite)`.
            new: the results.

        Returns:
            The result with the path that the file will have.
        """
        # the file was written in another folder, and moves here with the others
        result = replace(made, report=replace(made.report, path=str(self.lite)))
        save_model(result.model, self.model, new)
        for file, text in c_array(new.place(self.lite).read_bytes(), self.name).items():
            new.write(self.folder / file, text)
        new.write(self.folder / "report.json", f"{report.to_json(result)}\n".encode())
        new.write(self.folder / "report.txt", report.render(result).encode())
        return result


class AutotuneFiles:
    """Of `kquant autotune`: .tflite, quantized .keras, the recipe and what was tried.

    Args:
        folder: for them.
        name: of the model.
    """

    def __init__(self, folder: str | Path, name: str) -> None:
        self.lite, self.model = Path(folder) / f"{name}.tflite", Path(folder) / f"{name}.keras"
        self.rungs, self.recipe = Path(folder) / "autotune.json", Path(folder) / "recipe.toml"
        self.paths = (self.lite, self.model, self.rungs, self.recipe)

    def write(self, tuned: Tuned, data: Any, new: Outputs) -> None:
        """Put all of them.

        Args:
            tuned: by `kquant.autotune`.
            data: see `kquant.export`.
            new: the results.
        """
        export(tuned.model, new.place(self.lite), data=data)
        save_model(tuned.model, self.model, new)
        new.write(self.rungs, f"{report.to_json(tuned)}\n".encode())
        new.write(self.recipe, recipe_to_toml(tuned.recipe).encode())

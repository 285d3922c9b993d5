"""Keras knows the classes of kquant by name (`kquant>FakeQuant`) as soon as it has been imported."""

from __future__ import annotations

import importlib
from importlib import resources
from types import ModuleType

DECORATOR = "register_keras_serializable"


def homes() -> list[str]:
    """The modules that register a class with Keras: told by their text, so that a new one need not be named here.

    Example:
        >>> "kquant.masking.mask" in homes()
        True
    """
    folders = [folder for folder in resources.files("kquant").iterdir() if folder.is_dir()]
    return sorted(
        f"kquant.{folder.name}.{file.name.removesuffix('.py')}"
        for folder in folders
        for file in folder.iterdir()
        if file.name.endswith(".py") and f"{DECORATOR}(" in file.read_text("utf-8")
    )


def register(keras: ModuleType) -> None:
    """Import them.

    Folders that hold one of them, or something that they need and that imports Keras, do so in their `__init__` before
    anything of theirs, so that none is half imported when this runs.

    Args:
        keras: the module, imported.
    """
    for home in homes():
        importlib.import_module(home)

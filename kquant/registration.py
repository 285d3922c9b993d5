"""Keras knows the classes of kquant by name (`kquant>FakeQuant`) as soon as it has been imported."""

from __future__ import annotations

import importlib
from types import ModuleType

# Whoever registers a class with Keras, or imports all who do; a test finds those that are missing here.
HOMES = (
    "kquant.graph.output_names",
    "kquant.layers.nodes",
    "kquant.layers.training_only",
    "kquant.ops",
    "kquant.masking.mask",
    "kquant.masking.codebook",
    "kquant.train.distillation",
)


def register(keras: ModuleType) -> None:
    """Import them.

    Folders that hold one of them, or something that they need and that imports Keras, do so in their `__init__` before
    anything of theirs, so that none is half imported when this runs.

    Args:
        keras: the module, imported.
    """
    for home in HOMES:
        importlib.import_module(home)

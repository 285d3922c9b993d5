"""What a search has finished, in a folder of its caller: the file, and what tells one search from another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

from kquant.calibration.data import gather
from kquant.core.renamed import Batches
from kquant.files.destination import path_of
from kquant.files.finished_work import Kept, fingerprint
from kquant.recipe.recipe import Recipe

FIRST = 32  # samples that data are recognized by


def search_state(
    folder: str | Path | None, file: str, who: str, model: keras.Model, data: Any, recipe: Recipe | None, **options: Any
) -> Kept:
    """The state of an earlier call of the same search; an empty one where there is none.

    Args:
        folder: for the file; None keeps nothing.
        file: its name.
        who: the verb.
        model: the float model.
        data: its samples, of which the first tell.
        recipe: that the search starts from; None where it starts from none.
        options: what else the results depend on, as JSON takes it.

    Returns:
        The rows that were kept.

    Raises:
        ValueError: the file is of another search, or damaged.
    """
    if folder is None:
        return Kept(None, who, {})
    search = {
        "model": model.name,
        "weights": fingerprint(model.get_weights()),
        **({} if recipe is None else {"recipe": recipe.name}),
        # one batch: all data may be dear to make, or endless
        "data": None if data is None else fingerprint(gather(model, data, Batches(1, FIRST))),
        **options,
    }
    return Kept(path_of(folder, who, "search") / file, who, search)


def rounded(score: float) -> float:
    """A score of the float model, as a sign of the same `evaluate`: sums of float32 may differ in the last digits.

    Example:
        >>> rounded(0.123456789)
        0.123457
    """
    return float(f"{score:.6g}")

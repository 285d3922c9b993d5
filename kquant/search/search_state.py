"""What a search has finished, in a folder of its caller: the file, and what tells one search from another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np

from kquant.calibration.data import batches_of, gives_batches
from kquant.core.renamed import Batches
from kquant.files.destination import path_of
from kquant.files.finished_work import Kept, fingerprint, judged_by
from kquant.recipe.recipe import Recipe

FIRST = 32  # samples that data are recognized by which are made batch by batch


def search_state(
    folder: str | Path | None,
    file: str,
    who: str,
    model: keras.Model,
    data: Any,
    recipe: Recipe | None,
    evaluate: Any = None,
    **options: Any,
) -> Kept:
    """The state of an earlier call of the same search; an empty one where there is none.

    Args:
        folder: for the file; None keeps nothing.
        file: its name.
        who: the verb.
        model: the float model.
        data: its samples. All tell of arrays; of what makes batches the first 32, as all may be dear, or endless.
        recipe: that the search starts from; None where it starts from none.
        evaluate: judges models; what it judges by is known where it says so (`judged_by`).
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
        **({"data": None} if data is None else _told(model, data)),
        **judged_by(evaluate),
        **options,
    }
    return Kept(path_of(folder, who, "search") / file, who, search)


def _told(model: keras.Model, data: Any) -> dict[str, int]:
    """What tells data from others."""
    whole = not gives_batches(data)
    checksum = samples = 0
    for batch in batches_of(model, data, FIRST, None if whole else Batches(1, FIRST)):
        parts = [np.asarray(part) for part in keras.tree.flatten(batch)]
        checksum, samples = fingerprint(parts, checksum), samples + len(parts[0])
    if not samples:
        raise ValueError("the data are empty; give at least one sample.")
    # Fewer than a batch are told by the checksum alone, as folders of earlier versions have them; those of more told
    # the first ones only, and so are of other data for all that is known.
    return {"data": checksum} | ({"samples": samples} if whole and samples >= FIRST else {})


def rounded(score: float) -> float:
    """A score of the float model, as a sign of the same `evaluate`: sums of float32 may differ in the last digits.

    Example:
        >>> rounded(0.123456789)
        0.123457
    """
    return float(f"{score:.6g}")
